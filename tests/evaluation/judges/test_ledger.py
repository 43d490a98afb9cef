"""The ledger: nothing is paid twice, whatever is killed, damaged or asked again; caps hold; keys tell all apart."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from reca.evaluation.judges.collect import CapReached, collect, verdicts
from reca.evaluation.judges.endpoint import Endpoint
from reca.evaluation.judges.ledger import Entry, Ledger, totals
from reca.evaluation.judges.requests import JudgeRequest, Picture
from tests.evaluation.judges import judge_server as js


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("RECA_TEST_JUDGE_KEY", js.KEY)


def asked(count=10):
    return [JudgeRequest(f"item-{i}", (f"question {i}",)) for i in range(count)]


def run(server, path, requests, readable=lambda reply: True, **more):
    judge = Endpoint(js.config(server, **more))
    with Ledger(path) as ledger:
        counts = collect(requests, judge, ledger, benchmark="wise", version="1", readable=readable)
    fixed = judge.determinants("wise", "1")
    return counts, verdicts(
        requests, fixed, Ledger(path), attempts=judge.config.attempts, readable=readable
    )


def png(colour, side=8):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


# ---- paid once -----------------------------------------------------------------------------------
def test_a_second_run_asks_nothing(tmp_path):
    with js.serving(js.says("2")) as server:
        counts, _ = run(server, tmp_path / "l.jsonl", asked())
        assert counts == {"asked": 10, "known": 0, "failed": 0}
        counts, again = run(server, tmp_path / "l.jsonl", asked(12))
        assert counts == {"asked": 2, "known": 10, "failed": 0}
        assert len(server.asked) == 12
    assert all(verdict == ("reply", "2") for verdict in again.values()) and len(again) == 12


def test_another_number_of_shards_asks_nothing_again(tmp_path):
    """Requests move to other ledgers; those of other runs and damaged ones are left alone."""
    name = "base-0-wise-{}-of-{}.jsonl"
    with js.serving(js.says("2")) as server:
        for shard in range(2):
            run(
                server,
                tmp_path / name.format(shard, 2),
                asked()[5 * shard : 5 * shard + 5],
                price_input=2.0,
            )
        (tmp_path / name.format(9, 9)).write_text("not a ledger\n" * 2)
        for shard in range(5):
            part = asked()[2 * shard : 2 * shard + 2]
            counts, found = run(server, tmp_path / name.format(shard, 5), part, price_input=2.0)
            assert counts == {"asked": 0, "known": 2, "failed": 0}
            assert set(found.values()) == {("reply", "2")}
            assert Ledger(tmp_path / name.format(shard, 5)).cost == 0  # paid for by the others
        assert len(server.asked) == 10
        counts, _ = run(server, tmp_path / "reca-0-wise-0-of-2.jsonl", asked())
        assert counts["asked"] == 10


def test_failures_are_no_entries_and_are_asked_again(tmp_path):
    with js.serving(js.status(500)) as server:
        counts, found = run(server, tmp_path / "l.jsonl", asked(3), tries=2)
        assert counts["failed"] == 3 and set(found.values()) == {("failed", None)}
        server.script[:] = [js.says("1")]
        counts, found = run(server, tmp_path / "l.jsonl", asked(3))
        assert counts["asked"] == 3 and set(found.values()) == {("reply", "1")}


def test_refusals_are_kept(tmp_path):
    with js.serving(js.says(None, message={"refusal": "no"})) as server:
        run(server, tmp_path / "l.jsonl", asked(2))
        counts, found = run(server, tmp_path / "l.jsonl", asked(2))
        assert counts["asked"] == 0 and set(found.values()) == {("refused", "no")}
        assert len(server.asked) == 2
    assert totals(Ledger(tmp_path / "l.jsonl"))["refused"] == 2


def test_an_unreadable_reply_is_asked_for_again_and_then_stays(tmp_path):
    def readable(reply):
        return reply == "good"

    script = [js.says("bad"), js.says("bad"), js.says("good")]
    with js.serving(*script) as server:
        _, found = run(server, tmp_path / "a.jsonl", asked(1), readable, attempts=3)
        assert found["item-0"] == ("reply", "good") and len(server.asked) == 3
    with js.serving(js.says("bad")) as server:
        _, found = run(server, tmp_path / "b.jsonl", asked(1), readable, attempts=3)
        assert found["item-0"] == ("reply", "bad") and len(server.asked) == 3
        run(server, tmp_path / "b.jsonl", asked(1), readable, attempts=3)
        assert len(server.asked) == 3
        run(server, tmp_path / "b.jsonl", asked(1), readable, attempts=4)
        assert len(server.asked) == 4


KILLED = """
import sys
from reca.evaluation.judges.collect import collect
from reca.evaluation.judges.endpoint import Endpoint
from reca.evaluation.judges.ledger import Ledger
from tests.evaluation.judges.test_ledger import asked
from reca.config.schema import JudgeConfig
judge = Endpoint(JudgeConfig(model="judge-2024-05-13", base_url=sys.argv[1], concurrency=4,
                             key_variable="RECA_TEST_JUDGE_KEY"))
