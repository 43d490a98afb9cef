"""The check of another device: inputs are moved to the model's device, and results back to the CPU.

The device is a simulated GPU (`other_device`), so this runs on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from reca.conformance import sampling
from reca.conformance.other_device import GpuInName, OnDevice, moved
from reca.conformance.subject import (
    NonConformity,
    Subject,
    close,
    demand,
    place,
)
from reca.models.contract import UnifiedModel

TOKENS = 4  # per answer


def device_moves(subject: Subject) -> None:
    """Every operation gives the same results on another device as on the CPU, for inputs on either device."""
    here, there = subject.fresh(), subject.fresh()
    with GpuInName(), torch.no_grad():
        moved(there)
        _encoding(subject, here, there)
        _losses(subject, here, there)
        _images(subject, here, there)
        asked = [question for question, _ in subject.turns]
        for read in (subject.features["read"], None):
            found = _guarded(there, "answer", partial(there.answer, asked, read, TOKENS))
            said = "answers differ on another device"
            demand(found == here.answer(asked, read, TOKENS), said, there, "answer")


def _encoding(subject: Subject, here: UnifiedModel, there: UnifiedModel) -> None:
    for use in subject.uses:
        rows = _guarded(there, "encode", partial(there.encode, subject.images, use))
        for name, expected in subject.features[use].items():
            said = f"encode(images, {use!r})[{name!r}] differs on another device"
            demand(close(rows[name].to("cpu"), expected), said, there, "encode")
        same = there.encoder_fingerprint(use) == here.encoder_fingerprint(use)
        demand(same, "encoder_fingerprint depends on the device", there, "encoder_fingerprint")


def _losses(subject: Subject, here: UnifiedModel, there: UnifiedModel) -> None:
    for name, loss in subject.losses(here).items():
        method = name.split(" ")[0]
        method = method if hasattr(here, method) else "generation_loss"
        expected = loss()[0].total
        for given in (subject.features, _on_device(subject.features)):
            found = _guarded(there, method, partial(_loss, subject, there, name, given))
            demand(
                isinstance(found, OnDevice) and close(found.here, expected),
                f"{name} is {float(found):g} on another device and {float(expected):g} on the CPU",
                there,
                method,
            )


def _images(subject: Subject, here: UnifiedModel, there: UnifiedModel) -> None:
    plan, texts = subject.guided, subject.texts
    for features in (None, subject.features["draw"]) if subject.reconstructs else (None,):
        expected = sampling.draw(here, texts, features, plan, subject.noise())
        draw = partial(sampling.draw, there, texts, features, plan, subject.noise())
        found = _guarded(there, "generate", draw)
        far = sampling.distance(found, expected)
        said = f"images differ by {far} grey levels on another device"
        demand(far <= sampling.GREYS, said, there, "generate")


def _loss(subject: Subject, model: UnifiedModel, name: str, features: Mapping[Any, Any]) -> Any:
    """The total of one of the subject's losses with the given features."""
    other = Subject.__new__(Subject)
    other.__dict__.update(subject.__dict__, features=features)
    return other.losses(model)[name]()[0].total


def _on_device(features: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[Any, Any]:
    return {use: {n: t.to("cuda") for n, t in rows.items()} for use, rows in features.items()}


def _guarded(model: UnifiedModel, method: str, function: Callable[[], Any]) -> Any:
    """Run an operation; NonConformity, as one line, for a tensor on the wrong device."""
    try:
        return function()
    except (RuntimeError, TypeError) as fault:
        said = " ".join(str(fault).split())[:200]
        raise NonConformity(
            f"{method} on another device: {said}; move inputs to the model's device, and results to the CPU where "
            f"numpy or PIL take them; look at {place(model, method)}"
        ) from fault
