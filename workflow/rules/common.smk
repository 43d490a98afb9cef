"""The plan of one experiment: its folders, the config slice of every job, and the code that it runs."""

import json
import os
import re
import sys
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path

from snakemake.exceptions import WorkflowError
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
    PYTHONPATH=os.pathsep.join(sys.path[:2]),
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
from reca.config.validate import (
    aligned_roles,
    needed_data,
    pretrained_roles,
    sources_of,
)
from reca.models.registry import runnable
from reca.core.artifacts import sha256_file
from reca.sources.fetch import list_sources
from reca.core.structure import suggestion
from reca.commands.code import stage_code


def chosen(option, given, known):
    """What `--config` says, as a list of known names: a typing error must not run something else."""
    for name in given:
        if name not in known:
            sys.exit(f"--config {option}{name}: {suggestion(name, known)}")
    return list(given)


chosen("", config, ["experiment", "models"])
NAME = config.setdefault("experiment", "laptop")
try:
    EXPERIMENT = load(NAME)
except ValueError as error:
    sys.exit(str(error))
validate(resolved(EXPERIMENT), str(ROOT / SCHEMA_PATH))

RESULTS = f"results/{NAME}"
# `--config models=showo_tiny,janus_tiny` keeps to some of the experiment's models.
CHOSEN = chosen(
    "models=",
    str(config.get("models", ",".join(EXPERIMENT.models))).split(","),
    EXPERIMENT.models,
)
MODELS = [model for model in EXPERIMENT.models if model in CHOSEN]
ALIGNED = [arm for arm in EXPERIMENT.arms if arm != "base"]
SEEDS = {name: m.seeds or EXPERIMENT.seeds for name, m in EXPERIMENT.models.items()}
RUNS = {
    name: [f"{arm}-{seed}" for arm in EXPERIMENT.arms for seed in seeds]
    for name, seeds in SEEDS.items()
}
# Guidance is swept where a model lists several values: on development prompts, never on the test's.
SWEPT = [
    model for model in MODELS if len(EXPERIMENT.models[model].sampler.guidance) > 1
]
SWEPT_ON = [name for name, b in EXPERIMENT.benchmarks.items() if b.development_prompts]
LAPTOP = [name for name, b in EXPERIMENT.benchmarks.items() if b.kind not in KINDS]
PAPER = [name for name, b in EXPERIMENT.benchmarks.items() if b.kind in KINDS]
EXAMINED_BY = {name: KINDS[EXPERIMENT.benchmarks[name].kind].evidence for name in PAPER}
MULTI_NODE = [model for model in MODELS if EXPERIMENT.models[model].resources.nodes > 1]
SOURCES = sorted({name for _, name in sources_of(EXPERIMENT)})


def one_of(names):
    """A regular expression for exactly these names; it matches nothing when there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


wildcard_constraints:
    model=one_of(MODELS),
    arm=one_of(ALIGNED),
    seed=one_of(sorted(set(chain(*SEEDS.values())))),
    run=one_of(sorted(set(chain(*RUNS.values())))),
    benchmark=one_of(EXPERIMENT.benchmarks),
    split="development|test",
    shard=r"\d+-of-\d+",
    use="draw|read|edit",


# ---- folders -------------------------------------------------------------------------------------
def data_folder(role):
    """Where a role's images lie: a download, a rendered world (shared by equal roles), or the user's folder."""
    source = EXPERIMENT.data[role]
    if source.kind != "world":
        return source.path or f"data/{source.source}"
    return f"data/{NAME}-{next(r for r, other in EXPERIMENT.data.items() if other == source)}"


WORLDS = {
    data_folder(role): s for role, s in EXPERIMENT.data.items() if s.kind == "world"
}


def data_folders(roles):
    return {role: data_folder(role) for role in roles}


def companions_of(role):
    """Folders of images that a role's conversations point into, by the first part of their paths."""
    named = EXPERIMENT.data[role].companions
    return {first: f"data/{name}" for first, name in named.items()}


def read_with(role):
    """A role's folder, and those of its companions."""
    return [data_folder(role), *companions_of(role).values()]


