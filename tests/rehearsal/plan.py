"""Which experiments a rehearsal runs, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from reca.config.compose import load, names
from reca.config.scale import label, split
from reca.config.schema import Experiment
from reca.config.validate import needed_sources
from reca.core.structure import suggestion

PUBLISHED = ("paper", "ablation_", "janus_pro")
COMBINED = ("paper", "janus_pro")  # of other published experiments: nothing in them is new
# The smallest experiment of each family, for what costs too much to try on all.
OF_FAMILY = {
    "showo": "paper_showo_256",
    "harmon": "paper_harmon_05b",
    "bagel": "ablation_bagel_vit_224",
    "openuni": "paper_openuni_b_stage1",
    "janus": "janus_pro_1b",
}


def published() -> list[str]:
    """Every published experiment but those that combine others."""
    return [name for name in names() if name.startswith(PUBLISHED) and name not in COMBINED]


def chosen(wanted: Iterable[str], scale: str, config: Path | None = None) -> dict[str, Experiment]:
    """The wanted experiments at a scale, by name, after those that they start from; ValueError for an unknown one."""
    found: dict[str, Experiment] = {}
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name not in names(config):
            raise ValueError(f"EXPERIMENTS={name}: {suggestion(name, published())}")
        found[name] = load(name, [f"scale={scale}"], config)
        todo += starts(found[name])
    order = TopologicalSorter({name: starts(one) for name, one in sorted(found.items())})
    return {name: found[name] for name in order.static_order()}


def starts(experiment: Experiment) -> list[str]:
    """The experiments whose results an experiment starts from."""
    paths = [model.weights.path for model in experiment.models.values() if model.weights.path]
    return sorted({split(Path(path).parts[1])[0] for path in paths})


def sources(experiments: Mapping[str, Experiment]) -> set[str]:
    """Everything that the experiments download."""
    return {name for one in experiments.values() for _, name in needed_sources(one)}


def results_of(experiment: Experiment) -> str:
    """Where the workflow writes an experiment's results."""
    return f"results/{label(experiment)}"
