"""The page of an invented tree: all sections, honest words, numbers as in `outcomes.json`, nothing foreign."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reca.config import compose
from reca.core import artifacts
from reca.report import page, paper
from tests.report.tree import MODEL, SKILL, Tree, experiment

HOSTILE = "<script>alert('x')</script> & \"a red circle\""
VOID = {"meta", "img"}
EXPECTATION = ("model", "arm", "metric", "value", "tolerance", "source")


class Reader(HTMLParser):
    """Tags with their attributes, visible text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make(folder: Path, plain: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
    """The page and the numbers of a tree below `folder`, which is the working directory."""
    page.build(plain, Tree(plain, **options).write(), folder)
    return (folder / page.PAGE).read_text(), json.loads((folder / page.OUTCOMES).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plain = experiment()
        entry = {"model": MODEL, "arm": "reca", "value": 0.4, "tolerance": 0.5, "source": "a guess"}
        other = entry | {"arm": "sft", "value": 0.99, "tolerance": 0.001}
        plain["expect"] = [one | {"metric": "laptop.dense"} for one in (entry, other)]
        plain["expect"].append(entry | {"model": "bagel_tiny_bound", "metric": "laptop.dense"})
        return *make(folder, plain, text=HOSTILE), folder


def test_all_sections_are_there_in_order(made: tuple[str, dict[str, Any], Path]) -> None:
    reader = Reader(made[0])
    assert not reader.open
    names = [
        "outcomes",
        "guidance",
        "pictures",
        "tasks",
        "reading",
        "losses",
        "recipe",
        "cost",
        "trail",
    ]
    found = [values["id"] for tag, values in reader.tags if tag == "section"]
    assert found == [*(f"{name}-1" for name in names), "expected"]
    headings = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_links_lead_somewhere(made: tuple[str, dict[str, Any], Path]) -> None:
    tags = Reader(made[0]).tags
    ids = {values["id"] for _, values in tags if "id" in values}
    links = {str(values["href"]).removeprefix("#") for tag, values in tags if tag == "a"}
    assert links and links <= ids


def test_nothing_comes_from_elsewhere(made: tuple[str, dict[str, Any], Path]) -> None:
    text, _, folder = made
    tags = Reader(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed"}
    assert all(str(v["src"]).startswith("data:image/png;base64,") for t, v in tags if t == "img")
    assert not re.search(r"https?://|@import|@font-face|url\(", text)
    assert str(folder) not in text and str(Path.home()) not in text


def test_every_picture_and_figure_has_words(made: tuple[str, dict[str, Any], Path]) -> None:
    tags = Reader(made[0]).tags
    pictures = [values for tag, values in tags if tag == "img"]
    figures = [values for tag, values in tags if tag == "svg" and values.get("role") == "img"]
    assert len(pictures) == 3 * 3 + 8 * 3 * 3  # scenes; tasks x prompts x arms
    assert all(values["alt"] for values in pictures)
    assert len(figures) == 4 + 2 + 2
    assert all(re.search(r"\d\.\d", str(values["aria-label"])) for values in figures)


def test_what_comes_from_files_is_escaped(made: tuple[str, dict[str, Any], Path]) -> None:
    assert "<script" not in made[0]
    assert HOSTILE in Reader(made[0]).text


def test_numbers_equal_outcomes_json(made: tuple[str, dict[str, Any], Path]) -> None:
    text, numbers, _ = made
    words = Reader(text).text
    (model,) = numbers["models"]
    assert model["name"] == MODEL
    for row in model["outcomes"]:
        for arm in SKILL:
            assert set(row[arm]) == {"mean", "ci95", "per_seed", "guidance"}
            assert len(row[arm]["per_seed"]) == 3
            if row["name"] != "reconstruction_exact":  # in outcomes.json only
                assert f"{row[arm]['mean']:.3f}" in text
    dense = model["outcomes"][0]
    gap = dense["differences"]["reca - sft"]
    assert f"On dense prompts, RecA reaches {dense['reca']['mean']:.3f}" in words
    for bounds in (gap["ci95"], gap["over_items"]["ci95"]):
        assert f"{bounds[0]:+.3f} to {bounds[1]:+.3f}".replace("-", "\N{MINUS SIGN}") in words


def test_means_follow_from_scores(made: tuple[str, dict[str, Any], Path]) -> None:
    _, numbers, folder = made
    row = next(r for r in numbers["models"][0]["outcomes"] if r["name"] == "geneval")
    chosen = artifacts.read_json(folder / "results/laptop" / MODEL / "guidance/guidance.json")[
        "chosen"
    ]
    for arm in SKILL:
        level = chosen[arm]["geneval"]
        values = [
            artifacts.read_json(
                folder / "results/laptop" / MODEL / f"{arm}-{seed}/laptop/test/scores/scores.json"
            )["by_guidance"][str(level)]["geneval"]
            for seed in range(3)
        ]
        assert row[arm]["guidance"] == level
        assert row[arm]["per_seed"] == values


def test_trail_names_every_stage(made: tuple[str, dict[str, Any], Path]) -> None:
    text, _, folder = made
    words = Reader(text).text
    manifests = [p for root in ("data", "results") for p in (folder / root).rglob("manifest.json")]
    assert len(manifests) == 1 + 1 + 2 + 9 + 2 * 2 * 12 + 1
    for manifest in manifests:
        assert manifest.parent.relative_to(folder).as_posix() in words
        assert artifacts.sha256_file(manifest)[:16] in words


def test_compute_cache_and_expectations_are_told(made: tuple[str, dict[str, Any], Path]) -> None:
    words = Reader(made[0]).text
    tasks = compose.load("laptop").models[MODEL].align.tasks
    samples = 12 * sum(task.batch for task in tasks.values())
    drawn = tasks["reca"].batch + tasks["t2i"].batch
    assert f"Every arm was trained for 12 optimizer steps on {samples:,} samples" in words
    # 9 runs x 12 steps of drawn rows, of which 200 had to be encoded once, at 0.02 s each
    rows = 9 * 12 * drawn
    assert (
        f"Training read {rows:,} rows from it: {rows - 200:,} encodings were not repeated" in words
    )
    assert "development prompts only" in words
    assert re.search(r"showo_tiny_bound, RecA, laptop\.dense 0\.4 ± 0\.5 0\.\d{3} yes", words)
    assert re.search(r"laptop\.dense 0\.99 ± 0\.001 0\.\d{3} no", words)
    assert re.search(
        "bagel_tiny_bound, RecA, laptop\\.dense 0\\.4 ± 0\\.5 \N{EN DASH} \N{EN DASH}", words
    )


def test_one_judge_of_expectations(made: tuple[str, dict[str, Any], Path]) -> None:
    """`outcomes.json` has the verdicts of the page, and the paper's tables come to the same ones."""
    _, numbers, folder = made
    verdicts = [one["verdict"] for one in numbers["expectations"]]
    assert verdicts == ["within tolerance", "outside tolerance", "not run"]
    dense = numbers["models"][0]["outcomes"][0]
    assert numbers["expectations"][0]["reproduced"]["value"] == pytest.approx(dense["reca"]["mean"])
    expect = {"laptop": [{k: one[k] for k in EXPECTATION} for one in numbers["expectations"]]}
    paper.build(folder / "results/laptop", folder / "tables", expect=expect)
    judged = artifacts.read_json(folder / "tables/expectations.json")["expectations"]
    assert judged == numbers["expectations"]


def test_an_expected_score_that_does_not_exist_is_named(
    made: tuple[str, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made[2])
    wrong = {"model": MODEL, "arm": "reca", "value": 0.4, "tolerance": 0.5, "source": "a guess"}
    plain = experiment() | {"expect": [wrong | {"metric": "laptop.absent"}]}
    with pytest.raises(
        ValueError, match=r"expect laptop\.absent: showo_tiny_bound reca has no such score"
    ):
        page.build(plain, Path("results/laptop"), tmp_path)


def test_same_tree_gives_same_bytes(
    made: tuple[str, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made[2])
    plain = experiment() | {"expect": []}
    outputs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        page.build(plain, Path("results/laptop"), tmp_path / name)
        outputs.append(
            [(tmp_path / name / file).read_bytes() for file in (page.PAGE, page.OUTCOMES)]
        )
    assert outputs[0] == outputs[1]


def test_two_models(
    made: tuple[str, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "results"):
        shutil.copytree(made[2] / name, tmp_path / name)
    shutil.copytree(tmp_path / "results/laptop" / MODEL, tmp_path / "results/laptop/another")
    plain = experiment()
    plain["models"]["another"] = plain["models"][MODEL]
    page.build(plain, Path("results/laptop"), tmp_path)
    reader = Reader((tmp_path / page.PAGE).read_text())
    ids = [values["id"] for _, values in reader.tags if "id" in values]
    assert len(ids) == len(set(ids)) and {"model-1", "model-2"} <= set(ids)
    headings = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_one_seed_one_guidance_two_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = experiment(seeds=[7], arms=["base", "reca"])
    plain["models"]["another"] = plain["models"][MODEL]
    text, numbers = make(tmp_path, plain, levels=[2.0])
    words = Reader(text).text
    dense = numbers["models"][0]["outcomes"][0]
    assert set(dense) >= {"base", "reca"} and "sft" not in dense
    assert dense["reca"]["ci95"] is None and dense["reca"]["guidance"] == 2.0
    assert "no control to compare with" in words
    assert "With a single seed there is no interval" in words and "95 % interval over" not in words
    assert "sampled at a single guidance level (2.0)" in words
    assert "Not run: bagel_tiny_bound, another." in words


def test_runs_of_an_earlier_recipe_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their folders stay where seeds or arms of an experiment are taken away."""
    made = {}
    for name in ("reduced", "fresh"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        plain = experiment(seeds=[0, 1], arms=["base", "reca", "sft"])
        entry = {"model": MODEL, "arm": "reca", "value": 0.4, "tolerance": 0.5, "source": "a guess"}
        plain["expect"] = [entry | {"metric": "laptop.dense"}]
        there = experiment(seeds=[0, 1, 2]) if name == "reduced" else plain
        tree = Tree(there, levels=[2.0])
        tree.write()
        caplog.clear()
        page.build(plain, tree.root, Path())
        made[name] = json.loads(Path(page.OUTCOMES).read_text())
        said = [line for line in caplog.messages if "left out" in line]
        assert [f"{MODEL}/shuffled-0" in line and "reca-1" not in line for line in said] == (
            [True] if name == "reduced" else []
        )
    assert made["reduced"] == made["fresh"]
    assert made["fresh"]["expectations"][0]["reproduced"]["seeds"] == 2
    for arm, seed in (("reca", 0), ("sft", 1), ("base", 0)):
        (tree.folder(arm, seed, "test", "scores") / artifacts.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"arm reca has scores of seeds \[1\], arm sft of \[0\]"):
        page.build(plain, tree.root, Path())


def test_two_readings_of_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the base's guidance all arms are read first; each at its own best is the second reading, beside a curve."""
    monkeypatch.chdir(tmp_path)
    plain = experiment()
    plain["benchmarks"]["laptop"] |= {"base_guidance": True, "curve_prompts": 4}
    text, numbers = make(tmp_path, plain)
    (model,) = numbers["models"]
    chosen = artifacts.read_json(Path("results/laptop") / MODEL / "guidance/guidance.json")[
        "chosen"
    ]
    rows = {row["name"]: row for row in model["outcomes"]}
    assert [r["name"] for r in model["outcomes"] if r["primary"]] == ["dense", "geneval_strict"]
    for name in ("dense", "geneval_strict"):
        second = rows[name]["at_base_guidance"]
        for arm in SKILL:
            assert second[arm]["guidance"] == chosen["base"][name]
            assert rows[name][arm]["guidance"] == chosen[arm][name]
            folder = Path("results/laptop") / MODEL
            values = [
                artifacts.read_json(folder / f"{arm}-{seed}/laptop/test/scores/scores.json")[
                    "by_guidance"
                ]
                for seed in range(3)
            ]
            at = str(second[arm]["guidance"])
            assert second[arm]["per_seed"] == [value[at][name] for value in values]
        assert second["base"] == {k: v for k, v in rows[name]["base"].items() if k != "differences"}
        gap = second["differences"]["reca - sft"]
        assert gap["over_items"]["mean"] == pytest.approx(gap["mean"])
    assert "at_base_guidance" not in rows["understanding"]
    assert set(model["curve"]) == {"dense", "geneval", "geneval_strict"}
    assert list(model["curve"]["dense"]["reca"]) == ["0.0", "1.0", "2.0", "4.0"]
    reader = Reader(text)
    assert not reader.open
    assert "each arm at its own best guidance, chosen on development prompts" in reader.text
    assert "All arms were read at the guidance that is best for the base" in reader.text
    assert "the first 4 of every task, with 95 % intervals over seeds" in reader.text
    figures = [
        values for tag, values in reader.tags if tag == "svg" and values.get("role") == "img"
    ]
    assert len(figures) == 5 + 3 + 3 + 2


def test_a_loss_is_called_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = experiment(arms=["base", "sft", "reca"])
    plain["benchmarks"]["laptop"]["prompts"] = 12
    tree = Tree(plain, skill={"base": 0.5, "sft": 0.9, "reca": 0.05}, levels=[2.0])
    page.build(plain, tree.write(), tmp_path)
    words = Reader((tmp_path / page.PAGE).read_text()).text
    dense = json.loads((tmp_path / page.OUTCOMES).read_text())["models"][0]["outcomes"][0]
    assert dense["differences"]["reca - sft"]["ci95"][1] < 0
    assert "On dense prompts, no, it is worse" in words
    assert "excludes 0: RecA is worse" in words


def test_incomplete_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no test scores of benchmark 'laptop'"):
        page.build(experiment(), Path("results/laptop"), tmp_path)
    other = experiment(benchmarks={"geneval": {"kind": "geneval"}})
    with pytest.raises(ValueError, match="kind laptop, not geneval"):
        page.build(other, Path("results/laptop"), tmp_path)
