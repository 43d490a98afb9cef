"""Every model from its hub to its first image, by the commands that a user types: pin, fetch, base, draw."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reca.cli import main
from reca.config.schema import ModelConfig, Weights
from reca.core.artifacts import sha256_json
from reca.models.openuni.weights import STAGE_1
from reca.models.registry import load_model
from reca.sources.catalogue import load_sources
from reca.sources.fetch import LOCK_FILE, read_lock
from tests.align.published import EXPERIMENTS, at_scale
from tests.hub import checkpoints
from tests.hub.client import served
from tests.hub.conftest import work_in
from tests.hub.models_at_scale import CATALOGUE, repositories
from tests.hub.networks import Networks, configured
from tests.hub.server import SIGNATURE, Hub, Repository, sha
from tests.hub.vocabularies import TOKENIZERS

SOURCES = load_sources(CATALOGUE)
FAMILIES = {"showo", "harmon", "bagel", "openuni", "openuni-sft", "harmon-plus", "janus"}
SMALL = "harmon-0.5b-reca"  # any source
SANA = "transformer/diffusion_pytorch_model.safetensors"
# What each source of weights holds: a configured model, what was trained of it, and what `weights` has for it
BASES: tuple[tuple[str, str, str | None, dict[str, Any]], ...] = (
    ("show-o", "showo_vq_256", None, {}),
    ("show-o-512x512", "showo_vq_512", None, {}),
    ("show-o-w-clip-vit", "showo_clip_256", None, {}),
    ("show-o-w-clip-vit-512x512", "showo_clip_512", None, {}),
    ("show-o-reca", "showo_clip_256", "reca", {}),
    ("show-o-512x512-reca", "showo_clip_512", "reca", {}),
    ("harmon", "harmon_05b", None, {}),
    ("harmon", "harmon_15b", None, {}),
    ("harmon", "harmon_15b", "1.5b-o", {"file": "harmon_1.5b-o.pth"}),
    ("harmon-0.5b", "harmon_05b", None, {"file": None, "companions": {"tokenizer": "qwen2.5-0.5b-instruct"}}),
    ("harmon-1.5b", "harmon_15b", None, {"file": None, "companions": {"tokenizer": "qwen2.5-1.5b-instruct"}}),
    ("harmon-0.5b-reca", "harmon_05b", "reca", {"file": None}),
    ("harmon-1.5b-reca", "harmon_15b", "reca", {"file": None}),
    ("harmon-1.5b-reca-plus", "harmon_15b", "reca-plus", {"file": None}),
    ("bagel-7b-mot", "bagel_7b", None, {}),
    ("bagel-reca", "bagel_7b", "reca",
     {"file": "model_bf16.safetensors", "companions": dict.fromkeys(("vae", "tokenizer"), "bagel-7b-mot")}),
    *(("openuni", model, trained, {"file": f"openuni_{name}_hf_{stage}.pth"})
      for model, name in checkpoints.OPENUNI.items()
      for trained, stage in ((None, "text2image23m"), ("blip3o60k", "blip3o60k"))),
    ("openuni-1-0.6b-reca", "openuni_b_512", "reca", {"file": None}),
    ("openuni-reca", "openuni_l_512", "reca", {"file": None}),
    ("sana-600m-512", "openuni_b_512", "start", {"file": SANA}),  # in one file
    ("sana-1600m-512", "openuni_l_512", "start", {"file": SANA}),  # in shards
    ("janus-pro-1b", "janus_pro_1b", None, {}),  # a pickle
    ("janus-pro-7b", "janus_pro_7b", None, {}),  # and several
    ("janus-pro-1b-transformers", "janus_pro_1b", None, {"companions": {"tokenizer": "janus-pro-1b-transformers"}}),
    ("janus-pro-7b-transformers", "janus_pro_7b", None, {"companions": {"tokenizer": "janus-pro-7b-transformers"}}),
)  # fmt: skip
DRAWN = ("showo_clip_256", "harmon_05b", "bagel_7b", "openuni_b_512", "janus_pro_1b")


# ---- commands ------------------------------------------------------------------------------------
def run(*words: str) -> None:
    assert main(list(words)) == 0, words


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that fails says, which is one line."""
    capsys.readouterr()
    assert main(list(words)) != 0
    lines = capsys.readouterr().err.splitlines()
    (line,) = lines[[line.startswith("reca ") for line in lines].index(True) :]
    return line


def sources_of(weights: Weights) -> dict[str, str]:
    """Source by role, as the workflow hands them to `reca base`."""
    return {"weights": str(weights.source), **weights.companions}


def import_base(family: str, network: Mapping[str, Any], weights: Weights, out: str) -> None:
    """`reca base` with the section and the words of the workflow's rule."""
    section = {"family": family, "network": network, "weights": asdict(weights)}
    inputs: list[str] = []
    if weights.kind == "source":
        inputs = [f"--input={role}=data/{name}" for role, name in sources_of(weights).items()]
    run("base", "--section", json.dumps(section), *inputs, "--out", out)


def same_weights(base: str, given: Any, new: tuple[str, ...] = ()) -> None:
    """Compare a base with a network; weights whose names start with `new` were started anew."""
    made, wanted = load_model(Path(base)).state_dict(), given.state_dict()
    assert made.keys() == wanted.keys()
    for key, tensor in made.items():  # released in bfloat16, or not
        if not key.startswith(new or "-"):
            torch.testing.assert_close(tensor.float(), wanted[key].float(), rtol=1e-2, atol=1e-2)


