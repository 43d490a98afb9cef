"""What a command and an argument are, as data, and the arguments that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument of a command: its flags and its argparse options."""

    flags: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """One command: `runs` is `module:function`, called with the parsed arguments."""

    name: str
    summary: str
    example: str
    runs: str
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()  # names that it had before


def arg(*flags: str, **options: Any) -> Argument:
    """One argument, as `argparse` describes it."""
    return Argument(flags, options)


def folder(name: str, text: str) -> Argument:
    """A required folder."""
    return arg(name, required=True, metavar="DIR", help=text)


TINY = "results/laptop/showo_tiny"  # where `make reproduce` leaves what the examples use
OUT = folder("--out", "folder that this stage writes, whole or not at all")
SECTION = arg(
    "--section",
    required=True,
    metavar="JSON",
    help="configuration of the stage as JSON, or @FILE (also the manifest.json of such a stage)",
)
SEED = arg("--seed", type=int, required=True, help="seed of the run")
WORK = arg(
    "--work",
    metavar="DIR",
    help="staging folder, removed at the end (default: below work/, named after --out)",
)
EXPERIMENT = arg("experiment", help="a name in config/experiment/")
OVERRIDES = arg("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
MIRROR = arg("--mirror", metavar="DIR", help="folder used in place of the network")
UNPINNED = arg("--allow-unpinned", action="store_true", help="accept files without a known hash")
MODEL = arg(
    "--model",
    metavar="DIR",
    help="model folder, such as results/EXPERIMENT/MODEL/reca/seed-0 (default: newest aligned laptop model)",
)
STEPS = arg(
    "--steps",
    type=int,
    help="sampling steps (default: as published, Show-o and BAGEL 50, Harmon 64; tiny Show-o 12)",
)
GUIDANCE = arg(
    "--guidance",
    type=float,
    help="guidance scale; 0 disables it, for Harmon, BAGEL and Janus-Pro also 1 "
    "(default: as published, Show-o and Janus-Pro 5, Harmon 3, BAGEL 4; tiny Show-o 2)",
)
DEVICE = arg(
    "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: the first GPU, if any)"
)
DRAW_SEED = arg("--seed", type=int, default=0, help="seed of the noise (default 0)")
SOURCE = arg(
    "--source", action="append", default=[], metavar="ROLE=DIR", help="downloaded folder of a role"
)
SPLIT = arg("--split", choices=("development", "test"), default="test", help="prompts")
CHOSEN = arg("--guidance", metavar="FILE", help="guidance selected by `reca choose`")
LOG = arg("--log", metavar="FILE", help="also write the log to this file")
