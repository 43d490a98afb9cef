"""A paper benchmark from prompts to the paper's table, by the commands of the workflow, and anybody's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from reca.cli import main
from reca.core.artifacts import read_json, sha256_file
from reca.core.lineage import audit
from reca.inference.imageset import ImageSet
from tests.evaluation import small_benchmarks as small
from tests.evaluation import tiny_networks as tiny
from tests.evaluation.judges import judge_server as js

MODEL = Path("weights/showo_tiny")  # as it ships, beside the results
SAMPLER = {"steps": 2, "guidance": [2.0]}
GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"


def run(verb, *words, expect=0, **options):
    for name, value in options.items():
        words += (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    assert main([verb, *words]) == expect


def draw(benchmark, out, sources, shard="0/1", seed=10086, **more):
    section = {"family": "showo", "sampler": SAMPLER, "run": "base-10086", "benchmark": benchmark}
    run("sample", *paired(sources), section=section | more, model=MODEL, seed=seed, shard=shard,
        work=f"work/{out}", out=out)  # fmt: skip


def paired(sources):
    return [word for role, folder in sources.items() for word in ("--source", f"{role}={folder}")]


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("stages"))
        patch.setenv("RECA_TEST_JUDGE_KEY", js.KEY)
        shutil.copytree(Path(__file__).parents[2] / MODEL, MODEL)
        small.geneval(Path("data/geneval"))
        tiny.detector_folder(Path("data/detector"))
        tiny.clip_folder(Path("data/clip"))
        yield Path.cwd()


GENEVAL = {"kind": "geneval", "images_per_prompt": 2}
NETWORKS = {"prompts": "data/geneval", "detector": "data/detector", "clip": "data/clip"}
RUN = "results/paper/showo_clip_512/base-10086"


@pytest.fixture(scope="module")
def drawn(inside):
    """GenEval in two shards, examined and graded as the workflow does."""
    for shard in range(2):
        samples = f"{RUN}/geneval/test/samples/{shard}-of-2"
        draw(GENEVAL, samples, {"prompts": "data/geneval"}, f"{shard}/2")
        run("observe", *paired(NETWORKS), section=GENEVAL, samples=samples,
            out=samples.replace("samples", "evidence"), work="work/seen")  # fmt: skip
    grade(f"{RUN}/geneval/test/scores")
    return inside


def grade(out, shards=(0, 1), **options):
    shard = [f"{RUN}/geneval/test/{{}}/{i}-of-2" for i in shards]
    run("score", "--samples", *(s.format("samples") for s in shard), "--evidence",
        *(s.format("evidence") for s in shard), *paired({"prompts": "data/geneval"}),
        section=GENEVAL | {"options": options}, out=out)  # fmt: skip


def test_scores_say_who_saw_how_much(drawn):
    found = read_json(f"{RUN}/geneval/test/scores/scores.json")
    assert found["label"] == "geneval(hf-detector)" and found["run"] == "base-10086"
    assert found["coverage"]["expected"] == found["coverage"]["scored"] == 12
    assert not found["partial"] and set(found["summary"]) >= {"overall", "tasks.counting", "images"}
    items = Path(f"{RUN}/geneval/test/scores/items.jsonl").read_text().splitlines()
    assert len(items) == 12


def test_shards_draw_what_one_job_draws(drawn):
    draw(GENEVAL, "whole", {"prompts": "data/geneval"})
    whole = ImageSet("whole/images.tar")
    for shard in range(2):
        part = ImageSet(f"{RUN}/geneval/test/samples/{shard}-of-2/images.tar")
        assert all(part.png(*entry) == whole.png(*entry) for entry in part) and len(part) == 6
    recipe = whole.recipe("00000", 1)
    assert recipe["prompt"] == "a circle" and recipe["generator"][:3] == [
        "geneval",
        "00000",
        1,
    ]
    assert recipe["steps"] == 2 and len(recipe["model"]) == 64


def test_the_number_is_in_the_papers_table_and_can_be_walked_back(drawn, capsys):
    run("paper", results="results", out="tables")
    made = read_json("tables/tables.json")
    (table,) = (t for t in made["tables"] if t["name"] == "per_model")
    (row,) = (r for r in table["rows"] if (r["row"], r["arm"]) == ("Show-o-512 (CLIP)", "base"))
    cell = next(c for c in row["cells"] if c["column"] == "geneval_overall")
    ours = read_json(f"{RUN}/geneval/test/scores/scores.json")["summary"]["overall"]
    assert cell["reported"] == 66.2 and cell["reproduced"]["value"] == pytest.approx(100 * ours)
    assert (
        cell["reproduced"]["label"] == "geneval(hf-detector)"
        and len(cell["reproduced"]["interval"]) == 2
    )
    assert next(c for c in row["cells"] if c["column"] == "dpg")["status"] == "not run"
    page = Path("tables/index.html").read_text()
    assert "geneval(hf-detector)" in page and "not run" in page and "<script" not in page
    found = audit(["results", "tables"])
    # what the shipped weights were made from is not here; everything of ours is sound
    assert all(str(MODEL) in problem for problem in found.problems) and not found.orphans


def test_missing_and_doubled_shards_are_refused(drawn, capsys):
    for shards in ((0,), (0, 0)):
        with pytest.raises(AssertionError):
            grade("refused", shards)
        assert "shards" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_an_unknown_option_is_named(drawn, capsys):
    with pytest.raises(AssertionError):
        grade("refused", partiall=True)
    assert "benchmarks.geneval.options" in capsys.readouterr().err


def test_evidence_survives_a_kill_and_is_not_made_twice(drawn, monkeypatch):
    from reca.evaluation.detectors import mask2former

    seen, real = [], mask2former.Mask2Former.__call__

    def call(self, image):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return real(self, image)

    monkeypatch.setattr(mask2former.Mask2Former, "__call__", call)
    samples = f"{RUN}/geneval/test/samples/0-of-2"
    options = {"section": GENEVAL, "samples": samples, "out": "again", "work": "work/kill"}
    run("observe", *paired(NETWORKS), expect=130, **options)
    assert not Path("again").exists()
    seen[:] = [1] * 4  # no limit any more
    run("observe", *paired(NETWORKS), **options)
    assert len(seen) == 4 + 3  # the three that were left of six
    assert sha256_file("again/evidence.jsonl") == sha256_file(
        f"{RUN}/geneval/test/evidence/0-of-2/evidence.jsonl"
    )


def test_the_code_of_the_stage_observes(drawn, monkeypatch):
    codes = []
    monkeypatch.setattr(
        "reca.evaluation.observe.observe", lambda view: codes.append(view.code) or {}
    )
    samples = f"{RUN}/geneval/test/samples/0-of-2"
    run("observe", *paired(NETWORKS), section=GENEVAL, samples=samples, out="by")
    assert codes == [read_json("by/manifest.json")["code"]] and len(codes[0]) == 64


# ---- judged --------------------------------------------------------------------------------------
def test_wise_from_prompts_to_scores_with_a_judge(inside):
    small.wise(Path("data/wise"))
    sources = {"prompts": "data/wise", "judge": "data/wise"}
    with js.serving(js.says(GOOD), js.says("who knows"), js.says(GOOD)) as server:
        judge = asdict(js.config(server, attempts=2, concurrency=1))
        section = {"kind": "wise", "judge": judge}
        draw({"kind": "wise"}, "wise/samples", {"prompts": "data/wise"})
        options = {"section": section, "samples": "wise/samples", "ledger": "ledgers/wise.jsonl"}
        run("observe", *paired(sources), **options, out="wise/evidence")
        assert len(server.asked) == 7  # six pictures, one reply asked for again
        assert all(
            body["temperature"] == 0.0 and body["max_tokens"] == 2000 for body in server.asked
        )
        made = {path.name: path.read_bytes() for path in Path("wise/evidence").glob("*.jsonl")}
        shutil.rmtree("wise/evidence")
        ledger = Path("ledgers/wise.jsonl")  # as if replies had arrived in another order
        ledger.write_bytes(b"".join(reversed(ledger.read_bytes().splitlines(keepends=True))))
        run("observe", *paired(sources), **options, out="wise/evidence")
        assert len(server.asked) == 7  # the ledger knows
        assert made == {p.name: p.read_bytes() for p in Path("wise/evidence").glob("*.jsonl")}
    run("score", "--samples", "wise/samples", "--evidence", "wise/evidence", *paired(sources),
        section=section, out="wise/scores")  # fmt: skip
    found = read_json("wise/scores/scores.json")
    assert found["summary"]["overall"] == pytest.approx((0.7 * 2 + 0.2) / 2)
    assert found["label"].startswith("wise(judge-2024-05-13@127.0.0.1:")
    assert all(
        js.KEY[:12] not in p.read_text(errors="replace") for p in inside.rglob("*") if p.is_file()
    )


def test_a_refusal_is_shown_and_stops_a_full_score(inside, capsys):
    small.wise(Path("data/wise2"))
    sources = {"prompts": "data/wise2", "judge": "data/wise2"}
    draw({"kind": "wise"}, "wise2/samples", {"prompts": "data/wise2"})
    refusal = js.says(None, message={"refusal": "I will not."})
    with js.serving(refusal, js.says(GOOD)) as server:
        section = {"kind": "wise", "judge": asdict(js.config(server, concurrency=1))}
        run(
            "observe",
            *paired(sources),
            section=section,
            samples="wise2/samples",
            out="wise2/evidence",
        )
    words = ["--samples", "wise2/samples", "--evidence", "wise2/evidence", *paired(sources)]
    run("score", *words, section=section, out="wise2/scores", expect=2)
    assert "5 of 6 scored (1 refused)" in capsys.readouterr().err
    run("score", *words, section=section | {"options": {"partial": True}}, out="wise2/scores")
    found = read_json("wise2/scores/scores.json")
    assert (
        found["partial"]
        and found["coverage"]["refused"] == 1
        and found["coverage"]["without"] == ["1"]
    )
    assert found["summary"]["overall"] is None  # a category has no picture: no overall


# ---- understanding -------------------------------------------------------------------------------
def test_answers_are_given_and_graded(inside, monkeypatch):
    monkeypatch.setattr("reca.evaluation.tasks.mme.SUFFIX", "")  # words that the laptop model lacks
    small.mme(Path("data/mme"))
    sources = {"questions": "data/mme"}
    for shard in range(2):
        draw({"kind": "mme", "batch_size": 1}, f"mme/{shard}-of-2", sources, f"{shard}/2")
    run(
        "score",
        "--samples",
        "mme/0-of-2",
        "mme/1-of-2",
        *paired(sources),
        section={"kind": "mme"},
        out="mme/s",
    )
    found = read_json("mme/s/scores.json")
    assert found["coverage"]["scored"] == 4 and found["summary"]["total"] >= 0
    assert found["summary"]["overall"] == found["summary"]["total"]
    assert found["pictures_shown"] == "first"  # the laptop's Show-o


# ---- drawn again ---------------------------------------------------------------------------------
def test_pictures_drawn_again_are_compared(inside, monkeypatch):
    """Originals in a folder and in an archive; PSNR, SSIM and the cosines of tiny networks."""
    import tarfile

    originals = Path("data/originals")
    originals.mkdir()
    for number in range(3):
        (originals / f"{number}.png").write_bytes(small.picture(number))
    (originals / "9.png").write_bytes(small.picture(9))
    with tarfile.open(originals / "more.tar", "w") as tar:
        tar.add(originals / "9.png", arcname="9.png")
    (originals / "9.png").unlink()
    tiny.dino_folder(Path("data/dino"))
    sources = {"images": "data/originals", "clip": "data/clip", "dino": "data/dino"}
    monkeypatch.setattr("reca.evaluation.benchmark_data.bank", lambda: ["a scene"])
    section = {"kind": "reconstruction", "batch_size": 2}
    shards = [f"again-{index}" for index in range(2)]
    for index, shard in enumerate(shards):
        draw(section, f"{shard}/samples", {"images": "data/originals"}, f"{index}/2")
        run(
            "observe",
            *paired(sources),
            section=section,
            samples=f"{shard}/samples",
            out=f"{shard}/seen",
        )
    words = [
        "--samples",
        *(f"{s}/samples" for s in shards),
        "--evidence",
        *(f"{s}/seen" for s in shards),
    ]
    run("score", *words, *paired({"images": "data/originals"}), section=section, out="again/scores")
    found = read_json("again/scores/scores.json")
    assert found["coverage"]["scored"] == 4 and not found["partial"]
    assert set(found["summary"]) == {"psnr", "ssim", "clip", "dino", "overall"}
    assert 0 < found["summary"]["psnr"] < 40 and -1 <= found["summary"]["clip"] <= 1


# ---- anybody's folder ----------------------------------------------------------------------------
@pytest.fixture
def folder(inside, tmp_path):
    """Somebody's pictures in GenEval's layout, names with fewer digits than the official script's."""
    for prompt in range(6):
        place = tmp_path / f"theirs/{prompt:05d}/samples"
        place.mkdir(parents=True)
        (place.parent / "metadata.jsonl").write_text("{}")
        for k in range(2):
            (place / f"{k:04d}.png").write_bytes(small.picture(10 * prompt + k))
    return tmp_path / "theirs"


