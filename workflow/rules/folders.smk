"""Where everything lies: data, checkpoints, samples; and the records that stand for folders in the plan."""

import stat
from functools import cache

from snakemake.exceptions import WorkflowError

from reca.config.recipe import for_arm
from reca.config.validate import aligned_roles, needed_data
from reca.core.artifacts import sha256_file, sha256_json
from reca.core.walk import entries
from reca.data.role import USES


def data_folder(role):
    """Where a role's images lie: a download, a rendered world (shared by equal roles), or the user's folder."""
    source = EXPERIMENT.data[role]
    if source.kind != "world":
        return source.path or f"{DATA}/{source.source}"
    return f"data/{NAME}-{next(r for r, other in EXPERIMENT.data.items() if other == source)}"


WORLDS = {
    data_folder(role): s for role, s in EXPERIMENT.data.items() if s.kind == "world"
}


def data_folders(roles):
    return {role: data_folder(role) for role in roles}


def companions_of(role):
    """Folders of images that a role's conversations point into, by the first part of their paths."""
    named = EXPERIMENT.data[role].companions
    return {first: f"{DATA}/{name}" for first, name in named.items()}


def read_with(role):
    """A role's folder, and those of its companions."""
    return [data_folder(role), *companions_of(role).values()]


def manifests(folders):
    """The records that stand for folders in the plan; a folder of the user's own has none and stands for itself."""
    own = {source.path for source in EXPERIMENT.data.values()}
    users = [ancient(path) for path in listed(f for f in folders if f in own)]
    return users + records_in(f for f in folders if f not in own)


@cache
def content_of(path):
    """A hash of the names, sizes and times of a user's file or of the files in a folder, without hidden ones."""
    root = Path(path)
    files = [root] if root.is_file() else entries(root, hidden=False)
    facts = ((file.relative_to(root).as_posix(), file.stat()) for file in files)
    return sha256_json(
        sorted(
            (name, s.st_size, s.st_mtime_ns)
            for name, s in facts
            if not stat.S_ISDIR(s.st_mode)
        )
    )


def contents(folders):
    """Parameters that make jobs run again when the user's images or captions change."""
    folders, users = set(folders), []
    for source in EXPERIMENT.data.values():
        if source.path in folders:
            images = (
                source.options.get("images") or ()
            )  # beside a file of conversations
            more = (
                images.values()
                if isinstance(images, dict)
                else [images] if images else ()
            )
            users += [source.path, *map(str, more)]
    return [content_of(path) for path in sorted(set(users)) if os.path.exists(path)]


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


def prompts_of(model, arm):
    """The user's file of reconstruction prompts, if an arm reads one."""
    prompts = for_arm(EXPERIMENT.models[model].align, arm).read_prompts_file()
    return [] if prompts is None else [prompts]


def roles_of(model):
    """Roles -> entries of the experiment's data that the model's tasks with a weight read."""
    return aligned_roles(EXPERIMENT, model)


def caches_of(model):
    """Uses of the frozen encoders -> images, where the recipe draws, reads or edits."""
    roles = roles_of(model)
    return {use: roles[role] for role, use in USES.items() if role in roles}


def place_of(model, seed):
    """Where a seed's base model lies below `base` and its caches below `cache`; seeds may share one."""
    shared = not EXPERIMENT.models[model].weights.per_seed()
    return "" if shared else f"{os.sep}seed-{seed}"


def places_of(model):
    return list(dict.fromkeys(place_of(model, seed) for seed in SEEDS[model]))


def weights_of(model, place):
    """The weights of the base model in one place."""
    weights = EXPERIMENT.models[model].weights
    return weights.of_seed(int(place.rpartition("-")[2])) if place else weights


def base_folder(model, seed):
    return f"{RESULTS}/{model}/base{place_of(model, seed)}"


def cache_folders(model, seed):
    """use -> folder of what the frozen encoders of a seed's base model see."""
    place = f"{RESULTS}/{model}/cache{place_of(model, seed)}"
    return {use: f"{place}/{use}" for use in caches_of(model)}


