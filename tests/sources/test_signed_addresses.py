"""Hubs redirect to addresses that carry a signature: whoever reads a log must not be able to use it."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import requests

from reca.sources.checks import without_queries
from reca.sources.download import download
from tests.loopback_server import Server
from tests.sources.conftest import FAST

SIGNED = "/blob?X-Amz-Signature=canary"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (f"http://127.0.0.1:PORT{SIGNED}", requests.exceptions.SSLError),
        (f"http://127.0.0.1:PORT{SIGNED}", requests.exceptions.InvalidURL),
        (f"http://127.0.0.1:PORT{SIGNED}", requests.exceptions.ConnectionError),
        (f"http://example.org{SIGNED}", None),
        (f"https://user:canary@example.org{SIGNED}", None),
        (f"https://[{SIGNED}", None),
    ],
)
def test_a_signed_address_is_never_shown(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    target: str,
    error: type[Exception] | None,
) -> None:
    ask = requests.Session.get

    def get_or_fail(session: requests.Session, url: str, **options: Any) -> requests.Response:
        if error and "Signature" in url:
            raise error(f"HTTPSConnectionPool: Max retries exceeded with url: {url}")
        return ask(session, url, **options)

    monkeypatch.setattr(requests.Session, "get", get_or_fail)
    place = target.replace("PORT", str(server.server_port))
    server.script = [lambda handler: handler.reply(302, Location=place)]
    with pytest.raises((ValueError, ConnectionError), match=r"/weights\.bin: ") as raised:
        download(f"{server.url}/weights.bin", tmp_path / "weights.bin", policy=FAST)
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert "canary" not in shown


def test_messages_of_others_lose_their_queries() -> None:
    text = (
        "error for url (https://cdn.org/xorb/a?X-Signature=canary&b=1): 403, see 'https://b.org/c'"
    )
    wanted = "error for url (https://cdn.org/xorb/a?...): 403, see 'https://b.org/c'"
    assert without_queries(text) == wanted