def score(folder, *words, expect=0, networks=NETWORKS):
    run("score", "geneval", str(folder), *paired(networks), *words, expect=expect)


def test_a_folder_is_scored_and_scored_again_from_what_was_seen(folder, tmp_path, capsys):
    score(folder, "--out", str(tmp_path / "scores"))
    said = capsys.readouterr().out
    assert "12 of 12 images (2 per prompt)" in said and "geneval(hf-detector)" in said
    assert "coverage 12 of 12" in said
    first = read_json(tmp_path / "scores/scores.json")
    score(folder, "--out", str(tmp_path / "again"), "--evidence", str(tmp_path / "scores/evidence"),
          networks={"prompts": "data/geneval"})  # fmt: skip
    assert read_json(tmp_path / "again/scores.json") == first


def test_what_is_missing_is_listed_and_nothing_is_matched_by_guess(folder, tmp_path, capsys):
    (folder / "00002/samples/0001.png").rename(folder / "00002/samples/0001 copy.png")
    (folder / "00004/samples/0000.png").unlink()
    score(folder, "--list")
    said = capsys.readouterr().out
    assert "10 of 12" in said and "missing  00002/samples/00001.png" in said
    assert (
        "missing  00004/samples/00000.png" in said
        and "unknown  00002/samples/0001 copy.png" in said
    )
    score(folder, "--out", str(tmp_path / "scores"), expect=2)
    said = capsys.readouterr().err
    assert "2 of 12 images missing" in said and "pass --partial" in said
    assert not (tmp_path / "scores").exists()
    score(folder, "--out", str(tmp_path / "scores"), "--partial")
    assert "PARTIAL" in capsys.readouterr().out
    assert read_json(tmp_path / "scores/scores.json")["partial"]


