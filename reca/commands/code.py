"""Which code each stage runs: its fingerprint is in the stage's record and in Snakemake's parameters."""

from __future__ import annotations

from reca.core.fingerprints import SourceTree, Vertex, installed
from reca.evaluation.registry import kind, observer, task_module
from reca.models.registry import entry_module, family_module, pretraining_module

STAGES = {
    "fetch": ("reca.sources.fetch",),
    "render": ("reca.toyworld.render",),
    "base": ("reca.models.import_base",),
    "cache": ("reca.features.build", "reca.features.roles"),
    "align": ("reca.align.run",),
    "pretrain": ("reca.toyworld.pretrain.run",),
    "sample": ("reca.inference.generate", "reca.evaluation.sample"),
    "observe": ("reca.evaluation.observe",),
    "score": ("reca.evaluation.score",),
    "paper": ("reca.report.paper",),
    "choose": ("reca.evaluation.choose",),
    "report": ("reca.report.page", "reca.report.templates"),
}
# Rooms of a family that its contract module (`model.py`) imports and that a stage does not run. What another room
# imports counts all the same: where a loss uses a function of the sampler, an edit of the sampler reruns training.
UNUSED_ROOMS = {
    "base": ("layout", "loss", "sampler"),
    "cache": ("layout", "network", "loss", "sampler"),
    "pretrain": ("sampler",),
    "align": ("encoders", "sampler"),
    "sample": ("loss",),
}
# Harmon may cache embeddings of its own reader, and OpenUni's reader is part of its network (which uses the layout);
# BAGEL's loss samples latents from the cached moments.
USED_ALL_THE_SAME = {
    ("cache", "harmon"): ("network",),
    ("cache", "openuni"): ("network", "layout"),
    ("align", "bagel"): ("encoders",),
}
# What a stage looks up in a benchmark's module by name; the rest of it scores. Names that a module imports from
# another one are followed by themselves.
PREPARATION = ("assignment", "prompts", "questions", "rotated", "PICTURES", "TABLES")
USED_OF_BENCHMARK = {
    "sample": PREPARATION,
    "observe": (*PREPARATION, "VERSION", "JUDGE_LIMITS", "requests", "score", "scores"),
}


def stage_code(
    stage: str,
    family: str | None = None,
    benchmark: str | None = None,
    tree: SourceTree | None = None,
) -> str:
    """Fingerprint (hex sha256) of the code of a stage, of the model family and of the benchmark that it runs.

    `tree`: the sources; default: those that this process would run. ValueError for an unknown family.
    """
    tree = tree or installed()
    modules: list[str | Vertex] = list(STAGES[stage])
    modules += _of_family(family) if family else []
    modules += [pretraining_module(family)] if family and stage == "pretrain" else []
    modules += _of_benchmark(stage, benchmark, tree) if benchmark else []
    return tree.fingerprint(modules, _hidden(stage, family))


def _of_family(family: str) -> list[str]:
    """The module of a family's contract, and of another package the module with its entry: importing one runs both."""
    entry = entry_module(family)
    return [family_module(family)] if entry is None else [family_module(family), entry]


def _of_benchmark(stage: str, benchmark: str, tree: SourceTree) -> list[str | Vertex]:
    """What a stage runs of a benchmark; only the stage that scores runs all of its module."""
    module, used = task_module(benchmark), USED_OF_BENCHMARK.get(stage)
    if used is None:
        return [module]
    observing = observer(benchmark) if stage == "observe" else None
    if observing and kind(benchmark).toyworld:  # the examiner knows nothing of prompts
        return [observing]
    found: list[str | Vertex] = [(module, name) for name in used if name in tree.names(module)]
    return [*found, observing] if observing else found


def _hidden(stage: str, family: str | None) -> dict[str, tuple[str, ...]]:
    """Rooms that do not count; of another package all that is imported counts, for its files may be named otherwise."""
    if family is None or entry_module(family) is not None:
        return {}
    contract = family_module(family)
    used = USED_ALL_THE_SAME.get((stage, family), ())
    unused = [room for room in UNUSED_ROOMS.get(stage, ()) if room not in used]
    return {contract: tuple(f"{contract.rpartition('.')[0]}.{room}" for room in unused)}
