"""check-model: the whole contract on one model, ours or another package's."""

from __future__ import annotations

import logging
from argparse import Namespace

FAILED = 3  # exit status


def check_model(arguments: Namespace) -> int:
    """Print one line per check; FAILED where the model breaks the contract."""
    from reca.conformance.resolve import subject_of
    from reca.conformance.suite import CHECKS, run

    subject = subject_of(arguments.model, arguments.text)
    logging.getLogger("reca").setLevel(logging.ERROR)  # of truncated answers, for instance
    print(f"{arguments.model}: family {subject.model.family}, {type(subject.model).__name__}")
    found = {"passed": 0, "failed": 0, "skipped": 0}
    width = max(map(len, CHECKS))
    for outcome in run(subject, arguments.only):
        found[outcome.status] += 1
        line = f"  {outcome.status:7} {outcome.check:{width}}  {outcome.line}"
        print(line.rstrip(), flush=True)
    print(", ".join(f"{count} {status}" for status, count in found.items()))
    return FAILED if found["failed"] else 0
