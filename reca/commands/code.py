"""Which modules each stage runs: their hash is in the stage's record and in Snakemake's parameters."""

from __future__ import annotations

from reca.core.fingerprints import code_fingerprint
from reca.evaluation.registry import task_module
from reca.models.registry import family_module
from reca.toyworld.pretrain import pretraining_module

STAGES = {
    "fetch": ("reca.sources.fetch",),
    "render": ("reca.toyworld.render",),
    "base": ("reca.models.import_base",),
    "cache": ("reca.features.build", "reca.align.training_data"),
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


def stage_code(stage: str, family: str | None = None, benchmark: str | None = None) -> str:
    """Fingerprint of the code of a stage, of the model family and of the benchmark that it touches."""
    modules = list(STAGES[stage])
    modules += [family_module(family)] if family else []
    modules += [pretraining_module(family)] if family and stage == "pretrain" else []
    modules += [task_module(benchmark)] if benchmark else []
    return code_fingerprint(*modules)
