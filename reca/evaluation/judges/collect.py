"""Ask a judge everything that its ledger does not know yet, and say what became of every request."""

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
    """Whoever answers requests: an endpoint, or a model on this machine."""

    config: JudgeConfig

    def determinants(self, benchmark: str, version: str) -> dict[str, Any]:
        """All that determines a reply besides the request."""

    def ask(self, request: JudgeRequest) -> Reply:
        """The raw reply; GaveUp where there is none."""


class CapReached(ValueError):
    """The next request could go beyond the cost cap; what was paid for is in the ledger."""


class _Purse:
    """What may still be spent: each request in flight holds back the dearest cost seen so far."""

    def __init__(self, config: JudgeConfig, spent: float, dearest: float) -> None:
        self.cap, self.spent, self.held = config.cost_cap, spent, 0
        self.dearest = max(config.request_cost_estimate, dearest)
        self._lock = threading.Lock()

    @property
    def blind(self) -> bool:
        """Whether a cap holds and no cost is known yet: then one request goes ahead alone."""
        return self.cap is not None and self.dearest == 0

    def hold(self) -> bool:
        """Whether one more request fits below the cap, those in flight counted at the dearest cost."""
        with self._lock:
            fits = self.cap is None or self.spent + (self.held + 1) * self.dearest <= self.cap
            self.held += fits
            return fits

    def settle(self, cost: float) -> None:
        """A request came back and cost this much."""
        with self._lock:
            self.held -= 1
            self.spent += cost
            self.dearest = max(self.dearest, cost)

    def demand_costs(self, cost: float) -> None:
        """ValueError where a cap holds and a reply tells no cost: the cap would cap nothing."""
        if self.cap is not None and cost == 0 and self.dearest == 0:
            raise ValueError(
                f"judge.cost_cap = {self.cap:g}: the endpoint counts no tokens, so no cost is known; set "
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
    """Send requests missing in the ledger; an unparsable reply is requested again up to `config.attempts` times.

    Returns counts: `asked` now, `known` before, `failed`. Raises CapReached before the cost cap is
    passed, and ValueError where the judge itself is out of order; both leave the ledger whole.
    """
    fixed = judge.determinants(benchmark, version)
    purse = _Purse(judge.config, ledger.cost, max((entry.cost for entry in ledger), default=0.0))
    turns: dict[Any, threading.Lock] = {}
    counts = {"asked": 0, "known": 0, "failed": 0}

    def answer(request: JudgeRequest) -> dict[str, int]:
        same = (request.system, request.parts)
        with turns.setdefault(same, threading.Lock()):  # equal questions are paid for once
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
            pool.shutdown(wait=True, cancel_futures=True)  # what is in flight is paid: keep it
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
        entry = ledger.get(key)
        if entry is not None:
            counts["known"] += 1
        else:
            if not purse.hold():
                raise CapReached(
                    f"judge.cost_cap = {purse.cap:g}: {purse.spent:.4g} spent and the next request might "
                    "go beyond; raise the cap to go on, nothing is paid twice"
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
    """The cost of a reply by its tokens; where one of the counts is missing, no less than the configured estimate."""
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
    """What the ledger says of every request: its first readable reply, else its last one; nothing is asked.

    Status `reply` (readable or not), `refused`, or `failed` where the ledger has no entry.
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
