"""Strict parsing of configuration sections into a family's dataclasses, with uniform errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from reca.core.structure import build

if TYPE_CHECKING:
    import torch

    from reca.models.contract import Sampling

T = TypeVar("T")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741

_CONTRACT = ("guidance", "steps", "temperature")


def parse(network: Mapping[str, Any], config: type[C], options: type[O]) -> tuple[C, O]:
    """Parse a `network` section: the keys of dataclass `config`, and under `options` those of the other.

    ValueError names an unknown key or invalid value.
    """
    described = dict(network)
    chosen = build(options, described.pop("options", None) or {}, "network.options")
    return build(config, described, "network"), chosen


def check_known(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ValueError for keys of a free-form section that are not known."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def check_positive(where: str, values: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for the first value that is not above 0; None and absent names are accepted."""
    for name in names:
        value = values.get(name)
        if value is not None and not value > 0:
            raise ValueError(f"{where}.{name} is {value}; it must be above 0")


def check_numbers(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ValueError unless all keys of `given` are in `known`, with values above 0, integers where known's are."""
    check_known(where, given, known)
    for name, value in given.items():
        if isinstance(known[name], str):
            continue
        number = "whole number" if isinstance(known[name], int) else "number"
        fits = type(value) is int or (number == "number" and type(value) is float)
        if not fits or value <= 0:
            raise ValueError(f"{where}.{name} is {value!r}; it must be a {number} above 0")


def check_shares(where: str, values: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for the first value that is not in 0..1; None is accepted."""
    for name in names:
        value = values[name]
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{where}.{name} is {value}; it must be in 0..1")


# ---- sampling ------------------------------------------------------------------------------------
def sampler_options(kind: type[T], sampling: Sampling) -> T:
    """Convert the contract's `Sampling` to a family's dataclass; ValueError for an unknown option."""
    given, names = dict(sampling.options or {}), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    known = sorted(names - set(_CONTRACT))
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"sampling.options: unknown {', '.join(unknown)}; known: {', '.join(known)}"
        )
    general = {name: getattr(sampling, name) for name in _CONTRACT if name in names}
    return build(kind, general | given, "sampling.options")


def check_generation(
    rows: int,
    generators: Sequence[torch.Generator],
    unconditional: object | None = None,
    guidance: float | None = None,
) -> None:
    """Raise ValueError unless each row has a generator and, with `guidance`, there is an unconditional condition."""
    if len(generators) != rows:
        raise ValueError(f"{rows} images need as many generators, got {len(generators)}")
    if guidance is not None and unconditional is None:
        raise ValueError(f"sampling.guidance {guidance:g} needs an unconditional condition")
