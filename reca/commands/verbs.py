"""The table of commands: each one's words, an example, its arguments and the function that runs it.

No other module of the package is imported here but the arguments: `reca --help` reads the table alone.
"""

from __future__ import annotations

from reca.commands.arguments import (
    CHOSEN,
    DEVICE,
    DRAW_SEED,
    EXPERIMENT,
    GUIDANCE,
    LOG,
    MIRROR,
    MODEL,
    OUT,
    OVERRIDES,
    SECTION,
    SEED,
    SOURCE,
    SPLIT,
    STEPS,
    TINY,
    UNPINNED,
    WORK,
    Verb,
    arg,
    folder,
)

VERBS = (
    # ---- configuration
    Verb(
        "compose",
        "print or write an experiment's resolved configuration",
        "reca compose laptop seeds=[0] --out build/laptop.yaml",
        "reca.commands.configure:compose",
        (
            EXPERIMENT,
            OVERRIDES,
            arg("--out", metavar="FILE", help="file (default: print)"),
            arg(
                "--diff",
                action="store_true",
                help="print only what the overrides change (scale=tiny: docs/rehearsal.md)",
            ),
        ),
    ),
    Verb(
        "check",
        "validate an experiment, including its networks, and list what it would run",
        "reca check paper models.showo_clip_512.align.steps=100",
        "reca.commands.configure:check",
        (EXPERIMENT, OVERRIDES),
    ),
    Verb(
        "plan",
        "estimate a run's memory per device: weights, gradients, optimizer, activations",
        "reca plan paper_bagel --memory 80",
        "reca.commands.plan:plan",
        (
            EXPERIMENT,
            OVERRIDES,
            arg(
                "--memory",
                type=float,
                metavar="GIB",
                help="memory of one device (default: this machine's)",
            ),
        ),
    ),
    Verb(
        "new",
        "write an experiment on images of your own, after checking them",
        "reca new my_photos --model bagel_7b --images ~/photos",
        "reca.commands.new:new",
        (
            arg("experiment", help="name of the new experiment (a-z, 0-9 and _)"),
            arg("--model", required=True, metavar="NAME", help="a file of config/model/"),
            arg(
                "--images",
                required=True,
                metavar="PATH",
                help="folder of images, of tar shards or of parquet files, or one such file",
            ),
            arg(
                "--benchmark",
                metavar="NAME",
                help="a file of config/benchmark/ (default: geneval, for tiny models laptop)",
            ),
        ),
    ),
    Verb(
        "check-model",
        "check that a model fulfils the contract, one line per check",
        "reca check-model showo_tiny",
        "reca.commands.check_model:check_model",
        (
            arg(
                "model",
                metavar="PATH_OR_FAMILY",
                help="a family (also of another package), a model folder or a model configuration",
            ),
            arg("--only", nargs="+", default=[], metavar="CHECK", help="only these checks"),
            arg(
                "--text",
                action="append",
                default=[],
                metavar="TEXT",
                help="a prompt of words that a small vocabulary has, instead of the built-in ones",
            ),
        ),
    ),
    Verb(
        "schema",
        "print the JSON schema of experiments, or write it for Snakemake",
        "reca schema --write",
        "reca.commands.configure:schema",
        (arg("--write", action="store_true", help="write the file in workflow/schemas"),),
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
        (arg("name", help="a name in config/sources.yaml"), OUT, MIRROR, UNPINNED, LOG),
    ),
    Verb(
        "pin",
        "pin sources: write their revisions and hashes to config/sources.lock",
        "reca pin magvitv2 phi_1_5",
        "reca.commands.sources:pin",
        (
            arg("names", nargs="+", metavar="NAME", help="names in config/sources.yaml"),
            MIRROR,
            arg("--update", action="store_true", help="replace existing pins"),
        ),
    ),
    Verb(
        "render",
        "render a data set of the procedural toy world",
        "reca render --section @data/laptop-reconstruct/manifest.json --out work/again/world",
        "reca.commands.data:render",
        (SECTION, OUT, LOG),
    ),
    # ---- stages
    Verb(
        "base",
        "create the model folder that all arms start from",
        f"reca base --section @{TINY}/base/manifest.json --out work/again/base",
        "reca.commands.train:import_base",
        (
            SECTION,
            OUT,
            arg("--input", action="append", default=[], metavar="ROLE=DIR", help="source folder"),
            LOG,
        ),
    ),
    Verb(
        "cache",
        "run the frozen encoders once over a data set",
        f"reca cache --section @{TINY}/cache/draw/manifest.json --model {TINY}/base"
        " --data data/laptop-reconstruct --use draw --out work/again/draw",
        "reca.commands.train:cache",
        (
            SECTION,
            folder("--model", "base model folder"),
            folder("--data", "folder of the data set"),
            arg(
                "--companion",
                action="append",
                default=[],
                metavar="FIRST=DIR",
                help="folder or archives of the images whose paths begin with FIRST/",
            ),
            arg(
                "--use", required=True, choices=("draw", "read", "edit"), help="what images are for"
            ),
            DEVICE,
            WORK,
            OUT,
            LOG,
        ),
    ),
    Verb(
        "align",
        "train one arm from the base model, resuming an interrupted run",
        f"reca align --section @{TINY}/reca/seed-0/manifest.json --model {TINY}/base"
        " --data reconstruct=data/laptop-reconstruct --data answer=data/laptop-reconstruct"
        f" --cache draw={TINY}/cache/draw --cache read={TINY}/cache/read"
        " --arm reca --seed 0 --work work/again/training --out work/again/reca",
        "reca.commands.train:align",
        (
            SECTION,
            folder("--model", "base model folder"),
            arg("--data", action="append", default=[], metavar="ROLE=DIR", help="data by role"),
            arg("--cache", action="append", default=[], metavar="USE=DIR", help="cache by use"),
            arg("--arm", required=True, choices=("reca", "sft", "shuffled"), help="objective"),
            SEED,
            WORK,
            OUT,
            LOG,
        ),
    ),
    Verb(
        "pretrain",
        "train a component of a laptop base model from scratch",
        "reca pretrain tokenizer --section @s.json --data data/world --out results/pre/tokenizer",
        "reca.commands.train:pretrain",
        (
            arg("part", metavar="PART", help="a component of the family, or `base` for the model"),
            SECTION,
            arg("--data", action="append", default=[], metavar="ROLE=DIR", help="data by role"),
            arg(
                "--input",
                action="append",
                default=[],
                metavar="ROLE=DIR",
                help="components trained earlier",
            ),
            arg(
                "--start",
                metavar="DIR",
                help="complete model to continue from, instead of components",
            ),
            arg("--seed", type=int, default=0, help="seed (default 0)"),
            WORK,
            OUT,
            LOG,
        ),
    ),
    # ---- evaluation
    Verb(
        "evaluate",
        "sample, observe and score the toy world's benchmarks of some runs in one process",
        f"reca evaluate --section @s.json --model reca-0={TINY}/reca/seed-0 --split development"
        " --out work/again/showo_tiny",
        "reca.commands.evaluate:evaluate",
        (
            arg(
                "--section",
                required=True,
                metavar="JSON",
                help="by run and benchmark the configuration of `sample`, `observe` and `score`, or @FILE",
            ),
            arg(
                "--model",
                action="append",
                default=[],
                metavar="RUN=DIR",
                help="model folder of a run; its name ends in its seed, as in reca-0",
            ),
            SPLIT,
            CHOSEN,
            DEVICE,
            WORK,
            folder("--out", "folder of all runs; stages write RUN/BENCHMARK/SPLIT/... below it"),
            LOG,
        ),
    ),
    Verb(
        "sample",
        "generate a benchmark's images and answer its questions with one model",
        f"reca sample --section @{TINY}/reca-0/laptop/test/samples/manifest.json"
        f" --model {TINY}/reca/seed-0 --seed 0 --split test --guidance={TINY}/guidance/guidance.json"
        " --work work/again/pictures --out work/again/samples",
        "reca.commands.sample:sample",
        (
            SECTION,
            folder("--model", "model folder"),
            SEED,
            SPLIT,
            CHOSEN,
            arg("--shard", metavar="I/N", default="0/1", help="part of a paper benchmark"),
            SOURCE,
            DEVICE,
            WORK,
            OUT,
            LOG,
        ),
        ("generate",),
    ),
    Verb(
        "observe",
        "run a detector, a VQA model, a judge or the toy world's examiner on samples",
        f"reca observe --section @{TINY}/reca-0/laptop/test/evidence/manifest.json"
        f" --samples {TINY}/reca-0/laptop/test/samples --out work/again/evidence",
        "reca.commands.observe:observe",
        (
            SECTION,
            folder("--samples", "output folder of `reca sample`"),
            SOURCE,
            arg(
                "--ledger",
                metavar="FILE",
                default="ledgers/judge.jsonl",
                help="file of the judge's replies",
            ),
            WORK,
            OUT,
            LOG,
        ),
        ("examine",),
    ),
    Verb(
        "score",
        "score a folder of images (`reca score geneval FOLDER`) or samples of the workflow",
        f"reca score --section @{TINY}/reca-0/laptop/test/scores/manifest.json"
        f" --samples {TINY}/reca-0/laptop/test/samples --evidence {TINY}/reca-0/laptop/test/evidence"
        " --out work/again/scores",
        "reca.commands.score:score",
        (
            arg("benchmark", nargs="?", metavar="BENCHMARK", help="geneval, dpg, wise, ..."),
            arg("folder", nargs="?", metavar="FOLDER", help="images in the official layout"),
            arg("--list", action="store_true", help="only list missing and unknown files"),
            arg("--images", type=int, metavar="N", help="images per prompt (default: as found)"),
            arg(
                "--partial",
                action="store_true",
                help="score an incomplete folder, marked as partial",
            ),
            arg(
                "--evidence",
                nargs="*",
                metavar="DIR",
                help="observations of an earlier run, instead of running a network",
            ),
            arg(
                "--scorer",
                metavar="NAME",
                help="network that observes the images (docs/benchmarks.md)",
            ),
            arg("--judge", metavar="JSON", help="configuration of the judge, or @FILE"),
            arg("--options", metavar="JSON", help="named options of the scoring rules"),
            SOURCE,
            arg(
                "--section",
                metavar="JSON",
                help="workflow: configuration of the benchmark, or @FILE",
            ),
            arg(
                "--samples",
                nargs="+",
                metavar="DIR",
                help="workflow: output folders of `reca sample`",
            ),
            arg("--out", metavar="DIR", help="folder to write"),
            LOG,
        ),
    ),
    Verb(
        "choose",
        "select each arm's guidance from development scores",
        f"reca choose --scores {TINY}/base-0/laptop/development/scores"
        f" {TINY}/reca-0/laptop/development/scores --out work/again/guidance/guidance.json",
        "reca.commands.score:choose",
        (
            arg("--scores", nargs="+", required=True, metavar="DIR", help="score folders"),
            arg("--out", required=True, metavar="FILE", help="file to write"),
            LOG,
        ),
    ),
    Verb(
        "report",
        "write the report page and outcomes.json of an experiment",
        "reca report --experiment laptop --results results/laptop --out work/again/report",
        "reca.commands.report:report",
        (
            arg("--experiment", required=True, metavar="NAME|FILE", help="name or resolved YAML"),
            folder("--results", "results of the experiment"),
            OUT,
            LOG,
        ),
    ),
    Verb(
        "paper",
        "write the paper's tables: reported and reproduced values, or `not run`",
        "reca paper --results results --out paper_tables",
        "reca.commands.report:paper",
        (
            folder("--results", "an experiment's results, or the folder of all"),
            arg(
                "--experiment",
                nargs="+",
                metavar="NAME",
                help="experiments whose expectations are checked (default: paper, and all that have results)",
            ),
            arg(
                "--check",
                action="store_true",
                help="exit with status 3 if a number is outside its stated tolerance",
            ),
            OUT,
            LOG,
        ),
    ),
    # ---- one image at a time
    Verb(
        "draw",
        "generate an image from a prompt",
        'reca draw "a red circle left of a blue square" --out circle.png',
        "reca.commands.interact:draw",
        (
            arg("prompt", help="description of the image"),
            MODEL,
            arg("--out", default="drawn.png", metavar="FILE", help="default drawn.png"),
            GUIDANCE,
            STEPS,
            DRAW_SEED,
            DEVICE,
        ),
    ),
    Verb(
        "edit",
        "edit an image by an instruction (BAGEL)",
        'reca edit photo.png "make the circle blue" --out edited.png',
        "reca.commands.interact:edit",
        (
            arg("image", help="image to edit"),
            arg("instruction", help="edit instruction"),
            MODEL,
            arg("--out", default="edited.png", metavar="FILE", help="default edited.png"),
            GUIDANCE,
            arg(
                "--image-guidance",
                type=float,
                default=1.5,
                metavar="SCALE",
                help="image guidance scale; 1 disables it (default 1.5)",
            ),
            STEPS,
            DRAW_SEED,
            DEVICE,
        ),
    ),
    Verb(
        "reconstruct",
        "generate an image again from the model's own understanding embeddings",
        "reca reconstruct circle.png --out again.png",
        "reca.commands.interact:reconstruct",
        (
            arg("image", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP or TIFF file"),
            MODEL,
            arg("--out", default="reconstructed.png", metavar="FILE", help="default as shown"),
            arg("--prompt", help="reconstruction prompt (default: the laptop bank's first)"),
            GUIDANCE,
            STEPS,
            DRAW_SEED,
            DEVICE,
        ),
    ),
    Verb(
        "ask",
        "answer a question about an image",
        'reca ask circle.png "what color is the circle ?"',
        "reca.commands.interact:ask",
        (
            arg("image", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP or TIFF file"),
            arg("question", help="the question"),
            MODEL,
            arg(
                "--max-new-tokens",
                type=int,
                default=256,
                metavar="N",
                help="maximum answer length in tokens (default 256); truncation is reported",
            ),
            DEVICE,
        ),
    ),
    # ---- records
    Verb(
        "audit",
        "hash every output again and trace every input back to its source",
        "reca audit results/laptop",
        "reca.commands.trail:audit",
        (arg("folders", nargs="*", metavar="DIR", help="default: results and data"),),
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
