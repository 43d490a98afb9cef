"""The audit finds an edit anywhere on the trail, and follows inputs wherever their folders lie."""

import json
import shutil

import pytest

from reca.core.artifacts import Stage, write_json
from reca.core.lineage import audit


@pytest.fixture
def trail(tmp_path, monkeypatch):
    """data -> base -> align -> scores, with a chosen guidance beside them."""
    monkeypatch.chdir(tmp_path)
    link("data/world", {})
    link("results/base", {"data": "data/world"})
    link("results/reca/seed-0", {"model": "results/base", "data": "data/world"})
    write_json("results/guidance.json", {"reca": 2.0})
    link("results/scores", {"model": "results/reca/seed-0"}, guidance="results/guidance.json")
    return tmp_path


def link(out, upstream, **files):
    inputs = {name: f"{folder}/manifest.json" for name, folder in upstream.items()} | files
    with Stage(out.split("/")[-1], out, inputs=inputs, section={"of": out}) as stage:
        (stage.staging / "sub").mkdir()
        (stage.staging / "sub" / "numbers.json").write_text(out)
        (stage.staging / "weights.bin").write_bytes(out.encode() * 100)


def run():
    return audit(["data", "results"])


def test_whole_trail_is_sound(trail):
    found = run()
    assert (found.stages, found.files, found.problems, found.orphans) == (4, 8, [], [])


def test_any_edit_of_any_file_is_found(trail, campaign):
    for path in sorted(p for p in trail.rglob("*") if p.is_file() and p.name != "run.json"):
        before = path.read_bytes()
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        found = run()
        assert not found.sound, path
        path.write_bytes(before)
        campaign.count(1)
    assert run().sound


def test_flipped_bit_names_the_file(trail):
    (trail / "results/base/weights.bin").write_bytes(b"other")
    assert run().problems == [
        "results/base/weights.bin: content differs from the manifest's sha256; "
        "remove results/base/manifest.json and run the stage again (shipped files: git restore)"
    ]


def test_missing_and_extra_files_are_found(trail):
    (trail / "results/base/weights.bin").unlink()
    (trail / "results/scores/late.json").write_text("{}")
    first, second = run().problems
    assert first.startswith("results/base/weights.bin: missing")
    assert second.startswith("results/scores/late.json: not in the manifest")


def test_upstream_made_anew_breaks_what_was_made_from_it(trail):
    link("results/base", {}, weights="results/guidance.json")
    assert [problem.split(";")[0] for problem in run().problems] == [
        "results/reca/seed-0: input model (results/base/manifest.json) is not what was read "
        f"(hash {recorded('results/reca/seed-0', 'model')[:12]})"
    ]


def test_damage_outside_the_audited_folders_is_found(trail):
    """What results were made from is audited wherever it lies: shipped weights, data."""
    assert audit(["results/reca"]).stages == 3
    (trail / "data/world/weights.bin").write_bytes(b"other")
    for folders in (["results/reca"], ["results/base", "results/reca"], ["results"]):
        (problem,) = audit(folders).problems
        assert problem.startswith("data/world/weights.bin: content differs")


def test_the_trail_ends_at_what_was_made_elsewhere(trail):
    """Shipped weights name inputs that are not in the checkout; their own files are hashed all the same."""
    link("elsewhere", {})
    link("weights/tiny", {"data.reconstruct": "elsewhere"})
    link("results/base", {"weights": "weights/tiny"})
    shutil.rmtree("elsewhere")
    found = audit(["results/base"])
    assert found.sound and found.ends == ["weights/tiny (made from 1 inputs that are not here)"]
    assert audit(["weights"]).problems  # named by itself, it has to hold
    (trail / "weights/tiny/weights.bin").write_bytes(b"other")
    assert "content differs" in audit(["results/base"]).problems[0]


def test_upstream_made_anew_is_audited_once(trail):
    link("results/base", {}, weights="results/guidance.json")
    assert audit(["results"]).stages == audit(["data", "results"]).stages == 4


def test_upstream_removed_breaks_what_was_made_from_it(trail):
    shutil.rmtree("data/world")
    found = audit(["results"])
    assert len(found.problems) == 2 and all("is gone" in problem for problem in found.problems)


def test_moved_folder_is_found_by_its_hash(trail):
    shutil.move("results/base", "results/first")
    assert run().sound


def test_files_without_record_are_orphans(trail):
    (trail / "results/stray").mkdir()
    (trail / "results/stray/model.bin").write_bytes(b"?")
    found = run()
    assert found.sound and found.orphans == ["results/stray/model.bin"]


def test_stage_cut_off_is_an_orphan_not_a_stage(trail):
    shutil.copytree("results/base", "results/.base.partial-x1")
    found = run()
    assert found.stages == 4 and all(".partial-" in orphan for orphan in found.orphans)


def test_foreign_manifest_is_a_problem(trail):
    (trail / "results/base/manifest.json").write_text(json.dumps({"name": "something else"}))
    assert any("changed since it was written" in problem for problem in run().problems)


@pytest.mark.parametrize("key", ["inputs", "path", "sha256", "outputs", "seal"])
def test_a_manifest_with_another_key_is_a_problem(trail, key):
    path = trail / "results/base/manifest.json"
    path.write_text(path.read_text().replace(f'"{key}"', f'"{key[:-1]}x"'))
    assert any("results/base/manifest.json: changed" in problem for problem in run().problems)


def test_nothing_to_audit_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to audit"):
        audit([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        audit([tmp_path / "none"])


def recorded(folder, name):
    with open(f"{folder}/manifest.json") as file:
        return json.load(file)["inputs"][name]["sha256"]