def test_two_files_for_one_picture_are_refused(folder, capsys):
    shutil.copy(folder / "00001/samples/0000.png", folder / "00001/samples/00000.png")
    score(folder, "--list", expect=2)
    assert "keep one of them" in capsys.readouterr().err


def test_a_folder_is_judged_over_a_ledger_of_its_own(inside, tmp_path, capsys):
    """Edits: source and result go to the judge; a second run pays nothing, a wrong key says what to check."""
    sources = {"prompts": small.imgedit(tmp_path / "e"), "images": tmp_path / "e/images"}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("7", "12"):
        (theirs / f"{name}.png").write_bytes(small.picture(int(name)))
    words = ["imgedit", str(theirs), *paired(sources), "--out", str(tmp_path / "scores")]
    run("score", *words, expect=2)
    assert "no judge is configured" in capsys.readouterr().err
    with js.serving(js.says("Prompt Compliance: 4\nVisual Naturalness: 5")) as server:
        (tmp_path / "judge.json").write_text(json.dumps(asdict(js.config(server))))
        words += ["--judge", f"@{tmp_path / 'judge.json'}"]
        run("score", *words)
        run("score", *words)
        assert len(server.asked) == 2
        content = server.asked[0]["messages"][0]["content"]
        assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
        server.script[:] = [js.status(401, b"bad key")]
        run("score", *words[:-4], "--out", str(tmp_path / "other"), *words[-2:], expect=2)
        assert "status 401" in capsys.readouterr().err
    found = read_json(tmp_path / "scores/scores.json")
    assert found["summary"]["overall"] == 4.5 and found["judge"]["totals"][0]["replies"] == 2


