"""Checks that run the trainer: frozen parts do not change, saving and loading is lossless, resuming is exact."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from reca.align.batches import FeatureData
from reca.align.state import freeze
from reca.align.trainer import align
from reca.config.recipe import Recipe, TaskRecipe
from reca.conformance.checks import reads
from reca.conformance.subject import Subject, close, demand, equal
from reca.models.contract import Features, UnifiedModel
from reca.models.registry import load_model

STEPS = 10
DESCRIPTION = "reca_model.json"


@dataclass(frozen=True)
class Rows:
    """Features in memory, with the interface of a cache."""

    features: Features

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def rows(self, indices: Sequence[int]) -> Features:
        """The rows of the images with these indices."""
        return {name: rows[list(indices)] for name, rows in self.features.items()}


def frozen_parts_stay(subject: Subject) -> None:
    """After some steps of the trainer, everything but the trainable parameters is bitwise unchanged."""
    model = subject.fresh()
    before = {name: tensor.detach().clone() for name, tensor in _state(model).items()}
    with _work() as work:
        _train(subject, model, work, steps=STEPS)
    after = _state(model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    extra = sorted(changed - set(model.trainable_parameters()))
    demand(
        not extra,
        f"{STEPS} training steps changed {extra[:3]} ({len(extra)} in all), which are not trainable; check for buffers "
        "that a loss updates",
        model,
        "generation_loss",
        "trainable_parameters",
    )
    demand(bool(changed), f"{STEPS} training steps changed no weights", model, "generation_loss")


def resume_is_exact(subject: Subject) -> None:
    """A run that is stopped and resumed has the same weights as an uninterrupted one, bit by bit."""
    straight, resumed = subject.fresh(), subject.fresh()
    with _work() as work:
        _train(subject, straight, work / "straight", steps=6)
        _train(subject, subject.fresh(), work / "resumed", steps=6, stop_at=3)
        _train(subject, resumed, work / "resumed", steps=6)
    wrong = _differing(straight.state_dict(), resumed.state_dict())
    demand(
        not wrong,
        f"a run stopped after 3 of 6 steps and resumed differs from an uninterrupted one in {wrong[:3]}; the model "
        "keeps state between steps that is neither a parameter nor in the noise",
        straight,
        "generation_loss",
        "sample_noise",
    )


def save_and_load(subject: Subject) -> None:
    """`load_model` of a saved folder restores weights, losses and fingerprints; saving it again gives equal bytes."""
    model = subject.fresh()
    with _work() as work:
        model.save(work / "once")
        path = work / "once" / DESCRIPTION
        demand(path.is_file(), f"save writes no {DESCRIPTION}", model, "save")
        named = json.loads(path.read_text()).get("family")
        demand(
            named == model.family,
            f"{DESCRIPTION} names family {named!r}, not {model.family!r}",
            model,
            "save",
        )
        again = load_model(work / "once").eval()
        again.save(work / "twice")
        files = {name: _files(work / name) for name in ("once", "twice")}
        differing = sorted(
            name
            for name in files["once"] | files["twice"]
            if files["once"].get(name) != files["twice"].get(name)
        )
    wrong = _differing(model.state_dict(), again.state_dict())
    demand(not wrong, f"{wrong[:3]} differ after save and load_model", model, "save", "load")
    for use in subject.uses:
        demand(
            model.encoder_fingerprint(use) == again.encoder_fingerprint(use),
            f"encoder_fingerprint({use!r}) differs after save and load_model; save every option",
            model,
            "save",
            "encoder_fingerprint",
        )
    for (name, first), second in zip(
        subject.losses(model).items(), subject.losses(again).values(), strict=True
    ):
        demand(
            equal([first()[0].total], [second()[0].total]),
            f"{name} differs after save and load_model; save every option and the tokenizer",
            model,
            "save",
        )
    demand(not differing, f"saving the loaded model again changes {differing}", model, "save")


def official_names(subject: Subject) -> None:
    """`official_state` covers all trainable parameters: its tensors change when they change."""
    model = subject.fresh()
    trained = set(model.trainable_parameters())
    known = dict(model.named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in model.official_state().items()}
    with torch.no_grad():
        for name in trained:
            known[name].add_(1.0)
    after = model.official_state()
    changed = sum(after[name].numel() for name in after if not close(after[name], before[name]))
    size = sum(known[name].numel() for name in trained)
    demand(
        changed >= size,
        f"official_state has {changed} of {size} trained values; a released checkpoint would be missing the rest",
        model,
        "official_state",
    )


def _train(
    subject: Subject, model: UnifiedModel, work: Path, *, steps: int, stop_at: int | None = None
) -> None:
    tasks = {"reca": TaskRecipe(1.0, 2), "t2i": TaskRecipe(0.5, 2)}
    freeze(model)
    if reads(model, subject):
        tasks["i2t"] = TaskRecipe(1.0, 2)
    data = FeatureData(
        draw=Rows(subject.features["draw"]),
        read=Rows(subject.features["read"]),
        prompts=subject.texts,
        draw_captions=subject.texts,
        read_conversations=[[one] for one in subject.conversations()],
    )
    recipe = Recipe(
        tasks=tasks, steps=steps, lr=1e-3, weight_decay=0.1, precision="fp32", checkpoint_every=0
    )
    align(model, data, recipe, seed=0, work_dir=work, device="cpu", stop_at=stop_at)


def _state(model: UnifiedModel) -> dict[str, Tensor]:
    """Parameters and buffers by name; a shared one under its first name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "tokenizer_config.json"  # transformers adds how it was loaded
    }


@contextmanager
def _work() -> Iterator[Path]:
    """A temporary folder; the trainer's log is silenced while it exists."""
    logger = logging.getLogger("reca.align")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with TemporaryDirectory(prefix="reca-conformance-") as folder:
            yield Path(folder)
    finally:
        logger.setLevel(level)
