"""The paper's tables: every reported number with its source, ours beside it or `not run`, never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from reca.core.artifacts import Stage, sha256_file, write_json
from reca.report import paper
from reca.report.paper_map import (
    COLUMNS,
    OWN_BENCHMARKS,
    OWN_MODELS,
    PUBLISHED,
    REPEATED,
    ROWS,
    VARIANTS,
    own_rows,
    reported_rows,
)
from tests.rehearsal.plan import published

DATA = Path(paper.__file__).parent / "paper_results.json"
ROOT = Path(__file__).parents[2]


def score(root, run, value, model="harmon_15b", benchmark="geneval", experiment="paper", **more):
    """A complete score stage with one number."""
    folder = root / experiment / model / run / benchmark / "test/scores"
    found = {
        "benchmark": benchmark, "label": f"{benchmark}(hf-detector)", "summary": {"overall": value},
        "intervals": {"overall": [value - 0.01, value + 0.01]}, "coverage": {"share": 1.0},
        "partial": False, **more,
    }  # fmt: skip
    with Stage("score", folder, inputs={}, section={}) as stage:
        write_json(stage.staging / "scores.json", found)


def cell(root, table, row, column, arm=None):
    made = {t["name"]: t for t in paper.tables(paper.collect(root))}
    (found,) = (r for r in made[table]["rows"] if (r["row"], r["arm"]) == (row, arm))
    return next(c for c in found["cells"] if c["column"] == column)


def test_the_numbers_are_the_transcription_and_nothing_else():
    pinned = yaml.safe_load((ROOT / "config/sources.yaml").read_text())["sources"]["paper-results"]
    assert sha256_file(DATA) == pinned["files"][0]["sha256"]
    transcribed = json.loads(DATA.read_text())
    made = paper.tables([])
    for table in made:
        assert table["source"] and table["rows"], table["name"]
        by_row = {(r, a): v for r, a, v in reported_rows(table["name"], transcribed[table["name"]])}
        reported = [row for row in table["rows"] if row["mark"] is None]
        assert {(row["row"], row["arm"]) for row in reported} == set(by_row)
        for row in reported:
            for one in row["cells"]:
                assert one["reported"] == by_row[row["row"], row["arm"]][one["column"]]
                assert one["reproduced"] is None and one["status"] != "run"


def test_every_table_with_numbers_is_a_target():
    transcribed = json.loads(DATA.read_text())
    without = {"_sources", "training_cost", "ablations_mentioned_without_numbers"}
    assert set(COLUMNS) == set(transcribed) - without


def test_rows_that_are_mapped_exist():
    transcribed = json.loads(DATA.read_text())
    for table, row in ROWS:
        assert row in {r for r, *_ in reported_rows(table, transcribed[table])}, (table, row)


def test_the_models_of_the_map_are_those_of_the_experiments():
    from reca.config import compose

    known = set(compose.load("paper").models)
    for name in published():
        known |= set(compose.load(name).models)
    assert {run.model for run in ROWS.values()} <= known
    assert {run.experiment for run in ROWS.values()} - {None} <= VARIANTS


def test_every_published_experiment_runs_models_of_its_own_or_is_a_variant():
    """After all of them have run, every row of the tables has one run."""
    runs: list[tuple[str, str]] = []
    for name in sorted(set(published()) - VARIANTS):
        plain = yaml.safe_load((ROOT / f"config/experiment/{name}.yaml").read_text())
        named = [key for entry in plain["defaults"] for key in entry if "/model@" in key]
        runs += [(name, key.rpartition(".")[2]) for key in named]
    models = [model for _, model in runs]
    assert len(models) == len(set(models)) and len(models) == 15, runs
    assert set(published()) >= VARIANTS and REPEATED.keys() <= VARIANTS
    assert set(PUBLISHED) == set(published()) - VARIANTS | {"paper", "janus_pro"}


class Everything(dict):
    """A summary in which every metric has a value."""

    def get(self, name, default=None):
        return 0.5


def test_every_cell_of_the_papers_own_models_has_a_published_experiment():
    from reca.config import compose

    scores = {
        "summary": Everything(),
        "intervals": {},
        "coverage": {"share": 1.0},
        "label": "",
        "partial": False,
    }
    found = [
        {"experiment": name, "model": model, "arm": arm, "benchmark": benchmark, "scale": None, "scores": scores}
        for name in published()
        for experiment in [compose.load(name)]
        for model, config in experiment.models.items()
        for arm in experiment.arms_of(model)
        for benchmark in config.benchmarks or experiment.benchmarks
    ]  # fmt: skip
    made = paper.tables(found)
    empty = [
        (table["name"], row["row"], cell["column"])
        for table in made
        for row in table["rows"]
        for cell in row["cells"]
        if cell["status"] in (paper.NOT_RUN, paper.OWN_NOT_RUN)
    ]
    assert not empty and paper.counts(made)[paper.RUN] > 250


def test_one_seed_has_the_interval_over_prompts(tmp_path):
    score(tmp_path, "reca-42", 0.85)
    found = cell(tmp_path, "per_model", "Harmon-1.5B", "geneval_overall", "reca")
    ours = found["reproduced"]
    assert (found["reported"], ours["value"], ours["over"]) == (
        85.7,
        pytest.approx(85.0),
        "prompts",
    )
    assert (
        ours["interval"] == pytest.approx([84.0, 86.0]) and ours["label"] == "geneval(hf-detector)"
    )
    assert paper.shown(found) == "85.00 [84.00, 86.00]"
    assert cell(tmp_path, "per_model", "Harmon-1.5B", "dpg", "reca")["status"] == "not run"
    assert (
        cell(tmp_path, "per_model", "Harmon-1.5B", "geneval_overall", "base")["status"] == "not run"
    )


def test_several_seeds_have_students_interval(tmp_path):
    for seed, value in enumerate((0.84, 0.85, 0.86)):
        score(tmp_path, f"reca-{seed}", value)
    ours = cell(tmp_path, "table1", "RecA (Harmon-1.5B)", "overall")["reproduced"]
    assert ours["seeds"] == 3 and ours["over"] == "seeds"
    assert ours["interval"] == pytest.approx([0.85 - 0.02484, 0.85 + 0.02484], abs=1e-4)


def test_other_peoples_models_are_never_ours(tmp_path):
    score(tmp_path, "base-0", 0.7)
    found = cell(tmp_path, "table1", "GPT-4o-Image", "overall")
    assert (
        found["status"] == paper.FOREIGN
        and found["reproduced"] is None
        and paper.shown(found) == ""
    )


def test_the_same_model_of_another_experiment_is_another_row(tmp_path):
    score(tmp_path, "reca-42", 0.90, experiment="paper_harmon_plus")
    assert cell(tmp_path, "table1", "RecA (GPT-4o data)", "overall")["reproduced"]["value"] == 0.90
    assert cell(tmp_path, "table1", "RecA (Harmon-1.5B)", "overall")["status"] == "not run"


def test_a_variant_of_a_recipe_is_never_taken_for_the_published_one(tmp_path):
    """Of the paper's experiments, eight train Harmon-1.5B: all of them may lie beside each other."""
    at = ("table1", "RecA (Harmon-1.5B)", "overall")
    order = ("ablation_order_harmon", "BLIP3o-60k: SFT then RecA", "geneval")
    score(tmp_path, "reca-42", 0.89, experiment="paper_harmon_sft_then_reca")
    assert cell(tmp_path, *at)["status"] == "not run"
    score(
        tmp_path, "reca-42", 0.84, experiment="paper_harmon_sft"
    )  # the published recipe, for comparison
    assert cell(tmp_path, *at)["reproduced"]["value"] == 0.84
    score(tmp_path, "reca-42", 0.85, experiment="paper_harmon_15b")
    assert cell(tmp_path, *at)["reproduced"]["value"] == 0.85
    assert cell(tmp_path, *order)["reproduced"]["value"] == pytest.approx(89.0)


