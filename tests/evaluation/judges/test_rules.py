"""The judge that answers by rule, as a process of its own too."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from reca.evaluation.judges.endpoint import Endpoint
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.evaluation.tasks import gedit, imgedit, mmvet, t2i_compbench, wise
from tests.evaluation import small_benchmarks as small
from tests.evaluation.judges import judge_server as js
from tests.evaluation.judges import rules

IMAGES = tuple(small.picture(number) for number in range(6))


def request(kind: str, image: bytes) -> JudgeRequest:
    """A request of the form that a benchmark makes."""
    png, jpeg = Picture(image, "png"), Picture(image, "jpeg")
    parts = {
        "wise": ("Rate it.", png),
        "t2i_compbench": (png, "Rate it."),
        "imgedit": ("Rate it.", png, png),
        "gedit": ("Rate it.", jpeg),
    }[kind]
    return JudgeRequest("one", parts, system="Be strict." if kind == "wise" else None)


READ = {
    "wise": wise.scores,
    "t2i_compbench": t2i_compbench.score,
    "imgedit": imgedit.score,
    "gedit": gedit.score,
}


@pytest.mark.parametrize("kind", READ)
def test_replies_are_read_without_doubt_and_depend_on_the_image(kind: str) -> None:
    asked = [{"messages": request(kind, image).messages()} for image in IMAGES]
    said = [rules.reply(one) for one in asked]
    assert said == [rules.reply(one) for one in asked]
    assert None not in map(READ[kind], said) and len(set(map(READ[kind], said))) > 1
    module = {"wise": wise, "t2i_compbench": t2i_compbench, "imgedit": imgedit, "gedit": gedit}[
        kind
    ]
    assert not any(map(module.doubts, said))


@pytest.mark.parametrize(("given", "value"), [("It is 3.", 1.0), ("x IS 3", 1.0), ("four", 0.0)])
def test_answers_of_mmvet_are_compared_with_the_truth(given: str, value: float) -> None:
    text = "Some examples\n" + mmvet.row("What is x?", "3<OR>x is three", given)
    said = rules.reply({"messages": [{"role": "user", "content": text}]})
    assert mmvet.score(said) == value


def test_a_process_answers_fails_and_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = tmp_path / "port"
    words = [sys.executable, "-m", "tests.evaluation.judges.judge_server", f"--port-file={port}"]
    root = Path(__file__).parents[3]
    with subprocess.Popen([*words, "--fail-after=1", "--failures=2"], cwd=root) as process:
        try:
            while not port.exists():
                assert process.poll() is None
                time.sleep(0.05)
            monkeypatch.setenv("OPENAI_API_KEY", js.KEY)
            with js.serving(js.by_rule) as other:
                quick = js.config(other, key_variable="OPENAI_API_KEY", timeout_seconds=20.0)
                inside = Endpoint(quick).ask(request("wise", IMAGES[0]))
            judge = Endpoint(replace(quick, base_url=f"http://127.0.0.1:{port.read_text()}/v1"))
            said = [judge.ask(request("wise", image)) for image in IMAGES[:2]]
            assert said[0] == inside and said[1].text == rules.reply(
                {"messages": request("wise", IMAGES[1]).messages()}
            )
        finally:
            process.terminate()


def test_what_no_benchmark_asks_is_refused() -> None:
    with js.serving(js.by_rule) as server, pytest.raises(ValueError, match="not understood"):
        Endpoint(js.config(server, key_variable="")).ask(JudgeRequest("one", ("Hello",)))
    assert len(server.asked) == 1