# ---- at scale tiny -------------------------------------------------------------------------------
class Shop:
    """All sources of models at scale tiny, fetched, and the bases that were made of them."""

    def __init__(self, offered: Mapping[str, Repository], networks: Networks) -> None:
        self.offered, self.networks = offered, networks
        self._bases: set[str] = set()

    def base(self, config: ModelConfig, network: Mapping[str, Any] | None = None) -> str:
        """The folder of the base model of a configuration, made once for all that are alike."""
        network = network or self.networks.section(config)
        out = f"bases/{sha256_json([config.family, network, asdict(config.weights)])[:16]}"
        if out not in self._bases:
            import_base(config.family, network, config.weights, out)
            self._bases.add(out)
        return out

    def published(self, experiment: str) -> list[str]:
        """The bases of an experiment, which may be results of another one, here that one's base."""
        found = []
        for config in at_scale(experiment).models.values():
            if config.weights.kind == "shipped":
                result = Path(str(config.weights.path))
                (earlier,) = self.published(result.parts[1].removesuffix("-tiny"))
                shutil.copytree(earlier, result, dirs_exist_ok=True)
            found.append(self.base(config, config.network))
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(tmp_path_factory.mktemp("shop"), monkeypatch)
        offered = repositories("tiny")
        with served(offered, monkeypatch) as hub:
            run("pin", *checkpoints.WRITERS)
            for name in checkpoints.WRITERS:
                run("fetch", name, "--out", f"data/{name}")
                assert fetched(name) == wanted(name, hub)
        yield Shop(offered, Networks("tiny"))


def fetched(source: str) -> set[str]:
    """The files that came with a source, without our records."""
    folder = Path("data") / source
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {"manifest.json", "run.json"}


def wanted(source: str, hub: Hub) -> set[str]:
    """The files of a repository that the catalogue names."""
    patterns = [file.path for file in SOURCES[source].files]
    files = hub.repositories[str(SOURCES[source].id)].files
    return {path for path in files if any(fnmatchcase(path, pattern) for pattern in patterns)}


def test_every_checkpoint_of_the_families_has_a_layout_here() -> None:
    models = {n: s for n, s in SOURCES.items() if s.kind == "hub" and s.repo == "model"}
    assert set(checkpoints.WRITERS) == {n for n, s in models.items() if FAMILIES & set(s.used_by)}
    used = {source for source, *_ in BASES}
    for _, model, _, changed in BASES:
        used |= set(replace(configured(model).weights, **changed).companions.values())
    assert used >= set(checkpoints.WRITERS), "every source is part of a base below"


@pytest.mark.parametrize(
    ("source", "model", "trained", "changed"),
    BASES,
    ids=["-".join((source, model, trained or "released")) for source, model, trained, _ in BASES],
)
def test_a_base_has_the_weights_of_its_sources(
    source: str, model: str, trained: str | None, changed: dict[str, Any], shop: Shop
) -> None:
    config = configured(model)
    config = replace(config, weights=replace(config.weights, source=source, **changed))
    starts = trained == "start"  # with SANA's own weights alone
    given = shop.networks.of(model, None if starts else trained)
    new = tuple(f"network.{name}" for name in STAGE_1) if starts else ()
    same_weights(shop.base(config), given, new)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_published_model_has_its_base(experiment: str, shop: Shop) -> None:
    assert all(Path(base, "reca_model.json").is_file() for base in shop.published(experiment))


@pytest.mark.parametrize("model", DRAWN)
def test_a_family_draws_from_its_hub(model: str, shop: Shop) -> None:
    config = configured(model)
    steps = [] if config.family == "janus" else ["--steps=2"]  # Janus samples every code by itself
    out = f"{model}.png"
    run("draw", "a red circle", "--model", shop.base(config), *steps, "--out", out)
    assert Image.open(out).size == (16, 16)


def test_every_start_of_the_hub_offers_the_same_bytes(shop: Shop) -> None:
    """Else a pin of one start would refuse the files of the next. One source of each way to write."""
    names = ("phi-1.5", "show-o-reca", "harmon-1.5b")
    script = (
        "import sys; from tests.hub.checkpoints import repository_of\n"
        "from tests.hub.networks import Networks; from tests.hub.server import sha\n"
        "networks = Networks('tiny')\n"
        "for name in sys.argv[1:]:\n"
        "    for path, data in repository_of(name, networks).items():\n"
        "        print(name, path, sha(data))"
    )
    command = [sys.executable, "-c", script, *names]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = {name: shop.offered[str(SOURCES[name].id)].files.items() for name in names}
    assert other.stdout.splitlines() == [
        f"{name} {path} {sha(data)}" for name, files in here.items() for path, data in files
    ]


# ---- tokenizers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("model", DRAWN)
def test_released_vocabularies_fit_the_released_networks(model: str, tmp_path: Path) -> None:
    config = configured(model)
    for name, data in TOKENIZERS[config.family](None).items():
        (tmp_path / name).write_bytes(data)
    parse = importlib.import_module(f"reca.models.{config.family}.config").parse
    front_end = importlib.import_module(f"reca.models.{config.family}.text").TextFrontEnd
    front_end.read(tmp_path, parse(config.network)[0])  # its check raises ValueError


# ---- pins ------------------------------------------------------------------------------------------
def test_a_pin_is_written_once_and_what_changed_since_is_refused(
    site: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = Repository.of({"model.pth": b"weights", "README.md": b""})
    site.repositories[str(SOURCES[SMALL].id)] = repository
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
