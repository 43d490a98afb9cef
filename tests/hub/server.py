"""A hub on the loopback host that speaks the real one's HTTP, so that `huggingface_hub` itself talks to it.

Repositories have commits, a branch `main` that moves, a gate, and former names. Small text files come by a redirect
within the hub, all others lie in LFS: their address redirects to a store on another host, which takes ranges and
refuses tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.loopback_server import LoopbackHandler, LoopbackServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "signed-canary"  # in the store's addresses, which grant access by themselves
PAGE = 50  # entries of a tree per page
SMALL = (".json", ".jsonl", ".py", ".txt", ".md", ".jinja")  # endings that are not in LFS
KINDS = {
    "models": "",
    "datasets": "datasets/",
}  # in addresses of the API, and before an id elsewhere


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def in_lfs(name: str) -> bool:
    return not name.endswith(SMALL)


@dataclass
class Repository:
    """Files by commit; where it is `gated`, only `accepted` tokens get files, but all see their names."""

    commits: dict[str, dict[str, bytes]]
    main: str = COMMIT
    gated: bool = False
    accepted: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, files: Mapping[str, bytes], **more: Any) -> Repository:
        return cls({COMMIT: dict(files)}, **more)

    @property
    def files(self) -> dict[str, bytes]:
        """The files at the tip of `main`."""
        return self.commits[self.main]

    def commit(self, name: str, changes: Mapping[str, bytes | None]) -> None:
        """Move `main` to a new commit; None deletes a file."""
        tree = {**self.files, **changes}
        self.commits[name] = {path: data for path, data in tree.items() if data is not None}
        self.main = name

    def squash(self) -> None:
        """Forget every commit but the tip of `main`."""
        self.commits = {self.main: self.files}


class Hub(LoopbackServer):
    """Repositories by id, those of data sets with `datasets/` before it, and ways in which answers go wrong."""

    def __init__(self, repositories: Mapping[str, Repository], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), HubHandler)
        self.repositories: dict[str, Repository] = dict(repositories)
        self.moved: dict[str, str] = {}  # former id -> id
        self.requests: list[str] = []  # paths that were read, the store's left out
        self.tokens: set[str | None] = set()  # Authorization headers that the hub saw
        self.stored: set[str | None] = set()  # and those that the store saw
        self.ranges: list[tuple[str, int]] = []  # file and first byte of each body
        self.cut: int | None = None  # byte of the file at which bodies break off
        self.xet: dict[str, str] = {}  # more headers of files
        self.broken: Callable[[HubHandler], None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a command of another process asks this hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Answer requests in a thread until the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class HubHandler(LoopbackHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        token = self.headers.get("Authorization")
        if path.startswith("/store/"):
            self.server.stored.add(token)
            self._store(path)
            return
        self.server.tokens.add(token)
        if self.command == "GET":
            self.server.requests.append(path)
        if self.server.broken is not None:
            self.server.broken(self)
            return
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, path):
                self._route(answer, **found.groupdict())
                return
        self.fail(404, "EntryNotFound", "Page not found")

    def _route(self, answer: Callable[..., None], **named: str | None) -> None:
        """Find the repository and the commit that an address names, then answer."""
        kind = named.pop("kind", None) or "models"
        id_, revision = KINDS[kind.strip("/")] + str(named.pop("id")), named.pop("revision", None)
        if id_ in self.server.moved:
            self.reply(307, Location=self.path.replace(id_, self.server.moved[id_]))
            return
        repository = self.server.repositories.get(id_)
        if repository is None:
            anonymous = self.headers.get("Authorization") is None
            self.fail(401 if anonymous else 404, "RepoNotFound", "Repository not found")
            return
        commit = repository.main if revision in (None, "main") else str(revision)
        if commit not in repository.commits:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        answer(self, id_, repository, commit, **named)

    # ---- the API -------------------------------------------------------------------------------
    def _info(self, id_: str, repository: Repository, commit: str) -> None:
        """What a repository is; sizes and hashes only if `blobs` are requested."""
        files = repository.commits[commit].items()
        full = self.query.get("blobs", "").lower() in ("true", "1")
        siblings = [
            {"rfilename": name} | (_sizes(name, data) if full else {}) for name, data in files
        ]
        gate = "auto" if repository.gated else False
        self._json({"id": id_.removeprefix("datasets/"), "sha": commit, "gated": gate,
                    "private": False, "tags": [], "siblings": siblings})  # fmt: skip

    def _tree(self, id_: str, repository: Repository, commit: str, path: str | None) -> None:
        """The entries of a folder, in pages."""
        at, files = f"{path}/" if path else "", repository.commits[commit]
        inside = {name: data for name, data in files.items() if name.startswith(at)}
        if path and not inside:
            self.fail(404, "EntryNotFound", f"{path} does not exist on {commit}")
            return
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        entries = _entries(inside, at, deep)
        first = int(self.query.get("cursor", 0))
        after, more = first + PAGE, {}
        if after < len(entries):
            wanted = f"recursive={deep}&cursor={after}"
            target = f"{self.server.url}{quote(urlsplit(self.path).path)}?{wanted}"
            more = {"Link": f'<{target}>; rel="next"'}
        self._json(entries[first:after], **more)

    # ---- files ---------------------------------------------------------------------------------
    def _resolve(self, id_: str, repository: Repository, commit: str, file: str) -> None:
        """Say what a file is and where its bytes are."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository.gated and token not in repository.accepted:
            said = f"Access to {id_} is restricted. You must have access to it and be authenticated"
            self.fail(403 if token else 401, "GatedRepo", said)
            return
        data = repository.commits[commit].get(file)
        if data is None:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X_Repo_Commit": commit, "X_Linked_Size": str(len(data)), **self.server.xet}
        if in_lfs(file):
            store = f"http://localhost:{self.server.server_port}/store/{id_}/{commit}/{quote(file)}"
            self.reply(
                302,
                Location=f"{store}?Signature={SIGNATURE}",
                X_Linked_ETag=f'"{sha(data)}"',
                **headers,
            )
        else:
            kind = "" if id_.startswith("datasets/") else "models/"
            target = f"/api/resolve-cache/{kind}{id_}/{commit}/{quote(file)}"
            self.reply(307, Location=target, X_Linked_ETag=f'"{blob(data)}"', **headers)

    def _cached(self, id_: str, repository: Repository, commit: str, file: str) -> None:
        """The bytes of a small file, on the hub itself."""
        data = repository.commits[commit].get(file)
        if data is None:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        self._bytes(file, data, blob(data), X_Repo_Commit=commit)

    def _store(self, path: str) -> None:
        """The bytes of a file in LFS; the store refuses a token beside the signature, as the real one does."""
        found = re.fullmatch(
            r"/store/(?P<id>(?:datasets/)?[^/]+/[^/]+)/(?P<at>\w+)/(?P<file>.+)", path
        )
        if found is None or self.headers.get("Authorization") is not None:
            self.reply(400, b"Only one auth mechanism allowed")
            return
        data = self.server.repositories[found["id"]].commits[found["at"]][found["file"]]
        self._bytes(found["file"], data, sha(data))

    def _bytes(self, name: str, data: bytes, tag: str, **headers: str) -> None:
        """A file, or those bytes of it that the Range asks for; a body breaks off at `cut`."""
        ask = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(ask[1]) if ask else 0
        end = min(int(ask[2]) + 1 if ask and ask[2] else len(data), len(data))
        if ask and start >= len(data):
            self.reply(416, Content_Range=f"bytes */{len(data)}")
            return
        if self.command == "GET":
            self.server.ranges.append((name, start))
        if ask:
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        cut = end if self.server.cut is None else max(start, min(end, self.server.cut))
        self.reply(
            206 if ask else 200,
            data[start:cut],
            length=end - start,
            ETag=f'"{tag}"',
            Accept_Ranges="bytes",
            Content_Type="application/octet-stream",
            **headers,
        )

    # ---- answers -------------------------------------------------------------------------------
    def fail(self, status: int, code: str, said: str) -> None:
        self.reply(status, said.encode(), X_Error_Code=code, X_Error_Message=said)

    def _json(self, document: object, **headers: str) -> None:
        body = json.dumps(document).encode()
        self.reply(200, body, Content_Type="application/json", **headers)


