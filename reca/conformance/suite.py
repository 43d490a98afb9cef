"""The conformance suite: every check by name, and the outcome of each for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from reca.conformance import checks, moving, planning, sampling, training
from reca.conformance.subject import NonConformity, NotApplicable, Subject, last_place
from reca.core.structure import suggestion

CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        planning.entry,
        checks.encode_is_deterministic,
        checks.encode_ignores_the_batch,
        planning.fingerprint_covers_encode,
        checks.counts_before_losses,
        checks.questions_have_no_labels,
        checks.losses_are_sums,
        checks.losses_ignore_the_batch,
        checks.losses_are_pure,
        checks.the_condition_is_used,
        checks.gradients_where_promised,
        training.frozen_parts_stay,
        training.resume_is_exact,
        training.save_and_load,
        training.official_names,
        sampling.images_ignore_the_batch,
        sampling.neutral_guidance,
        sampling.answers_ignore_the_batch,
        moving.device_moves,
    )
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check; `line` says what is wrong and which code to look at, or why it was skipped."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    line: str = ""


def run(subject: Subject, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Run all checks, or the named ones; ValueError for an unknown name."""
    for name in names:
        if name not in CHECKS:
            raise ValueError(f"check {name!r} is not known; {suggestion(name, CHECKS)}")
    for name in names or CHECKS:
        yield run_check(subject, name)


def run_check(subject: Subject, name: str) -> Outcome:
    """Run one check. Exceptions of the model count as failures, reported as one line with their location."""
    if name in subject.leave_out:
        return Outcome(name, "skipped", subject.leave_out[name])
    try:
        CHECKS[name](subject)
    except NonConformity as broken:
        return Outcome(name, "failed", str(broken))
    except NotApplicable as reason:
        return Outcome(name, "skipped", str(reason))
    except Exception as fault:
        said = " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
        return Outcome(name, "failed", f"raised {said}; look at {last_place(fault)}")
    return Outcome(name, "passed")