with Ledger(sys.argv[2]) as ledger:
    print(collect(asked(60), judge, ledger, benchmark="wise", version="1", readable=lambda r: True))
"""


def test_killed_again_and_again_nothing_is_paid_twice(tmp_path, campaign):
    """SIGKILL at three moments: only what was in flight (at most the concurrency) can be asked again."""
    path = tmp_path / "ledger.jsonl"
    kills = 3
    with js.serving(js.after(0.02, js.says("2"))) as server:
        command = [sys.executable, "-c", KILLED, f"{server.url}/v1", str(path)]
        for round_ in range(kills):
            known = len(Ledger(path))
            child = subprocess.Popen(command)
            deadline = time.monotonic() + 60
            while len(server.asked) < 14 * (round_ + 1) and time.monotonic() < deadline:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert len(Ledger(path)) > known
        assert 0 < len(Ledger(path)) < 60
        left = 60 - len(Ledger(path))
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert f"'asked': {left}" in said
        assert len(server.asked) <= 60 + kills * 4
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 60
    campaign.count(kills)


# ---- the file ------------------------------------------------------------------------------------
def entry(number):
    return Entry(f"key-{number}", f"item-{number}", "reply", "2", cost=0.5)


def filled(path, count=3):
    with Ledger(path) as ledger:
        for number in range(count):
            ledger.add(entry(number))
    return path.read_bytes()


def test_an_unfinished_last_line_is_cut_off_at_every_place(tmp_path, campaign):
    path = tmp_path / "l.jsonl"
    whole = filled(path)
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        # a whole line is paid for, with or without its end
        assert len(Ledger(path)) == 2 + (cut == 1)
        assert path.read_bytes() == whole[:-cut]  # reading alone changes nothing
        with Ledger(path) as ledger:
            if entry(2).key not in ledger:
                ledger.add(entry(2))
        assert path.read_bytes() == whole
        campaign.count(1)


DAMAGED = (
    b"{]\n", b"[]\n", b"\n", b'{"key": "a"}\n', b'{"unknown": 1}\n', b"[" * 9999 + b"\n", b"\xff\xfe\n",
    b'{"key": "a", "id": "i", "status": "scored", "reply": "2"}\n',
    b'{"key": "a", "id": "i", "status": "reply", "reply": null}\n',
    b'{"key": 1, "id": "i", "status": "reply", "reply": "2"}\n',
    b'{"key": "a", "id": "i", "status": "reply", "reply": "2", "cost": -1}\n',
    b'{"key": "a", "id": "i", "status": "reply", "reply": "2", "cost": NaN}\n',
)  # fmt: skip


def test_damage_before_the_end_is_named(tmp_path, campaign):
    path = tmp_path / "l.jsonl"
    lines = filled(path).splitlines(keepends=True)
    for damaged in DAMAGED:
        path.write_bytes(lines[0] + damaged + lines[2])
        with pytest.raises(ValueError, match=r"l\.jsonl, line 2: damaged"):
            Ledger(path)
        with pytest.raises(ValueError, match=r"line 2: damaged"), Ledger(path):
            pass
        assert path.read_bytes() == lines[0] + damaged + lines[2]  # nothing is cut away
        campaign.count(1)
    path.write_bytes(b"".join(lines))
    with Ledger(path) as ledger:  # the failed attempts hold no lock
        assert len(ledger) == 3


def test_a_file_of_the_users_is_no_ledger(tmp_path):
    path = tmp_path / "notes"
    path.write_text("a note without a line end")
    with pytest.raises(ValueError, match="not a ledger of replies"), Ledger(path):
        pass
    assert path.read_text() == "a note without a line end"


def test_a_full_disk_leaves_the_ledger_whole(tmp_path, monkeypatch):
    path = tmp_path / "l.jsonl"
    whole = filled(path)
    with Ledger(path) as ledger:
        real = ledger._file

        class Full:
            def write(self, data):
                real.write(data[: len(data) // 2])
                return len(data) // 2

            def fileno(self):
                return real.fileno()

            def close(self):
                real.close()

        ledger._file = Full()
        with pytest.raises(ValueError, match="free disk space"):
            ledger.add(entry(9))
        ledger._file = real
        assert path.read_bytes() == whole
        ledger.add(entry(3))
    assert len(Ledger(path)) == 4


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "l.jsonl"
    with Ledger(path), pytest.raises(ValueError, match="another process"), Ledger(path):
        pass


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(ValueError, match=r"l\.jsonl: this file system has no locks"),
        Ledger(tmp_path / "l.jsonl"),
    ):
        pass


def test_each_entry_is_synced_before_it_counts(tmp_path, monkeypatch):
    seen = []
    with Ledger(tmp_path / "l.jsonl") as ledger:
        monkeypatch.setattr(os, "fsync", lambda d: seen.append(entry(0).key in ledger))
        ledger.add(entry(0))
    assert seen == [False]


# ---- keys ----------------------------------------------------------------------------------------
BASE = JudgeRequest("one", ("text", Picture(png("red"))), system="system")
OTHERS = {
    "text": replace(BASE, parts=("other", BASE.parts[1])),
    "system": replace(BASE, system="other"),
    "no system": replace(BASE, system=None),
    "picture": replace(BASE, parts=("text", Picture(png("blue")))),
    "encoding": replace(BASE, parts=("text", Picture(png("red"), "jpeg"))),
    "size": replace(BASE, parts=("text", Picture(png("red"), "png", size_of=png("red", 4)))),
    "order": replace(BASE, parts=BASE.parts[::-1]),
}


def test_the_key_holds_everything_that_determines_the_reply():
    with js.serving(js.says("x")) as server:
        config = js.config(server, temperature=0.0)
        fixed = Endpoint(config).determinants("wise", "1")
        keys = {"base": BASE.key(fixed)}
        keys |= {name: other.key(fixed) for name, other in OTHERS.items()}
        keys["attempt"] = BASE.key(fixed, 1)
        for name, value in {
            "model": "judge-2024-11-20", "temperature": 1.0, "max_tokens": 5, "seed": 1,
            "base_url": "http://127.0.0.1:1/v1",
            }.items():  # fmt: skip
            changed = Endpoint(replace(config, **{name: value}))
            keys[name] = BASE.key(changed.determinants("wise", "1"))
        elsewhere = Endpoint(replace(config, base_url=config.base_url + "/deployments/other"))
        keys["path of the URL"] = BASE.key(elsewhere.determinants("wise", "1"))
        keys["version"] = BASE.key(Endpoint(config).determinants("wise", "2"))
        keys["benchmark"] = BASE.key(Endpoint(config).determinants("gedit", "1"))
        assert len(set(keys.values())) == len(keys)
        again = Endpoint(replace(config, concurrency=99, tries=1)).determinants("wise", "1")
        assert BASE.key(again) == keys["base"]  # how it was asked does not matter


# ---- cost ----------------------------------------------------------------------------------------
PRICES = {"price_input": 2.0, "price_output": 8.0}  # 1000 and 100 tokens: 0.0028 a reply


def test_the_cap_stops_before_it_is_passed_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "l.jsonl"
    with js.serving(js.says("2")) as server:
        for cap, most in ((0.01, 3), (0.02, 7)):
            with pytest.raises(CapReached, match="no reply is paid for twice"):
                run(server, path, asked(10), cost_cap=cap, request_cost_estimate=0.0028, **PRICES)
            assert Ledger(path).cost <= cap
            assert len(server.asked) == len(Ledger(path)) == most
        counts, _ = run(server, path, asked(10), cost_cap=0.028001, **PRICES)
        assert counts == {"asked": 3, "known": 7, "failed": 0} and len(server.asked) == 10
    assert Ledger(path).cost == pytest.approx(0.028)


def test_without_an_estimate_one_request_goes_ahead_and_the_cap_holds(tmp_path):
    path = tmp_path / "l.jsonl"
    with js.serving(js.after(0.05, js.says("2"))) as server:
        with pytest.raises(CapReached):
            run(server, path, asked(10), cost_cap=0.0057, concurrency=8, **PRICES)
        assert len(server.asked) == 2 and Ledger(path).cost <= 0.0057
        with pytest.raises(CapReached):  # the next run knows the cost from the ledger
            run(server, path, asked(10), cost_cap=0.0085, concurrency=8, **PRICES)
        assert len(server.asked) == 3


def test_a_cap_over_an_endpoint_that_counts_nothing_stops_at_once(tmp_path):
    path = tmp_path / "l.jsonl"
    with js.serving(js.says("2", usage={})) as server:
        with pytest.raises(ValueError, match="reports no token counts"):
            run(server, path, asked(10), cost_cap=1.0, **PRICES)
        assert len(server.asked) == len(Ledger(path)) == 1
        with pytest.raises(CapReached):
            run(server, path, asked(10), cost_cap=1.0, request_cost_estimate=0.3, **PRICES)
        assert len(server.asked) == 1 + 3


def test_empty_replies_count_against_the_cap(tmp_path):
    path = tmp_path / "l.jsonl"
    with js.serving(js.says("", finish="length")) as server:
        with pytest.raises(CapReached):
            run(
                server,
                path,
                asked(9),
                bool,
                cost_cap=0.0113,
                request_cost_estimate=0.0028,
                **PRICES,
            )
        assert len(server.asked) == len(Ledger(path)) == 4
        assert Ledger(path).cost == pytest.approx(0.0112)


def test_equal_questions_are_paid_for_once_even_at_the_same_time(tmp_path):
    twins = [JudgeRequest(f"twin-{i}", ("the same", Picture(png("red")))) for i in range(8)]
    with js.serving(js.after(0.05, js.says("2"))) as server:
        counts, found = run(server, tmp_path / "l.jsonl", twins, concurrency=8)
        assert len(server.asked) == 1 and counts == {"asked": 1, "known": 7, "failed": 0}
    assert set(found.values()) == {("reply", "2")} and len(found) == 8


def test_the_key_is_in_no_file(tmp_path):
    with js.serving(js.says(f"Authorization: Bearer {js.KEY}")) as server:
        run(server, tmp_path / "l.jsonl", asked(2))
    assert all(js.KEY[:12] not in p.read_text() for p in tmp_path.rglob("*") if p.is_file())
