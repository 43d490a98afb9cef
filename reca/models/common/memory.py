"""The counts that `reca plan` turns into bytes, of a family's language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reca.models.contract import MemoryProfile


def language_profile(
    llm: Mapping[str, Any], tokens: int, *, more_layers: int = 0, **counts: int
) -> MemoryProfile:
    """The profile of one RecA sequence of `tokens` in a language model of transformers' sizes.

    `more_layers` count other towers as layers that keep as many values; `counts` are further fields of the profile.
    """
    return MemoryProfile(
        tokens=tokens,
        layers=llm["num_hidden_layers"] + more_layers,
        width=llm["hidden_size"],
        inner=llm["intermediate_size"],
        **counts,
    )
