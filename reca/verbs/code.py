"""Which modules each stage runs: their hash stands in the stage's record and in Snakemake's parameters."""

from __future__ import annotations

from reca.fingerprints import code_fingerprint
from reca.models import family_module
from reca.pretrain import pretraining_module

STAGES = {
    "fetch": ("reca.sources",),
    "render": ("reca.data.render",),
    "base": ("reca.models.base",),
    "cache": ("reca.cache", "reca.align.texts"),
    "align": ("reca.align.run",),
    "pretrain": ("reca.pretrain.base",),
    "generate": ("reca.generate", "reca.benchmarks.samples"),
    "score": ("reca.benchmarks.score",),
    "draw": ("reca.generate", "reca.benchmarks.draw"),
    "examine": ("reca.benchmarks.examine", "reca.benchmarks.detectors"),
    "judge": ("reca.benchmarks.examine", "reca.benchmarks.judges.collect"),
    "grade": ("reca.benchmarks.grade",),
    "paper": ("reca.report.paper",),
    "choose": ("reca.benchmarks.choose",),
    "report": ("reca.report.page", "reca.report.templates"),
}


def stage_code(stage: str, family: str | None = None, benchmark: str | None = None) -> str:
    """Fingerprint of the code of a stage, of the model family and of the benchmark that it touches."""
    modules = list(STAGES[stage])
    modules += [family_module(family)] if family else []
    modules += [pretraining_module(family)] if family and stage == "pretrain" else []
    modules += [f"reca.benchmarks.{benchmark}"] if benchmark else []
    return code_fingerprint(*modules)