def manifests(folders):
    """The records that stand for folders in the plan; a folder of the user's own has none and stands for itself."""
    own = {source.path for source in EXPERIMENT.data.values()}
    users = [ancient(path) for path in listed(f for f in folders if f in own)]
    return users + records_in(f for f in folders if f not in own)


def records_in(folders):
    return [os.path.join(folder, "manifest.json") for folder in folders if folder]


# Snakemake reads {braces} in a path as wildcards and knows no escape. A path of the user's that has some is not listed
# among a job's inputs: it must be there, and the content of a record is a parameter of the job.
def listed(paths):
    """Those of the user's paths that can be inputs; the others must exist."""
    paths = list(paths)
    for path in paths:
        if "{" in path and not os.path.exists(path):
            raise WorkflowError(f"{path}: no such file or folder")
    return [path for path in paths if "{" not in path]


def unlisted(records):
    """Hashes of the records that `listed` leaves out."""
    return [sha256_file(path) for path in records if "{" in path]


def roles_of(model):
    """Roles -> entries of the experiment's data that the model's tasks with a weight read."""
    return aligned_roles(EXPERIMENT, model)


def caches_of(model):
    """Uses of the frozen encoders -> images, where the recipe draws, reads or edits."""
    uses, roles = {
        "draw": "reconstruct",
        "read": "answer",
        "edit": "edit",
    }, roles_of(model)
    return {use: roles[role] for use, role in uses.items() if role in roles}


def checkpoint_folder(model, run):
    arm, seed = run.rsplit("-", 1)
    return f"{RESULTS}/{model}/" + ("base" if arm == "base" else f"{arm}/seed-{seed}")


def weight_inputs(model):
    """role -> folder of the downloads that the base model is made of."""
    weights = EXPERIMENT.models[model].weights
    named = ({"weights": weights.source} if weights.source else {}) | weights.companions
    return {role: f"data/{name}" for role, name in named.items()}


def shipped_weights(model):
    """The record of weights that come with this repository, or of another experiment's result."""
    return records_in([EXPERIMENT.models[model].weights.path])


def benchmark_folders(name):
    source = EXPERIMENT.benchmarks[name].source
    return [f"data/{source}"] if source else []


def benchmark_roles(name, stage):
    """role -> folder of what a stage of a paper benchmark reads: its prompts, and companions that it looks at."""
    b = EXPERIMENT.benchmarks[name]
    kind = KINDS[b.kind]
    main = {"answer": "questions", "reconstruct": "images"}.get(kind.needs, "prompts")
    seen = {} if stage != "examine" or not b.judge else {"judge_model": b.judge.source}
    wanted = {
        "draw": ("images",),
        "examine": tuple(b.companions),
        "grade": ("questions",),
    }[stage]
    named = {role: b.companions[role] for role in wanted if role in b.companions}
    named = {main: b.source} | named | {r: s for r, s in seen.items() if s}
    return {role: f"data/{source}" for role, source in named.items()}


def sees_here(name):
    """1 where a network on this machine sees the pictures, 0 where a judge is asked over the network."""
    judge = EXPERIMENT.benchmarks[name].judge
    return int(judge is None or judge.kind == "transformers")


def stage_of_evidence(name):
    return "judge" if EXAMINED_BY[name] == "judge" else "examine"


def shard_manifests(what, wc):
    """The records of all shards of a run's samples or evidence; none where nothing is examined."""
    if what == "evidence" and EXAMINED_BY[wc.benchmark] == "none":
        return []
    path = f"{RESULTS}/{wc.model}/{wc.run}/{wc.benchmark}/{wc.split}/{what}"
    return [f"{path}/{shard}/manifest.json" for shard in shards_of(wc.benchmark)]


def folders_of(paths):
    return [os.path.dirname(path) for path in paths]


def shards_of(name):
    count = EXPERIMENT.benchmarks[name].shards
    return [f"{index}-of-{count}" for index in range(count)]


def benchmarks_of(model):
    """A model's benchmarks: all of the experiment's unless it names some."""
    chosen = EXPERIMENT.models[model].benchmarks or EXPERIMENT.benchmarks
    return [name for name in EXPERIMENT.benchmarks if name in chosen]


