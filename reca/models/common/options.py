"""Strict parsing of configuration sections into a family's dataclasses, with uniform errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from reca.core.structure import build, problem, suggestion

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


def check_numbers(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """ValueError unless `given` has keys of `known` only, with numbers above 0 that are whole where known's are."""
    for name, value in given.items():
        if name not in known:
            raise problem(f"{where}.{name}", value, f"unknown key; {suggestion(name, known)}")
        if isinstance(known[name], str):
            continue
        number = "whole number" if isinstance(known[name], int) else "number"
        fits = type(value) is int or (number == "number" and type(value) is float)
        if not fits or value <= 0:
            raise problem(f"{where}.{name}", value, f"must be a {number} above 0")


def check_attention(section: str, sizes: Mapping[str, Any], rotary: bool = False) -> None:
    """Check the heads of a transformer with transformers' names for its sizes; `section` is their key path.

    ValueError unless `num_attention_heads` divides `hidden_size`, into heads of an even width with `rotary`
    positions, and `num_key_value_heads`, where there are any, divides `num_attention_heads`.
    """
    heads = f"{section}.num_attention_heads", sizes["num_attention_heads"]
    check_heads(heads, (f"{section}.hidden_size", sizes["hidden_size"]), rotary)
    if "num_key_value_heads" in sizes:
        check_heads((f"{section}.num_key_value_heads", sizes["num_key_value_heads"]), heads)


def check_heads(number: tuple[str, int], of: tuple[str, int], rotary: bool = False) -> None:
    """ValueError unless `number` divides `of` (key path and value of each); the quotient is even with `rotary`."""
    (path, heads), (name, width) = number, of
    if width % (heads * (2 if rotary else 1)):
        pairs = " into heads of an even width, as rotary positions turn pairs" if rotary else ""
        raise problem(path, heads, f"must divide {name} = {width}{pairs}; change one of them")


# ---- sampling ------------------------------------------------------------------------------------
def sampler_options(kind: type[T], sampling: Sampling) -> T:
    """Convert the contract's `Sampling` to a family's dataclass; ValueError for an unknown option."""
    given, names = dict(sampling.options or {}), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name in _CONTRACT or name not in names:
            allowed = f"unknown option; {suggestion(name, names - set(_CONTRACT))}"
            raise problem(f"sampling.options.{name}", given[name], allowed)
    general = {name: getattr(sampling, name) for name in _CONTRACT if name in names}
    return build(kind, general | given, "sampling.options")


def check_generation(
    rows: int,
    generators: Sequence[torch.Generator],
    unconditional: object | None = None,
    guidance: float | None = None,
) -> None:
    """Raise ValueError unless each row has a generator and, with guidance, there is an unconditional condition.

    `guidance`: the scale; 0 and None are none.
    """
    if len(generators) != rows:
        raise ValueError(f"{rows} images need as many generators, got {len(generators)}")
    if guidance and unconditional is None:
        raise ValueError(f"sampling.guidance {guidance:g} needs an unconditional condition")
