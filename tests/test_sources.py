"""`sources.yaml`, the lock, and fetching through a hub, plain addresses and a mirror folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml

from reca import sources as sources_module
from reca.catalogue import load_sources
from reca.downloads import Policy
from reca.sources import Endpoints, fetch, list_sources, pin, read_lock, resolved

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = ROOT / "config" / "sources.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAST = Policy(connect_seconds=2, read_seconds=2, attempts=2, backoff_seconds=0.01)
REPOSITORY = {
    "config.json": b'{"hidden_size": 8}',
    "model.safetensors": b"weights" * 1000,
    "sub/data-0.parquet": b"rows" * 50,
    "remote_code.py": b"print('never fetched')",
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """A hub with one repository; large files (not json) are in LFS, as on the real one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files, self.commit = dict(REPOSITORY), COMMIT
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            item: dict[str, object] = {
                "rfilename": name,
                "size": len(data),
                "blobId": blob(data),
            }
            if not name.endswith((".json", ".py")):
                item["lfs"] = {"sha256": sha(data), "size": len(data), "pointerSize": 130}
            siblings.append(item)
        return {"id": "owner/name", "sha": self.commit, "siblings": siblings, "tags": []}


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if re.fullmatch(r"/api/(models|datasets)/owner/name(/revision/\w+)?", path):
            self.answer(json.dumps(self.server.listing()).encode(), "application/json")
            return
        found = re.fullmatch(
            r"/(?:datasets/)?owner/name/(?:resolve/)?([0-9a-f]{40})/(?P<file>.+)", path
        )
        data = self.server.files.get(found["file"]) if found else None
        if data is None or (found and found[1] != self.server.commit):
            self.send_error(404)
            return
        self.answer(data, "application/octet-stream")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep pytest's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class House:
    """A folder with its own sources.yaml, lock and work folder."""

    def __init__(self, root: Path, hub: Hub | None = None) -> None:
        self.root = root
        self.paths = {"sources": root / "sources.yaml", "lock": root / "sources.lock"}
        address = hub.url if hub else "http://127.0.0.1:9"
        self.way = {
            **self.paths,
            "work": root / "work",
            "endpoints": Endpoints(hub=address, git_raw=address),
            "policy": FAST,
        }

    def write(self, **entries: dict[str, object]) -> House:
        common = {"licence": "MIT", "used_by": ["test"], "revision": None}
        document = {"sources": {name: common | entry for name, entry in entries.items()}}
        self.paths["sources"].write_text(yaml.safe_dump(document))
        return self

    def fetch(self, name: str = "model", **more: object) -> dict[str, bytes]:
        """What arrived, after checking that the records say the same."""
        out = self.root / "out"
        records = fetch(name, out, **{**self.way, **more})
        arrived = {r.path: (out / r.path).read_bytes() for r in records}
        assert [(r.sha256, r.bytes) for r in records] == [
            (sha(data), len(data)) for data in arrived.values()
        ]
        everything = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        assert everything == set(arrived)
        return arrived

    def pin(self, *names: str, **more: object) -> None:
        pin(names or ["model"], **{**self.way, **more})


HUB_ENTRY: dict[str, object] = {
    "kind": "hub",
    "id": "owner/name",
    "files": ["config.json", "*.safetensors", "*.parquet"],
}
WANTED = {name: data for name, data in REPOSITORY.items() if not name.endswith(".py")}


@pytest.fixture
def house(tmp_path: Path, hub: Hub) -> House:
    return House(tmp_path, hub).write(model=HUB_ENTRY)


# ---- the catalogue of the paper ------------------------------------------------------------------
def raw_entries() -> dict[str, dict[str, object]]:
    return yaml.safe_load(CATALOGUE.read_text())["sources"]


@pytest.mark.parametrize("name", sorted(raw_entries()))
def test_every_entry_states_origin_revision_and_licence(name: str) -> None:
    entry = raw_entries()[name]
    assert entry["kind"] in ("hub", "url", "git-raw", "mirror")
    assert str(entry["licence"]).strip()
    assert "revision" in entry, "an unknown revision is written as null, never left out"
    revision = entry["revision"]
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}", str(revision))
    if entry["kind"] == "git-raw":
        assert revision is not None
    text = json.dumps(entry["files"])
    assert not re.search(r"/(main|master|latest|HEAD)/", text)