def guidance_folders(model, split):
    """Where the guidance of a test was chosen; nothing is chosen when there is one value, or before development."""
    return [f"{RESULTS}/{model}/guidance"] if split == "test" and model in SWEPT else []


def pairs(option, folders):
    """Repeated command line options, `--data=role=folder`, as a list: `:q` quotes each of them."""
    return [f"--{option}={name}={folder}" for name, folder in folders.items()]


def fetch_options():
    """Options of every download; like all of the user's texts from a function, or {braces} would be filled in."""
    mirror = [f"--mirror={EXPERIMENT.mirror}"] if EXPERIMENT.mirror else []
    return mirror + (["--allow-unpinned"] if EXPERIMENT.allow_unpinned else [])


# ---- what each job depends on --------------------------------------------------------------------
def section(value):
    """A slice of the configuration as JSON text: a job's parameter, so that an edit reruns what it touches."""
    return json.dumps(value, sort_keys=True)


def of_model(model, *fields):
    """Fields of a model's configuration, with its family, which says how to read them."""
    found = asdict(EXPERIMENT.models[model])
    return {name: found[name] for name in ("family", *fields)}


@cache
def pins():
    """What fixes the content of every download: its origin and its files, from sources.yaml and the lock."""
    fields = ("kind", "repo", "id", "revision", "files")
    found = {status.source.name: asdict(status.source) for status in list_sources()}
    return {name: {key: entry[key] for key in fields} for name, entry in found.items()}


def of_data(*roles):
    return of_roles({role: role for role in roles})


def of_roles(entries):
    """Configuration of data sets by role."""
    return {
        "data": {
            role: asdict(EXPERIMENT.data[name])
            for role, name in entries.items()
            if name in EXPERIMENT.data
        }
    }


def of_cache(wc):
    """What a cache depends on; a precision only where it is not the default, so that older caches stay current."""
    dtype = EXPERIMENT.models[wc.model].cache_dtype
    return {
        **of_model(wc.model),
        **of_data(caches_of(wc.model)[wc.use]),
        **({} if dtype == "fp32" else {"cache_dtype": dtype}),
    }


def of_benchmark(name, split):
    """A benchmark's configuration, without the sizes of the other split."""
    test = ("prompts", "questions", "reconstructions")
    other = test if split == "development" else ("development_prompts",)
    return {
        k: v for k, v in asdict(EXPERIMENT.benchmarks[name]).items() if k not in other
    }


def of_samples(wc):
    """How one run's pictures are drawn: where guidance was swept, the test uses what was chosen."""
    found = of_model(wc.model, "sampler")
    found["sampler"] |= EXPERIMENT.benchmarks[wc.benchmark].sampler.get(wc.model, {})
    if wc.split == "test" and wc.model in SWEPT:
        del found["sampler"]["guidance"]
    return {**found, "run": wc.run, "benchmark": of_benchmark(wc.benchmark, wc.split)}


# What each stage of a paper benchmark depends on: another judge draws no picture anew.
DRAWN = (
    "prompts",
    "questions",
    "rotations",
    "reconstructions",
    "images_per_prompt",
    "seed",
    "seed_schedule",
)
EXAMINED = (
    "prompts",
    "questions",
    "rotations",
    "reconstructions",
    "images_per_prompt",
    "crop_black",
    "scorer",
)
GRADED = (*EXAMINED, "options")


def of_kind(name, fields):
    found = asdict(EXPERIMENT.benchmarks[name])
    return {field: found[field] for field in ("kind", *fields)}


def of_drawing(wc):
    found = of_model(wc.model, "sampler")
    own = EXPERIMENT.benchmarks[wc.benchmark].sampler.get(wc.model, {})
    described = of_kind(wc.benchmark, (*DRAWN, "batch_size"))
    return {
        **found,
        "sampler": found["sampler"] | own,
        "run": wc.run,
        "benchmark": described,
    }