def test_dpg_through_files(inside, tmp_path, capsys):
    """Another environment answers: questions and pictures out, answers in."""
    small.dpg(tmp_path / "data")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("one_0", "one_1", "two_0", "two_1"):
        (theirs / f"{name}.jpg").write_bytes(small.picture(1, kind="JPEG"))
    roles = paired(
        {
            "prompts": tmp_path / "data",
            "questions": tmp_path / "data",
            "answers": tmp_path / "mplug",
        }
    )
    scores = str(tmp_path / "scores")
    words = ("dpg", str(theirs), *roles, "--scorer", "file:mplug", "--out", scores)
    run("score", *words, expect=2)
    assert "questions.jsonl and the images are written" in capsys.readouterr().err
    (tmp_path / "mplug/one_1.jpg").write_bytes(b"mine")
    run("score", *words, expect=2)
    assert "one_1.jpg: differs from the image" in capsys.readouterr().err
    assert (tmp_path / "mplug/one_1.jpg").read_bytes() == b"mine"
    (tmp_path / "mplug/one_1.jpg").unlink()
    asked = [
        json.loads(line) for line in (tmp_path / "mplug/questions.jsonl").read_text().splitlines()
    ]
    assert len(asked) == 6 and (tmp_path / "mplug" / asked[0]["image"]).is_file()
    said = {("one", 1): "no", ("one", 2): "yes", ("two", 1): "yes"}
    answers = [{**row, "answer": said[row["id"], row["question"]]} for row in asked]
    (tmp_path / "mplug/answers.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in answers)
    )
    run("score", *words)
    found = read_json(tmp_path / "scores/scores.json")
    assert found["label"] == "dpg(file:mplug)"
    assert found["summary"]["overall"] == 50.0  # no cat, so its colour counts nothing
    assert (
        found["summary"]["overall_first_row_bug"] == 100.0
    )  # the question about the cat is skipped
    assert found["notes"]["failed_with_first_row_bug"] == ["one"]
    # the evidence says who answered: no other name, and none to be given again
    again = ("dpg", str(theirs), *roles, "--evidence", str(tmp_path / "scores/evidence"))
    run("score", *again, "--out", str(tmp_path / "again"))
    assert read_json(tmp_path / "again/scores.json")["label"] == "dpg(file:mplug)"
    capsys.readouterr()
    run("score", *again, "--scorer", "blip-vqa", "--out", str(tmp_path / "other"), expect=2)
    assert "this evidence is by file:mplug, not by blip-vqa" in capsys.readouterr().err


