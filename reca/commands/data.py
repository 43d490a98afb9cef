"""render: a data set of the toy world."""

from __future__ import annotations

from argparse import Namespace

from reca.commands.code import stage_code
from reca.commands.inputs import read_section
from reca.config.compose import section
from reca.config.schema import ToyWorld
from reca.config.validate import check_world
from reca.core.artifacts import Stage


def render(arguments: Namespace) -> None:
    """Render the scenes of a `ToyWorld` section into a parquet file."""
    from reca.toyworld import render as world

    plain = read_section(arguments.section)
    described, code = section(ToyWorld, plain, "--section"), stage_code("render")
    check_world("--section", described)
    with Stage("render", arguments.out, inputs={}, section=plain, code=code) as stage:
        stage.note(rows=world.render(described, stage.staging))