def of_report():
    """Everything but what jobs ask of a machine and where downloads come from."""
    found = resolved(EXPERIMENT)
    models = {
        name: {
            k: v
            for k, v in m.items()
            if k != "resources" and (k, v) != ("cache_dtype", "fp32")
        }
        for name, m in found["models"].items()
    }
    return {**found, "models": models, "mirror": None}


def of_pretraining(model, **recipe):
    """The network, and what of the pretraining recipe a job reads."""
    return {
        **of_model(model, "network"),
        **recipe,
    }


@cache
def code(stage, model=None, benchmark=None):
    """Hash of the modules that a stage runs: shell rules do not see edits of code by themselves.

    A family that is configuration only has no module yet: its plan can be shown, its command refuses.
    """
    family = EXPERIMENT.models[model].family if model else None
    kind = EXPERIMENT.benchmarks[benchmark].kind if benchmark else None
    absent = [family] if family and family not in runnable() else []
    known = (None if name in absent else name for name in (family, kind))
    return " ".join(
        [stage_code(stage, *known), *(f"without {name}" for name in absent)]
    )


# ---- what each job asks of a machine -------------------------------------------------------------
def asks(field):
    return lambda wc: getattr(EXPERIMENT.models[wc.model].resources, field)


def one_gpu(wc):
    """Encoding and drawing use one GPU; several such jobs run side by side."""
    return min(1, EXPERIMENT.models[wc.model].resources.gpus)


def memory(wc, attempt):
    """Half as much again after every failure."""
    return EXPERIMENT.models[wc.model].resources.memory_mb * (1 + attempt) // 2


def launcher(model):
    """What starts an alignment: the verb itself on one GPU or none, torchrun on more, srun before it on nodes."""
    asked = EXPERIMENT.models[model].resources
    torchrun = "python3 -m torch.distributed.run"
    if asked.gpus <= 1 and asked.nodes == 1:
        return "python3 -m reca"
    if asked.nodes == 1:
        return f"{torchrun} --standalone --nproc-per-node={asked.gpus} -m reca"
    # The Slurm jobstep drops SLURM_* except the job id, so the allocation is named again.
    head = "$(scontrol show hostnames $(squeue -h -j $SLURM_JOB_ID -o %N) | head -n 1)"
    return (
        f"srun --nodes={asked.nodes} --ntasks={asked.nodes} --ntasks-per-node=1"
        f" --cpus-per-task={asked.threads} --gres=gpu:{asked.gpus} --kill-on-bad-exit=1"
        f" {torchrun} --nnodes={asked.nodes} --nproc-per-node={asked.gpus} --rdzv-backend=c10d"
        f" --rdzv-endpoint={head}:29531 --rdzv-id=$SLURM_JOB_ID -m reca"
    )


# ---- targets -------------------------------------------------------------------------------------
def data_manifests(entries=tuple(needed_data(EXPERIMENT, MODELS))):
    return manifests(sorted({f for name in entries for f in read_with(name)}))


def base_manifests():
    return expand(f"{RESULTS}/{{model}}/base/manifest.json", model=MODELS)


def cache_manifests():
    return [
        f"{RESULTS}/{m}/cache/{use}/manifest.json"
        for m in MODELS
        for use in caches_of(m)
    ]


def checkpoint_manifests():
    return [
        f"{RESULTS}/{model}/{arm}/seed-{seed}/manifest.json"
        for model in MODELS
        for arm in ALIGNED
        for seed in SEEDS[model]
    ]


def guidance_manifests():
    return expand(f"{RESULTS}/{{model}}/guidance/manifest.json", model=SWEPT)


def score_manifests(split, models=MODELS, benchmarks=EXPERIMENT.benchmarks):
    return [
        f"{RESULTS}/{model}/{run}/{benchmark}/{split}/scores/manifest.json"
        for model in models
        for run in RUNS[model]
        for benchmark in benchmarks_of(model)
        if benchmark in benchmarks
    ]


def get_final_output():
    """The report; where the experiment makes a base model from nothing, that model."""
    if EXPERIMENT.pretrain:
        return base_manifests()
    return expand(
        f"{RESULTS}/report/{{file}}",
        file=["index.html", "outcomes.json", "manifest.json"],
    )
