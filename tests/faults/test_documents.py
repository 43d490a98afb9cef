"""Hostile JSON and YAML at every place where one is read: a value or one line that names the file."""

from __future__ import annotations

import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reca.align.log import truncate
from reca.commands.inputs import read_section
from reca.config import compose
from reca.core.artifacts import read_json, read_manifest
from reca.core.lineage import audit
from reca.data.formats import open_dataset
from reca.evaluation.judges.ledger import Ledger
from reca.inference.imageset import ImageSet
from reca.inference.resume import ResumableImages, ResumableRows
from reca.models import checkpoint_io
from reca.models.registry import load_model
from reca.sources.catalogue import load_sources
from reca.sources.fetch import read_lock
from tests.data.test_tar import add, png
from tests.faults.damage import damaged

ROOT = Path(__file__).resolve().parents[2]
LINES = 20_000

JSON = {
    "nothing": b"", "blank": b" \n", "null": b"null", "number": b"7", "text": b'"a"', "list": b"[]", "object": b"{}",
    "list of null": b"[null]", "list of numbers": b"[1, 2]", "text for a list": b'{"files": "a", "outputs": []}',
    "deep list": b"[" * LINES + b"]" * LINES, "deep object": b'{"a":' * LINES + b"1" + b"}" * LINES,
    "open list": b"[" * 200_000, "long number": b"[" + b"9" * 5000 + b"]", "huge exponent": b"[1e999999]",
    "nan": b"[NaN, Infinity, -Infinity]", "key twice": b'{"a": 1, "a": 2}', "half": b'{"seal": "',
    "byte order mark": b"\xef\xbb\xbf{}", "utf-16": '{"a": 1}'.encode("utf-16"), "not utf-8": b'{"a": "\xff"}',
    "surrogate": b'{"a": "\\ud800"}', "control letters": b'{"a": "\x00\x01"}', "code": b"__import__('os')",
    "page": b"<!doctype html><title>404</title>", "long text": b'{"a": "' + b"x" * 2_000_000 + b'"}',
}  # fmt: skip
YAML = {
    **JSON,
    "aliases": b"\n".join(
        [b"a: &a [x, x]", *(b"%c: &%c [%s]" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in b"abcdefgh")]
    ),
    "endless alias": b"a: &a [*a]", "python object": b"!!python/object/apply:os.system ['true']",
    "python name": b"a: !!python/name:os.system", "environment": b"a: ${oc.env:HOME}", "list as key": b"? [1]\n: 2",
    "two documents": b"--- 1\n--- 2", "no date": b"a: 2020-13-45", "no mapping": b"- a\n- b",
}  # fmt: skip


# ---- places ------------------------------------------------------------------------------------
def of_tar(folder: Path, data: bytes) -> None:
    with tarfile.open(folder / "shard.tar", "w") as archive:
        add(archive, "0.png", png(0))
        add(archive, "0.json", data)
    open_dataset("tar", folder)[0]


def of_picture_set(folder: Path, data: bytes) -> None:
    with tarfile.open(folder / "set.tar", "w") as archive:
        add(archive, "a/0000.png", png(0))
        add(archive, "a/0000.json", data)
    ImageSet(folder / "set.tar").recipe("a", 0)


def of_sidecar(folder: Path, data: bytes) -> None:
    (folder / "shard.png").write_bytes(png(0))
    (folder / "shard.json").write_bytes(data)
    open_dataset("folder", folder)[0]


def of_kept_picture(folder: Path, data: bytes) -> None:
    from reca.inference.imageset import Entry

    (folder / "a").mkdir()
    (folder / "a/0000.json").write_bytes(data)
    assert not ResumableImages(folder).has(Entry("a", 0), {"seed": 1})


def of_experiment(folder: Path, data: bytes) -> None:
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "config/experiment/shard.yaml").write_bytes(b"# @package _global_\n" + data)
    compose.load("shard", config_dir=folder / "config")


def at(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
    """A place that is one file of this name."""

    def place(folder: Path, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        read(path)

    return place


def truncated(path: Path) -> None:
    truncate(path, 1, complete=False)


PLACES = {
    "record": at("shard.json", read_json),
    "manifest": at("shard/manifest.json", lambda path: read_manifest(path.parent)),
    "audit": at("shard/manifest.json", lambda path: audit([path.parent])),
    "model": at("shard/reca_model.json", lambda path: load_model(path.parent)),
    "index of weights": at("shard.safetensors.index.json", checkpoint_io.load_checkpoint),
    "conversations": at("shard.json", lambda path: open_dataset("llava", path)),
    "sidecar of a picture": of_sidecar,
    "sidecar in a tar": of_tar,
    "recipe of a picture": of_picture_set,
    "sidecar of kept work": of_kept_picture,
    "kept rows": at("shard.jsonl", ResumableRows),
    "step log": at("shard.jsonl", truncated),
    "ledger": at("shard.jsonl", Ledger),
    "lock of sources": at("shard.lock", read_lock),
    "section": at("shard.json", lambda path: read_section(f"@{path}")),
}
YAML_PLACES = {"sources": at("shard.yaml", load_sources), "experiment": of_experiment}


def check(
    campaign, place: Callable[[Path, bytes], object], folder: Path, name: str, data: bytes
) -> None:
    folder.mkdir()
    with campaign.case(name):
        started = time.monotonic()
        try:
            place(folder, data)
        except ValueError as error:
            text = str(error)
            assert any(word in text for word in ("shard", "set.tar", "--section")), (
                f"names no file: {text[:300]}"
            )
            assert len(text) < 1500 and text.count("\n") < 2, text[:300]
        assert time.monotonic() - started < 5
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", PLACES)
def test_hostile_json_is_a_value_or_one_line(tmp_path, campaign, place):
    for name, data in JSON.items():
        check(campaign, PLACES[place], tmp_path / "case", name, data)
    seed = json.dumps({"a": [1, {"b": "text"}], "files": {"x": {"sha256": "0" * 64}}}).encode()
    for rng in campaign.draws(10, full=500):
        check(campaign, PLACES[place], tmp_path / "case", "damaged", damaged(seed, rng))


@pytest.mark.parametrize("place", YAML_PLACES)
def test_hostile_yaml_is_a_value_or_one_line(tmp_path, campaign, place):
    chosen = (
        YAML
        if campaign.full
        else {name: YAML[name] for name in [*list(YAML)[-9:], "deep list", "long number"]}
    )
    for name, data in chosen.items():
        check(campaign, YAML_PLACES[place], tmp_path / "case", name, data)
    seed = (ROOT / "config/experiment/laptop_smoke.yaml").read_bytes()
    for rng in campaign.draws(3, full=60):
        check(campaign, YAML_PLACES[place], tmp_path / "case", "damaged", damaged(seed, rng))
