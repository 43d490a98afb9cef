"""What an edit of the code reruns: twelve edits, stage by stage and family by family."""

import shutil
from pathlib import Path

import pytest

from reca.commands.code import STAGES, stage_code
from reca.core.fingerprints import SourceTree
from reca.models.registry import FAMILIES

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


@pytest.fixture(scope="module")
def before(roots):
    return codes(roots)


CODE = "\n\n_EDITED = 1\n"
COMMENT = "\n# Why this is so.\n"
ALL = frozenset(f"{stage} {family}" for stage in PER_FAMILY for family in FAMILIES)


def of(stages, families):
    return {f"{stage} {family}" for stage in stages for family in families}