def test_two_experiments_with_the_same_run_are_not_mixed(tmp_path):
    """The first of `PUBLISHED` is shown, by name; seeds of both are never pooled."""
    score(tmp_path, "reca-42", 0.80, experiment="paper_harmon_15b")
    score(tmp_path, "reca-43", 0.70, experiment="paper_harmon_15b")
    score(tmp_path, "reca-42", 0.85)
    found = cell(tmp_path, "table1", "RecA (Harmon-1.5B)", "overall")["reproduced"]
    assert (found["value"], found["seeds"], found["experiment"]) == (0.85, 1, "paper")
    score(tmp_path, "reca-42", 82.0, benchmark="dpg", experiment="paper_harmon_15b")
    shown = [
        paper.shown(cell(tmp_path, "table1", "RecA (Harmon-1.5B)", name))
        for name in ("overall", "dpg")
    ]
    assert shown == ["0.850 [0.840, 0.860] of paper", "82.00 [81.99, 82.01] of paper_harmon_15b"]
    score(tmp_path, "reca-42", 0.10, partial=True)  # limited: a complete one is shown before it
    found = cell(tmp_path, "table1", "RecA (Harmon-1.5B)", "overall")["reproduced"]
    assert (found["value"], found["experiment"]) == (0.75, "paper_harmon_15b")
    assert len(paper.collect(tmp_path / "paper")) == 1


