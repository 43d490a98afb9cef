"""The options of benchmarks: the table is that of the graders, and wrong values are refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

from reca.config import compose
from reca.config.options import OPTIONS, SHARED, check_benchmark_options
from reca.config.schema import BenchmarkConfig
from reca.evaluation import registry
from reca.evaluation.score import graded

FOLDER = Path(__file__).resolve().parents[2] / "config"
WRONG = {  # kind, option, value -> what the error says of it
    ("wise", "overall", "wieghted"): "one of unweighted, weighted",
    ("imgedit", "overall", "mean"): "one of types, samples",
    ("t2i_compbench", "aggregation", "mean"): "one of ten, eight",
    ("mme", "overall", "percepton"): "one of total, perception, cognition",
    ("mme", "flavour", "lmms-eval"): "one of internvl, lmms_eval",
    ("mmbench", "empty", "E"): "one of A, B, C, D or null",
    ("geneval", "max_overlap", "0.5"): "a number",
}


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_options_are_the_keyword_arguments_of_grade(kind):
    grade = registry.module(kind).grade
    hints = get_type_hints(grade, None, {"BenchmarkConfig": BenchmarkConfig}, include_extras=True)
    keywords = {
        name: hints[name]
        for name, parameter in inspect.signature(grade).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "samples"
    }
    assert keywords == OPTIONS.get(kind, {}) | SHARED
    defaults = {name: inspect.signature(grade).parameters[name].default for name in keywords}
    check_benchmark_options(kind, defaults)


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name_before_grading(kind, name, value):
    benchmark = BenchmarkConfig(kind=kind, options={name: value})
    said = rf"^benchmarks\.{kind}\.options\.{name} = '{value}': must be {WRONG[kind, name, value]}"
    with pytest.raises(ValueError, match=said):
        graded(benchmark, data={}, evidence=[], answers=[], samples=1)


@pytest.mark.parametrize(("kind", "name", "value"), [*WRONG, ("mme", "flavor", "internvl")])
def test_an_experiment_with_it_is_refused(kind, name, value):
    plain = compose.compose_plain("paper_bagel", [], FOLDER)
    one = {**plain["benchmarks"]["geneval"], "kind": kind, "options": {name: value}}
    with pytest.raises(ValueError, match=rf"^benchmarks\.geneval\.options\.{name} = '{value}': "):
        compose.typed({**plain, "benchmarks": {"geneval": one}}, FOLDER)


def test_the_circular_score_needs_rotations():
    plain = compose.compose_plain("paper_bagel", [], FOLDER)
    one = {**plain["benchmarks"]["geneval"], "kind": "mmbench", "options": {"circular": True}}
    with pytest.raises(ValueError, match=r"set benchmarks\.geneval\.rotations"):
        compose.typed({**plain, "benchmarks": {"geneval": one}}, FOLDER)
