"""The three figures on why RecA works, of the models that an experiment names."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from reca.config.compose import load, resolved
from reca.report import standalone, statistics, why

SVG = "{http://www.w3.org/2000/svg}"


def model(name: str, read: float, dense: float, kept: float, *arms: str) -> dict[str, Any]:
    def row(outcome: str, value: float, **at_base: Any) -> dict[str, Any]:
        spread = [value - 0.01, value, value + 0.01]
        cells = {arm: statistics.summary(spread) for arm in ("base", "sft", "reca", *arms)}
        return {"name": outcome, "differences": {}, **cells, **at_base}

    other = {"at_base_guidance": row("dense", dense)}
    rows = [row("dense", 0.9, **other), row("reconstruction", kept), row("understanding", read)]
    return {"name": name, "outcomes": rows, "chance": {"dense": 0.02}}


def test_figures_of_the_experiment() -> None:
    plain = resolved(load("laptop_why"))
    names = list(plain["models"])
    models = [model(name, 0.5 + 0.1 * i, 0.2 + 0.05 * i, 0.1 * i) for i, name in enumerate(names)]
    models[0] = model("bagel_tiny_bound", 0.9, 0.4, 0.8, "shuffled", "template_only")
    models[-1] = model(names[-1], 1 / 3, 0.45, 0.5)
    steps, read, conditions = why.argument(plain, models)
    objects, dense = (part["figure"] for part in steps["figures"])
    assert "RecA from 0.100 at 0 to 0.800 at 480" in objects  # the base, then the longest run
    assert "RecA from 0.250 at 0 to 0.400 at 480" in dense  # at the base's guidance, not .9
    (figure,) = (part["figure"] for part in read["figures"])
    assert "RecA from 0.450 at 0.333333 to 0.400 at 0.9" in figure and "Base from" in figure
    ticks = [
        text.text
        for text in ElementTree.fromstring(figure).iter("text")
        if text.get("class") == "tick"
    ]
    assert ticks and all(len(tick) <= 5 for tick in ticks)  # not 0.333333
    assert "Template only 0.400" in conditions["figures"][0]["figure"]
    assert "chance 0.020" in conditions["figures"][0]["figure"]
    file = standalone.argument([steps, read, conditions])
    inside = list(ElementTree.fromstring(file).iter(SVG + "svg"))[1:]
    assert len(inside) == 5 and all(float(box.get("height")) > 0 for box in inside)
    bottoms = [float(box.get("y")) + float(box.get("height")) for box in inside]
    assert bottoms == sorted(bottoms) and bottoms[-1] < float(
        ElementTree.fromstring(file).get("height")
    )
    assert ".template_only { stroke" in file and "var(--" not in file


def test_models_that_did_not_run_are_left_out() -> None:
    plain = resolved(load("laptop_why"))
    only = [model("bagel_tiny_bound", 0.9, 0.4, 0.8)]
    assert [part["title"] for part in why.argument(plain, only)] == [
        "Does it take the model's own embeddings?"
    ]
    assert why.argument(resolved(load("laptop")), only) == []
