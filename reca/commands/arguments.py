"""Commands and arguments as data, and the arguments that several commands share."""

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
    aliases: tuple[str, ...] = ()  # former names


def arg(*flags: str, **options: Any) -> Argument:
    """An argument with the flags and options of `argparse.add_argument`."""
    return Argument(flags, options)


def folder(name: str, text: str) -> Argument:
    """A required argument that names a folder."""
    return arg(name, required=True, metavar="DIR", help=text)


# `reca.config.recipe.ARMS`, without its imports; a test compares them.
ARMS = ("reca", "reca_only", "sft", "shuffled", "random_encoder", "template_only")
TINY = "results/laptop_smoke/showo_tiny"  # where `make smoke` leaves what the examples use
OUT = folder("--out", "output folder, written atomically")
SECTION = arg(
    "--section",
    required=True,
    metavar="JSON",
    help="configuration of the stage as JSON, or @FILE, which may be the manifest.json of a finished stage",
)
SEED = arg("--seed", type=int, required=True, help="seed of the run")
ALLOW = arg(
    "--allow",
    action="append",
    default=[],
    metavar="FIELD",
    help="resume although this field, named in the error, changed: given.code, recipe.lr, ... (repeatable)",
)
WORK = arg(
    "--work",
    metavar="DIR",
    help="folder for unfinished work, removed at the end (default: below work/, named after --out)",
)
EXPERIMENT = arg("experiment", help="a name in config/experiment/")
OVERRIDES = arg("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
MIRROR = arg("--mirror", metavar="DIR", help="local folder to use instead of the network")
UNPINNED = arg("--allow-unpinned", action="store_true", help="accept files without a known hash")
MODEL = arg(
    "--model",
    metavar="DIR",
    help="model folder, such as results/EXPERIMENT/MODEL/reca/seed-0 (default: newest aligned laptop model)",
)
STEPS = arg(
    "--steps",
    type=int,
    help="sampling steps (default: as published, Show-o and BAGEL 50, Harmon 64, OpenUni 20, Janus-Pro one per code; "
    "tiny Show-o 12)",
)
GUIDANCE = arg(
    "--guidance",
    type=float,
    help="guidance scale; 0 disables guidance, for Harmon, BAGEL and Janus-Pro also 1 "
    "(default: as published, Show-o and Janus-Pro 5, OpenUni 4.5, Harmon 3, BAGEL 4; tiny Show-o 2, tiny Janus-Pro 1)",
)
DEVICE = arg(
    "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: the first GPU, if any)"
)
MEMORY = arg(
    "--memory",
    type=float,
    metavar="GIB",
    help="memory of one device (default: this machine's)",
)
MOST_TOKENS = arg(
    "--max-new-tokens",
    type=int,
    default=256,
    metavar="N",
    help="maximum answer length in tokens (default 256); truncation is reported",
)
IMAGE_GUIDANCE = arg(
    "--image-guidance",
    type=float,
    default=1.5,
    metavar="SCALE",
    help="image guidance scale; 1 disables it (default 1.5)",
)
DATA = arg("--data", action="append", default=[], metavar="ROLE=DIR", help="data by role")
CACHE = arg("--cache", action="append", default=[], metavar="USE=DIR", help="cache by use")
PROFILED = (
    arg("--model", metavar="NAME", help="model of the experiment (default: its first)"),
    arg("--steps", type=int, default=5, metavar="N", help="profiled steps (default 5)"),
    arg("--base", metavar="DIR", help="model folder, with --data and --cache as for `reca align`"),
    DATA,
    CACHE,
    arg("--out", metavar="FILE", help="trace (default: profile-EXPERIMENT-MODEL.json)"),
)
DRAW_SEED = arg("--seed", type=int, default=0, help="seed of the noise (default 0)")
SOURCE = arg(
    "--source", action="append", default=[], metavar="ROLE=DIR", help="downloaded folder for a role"
)
SPLIT = arg("--split", choices=("development", "test"), default="test", help="prompts")
CHOSEN = arg("--guidance", metavar="FILE", help="guidance selected by `reca choose`")
LOG = arg("--log", metavar="FILE", help="also write the log to this file")
