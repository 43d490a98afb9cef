"""What published experiments download besides models: offered, pinned, fetched, read, observed and scored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from reca.cli import main
from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import write_json
from reca.data.formats import open_dataset
from reca.evaluation import registry
from reca.evaluation.benchmark_data import assignment, edit_sources, items_of, questions_of
from reca.evaluation.graded import Graded
from reca.evaluation.observe import observe
from reca.evaluation.observers.view import View
from reca.evaluation.score import graded
from reca.sources.fetch import list_sources
from tests.align.published import at_scale
from tests.evaluation.judges import judge_server as js
from tests.hub import benchmarks, observers
from tests.hub.benchmarks import CATALOGUE
from tests.hub.client import served
from tests.hub.conftest import work_in
from tests.hub.encoded import image
from tests.hub.read import samples
from tests.hub.server import COMMIT, Hub

PUBLISHED = ("experiment/paper*", "experiment/ablation_*", "experiment/janus_pro*", "protocol/*")
GROUP = re.compile(r"^  - /(data|benchmark)@\S+: (\w+)$", re.MULTILINE)


@cache
def needed() -> set[str]:
    """The sources of the data sets and benchmarks of all published experiments."""
    config = CATALOGUE.parent
    paths = [path for pattern in PUBLISHED for path in config.glob(f"{pattern}.yaml")]
    groups = {group for path in paths for group in GROUP.findall(path.read_text())}
    found = set()
    for group, name in groups:
        described = yaml.safe_load((config / group / f"{name}.yaml").read_text())
        judge = (described.get("judge") or {}).get("source")
        found |= {described["source"], judge, *described.get("companions", {}).values()}
    return found - {None}


def test_every_source_of_a_published_experiment_is_offered() -> None:
    assert needed() == set(benchmarks.files())


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A working folder in which all of them were pinned and fetched, into data/."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(tmp_path_factory.mktemp("site"), patch)
        benchmarks.write_mirror(Path("mirror"))
        benchmarks.write_catalogue(Path("config/sources.yaml"))
        names = sorted(needed())
        with served(benchmarks.repositories(), patch) as site:
            assert main(["pin", *names, "--mirror", "mirror"]) == 0
            for name in names:
                assert main(["fetch", name, "--out", f"data/{name}", "--mirror", "mirror"]) == 0
            yield site


def test_all_are_pinned_and_nothing_else_is_fetched(fetched: Hub) -> None:
    assert {status.source.name for status in list_sources() if status.pinned} >= needed()
    found = {path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert b"never fetched" not in found


def test_data_sets_are_read_with_their_texts(fetched: Hub) -> None:
    found = {name: samples(name) for name in ("midjourney_v6", "blip3o_60k", "text_to_image_10k")}
    assert all(len(every) == 12 for every in found.values())
    captions = [sample.caption for sample in found["midjourney_v6"]]
    assert captions[0] == "a red circle" and len(set(captions)) == 12
    assert len(samples("llava_665k")) == 12  # one conversation has no image


# ---- benchmarks ------------------------------------------------------------------------------------
PICTURES = ("geneval", "dpg", "wise", "t2i_compbench", "imgedit", "gedit")
QUESTIONS = ("mme", "pope", "gqa", "mmmu", "seed", "mmbench", "mmvp", "mmvet")
WRONG = "nothing of the kind"


def benchmark_of(name: str, **changed: Any) -> BenchmarkConfig:
    """A benchmark of the paper at scale tiny."""
    return replace(at_scale("paper").benchmarks[name], **changed)


def data_of(benchmark: BenchmarkConfig) -> dict[str, Path]:
    """Fetched folders by role, as the workflow gives them."""
    first = "prompts" if registry.kind(benchmark.kind).images else "questions"
    roles = {first: benchmark.source, **benchmark.companions}
    if benchmark.judge and benchmark.judge.source:
        roles["judge_model"] = benchmark.judge.source
    return {role: Path("data", str(source)) for role, source in roles.items()}


def scored(benchmark: BenchmarkConfig, folder: Path) -> Graded:
    """Observe images of random blocks, or answers of which a third is right, and grade what was seen."""
    data, kind = data_of(benchmark), registry.kind(benchmark.kind)
    view = View(benchmark, [], {}, data, benchmark.images_per_prompt, folder / "work", folder / "seen",
                folder / "ledger.jsonl")  # fmt: skip
    if kind.images:
        items = items_of(benchmark.kind, data, benchmark.prompts)
        drawn = {
            (item.id, k): image(len(items) * k + number, "PNG", (16, 16))
            for number, item in enumerate(items)
            for k in range(view.samples)
        }
        sources = edit_sources(benchmark.kind, items, data) if "edit" in kind.needs else {}
        view = replace(view, items=items, pictures=drawn, sources=sources)
        answers = []
    else:
        asked = questions_of(benchmark, data)
        said = {q.id: WRONG if number % 3 else q.answer for number, q in enumerate(asked)}
        view = replace(view, asked=asked, answers=said)
        folder.mkdir(exist_ok=True)
        write_json(folder / "answers.json", said)
        answers = [folder / "answers.json"]
    if kind.evidence != "none":
        observe(view)
    evidence = [view.out] if kind.evidence != "none" else []
    return graded(benchmark, data, evidence, answers, view.samples)


@pytest.mark.parametrize("name", PICTURES)
def test_prompts_of_every_task_are_planned(name: str, fetched: Hub) -> None:
    benchmark = benchmark_of(name)
    data = data_of(benchmark)
    whole = registry.module(name).prompts(data)
    parts = [assignment(benchmark, data, "test", [1.0], (shard, 2)) for shard in range(2)]
    planned = [prompt for part in parts for one in part.passes for prompt in one.prompts]
    assert len(planned) == 12 < len(whole) and {p.task for p in planned} == {p.task for p in whole}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_are_planned_with_their_images(name: str, fetched: Hub) -> None:
    benchmark = benchmark_of(name)
    data = data_of(benchmark)
    whole = registry.module(name).questions(data)
    parts = [assignment(benchmark, data, "test", [1.0], (shard, 2)) for shard in range(2)]
    for part in parts:
        wanted = {one for question in part.questions for one in question.image_ids}
        assert part.read(part.questions).keys() == wanted
    planned = [question for part in parts for question in part.questions]
    kinds = {question.kind for question in whole}
    pairs = getattr(registry.module(name), "TOGETHER", 1)
    assert len(planned) == 8 < len(whole)
    assert len({question.kind for question in planned}) == min(len(kinds), 8 // pairs)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[js.JudgeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", js.KEY)
    with js.serving(js.by_rule) as server:
        yield server


def judged_by(server: js.JudgeServer, benchmark: BenchmarkConfig, **more: Any) -> BenchmarkConfig:
    """The published judge of a benchmark, at another address."""
    assert benchmark.judge is not None
    if benchmark.judge.kind == "transformers":
        return benchmark
    return replace(benchmark, judge=replace(benchmark.judge, base_url=f"{server.url}/v1", **more))


@pytest.mark.parametrize("name", [*PICTURES, *QUESTIONS])
def test_every_score_of_a_benchmark_has_a_value(
    name: str, fetched: Hub, judge: js.JudgeServer, tmp_path: Path
) -> None:
    benchmark = benchmark_of(name, images_per_prompt=1)
    if benchmark.judge:
        benchmark = judged_by(judge, benchmark)
    found = scored(benchmark, tmp_path / "run")
    assert found.coverage.complete and found.coverage.expected
    assert None not in found.summary.values()
    assert len({row["score"] for row in found.items}) > 1, "every sample has the same score"


def test_a_judge_that_fails_in_the_middle_is_asked_for_the_rest_only(
    fetched: Hub, judge: js.JudgeServer, tmp_path: Path
) -> None:
    quick = {"tries": 2, "backoff_seconds": 0.001, "concurrency": 1}
    benchmark = judged_by(judge, benchmark_of("wise"), **quick)
    whole = scored(benchmark, tmp_path / "whole")
    for how in js.FAILURES.values():
        folder = tmp_path / how.__name__
        judge.script, judge.asked = js.failing(5, 6, how), []
        with pytest.raises(OSError, match=r"wise: 3 of 12 requests got no reply from 127\.0\.0\.1"):
            scored(benchmark, folder)
        assert len(judge.asked) == 5 + 6 + 4
        assert scored(benchmark, folder) == whole and len(judge.asked) == 15 + 3


# ---- what is not as it was -------------------------------------------------------------------------
def test_a_split_of_another_name_is_one_line(
    fetched: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = fetched.repositories["datasets/lmms-lab/MME"]
    renamed = {name.replace("test", "validation"): data for name, data in repository.files.items()}
    repository.commit("e" * 40, {**dict.fromkeys(repository.files), **renamed})
    try:
        assert main(["pin", "mme", "--update"]) != 0
    finally:
        repository.main = COMMIT
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "mme: lmms-lab/MME holds no file that matches data/test-*.parquet" in line


def test_files_are_the_same_each_time() -> None:
    first = {n: dict(found) for n, found in benchmarks.texts().items()}
    benchmarks.texts.cache_clear()
    assert benchmarks.texts() == first
    observers.blip_vqa.cache_clear()
    assert observers.blip_vqa() == benchmarks.files()["blip-vqa"]


def test_a_training_column_that_is_missing_on_the_hub_is_one_line(fetched: Hub) -> None:
    """As it is after a change of the data set: the experiment that reads the column says so before it starts."""
    folder = Path("data/changed/data")
    folder.mkdir(parents=True)
    for path in Path("data/midjourney-v6-llava/data").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["llava"]), folder / path.name)
    columns = {"image": "image", "caption": "llava"}  # of paper_harmon_dense
    line = r"no column 'llava' \(caption\); it has .*'prompt'.*; set data\.<name>\.options\.caption"
    with pytest.raises(ValueError, match=line):
        open_dataset("parquet", folder, **columns)
