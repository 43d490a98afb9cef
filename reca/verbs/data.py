"""render: the laptop world as a data set."""

from __future__ import annotations

from argparse import Namespace

from reca.config import section
from reca.consistency import check_world
from reca.records import Stage
from reca.schema import World
from reca.verbs.code import stage_code
from reca.verbs.inputs import read_section


def render(arguments: Namespace) -> None:
    """Draw the scenes of a `World` section into a parquet file."""
    from reca.data import render as world

    plain = read_section(arguments.section)
    described, code = section(World, plain), stage_code("render")
    check_world("--section", described)
    with Stage("render", arguments.out, inputs={}, section=plain, code=code) as stage:
        stage.note(rows=world.render(described, stage.scratch))