def grids(folder, names=("one", "two"), size=(64, 48)):
    """Grids whose four tiles are flat in colours of their own."""
    folder.mkdir()
    for number, name in enumerate(names):
        image = Image.new("RGB", size)
        for k in range(4):
            corner = (k % 2 * size[0] // 2, k // 2 * size[1] // 2)
            image.paste(
                (50 * k, 100 * number, 7),
                (*corner, corner[0] + size[0] // 2, corner[1] + size[1] // 2),
            )
        image.save(folder / f"{name}.png")
    return folder


def test_dpg_grids_are_cut_into_four_and_answered_tile_by_tile(inside, tmp_path, capsys):
    data, theirs = small.dpg(tmp_path / "data"), grids(tmp_path / "theirs")
    roles = {"prompts": data, "questions": data, "answers": tmp_path / "mplug"}
    words = (
        "dpg",
        str(theirs),
        *paired(roles),
        "--scorer",
        "file:mplug",
        "--out",
        str(tmp_path / "scores"),
    )
    run("score", *words, expect=2)
    assert "2 of 2 grids, 4 images each" in capsys.readouterr().out
    asked = [
        json.loads(line) for line in (tmp_path / "mplug/questions.jsonl").read_text().splitlines()
    ]
    assert len(asked) == 3 * 4
    for row in asked:  # each tile is the quarter of its number
        with Image.open(tmp_path / "mplug" / row["image"]) as image:
            assert image.size == (32, 24)
            assert image.getcolors() == [
                (32 * 24, (50 * row["sample"], 100 * (row["id"] == "two"), 7))
            ]
    answers = [{**row, "answer": "yes" if row["sample"] < 3 else "no"} for row in asked]
    (tmp_path / "mplug/answers.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in answers)
    )
    run("score", *words)
    assert read_json(tmp_path / "scores/scores.json")["summary"]["overall"] == 75.0
    run("score", *words[:2], "--list", *paired(roles), "--images", "2")
    assert "2 of 2 grids, 2 images each" in capsys.readouterr().out


def test_dpg_grids_that_lack_or_are_none(inside, tmp_path, capsys):
    data = small.dpg(tmp_path / "data")
    roles = paired({"prompts": data, "questions": data, "answers": tmp_path / "mplug"})
    lacking, odd, mixed = tmp_path / "lacking", tmp_path / "odd", tmp_path / "mixed"
    run("score", "dpg", str(grids(lacking, names=("one", "three"))), *roles, "--list")
    said = capsys.readouterr().out
    assert "1 of 2 grids" in said and "missing  two.png" in said and "unknown  three.png" in said
    run("score", "dpg", str(grids(odd, size=(64, 47))), *roles, "--scorer", "file:x", expect=2)
    assert "64 x 47 pixels cannot be a 2 x 2 grid" in capsys.readouterr().err
    grids(mixed)
    (mixed / "one_0.jpg").write_bytes(small.picture(1, kind="JPEG"))
    run("score", "dpg", str(mixed), *roles, "--list", expect=2)
    assert "separate folders" in capsys.readouterr().err


def test_a_folder_of_other_prompts_under_the_same_numbers_is_refused(folder, capsys):
    (folder / "00002/metadata.jsonl").write_text(json.dumps({"tag": "colors", "include": []}))
    score(folder, "--list", expect=2)
    assert "for this list of prompts" in capsys.readouterr().err
    (folder / "00002/metadata.jsonl").write_text("{")
    score(folder, "--list", expect=2)
    assert "metadata.jsonl: not a line of JSON" in capsys.readouterr().err


def test_a_wrong_folder_and_a_corrupt_picture_are_named(folder, tmp_path, capsys):
    score(tmp_path / "nowhere", "--list", expect=2)
    assert "no such folder of images" in capsys.readouterr().err
    score(folder / "00001", expect=2)
    said = capsys.readouterr().err
    assert "12 images missing" in said or "of 6 images missing" in said
    (folder / "00003/samples/0001.png").write_bytes(b"no picture")
    score(folder, "--out", str(tmp_path / "scores"), expect=2)
    assert "00003/samples/00001.png: unreadable image" in capsys.readouterr().err
