"""Pinning, the lock and mirrors, against a hub on the loopback interface."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import lock_descriptor

from reca.cli import main
from reca.core import artifacts
from reca.sources import fetch as sources_module
from reca.sources.catalogue import SourceFile
from reca.sources.fetch import _Way, fetch, forget, list_sources, read_lock, resolved
from tests.hub.server import COMMIT, Hub, Repository, blob, sha
from tests.sources.conftest import FAST, HUB_ENTRY, NAME, REPOSITORY, WANTED, House


# ---- pinning -------------------------------------------------------------------------------------
def test_unpinned_is_refused_without_a_request(house: House, hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"model is not pinned .*`reca pin model`"):
        house.fetch()
    assert hub.requests == []
    assert not (house.root / "out").exists()


def test_unpinned_on_demand(house: House, caplog: pytest.LogCaptureFixture) -> None:
    assert house.fetch(allow_unpinned=True) == WANTED
    assert "taken on trust" in caplog.text


def test_pin_then_fetch(house: House, hub: Hub) -> None:
    house.pin()
    locked = read_lock(house.paths["lock"])["model"]
    assert locked["revision"] == COMMIT
    assert {f["path"]: (f["sha256"], f["bytes"]) for f in locked["files"]} == {
        name: (sha(data), len(data)) for name, data in WANTED.items()
    }
    assert not any(p.endswith(".safetensors") for p in hub.requests), "LFS hashes come by listing"
    assert house.fetch() == WANTED
    assert not any(p.endswith(".py") for p in hub.requests)
    assert all(status.pinned for status in list_sources(**house.paths))


def test_dataset_repositories_have_their_own_addresses(house: House, hub: Hub) -> None:
    hub.repositories = {f"datasets/{NAME}": hub.repositories[NAME]}
    house.write(model=HUB_ENTRY | {"repo": "dataset"}).pin()
    assert house.fetch() == WANTED
    assert any(p.startswith("/api/datasets/") for p in hub.requests)
    assert any(p.startswith("/datasets/owner/name/resolve/") for p in hub.requests)


def test_what_is_pinned_stays_until_update(house: House, repository: Repository) -> None:
    house.pin()
    before = house.paths["lock"].read_bytes()
    repository.commit(COMMIT[::-1], {"model.safetensors": b"retrained"})
    house.pin()
    assert house.paths["lock"].read_bytes() == before
    assert house.fetch() == WANTED, "the pinned commit, not the new one"
    repository.squash()
    shutil.rmtree(house.root / "out")
    with pytest.raises(ValueError, match=f"no revision {COMMIT} .*--update"):
        house.fetch()
    house.pin(update=True)
    assert house.fetch()["model.safetensors"] == b"retrained"


def test_content_that_changed_under_the_commit_is_refused(
    house: House, repository: Repository
) -> None:
    house.pin()
    repository.files["model.safetensors"] = b"WEIGHTS" * 1000
    with pytest.raises(ValueError, match=r"model\.safetensors: sha256 is"):
        house.fetch()
    assert not (house.root / "out").exists(), "nothing arrives before everything is there"


def test_interrupted_fetch_keeps_what_it_had(
    house: House, hub: Hub, repository: Repository
) -> None:
    house.pin()
    spoilt = repository.files.pop("sub/data-0.parquet")
    with pytest.raises(ValueError, match="404"):
        house.fetch(policy=replace(FAST, files=1))
    repository.files["sub/data-0.parquet"] = spoilt
    hub.requests.clear()
    assert house.fetch() == WANTED
    assert [Path(p).name for p in hub.requests] == ["data-0.parquet"]


def test_missing_files_and_empty_patterns_fail(house: House) -> None:
    house.write(model=HUB_ENTRY | {"files": ["absent.bin"]})
    with pytest.raises(ValueError, match=r"owner/name holds no file 'absent\.bin'"):
        house.pin()
    house.write(model=HUB_ENTRY | {"files": ["*.gguf", "*.onnx"]})
    with pytest.raises(ValueError, match=r"holds no file that matches \*\.gguf, \*\.onnx"):
        house.pin()
    assert not house.paths["lock"].exists()


def test_hub_names_that_leave_the_folder_are_refused(house: House, repository: Repository) -> None:
    repository.files["../../evil.safetensors"] = b"x"
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil\.safetensors' is refused"):
        house.pin()


def test_stated_revision_must_be_what_the_hub_gives(house: House, repository: Repository) -> None:
    house.write(model=HUB_ENTRY | {"revision": "f" * 40})
    with pytest.raises(ValueError, match=r"no revision ffff.* correct `revision`"):
        house.pin()
    repository.commit("main", {})
    house.write(model=HUB_ENTRY)
    with pytest.raises(ValueError, match="no commit, but 'main'"):
        house.pin()


def test_no_hub_is_one_clear_line(tmp_path: Path, hub: Hub) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY)
    with pytest.raises(ValueError, match=r"model: cannot list owner/name .* mirror folder") as why:
        house.pin()
    assert "\n" not in str(why.value)


def test_token_from_the_environment_is_sent_and_never_kept(
    house: House, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="reca")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    house.pin()
    house.fetch()
    assert {token and token.lower() for token in hub.tokens} == {"bearer hf_canary"}
    assert "canary" not in caplog.text + house.paths["lock"].read_text()


def test_git_raw_and_plain_addresses(house: House, hub: Hub) -> None:
    data = REPOSITORY["config.json"]
    raw = {"kind": "git-raw", "id": "owner/name", "revision": COMMIT}
    house.write(
        blob=raw | {"files": [{"path": "config.json", "git_blob": blob(data)}]},
        open=raw | {"files": ["config.json"]},
        plain={
            "kind": "url",
            "files": [{"url": f"{hub.url}/owner/name/{COMMIT}/config.json", "save_as": "c.json"}],
        },
    )
    assert house.fetch("blob") == {"config.json": data}
    with pytest.raises(ValueError, match="not pinned"):
        house.fetch("plain")
    house.pin("open", "plain")
    (house.root / "out" / "config.json").unlink()
    assert house.fetch("plain") == {"c.json": data}
    (house.root / "out" / "c.json").unlink()
    assert house.fetch("open") == {"config.json": data}


# ---- the lock ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "other/name"}, "another origin"),
        ({"revision": "f" * 40}, "another origin"),
        ({"files": ["config.json"]}, "is not in sources.yaml"),
        ({"files": ["*", "extra.json"]}, r"extra\.json is missing"),
        ({"files": ["*", {"path": "config.json", "sha256": "0" * 64}]}, "sha256 of config.json"),
    ],
)
def test_lock_that_contradicts_the_catalogue(
    house: House, change: dict[str, object], says: str
) -> None:
    house.pin()
    house.write(model=HUB_ENTRY | change)
    with pytest.raises(ValueError, match=f"{says}.*; run `reca pin model --update`"):
        resolved("model", **house.paths)


def test_damaged_locks(house: House) -> None:
    house.pin()
    lock = house.paths["lock"]
    good = json.loads(lock.read_text())
    for spoil, says in (
        (lambda d: d["sources"]["model"]["files"][0].update(sha256=None), "no sha256"),
        (lambda d: d["sources"]["model"]["files"][0].update(save_as="../x"), r"'\.\./x'"),
        (lambda d: d["sources"]["model"].pop("files"), "damaged"),
        (lambda d: d["sources"]["model"].update(files=[]), "damaged"),
        (lambda d: d.update(version=99), "not a lock of version 1"),
    ):
        document = json.loads(json.dumps(good))
        spoil(document)
        lock.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=says):
            resolved("model", **house.paths)
    lock.write_text("{")
    with pytest.raises(ValueError, match=r"sources\.lock: not valid JSON"):
        resolved("model", **house.paths)


def test_lock_is_written_source_by_source(house: House, hub: Hub) -> None:
    house.write(model=HUB_ENTRY, broken=HUB_ENTRY | {"files": ["absent"]})
    with pytest.raises(ValueError, match="absent"):
        house.pin("model", "broken")
    assert list(read_lock(house.paths["lock"])) == ["model"]


def test_two_pins_at_a_time_are_both_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.write(model=HUB_ENTRY, other=HUB_ENTRY)
    pin_file = sources_module._pin_file

    def slow(way: _Way, file: SourceFile) -> SourceFile:
        if way.source.name == "model" and not read_lock(house.paths["lock"]):
            house.pin("other")  # begins and ends during the downloads of the first
        return pin_file(way, file)

    monkeypatch.setattr(sources_module, "_pin_file", slow)
    house.pin()
    assert sorted(read_lock(house.paths["lock"])) == ["model", "other"]


def test_who_writes_the_lock_is_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(path: Path, document: object) -> None:
        with house.paths["sources"].open("r+b") as file:
            written.append(lock_descriptor(file.fileno(), blocking=False))

    monkeypatch.setattr(sources_module, "write_json", write)
    house.pin()
    assert written == [False], "another process has to wait"


# ---- mirrors -------------------------------------------------------------------------------------
def mirror_with(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / "mirror" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "mirror" / name).write_bytes(data)
    return root / "mirror"


def test_mirror_by_name_and_by_content(house: House, hub: Hub) -> None:
    house.pin()
    mirror = mirror_with(
        house.root,
        {
            "model/config.json": REPOSITORY["config.json"],
            "model/sub/data-0.parquet": REPOSITORY["sub/data-0.parquet"],
            "elsewhere/renamed.bin": REPOSITORY["model.safetensors"],
            "elsewhere/same_size.bin": b"x" * len(REPOSITORY["model.safetensors"]),
        },
    )
    hub.requests.clear()
    assert house.fetch(mirror=mirror) == WANTED
    assert hub.requests == []


def test_mirror_with_a_wrong_file_is_not_forgiven(house: House, hub: Hub) -> None:
    house.pin()
    mirror = mirror_with(house.root, {"model/model.safetensors": b"x"})
    with pytest.raises(ValueError, match=r"mirror/model/model\.safetensors: bytes is 1"):
        house.fetch(mirror=mirror)
    assert not (house.root / "out").exists()
    assert not list((house.root / "work").rglob("model.safetensors*"))


def test_mirror_that_lacks_a_file_leaves_it_to_the_network(house: House) -> None:
    house.pin()
    mirror = mirror_with(house.root, {"model/config.json": REPOSITORY["config.json"]})
    assert house.fetch(mirror=mirror) == WANTED
    with pytest.raises(ValueError, match="no such mirror folder"):
        house.fetch(mirror=house.root / "absent")


def test_offline_site_pins_and_fetches_from_its_mirror(tmp_path: Path) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY)
    mirror = mirror_with(tmp_path, {f"model/{name}": data for name, data in REPOSITORY.items()})
    house.pin(mirror=mirror)
    assert read_lock(house.paths["lock"])["model"]["revision"] is None
    assert house.fetch(mirror=mirror) == WANTED
    with pytest.raises(ValueError, match="no revision is pinned"):
        fetch("model", tmp_path / "again", **house.way)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (["d-00000-of-00003.parquet", "d-00002-of-00003.parquet"], "00001"),
        (["d-00000-of-00040.parquet"], "00001, 00002, 00003, 00004, ..."),
        (["m-00001-of-00003.safetensors", "m-00002-of-00003.safetensors"], "00003"),
        (["m-00002-of-00002.safetensors"], "00001"),
        (
            ["m-00001-of-00002.bin", "m-00002-of-00002.bin", "m-00001-of-00002.safetensors"],
            "00002",
        ),
    ],
)
def test_half_copied_mirror_is_not_pinned(tmp_path: Path, held: list[str], missing: str) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY | {"files": ["*"]})
    mirror = mirror_with(tmp_path, {f"model/sub/{name}": b"x" for name in held})
    with pytest.raises(ValueError, match=f"model: .*mirror/model has .* missing: {missing}; copy"):
        house.pin(mirror=mirror)
    assert not house.paths["lock"].exists()
    house.write(model=HUB_ENTRY | {"files": ["sub/[dm]-0000[02]-*"]})
    if held[-1].startswith("d-00002"):  # all that this entry wants
        house.pin(mirror=mirror)


def test_whole_sets_of_a_mirror_are_pinned(tmp_path: Path) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY)
    held = [f"a-{n:05d}-of-00002-{n}f.parquet" for n in (0, 1)]
    held += [f"w-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    held += ["b-00000-of-00001.parquet", "w-00001-of-00001.safetensors", "config.json"]
    held += ["unread-00000-of-00009.txt"]
    house.pin(mirror=mirror_with(tmp_path, {f"model/{name}": b"x" for name in held}))
    assert len(read_lock(house.paths["lock"])["model"]["files"]) == 7


def test_mirror_only_source_says_where_to_put_the_file(tmp_path: Path) -> None:
    entry = {
        "kind": "mirror",
        "files": [{"path": "judge.json", "sha256": sha(b"{}")}],
        "note": "strings of x.py",
    }
    house = House(tmp_path).write(judge=entry)
    with pytest.raises(ValueError, match=r"put it there as judge/judge\.json \(strings of x\.py"):
        house.fetch("judge")
    mirror = mirror_with(tmp_path, {"judge/judge.json": b"{}"})
    assert house.fetch("judge", mirror=mirror) == {"judge.json": b"{}"}


# ---- from the work folder to the output ----------------------------------------------------------
def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_was_fetched_stays_until_it_is_forgotten(house: House, hub: Hub) -> None:
    house.pin()
    fetch("model", house.root / "out", **house.way)  # type: ignore[arg-type]
    shutil.rmtree(house.root / "out")
    hub.requests.clear()
    records = fetch("model", house.root / "out", **house.way)  # type: ignore[arg-type]
    assert hub.requests == [] and {record.via for record in records} == {"present"}
    kept = house.root / "work/model/model.safetensors"
    assert kept.samefile(house.root / "out/model.safetensors"), "a link needs no room"
    forget("model", records, work=house.root / "work")
    assert not names(house.root / "work") and len(names(house.root / "out")) == len(WANTED)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, None], ids=["ctrl-c", "to the end"])
def test_an_interruption_of_the_last_step_costs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    house = House(tmp_path / "config").write(model=HUB_ENTRY)
    mirror = mirror_with(tmp_path, {f"model/{name}": data for name, data in WANTED.items()})
    house.pin(mirror=mirror, work=tmp_path / "pinned")
    hashes = artifacts.describe_files

    def hashed(folder: Path) -> object:
        if stop and ".partial-" in folder.name:
            raise stop
        return hashes(folder)

    monkeypatch.setattr(artifacts, "describe_files", hashed)
    code = main(["fetch", "model", "--out", "data/model", "--mirror", "mirror"])
    wanted = {Path(name).name for name in WANTED}
    assert code == (130 if stop else 0)
    assert names(tmp_path / "work/downloads") == (wanted if stop else set())
    assert wanted.isdisjoint(names(tmp_path / "data")) == bool(stop)


def test_work_folder_on_another_file_system(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.pin()

    def crossing(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", crossing)
    assert house.fetch() == WANTED
    assert not names(house.root / "work")
    shutil.rmtree(house.root / "out")
    used = shutil.disk_usage(house.root)
    free = {"out": 17}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: used._replace(free=free.get(path.name, used.free))
    )
    with pytest.raises(OSError, match=r"disk full: 18 bytes needed, 17 free"):
        house.fetch()
    assert len(names(house.root / "work")) == len(WANTED)
