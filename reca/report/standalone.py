"""Figures of the report as standalone SVG files, for the README and the pages in `docs/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from reca.report.figures import NAMES, WIDTH, intervals
from reca.report.outcomes import reading

GAP, TITLE = 40, 52  # pixels: between columns, above a panel
PANEL, ROW = 206, 40  # pixels: height of a panel of four arms, and of every further arm
# The file is shown as an image, without the report's style sheet, on a light or dark page.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555 } .name, .title { fill: #111; font-size: 13px }
.title, text.key { font-weight: 600 } .grid { stroke: #ddd } .chance { stroke: #777; stroke-dasharray: 2 4 }
.bar { stroke-width: 4; stroke-linecap: round; opacity: .45 } .line { fill: none; stroke-width: 2 }
.seed { stroke-width: 1.5 } .base { stroke: #5b6470 } .sft { stroke: #b4610c } .reca { stroke: #0b63b5 }
.shuffled { stroke: #86408f } .mark.base, text.base { fill: #5b6470 } .mark.sft, text.sft { fill: #b4610c }
.mark.reca, text.reca { fill: #0b63b5 } .mark.shuffled { fill: #86408f } text.name, text.key { stroke: none }
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
    return _file(parts, width, height, arms)


def argument(parts: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `why.argument`, a row for each, with the name of an arm where its line is drawn in colour."""
    inside, top, width = [], 0.0, 2 * (WIDTH + GAP) + GAP
    arms: dict[str, None] = {}
    for part in parts:
        inside.append(
            f'<text class="title" x="{GAP}" y="{top + 26}">{escape(part["title"])}</text>'
        )
        x = float(GAP)
        for arm in part["arms"]:
            inside.append(
                f'<text class="key {arm}" x="{x}" y="{top + 46}">{escape(NAMES[arm])}</text>'
            )
            x += 16 + 8 * len(NAMES[arm])
        tallest = 0.0
        for column, drawn in enumerate(part["figures"]):
            svg = str(drawn["figure"])
            box = re.search(r'viewBox="0 0 \S+ (\S+)"', svg)
            assert box is not None  # every figure of `figures` has one
            height = float(box[1])
            x, y = GAP + column * (WIDTH + GAP), top + 60
            place = f'<svg x="{x}" y="{y + 20}" width="{WIDTH}" height="{height}" '
            inside.append(
                f'<text class="name" x="{x}" y="{y + 10}">{escape(drawn["title"])}</text>'
            )
            inside.append(svg.replace("<svg ", place, 1))
            tallest = max(tallest, height)
            arms |= dict.fromkeys(arm for arm in MORE if f'mark {arm}"' in svg)
        top += 60 + 20 + tallest + 24
    paper = f'<rect width="{width}" height="{top}" rx="8" fill="#fff"/>'
    return _file([paper, *inside], width, top, arms)


def _file(parts: Iterable[str], width: float, height: float, arms: Iterable[str]) -> str:
    """An SVG file with the style of `arms`."""
    more = "".join(
        f".{arm} {{ stroke: {MORE[arm]} }} .mark.{arm} {{ fill: {MORE[arm]} }}\n"
        for arm in arms
        if arm in MORE
    )
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}><style>{STYLE}{more}</style>{"".join(parts)}</svg>\n'
