"""NaN and infinity end a run by name: no image, answer, feature or score is made of them.

Values are checked where they are final, once per batch or image: NaN spreads through a network, so the last
latents or the chosen logit of every step show it. Checks give rows of a batch; `named` says what these rows are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

REMEDY = "the weights are damaged, or too large for this precision: fetch or train them again, or compute in fp32"

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class NonFinite(ValueError):
    """`what` (a plural) is NaN or infinite in `rows` of a batch, which are called `names` where that is known.

    `where` names the folder or file at work.
    """

    def __init__(
        self, what: str, rows: Sequence[int], names: Sequence[str] = (), where: object = ""
    ) -> None:
        self.what, self.rows = what, list(rows)
        first = repr(names[self.rows[0]]) if names else f"row {self.rows[0]} of the batch"
        more = f" and {len(self.rows) - 1} more" if len(self.rows) > 1 else ""
        place = f"{where}: " if where else ""
        super().__init__(f"{place}{what} are not finite for {first}{more}; {REMEDY}")


def finite_rows(values: Tensor) -> Tensor:
    """Which rows of [B, ...] hold finite values only: bool [B], on the same device."""
    # a NaN makes both NaN; many times faster than isfinite of every value
    low, high = values.reshape(len(values), -1).aminmax(dim=1)
    return low.isfinite() & high.isfinite()


def chosen_finite(logits: Tensor, token: Tensor) -> Tensor:
    """Whether the logits [B, V] of the argmax `token` [B] were finite, bool [B]: NaN and infinity win an argmax."""
    return logits.gather(-1, token.unsqueeze(-1)).squeeze(-1).isfinite()


def demand(finite: Tensor, what: str) -> None:
    """NonFinite names the rows where `finite` (bool [B]) is false. One read from the device."""
    wrong = [row for row, holds in enumerate(finite.tolist()) if not holds]
    if wrong:
        raise NonFinite(what, wrong)


@contextmanager
def named(names: Sequence[str], where: object = "") -> Iterator[None]:
    """Say in errors from inside what the rows of the batch are (prompts, questions, images)."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(error.what, error.rows, names, where) from error


@contextmanager
def rows_of(rows: Sequence[int]) -> Iterator[None]:
    """Inside, a batch is worked on that consists of these rows of a larger one."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(error.what, [rows[row] for row in error.rows]) from error


def demand_numbers(values: Mapping[str, float]) -> None:
    """NonFinite if a number that a network gave for one image is NaN or infinite; keys are plurals."""
    for what, value in values.items():
        if not math.isfinite(value):
            raise NonFinite(what, [0])


def number_kind(dtype: str) -> str:
    """What a dtype ("float32") may be replaced by: "float", "int", or nothing but itself.

    Floats of 8 bits are codes that mean nothing without the scales of their format.
    """
    if dtype in _FLOATS:
        return "float"
    return "int" if dtype.startswith(("int", "uint")) else dtype


def check_weights(where: object, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """ValueError names the file `where` and the first weight that holds NaN or infinity, or numbers of a dtype that no
    network computes in: one pass, no copy.
    """
    for name, tensor in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        kind = number_kind(dtype)
        if kind not in ("float", "int", "bool"):
            raise ValueError(
                f"{where}: weight {name} is {dtype}; only {', '.join(_FLOATS)} and integers are read; convert it"
            )
        if kind != "float" or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()  # both are NaN where any value is
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                f"{where}: weight {name} holds values that are not finite; fetch or train it again"
            )


# ---- JSON ----------------------------------------------------------------------------------------
def demand_json(path: object, value: Any) -> None:
    """ValueError names file and key of a number that JSON cannot hold: NaN or infinity."""
    for name, number in _numbers(value, ""):
        if not math.isfinite(number):
            raise ValueError(
                f"{path}: {name.lstrip('.')} is {number}; not written, since what it was computed from is damaged"
            )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every float in a JSON value with the dotted path to it."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}[{index}]")
