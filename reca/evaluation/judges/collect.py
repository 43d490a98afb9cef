"""Send a judge the requests that are not in its ledger, and look up the outcome of every request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from reca.config.schema import JudgeConfig
from reca.evaluation.judges.body import Reply
from reca.evaluation.judges.endpoint import GaveUp
from reca.evaluation.judges.ledger import Entry, Ledger
from reca.evaluation.judges.requests import JudgeRequest

Readable = Callable[[str], bool]
Verdict = tuple[str, str | None]  # status (reply, refused, failed, missing), raw reply
_log = logging.getLogger(__name__)


class Judge(Protocol):
    """An endpoint or a local model that replies to requests."""

    config: JudgeConfig

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """Everything that determines a reply besides the request."""

    def ask(self, request: JudgeRequest) -> Reply:
        """The raw reply; GaveUp if there is none after all tries."""


class CapReached(ValueError):
    """The next request could exceed the cost cap; replies received so far are in the ledger."""


class _Purse:
    """The remaining budget: every request in flight reserves the highest cost seen so far."""

    def __init__(self, config: JudgeConfig, spent: float, dearest: float) -> None:
        self.cap, self.spent, self.held = config.cost_cap, spent, 0
        self.dearest = max(config.request_cost_estimate, dearest)
        self._lock = threading.Lock()

    @property
    def blind(self) -> bool:
        """Whether there is a cap but no known cost yet; the first request is then sent alone."""
        return self.cap is not None and self.dearest == 0

    def hold(self) -> bool:
        """Reserve the highest cost for one more request; False if that could exceed the cap."""
        with self._lock:
            fits = self.cap is None or self.spent + (self.held + 1) * self.dearest <= self.cap
            self.held += fits
            return fits

    def settle(self, cost: float) -> None:
        """Release the reservation of a request and add its actual cost."""
        with self._lock:
            self.held -= 1
            self.spent += cost
            self.dearest = max(self.dearest, cost)

    def demand_costs(self, cost: float) -> None:
        """ValueError if there is a cap but a reply reports no cost, so the cap could not take effect."""
        if self.cap is not None and cost == 0 and self.dearest == 0:
            raise ValueError(
                f"judge.cost_cap = {self.cap:g}: the endpoint reports no token counts, so the cost is unknown; set "
                "judge.request_cost_estimate (the reply is in the ledger)"
            )


def collect(
    requests: Sequence[JudgeRequest],
    judge: Judge,
    ledger: Ledger,
    *,
    benchmark: str,
    version: str,
    readable: Readable,
) -> dict[str, int]:
    """Send requests that are not in the ledger; an unparsable reply is requested up to `config.attempts` times.

    Returns the numbers of requests `asked` now, `known` before, and `failed`. Raises CapReached before the cost cap is
    exceeded, and ValueError if the judge rejects its configuration; the ledger stays intact in both cases.
    """
    fixed = judge.determinants(benchmark, version)
    purse = _Purse(judge.config, ledger.cost, max((entry.cost for entry in ledger), default=0.0))
    turns: dict[Any, threading.Lock] = {}
    counts = {"asked": 0, "known": 0, "failed": 0}

    def answer(request: JudgeRequest) -> dict[str, int]:
        same = (request.system, request.parts)
        with turns.setdefault(same, threading.Lock()):  # identical requests are paid for once
            return _answer(request, judge, ledger, fixed, readable, purse)

    todo = iter(requests)
    running: set[Future[dict[str, int]]] = set()
    with ThreadPoolExecutor(max(1, judge.config.concurrency)) as pool:
        try:
            while True:
                width = 1 if purse.blind else max(1, judge.config.concurrency)
                while len(running) < width and (one := next(todo, None)):
                    running.add(pool.submit(answer, one))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    for name, count in future.result().items():
                        counts[name] += count
        except BaseException:
            pool.shutdown(
                wait=True, cancel_futures=True
            )  # requests in flight are paid for: record them
            raise
    return counts


def _answer(
    request: JudgeRequest,
    judge: Judge,
    ledger: Ledger,
    fixed: dict[str, Any],
    readable: Readable,
    purse: _Purse,
) -> dict[str, int]:
    counts = {"asked": 0, "known": 0, "failed": 0}
    for attempt in range(max(1, judge.config.attempts)):
        key = request.key(fixed, attempt)
        entry = ledger.get(key) or ledger.adopt(key)
        if entry is not None:
            counts["known"] += 1
        else:
            if not purse.hold():
                raise CapReached(
                    f"judge.cost_cap = {purse.cap:g}: {purse.spent:.4g} spent and the next request might "
                    "exceed the cap; raise it to continue, no reply is paid for twice"
                )
            cost = 0.0
            try:
                reply = judge.ask(request)
                cost = price(judge.config, reply.usage)
                entry = _entry(key, request, attempt, reply, cost, fixed)
                ledger.add(entry)
            except GaveUp as problem:
                _log.warning("%s", problem)
                counts["failed"] += 1
                return counts
            finally:
                purse.settle(cost)
            counts["asked"] += 1
            purse.demand_costs(cost)
        if entry.status == "refused" or readable(entry.reply):
            break
    return counts


def _entry(
    key: str,
    request: JudgeRequest,
    attempt: int,
    reply: Reply,
    cost: float,
    fixed: dict[str, Any],
) -> Entry:
    status = "refused" if reply.refused else "reply"
    return Entry(
        key,
        request.id,
        status,  # type: ignore[arg-type]
        reply.text,
        attempt,
        reply.model,
        reply.usage,
        cost,
        fixed,
    )


def price(config: JudgeConfig, usage: Mapping[str, int]) -> float:
    """The cost of a reply from its token counts; if a count is missing, at least the configured estimate."""
    paid = usage.get("prompt_tokens", 0) * config.price_input
    cost = (paid + usage.get("completion_tokens", 0) * config.price_output) / 1e6
    whole = {"prompt_tokens", "completion_tokens"} <= set(usage)
    return cost if whole else max(cost, config.request_cost_estimate)


def verdicts(
    requests: Iterable[JudgeRequest],
    fixed: dict[str, Any],
    ledger: Ledger,
    *,
    attempts: int,
    readable: Readable,
) -> dict[str, Verdict]:
    """The outcome of every request in the ledger: the first readable reply, else the last one. Sends no requests.

    Status is `reply` (readable or not), `refused`, or `failed` if the ledger has no entry.
    """
    found: dict[str, Verdict] = {}
    for request in requests:
        verdict: Verdict = ("failed", None)
        for attempt in range(max(1, attempts)):
            entry = ledger.get(request.key(fixed, attempt))
            if entry is None:
                break
            verdict = (entry.status, entry.reply)
            if entry.status == "refused" or readable(entry.reply):
                break
        found[request.id] = verdict
    return found
