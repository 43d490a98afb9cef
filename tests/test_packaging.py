"""Bounds, lock, conda environment and package layout say the same."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(lines):
    found = {}
    for line in lines:
        text = line.split("#")[0].strip()
        if text:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{text}: not an exact pin"
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = Version(specifier.version)
    return found


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())
DIRECT = pins((ROOT / "requirements.in").read_text().splitlines())
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def bounds():
    texts = [*PROJECT["project"]["dependencies"], *EXTRAS["test"], *EXTRAS["dev"]]
    return [r for r in map(Requirement, texts) if r.name != "reca"]


@pytest.mark.parametrize("requirement", bounds(), ids=lambda r: r.name)
def test_lock_fulfils_bounds(requirement):
    assert requirement.specifier, f"{requirement.name} has no lower bound"
    assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


def test_direct_pins_are_those_of_the_lock():
    assert {name: LOCK.get(name) for name in DIRECT} == DIRECT
    wanted = {canonicalize_name(r.name) for r in bounds()}
    assert wanted <= set(DIRECT), "a dependency of pyproject.toml is missing in requirements.in"
    assert set(DIRECT) - wanted == {"setuptools"}, (
        "requirements.in pins what pyproject does not ask"
    )


def test_environment_is_in_step_with_the_lock():
    plain = [spec for spec in ENVIRONMENT["dependencies"] if isinstance(spec, str)]
    (nested,) = [spec["pip"] for spec in ENVIRONMENT["dependencies"] if isinstance(spec, dict)]
    assert [Requirement(spec).name for spec in plain] == ["python", "pip"]
    assert nested[0] == "--constraint requirements.lock"
    assert pins(nested[1:]) == DIRECT
    python = Requirement(plain[0]).specifier
    assert all(f"3.11.{patch}" in python for patch in (0, 14)) and "3.12.0" not in python


def test_lock_fits_cpu_and_cuda_wheels():
    assert str(LOCK["torch"]) == "2.13.0" and str(LOCK["triton"]) == "3.7.1"
    assert not [name for name in LOCK if name.startswith("nvidia")]


def test_versions_of_both_packages_and_the_citation_agree():
    import reca_kernels

    import reca

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert reca.__version__ == reca_kernels.__version__ == str(citation["version"])
    assert f"## [{reca.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


# ---- the import names ----------------------------------------------------------------------------
def test_kernels_is_a_bare_source_root():
    # A package `kernels` of ours would shadow Hugging Face's, and break diffusers.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert importlib.util.find_spec("reca_kernels").origin.endswith("reca_kernels/__init__.py")


def test_import_kernels_from_the_checkout_is_never_ours():
    code = (
        "import importlib.util, sys; s = importlib.util.find_spec('kernels');"
        "sys.exit(s is not None and s.origin is not None and s.origin.startswith(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], cwd=ROOT, check=True)


def test_kernels_import_nothing_of_reca():
    files = list((ROOT / "kernels").rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for line in path.read_text().splitlines():
            assert not re.match(r"\s*(import|from) reca\b(?!_)", line), f"{path}: {line}"


def test_found_packages_cover_every_module():
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["reca*"]))
    assert len(found) > 10
    for path in (ROOT / "reca").rglob("*.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert package in found, f"{path.parent} holds modules but no __init__.py"


def test_console_script_is_the_parser():
    module, _, name = PROJECT["project"]["scripts"]["reca"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_no_machine_paths_in_what_ships():
    shipped = ["requirements.lock", "requirements.in", "environment.yml", "pyproject.toml"]
    for name in [*shipped, ".pre-commit-config.yaml", "CITATION.cff", "CHANGELOG.md"]:
        text = (ROOT / name).read_text()
        assert "file://" not in text and "/work/" not in text and "/root/" not in text, name


def test_commit_hooks_run_pinned_tools_and_select_something():
    """`pytest -k` that selects nothing fails every commit; a tool without a pin differs from CI's."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]:
        tool, *words = hook["entry"].split()
        assert tool == "python" or canonicalize_name(tool) in DIRECT, hook["id"]
        if "-k" in words:
            text = (ROOT / next(w for w in words if w.endswith(".py"))).read_text()
            word = words[words.index("-k") + 1]
            assert any(word in line for line in text.splitlines() if line.startswith("def test_"))
