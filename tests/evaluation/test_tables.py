"""Hub tables: one configuration by its name and split, and every id once; what lies beside is never mixed in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from reca.config.schema import BenchmarkConfig
from reca.evaluation import benchmark_data, registry
from reca.evaluation.reading import Tables
from reca.evaluation.tasks import dpg, gqa, mmbench, mme, mmmu, mmvp, pope
from reca.sources.fetch import _selects, load_sources
from tests.evaluation import small_benchmarks as small
from tests.evaluation.test_data import HUB, cell, place, table

ROOT = Path(__file__).parents[2]
OTHERS = {  # what the hub keeps beside a benchmark's own tables: other rows under the same ids
    "pope": ["Full/random-00000.parquet", "Full/popular-00000.parquet"],
    "seed": ["other/test-00000.parquet", "data/validation-00000.parquet"],
    "mmbench": ["cn/dev-00000.parquet", "en/test-00000.parquet", "cc/test-00000.parquet"],
    "mmvet": ["default/test-00000.parquet"],
    "mmmu": ["Art/dev-00000.parquet", "Art/test-00000.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_configuration_or_split_beside_is_not_read(tmp_path, kind):
    """POPE publishes its rows twice, MMBench one id per language: neither may double or replace a question."""
    row, name, image, answer = HUB[kind]
    pixels = "image_1" if kind == "mmmu" else "image"
    other = {**row, "question": "Another?", pixels: [cell(9)] if kind == "seed" else cell(9)}
    for path in OTHERS[kind]:
        table(tmp_path / path, [other])
    table(tmp_path / place(kind), [row])
    sources = {"questions": tmp_path}
    (question,) = registry.module(kind).questions(sources)
    assert (question.id, question.answer) == (name, answer) and row["question"] in question.text
    shown = row[pixels][0] if kind == "seed" else row[pixels]
    assert benchmark_data.question_pictures(kind, [question], sources) == {image: shown["bytes"]}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_id_that_comes_again_is_named_with_its_files(tmp_path, kind):
    row, name, *_ = HUB[kind]
    first, second = place(kind), place(kind, 1)
    for path in (first, second):
        table(tmp_path / path, [row])
    with pytest.raises(ValueError) as raised:
        registry.module(kind).questions({"questions": tmp_path})
    said = str(raised.value)
    assert f"{tmp_path / second}: {name} occurs twice, first in {tmp_path / first}" in said
    table(tmp_path / "again" / first, [row, row])
    with pytest.raises(ValueError, match=f"{name} occurs twice, first in the same file"):
        registry.module(kind).questions({"questions": tmp_path / "again"})


def test_only_another_language_or_split_is_refused_with_what_is_there(tmp_path):
    row = HUB["mmbench"][0]
    table(tmp_path / "a/cn/dev-00000.parquet", [row])
    with pytest.raises(ValueError, match=r"MMBench must be in one folder 'en', found cn;"):
        mmbench.questions({"questions": tmp_path / "a"})
    table(tmp_path / "b/en/test-00000.parquet", [row])
    with pytest.raises(ValueError, match=r"no table dev-\*\.parquet of MMBench, found test-00000"):
        mmbench.questions({"questions": tmp_path / "b"})
    for root in ("one", "two"):
        table(tmp_path / f"c/{root}/en/dev-00000.parquet", [row])
    with pytest.raises(ValueError, match="in one folder 'en', found one/en, two/en"):
        mmbench.questions({"questions": tmp_path / "c"})
    table(tmp_path / "d/en/dev-00000.parquet", [{**row, "answer": "nan"}])
    with pytest.raises(
        ValueError, match=r"dev-00000\.parquet: 7: the answer 'nan' is not among the options"
    ):
        mmbench.questions({"questions": tmp_path / "d"})
    table(tmp_path / "e/dev-00000.parquet", [row])  # right in the folder, as somebody copied them
    assert len(mmbench.questions({"questions": tmp_path / "e"})) == 1
    development = table(tmp_path / "f/data/devel-00000.parquet", [row]).parent
    with pytest.raises(ValueError, match=r"no table dev-\*"):
        Tables("data", "dev").below(development, "x")


def test_mme_twice_is_refused(tmp_path):
    folder = small.mme(tmp_path / "mme")
    first = pq.read_table(folder / "test-0.parquet").to_pylist()
    assert len(mme.questions({"questions": folder})) == 4
    table(folder / "test-9.parquet", first)
    with pytest.raises(ValueError, match=r"test-9\.parquet: existence/1\.jpg.* occurs twice"):
        mme.questions({"questions": folder})
    more = [{**row, "question": f"another {row['question']}"} for row in first]
    table(folder / "test-9.parquet", more)
    with pytest.raises(
        ValueError, match=r"test-9\.parquet: existence/1\.jpg has more than 2 questions"
    ):
        mme.questions({"questions": folder})


def test_questions_and_pictures_of_gqa_are_configurations_of_their_own(tmp_path):
    row = {"id": "201", "imageId": "n1", "question": "Is it red?", "answer": "yes"}
    table(tmp_path / "testdev_balanced_instructions/testdev-0.parquet", [row])
    table(tmp_path / "train_balanced_instructions/train-0.parquet", [row])
    table(tmp_path / "testdev_balanced_images/testdev-0.parquet", [{"id": "n1", "image": cell(1)}])
    table(
        tmp_path / "challenge_balanced_images/challenge-0.parquet", [{"id": "n1", "image": cell(2)}]
    )
    (question,) = gqa.questions({"questions": tmp_path})
    found = benchmark_data.question_pictures("gqa", [question], {"questions": tmp_path})
    assert found == {"n1": small.picture(1)}


def test_options_of_mmmu_as_a_real_list(tmp_path):
    row = HUB["mmmu"][0]
    expected = mmmu.questions({"questions": table(tmp_path / "a/validation-0.parquet", [row])})
    listed = [{**row, "options": ["x", "y"]}]
    assert (
        mmmu.questions({"questions": table(tmp_path / "b/validation-0.parquet", listed)})
        == expected
    )
    short = {**row, "options": [], "answer": ["12", "twelve"]}
    table(tmp_path / "c/validation-0.parquet", [short])
    (question,) = mmmu.questions({"questions": tmp_path / "c"})
    assert question.facts["gold"] == ["12", "twelve"] and not question.facts["options"]


@pytest.mark.parametrize("kind", [*HUB, "gedit"])
def test_a_question_that_is_no_text_and_a_missing_answer_are_named(tmp_path, kind):
    """They would be asked as `None`, or be graded against it."""
    edit = {"key": "k", "task_type": "ps_human", "instruction": "x", "instruction_language": "en",
            "Intersection_exist": True}  # fmt: skip
    row = edit if kind == "gedit" else HUB[kind][0]
    asked = "instruction" if kind == "gedit" else "question"
    wrong = [{asked: None}, {asked: ["a", "b"]}, {asked: " "}]
    wrong += [] if kind == "gedit" else [{"answer": None}]
    wrong += [{"answer": "maybe"}] if kind == "pope" else []
    read = registry.module(kind).prompts if kind == "gedit" else registry.module(kind).questions
    name = "train-0.parquet" if kind == "gedit" else place(kind)
    for number, change in enumerate(wrong):
        path = tmp_path / f"{number}/{name}"
        table(path, [{**row, **change}])
        with pytest.raises(ValueError) as raised:
            read({"questions": path.parent, "prompts": path.parent})
        said = str(raised.value)
        assert (
            said.startswith(f"{path}: ")
            and "fetch the pinned revision" in said
            and "\n" not in said
        )


def test_a_table_of_which_a_file_is_missing_is_refused(tmp_path):
    row = HUB["mmbench"][0]
    for number in (0, 2):
        path = tmp_path / f"en/dev-0000{number}-of-00003.parquet"
        table(path, [{**row, "index": number}])
    with pytest.raises(ValueError, match=r"en: only 2 of 3 tables, number 1 is missing; fetch"):
        mmbench.questions({"questions": tmp_path})
    table(tmp_path / "en/dev-00001-of-00003.parquet", [{**row, "index": 1}])
    assert len(mmbench.questions({"questions": tmp_path})) == 3


def test_tables_of_other_rows_alone_are_refused(tmp_path):
    """SEED's videos, GEdit's Chinese half."""
    row = {**HUB["seed"][0], "data_type": "video"}
    with pytest.raises(ValueError, match="contains no questions or prompts; fetch"):
        registry.module("seed").questions(
            {"questions": table(tmp_path / place("seed"), [row]).parent}
        )
    edit = {"key": "k", "task_type": "ps_human", "instruction": "x", "instruction_language": "cn",
            "Intersection_exist": True}  # fmt: skip
    with pytest.raises(ValueError, match="contains no questions or prompts; fetch"):
        registry.module("gedit").prompts({"prompts": table(tmp_path / "g/train-0.parquet", [edit])})


@pytest.mark.parametrize("fault", ["latin-1", "cut row", "open quote", "long cell"])
def test_a_csv_that_is_no_whole_table_is_named(tmp_path, fault):
    rows = {
        "latin-1": "1,caf\xe9,(a) x (b) y,(a)\n".encode("latin-1"),
        "cut row": b"1,Where?\n",
        "open quote": b'1,"Where?,(a) x (b) y,(a)\n2,Who?,(a) x (b) y,(b)\n',
        "long cell": b"1," + b"q" * 200_000 + b",(a) x (b) y,(a)\n",
    }
    path = tmp_path / "Questions.csv"
    path.write_bytes(b"lndex,Question,Options,Correct Answer\n" + rows[fault])
    with pytest.raises(ValueError) as raised:
        mmvp.questions({"questions": tmp_path})
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


WRONG = {
    "options of null": ("[None, 'y']", "B", "the options are not a list of at most 9"),
    "no list": ("x, y", "B", "'x, y' is not a list"),
    "a call": ("__import__('os')", "B", "is not a list"),
    "deep": ("[" * 5000 + "]" * 5000, "B", "is not a list"),
    "a number": ("7", "B", "the options are not a list of at most 9"),
    "ten": (str([str(i) for i in range(10)]), "B", "the options are not a list of at most 9"),
    "no such option": ("['x', 'y']", "C", "the answer 'C' is not among the options (A, B)"),
    "no answer": ("['x', 'y']", "[]", "has no answer"),
}


@pytest.mark.parametrize("how", WRONG)
def test_rows_of_mmmu_that_cannot_be_asked_are_named(tmp_path, how):
    options, answer, message = WRONG[how]
    row = {**HUB["mmmu"][0], "options": options, "answer": answer}
    path = tmp_path / "validation-0.parquet"
    table(path, [row])
    with pytest.raises(ValueError) as raised:
        mmmu.questions({"questions": tmp_path})
    said = str(raised.value)
    assert said.startswith(f"{path}: {row['id']}: ") and message in said and "\n" not in said


# ---- files that are no tables --------------------------------------------------------------------
def wise(folder, *more):
    small.wise(folder)
    path = folder / "natural_science.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), *more]))
    return {"prompts": folder, "judge": folder}


def test_ids_of_prompts_that_come_again_are_refused(tmp_path):
    row = {"Prompt": "p", "Explanation": "", "Category": "c", "Subcategory": "s", "prompt_id": 1}
    with pytest.raises(
        ValueError, match=r"natural_science\.json: 1 occurs twice, first in .*cultural"
    ):
        benchmark_data.items_of("wise", wise(tmp_path / "wise", row))
    rows = [{"Question": "a dog", "Category": "color", "Question_id": 7}] * 2
    (tmp_path / "val_comp.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"val_comp\.json: 7 occurs twice"):
        benchmark_data.items_of("t2i_compbench", {"prompts": tmp_path})
    folder = small.imgedit(tmp_path / "e")
    text = (folder / "singleturn.json").read_text()
    (folder / "singleturn.json").write_text(text.replace('"12":', '"7":'))
    with pytest.raises(ValueError, match=r"singleturn\.json: .*the key '7' occurs twice"):
        benchmark_data.items_of("imgedit", {"prompts": folder})
    folder = small.dpg(tmp_path / "dpg")
    table_ = folder / "dpg_bench.csv"
    table_.write_text(table_.read_text() + table_.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match=r"dpg_bench\.csv: one, proposition 1 occurs twice"):
        registry.module("dpg").questions({"questions": folder})
    (folder / "prompts.json").write_text('{"one.txt": "a", "one": "b"}')
    with pytest.raises(ValueError, match=r"prompts\.json: one occurs twice"):
        benchmark_data.items_of("dpg", {"prompts": folder})
    edits = [
        {"key": "k", "task_type": "ps_human", "instruction": str(i), "instruction_language": "en",
         "Intersection_exist": True, "input_image_raw": cell(i)}
        for i in range(2)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"train-0\.parquet: k occurs twice"):
        benchmark_data.items_of("gedit", {"prompts": table(tmp_path / "g/train-0.parquet", edits)})


@pytest.mark.parametrize("needed", dpg.NEEDED)
def test_a_question_table_of_dpg_without_a_column_is_refused(tmp_path, needed):
    """Not only when the column is read, which is after all images were generated."""
    path = small.dpg(tmp_path / "dpg") / "dpg_bench.csv"
    path.write_text(path.read_text().replace(needed, f"new_{needed}", 1))
    with pytest.raises(ValueError, match=rf"dpg_bench\.csv: has no column {needed};"):
        dpg.questions({"questions": path.parent})


def test_a_prompt_of_geneval_without_objects_is_refused(tmp_path):
    """It would count as right for every image."""
    folder = small.geneval(tmp_path / "geneval")
    path = folder / "evaluation_metadata.jsonl"
    path.write_text(path.read_text().replace('"include"', '"includes"'))
    with pytest.raises(ValueError, match="line 1: the key 'include' is missing"):
        benchmark_data.items_of("geneval", {"prompts": folder})


def test_a_benchmark_without_prompts_or_questions_is_refused(tmp_path):
    """Its score would be complete, and empty."""
    (tmp_path / "val_comp.json").write_text("[]")
    with pytest.raises(ValueError, match="contains no questions or prompts"):
        benchmark_data.items_of("t2i_compbench", {"prompts": tmp_path})
    row, *_ = HUB["pope"]
    data = {"questions": tmp_path}
    path = tmp_path / place("pope")
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([row]).slice(1), path)
    with pytest.raises(ValueError, match="contains no questions or prompts"):
        benchmark_data.questions_of(BenchmarkConfig(kind="pope"), data)


def test_two_files_of_one_name_that_differ_are_refused(tmp_path):
    sources = wise(tmp_path / "wise")
    copy = tmp_path / "wise/older/natural_science.json"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "wise/natural_science.json").read_bytes())
    assert len(benchmark_data.items_of("wise", sources)) == 6  # the same file twice
    copy.write_text("[]")
    with pytest.raises(
        ValueError, match=r"2 different files natural_science\.json \(natural.*, older/"
    ):
        benchmark_data.items_of("wise", sources)


def test_pictures_of_one_name_that_differ_are_refused(tmp_path):
    with open(tmp_path / "Questions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lndex", "Question", "Options", "Correct Answer"])
        writer.writerow([1, "Where?", "(a) Left (b) Right", "(a)"])
    for folder in ("MMVP Images", "older"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(small.picture(1, kind="JPEG"))
    asked = mmvp.questions({"questions": tmp_path})
    with pytest.raises(
        ValueError, match=r"older/1\.jpg: 1 occurs twice, first .*MMVP Images/1\.jpg"
    ):
        benchmark_data.question_pictures("mmvp", asked, {"questions": tmp_path})
    sources = {"prompts": small.imgedit(tmp_path / "e"), "images": tmp_path / "e/images"}
    (tmp_path / "e/images/other/animal").mkdir(parents=True)
    (tmp_path / "e/images/other/animal/1.jpg").write_bytes(small.picture(7, kind="JPEG"))
    with pytest.raises(ValueError, match=r"other/animal/1\.jpg: a different image animal/1\.jpg"):
        benchmark_data.edit_sources("imgedit", benchmark_data.items_of("imgedit", sources), sources)


# ---- what is fetched -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [*OTHERS, "gqa", "mme", "gedit"])
def test_the_patterns_of_the_sources_fetch_what_is_read_and_nothing_beside_it(kind):
    named = yaml.safe_load((ROOT / f"config/benchmark/{kind}.yaml").read_text())["source"]
    source = load_sources(ROOT / "config/sources.yaml")[named]
    module = registry.module(kind)
    wanted = {
        f"{t.folder.replace('*', 'Art')}/{t.split}-00000-of-00001.parquet"
        for t in (module.TABLES, getattr(module, "PICTURES", module.TABLES))
    }
    beside = {"Full/random-00000.parquet", "cn/dev-00000.parquet", "en/test-00000.parquet", "Art/test-00000.parquet",
              "train_balanced_images/train-00000.parquet"}  # fmt: skip
    taken = {p for p in wanted | beside if any(_selects(f, p) for f in source.files)}
    assert taken == wanted


def test_pope_has_nine_thousand_rows_once(tmp_path):
    """As on the hub: `data` with all rows, `Full` with the same by category."""
    rows = [
        {"question_id": str(i), "question": "Is there a cat?", "answer": "yes", "image_source": f"COCO_{i}",
         "category": category, "image": {"bytes": b"x", "path": None}}
        for category in pope.FILES
        for i in range(3000)
    ]  # fmt: skip
    table(tmp_path / "data/test-00000-of-00001.parquet", rows)
    for category in pope.FILES:
        own = [row for row in rows if row["category"] == category]
        pq.write_table(pa.Table.from_pylist(own), tmp_path / f"{category}.tmp")
        (tmp_path / "Full").mkdir(exist_ok=True)
        (tmp_path / f"{category}.tmp").rename(tmp_path / f"Full/{category}-00000-of-00001.parquet")
    assert len(pope.questions({"questions": tmp_path})) == 9000
