"""One flipped byte in whatever is written piece by piece: named with its file, or without any effect."""

from __future__ import annotations

import json
import random
import shutil
import tarfile

import pytest
import torch
from PIL import Image

from reca.align.log import LOG, TrainLog, publish, truncate
from reca.core import ledger as ledgers
from reca.core.artifacts import Stage, read_run, sha256_file, write_json
from reca.core.lineage import audit
from reca.core.sealed import holds_seal, seal, unseal, unsealed
from reca.data.readers import hashes, tar
from reca.evaluation.judges.ledger import Entry, Ledger
from reca.features.workshop import Workshop
from reca.inference.imageset import Entry as Place
from reca.inference.imageset import png
from reca.inference.resume import ResumableImages, ResumableRows
from reca.toyworld.pretrain import run

REPLIES = ('a "seal": {"x"}', "8\n", "é, \\", "[8, 7]")
ROWS = {f"{i}/{'0' * 64}": [{"id": f"{i}", "sample": 0, "answer": "yes"}] for i in range(4)}


# ---- the seal ------------------------------------------------------------------------------------
def test_a_seal_covers_every_byte_and_no_damaged_line_passes_for_an_old_one():
    value = {"key": "k", "rows": [{"answer": REPLIES[0]}, None, 2.5]}
    line = seal(value).encode()
    assert unseal(line) == value and {**json.loads(line), "seal": 0} == {**value, "seal": 0}
    for place in range(len(line)):
        for bit in range(8):
            harmed = line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :]
            assert unseal(harmed) is None and unsealed(harmed, ("key", "rows")) is None
        assert not holds_seal(line[:place])
    assert unsealed(b'{"key": "k"}', ("key", "rows")) == {"key": "k"}


@pytest.mark.parametrize("value", [{}, {"seal": 1}, {"loss": float("nan")}])
def test_what_no_line_can_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"seal|JSON"):
        seal(value)


# ---- a flip in each kind of file -----------------------------------------------------------------
def log(folder):
    with TrainLog(folder, start=0, steps=5) as journal:
        for step in range(1, 6):
            journal.write({"step": step, "loss": {"t2i": 1 / step}, "lr": 0.1, "tokens": {}}, 10)

    def use():
        publish(folder / LOG, 5, folder / "out.jsonl")
        found = (folder / "out.jsonl").read_bytes()
        truncate(folder / LOG, 3, complete=True)  # what a resume from step 3 does
        return found, (folder / LOG).read_bytes()

    return folder / LOG, use


def rows(folder):
    ResumableRows(folder / "rows.jsonl").add(ROWS)

    def use():
        kept = ResumableRows(folder / "rows.jsonl")
        for key, made in ROWS.items():
            kept.of(key, lambda made=made: made)  # made again where the line is damaged
        return sorted(kept.rows.items())

    return folder / "rows.jsonl", use


def sidecar(folder):
    kept, place, recipe = ResumableImages(folder), Place("p", 3), {"seed": 1, "prompt": "a circle"}
    kept.put(place, Image.new("RGB", (8, 8), "red"), recipe, state=bytes(range(64)))

    def use():
        if not kept.has(place, recipe):
            kept.put(place, Image.new("RGB", (8, 8), "red"), recipe, state=bytes(range(64)))
        return kept.png(place), kept.state(place)

    return folder / "p/0003.json", use


def ledger(folder):
    with Ledger(folder / "judge.jsonl") as book:
        for number, reply in enumerate(REPLIES):
            usage = {"prompt_tokens": 7}
            book.add(Entry(f"{number:064x}", f"i{number}", "reply", reply, 0, "m", usage, 0.25))
    return folder / "judge.jsonl", lambda: list(Ledger(folder / "judge.jsonl"))


def shard(folder):
    workshop, key = Workshop(folder), "k" * 64
    features = {"rows": torch.arange(6).reshape(3, 2)}
    facts = {"kept": [0, 1, 2], "faults": {"3": "too large"}, "seconds": 1.5}
    workshop.write(key, features, facts)

    def use():
        if workshop.finished(key) is None:
            workshop.write(key, features, facts)
        return workshop.finished(key)

    return folder / f"{key}.json", use


def index(folder):
    with tarfile.open(folder / "s.tar", "w") as archive:
        for number in range(3):
            picture = folder / f"{number}.png"
            picture.write_bytes(png(Image.new("RGB", (8, 8), (number, 0, 0))))
            archive.add(picture, picture.name)

    def use():
        dataset = tar.TarDataset(folder / "s.tar")
        return dataset.fingerprint(), [(s.id, s.image) for s in map(dataset.__getitem__, range(3))]

    use()
    return tar.index_of(folder / "s.tar"), use


def hash_ledger(folder):
    for name in "ab":
        (folder / name).write_text(name)

    def use():
        return hashes.hash_files(folder, "ab")

    use()
    return folder / ".reca-hashes.json", use


