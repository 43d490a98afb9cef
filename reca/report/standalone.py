"""The README's figure: the interval plots of `figures` as a standalone SVG file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from reca.report.figures import WIDTH, intervals
from reca.report.outcomes import reading

GAP, TITLE = 40, 52  # pixels: between columns, above a panel
PANEL, ROW = 206, 40  # pixels: height of a panel of four arms, and of every further arm
# The file is shown as an image, without the report's style sheet, on a light or dark page.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555 } .name, .title { fill: #111; font-size: 13px }
.title { font-weight: 600 } .grid { stroke: #ddd } .bar { stroke-width: 4; stroke-linecap: round; opacity: .45 }
.seed { stroke-width: 1.5 } .base { stroke: #5b6470 } .sft { stroke: #b4610c } .reca { stroke: #0b63b5 }
.shuffled { stroke: #86408f } .mark.base { fill: #5b6470 } .mark.sft { fill: #b4610c } .mark.reca { fill: #0b63b5 }
.mark.shuffled { fill: #86408f } text.name { stroke: none }
"""


MORE = {"reca_only": "#8a6100", "random_encoder": "#2f7a55", "template_only": "#5a55a0"}


def panels(results: Mapping[str, Any], outcomes: tuple[str, ...], arms: tuple[str, ...]) -> str:
    """One row per model, one column per outcome: mean, 95 % interval and seeds of each arm.

    `results` are the adopted numbers of an experiment (`docs/results/<name>.json`).
    """
    models = results["models"]
    panel = PANEL + (len(arms) - 4) * ROW
    width, height = len(outcomes) * (WIDTH + GAP) + GAP, len(models) * (panel + TITLE) + 12
    parts = [f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>']
    for row, model in enumerate(models):
        found = {outcome["name"]: outcome for outcome in model["outcomes"]}
        for column, name in enumerate(outcomes):
            x, y = GAP + column * (WIDTH + GAP), row * (panel + TITLE)
            # the name once per row: with a long one, titles would be wider than their columns
            title = found[name]["title"] if column else f"{model['name']}: {found[name]['title']}"
            at = reading(found[name])
            plot = intervals({arm: at[arm] for arm in arms}, title)
            parts += [
                f'<text class="title" x="{x}" y="{y + 30}">{escape(title)}</text>',
                plot.replace(
                    "<svg ",
                    f'<svg x="{x}" y="{y + TITLE - 8}" width="{WIDTH}" height="{panel}" ',
                    1,
                ),
            ]
    more = "".join(
        f".{arm} {{ stroke: {MORE[arm]} }} .mark.{arm} {{ fill: {MORE[arm]} }}\n"
        for arm in arms
        if arm in MORE
    )
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}><style>{STYLE}{more}</style>{"".join(parts)}</svg>\n'
