"""Every fault of a network, played by a real server on the loopback host."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reca.sources import parts
from reca.sources.checks import Digest, Expected, check_redirect, check_url, safe_relative
from reca.sources.download import download
from reca.sources.parts import Part, Policy
from tests.loopback_server import Answer, Handler, Server

Caplog = pytest.LogCaptureFixture
BODY = bytes(range(256)) * 800
HASH = hashlib.sha256(BODY).hexdigest()
PINNED = Expected(sha256=HASH, bytes=len(BODY))
FAST = Policy(connect_seconds=2, read_seconds=0.3, attempts=3, backoff_seconds=0.01)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(code, body, **headers)


def ranged(body: bytes, etag: str = '"v1"') -> Answer:
    """A server that knows ranges and If-Range."""

    def answer(handler: Handler) -> None:
        wanted = handler.headers.get("Range")
        if wanted is None or handler.headers.get("If-Range", etag) != etag:
            handler.reply(200, body, ETag=etag)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.reply(206, body[start:], ETag=etag, Content_Range=span)

    return answer


def cut(body: bytes, sent: int, etag: str = '"v1"') -> Answer:
    """Promise all of `body`, send some of it, hang up."""
    return lambda handler: handler.reply(200, body[:sent], length=len(body), ETag=etag)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def get(server: Server, folder: Path, expected: Expected = PINNED, **more: object) -> Path:
    target = folder / "weights.bin"
    download(f"{server.url}/weights.bin", target, expected, **{"policy": FAST, **more})
    return target


def test_a_whole_file_arrives_alone(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, BODY)]
    found = download(f"{server.url}/f", tmp_path / "sub" / "f", PINNED, policy=FAST)
    assert (found.sha256, found.bytes) == (HASH, len(BODY))
    assert (tmp_path / "sub" / "f").read_bytes() == BODY
    assert leftovers(tmp_path / "sub") == ["f"]


def test_git_blob_id_is_what_git_computes(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, b"hello\n")]
    # `echo hello | git hash-object --stdin`
    known = Expected(git_blob="ce013625030ba8dba906f756967f9e9ca394464a")
    assert get(server, tmp_path, known).read_bytes() == b"hello\n"
    with pytest.raises(ValueError, match="git_blob is ce01"):
        get(server, tmp_path, Expected(git_blob="0" * 40))


def test_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, BODY[::-1])]
    with pytest.raises(ValueError, match=f"sha256 is .*, expected {HASH}"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []
    assert len(server.requests) == 1, "a wrong file is not asked for again"


def test_wrong_hash_keeps_the_old_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"old")
    server.script = [status(200, BODY[::-1])]
    with pytest.raises(ValueError, match="sha256"):
        get(server, tmp_path)
    assert (tmp_path / "weights.bin").read_bytes() == b"old"


def test_short_body_that_never_grows_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY, 1000)]  # ignores ranges too
    with pytest.raises(ConnectionError, match="without progress: short body"):
        get(server, tmp_path)
    assert not (tmp_path / "weights.bin").exists()
    assert len(server.requests) == 1 + FAST.attempts - 1


def test_short_body_of_an_honest_looking_server_is_refused(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, BODY[:-1])]
    with pytest.raises(ValueError, match=f"announces {len(BODY) - 1} bytes, expected {len(BODY)}"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_body_beyond_the_pinned_size_is_cut_off(server: Server, tmp_path: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()  # no length: only the pin bounds it
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(BODY)
        except OSError:
            pass

    server.script = [endless]
    with pytest.raises(ValueError, match="exceeds"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_5xx_then_success(server: Server, tmp_path: Path) -> None:
    server.script = [status(503), status(429, Retry_After="0"), status(200, BODY)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 3


def test_5xx_for_ever(server: Server, tmp_path: Path) -> None:
    server.script = [status(502)]
    with pytest.raises(ConnectionError, match=r"gave up after 3 .*answered 502"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_retry_after_is_obeyed_up_to_the_limit(server: Server, tmp_path: Path) -> None:
    server.script = [status(503, Retry_After="3600"), status(200, BODY)]
    limited = Policy(attempts=2, backoff_seconds=0.01, backoff_limit_seconds=0.2)
    start = time.monotonic()
    get(server, tmp_path, policy=limited)
    assert 0.2 <= time.monotonic() - start < 5


@pytest.mark.parametrize(("code", "says"), [(404, "answered 404"), (403, "access denied")])
def test_4xx_is_final(server: Server, tmp_path: Path, code: int, says: str) -> None:
    server.script = [status(code)]
    with pytest.raises(ValueError, match=says):
        get(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("pinned", [True, False])
def test_html_page_by_its_type(server: Server, tmp_path: Path, pinned: bool) -> None:
    server.script = [status(200, BODY, Content_Type="text/html; charset=utf-8")]
    with pytest.raises(ValueError, match="HTML page"):
        get(server, tmp_path, PINNED if pinned else Expected())
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("body", [b"\n <!DOCTYPE html><p>log in", b"\xef\xbb\xbf<HTML><body>"])
def test_html_page_by_its_body(server: Server, tmp_path: Path, body: bytes) -> None:
    server.script = [status(200, body, Content_Type="application/octet-stream")]
    with pytest.raises(ValueError, match="HTML page"):
        get(server, tmp_path, Expected())
    assert leftovers(tmp_path) == []


def test_html_is_accepted_where_it_is_what_was_asked_for(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, b"<html></html>", Content_Type="text/html")]
    download(f"{server.url}/card.html", tmp_path / "card.html", policy=FAST)
    assert (tmp_path / "card.html").read_bytes() == b"<html></html>"


def test_compressed_transfer_is_refused(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, BODY, Content_Encoding="gzip")]
    with pytest.raises(ValueError, match="compresses"):
        get(server, tmp_path)
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_stall_times_out_and_resumes(server: Server, tmp_path: Path) -> None:
    release = threading.Event()

    def stall(handler: Handler) -> None:
        handler.reply(200, BODY[:5000], length=len(BODY), ETag='"v1"')
        handler.wfile.flush()
        release.wait(10)

    server.script = [stall, ranged(BODY)]
    start = time.monotonic()
    assert get(server, tmp_path).read_bytes() == BODY
    release.set()
    assert time.monotonic() - start < 5
    assert server.requests[1][1]["Range"] == "bytes=5000-", "no received byte is lost"


def test_stall_before_the_head_is_given_up(server: Server, tmp_path: Path) -> None:
    release = threading.Event()
    server.script = [lambda handler: release.wait(10)]
    with pytest.raises(ConnectionError, match="no answer"):
        get(server, tmp_path, policy=Policy(read_seconds=0.1, attempts=2, backoff_seconds=0.01))
    release.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no answer"):
        download("http://127.0.0.1:9/f", tmp_path / "f", policy=FAST)
    assert leftovers(tmp_path) == []


# ---- redirects -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/f", "http://example.org/f", "https://u:p@host/f"],
)
def test_redirect_off_the_allowed_schemes(server: Server, tmp_path: Path, target: str) -> None:
    server.script = [status(302, Location=target)]
    with pytest.raises(ValueError, match=r"redirects: .* is refused"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_redirect_rules() -> None:
    check_redirect("https://a.org/x", "https://cdn.b.org/y")
    check_redirect("http://127.0.0.1:1/x", "http://localhost:2/y")
    with pytest.raises(ValueError, match="from https to http"):
        check_redirect("https://localhost/x", "http://localhost/x")
    with pytest.raises(ValueError, match="only https"):
        check_redirect("https://a.org/x", "http://a.org/x")
    with pytest.raises(ValueError, match="loopback"):
        check_redirect("https://a.org/x", "https://127.0.0.1/x")


def test_relative_redirect_is_followed_and_a_loop_is_not(server: Server, tmp_path: Path) -> None:
    server.script = [status(302, Location="/moved"), status(200, BODY)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/weights.bin", "/moved"]
    server.script = [status(302, Location="/weights.bin")]
    with pytest.raises(ValueError, match="redirects"):
        get(server, tmp_path)


@pytest.mark.parametrize("url", ["http://a.org/f", "file:///f", "ftp://a.org/f", "https:///f", ""])
def test_addresses_that_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"):
        download(url, tmp_path / "f")
    assert leftovers(tmp_path) == []


def test_addresses_that_are_accepted() -> None:
    for url in ("https://a.org/f", "http://localhost:8/f", "http://127.0.0.1/f", "http://[::1]/f"):
        check_url(url)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a//x", "", ".", "a/.", "..", "C:x", "a\\x", "a\nb", "a\x00b", "a/"],
)
def test_names_that_leave_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="refused"):
        safe_relative(name)


# ---- resuming ------------------------------------------------------------------------------------
def test_interrupted_then_resumed_in_one_call(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY, 70_000), ranged(BODY)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.requests[1][1]["Range"] == "bytes=70000-"
    assert server.requests[1][1]["If-Range"] == '"v1"'
    assert leftovers(tmp_path) == ["weights.bin"]


@pytest.mark.parametrize("expected", [PINNED, Expected()], ids=["pinned", "unpinned"])
def test_resumed_by_a_later_call(server: Server, tmp_path: Path, expected: Expected) -> None:
    server.script = [cut(BODY, 70_000)]
    once = Policy(attempts=1)
    with pytest.raises(ConnectionError):
        get(server, tmp_path, expected, policy=once)
    assert leftovers(tmp_path) == ["weights.bin.part", "weights.bin.part.json"]
    server.script = [ranged(BODY)]
    assert get(server, tmp_path, expected, policy=once).read_bytes() == BODY
    assert server.requests[-1][1]["Range"] == "bytes=70000-"


def test_progress_renews_the_attempts(server: Server, tmp_path: Path) -> None:
    def drip(handler: Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=")[:-1])
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        code = 206 if start else 200
        handler.reply(
            code,
            BODY[start : start + 30_000],
            length=len(BODY) - start,
            ETag='"v1"',
            Content_Range=span,
        )

    server.script = [drip]
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) > FAST.attempts


def test_range_ignored_starts_over(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY, 70_000), status(200, BODY, ETag='"v1"')]
    assert get(server, tmp_path).read_bytes() == BODY


def test_changed_etag_starts_over(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY[::-1], 70_000, '"v1"'), ranged(BODY, '"v2"')]
    assert get(server, tmp_path, Expected()).read_bytes() == BODY


def test_changed_etag_of_a_server_deaf_to_if_range(server: Server, tmp_path: Path) -> None:
    span = f"bytes 70000-{len(BODY) - 1}/{len(BODY)}"
    deaf = status(206, BODY[70_000:], ETag='"v2"', Content_Range=span)
    server.script = [cut(BODY[::-1], 70_000, '"v1"'), deaf, status(200, BODY, ETag='"v2"')]
    assert get(server, tmp_path, Expected()).read_bytes() == BODY


def test_without_version_or_hash_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY, 70_000, 'W/"weak"'), status(200, BODY)]
    assert get(server, tmp_path, Expected()).read_bytes() == BODY
    assert "Range" not in server.requests[1][1]


def test_spoilt_part_costs_one_clean_attempt(server: Server, tmp_path: Path) -> None:
    server.script = [cut(b"x" * len(BODY), 70_000), ranged(BODY)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [("Range" in headers) for _, headers in server.requests] == [False, True, False]


def test_wrong_range_starts_over(server: Server, tmp_path: Path) -> None:
    shifted = status(206, BODY[10:], ETag='"v1"', Content_Range=f"bytes 10-9/{len(BODY)}")
    server.script = [cut(BODY, 70_000), shifted, ranged(BODY)]
    assert get(server, tmp_path).read_bytes() == BODY


def test_range_served_in_pieces_is_completed(server: Server, tmp_path: Path) -> None:
    span = f"bytes 70000-79999/{len(BODY)}"
    piece = status(206, BODY[70_000:80_000], ETag='"v1"', Content_Range=span)
    server.script = [cut(BODY, 70_000), piece, ranged(BODY)]
    assert get(server, tmp_path, Expected()).read_bytes() == BODY
    assert server.requests[2][1]["Range"] == "bytes=80000-"


def test_range_beyond_the_end_starts_over(server: Server, tmp_path: Path) -> None:
    server.script = [cut(BODY, 70_000), status(416), ranged(BODY)]
    assert get(server, tmp_path).read_bytes() == BODY


def test_complete_part_needs_no_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [status(200, BODY, ETag='"v1"')]

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.os, "replace", killed)
        # The sidecar is written through records' own rename, which must still work.
        patch.setattr(parts, "write_json", lambda path, value: path.write_text(json.dumps(value)))
        get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 1


def test_two_processes_do_not_share_a_part(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "weights.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            get(server, tmp_path)


def test_a_file_system_without_locks_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(ValueError, match=f"{tmp_path}: this file system has no locks"):
        get(server, tmp_path)


# ---- a full disk ---------------------------------------------------------------------------------
def test_full_disk_is_seen_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [status(200, BODY)]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=f"disk full: {len(BODY)} more bytes") as caught:
        get(server, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).endswith("weights.bin.part")


class _FullAfter:
    """A file on a disk with little room left."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        data = data[: self.room]
        self.room -= len(data)
        return self.file.write(data)  # type: ignore[attr-defined]


def test_full_disk_in_the_middle_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [ranged(BODY)]
    whole = Part.fill

    def starved(part: Part, receive: Callable[[Part], None]) -> Digest:
        part.file = _FullAfter(part.file, 60_000)
        return whole(part, receive)

    with monkeypatch.context() as patch:
        patch.setattr(Part, "fill", starved)
        with pytest.raises(OSError, match="disk full") as caught:
            get(server, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "weights.bin.part").stat().st_size == 60_000
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.requests[-1][1]["Range"] == "bytes=60000-"


def test_progress_speaks_in_lines_without_a_terminal(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Caplog,
) -> None:
    monkeypatch.setattr(parts, "REPORT_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    server.script = [status(200, BODY)]
    get(server, tmp_path)
    assert f"weights.bin: {len(BODY)} of {len(BODY)} bytes" in caplog.text
