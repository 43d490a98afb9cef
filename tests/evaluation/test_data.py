"""What benchmarks read and ask: files of the official forms, requests to judges, and a mirror's real files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reca.evaluation import benchmark_data, registry
from reca.evaluation.benchmark_data import shard_of, spread
from reca.evaluation.graded import coverage_of, interval
from reca.evaluation.judges.requests import Picture
from reca.evaluation.pictures import of_folder, samples_in
from reca.evaluation.reading import hub_rows
from reca.evaluation.tasks import (
    dpg,
    gedit,
    geneval,
    gqa,
    imgedit,
    mmbench,
    mme,
    mmmu,
    mmvet,
    mmvp,
    pope,
    reconstruction,
    seed,
    t2i_compbench,
    wise,
)
from reca.inference.items import Prompt
from tests.evaluation import small_benchmarks as small

ROOT = Path(__file__).parents[2]


def table(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.parent


def cell(number: int) -> dict:
    return {"bytes": small.picture(number), "path": None}


# ---- questions -----------------------------------------------------------------------------------
HUB = {
    "pope": ({"question_id": "1", "question": "Is there a cat?", "answer": "yes", "image_source": "COCO_1",
              "category": "random", "image": cell(1)}, "random-1", "COCO_1", "yes"),
    "seed": ({"question_id": "9_0", "question": "What?", "choice_a": "x", "choice_b": "y", "choice_c": "z",
              "choice_d": "w", "answer": "B", "data_type": "image", "question_type_id": 3, "image": [cell(2)]},
             "9_0", "9_0", "B"),
    "mmbench": ({"index": 7, "question": "What?", "hint": "look", "A": "x", "B": "y", "C": None, "D": None,
                 "answer": "A", "category": "c", "l2-category": "l2", "image": cell(3)}, "7", "7", "A"),
    "mmvet": ({"question_id": "v1_0", "question": "What is x?", "answer": "-1<AND>-5", "capability": "ocr,math",
               "image": cell(4)}, "v1_0", "v1_0", "-1<AND>-5"),
    "mmmu": ({"id": "validation_Art_Theory_2", "question": "Which <image 1>?", "options": "['x', 'y']",
              "answer": "B", "image_1": cell(5), "question_type": "multiple-choice"},
             "validation_Art_Theory_2", "validation_Art_Theory_2", "B"),
}  # fmt: skip


def place(kind: str, number: int = 0) -> str:
    """Where the hub keeps a table of a benchmark."""
    if kind == "mmmu":
        return f"Art/validation-{number:05d}.parquet"
    tables = registry.module(kind).TABLES
    return f"{tables.folder}/{tables.split}-{number:05d}.parquet"


@pytest.mark.parametrize("kind", HUB)
def test_questions_and_pictures_of_hub_tables(tmp_path, kind):
    row, name, image, answer = HUB[kind]
    sources = {"questions": table(tmp_path / f"q/{place(kind)}", [row]).parent}
    (question,) = registry.module(kind).questions(sources)
    assert (question.id, question.image_id, question.answer) == (name, image, answer)
    assert row["question"] in question.text
    found = benchmark_data.question_pictures(kind, [question], sources)
    assert set(found) == {image} and found[image].startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", HUB)
def test_a_hub_table_with_other_columns_is_named_with_what_it_has(tmp_path, kind):
    """As after a change on the hub: one column renamed, for every column that is read."""
    row, *_ = HUB[kind]
    for number, needed in enumerate(registry.module(kind).NEEDED):
        other = {f"new_{needed}" if name == needed else name: cell for name, cell in row.items()}
        path = tmp_path / f"{number}/{place(kind)}"
        sources = {"questions": table(path, [other]).parent}
        with pytest.raises(ValueError) as raised:
            registry.module(kind).questions(sources)
        said = str(raised.value)
        assert str(path) in said and f"no column {needed};" in said and f"new_{needed}" in said
        assert "fetch the pinned revision" in said


@pytest.mark.parametrize("kind", HUB)
def test_a_hub_table_without_pictures_is_named_with_what_it_has(tmp_path, kind):
    row, *_ = HUB[kind]
    sources = {"questions": table(tmp_path / f"a/{place(kind)}", [row])}
    asked = registry.module(kind).questions(sources)
    pixels = "image_1" if kind == "mmmu" else "image"
    other = {f"new_{n}" if n == pixels else n: cell for n, cell in row.items()}
    sources = {"questions": table(tmp_path / f"b/{place(kind)}", [other])}
    with pytest.raises(ValueError, match=f"expected columns .*new_{pixels}"):
        benchmark_data.question_pictures(kind, asked, sources)
    empty = {**row, pixels: {"bytes": None, "path": "x.png"}}
    sources = {"questions": table(tmp_path / f"c/{place(kind)}", [empty])}
    with pytest.raises(ValueError, match=r"-00000\.parquet: row .* has no image"):
        benchmark_data.question_pictures(kind, asked, sources)


def test_other_columns_of_gqa_mme_mmvp_and_gedit_and_a_file_that_is_no_table(tmp_path):
    row = {"id": "201", "imageId": "n1", "Question": "Is it red?", "answer": "yes"}
    folder = table(tmp_path / "gqa/testdev-0.parquet", [row])
    with pytest.raises(ValueError, match=r"no column question;.*imageId, Question, answer"):
        gqa.questions({"questions": folder})
    folder = table(
        tmp_path / "mme/test-0.parquet", [{"question": "x", "answer": "yes", "category": "OCR"}]
    )
    with pytest.raises(
        ValueError, match=r"no column question_id; expected .*found question, answer"
    ):
        mme.questions({"questions": folder})
    (tmp_path / "Questions.csv").write_text(
        "number,Question,Options,Correct Answer\n1,q,(a) x,(a)\n"
    )
    with pytest.raises(ValueError, match=r"Questions\.csv: has no column lndex.*found number"):
        mmvp.questions({"questions": tmp_path})
    folder = table(tmp_path / "gedit/train-0.parquet", [{"key": "k", "instruction_language": "en"}])
    for read, lacking in ((gedit.prompts, "task_type"), (gedit.source_pictures, "input_image_raw")):
        with pytest.raises(ValueError, match=rf"train-0\.parquet: has no column {lacking}"):
            read({"prompts": folder})
    (folder / "train-0.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        ValueError, match=r"train-0\.parquet: not a parquet table .*fetch its source again"
    ):
        gedit.prompts({"prompts": folder})


def test_questions_of_mmmu_with_short_answers(tmp_path):
    rows = [
        {"id": f"validation_Math_{i}", "question": "How much?", "options": "[]", "answer": answer, "image_1": cell(i)}
        for i, answer in enumerate(("12", "['12', 'twelve']"))
    ]  # fmt: skip
    sources = {"questions": table(tmp_path / "validation-0.parquet", rows)}
    one, two = mmmu.questions(sources)
    assert one.facts == {"options": {}, "gold": ["12"], "pictures": 0} and two.facts["gold"] == [
        "12",
        "twelve",
    ]
    assert one.kind == "Math" and one.text.endswith("word or phrase.")
    given = {one.id: "It is 12.", two.id: "twelve"}
    assert mmmu.grade([one, two], given).summary["overall"] == 100


def test_questions_of_gqa_lie_apart_from_their_pictures(tmp_path):
    row = {"id": "201", "imageId": "n1", "question": "Is it red?", "answer": "yes"}
    table(tmp_path / "testdev_balanced_instructions/testdev-0.parquet", [row])
    table(tmp_path / "testdev_balanced_images/testdev-0.parquet", [{"id": "n1", "image": cell(1)}])
    (question,) = gqa.questions({"questions": tmp_path})
    assert question.image_id == "n1"
    assert set(benchmark_data.question_pictures("gqa", [question], {"questions": tmp_path})) == {
        "n1"
    }


def test_questions_of_mmvp_come_in_pairs(tmp_path):
    (tmp_path / "MMVP Images").mkdir()
    with open(tmp_path / "Questions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lndex", "Question", "Options", "Correct Answer"])
        for i in (1, 2):
            writer.writerow(
                [i, "Where is the dog's head?", "(a) Left (b) Right", "(a)" if i == 1 else "(b)"]
            )
            (tmp_path / f"MMVP Images/{i}.jpg").write_bytes(small.picture(i, kind="JPEG"))
    asked = mmvp.questions({"questions": tmp_path})
    assert [(q.id, q.answer, q.facts["options"]) for q in asked] == [
        ("1", "A", {"A": "Left", "B": "Right"}), ("2", "B", {"A": "Left", "B": "Right"}),
    ]  # fmt: skip
    assert len(benchmark_data.question_pictures("mmvp", asked, {"questions": tmp_path})) == 2
    assert mmvp.grade(asked, {"1": "Left", "2": "(A)"}).summary["overall"] == 0
    with pytest.raises(ValueError, match="mmvp: 1 questions are no pairs"):
        mmvp.grade(asked[:1], {"1": "Left"})
    assert mmvp.grade(asked, {"1": "A", "2": "B. Right"}).summary["overall"] == 100


def test_pictures_of_mmmu_stand_in_the_columns_that_the_text_names(tmp_path):
    row, name, *_ = HUB["mmmu"]
    row = {**row, "options": "['<image 3>', '<image 2>']", "image_2": cell(6), "image_3": cell(7)}
    sources = {"questions": table(tmp_path / "validation-0.parquet", [row])}
    (question,) = mmmu.questions(sources)
    assert question.image_ids == (name, f"{name}#2", f"{name}#3")
    found = benchmark_data.question_pictures("mmmu", [question], sources)
    assert found == dict(zip(question.image_ids, map(small.picture, (5, 6, 7)), strict=True))
    ((_, kept),) = hub_rows(tmp_path, "MMMU", ("id",), mmmu.TABLES, lambda row: row["id"])
    assert not {"image_1", "image_2", "image_3"} & set(kept)
    table(tmp_path / "validation-0.parquet", [{**row, "image_3": None}])
    with pytest.raises(ValueError, match=f"no image for mmmu question {name}#3"):
        benchmark_data.question_pictures("mmmu", [question], sources)


def test_mmmu_counts_the_questions_about_several_pictures(tmp_path):
    row, *_ = HUB["mmmu"]
    several = {**row, "id": "validation_Art_Theory_3", "options": "['<image 2>', '<image 3>']"}
    asked = mmmu.questions({"questions": table(tmp_path / "validation-0.parquet", [row, several])})
    assert [q.facts["pictures"] for q in asked] == [1, 3]
    found = mmmu.grade(asked, {asked[0].id: "B", asked[1].id: "A"})
    assert found.notes["several_pictures"] == 1
    assert (found.summary["overall"], found.summary["one_picture"]) == (50, 100)


def test_options_of_mmmu_and_mmbench_are_named_and_both_values_shown(tmp_path):
    row, *_ = HUB["mmmu"]
    asked = mmmu.questions({"questions": table(tmp_path / "m/validation-0.parquet", [row])})
    plain = mmmu.grade(asked, {asked[0].id: "no idea at all"})
    guessing = mmmu.grade(asked, {asked[0].id: "no idea at all"}, random_choice=True)
    assert plain.summary["overall"] == plain.summary["without_random_choice"] == 0
    assert guessing.summary["overall"] == plain.summary["with_random_choice"]
    row = {**HUB["mmbench"][0], "answer": "C", "C": "z"}
    asked = mmbench.questions({"questions": table(tmp_path / "b/dev-0.parquet", [row])})
    assert mmbench.grade(asked, {"7": " "}).summary == {
        "empty_is_wrong": 0, "empty_is_c": 100, "vanilla": 0, "overall": 0,
        "published_reader": 0, "careful_reader": 0,
    }  # fmt: skip


def test_answers_to_what_was_not_asked_are_refused(tmp_path):
    asked = mme.questions({"questions": small.mme(tmp_path / "mme")})
    with pytest.raises(ValueError, match="unknown question ids"):
        mme.grade(asked, {"other": "yes"})
    with pytest.raises(ValueError, match="0 of 4 scored"):
        mme.grade(asked, {})


# ---- requests ------------------------------------------------------------------------------------
def sizes(request):
    found = []
    for part in request.parts:
        if isinstance(part, Picture):
            kind, sent = part.sent()
            found.append((kind, Image.open(io.BytesIO(sent)).size))
    return found


def test_requests_of_wise(tmp_path):
    folder = small.wise(tmp_path / "wise")
    items = wise.prompts({"prompts": folder})
    asked = wise.requests(items, {("1", 0): small.picture(1)}, {"judge": folder})
    assert [request.id for request in asked] == ["1"]  # no picture, no request
    assert asked[0].system == "strict" and sizes(asked[0]) == [("image/png", (32, 32))]
    assert asked[0].parts[0] == 'PROMPT: "a scene" EXPLANATION: "why"'
    assert [item.task for item in items] == list(wise.CATEGORIES)


def test_requests_of_imgedit(tmp_path):
    sources = {"prompts": small.imgedit(tmp_path / "e"), "images": tmp_path / "e/images"}
    items = imgedit.prompts(sources)
    before = benchmark_data.edit_sources("imgedit", items, sources)
    after = {(item.id, 0): small.picture(5, size=16) for item in items}
    asked = imgedit.requests(items, after, sources, before)
    assert [request.parts[0] for request in asked] == ["add: add a dog", "remove: remove a dog"]
    assert sizes(asked[0]) == [("image/png", (32, 32)), ("image/png", (16, 16))]
    (tmp_path / "e/images/animal/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 source images .* animal/2\.jpg"):
        benchmark_data.edit_sources("imgedit", items, sources)


def test_sources_of_edits_are_read_from_an_archive(tmp_path):
    import tarfile

    sources = {"prompts": small.imgedit(tmp_path / "e"), "images": tmp_path / "tar"}
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar/Benchmark.tar", "w") as tar:
        tar.add(tmp_path / "e/images/animal", arcname="Benchmark/singleturn/animal")
    found = benchmark_data.edit_sources("imgedit", imgedit.prompts(sources), sources)
    assert found["7"] == (tmp_path / "e/images/animal/1.jpg").read_bytes()


@pytest.mark.parametrize("damage", [b"x" * 700, "cut"])
def test_a_damaged_archive_ends_in_an_error_that_names_it(tmp_path, damage):
    import tarfile

    (tmp_path / "1.png").write_bytes(small.picture(1, size=64))
    path = tmp_path / "tar/a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "1.png", arcname="1.png")
    path.write_bytes(path.read_bytes()[:600] if damage == "cut" else damage)
    sources, one = {"images": path.parent}, Prompt("1", "x", "add", {"source": "1.png"})
    with pytest.raises(ValueError, match=r"tar/a\.tar: not a complete tar file"):
        reconstruction.pictures(sources, 0)
    with pytest.raises(ValueError, match=r"tar/a\.tar: not a complete tar file"):
        benchmark_data.edit_sources("imgedit", [one], sources)


def test_requests_of_gedit_leave_the_chinese_half_out(tmp_path):
    rows = [
        {"key": f"k{i}", "task_type": "ps_human", "instruction": "more light", "instruction_language": language,
         "Intersection_exist": True, "input_image_raw": cell(i)}
        for i, language in enumerate(("en", "cn"))
    ]  # fmt: skip
    (tmp_path / "judge_prompts.json").write_text(json.dumps({"SC": "sc <instruction>", "PQ": "pq"}))
    sources = {"prompts": table(tmp_path / "t/train.parquet", rows), "judge": tmp_path}
    items = gedit.prompts(sources)
    assert [item.id for item in items] == ["k0"]
    before = benchmark_data.edit_sources("gedit", items, sources)
    sc, pq_ = gedit.requests(items, {("k0", 0): small.picture(9, size=48)}, sources, before)
    assert (sc.id, pq_.id, sc.parts[0], pq_.parts[0]) == ("k0/SC", "k0/PQ", "sc more light", "pq")
    assert sizes(sc) == [("image/jpeg", (32, 32))] * 2 and sizes(pq_) == [("image/jpeg", (32, 32))]


def test_requests_of_compbench_show_the_picture_first(tmp_path):
    rows = [{"Question": "a dog", "Category": "3d_spatial", "Question_id": 701}]
    (tmp_path / "val_comp.json").write_text(json.dumps(rows))
    (tmp_path / "judge_prompt.json").write_text(json.dumps({"prompt": 'Is it "<PROMPT>"?'}))
    sources = {"prompts": tmp_path, "judge": tmp_path}
    (item,) = t2i_compbench.prompts(sources)
    assert (item.id, item.task) == ("701", "3d spatial")
    (request,) = t2i_compbench.requests([item], {("701", 0): small.picture(1)}, sources)
    assert isinstance(request.parts[0], Picture) and request.parts[1] == 'Is it "a dog"?'


# ---- names, shards, coverage, intervals ------------------------------------------------------------
def test_official_names_are_all_different(tmp_path):
    items = geneval.prompts({"prompts": small.geneval(tmp_path / "g")})
    assert geneval.official_name(items[3], 11) == "00003/samples/00011.png"
    assert samples_in(tmp_path, items, geneval.official_name) == 1
    with pytest.raises(ValueError, match="no such folder"):
        of_folder(tmp_path / "absent", items, 1, geneval.official_name)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_make_the_whole_and_keep_neighbours_together(count):
    items = list(range(10))
    parts = [shard_of(items, (index, count)) for index in range(count)]
    assert sorted(chain(*parts)) == items
    pairs = [shard_of(items, (index, count), together=2) for index in range(count)]
    assert sorted(chain(*pairs)) == items
    assert all(part[::2] == [i for i in part if i % 2 == 0] for part in pairs)


def test_a_limited_benchmark_is_spread_over_its_tasks():
    items = ["a0", "a1", "a2", "a3", "b0", "c0", "c1", "d0"]  # sorted by task, as GenEval's are

    def of(count, together=1):
        return " ".join(spread(items, count, lambda item: item[0], together))

    assert of(0) == of(99) == " ".join(items)
    assert of(4) == "a0 b0 c0 d0"
    assert of(6) == "a0 a1 b0 c0 c1 d0"
    assert of(5) == "a0 a1 b0 c0 d0"
    assert of(2) == "a0 c0"  # evenly spaced
    assert of(4, together=2) == of(5, together=2) == "a0 a1 b0 c0"
    assert of(1, together=2) == "a0 a1"
    assert " ".join(spread("vwxyz", 3, str.isalpha)) == "v w x"  # of one task: the first ones


def test_coverage_names_what_is_missing():
    cover = coverage_of([("a", "scored"), ("b", "missing"), ("c", "refused")])
    with pytest.raises(
        ValueError, match=r"x: 1 of 3 scored \(1 missing, 1 refused\), for instance b, c"
    ):
        cover.demand("x", False)
    cover.demand("x", True)
    assert cover.plain()["share"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="0 of 1 scored"):
        coverage_of([("a", "failed")]).demand("x", True)  # nothing is no partial result


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 samples of 60 prompts in two categories: 95 % intervals hold the true mean in 88 to 99 % of them."""
    import numpy as np

    random, truth, held = np.random.default_rng(0), (0.3 + 0.7) / 2, 0
    for round_ in range(200):
        rows = [
            (name, f"{name}{i}", float(random.random() < share))
            for name, share in (("a", 0.3), ("b", 0.7))
            for i in range(30)
            for _ in range(2)
        ]
        low, high = interval(rows, key=str(round_))
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99
    assert interval(rows, key="x") == interval(rows, key="x") and interval([]) is None


