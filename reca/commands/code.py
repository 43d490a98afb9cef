"""Which code each stage runs: its fingerprint is in the stage's record and in Snakemake's parameters."""

from __future__ import annotations

from reca.core.fingerprints import SourceTree, installed
from reca.evaluation.registry import task_module
from reca.models.registry import family_module, pretraining_module

STAGES = {
    "fetch": ("reca.sources.fetch",),
    "render": ("reca.toyworld.render",),
    "base": ("reca.models.import_base",),
    "cache": ("reca.features.build", "reca.features.roles"),
    "align": ("reca.align.run",),
    "pretrain": ("reca.toyworld.pretrain.run",),
    "generate": ("reca.inference.generate", "reca.evaluation.sample_toyworld"),
    "score": ("reca.evaluation.score_toyworld",),
    "draw": ("reca.inference.generate", "reca.evaluation.sample"),
    "examine": ("reca.evaluation.observe", "reca.evaluation.detectors"),
    "judge": ("reca.evaluation.observe", "reca.evaluation.judges.collect"),
    "grade": ("reca.evaluation.grade",),
    "paper": ("reca.report.paper",),
    "choose": ("reca.evaluation.choose",),
    "report": ("reca.report.page", "reca.report.templates"),
}
# Rooms of a family that its contract module (`model.py`) imports and that a stage does not run. What another room
# imports counts all the same: where a loss uses a function of the sampler, an edit of the sampler reruns training.
UNUSED_ROOMS = {
    "base": ("layout", "loss", "sampler"),
    "cache": ("layout", "network", "loss", "sampler"),
    "align": ("encoders", "sampler"),
    "generate": ("loss",),
    "draw": ("loss",),
}
# Harmon may cache embeddings of its own reader; BAGEL's loss samples latents from the cached moments.
USED_ALL_THE_SAME = {("cache", "harmon"): ("network",), ("align", "bagel"): ("encoders",)}


def stage_code(
    stage: str,
    family: str | None = None,
    benchmark: str | None = None,
    tree: SourceTree | None = None,
) -> str:
    """Fingerprint (hex sha256) of the code of a stage, of the model family and of the benchmark that it runs.

    `tree`: the sources; default: those that this process would run. ValueError for an unknown family.
    """
    modules = list(STAGES[stage])
    modules += [family_module(family)] if family else []
    modules += [pretraining_module(family)] if family and stage == "pretrain" else []
    modules += [task_module(benchmark)] if benchmark else []
    return (tree or installed()).fingerprint(modules, _hidden(stage, family))


def _hidden(stage: str, family: str | None) -> dict[str, tuple[str, ...]]:
    if family is None:
        return {}
    contract = family_module(family)
    used = USED_ALL_THE_SAME.get((stage, family), ())
    unused = [room for room in UNUSED_ROOMS.get(stage, ()) if room not in used]
    return {contract: tuple(f"{contract.rpartition('.')[0]}.{room}" for room in unused)}
