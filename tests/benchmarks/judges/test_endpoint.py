"""The endpoint against a server that misbehaves in every way: retried, refused or reported, never guessed."""

from __future__ import annotations

import json
import logging

import pytest

from reca.benchmarks.judges.endpoint import Endpoint, GaveUp
from reca.benchmarks.judges.requests import JudgeRequest
from tests.benchmarks.judges import judge_server as js

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
    "a page instead of JSON": js.status(200, b"<html>Sign in</html>"),
    "not UTF-8": js.status(200, b"\xff\xfe{"),
    "an empty body": js.status(200),
    "a list": js.status(200, b"[]"),
    "no choices": js.status(200, b'{"choices": []}'),
    "no message": js.status(200, b'{"choices": [{}]}'),
    "null message": js.status(200, b'{"choices": [{"message": null}]}'),
    "content is null": js.says(None),
    "content is blank": js.says("  \n"),
    "content is a number": js.says(7),
    "content is a list of nothing": js.says([]),
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


@pytest.mark.parametrize("trouble", ["server error", "hangs up", "content is blank"])
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


REFUSALS = {
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
}


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
    "a password": ({"base_url": "https://me:secret@host/v1"}, "no credentials"),
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