def test_an_own_experiment_fills_no_cell_of_the_paper(tmp_path):
    """`reca new` keeps the name of the model: own images do not make a reproduction of its row."""
    score(tmp_path, "reca-42", 0.99, experiment="my_photos")
    score(tmp_path, "reca-42", 0.70, benchmark="dpg", experiment="my_photos")
    assert cell(tmp_path, "table1", "RecA (Harmon-1.5B)", "overall")["status"] == "not run"
    made = paper.tables(paper.collect(tmp_path))
    assert paper.counts(made).get("run", 0) == 0
    (row,) = made[-1]["rows"]
    assert made[-1]["name"] == paper.OTHERS and row["mark"].startswith("experiment my_photos")
    shown = {c["column"]: c["reproduced"]["value"] for c in row["cells"]}
    assert shown == {"geneval": 0.99, "dpg": 0.70}
    counted = paper.counts(made)
    assert counted["run (other experiments)"] == 2 and "run (ours)" not in counted
    toy = {"color_attr": 0.1, "dense": 0.2}  # has no overall score
    score(
        tmp_path,
        "reca-0",
        0.1,
        model="showo_tiny",
        benchmark="laptop",
        experiment="laptop",
        summary=toy,
        intervals={},
    )
    again = paper.tables(paper.collect(tmp_path))
    assert again[-1]["rows"] == [row] and again[-1]["columns"] == ["dpg", "geneval"]
    paper.build(tmp_path, tmp_path / "out")
    assert "experiment my_photos, no reported value" in (tmp_path / "out/index.html").read_text()


def test_a_partial_score_says_so_and_an_unfinished_one_is_not_there(tmp_path):
    score(tmp_path, "reca-42", 0.85, partial=True, coverage={"share": 0.98})
    found = cell(tmp_path, "per_model", "Harmon-1.5B", "geneval_overall", "reca")
    assert "partial: 98% scored" in paper.shown(found)
    (tmp_path / "paper/harmon_15b/reca-42/geneval/test/scores/manifest.json").unlink()
    assert paper.collect(tmp_path) == []


