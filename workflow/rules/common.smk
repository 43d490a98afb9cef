"""One experiment: its names, and what its jobs and paths may be called. Folders, sections and resources follow."""

import os
import re
import sys
from itertools import chain
from pathlib import Path

from snakemake.utils import validate

# Jobs run this checkout's code in this very environment, whether or not it was activated: what the
# fingerprints below describe is then what runs, on this machine and on the nodes of a cluster.
ROOT = Path(workflow.basedir).parent
if os.pathsep in str(ROOT):
    sys.exit(
        f"{ROOT}: PATH cannot hold a folder with {os.pathsep!r} in its name; rename it"
    )
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]),
    PYTHONPATH=os.pathsep.join(
        [*sys.path[:2], *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
)
# The file for `--software-deployment-method conda`; Snakemake fills {braces} in, so those of the checkout's folder double.
ENVIRONMENT = str(ROOT / "environment.yml").replace("{", "{{").replace("}", "}}")
# glibc hands large blocks back to the system after every use; kept, training is some percent faster.
for name, value in {
    "MALLOC_MMAP_THRESHOLD_": 1 << 30,
    "MALLOC_TRIM_THRESHOLD_": 1 << 33,
    "MALLOC_TOP_PAD_": 1 << 26,
}.items():
    os.environ.setdefault(name, str(value))

from reca.evaluation.registry import KINDS
from reca.config.compose import SCHEMA_PATH, load, resolved
from reca.config.scale import label
from reca.config.schema import SCALES, SEED
from reca.config.validate import sources_of, without_weights
from reca.core.structure import suggestion


def chosen(option, given, known):
    """What `--config` says, as a list of known names: a typing error must not run something else."""
    for name in given:
        if name not in known:
            sys.exit(f"--config {option}{name}: {suggestion(name, known)}")
    return list(given)


chosen("", config, ["experiment", "models", "scale"])
SCALE = chosen("scale=", [config["scale"]] if "scale" in config else [], SCALES)
try:
    EXPERIMENT = load(
        config.setdefault("experiment", "laptop"), [f"scale={name}" for name in SCALE]
    )
except ValueError as error:
    sys.exit(str(error))
validate(
    resolved(EXPERIMENT), str(ROOT / SCHEMA_PATH), set_default=False
)  # all are filled in

# At a scale, folders of its own: neither results nor downloads of the real size are mixed with it.
NAME = label(EXPERIMENT)
RESULTS = f"results/{NAME}"
DATA = f"data/{EXPERIMENT.scale}" if EXPERIMENT.scale else "data"
# `--config models=showo_tiny,janus_tiny` keeps to some of the experiment's models.
CHOSEN = chosen(
    "models=",
    str(config.get("models", ",".join(EXPERIMENT.models))).split(","),
    EXPERIMENT.models,
)
MODELS = [model for model in EXPERIMENT.models if model in CHOSEN]
ARMS = {model: EXPERIMENT.arms_of(model) for model in EXPERIMENT.models}
SEEDS = {name: m.seeds or EXPERIMENT.seeds for name, m in EXPERIMENT.models.items()}
RUNS = {
    name: [f"{arm}-{seed}" for arm in ARMS[name] for seed in seeds]
    for name, seeds in SEEDS.items()
}
# Guidance is swept where a model lists several values: on development prompts, never on the test's.
SWEPT = [
    model for model in MODELS if len(EXPERIMENT.models[model].sampler.guidance) > 1
]
SWEPT_ON = [name for name, b in EXPERIMENT.benchmarks.items() if b.development_prompts]
KIND = {name: KINDS[b.kind] for name, b in EXPERIMENT.benchmarks.items()}
# Small benchmarks are one process per run and split; the others are sampled and observed in shards.
SMALL = [name for name, kind in KIND.items() if kind.toyworld]
SHARDED = [name for name, kind in KIND.items() if not kind.toyworld]
MULTI_NODE = [model for model in MODELS if EXPERIMENT.models[model].resources.nodes > 1]
SOURCES = sorted({name for _, name in sources_of(EXPERIMENT)})


def one_of(names):
    """A regular expression for exactly these names; it matches nothing when there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),
    arm=one_of(arm for arm in EXPERIMENT.arms if arm != "base"),
    seed=one_of(sorted(set(chain(*SEEDS.values())))),
    run=one_of(sorted(set(chain(*RUNS.values())))),
    benchmark=one_of(EXPERIMENT.benchmarks),
    split="development|test",
    shard=r"\d+-of-\d+",
    use="draw|read|edit",
    place=r"(/seed-\d+)?",  # of a base model and of what its encoders see: one folder, or one per seed