def test_catalogue_loads_and_names_every_family() -> None:
    known = load_sources(CATALOGUE)
    ids = {source.id for source in known.values()}
    for needed in (
        "brivangl/midjourney-v6-llava",
        "BLIP3o/BLIP3o-60k",
        "jackyhate/text-to-image-2M",
        "liuhaotian/LLaVA-Instruct-150K",
        "showlab/show-o-w-clip-vit-512x512",
        "showlab/magvitv2",
        "sanaka87/Show-o-512x512-RecA",
        "wusize/harmon",
        "sanaka87/Harmon-1.5B-RecA",
        "wusize/openuni",
        "sanaka87/OpenUni-RecA",
        "ByteDance-Seed/BAGEL-7B-MoT",
        "sanaka87/BAGEL-RecA",
        "deepseek-ai/Janus-Pro-7B",
        "deepseek-community/Janus-Pro-1B",
        "facebook/mask2former-swin-small-coco-instance",
        "stepfun-ai/GEdit-Bench",
    ):
        assert needed in ids
    assert {"llava-images-coco", "llava-images-ocr-vqa", "reconstruction-prompts"} <= set(known)


def test_no_remote_code_is_ever_fetched() -> None:
    for source in load_sources(CATALOGUE).values():
        if source.kind == "hub" and source.repo == "model":
            for file in source.files:
                assert file.path != "*" and not file.path.endswith(".py"), source.name


def test_unpinned_and_pinned_entries_are_told_apart(tmp_path: Path) -> None:
    pinned = {s.source.name: s.pinned for s in list_sources(sources=CATALOGUE, lock=tmp_path / "l")}
    assert pinned["geneval"] and pinned["wise"] and pinned["dpg-questions"]
    assert not pinned["magvitv2"] and not pinned["midjourney-v6-llava"]


def benchmark_mirror() -> Path:
    named = os.environ.get("RECA_BENCHMARK_MIRROR")
    folder = Path(named) if named else ROOT.parent / "shared" / "benchmarks" / "data"
    if not folder.is_dir():
        pytest.skip("no benchmark mirror: set RECA_BENCHMARK_MIRROR to a folder that holds one")
    return folder


def test_the_mirror_gives_every_pinned_benchmark_file(tmp_path: Path) -> None:
    mirror = benchmark_mirror()
    house = House(tmp_path)
    house.way["sources"] = CATALOGUE
    expected = 0
    for name, source in load_sources(CATALOGUE).items():
        if all(file.sha256 for file in source.files):
            expected += len(source.files)
            out = tmp_path / "out" / name
            records = fetch(name, out, **house.way, mirror=mirror)  # type: ignore[arg-type]
            assert [r.sha256 for r in records] == [file.sha256 for file in source.files]
            assert all(r.via == "mirror" and str(mirror) not in r.url for r in records)
    assert expected == 22, "the rows of the mirror's own table"


