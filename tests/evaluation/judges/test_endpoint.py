"""The endpoint against a server that misbehaves in every way: retried, refused or reported, never guessed."""

from __future__ import annotations

import json
import logging
import time
from email.utils import formatdate

import pytest

from reca.evaluation.judges import endpoint
from reca.evaluation.judges.endpoint import Endpoint, GaveUp
from reca.evaluation.judges.requests import JudgeRequest
from tests.evaluation.judges import judge_server as js

ASKED = JudgeRequest("one", ("How good is it?",), system="You are strict.")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", js.KEY)


TROUBLES = {
    "too many requests": js.status(429, b"slow down"),
    "too many requests, with a pause": js.status(429, b"", Retry_After="0.01"),
    "too many requests, until a date": js.status(
        429, b"", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"
    ),
    "too many requests, pause is nonsense": js.status(429, b"", Retry_After="soon"),
    "server error": js.status(500, b"oops"),
    "bad gateway": js.status(502, b"<html>"),
    "unavailable": js.status(503),
    "timeout of the gateway": js.status(504),
    "cut short": js.cut_short,
    "hangs up": js.hangs_up,
    "stalls": js.stalls,
    "drips": js.drips,
    "drips a byte at a time": js.drips_bytes,
    "drips its headers": js.drips_headers,
    "drips blanks after a whole reply": js.drips_after(
        b'{"choices": [{"message": {"content": "Consistency: 0"}}]}'
    ),
    "a page instead of JSON": js.status(200, b"<html>Sign in</html>"),
    "not UTF-8": js.status(200, b"\xff\xfe{"),
    "an empty body": js.status(200),
    "a list": js.status(200, b"[]"),
    "no choices": js.status(200, b'{"choices": []}'),
    "no message": js.status(200, b'{"choices": [{}]}'),
    "null message": js.status(200, b'{"choices": [{"message": null}]}'),
    "a status of its own": js.status(521),
    "not implemented": js.status(501),
    "an error with status 200": js.status(200, b'{"error": {"code": 429}}'),
    "far too large": js.status(200, b" " * (5 << 20)),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_on_the_way_is_asked_again(trouble):
    with js.serving(TROUBLES[trouble], TROUBLES[trouble], js.says("Consistency: 2")) as server:
        reply = Endpoint(js.config(server)).ask(ASKED)
        assert (reply.text, reply.refused, reply.model) == (
            "Consistency: 2",
            False,
            "judge-2024-05-13",
        )
        assert len(server.asked) == 3


@pytest.mark.parametrize("trouble", ["server error", "hangs up", "no choices"])
def test_it_gives_up_after_the_configured_tries(trouble):
    with js.serving(TROUBLES[trouble]) as server:
        with pytest.raises(GaveUp, match=r"one: .*3 tries"):
            Endpoint(js.config(server, tries=3)).ask(ASKED)
        assert len(server.asked) == 3


def test_nobody_there():
    with js.serving(js.says("x")) as server:
        gone = js.config(server, tries=2)
    with pytest.raises(GaveUp, match="ConnectionError"):
        Endpoint(gone).ask(ASKED)


BLANK = {
    "null": None,
    "blank": "  \n",
    "a list of nothing": [],
    "empty": "",
    "a number": 7,
    "an object": {},
}


@pytest.mark.parametrize("how", BLANK)
def test_an_empty_text_is_a_reply_whose_cost_counts(how):
    """A model that spends its length on thinking: paid for, so not asked again behind the cap's back."""
    with js.serving(js.says(BLANK[how], finish="length")) as server:
        reply = Endpoint(js.config(server)).ask(ASKED)
        assert not reply.text.strip() and not reply.refused
        assert reply.usage["prompt_tokens"] == 1000 and len(server.asked) == 1


AZURE = (
    b'{"error": {"message": "The response was filtered due to the prompt triggering the management policy of '
    b"this service. Please modify your prompt and retry. To learn more about our policies please read our "
    b'documentation.", "type": null, "param": "prompt", "code": "content_filter", "status": 400}}'
)
REFUSALS = {
    "by a filter that says so late": js.status(400, AZURE),
    "by a gateway's moderation": js.status(403, b'{"error": "input was flagged by moderation"}'),
    "by its field": js.says(None, message={"refusal": "I cannot."}),
    "by its finish": js.says("", finish="content_filter"),
    "by a filter before the model": js.status(
        400, b'{"error": {"code": "content_filter", "message": "ResponsibleAIPolicyViolation"}}'
    ),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_refusal_is_a_refusal(how):
    with js.serving(REFUSALS[how]) as server:
        reply = Endpoint(js.config(server)).ask(ASKED)
        assert reply.refused and reply.text and len(server.asked) == 1


@pytest.mark.parametrize("code", [301, 302, 307, 400, 401, 403, 404, 413, 422])
def test_what_asking_again_cannot_mend_stops_at_once(code):
    elsewhere = {"Location": "http://127.0.0.1:9/steal"} if code < 400 else {}
    with js.serving(js.status(code, b"no", **elsewhere)) as server:
        with pytest.raises(ValueError, match=f"status {code}"):
            Endpoint(js.config(server)).ask(ASKED)
        assert len(server.asked) == 1  # nothing is followed


def test_a_parameter_that_is_named_after_safety_is_no_refusal():
    with (
        js.serving(js.status(400, b"unknown parameter: safety_identifier")) as server,
        pytest.raises(ValueError, match="rejects one: status 400"),
    ):
        Endpoint(js.config(server)).ask(ASKED)


def test_what_is_sent():
    with js.serving(js.says("yes")) as server:
        Endpoint(js.config(server, temperature=0.0, max_tokens=7, seed=3)).ask(ASKED)
        Endpoint(js.config(server)).ask(ASKED)
    full, plain = server.asked
    assert server.requests[0][0] == "/v1/chat/completions"
    assert server.requests[0][1]["Authorization"] == f"Bearer {js.KEY}"
    assert full["messages"][0] == {"role": "system", "content": "You are strict."}
    assert full["messages"][1]["content"] == [{"type": "text", "text": "How good is it?"}]
    assert {k: full[k] for k in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "judge-2024-05-13", "temperature": 0.0, "max_tokens": 7, "seed": 3,
    }  # fmt: skip
    assert set(plain) == {"model", "messages"}  # unset means: the endpoint's own default


def test_a_netrc_does_not_take_the_place_of_the_key(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with js.serving(js.says("yes")) as server:
        Endpoint(js.config(server)).ask(ASKED)
        assert server.requests[0][1]["Authorization"] == f"Bearer {js.KEY}"


ECHOES = {
    "a wrong key": js.status(401, f"Incorrect API key provided: {js.KEY}".encode()),
    "a refused request": js.status(422, f"header Bearer {js.KEY}".encode()),
    "an error": js.status(500, js.KEY.encode()),
    "a header that is none": lambda h: h.wfile.write(
        f"HTTP/1.1 500 no\r\nbroken {js.KEY}\r\nContent-Length: 0\r\n\r\n".encode()
    ),
    "a status that is none": lambda h: h.wfile.write(f"{js.KEY}\r\n\r\n".encode()),
    "across the cut of what is shown": js.status(422, b"x" * 185 + js.KEY.encode()),
}
UNSENDABLE = {
    "line end inside": "\ncanary",
    "blank inside": " canary",
    "beyond ASCII": "\u2019canary",
}


@pytest.mark.parametrize("how", UNSENDABLE)
def test_a_key_that_no_header_can_carry_is_refused_unshown(how, monkeypatch, caplog):
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", f"sk{UNSENDABLE[how]}")
    with (
        js.serving(js.says("x")) as server,
        pytest.raises(ValueError, match="not a valid key") as raised,
    ):
        Endpoint(js.config(server))
    assert "canary" not in repr(raised.value) + caplog.text and not server.asked


def test_a_line_end_behind_the_key_does_not_matter(monkeypatch):
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", f"{js.KEY}\n")
    with js.serving(js.says("x")) as server:
        Endpoint(js.config(server)).ask(ASKED)
        assert server.requests[0][1]["Authorization"] == f"Bearer {js.KEY}"


def test_a_reply_that_holds_the_key_is_kept_without_it():
    with js.serving(js.says(f"headers: {js.KEY}", model=f"proxy {js.KEY}")) as server:
        reply = Endpoint(js.config(server)).ask(ASKED)
    assert (reply.text, reply.model) == ("headers: [key]", "proxy [key]")


@pytest.mark.parametrize("asked", ["7", "100", "inf", "nan", "-3", "date"])
def test_the_pause_is_what_the_server_asks_for_within_the_limit(asked, monkeypatch):
    pauses = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    value = formatdate(time.time() + 9, usegmt=True) if asked == "date" else asked
    with js.serving(js.status(429, Retry_After=value), js.says("x")) as server:
        judge = Endpoint(js.config(server, backoff_seconds=0.5, longest_pause_seconds=30.0))
        assert judge.ask(ASKED).text == "x"
    low, high = {"7": (7, 7), "100": (30, 30), "inf": (30, 30), "date": (7, 9.1)}.get(
        asked, (0.5, 1)
    )
    assert len(pauses) == 1 and low <= pauses[0] <= high


def test_pauses_grow(monkeypatch):
    pauses = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    with js.serving(js.status(503)) as server, pytest.raises(GaveUp):
        Endpoint(js.config(server, tries=6, backoff_seconds=1.0, longest_pause_seconds=9.0)).ask(
            ASKED
        )
    assert len(pauses) == 5 and all(2**n <= p <= 2 ** (n + 1) for n, p in enumerate(pauses[:3]))
    assert pauses[4] == 9.0


@pytest.mark.parametrize("how", ECHOES)
def test_the_key_is_never_shown(how, caplog):
    with (
        caplog.at_level(logging.DEBUG),
        js.serving(ECHOES[how]) as server,
        pytest.raises((ValueError, GaveUp)) as raised,
    ):
        Endpoint(js.config(server, tries=2)).ask(ASKED)
    chain, error = [], raised.value
    while error is not None:
        chain.append(repr(error))
        error = error.__cause__
    assert js.KEY[:12] not in caplog.text + "".join(chain)


WRONG = {
    "an alias": ({"model": "gpt-4o".replace("4", "")}, "dated snapshot"),
    "no model": ({"model": ""}, "dated snapshot"),
    "not a URL": ({"base_url": "api.openai.com"}, "http or https"),
    "a file": ({"base_url": "file:///etc/passwd"}, "http or https"),
    "a password": ({"base_url": "https://me:secret@host/v1"}, "not contain credentials"),
    "a cap without prices": ({"cost_cap": 1.0}, "has no effect"),
    "no key": ({"key_variable": "RECA_TEST_ABSENT"}, "RECA_TEST_ABSENT is not set"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_configuration_that_cannot_work(how):
    from dataclasses import replace

    changed, message = WRONG[how]
    with js.serving(js.says("x")) as server, pytest.raises(ValueError, match=message) as raised:
        Endpoint(replace(js.config(server), **changed))
    assert "secret" not in str(raised.value)


def test_an_endpoint_without_a_key():
    with js.serving(js.says("yes")) as server:
        Endpoint(js.config(server, key_variable="")).ask(ASKED)
        assert "Authorization" not in server.requests[0][1]


def test_parts_of_a_reply_are_joined():
    parts = [{"type": "text", "text": "Realism: "}, {"type": "text", "text": "1"}]
    with js.serving(js.says(parts)) as server:
        assert Endpoint(js.config(server)).ask(ASKED).text == "Realism: 1"


def test_usage_that_is_no_count_is_left_out():
    with js.serving(
        js.says("x", usage={"prompt_tokens": "many", "completion_tokens": 3})
    ) as server:
        assert Endpoint(js.config(server)).ask(ASKED).usage == {"completion_tokens": 3}
    assert json.dumps(server.asked)