def test_the_page_opens_offline_and_escapes(tmp_path):
    score(tmp_path, "reca-42", 0.85, label="<script>alert(1)</script>")
    cells = paper.build(tmp_path, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert (
        "<script>" not in page
        and "&lt;script&gt;" in page
        and "http" not in page.split("</style>")[0]
    )
    assert (
        cells["run"] == 4
        and "85.70 / 85.00 [84.00, 86.00]" in (tmp_path / "out/tables.md").read_text()
    )
    assert sum(cells.values()) > 400


# ---- our own models, for which nothing is reported -----------------------------------------------------
def test_janus_pro_has_rows_of_ours_in_the_tables_of_generation_and_understanding():
    both = yaml.safe_load((ROOT / "config/experiment/janus_pro.yaml").read_text())
    assert set(OWN_MODELS.values()) == {one["model"] for one in both["expect"]}
    shared = yaml.safe_load((ROOT / "config/protocol/janus_pro.yaml").read_text())["defaults"]
    scored = {next(iter(one.values())) for one in shared if "/benchmark" in next(iter(one))}
    assert scored == OWN_BENCHMARKS
    made = {t["name"]: t for t in paper.tables([])}
    marked = {n: [r for r in t["rows"] if r["mark"]] for n, t in made.items()}
    assert {n for n, rows in marked.items() if rows} == {"per_model", "understanding_partial"}
    for name in ("per_model", "understanding_partial"):
        assert [(r["row"], r["arm"]) for r in marked[name]] == [x[:2] for x in own_rows(name)]
        assert len(marked[name]) == 4  # two sizes, base and RecA
        for one in (cell for row in marked[name] for cell in row["cells"]):
            assert one["reported"] is None and one["reproduced"] is None
            assert (one["status"], paper.shown(one)) == ("not run (ours)", "not run")
    benchmarks = {
        COLUMNS[n][c["column"]].benchmark for n in marked for r in marked[n] for c in r["cells"]
    }
    assert benchmarks == OWN_BENCHMARKS


@pytest.mark.parametrize("experiment", ["janus_pro", "janus_pro_7b"])
def test_a_row_of_ours_shows_our_number_and_the_expectation_with_its_source(tmp_path, experiment):
    run = {"model": "janus_pro_7b", "experiment": experiment}
    score(tmp_path / "results", "base-0", 0.81, **run)
    score(tmp_path / "results", "reca-0", 0.85, **run)
    report = {"arm": "base", "metric": "geneval.overall", "source": "Janus-Pro report"}
    stated = {"model": "janus_pro_7b", "value": 0.8, "tolerance": 0.02, **report}
    out = tmp_path / "out"
    cells = paper.build(tmp_path / "results", out, expect={**EXPECT, experiment: [stated]})
    assert (
        cells["run (ours)"] == 2 and "run" not in cells
    )  # nothing of the paper is reproduced by it
    lines = (out / "tables.md").read_text().splitlines()
    base, trained = (
        next(x for x in lines if x.startswith(f"| Janus-Pro-7B ({arm}): ours, no reported value |"))
        for arm in ("base", "reca")
    )
    within = "within tolerance [78.00, 82.00] (Janus-Pro report)"
    assert f"| - / 81.00 [80.00, 82.00], {within} |" in base
    assert "| - / 85.00 [84.00, 86.00] |" in trained
    page = (out / "index.html").read_text()
    assert page.count("<td>ours, no reported value</td>") == 8 and within in page
    made = json.loads((out / "tables.json").read_text())["tables"]
    assert all(
        c["reported"] is None for t in made for r in t["rows"] if r["mark"] for c in r["cells"]
    )


def test_a_cell_is_judged_by_the_experiment_that_its_number_comes_from(tmp_path):
    score(tmp_path / "results", "reca-42", 0.857, experiment="paper_harmon_15b")
    expect = {**EXPECT, "paper_harmon_15b": EXPECT["paper"]}  # the first of them was not run
    paper.build(tmp_path / "results", tmp_path / "out", expect=expect)
    assert "85.70 [84.70, 86.70], within tolerance" in (tmp_path / "out/tables.md").read_text()


# ---- expectations ----------------------------------------------------------------------------------
EXPECT = {
    "paper": [
        {"model": "harmon_15b", "arm": arm, "metric": "geneval.overall", "value": value,
         "tolerance": 0.02, "source": "test"}
        for arm, value in (("base", 0.729), ("reca", 0.857))
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.857, "within tolerance"),
        (0.877, "within tolerance"),
        (0.837, "within tolerance"),
        (0.8771, "outside tolerance"),
        (0.5, "outside tolerance"),
        (None, "not run"),
    ],
)
def test_cells_say_whether_they_are_within_tolerance(tmp_path, value, verdict):
    if value is not None:
        score(tmp_path / "results", "reca-42", value)
    paper.build(tmp_path / "results", tmp_path / "out", expect=EXPECT)
    judged = json.loads((tmp_path / "out/expectations.json").read_text())
    by_arm = {one["arm"]: one for one in judged["expectations"]}
    assert by_arm["reca"]["verdict"] == verdict and by_arm["base"]["verdict"] == "not run"
    assert sum(judged["counts"].values()) == 2 and judged["counts"][verdict] >= 1
    made = json.loads((tmp_path / "out/tables.json").read_text())["tables"]
    (table,) = (t for t in made if t["name"] == "per_model")
    (row,) = (r for r in table["rows"] if (r["row"], r["arm"]) == ("Harmon-1.5B", "reca"))
    cells = {c["column"]: c for c in row["cells"]}
    found = cells["geneval_overall"]
    assert found["verdict"] == verdict and found["expected"]["range"] == pytest.approx([83.7, 87.7])
    assert cells["dpg"]["verdict"] is None  # nobody said what to expect of it here
    if value is not None:
        assert paper.shown(found).endswith(f"], {verdict} [83.70, 87.70]")
        for name in ("tables.md", "index.html"):
            assert f"{verdict} [83.70, 87.70]" in (tmp_path / "out" / name).read_text()