def _sizes(name: str, data: bytes) -> dict[str, object]:
    found: dict[str, object] = {"size": len(data), "blobId": blob(data)}
    if in_lfs(name):
        found["lfs"] = {"sha256": sha(data), "size": len(data), "pointerSize": 130}
    return found


def _entries(files: Mapping[str, bytes], at: str, deep: bool) -> list[dict[str, object]]:
    """Folders and files below `at`, those in folders below it only if `deep`."""
    entries: dict[str, dict[str, object]] = {}
    for name, data in sorted(files.items()):
        parts = name.removeprefix(at).split("/")
        for depth in range(1, len(parts) if deep else min(len(parts), 2)):
            folder = at + "/".join(parts[:depth])
            entries[folder] = {
                "type": "directory",
                "path": folder,
                "oid": blob(folder.encode()),
                "size": 0,
            }
        if deep or len(parts) == 1:
            entry: dict[str, object] = {
                "type": "file",
                "path": name,
                "oid": blob(data),
                "size": len(data),
            }
            if in_lfs(name):
                entry["lfs"] = {"oid": sha(data), "size": len(data), "pointerSize": 130}
            entries[name] = entry
    return list(entries.values())


_ID, _REVISION = r"(?P<id>[\w.-]+/[\w.-]+)", r"(?P<revision>[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_ID}"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (rf"{_API}(?:/revision/{_REVISION})?", HubHandler._info),
    (rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?", HubHandler._tree),
    (
        rf"/api/resolve-cache/(?P<kind>models|datasets)/{_ID}/{_REVISION}/(?P<file>.+)",
        HubHandler._cached,
    ),
    (rf"/(?P<kind>datasets/)?{_ID}/resolve/{_REVISION}/(?P<file>.+)", HubHandler._resolve),
    # of a git host, which serves files at a commit without more
    (rf"/{_ID}/(?P<revision>[0-9a-f]{{40}})/(?P<file>.+)", HubHandler._cached),
]
