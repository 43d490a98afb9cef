"""Numbers of attention heads that do not fit are refused in one line as a configuration is parsed, in every family."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from reca.models.registry import runnable
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny

TINY: dict[str, Any] = {
    "showo": showo_tiny,
    "harmon": harmon_tiny,
    "openuni": openuni_tiny,
    "bagel": bagel_tiny,
    "janus": janus_tiny,
}
PRIME = 11  # divides no tiny width or number of heads


def numbers_of_heads() -> Iterator[tuple[str, str, str]]:
    """(family, section, field) of every number of heads in a `network` section."""
    for family in runnable():
        for section, fields in TINY[family].network().items():
            for name in fields if isinstance(fields, dict) else ():
                if name.endswith("heads"):
                    yield family, section, name


@pytest.mark.parametrize(("family", "section", "name"), list(numbers_of_heads()))
@pytest.mark.parametrize("value", [PRIME, 0])
def test_heads_that_do_not_fit_are_named(family: str, section: str, name: str, value: int) -> None:
    network = deepcopy(TINY[family].network())
    parse = importlib.import_module(f"reca.models.{family}.config").parse
    parse(network)
    network[section][name] = value
    with pytest.raises(ValueError, match=rf"^network\.{section}") as refused:
        parse(network)
    said = str(refused.value)
    assert "\n" not in said and (
        f"network.{section}.{name} = {value}: must" in said or section == "sana"
    )
    assert said.endswith("change one of them") or value == 0 or section == "sana"


@pytest.mark.parametrize("family", runnable())
def test_rotary_positions_need_pairs_of_values(family: str) -> None:
    """One value per head divides every width, but has no pair."""
    network = deepcopy(TINY[family].network())
    width = network["llm"]["hidden_size"]
    network["llm"] |= {"num_attention_heads": width, "num_key_value_heads": width}
    if family == "showo":
        network["llm"]["partial_rotary_factor"] = 1.0
    with pytest.raises(ValueError, match=r"^network\.llm\..*turn pairs"):
        importlib.import_module(f"reca.models.{family}.config").parse(network)