def checkpoint_folder(model, run):
    arm, seed = run.rsplit("-", 1)
    if arm == "base":
        return base_folder(model, seed)
    return f"{RESULTS}/{model}/{arm}/seed-{seed}"


def weight_inputs(model):
    """role -> folder of the downloads that the base model is made of."""
    weights = EXPERIMENT.models[model].weights
    named = ({"weights": weights.source} if weights.source else {}) | weights.companions
    return {role: f"{DATA}/{name}" for role, name in named.items()}


def shipped_weights(model, place):
    """The record of weights that come with this repository, or of another experiment's result; of a model folder
    without a record, which somebody made by themselves, its files.
    """
    weights = weights_of(model, place)
    folder = weights.path
    records = records_in([folder])
    if folder and not os.path.isdir(folder):
        raise WorkflowError(without_weights(model, folder))
    if not folder or os.path.exists(records[0]) or not os.path.isdir(folder):
        return records
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def benchmark_roles(name, stage):
    """role -> folder of what a stage of a benchmark reads: its prompts, and companions that it looks at."""
    b = EXPERIMENT.benchmarks[name]
    kind = KIND[name]
    main = {("answer",): "questions", ("reconstruct",): "images"}
    seen = {} if stage != "observe" or not b.judge else {"judge_model": b.judge.source}
    wanted = {
        "sample": ("images",),
        "observe": tuple(b.companions),
        "score": ("questions",),
    }[stage]
    named = {role: b.companions[role] for role in wanted if role in b.companions}
    named = (
        {main.get(kind.needs, "prompts"): b.source}
        | named
        | {r: s for r, s in seen.items() if s}
    )
    return {role: f"{DATA}/{source}" for role, source in named.items()}


def observed_here(name):
    """1 where a network on this machine observes the samples, 0 where a judge is asked over the network."""
    judge = EXPERIMENT.benchmarks[name].judge
    return int(judge is None or judge.kind == "transformers")


def shard_manifests(what, wc):
    """The records of all shards of a run's samples or evidence; none where nothing is observed."""
    if what == "evidence" and KIND[wc.benchmark].evidence == "none":
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


def small_benchmarks(model, split):
    """Those of a model that one process covers; guidance is swept on those that have development prompts."""
    known = SMALL if split == "test" else SWEPT_ON
    return [name for name in benchmarks_of(model) if name in known and name in SMALL]


def evaluated_alike(split):
    """Models by (benchmarks, seeds): a rule's outputs are fixed, and those of a job are its benchmarks and seeds."""
    found = {}
    for model in MODELS:
        key = tuple(small_benchmarks(model, split)), tuple(SEEDS[model])
        found.setdefault(key, []).append(model)
    return [(*key, models) for key, models in found.items() if key[0]]


def runs_of(model, arm):
    return [f"{arm}-{seed}" for seed in SEEDS[model]]


def checkpoints_of(wc):
    """run -> model folder of an arm; the base model may be the same for every seed."""
    return {run: checkpoint_folder(wc.model, run) for run in runs_of(wc.model, wc.arm)}


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


# ---- targets -------------------------------------------------------------------------------------
def data_manifests(entries=tuple(needed_data(EXPERIMENT, MODELS))):
    return manifests(sorted({f for name in entries for f in read_with(name)}))


def base_manifests():
    return [
        f"{RESULTS}/{model}/base{place}/manifest.json"
        for model in MODELS
        for place in places_of(model)
    ]


def cache_manifests():
    return [
        f"{RESULTS}/{m}/cache{place}/{use}/manifest.json"
        for m in MODELS
        for place in places_of(m)
        for use in caches_of(m)
    ]


def checkpoint_manifests():
    return [
        f"{RESULTS}/{model}/{arm}/seed-{seed}/manifest.json"
        for model in MODELS
        for arm in ARMS[model]
        if arm != "base"
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
