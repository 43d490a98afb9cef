"""The table of commands: each one's words, an example, its arguments and the function that runs it.

No other module of the package is imported here: `reca --help` reads the table alone.
"""

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


def _arg(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


def _folder(name: str, text: str) -> Argument:
    return _arg(name, required=True, metavar="DIR", help=text)


_TINY = "results/laptop/showo_tiny"  # where `make reproduce` leaves what the examples use
_OUT = _folder("--out", "folder that this stage writes, whole or not at all")
_SECTION = _arg(
    "--section",
    required=True,
    metavar="JSON",
    help="configuration of the stage as JSON, or @FILE (also the manifest.json of such a stage)",
)
_SEED = _arg("--seed", type=int, required=True, help="seed of the run")
_WORK = _arg(
    "--work",
    metavar="DIR",
    help="staging folder, removed at the end (default: below work/, named after --out)",
)
_EXPERIMENT = _arg("experiment", help="a name in config/experiment/")
_OVERRIDES = _arg("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
_MIRROR = _arg("--mirror", metavar="DIR", help="folder used in place of the network")
_UNPINNED = _arg("--allow-unpinned", action="store_true", help="accept files without a known hash")
_MODEL = _arg("--model", metavar="DIR", help="model folder (default: newest aligned laptop model)")
_STEPS = _arg(
    "--steps",
    type=int,
    help="sampling steps (default: as published, Show-o and BAGEL 50, Harmon 64; tiny Show-o 12)",
)
_GUIDANCE = _arg(
    "--guidance",
    type=float,
    help="guidance scale; 0 disables it, for Harmon, BAGEL and Janus-Pro also 1 "
    "(default: as published, Show-o and Janus-Pro 5, Harmon 3, BAGEL 4; tiny Show-o 2)",
)
_DEVICE = _arg(
    "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: the first GPU, if any)"
)
_DRAW_SEED = _arg("--seed", type=int, default=0, help="seed of the noise (default 0)")
_SOURCE = _arg(
    "--source", action="append", default=[], metavar="ROLE=DIR", help="downloaded folder of a role"
)
_SPLIT = _arg("--split", choices=("development", "test"), default="test", help="prompts")
_CHOSEN = _arg("--guidance", metavar="FILE", help="guidance selected by `reca choose`")
_LOG = _arg("--log", metavar="FILE", help="also write the log to this file")

VERBS = (
    # ---- configuration
    Verb(
        "compose",
        "print or write an experiment's resolved configuration",
        "reca compose laptop seeds=[0] --out build/laptop.yaml",
        "reca.commands.configure:compose",
        (_EXPERIMENT, _OVERRIDES, _arg("--out", metavar="FILE", help="file (default: print)")),
    ),
    Verb(
        "check",
        "validate an experiment, including its networks, and list what it would run",
        "reca check paper models.showo_clip_512.align.steps=100",
        "reca.commands.configure:check",
        (_EXPERIMENT, _OVERRIDES),
    ),
    Verb(
        "plan",
        "estimate a run's memory per device: weights, gradients, optimizer, activations",
        "reca plan paper_bagel --memory 80",
        "reca.commands.plan:plan",
        (
            _EXPERIMENT,
            _OVERRIDES,
            _arg(
                "--memory",
                type=float,
                metavar="GIB",
                help="memory of one device (default: this machine's)",
            ),
        ),
    ),
    Verb(
        "schema",
        "print the JSON schema of experiments, or write it for Snakemake",
        "reca schema --write",
        "reca.commands.configure:schema",
        (_arg("--write", action="store_true", help="write the file in workflow/schemas"),),
    ),
    # ---- sources and data
    Verb(
        "sources",
        "list the downloads in config/sources.yaml and whether they are pinned",
        "reca sources",
        "reca.commands.sources:show",
    ),
    Verb(
        "fetch",
        "download one source, verified and resumable",
        "reca fetch magvitv2 --out data/magvitv2 --mirror /mnt/mirror",
        "reca.commands.sources:fetch",
        (_arg("name", help="a name in config/sources.yaml"), _OUT, _MIRROR, _UNPINNED, _LOG),
    ),
    Verb(
        "pin",
        "pin sources: write their revisions and hashes to config/sources.lock",
        "reca pin magvitv2 phi_1_5",
        "reca.commands.sources:pin",
        (
            _arg("names", nargs="+", metavar="NAME", help="names in config/sources.yaml"),
            _MIRROR,
            _arg("--update", action="store_true", help="replace existing pins"),
        ),
    ),
    Verb(
        "render",
        "render a data set of the procedural toy world",
        "reca render --section @data/laptop-reconstruct/manifest.json --out work/again/world",
        "reca.commands.data:render",
        (_SECTION, _OUT, _LOG),
    ),
    # ---- stages
    Verb(
        "base",
        "create the model folder that all arms start from",
        f"reca base --section @{_TINY}/base/manifest.json --out work/again/base",
        "reca.commands.train:import_base",
        (
            _SECTION,
            _OUT,
            _arg("--input", action="append", default=[], metavar="ROLE=DIR", help="source folder"),
            _LOG,
        ),
    ),
    Verb(
        "cache",
        "run the frozen encoders once over a data set",
        f"reca cache --section @{_TINY}/cache/draw/manifest.json --model {_TINY}/base"
        " --data data/laptop-reconstruct --use draw --out work/again/draw",
        "reca.commands.train:cache",
        (
            _SECTION,
            _folder("--model", "base model folder"),
            _folder("--data", "folder of the data set"),
            _arg(
                "--companion",
                action="append",
                default=[],
                metavar="FIRST=DIR",
                help="folder or archives of the images whose paths begin with FIRST/",
            ),
            _arg(
                "--use", required=True, choices=("draw", "read", "edit"), help="what images are for"
            ),
            _DEVICE,
            _WORK,
            _OUT,
            _LOG,
        ),
    ),
    Verb(
        "align",
        "train one arm from the base model, resuming an interrupted run",
        f"reca align --section @{_TINY}/reca/seed-0/manifest.json --model {_TINY}/base"
        " --data reconstruct=data/laptop-reconstruct --data answer=data/laptop-reconstruct"
        f" --cache draw={_TINY}/cache/draw --cache read={_TINY}/cache/read"
        " --arm reca --seed 0 --work work/again/training --out work/again/reca",
        "reca.commands.train:align",
        (
            _SECTION,
            _folder("--model", "base model folder"),
            _arg("--data", action="append", default=[], metavar="ROLE=DIR", help="data by role"),
            _arg("--cache", action="append", default=[], metavar="USE=DIR", help="cache by use"),
            _arg("--arm", required=True, choices=("reca", "sft", "shuffled"), help="objective"),
            _SEED,
            _WORK,
            _OUT,
            _LOG,
        ),
    ),
    Verb(
        "pretrain",
        "train a component of a laptop base model from scratch",
        "reca pretrain tokenizer --section @s.json --data data/world --out results/pre/tokenizer",
        "reca.commands.train:pretrain",
        (
            _arg("part", metavar="PART", help="a component of the family, or `base` for the model"),
            _SECTION,
            _arg("--data", action="append", default=[], metavar="ROLE=DIR", help="data by role"),
            _arg(
                "--input",
                action="append",
                default=[],
                metavar="ROLE=DIR",
                help="components trained earlier",
            ),
            _arg(
                "--start",
                metavar="DIR",
                help="complete model to continue from, instead of components",
            ),
            _arg("--seed", type=int, default=0, help="seed (default 0)"),
            _WORK,
            _OUT,
            _LOG,
        ),
    ),
    # ---- evaluation
    Verb(
        "evaluate",
        "sample, observe and score the toy world's benchmarks of some runs in one process",
        f"reca evaluate --section @s.json --model reca-0={_TINY}/reca/seed-0 --split development"
        " --out work/again/showo_tiny",
        "reca.commands.evaluate:evaluate",
        (
            _arg(
                "--section",
                required=True,
                metavar="JSON",
                help="by run and benchmark the configuration of `sample`, `observe` and `score`, or @FILE",
            ),
            _arg(
                "--model",
                action="append",
                default=[],
                metavar="RUN=DIR",
                help="model folder of a run; its name ends in its seed, as in reca-0",
            ),
            _SPLIT,
            _CHOSEN,
            _DEVICE,
            _WORK,
            _folder("--out", "folder of all runs; stages write RUN/BENCHMARK/SPLIT/... below it"),
            _LOG,
        ),
    ),
    Verb(
        "sample",
        "generate a benchmark's images and answer its questions with one model",
        f"reca sample --section @{_TINY}/reca-0/laptop/test/samples/manifest.json"
        f" --model {_TINY}/reca/seed-0 --seed 0 --split test --guidance={_TINY}/guidance/guidance.json"
        " --work work/again/pictures --out work/again/samples",
        "reca.commands.sample:sample",
        (
            _SECTION,
            _folder("--model", "model folder"),
            _SEED,
            _SPLIT,
            _CHOSEN,
            _arg("--shard", metavar="I/N", default="0/1", help="part of a paper benchmark"),
            _SOURCE,
            _DEVICE,
            _WORK,
            _OUT,
            _LOG,
        ),
        ("generate",),
    ),
    Verb(
        "observe",
        "run a detector, a VQA model, a judge or the toy world's examiner on samples",
        f"reca observe --section @{_TINY}/reca-0/laptop/test/evidence/manifest.json"
        f" --samples {_TINY}/reca-0/laptop/test/samples --out work/again/evidence",
        "reca.commands.observe:observe",
        (
            _SECTION,
            _folder("--samples", "output folder of `reca sample`"),
            _SOURCE,
            _arg(
                "--ledger",
                metavar="FILE",
                default="ledgers/judge.jsonl",
                help="file of the judge's replies",
            ),
            _WORK,
            _OUT,
            _LOG,
        ),
        ("examine",),
    ),
    Verb(
        "score",
        "score a folder of images (`reca score geneval FOLDER`) or samples of the workflow",
        f"reca score --section @{_TINY}/reca-0/laptop/test/scores/manifest.json"
        f" --samples {_TINY}/reca-0/laptop/test/samples --evidence {_TINY}/reca-0/laptop/test/evidence"
        " --out work/again/scores",
        "reca.commands.score:score",
        (
            _arg("benchmark", nargs="?", metavar="BENCHMARK", help="geneval, dpg, wise, ..."),
            _arg("folder", nargs="?", metavar="FOLDER", help="images in the official layout"),
            _arg("--list", action="store_true", help="only list missing and unknown files"),
            _arg("--images", type=int, metavar="N", help="images per prompt (default: as found)"),
            _arg(
                "--partial",
                action="store_true",
                help="score an incomplete folder, marked as partial",
            ),
            _arg(
                "--evidence",
                nargs="*",
                metavar="DIR",
                help="observations of an earlier run, instead of running a network",
            ),
            _arg(
                "--scorer",
                metavar="NAME",
                help="network that observes the images (docs/benchmarks.md)",
            ),
            _arg("--judge", metavar="JSON", help="configuration of the judge, or @FILE"),
            _arg("--options", metavar="JSON", help="named options of the scoring rules"),
            _SOURCE,
            _arg(
                "--section",
                metavar="JSON",
                help="workflow: configuration of the benchmark, or @FILE",
            ),
            _arg(
                "--samples",
                nargs="+",
                metavar="DIR",
                help="workflow: output folders of `reca sample`",
            ),
            _arg("--out", metavar="DIR", help="folder to write"),
            _LOG,
        ),
    ),
    Verb(
        "choose",
        "select each arm's guidance from development scores",
        f"reca choose --scores {_TINY}/base-0/laptop/development/scores"
        f" {_TINY}/reca-0/laptop/development/scores --out work/again/guidance/guidance.json",
        "reca.commands.score:choose",
        (
            _arg("--scores", nargs="+", required=True, metavar="DIR", help="score folders"),
            _arg("--out", required=True, metavar="FILE", help="file to write"),
            _LOG,
        ),
    ),
    Verb(
        "report",
        "write the report page and outcomes.json of an experiment",
        "reca report --experiment laptop --results results/laptop --out work/again/report",
        "reca.commands.report:report",
        (
            _arg("--experiment", required=True, metavar="NAME|FILE", help="name or resolved YAML"),
            _folder("--results", "results of the experiment"),
            _OUT,
            _LOG,
        ),
    ),
    Verb(
        "paper",
        "write the paper's tables: reported and reproduced values, or `not run`",
        "reca paper --results results --out paper_tables",
        "reca.commands.report:paper",
        (
            _folder("--results", "an experiment's results, or the folder of all"),
            _arg(
                "--experiment",
                nargs="+",
                metavar="NAME",
                help="experiments whose expectations are checked (default: paper, and all that have results)",
            ),
            _arg(
                "--check",
                action="store_true",
                help="exit with status 3 if a number is outside its stated tolerance",
            ),
            _OUT,
            _LOG,
        ),
    ),
    # ---- one image at a time
    Verb(
        "draw",
        "generate an image from a prompt",
        'reca draw "a red circle left of a blue square" --out circle.png',
        "reca.commands.interact:draw",
        (
            _arg("prompt", help="description of the image"),
            _MODEL,
            _arg("--out", default="drawn.png", metavar="FILE", help="default drawn.png"),
            _GUIDANCE,
            _STEPS,
            _DRAW_SEED,
            _DEVICE,
        ),
    ),
    Verb(
        "edit",
        "edit an image by an instruction (BAGEL)",
        'reca edit photo.png "make the circle blue" --out edited.png',
        "reca.commands.interact:edit",
        (
            _arg("image", help="image to edit"),
            _arg("instruction", help="edit instruction"),
            _MODEL,
            _arg("--out", default="edited.png", metavar="FILE", help="default edited.png"),
            _GUIDANCE,
            _arg(
                "--image-guidance",
                type=float,
                default=1.5,
                metavar="SCALE",
                help="image guidance scale; 1 disables it (default 1.5)",
            ),
            _STEPS,
            _DRAW_SEED,
            _DEVICE,
        ),
    ),
    Verb(
        "reconstruct",
        "generate an image again from the model's own understanding embeddings",
        "reca reconstruct circle.png --out again.png",
        "reca.commands.interact:reconstruct",
        (
            _arg("image", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP or TIFF file"),
            _MODEL,
            _arg("--out", default="reconstructed.png", metavar="FILE", help="default as shown"),
            _arg("--prompt", help="reconstruction prompt (default: the laptop bank's first)"),
            _GUIDANCE,
            _STEPS,
            _DRAW_SEED,
            _DEVICE,
        ),
    ),
    Verb(
        "ask",
        "answer a question about an image",
        'reca ask circle.png "what color is the circle ?"',
        "reca.commands.interact:ask",
        (
            _arg("image", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP or TIFF file"),
            _arg("question", help="the question"),
            _MODEL,
            _arg(
                "--max-new-tokens",
                type=int,
                default=256,
                metavar="N",
                help="maximum answer length in tokens (default 256); truncation is reported",
            ),
            _DEVICE,
        ),
    ),
    # ---- records
    Verb(
        "audit",
        "hash every output again and trace every input back to its source",
        "reca audit results/laptop",
        "reca.commands.trail:audit",
        (_arg("folders", nargs="*", metavar="DIR", help="default: results and data"),),
    ),
    Verb(
        "doctor",
        "describe this machine and its kernels, after checking them against plain torch",
        "reca doctor",
        "reca.commands.doctor:doctor",
    ),
    Verb(
        "record",
        "commit finished results to DVC, after an audit",
        "reca record",
        "reca.commands.trail:record",
    ),
)