def run_record(folder):
    with Stage("base", folder / "out", inputs={}, section={}) as stage:
        (stage.staging / "file").write_text("content")
        stage.note(encode_seconds=1.5, commit="c" * 40, versions={}, machine={})

    def use():
        found = audit([folder])
        if found.problems or found.unsealed:
            raise ValueError("; ".join(found.problems + found.unsealed))
        return read_run(folder / "out")

    return folder / "out/run.json", use


KINDS = (log, rows, sidecar, ledger, shard, index, hash_ledger, run_record)
REDONE = (rows, sidecar, shard, index, hash_ledger)  # derived: made again, never refused


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_flipped_byte_is_named_or_changes_nothing(tmp_path, kind, caplog):
    path, use = kind(tmp_path)
    before, right = path.read_bytes(), use()
    numbers = random.Random(11)
    places = range(len(before)) if len(before) <= 600 else numbers.sample(range(len(before)), 400)
    named = 0
    for place in [*places, len(before) - 1]:
        flipped = before[place] ^ (1 << numbers.randrange(8))
        path.write_bytes(before[:place] + bytes([flipped]) + before[place + 1 :])
        caplog.clear()
        try:
            found = use()
        except ValueError as error:
            assert path.name in str(error), (place, error)
            assert kind not in REDONE or (kind is rows and "remove the file" in str(error))
            named += 1
        else:
            assert found == right, place
            named += path.name in caplog.text
    # the step log's lines past the checkpoint, and what follows a seal, may harm without a word: they are unused
    assert named >= 0.98 * len(places)


# ---- what an older reca, or somebody else, left --------------------------------------------------
def test_a_ledger_of_an_older_reca_is_paid_for_and_counted(tmp_path, caplog):
    path, use = ledger(tmp_path)
    sealed, entries = path.read_bytes(), use()
    old = b"".join(
        json.dumps({k: v for k, v in json.loads(line).items() if k != "seal"}).encode() + b"\n"
        for line in sealed.splitlines()
    )
    path.write_bytes(old + sealed.splitlines(keepends=True)[0])
    assert use() == entries
    assert "4 lines from an older version have no checksum" in caplog.text
    path.write_bytes(old[:-1] + b"\x0b")
    with pytest.raises(ValueError, match=r"judge\.jsonl, line 4: damaged \(its newline"):
        use()


def test_a_planted_index_neither_redirects_nor_mislabels(tmp_path, monkeypatch, caplog):
    path, use = index(tmp_path)
    right = use()
    honest = ledgers.load_ledger(path)
    for change in ("size and mtime", "offset", "name", "size", "another user"):
        planted = json.loads(json.dumps(honest))
        first, second = planted["members"][:2]
        if change == "size and mtime":  # all that somebody who ships it can know
            planted["valid_for"]["stamp"][2:] = [1, 1]
        if change in ("size and mtime", "offset", "another user"):
            first[1:], second[1:] = second[1:], first[1:]
        elif change == "name":
            first[0], second[0] = second[0], first[0]
        else:
            first[3] -= 1
        ledgers.save_ledger(path, planted)
        if change in ("size and mtime", "another user"):
            with monkeypatch.context() as patch:
                if change == "another user":
                    patch.setattr(ledgers, "_owners", lambda path: (-1,))
                assert use() == right
        else:
            with pytest.raises(
                ValueError, match=r"s/\d: .*s\.tar: .*index says; remove \.reca-index-s"
            ):
                use()
    assert "another user wrote it" in caplog.text


def test_the_run_record_of_an_older_reca_is_counted_and_that_of_another_stage_is_named(tmp_path):
    path, _ = run_record(tmp_path)
    with Stage("base", tmp_path / "other", inputs={}, section={"a": 1}) as stage:
        (stage.staging / "file").write_text("content")
    own = path.read_bytes()
    shutil.copyfile(tmp_path / "other/run.json", path)
    (problem,) = audit([tmp_path]).problems
    assert "out/run.json: belongs to another manifest.json" in problem
    path.unlink()
    (problem,) = audit([tmp_path]).problems
    assert "out/run.json: cannot read" in problem
    write_json(path, {k: v for k, v in json.loads(own).items() if k not in ("seal", "manifest")})
    found = audit([tmp_path])
    assert found.sound and found.unsealed == [str(tmp_path / "out")]


def test_a_damaged_start_of_a_base_is_made_again(tmp_path, monkeypatch, caplog):
    class Begun:
        made = 0

        def save(self, folder):
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"weights")
            Begun.made += 1

    monkeypatch.setattr(run, "continued", lambda *_, **__: Begun())

    def start():
        return run._start("toy", {}, {}, tmp_path, 0, tmp_path / "work")

    right = sha256_file(start() / "model.safetensors")
    assert Begun.made == 1 and start() and Begun.made == 1
    for harmed in ("start/model.safetensors", "start.json"):
        path = tmp_path / "work" / harmed
        path.write_bytes(path.read_bytes()[:-3] + b"!" + path.read_bytes()[-2:])
        assert sha256_file(start() / "model.safetensors") == right
    assert Begun.made == 3 and caplog.text.count("start: damaged; writing it again") == 2
