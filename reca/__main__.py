"""`python -m reca` is `reca`; within a local run of the workflow, a worker that has imported once runs it."""

import sys

from reca.commands.exits import WITHOUT_TORCH
from reca.worker.client import hand_over

if __name__ == "__main__":
    if (status := hand_over(sys.argv[1:], light=WITHOUT_TORCH)) is None:
        from reca.cli import main

        status = main()
    sys.exit(status)
