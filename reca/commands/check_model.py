"""check-model: check one model, built in or from another package, against the contract."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reca.conformance.subject import Subject

FAILED = 3  # exit status


def check_model(arguments: Namespace) -> int:
    """Print one line per check; FAILED where the model breaks the contract."""
    from reca.conformance.resolve import subject_of

    if not all(text.strip() for text in arguments.text):
        raise ValueError(
            "--text '': an empty text is the unconditional condition; give prompts that describe something"
        )
    subject = subject_of(arguments.model, arguments.text)
    logger = logging.getLogger("reca")
    level = logger.level
    logger.setLevel(logging.ERROR)  # hides warnings such as those of truncated answers
    try:
        return _run(arguments, subject)
    finally:
        logger.setLevel(level)


def _run(arguments: Namespace, subject: Subject) -> int:
    from reca.conformance.suite import CHECKS, run

    print(
        f"{arguments.model}: family {subject.model.family}, {type(subject.model).__name__}; {subject.source}"
    )
    found = {"passed": 0, "failed": 0, "skipped": 0}
    width = max(map(len, CHECKS))
    for outcome in run(subject, arguments.only):
        found[outcome.status] += 1
        line = f"  {outcome.status:7} {outcome.check:{width}}  {outcome.line}"
        print(line.rstrip(), flush=True)
    print(", ".join(f"{count} {status}" for status, count in found.items()))
    return FAILED if found["failed"] else 0