# ---- the real files ------------------------------------------------------------------------------
def mirror() -> Path:
    named = os.environ.get("RECA_BENCHMARK_MIRROR")
    folder = Path(named) if named else ROOT.parent / "shared" / "benchmarks" / "data"
    if not folder.is_dir():
        pytest.skip("no benchmark mirror: set RECA_BENCHMARK_MIRROR to a folder that holds one")
    return folder


def test_the_real_prompts_have_the_published_counts():
    here = mirror()
    found = geneval.prompts({"prompts": here / "geneval"})
    assert Counter(p.task for p in found) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    names = geneval.object_names({"prompts": here / "geneval"})
    assert len(names) == 80 and names[64:67] == ["computer mouse", "tv remote", "computer keyboard"]
    assert {c["class"] for p in found for c in p.facts["include"]} <= set(names)
    assert len(dpg.prompts({"prompts": here / "dpg"})) == 1065
    items = wise.prompts({"prompts": here / "wise"})
    assert Counter(p.task for p in items) == {
        "Cultural": 400, "Time": 167, "Space": 133, "Biology": 100, "Physics": 100, "Chemistry": 100,
    }  # fmt: skip
    times = {"Longitudinal time", "Horizontal time"}
    assert all((p.facts["subcategory"] in times) == (p.task == "Time") for p in items)
    (request,) = wise.requests(items[:1], {("1", 0): small.picture(0)}, {"judge": here / "wise"})
    assert items[0].text in str(request.parts[0]) and "<PROMPT>" not in str(request.parts[0])
    edits = imgedit.prompts({"prompts": here / "imgedit"})
    assert len(edits) == 737 and {e.task for e in edits} == set(imgedit.TYPES)
    prompts = t2i_compbench.prompts({"prompts": here / "t2i_compbench"})
    assert set(Counter(p.task for p in prompts)) == {*t2i_compbench.BASE, *t2i_compbench.COMPLEX}
    assert len(prompts) == 2670


def test_every_kind_has_its_module_and_configuration():
    import yaml

    for name in registry.KINDS:
        assert registry.module(name).VERSION and (ROOT / f"config/benchmark/{name}.yaml").is_file()
        plain = yaml.safe_load((ROOT / f"config/benchmark/{name}.yaml").read_text())
        assert plain["kind"] == name
        judged = registry.KINDS[name].evidence == "judge"
        assert judged == ("judge" in plain) and (
            not judged or registry.module(name).JUDGE_LIMITS is not None
        )
    assert {pope, seed, mmvet} <= {registry.module(name) for name in registry.KINDS}
