"""Judges: an endpoint or a local model replies to every request; the ledger ensures that no reply is paid for twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_bytes, write_atomic, write_json
from reca.evaluation import registry
from reca.evaluation.files import JUDGE, LEDGER
from reca.evaluation.judges.collect import collect, verdicts
from reca.evaluation.judges.ledger import Ledger, totals
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.observers.view import View, device, source_folder

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig
    from reca.evaluation.judges.collect import Judge


def observe(view: View) -> dict[str, Any]:
    """Send the requests that are not in the judge's ledger, and write the outcome of every request.

    ConnectionError, after all others, if requests got no reply: evidence without them would be current, and a later run
    would not send them. With the option `partial` they count as failed.
    """
    module = registry.module(view.benchmark.kind)
    judge = open_judge(view.benchmark, view.data)
    if not registry.kind(view.benchmark.kind).images:
        requests = module.requests(view.asked, view.answers, view.data)
    elif "edit" in registry.kind(view.benchmark.kind).needs:
        requests = module.requests(view.items, view.pictures, view.data, view.sources)
    else:
        requests = module.requests(view.items, view.pictures, view.data)
    readable = _reader(module)
    with Ledger(view.ledger) as book:
        counts = collect(
            requests,
            judge,
            book,
            benchmark=view.benchmark.kind,
            version=module.VERSION,
            readable=readable,
        )
        fixed = judge.determinants(view.benchmark.kind, module.VERSION)
        if counts["failed"] and not view.benchmark.options.get("partial"):
            raise ConnectionError(
                f"{view.benchmark.kind}: {counts['failed']} of {len(requests)} requests got no reply from "
                f"{fixed['provider']} (reasons: above); all other replies are in {view.ledger}, so run again to send "
                "only these, or set benchmarks.<name>.options.partial"
            )
        attempts = judge.config.attempts
        found = verdicts(requests, fixed, book, attempts=attempts, readable=readable)
        summed = totals(book)
    images = {request.id: _image(request) for request in requests}
    view.write(
        {"id": name, "status": status, "reply": reply, **images[name]}
        for name, (status, reply) in found.items()
    )
    # In order of keys: that of arrival differs from run to run, and equal evidence must have equal bytes.
    replies = sorted(view.ledger.read_bytes().splitlines(keepends=True))
    write_atomic(view.out / LEDGER, b"".join(replies))
    card = {"determinants": fixed, "totals": summed, "encoding": "as the official script sends"}
    write_json(view.out / JUDGE, card)
    return {**counts, **summed}


def _image(request: JudgeRequest) -> dict[str, str]:
    """The hash of the image to judge, which is the last one of a request; none where the judge reads answers."""
    shown = [part.data for part in request.parts if isinstance(part, Picture)]
    return {"sha256": sha256_bytes(shown[-1])} if shown else {}


def _reader(module: Any) -> Callable[[str], bool]:
    """A predicate: whether the benchmark's parser finds a score in a reply."""
    score = module.scores if hasattr(module, "scores") else module.score
    return lambda reply: score(reply) is not None


def open_judge(benchmark: BenchmarkConfig, data: Mapping[str, Path]) -> Judge:
    """The configured judge; temperature and length default to the benchmark's own. ValueError if none is configured."""
    config = benchmark.judge
    if config is None:
        raise ValueError(f"{benchmark.kind}: no judge is configured; set benchmarks.<name>.judge")
    limits = registry.module(benchmark.kind).JUDGE_LIMITS
    own = {name: value for name, value in limits.items() if asdict(config)[name] is None}
    config = replace(config, **own)
    if config.kind == "transformers":
        from reca.evaluation.detectors.local_judge import LocalJudge

        return LocalJudge(config, source_folder(data, "judge_model", benchmark.kind), device())
    from reca.evaluation.judges.endpoint import Endpoint

    return Endpoint(config)
