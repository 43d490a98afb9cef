"""What an edit of the code reruns, stage by stage and family by family."""

import shutil
import sys
from pathlib import Path

import pytest

from reca.commands.code import STAGES, stage_code
from reca.core import code_cache
from reca.core.code_cache import CodeCache
from reca.core.fingerprints import SourceTree
from reca.models.registry import runnable

ROOT = Path(__file__).parents[2]
PER_FAMILY = ("base", "cache", "align", "pretrain", "sample")
BENCHMARKS = {
    "sample": ("laptop", "geneval"),
    "observe": ("laptop", "geneval", "wise"),
    "score": ("laptop", "geneval", "wise"),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "reca", folder / "reca", ignore=ignored)
    shutil.copytree(ROOT / "kernels/reca_kernels", folder / "reca_kernels", ignore=ignored)
    return {name: folder / name for name in ("reca", "reca_kernels")}


def codes(roots):
    """Stage with its family and its benchmark -> fingerprint."""
    tree, found = SourceTree(roots), {}
    for stage in STAGES:
        for family in FAMILIES if stage in PER_FAMILY else [None]:
            for benchmark in BENCHMARKS.get(stage, [None]):
                name = " ".join(word for word in (stage, family, benchmark) if word)
                found[name] = stage_code(stage, family, benchmark, tree)
    return found


CODE = "\n\n_EDITED = 1\n"
FAMILIES = runnable()
SAMPLING = ("sample",)
TRAINED = {f"{stage} {family}" for stage in ("align", "pretrain") for family in FAMILIES}


def of(family, *stages):
    """The stages of a family, with every benchmark where they have one."""
    return {
        " ".join(filter(None, (stage, family, benchmark)))
        for stage in stages
        for benchmark in BENCHMARKS.get(stage, [None])
    }


def evaluated(*stages, benchmarks=("laptop", "geneval", "wise")):
    """Stages of benchmarks, sampling of every family."""
    found = {f"{s} {b}" for s in stages if s != "sample" for b in benchmarks}
    if "sample" in stages:
        known = set(benchmarks) & set(BENCHMARKS["sample"])
        found |= {f"sample {family} {b}" for family in FAMILIES for b in known}
    return found


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
    "a sampler of OpenUni": (
        "reca/models/openuni/sampler.py",
        appended(CODE),
        of("openuni", *SAMPLING),
    ),
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
    # OpenUni's reader, whose embeddings are cached, is part of its network.
    "a network of OpenUni": (
        "reca/models/openuni/network.py",
        appended(CODE),
        of("openuni", *PER_FAMILY),
    ),
    "a loss of OpenUni": (
        "reca/models/openuni/loss.py",
        appended(CODE),
        of("openuni", "align", "pretrain"),
    ),
    "encoders of OpenUni": (
        "reca/models/openuni/encoders.py",
        appended(CODE),
        of("openuni", "base", "cache", "pretrain", *SAMPLING),
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
        evaluated("score", benchmarks=["geneval"]),
    ),
    "a scorer of the laptop": (
        "reca/evaluation/tasks/laptop.py",
        appended(CODE),
        evaluated("score", benchmarks=["laptop"]),
    ),
    "the examiner": (
        "reca/toyworld/examiner.py",
        appended(CODE),
        evaluated("observe", "score", benchmarks=["laptop"]) | {"report"},
    ),
    "the reading of a judge's replies": (
        "reca/evaluation/tasks/wise.py",
        lambda text: text.replace("JUDGE_LIMITS = ", "JUDGE_LIMITS = _EDITED = ", 1),
        evaluated("observe", "score", benchmarks=["wise"]),
    ),
    "a detector": (
        "reca/evaluation/detectors/mask2former.py",
        appended(CODE),
        evaluated("observe", benchmarks=["geneval"]),
    ),
    "what becomes of scores": (
        "reca/evaluation/score.py",
        appended(CODE),
        evaluated("score"),
    ),
    "a reader of prompts": (
        "reca/evaluation/tasks/geneval.py",
        lambda text: text.replace(") -> list[Prompt]:", ", edited: int = 1) -> list[Prompt]:", 1),
        evaluated("sample", "observe", "score", benchmarks=["geneval"]),
    ),
    "prompts of the laptop": (
        "reca/evaluation/tasks/laptop_prompts.py",
        lambda text: text.replace("LONGEST = ", "LONGEST = _EDITED = ", 1),
        evaluated("sample", "score", benchmarks=["laptop"]) | {"report"},
    ),
    "a reader of tables": (
        "reca/evaluation/benchmark_data.py",
        appended(CODE),
        evaluated("sample", "observe", "score"),
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


# ---- what is kept between processes --------------------------------------------------------------
@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A module that finds something in texts; gives its file and that of what is kept."""
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    source = tmp_path / "finder.py"
    source.write_text("one = 1\n")
    return source, tmp_path / "__pycache__" / f"finder.{sys.implementation.cache_tag}.json"


def finding(source, text=b"text", kind="length"):
    """The result for a text, and whether it had to be found."""
    calls = []
    cache = CodeCache(source)
    result = cache.found(kind, text, lambda given: calls.append(given) or len(given))
    cache.save()
    return result, bool(calls)


def test_what_is_found_in_a_text_is_kept(kept):
    source, path = kept
    assert finding(source) == (4, True) and path.is_file()
    assert finding(source) == (4, False)
    assert finding(source, b"other") == (5, True)
    assert finding(source, kind="again") == (4, True)
    source.write_text("one = 2\n")  # other code may find something else
    assert finding(source) == (4, True)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"version": "other"}'])
def test_a_damaged_file_is_found_anew(kept, damage):
    source, path = kept
    finding(source)
    path.write_bytes(damage)
    assert finding(source) == (4, True)
    assert finding(source) == (4, False)


def test_nothing_is_kept_where_bytecode_is_not(kept, monkeypatch):
    source, path = kept
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    finding(source)
    assert not path.exists()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path.parent.write_text("")  # no folder can be made here
    assert finding(source) == (4, True)


def test_old_entries_go_when_there_are_many(kept, monkeypatch):
    source, _ = kept
    monkeypatch.setattr(code_cache, "_MOST", 2)
    for text in (b"1", b"2", b"3"):
        finding(source, text)
    assert finding(source, b"3") == (1, False)
    assert finding(source, b"1") == (1, True)
