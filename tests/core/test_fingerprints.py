"""What an edit of the code reruns: twelve edits, stage by stage and family by family."""

import shutil
from pathlib import Path

import pytest

from reca.commands.code import STAGES, stage_code
from reca.core.fingerprints import SourceTree
from reca.models.registry import runnable

ROOT = Path(__file__).parents[2]
PER_FAMILY = ("base", "cache", "align", "pretrain", "generate", "draw")
BENCHMARKS = {"generate": "laptop", "score": "laptop", "draw": "geneval", "grade": "geneval"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "reca", folder / "reca", ignore=ignored)
    shutil.copytree(ROOT / "kernels/reca_kernels", folder / "reca_kernels", ignore=ignored)
    return {name: folder / name for name in ("reca", "reca_kernels")}


def codes(roots):
    """Stage, or stage and family -> fingerprint."""
    tree, found = SourceTree(roots), {}
    for stage in STAGES:
        for family in FAMILIES if stage in PER_FAMILY else [None]:
            name = stage if family is None else f"{stage} {family}"
            found[name] = stage_code(stage, family, BENCHMARKS.get(stage), tree)
    return found


CODE = "\n\n_EDITED = 1\n"
FAMILIES = runnable()
SAMPLING = ("generate", "draw")
DRAWN = {f"{stage} {family}" for stage in SAMPLING for family in FAMILIES}
TRAINED = {f"{stage} {family}" for stage in ("align", "pretrain") for family in FAMILIES}


def of(family, *stages):
    return {f"{stage} {family}" for stage in stages}


def appended(code):
    return lambda text: text + code


# What is edited, the file, the edit, and exactly what runs again.
EDITS = {
    "a sampler of Show-o": ("reca/models/showo/sampler.py", appended(CODE), of("showo", *SAMPLING)),
    "a sampler of Harmon": (
        "reca/models/harmon/sampler.py",
        appended(CODE),
        of("harmon", *SAMPLING),
    ),
    "a sampler of Janus-Pro": (
        "reca/models/janus/sampler.py",
        appended(CODE),
        of("janus", *SAMPLING),
    ),
    "a sampler of BAGEL": ("reca/models/bagel/sampler.py", appended(CODE), of("bagel", *SAMPLING)),
    "a network of Show-o": (
        "reca/models/showo/network.py",
        appended(CODE),
        of("showo", "base", "align", "pretrain", *SAMPLING),
    ),
    "a network of Janus-Pro": (
        "reca/models/janus/network.py",
        appended(CODE),
        of("janus", "base", "align", "pretrain", *SAMPLING),
    ),
    # Harmon's reader may be part of what is cached, and BAGEL's encoders share modules with its network.
    "a network of Harmon": (
        "reca/models/harmon/network.py",
        appended(CODE),
        of("harmon", *PER_FAMILY),
    ),
    "a network of BAGEL": (
        "reca/models/bagel/network.py",
        appended(CODE),
        of("bagel", *PER_FAMILY),
    ),
    "a loss of Show-o": (
        "reca/models/showo/loss.py",
        appended(CODE),
        of("showo", "align", "pretrain"),
    ),
    "a loss of Harmon": (
        "reca/models/harmon/loss.py",
        appended(CODE),
        of("harmon", "align", "pretrain"),
    ),
    "a loss of Janus-Pro": (
        "reca/models/janus/loss.py",
        appended(CODE),
        of("janus", "align", "pretrain"),
    ),
    "a loss of BAGEL": (
        "reca/models/bagel/loss.py",
        appended(CODE),
        of("bagel", "align", "pretrain"),
    ),
    "encoders of Show-o": (
        "reca/models/showo/encoders.py",
        appended(CODE),
        of("showo", "base", "cache", "pretrain", *SAMPLING),
    ),
    "encoders of Harmon": (
        "reca/models/harmon/encoders.py",
        appended(CODE),
        of("harmon", "base", "cache", "pretrain", *SAMPLING),
    ),
    "encoders of Janus-Pro": (
        "reca/models/janus/encoders.py",
        appended(CODE),
        of("janus", "base", "cache", "pretrain", *SAMPLING),
    ),
    "encoders of BAGEL": (
        "reca/models/bagel/encoders.py",
        appended(CODE),
        of("bagel", *PER_FAMILY),
    ),
    "the flow-matching kernel": (
        "reca_kernels/flow.py",
        appended(CODE),
        of("bagel", "align", "pretrain"),
    ),
    "the cross-entropy kernel": ("reca_kernels/cross_entropy.py", appended(CODE), TRAINED),
    "the objective": ("reca/align/objective.py", appended(CODE), TRAINED),
    "the trainer": ("reca/align/trainer.py", appended(CODE), TRAINED),
    "a comment": ("reca/align/trainer.py", appended("\n# Why this is so.\n"), set()),
    "a docstring": (
        "reca/align/objective.py",
        lambda text: text.replace('"""', '"""Edited. ', 1),
        set(),
    ),
    "a template of the report": (
        "reca/report/templates/page.html",
        appended("<!-- edited -->"),
        {"report"},
    ),
    "a scorer": (
        "reca/evaluation/tasks/geneval.py",
        lambda text: text.replace("def grade(", "def _unused():\n    return 1\n\n\ndef grade(", 1),
        {"examine", "judge", "grade"},
    ),
    "a reader of prompts": (
        "reca/evaluation/tasks/geneval.py",
        lambda text: text.replace(") -> list[Prompt]:", ", edited: int = 1) -> list[Prompt]:", 1),
        {f"draw {family}" for family in FAMILIES} | {"examine", "judge", "grade"},
    ),
    "a reader of tables": (
        "reca/evaluation/benchmark_data.py",
        appended(CODE),
        {f"draw {family}" for family in FAMILIES} | {"grade"},
    ),
}


@pytest.fixture(scope="module")
def before(roots):
    return codes(roots)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_exactly_what_it_changes(roots, before, edit):
    name, change, expected = EDITS[edit]
    path = roots["reca"].parent / name
    text = path.read_text()
    path.write_text(change(text))
    try:
        assert path.read_text() != text
        after = codes(roots)
    finally:
        path.write_text(text)
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_a_function_of_a_facade_brings_what_it_uses(tmp_path):
    package = tmp_path / "reca_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from reca_kernels.ops import one, two\n")
    ops = "from reca_kernels import left, right\n\nLIMIT = 3\n\n\ndef one():\n    return left.f(LIMIT)\n"
    (package / "ops.py").write_text(ops + "\n\ndef two():\n    return right.f()\n")
    for name in ("left", "right"):
        (package / f"{name}.py").write_text("def f(x=0):\n    return x\n")
    tree = SourceTree({"reca_kernels": package})
    reached = tree.reached([("reca_kernels", "one")])
    assert {"LIMIT", "left", "one"} <= {name for module, name in reached if module.endswith("ops")}
    assert ("reca_kernels.left", None) in reached and ("reca_kernels.right", None) not in reached
