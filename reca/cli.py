"""The command line: one command per workflow stage, each of which can also be run by hand.

`reca.commands.verbs` is the table of all commands; the function that runs one is imported only then, so that
`reca --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import reca
from reca.commands.exits import demand_address_space, line_of
from reca.commands.log_file import start_log
from reca.commands.verbs import VERBS
from reca.core.allocator import keep_freed_memory


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    root = argparse.ArgumentParser(
        prog="reca",
        description="Reconstruction Alignment (RecA) of unified multimodal models, reproducibly.",
        epilog='example:\n  reca draw "a red circle left of a blue square" --out circle.png',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"reca {reca.__version__}")
    verbs = root.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb in VERBS:
        one = verbs.add_parser(
            verb.name,
            aliases=verb.aliases,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in verb.arguments:
            one.add_argument(*argument.flags, **argument.options)
        one.set_defaults(runs=verb.runs)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 2 for a user's mistake, 1 for a machine failure, 130 after Ctrl-C."""
    parsed = parser().parse_args(arguments)
    module, _, function = parsed.runs.partition(":")
    try:
        demand_address_space(parsed.verb)
        keep_freed_memory()
        start_log(getattr(parsed, "log", None))
        return int(getattr(importlib.import_module(module), function)(parsed) or 0)
    except BrokenPipeError:  # the reader of a pipe (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            f"reca {parsed.verb}: stopped by Ctrl-C; run the same command again to resume",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        if (said := line_of(error)) is None or os.environ.get("RECA_DEBUG") == "1":
            raise
        print(f"reca {parsed.verb}: {said[0]}", file=sys.stderr)
        return said[1]
