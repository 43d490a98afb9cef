"""The code that each stage runs. Its fingerprint is part of the stage's manifest and of Snakemake's parameters."""

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
# Modules of a family that its contract module (`model.py`) imports but a stage does not run. Functions that other
# modules import from them still count: if a loss uses a function of the sampler, editing the function reruns training.
UNUSED_ROOMS = {
    "base": ("layout", "loss", "sampler"),
    "cache": ("layout", "network", "loss", "sampler"),
    "pretrain": ("sampler",),
    "align": ("encoders", "sampler"),
    "sample": ("loss",),
}
# Exceptions: Harmon may cache embeddings computed by its network; OpenUni's understanding encoder is part of its
# network (which uses the layout); BAGEL's loss samples latents from the cached moments.
USED_ALL_THE_SAME = {
    ("cache", "harmon"): ("network",),
    ("cache", "openuni"): ("network", "layout"),
    ("align", "bagel"): ("encoders",),
}
# Names that a stage uses from a benchmark's module; the rest of the module is for scoring. Dependencies on other
# modules are followed automatically.
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
    """Fingerprint (hex sha256) of the code of a stage, including the model family and the benchmark that it runs.

    `tree`: the sources (default: the installed ones). ValueError for an unknown family.
    """
    tree = tree or installed()
    modules: list[str | Vertex] = list(STAGES[stage])
    modules += _of_family(family) if family else []
    modules += [pretraining_module(family)] if family and stage == "pretrain" else []
    modules += _of_benchmark(stage, benchmark, tree) if benchmark else []
    return tree.fingerprint(modules, _hidden(stage, family))


def _of_family(family: str) -> list[str]:
    """The contract module of a family and, for a family of another package, the module of its registry entry."""
    entry = entry_module(family)
    return [family_module(family)] if entry is None else [family_module(family), entry]


def _of_benchmark(stage: str, benchmark: str, tree: SourceTree) -> list[str | Vertex]:
    """The parts of a benchmark that a stage runs; only scoring runs the complete module."""
    module, used = task_module(benchmark), USED_OF_BENCHMARK.get(stage)
    if used is None:
        return [module]
    observing = observer(benchmark) if stage == "observe" else None
    if observing and kind(benchmark).toyworld:  # the examiner is independent of prompts
        return [observing]
    found: list[str | Vertex] = [(module, name) for name in used if name in tree.names(module)]
    return [*found, observing] if observing else found


def _hidden(stage: str, family: str | None) -> dict[str, tuple[str, ...]]:
    """Modules to exclude from the fingerprint; none for families of other packages, whose files may be named freely."""
    if family is None or entry_module(family) is not None:
        return {}
    contract = family_module(family)
    used = USED_ALL_THE_SAME.get((stage, family), ())
    unused = [room for room in UNUSED_ROOMS.get(stage, ()) if room not in used]
    return {contract: tuple(f"{contract.rpartition('.')[0]}.{room}" for room in unused)}