def test_a_partial_score_or_one_of_another_experiment_is_not_compared(tmp_path):
    score(tmp_path, "reca-42", 0.5, partial=True)
    score(tmp_path, "base-42", 0.1, experiment="paper_harmon_15b")
    paper.build(tmp_path, tmp_path / "out", expect=EXPECT)
    judged = json.loads((tmp_path / "out/expectations.json").read_text())
    none = {"within tolerance": 0, "outside tolerance": 0, "other scorer, not compared": 0}
    assert judged["counts"] == {**none, "not run": 2}


def test_numbers_of_a_scale_are_marked_and_never_among_real_ones(tmp_path, caplog):
    score(tmp_path, "reca-42", 0.85, experiment="paper_harmon_15b-tiny")
    at = ("per_model", "Harmon-1.5B", "geneval_overall", "reca")
    assert cell(tmp_path, *at)["status"] == "not run"
    assert "1 scores of a smaller scale are left out" in caplog.text
    made = {t["name"]: t for t in paper.tables(paper.collect(tmp_path, scale="tiny"))}
    shown = [paper.shown(c) for r in made["table1"]["rows"] for c in r["cells"] if c["reproduced"]]
    assert shown == ["0.850 [0.840, 0.860] (scale tiny, not a result)"]
    own = tmp_path / "paper_harmon_15b-tiny"
    assert paper.shown(cell(own, *at)) == "85.00 [84.00, 86.00] (scale tiny, not a result)"
    expected = {
        "model": "harmon_15b", "arm": "reca", "metric": "geneval.overall", "value": 0.1, "tolerance": 0.01,
        "source": "us",
    }  # fmt: skip
    paper.build(own, tmp_path / "out", expect={"paper_harmon_15b": [expected]})
    counts = json.loads((tmp_path / "out/expectations.json").read_text())["counts"]
    assert counts["outside tolerance"] == 0 and counts["not run"] == 1
    for name in ("index.html", "tables.md"):
        assert "The paper&#39;s tables (scale tiny, not a result)".replace("&#39;", "'") in (
            tmp_path / "out" / name
        ).read_text().replace("&#39;", "'")


@pytest.mark.parametrize(
    ("label", "verdict"),
    [("dpg(blip-vqa)", "other scorer, not compared"), ("dpg(file:mplug)", "within tolerance")],
)
def test_a_substitute_scorer_is_not_compared_with_the_paper(tmp_path, label, verdict):
    score(tmp_path / "results", "reca-42", 82.5, benchmark="dpg", label=label)
    expected = {"model": "harmon_15b", "arm": "reca", "metric": "dpg.overall", "value": 82.2,
                "tolerance": 1.0, "source": "test"}  # fmt: skip
    paper.build(tmp_path / "results", tmp_path / "out", expect={"paper": [expected]})
    (judged,) = json.loads((tmp_path / "out/expectations.json").read_text())["expectations"]
    assert judged["verdict"] == verdict and judged["reproduced"]["value"] == 82.5
    assert verdict in (tmp_path / "out/tables.md").read_text()


