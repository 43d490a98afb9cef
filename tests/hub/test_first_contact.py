"""Every family from its hub to its first image, by the commands that a user types: pin, fetch, base, draw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from PIL import Image

from reca.cli import main
from reca.config.compose import model_config
from reca.models.registry import load_model
from reca.sources.catalogue import load_sources
from reca.sources.fetch import LOCK_FILE, read_lock
from tests.hub import checkpoints
from tests.hub.conftest import CATALOGUE
from tests.hub.server import SIGNATURE, Hub, Repository, sha

SOURCES = load_sources(CATALOGUE)
MODELS = (
    "showo_clip_256",
    "showo_vq_512",
    "harmon_05b",
    "bagel_7b",
    "openuni_b_512",  # SANA in one file
    "openuni_l_512",  # and in shards
    "janus_pro_1b",  # a pickle
    "janus_pro_7b",  # and several
)
FAMILIES = {"showo", "harmon", "bagel", "openuni", "openuni-sft", "harmon-plus", "janus"}
SMALL = "harmon-0.5b-reca"  # any source


@pytest.fixture(scope="module", autouse=True)
def forgotten_networks() -> Iterator[None]:
    """The tiny networks have full vocabularies: they are not kept for the rest of the run."""
    yield
    checkpoints.network_of.cache_clear()
    checkpoints.openuni_state.cache_clear()


def offer(site: Hub, *names: str) -> None:
    """Put the repositories of sources on the hub."""
    for name in names:
        site.repositories[str(SOURCES[name].id)] = Repository.of(checkpoints.repository_of(name))


def fetched(source: str) -> set[str]:
    """The files that came with a source, without our records."""
    folder = Path("data") / source
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {"manifest.json", "run.json"}


def run(*words: str) -> None:
    assert main(list(words)) == 0, words


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that fails says, which is one line."""
    capsys.readouterr()
    assert main(list(words)) != 0
    lines = capsys.readouterr().err.splitlines()
    (line,) = lines[[line.startswith("reca ") for line in lines].index(True) :]
    return line


def test_every_checkpoint_of_the_families_has_a_layout_here() -> None:
    models = {n: s for n, s in SOURCES.items() if s.kind == "hub" and s.repo == "model"}
    assert set(checkpoints.WRITERS) == {n for n, s in models.items() if FAMILIES & set(s.used_by)}


@pytest.mark.parametrize("name", MODELS)
def test_a_family_draws_from_its_hub(name: str, site: Hub) -> None:
    config = model_config(name)
    assert config.weights.source is not None
    roles = {"weights": config.weights.source, **config.weights.companions}
    names = sorted(set(roles.values()))
    offer(site, *names)
    run("pin", *names)
    for source in names:
        run("fetch", source, "--out", f"data/{source}")
        patterns = [file.path for file in SOURCES[source].files]
        assert fetched(source) == {
            path
            for path in site.repositories[str(SOURCES[source].id)].files
            if any(fnmatchcase(path, pattern) for pattern in patterns)
        }
    network = checkpoints.tiny_network(config)
    section = {"family": config.family, "network": network, "weights": asdict(config.weights)}
    inputs = [f"--input={role}=data/{source}" for role, source in roles.items()]
    run("base", "--section", json.dumps(section), *inputs, "--out", "base")
    given, made = checkpoints.network_of(name).state_dict(), load_model(Path("base")).state_dict()
    assert made.keys() == given.keys()
    for key, tensor in made.items():  # released in bfloat16, or not
        torch.testing.assert_close(tensor.float(), given[key].float(), rtol=1e-2, atol=1e-2)
    steps = [] if config.family == "janus" else ["--steps=2"]  # Janus samples every code by itself
    run("draw", "a red circle", "--model", "base", *steps, "--out", "drawn.png")
    side = network["resolution"]
    assert Image.open("drawn.png").size == (side, side)


def test_a_pin_is_written_once_and_what_changed_since_is_refused(
    site: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, SMALL)
    repository = site.repositories[str(SOURCES[SMALL].id)]
    repository.commits[repository.main] = {"model.pth": b"weights", "README.md": b""}
    assert f"reca pin {SMALL}" in refusal(capsys, "fetch", SMALL, "--out", "data/x")
    run("pin", SMALL)
    locked = read_lock(LOCK_FILE)[SMALL]
    assert locked["revision"] == repository.main
    assert [(f["path"], f["sha256"]) for f in locked["files"]] == [("model.pth", sha(b"weights"))]
    repository.files["model.pth"] = b"WEIGHTS"
    assert "model.pth: sha256 is" in refusal(capsys, "fetch", SMALL, "--out", "data/x")
    repository.commit("f" * 40, {"model.pth": None, "model_v2.pth": b"weights"})
    repository.squash()
    line = refusal(capsys, "fetch", SMALL, "--out", "data/x")
    assert f"has no revision {locked['revision']}" in line and f"reca pin {SMALL} --update" in line
    assert not Path("data/x").exists() and read_lock(LOCK_FILE)[SMALL] == locked
    run("pin", SMALL, "--update")
    run("fetch", SMALL, "--out", "data/x")
    assert Path("data/x/model_v2.pth").read_bytes() == b"weights"
    assert SIGNATURE not in capsys.readouterr().err, "logs are kept"


def test_a_gated_source_is_one_line(site: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    site.repositories["datasets/JourneyDB/JourneyDB"] = Repository.of({"a.json": b"{}"}, gated=True)
    line = refusal(capsys, "pin", "journeydb")
    assert "https://huggingface.co/datasets/JourneyDB/JourneyDB and set HF_TOKEN" in line
