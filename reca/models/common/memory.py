"""The memory profile of a family's language model, which `reca plan` converts to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reca.models.contract import MemoryProfile


def language_profile(
    llm: Mapping[str, Any], tokens: int, *, more_layers: int = 0, **counts: int
) -> MemoryProfile:
    """The profile of one RecA sequence of `tokens` in a language model with a transformers config.

    `more_layers` counts other towers as layers that store as many values; `counts` are further fields of the profile.
    """
    return MemoryProfile(
        tokens=tokens,
        layers=llm["num_hidden_layers"] + more_layers,
        width=llm["hidden_size"],
        inner=llm["intermediate_size"],
        **counts,
    )