# ---- sources.yaml: errors in one line ------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "ftp"}, r"sources\.model\.kind: 'ftp' is not allowed: use one of hub, url"),
        ({"revision": "main"}, r"model\.revision: 'main' is not allowed: use null or 40"),
        ({"licence": " "}, r"model\.licence: ' ' is not allowed"),
        ({"licence": None}, r"model\.licence: None is not allowed here: use str"),
        ({"used_by": []}, r"model\.used_by: \[\] is not allowed"),
        ({"id": "no-owner"}, r"model\.id: 'no-owner' is not allowed: use owner/name"),
        ({"id": None}, r"model\.id"),
        ({"colour": 1}, r"model\.colour: unknown key; allowed are certainty"),
        ({"files": []}, r"model\.files: \[\] is not allowed: list at least one"),
        ({"files": ["../x"]}, r"model\.files\[0\]: file name '\.\./x' is refused"),
        ({"files": ["a", "A"]}, r"files\[1\]: a second file would be saved as 'a'"),
        ({"files": [{"path": "a", "sha256": "abc"}]}, r"files\[0\]\.sha256: 'abc' is not allowed"),
        ({"files": [{"path": "a", "bytes": "9"}]}, r"files\[0\]\.bytes: '9' is not allowed"),
        ({"files": [{"path": "a", "bytes": True}]}, r"files\[0\]\.bytes: True is not allowed"),
        ({"files": [{"path": "a", "bytes": -1}]}, r"files\[0\]\.bytes: -1 is not allowed"),
        ({"files": [{"path": "*", "sha256": "0" * 64}]}, r"files\[0\]\.path: '\*' is not allowed"),
        ({"kind": "git-raw", "files": ["*.json"]}, r"files\[0\]\.path: '\*\.json' is not allowed"),
        ({"kind": "url"}, r"files\[0\]\.url: missing"),
        ({"kind": "url", "files": [{"url": "http://a.org/f"}]}, r"files\[0\]: .* only https"),
    ],
)
def test_wrong_entries(tmp_path: Path, change: dict[str, object], says: str) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY | change)
    with pytest.raises(ValueError, match=says) as caught:
        load_sources(house.paths["sources"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(house.paths["sources"]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sources: [", "not valid YAML"),
        ("sources: 3", "expected a mapping"),
        ("sources: {a: 3}", r"sources\.a: expected a mapping, found 3"),
        ("sources: {Bad_Name: {}}", "a name holds lower-case"),
        ("sources: {a: {kind: hub, kind: url}}", "'kind' occurs twice"),
        ("sources: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_wrong_documents(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        load_sources(path)
    assert "\n" not in str(caught.value)


def test_missing_document_and_unknown_name(tmp_path: Path, house: House) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        load_sources(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"no source 'other'; `reca sources`"):
        house.fetch("other")


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
    house.write(model=HUB_ENTRY | {"repo": "dataset"}).pin()
    assert house.fetch() == WANTED
    assert any(p.startswith("/api/datasets/") for p in hub.requests)
    assert any(p.startswith("/datasets/owner/name/resolve/") for p in hub.requests)


def test_what_is_pinned_stays_until_update(house: House, hub: Hub) -> None:
    house.pin()
    before = house.paths["lock"].read_bytes()
    hub.commit = COMMIT[::-1]
    hub.files["model.safetensors"] = b"retrained"
    house.pin()
    assert house.paths["lock"].read_bytes() == before
    with pytest.raises(ValueError, match="404"):
        house.fetch()
    house.pin(update=True)
    assert house.fetch()["model.safetensors"] == b"retrained"


def test_content_that_changed_under_the_commit_is_refused(house: House, hub: Hub) -> None:
    house.pin()
    hub.files["model.safetensors"] = b"WEIGHTS" * 1000
    with pytest.raises(ValueError, match=r"model\.safetensors: sha256 is"):
        house.fetch()
    assert not (house.root / "out").exists(), "nothing arrives before everything is there"


def test_interrupted_fetch_keeps_what_it_had(house: House, hub: Hub) -> None:
    house.pin()
    spoilt = hub.files.pop("sub/data-0.parquet")
    with pytest.raises(ValueError, match="404"):
        house.fetch()
    hub.files["sub/data-0.parquet"] = spoilt
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


def test_hub_names_that_leave_the_folder_are_refused(house: House, hub: Hub) -> None:
    hub.files["../../evil.safetensors"] = b"x"
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil\.safetensors' is refused"):
        house.pin()


def test_stated_revision_must_be_what_the_hub_gives(house: House, hub: Hub) -> None:
    house.write(model=HUB_ENTRY | {"revision": "f" * 40})
    with pytest.raises(ValueError, match="asked for ffff"):
        house.pin()
    hub.commit = "main"
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


def test_work_folder_on_another_file_system(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.pin()
    plain = os.replace

    def crossing(source: Path, target: Path) -> None:
        if "work" in Path(source).parts and "out" in Path(target).parts:
            raise OSError(sources_module.errno.EXDEV, "Invalid cross-device link")
        plain(source, target)

    monkeypatch.setattr(sources_module.os, "replace", crossing)
    assert house.fetch() == WANTED
    assert not [p for p in (house.root / "work").rglob("*") if p.is_file()]
