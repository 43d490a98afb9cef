"""`sources.yaml`, the lock, and fetching through a hub, plain addresses and a mirror folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml

from reca.sources.download import Policy
from reca.sources.fetch import Endpoints, fetch, pin

ROOT = Path(__file__).resolve().parents[2]
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
