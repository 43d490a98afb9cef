"""`sources.yaml`, the lock, and fetching through a hub, plain addresses and a mirror folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from reca.sources.fetch import Endpoints, fetch, forget, pin
from reca.sources.parts import Policy
from tests.hub.client import served
from tests.hub.server import Hub, Repository, sha
from tests.loopback_server import Handler, Server

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "config" / "sources.yaml"
NAME = "owner/name"
FAST = Policy(connect_seconds=2, read_seconds=2, attempts=2, backoff_seconds=0.01)
REPOSITORY = {
    "config.json": b'{"hidden_size": 8}',
    "model.safetensors": b"weights" * 1000,
    "sub/data-0.parquet": b"rows" * 50,
    "remote_code.py": b"print('never fetched')",
}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.script, server.requests = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served({NAME: Repository.of(REPOSITORY)}, monkeypatch) as server:
        yield server


@pytest.fixture
def repository(hub: Hub) -> Repository:
    """The repository of `HUB_ENTRY`."""
    return hub.repositories[NAME]


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
        forget(name, records, work=self.root / "work")  # as the command does
        return arrived

    def pin(self, *names: str, **more: object) -> None:
        pin(names or ["model"], **{**self.way, **more})


HUB_ENTRY: dict[str, object] = {
    "kind": "hub",
    "id": NAME,
    "files": ["config.json", "*.safetensors", "*.parquet"],
}
WANTED = {name: data for name, data in REPOSITORY.items() if not name.endswith(".py")}


@pytest.fixture
def house(tmp_path: Path, hub: Hub) -> House:
    return House(tmp_path, hub).write(model=HUB_ENTRY)
