"""Only evidence of the given samples is scored, and only shards of one model, seen by one judge or network."""

from __future__ import annotations

import json

import pytest

from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import MANIFEST, Stage, sha256_bytes, write_json
from reca.evaluation.score import score
from reca.evaluation.together import demand_images
from tests.evaluation import small_benchmarks as small

GOOD = "Consistency: 2\nRealism: 2\nAesthetic Quality: 2"
JUDGE = {"model": "judge-2024-05-13", "provider": "host", "temperature": 0.0}
IDS = ((1, 600, 801), (401, 701, 901))  # of the prompts in two shards


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Stages do not ask git for the commit."""
    monkeypatch.setattr("reca.core.artifacts.git_commit", lambda: None)


@pytest.fixture
def wise(tmp_path):
    return {"prompts": small.wise(tmp_path / "wise")}


def model(place):
    """A stage that stands for a checkpoint; its manifest differs with its name."""
    with Stage("align", place, inputs={}, section={"arm": place.name}):
        pass
    return place / MANIFEST


def sampled(place, shard, drawn_by, *, record=True, steps=2):
    described = {"run": "reca-0", "split": "test", "seed": 0, "guidance": [5.0], "chosen": None,
                 "shard": [shard, 2], "seed_schedule": "per_image"}  # fmt: skip
    section = {"sampler": {"steps": steps}}
    with Stage("sample", place, inputs={"model": drawn_by}, section=section) as stage:
        write_json(stage.staging / "samples.json", described)
    if not record:
        (place / MANIFEST).unlink()
    return place


def observed(place, shard, samples, judge=JUDGE, *, inputs=None, section=None):
    rows = [{"id": str(i), "status": "reply", "reply": GOOD} for i in IDS[shard]]
    inputs = {"samples": samples / MANIFEST} | (inputs or {})
    inputs = {name: path for name, path in inputs.items() if path.is_file()}
    with Stage("observe", place, inputs=inputs, section=section or {}) as stage:
        path = stage.staging / "evidence.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if judge:
            write_json(stage.staging / "judge.json", {"determinants": judge, "totals": {}})
    return place


@pytest.fixture
def reca(tmp_path):
    """Samples and evidence of both shards of one run."""
    drawn = model(tmp_path / "reca")
    samples = [sampled(tmp_path / f"reca-0/samples/{i}", i, drawn) for i in (0, 1)]
    return samples, [observed(tmp_path / f"reca-0/seen/{i}", i, samples[i]) for i in (0, 1)]


def scored(wise, tmp_path, samples, evidence):
    (tmp_path / "out").mkdir(exist_ok=True)
    return score(BenchmarkConfig(kind="wise"), wise, samples, evidence, tmp_path / "out")


def refused(wise, tmp_path, samples, evidence, message):
    with pytest.raises(ValueError, match=message):
        scored(wise, tmp_path, samples, evidence)
    assert not (tmp_path / "out/scores.json").exists()


def test_what_belongs_together_is_scored(wise, tmp_path, reca):
    found = scored(wise, tmp_path, *reca)
    assert found["label"] == "wise(judge-2024-05-13@host)" and found["summary"][
        "overall"
    ] == pytest.approx(1)


def test_evidence_of_other_samples_is_refused(wise, tmp_path, reca):
    base = [sampled(tmp_path / f"base-0/{i}", i, model(tmp_path / "base")) for i in (0, 1)]
    refused(wise, tmp_path, base, reca[1], r"seen/0: is the evidence of other samples \(.*reca-0")


def test_evidence_of_samples_that_were_drawn_again_is_refused(wise, tmp_path, reca):
    samples, evidence = reca
    again = model(tmp_path / "trained-again")
    for shard, folder in enumerate(samples):
        sampled(folder, shard, again)
    message = "or these before they were sampled again.*run `reca observe` again"
    refused(wise, tmp_path, samples, evidence, message)


def test_evidence_of_one_shard_twice_is_refused(wise, tmp_path, reca):
    samples, evidence = reca
    twice = [evidence[0], observed(tmp_path / "twice", 1, samples[0])]
    refused(
        wise, tmp_path, samples, twice, "twice: is the evidence of the same samples as .*seen/0"
    )


def test_shards_of_two_models_or_samplers_are_refused(wise, tmp_path, reca):
    samples, evidence = reca
    other = sampled(tmp_path / "other", 1, model(tmp_path / "other-model"))
    refused(
        wise, tmp_path, [samples[0], other], evidence, "other: model is .*give the shards of one"
    )
    other = sampled(tmp_path / "other", 1, tmp_path / "reca" / MANIFEST, steps=9)
    refused(wise, tmp_path, [samples[0], other], evidence, "other: sampler is .*'steps': 9")


def test_shards_of_two_judges_are_refused(wise, tmp_path, reca):
    samples, evidence = reca
    for name in ("model", "provider"):
        other = observed(tmp_path / "toy", 1, samples[1], JUDGE | {name: "toy"})
        message = rf"toy/judge\.json: {name} is toy, but .* in .*seen/0/judge\.json; .*same judge"
        refused(wise, tmp_path, samples, [evidence[0], other], message)
    other = observed(tmp_path / "toy", 1, samples[1], None)
    refused(wise, tmp_path, samples, [evidence[0], other], r"toy/judge\.json: missing")


def test_shards_that_other_networks_saw_are_refused(wise, tmp_path, reca):
    samples, evidence = reca
    options = {"inputs": {"source detector": model(tmp_path / "swin")}}
    other = observed(tmp_path / "other", 1, samples[1], **options)
    refused(
        wise, tmp_path, samples, [evidence[0], other], "other: source detector is .*same networks"
    )
    other = observed(tmp_path / "other", 1, samples[1], section={"scorer": "file:mplug"})
    refused(wise, tmp_path, samples, [evidence[0], other], "other: scorer is file:mplug, but None")


def test_folders_that_do_not_say_are_accepted(wise, tmp_path, reca):
    samples, evidence = reca
    (evidence[0] / MANIFEST).unlink()
    assert scored(wise, tmp_path, *reca)["summary"]["overall"] == pytest.approx(1)
    copied = sampled(tmp_path / "copied", 0, model(tmp_path / "x"), record=False)
    evidence = [observed(tmp_path / "seen", 0, samples[0]), evidence[1]]
    assert scored(wise, tmp_path, [copied, samples[1]], evidence)["summary"][
        "overall"
    ] == pytest.approx(1)


# ---- folders of images -----------------------------------------------------------------------------
PICTURES = {("one", 0): b"first", ("one", 1): b"second"}
ROWS = {
    "another image": ({"id": "one", "sample": 1, "sha256": sha256_bytes(b"first")}, False),
    "its own image": ({"id": "one", "sample": 1, "sha256": sha256_bytes(b"second")}, True),
    "not in the folder": ({"id": "two", "sample": 0, "sha256": sha256_bytes(b"first")}, False),
    "a judge": ({"id": "one", "sha256": sha256_bytes(b"first")}, True),
    "a judge of aspects": ({"id": "one/SC", "sha256": sha256_bytes(b"first")}, True),
    "another image of aspects": ({"id": "one/SC", "sha256": sha256_bytes(b"second")}, False),
    "an older reca": ({"id": "one", "sample": 1}, True),
}


@pytest.mark.parametrize("case", ROWS)
def test_evidence_of_a_folder_is_about_its_images(tmp_path, case):
    row, fits = ROWS[case]
    (tmp_path / "evidence.jsonl").write_text(
        json.dumps({"id": "x"}) + "\n" + json.dumps(row) + "\n"
    )
    if fits:
        demand_images(tmp_path, PICTURES)
    else:
        said = (
            "no image of 'two', sample 0, in" if row["id"] == "two" else "about another image of '"
        )
        with pytest.raises(ValueError, match=rf"evidence\.jsonl, line 2: {said}"):
            demand_images(tmp_path, PICTURES)
