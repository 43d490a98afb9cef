"""Bodies of an endpoint as a stranger writes them: read without an exception, paid replies kept, the key nowhere."""

from __future__ import annotations

import json
import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reca.evaluation.judges import body
from reca.evaluation.judges.collect import CapReached, collect, price, verdicts
from reca.evaluation.judges.endpoint import Endpoint
from reca.evaluation.judges.ledger import Ledger, totals
from reca.evaluation.judges.requests import JudgeRequest
from tests.evaluation.judges import judge_server as js

PAID = {"prompt_tokens": 1000, "completion_tokens": 100}
DEEP = 20_000


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", js.KEY)


def completion(**more):
    message = {"content": "Consistency: 2"}
    return {"model": "m-1", "choices": [{"message": message}], "usage": PAID, **more}


def nested(place):
    """A whole reply with 20,000 levels in it, written by hand, as no library would."""
    levels = "[" * DEEP + "]" * DEEP
    return json.dumps(completion(**{place: "HERE"})).replace('"HERE"', levels).encode()


# ---- depth and numbers ---------------------------------------------------------------------------
@pytest.mark.parametrize("levels", ["[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP])
def test_a_deep_body_is_cut_at_its_depth_and_the_reply_is_read(levels):
    for place in ("extra", "model", "usage"):
        content = json.dumps(completion(**{place: "HERE"})).replace('"HERE"', levels).encode()
        found = body.reply_of(content)
        assert found.text == "Consistency: 2" and not found.refused
    with pytest.raises(body.NoCompletion):
        body.reply_of(levels.encode())
    with pytest.raises(body.NoCompletion):
        body.reply_of(levels[: len(levels) // 2].encode())
    deep = json.dumps(completion()).replace('"Consistency: 2"', levels).encode()
    assert body.reply_of(deep) == body.Reply("", False, "m-1", PAID)  # paid for, and not readable


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(values, st.integers(1, 6))
def test_pruning_keeps_what_is_above_the_deepest_level(value, deepest):
    def cut(found, level):
        if not isinstance(found, dict | list):
            return found
        if level > deepest:
            return None
        if isinstance(found, list):
            return [cut(one, level + 1) for one in found]
        return {name: cut(one, level + 1) for name, one in found.items()}

    content = json.dumps(value).encode()
    assert json.loads(body.pruned(content, deepest)) == cut(value, 1)
    assert body.pruned(content, 100) == content


USAGE = {
    "negative": ({"prompt_tokens": -5, "completion_tokens": 3}, {"completion_tokens": 3}),
    "4,000 digits": ({"prompt_tokens": 10**4000, "completion_tokens": 3}, {"completion_tokens": 3}),
    "beyond reason": ({"prompt_tokens": 10**10, "completion_tokens": 10**9}, {"completion_tokens": 10**9}),
    "a truth value": ({"prompt_tokens": True}, {}),
    "a part": ({"prompt_tokens": 1.5}, {}),
    "NaN": ({"prompt_tokens": float("nan"), "total_tokens": 7}, {"total_tokens": 7}),
    "a text": ({"prompt_tokens": "many"}, {}),
    "other names": ({"cost": 3, js.KEY: 1, "prompt_tokens": 2}, {"prompt_tokens": 2}),
    "a list": ([1, 2], {}),
    "null": (None, {}),
}  # fmt: skip


@pytest.mark.parametrize("how", USAGE)
def test_only_sound_counts_of_tokens_are_kept_and_the_price_is_a_number(how):
    said, expected = USAGE[how]
    if how == "4,000 digits":
        content = json.dumps(completion(usage={"prompt_tokens": "X", "completion_tokens": 3}))
        content = content.replace('"X"', "9" * 4000)
    else:
        content = json.dumps(completion(usage=said))
    found = body.reply_of(content.encode())
    assert (found.usage, found.text) == (expected, "Consistency: 2")
    with js.serving(js.says("x")) as server:
        config = js.config(server, price_input=2.0, price_output=8.0, request_cost_estimate=0.5)
    assert 0.5 <= price(config, found.usage) < 1e5  # a count is missing: no less than the estimate
    assert price(config, PAID) == pytest.approx(0.0028)


def test_five_thousand_digits_cost_the_reply_nothing():
    content = json.dumps(completion(usage="X")).replace(
        '"X"', '{"prompt_tokens": ' + "9" * 5000 + "}"
    )
    assert body.reply_of(content.encode()).text == "Consistency: 2"


LONG = {
    "brackets": b"[" * (2 << 20),
    "quotes": b'"' * (2 << 20) + b'"',
    "an unfinished string of quotes": b'"' + b'\\"' * (1 << 20),
    "backslashes": b'"' + b"\\" * (2 << 20),
    "blanks": b" " * (4 << 20),
}


@pytest.mark.parametrize("how", LONG)
def test_large_bodies_that_are_no_replies_end_quickly(how):
    begin = time.process_time()
    with pytest.raises(body.NoCompletion):
        body.reply_of(LONG[how])
    assert time.process_time() - begin < 10  # 1 s; a pattern that goes back takes hours


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), values.map(lambda v: json.dumps(v).encode()),
                 values.map(lambda v: json.dumps({"choices": [v], "usage": PAID}).encode()),
                 values.map(lambda v: json.dumps({"choices": [{"message": v}], "usage": v}).encode())))  # fmt: skip
def test_any_body_is_a_reply_or_none(content):
    try:
        found = body.reply_of(content)
    except body.NoCompletion:
        return
    assert isinstance(found.text, str) and all(n >= 0 for n in found.usage.values())


# ---- what was paid for ---------------------------------------------------------------------------
def raw(content):
    return js.status(200, content)


MALFORMED = {
    "no choices": {"choices": []},
    "no message": {"choices": [{}]},
    "a message of numbers": {"choices": [{"message": 7}]},
    "a number": {"choices": [{"message": {"content": 7}}]},
    "an object": {"choices": [{"message": {"content": {"score": 7}}}]},
    "choices by name": {"choices": {"a": 1}},
}


@pytest.mark.parametrize("how", MALFORMED)
def test_a_paid_reply_that_cannot_be_read_is_in_the_ledger_and_counts_against_the_cap(
    tmp_path, how
):
    asked = [JudgeRequest(str(i), (f"question {i}",)) for i in range(9)]
    content = json.dumps({**completion(), **MALFORMED[how]}).encode()
    with js.serving(raw(content)) as server, Ledger(tmp_path / "ledger.jsonl") as book:
        config = js.config(server, concurrency=1, attempts=2, price_input=2000.0, cost_cap=9.0)
        judge = Endpoint(config)
        with pytest.raises(CapReached):
            collect(
                asked, judge, book, benchmark="b", version="1", readable=lambda text: bool(text)
            )
        assert len(server.asked) == 4  # 2 each, and no fifth
        assert (len(book), book.cost) == (4, 8.0) and totals(book)["tokens"][
            "prompt_tokens"
        ] == 4000
        found = verdicts(asked[:1], judge.determinants("b", "1"), book, attempts=2, readable=bool)
        assert found == {"0": ("reply", "")}  # counted as unparsable by the grader, never guessed


def test_a_deep_reply_is_read_and_paid_for_once(tmp_path):
    with js.serving(raw(nested("extra"))) as server, Ledger(tmp_path / "ledger.jsonl") as book:
        collect([JudgeRequest("one", ("q",))], Endpoint(js.config(server)), book,
                benchmark="b", version="1", readable=bool)  # fmt: skip
        assert len(server.asked) == 1 and [entry.reply for entry in book] == ["Consistency: 2"]


# ---- the key -------------------------------------------------------------------------------------
HALF = len(js.KEY) // 2
BROKEN = {
    "whole": js.KEY,
    "by a line end": js.KEY[:HALF] + "\n" + js.KEY[HALF:],
    "by blanks": js.KEY[:HALF] + " \r\n\t " + js.KEY[HALF:],
    "by a written line end": js.KEY[:HALF] + "\\n" + js.KEY[HALF:],
    "letter by letter": "\n".join(js.KEY),
    "by a joiner": js.KEY[:HALF] + "\u200b" + js.KEY[HALF:],
    "in capitals": js.KEY.upper(),
}


def parts_of_the_key(text):
    """Whether a text holds the key, however it is broken."""
    plain = "".join(
        c for c in text.lower().replace("\\n", "").replace("\\u200b", "") if c.isalnum() or c == "-"
    )
    return js.KEY[:12] in plain or js.KEY[-12:] in plain


@pytest.mark.parametrize("how", BROKEN)
def test_a_key_that_the_server_echoes_in_pieces_is_nowhere(tmp_path, caplog, how):
    echo = BROKEN[how]
    caplog.set_level(logging.DEBUG)
    usage = {**PAID, echo: 3, "prompt_tokens_details": {echo: 1}}
    replies = [
        js.says(f"I saw {echo} in it", model=f"m{'x' * 180} {echo}", usage=usage),
        js.says(None, message={"refusal": f"not with {echo}"}),
        js.status(400, b'{"error": "content_filter: ' + echo.replace("\n", "\\n").encode() + b'"}'),
    ]
    asked = [JudgeRequest(str(i), (f"q{i}",)) for i in range(3)]
    with js.serving(*replies) as server, Ledger(tmp_path / "ledger.jsonl") as book:
        collect(asked, Endpoint(js.config(server, concurrency=1)), book,
                benchmark="b", version="1", readable=bool)  # fmt: skip
        assert next(iter(book)).usage == PAID
    said = (tmp_path / "ledger.jsonl").read_text()
    assert said.count("[key]") >= 3 and not parts_of_the_key(said)
    with js.serving(js.status(422, b"bad: " + echo.encode())) as server:
        with pytest.raises(ValueError, match="status 422") as raised:
            Endpoint(js.config(server)).ask(asked[0])
        assert "[key]" in str(raised.value) and not parts_of_the_key(
            str(raised.value) + caplog.text
        )
    escaped = "".join(f"\\u{ord(c):04x}" for c in js.KEY).encode()
    with js.serving(js.status(422, escaped)) as server, pytest.raises(ValueError, match=r"\[key\]"):
        Endpoint(js.config(server)).ask(asked[0])


def test_a_placeholder_for_a_key_changes_no_reply(monkeypatch):
    """Servers without keys are often given one like `x`: blanks within such a text are no echo of it."""
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", "12")
    with js.serving(js.says("Consistency: 1\nRealism: 1 2")) as server:
        assert (
            Endpoint(js.config(server)).ask(JudgeRequest("1", ("q",))).text
            == "Consistency: 1\nRealism: 1 2"
        )