def test_a_limited_run_without_one_of_the_tasks_does_not_stop_the_tables(tmp_path):
    score(tmp_path / "results", "reca-42", 0.9, partial=True, summary={"tasks.color": 0.9})
    paper.build(tmp_path / "results", tmp_path / "out", expect=EXPECT)
    judged = json.loads((tmp_path / "out/expectations.json").read_text())
    assert judged["counts"]["not run"] == 2


def test_every_experiment_with_bagel_samples_as_the_papers_own():
    """The authors set guidance and renormalisation per benchmark; an experiment that leaves them out has others."""
    from reca.config import compose

    own = compose.load("paper_bagel")
    for name in published():
        experiment = compose.load(name)
        for model, config in experiment.models.items():
            for benchmark in set(experiment.benchmarks) & set(own.benchmarks):
                if config.family == "bagel" and benchmark in (config.benchmarks or own.benchmarks):
                    set_ = experiment.benchmarks[benchmark].sampler.get(model, {})
                    assert set_ == own.benchmarks[benchmark].sampler.get("bagel_7b", {}), (
                        name,
                        benchmark,
                    )


def test_a_metric_that_no_score_has_is_named(tmp_path):
    score(tmp_path, "reca-42", 0.85)
    wrong = {"paper": [{**EXPECT["paper"][1], "metric": "geneval.overal"}]}
    with pytest.raises(ValueError, match=r"expect geneval\.overal: harmon_15b reca has no such"):
        paper.build(tmp_path, tmp_path / "out", expect=wrong)


def test_every_expectation_of_the_papers_experiment_about_a_table_finds_its_cell(tmp_path):
    from reca.config import compose

    told = compose.load("paper").expect
    expect = {"paper": [{**vars(one)} for one in told]}
    paper.build(tmp_path, tmp_path / "out", expect=expect)
    made = json.loads((tmp_path / "out/tables.json").read_text())["tables"]
    cells = [c for t in made for r in t["rows"] for c in r["cells"] if c["verdict"]]
    assert {c["verdict"] for c in cells} == {"not run"}
    for cell_ in cells:  # what is expected is what was reported, in its unit
        assert cell_["expected"]["value"] == pytest.approx(cell_["reported"], rel=0.02)


def test_results_that_are_not_there_are_not_checked(tmp_path, capsys):
    from reca.cli import main

    words = ["--results", str(tmp_path / "none"), "--out", str(tmp_path / "tables")]
    for verb in (["paper"], ["report", "--experiment", "laptop"]):
        assert main([*verb, *words]) == 2
        assert "none: no such folder" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["paper", *words, "--check"]) == 2
    error = capsys.readouterr().err
    assert "none: holds no score" in error and error.count("\n") == 1
    assert not (tmp_path / "tables").exists()
    assert main(["paper", *words]) == 0


def test_a_seed_that_the_experiment_no_longer_has_is_left_out(tmp_path, capsys):
    from reca.cli import main

    score(tmp_path / "results", "reca-42", 0.857)
    score(tmp_path / "results", "reca-7", 0.1)
    words = ["paper", "--results", str(tmp_path / "results"), "--check", "--out"]
    assert main([*words, str(tmp_path / "tables")]) == 0
    said = capsys.readouterr()
    assert "(1 scores)" in said.out and "left out: harmon_15b/reca-7" in said.err


def test_check_fails_where_a_number_is_outside(tmp_path, capsys):
    from reca.cli import main

    score(tmp_path / "results", "reca-42", 0.857)
    words = ["paper", "--results", str(tmp_path / "results"), "--check", "--out"]
    assert main([*words, str(tmp_path / "good")]) == 0
    assert "0 outside tolerance, 1 within tolerance" in capsys.readouterr().out
    score(tmp_path / "results", "base-42", 0.9)
    assert main([*words, str(tmp_path / "bad")]) == 3
    said = capsys.readouterr().out
    assert "outside: paper harmon_15b base geneval.overall: 0.9000, expected 0.729 +- 0.02" in said
    words.remove("--check")
    assert main([*words, str(tmp_path / "shown")]) == 0
    assert main([*words, str(tmp_path / "x"), "--experiment", "nowhere"]) == 2
