"""The cache: its key, its completeness, its bytes (ANCHORS D4, R3, R5, S6)."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reca.cli import main
from reca.core import artifacts
from reca.core.images import decode
from reca.data.dataset import Sample
from reca.data.formats import open_dataset
from reca.features.build import build, open_cache
from reca.features.store import ABOUT, map_safetensors
from reca.features.workshop import narrowed
from tests.toy_model import CODE, DrawingToy, Pictures, png

SHARD = 300  # bytes: 4 rows of 6 int64 and 5 fp32
FORKS = multiprocessing.get_context("fork")


def make(folder: Path, model=None, dataset=None, **options):
    options = {"use": "draw", "code": CODE, "shard_bytes": SHARD, **options}
    return build(model or DrawingToy(), dataset or Pictures(10), folder, **options)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(p.relative_to(folder)): artifacts.sha256_file(p) for p in files if p.name != "run.json"
    }


def live(model, dataset, positions, use="draw"):
    return model.encode([decode(dataset[p].image, name=str(p)) for p in positions], use)


# ---- what is read is what was encoded ------------------------------------------------------------
def test_rows_equal_live_embeddings_in_any_order(tmp_path):
    model, dataset = DrawingToy(), Pictures(10)
    cache = make(tmp_path / "c", model, dataset, batch_size=3)
    assert len(list((tmp_path / "c").glob("features-*.safetensors"))) == 3
    for indices in ([9, 0, 4, 4, 5], range(10), [7], []):
        rows = cache.rows(indices)
        if not len(indices):
            assert {name: len(tensor) for name, tensor in rows.items()} == {
                "target": 0,
                "understanding": 0,
            }
            continue
        for name, tensor in live(model, dataset, indices).items():
            assert tensor.dtype == rows[name].dtype
            assert torch.equal(tensor, rows[name])


def test_codes_are_stored_narrow_and_read_wide(tmp_path):
    cache = make(tmp_path / "c")
    stored = map_safetensors(tmp_path / "c" / "features-00000.safetensors")
    assert stored["target"].dtype == torch.uint8
    assert cache.rows([0])["target"].dtype == torch.int64


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], torch.uint8),
        ([-1, 255], torch.int16),
        ([0, 8191], torch.int16),
        ([0, 40000], torch.int32),
        ([0, 2**31], torch.int64),
    ],
)
def test_narrowing_is_exact(values, dtype):
    tensor = torch.tensor(values)
    assert narrowed(tensor).dtype == dtype
    assert torch.equal(narrowed(tensor).long(), tensor)


def test_half_precision_is_kept(tmp_path):
    model, dataset = DrawingToy(), Pictures(4)
    cache = make(tmp_path / "c", model, dataset, dtype="bf16")
    expected = live(model, dataset, [2])["understanding"].bfloat16()
    assert torch.equal(cache.rows([2])["understanding"], expected)


@pytest.mark.parametrize(("said", "dtype"), [({}, "fp32"), ({"cache_dtype": "bf16"}, "bf16")])
def test_the_verb_takes_the_precision_of_its_section(monkeypatch, tmp_path, said, dtype):
    given = {}
    monkeypatch.setattr("reca.features.build.build", lambda *args, **named: given.update(named))
    monkeypatch.setattr("reca.models.registry.load_model", lambda folder: DrawingToy())
    (tmp_path / "picture.png").write_bytes(png(1))
    section = {"family": "showo", "data": {"reconstruct": {"kind": "folder"}}, **said}
    words = ["cache", "--section", json.dumps(section), "--model", str(tmp_path), "--use", "draw"]
    assert main([*words, "--data", str(tmp_path), "--out", str(tmp_path / "c")]) == 0
    assert given["dtype"] == dtype and given["section"] == {**section, "use": "draw"}


def test_reduced_jpegs_make_another_cache(monkeypatch, tmp_path):
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG")
    picture = {0: Sample("photo", buffer.getvalue())}
    exact, reduced = (
        make(tmp_path / str(side), dataset=Pictures(1, picture), jpeg_side=side)
        for side in (None, 32)
    )
    assert "jpeg_side" not in exact.about["covers"]
    assert exact.about["key"] != reduced.about["key"]
    rows = [cache.rows([0])["understanding"] for cache in (exact, reduced)]
    assert not torch.equal(*rows) and torch.allclose(*rows, atol=0.05)


def test_the_verb_reduces_jpegs_as_the_data_say(monkeypatch, tmp_path, capsys):
    given = {}
    monkeypatch.setattr("reca.features.build.build", lambda *args, **named: given.update(named))
    monkeypatch.setattr("reca.models.registry.load_model", lambda folder: DrawingToy())
    (tmp_path / "picture.png").write_bytes(png(1))
    for side in (64, 0):
        data = {"reconstruct": {"kind": "folder", "options": {"jpeg_side": side}}}
        section = json.dumps({"family": "showo", "data": data})
        words = ["--section", section, "--model", str(tmp_path), "--use", "draw"]
        code = main(["cache", *words, "--data", str(tmp_path), "--out", str(tmp_path / "c")])
        assert code == (0 if side else 2)
    assert given["jpeg_side"] == 64
    assert "jpeg_side = 0: must be a whole number of pixels" in capsys.readouterr().err


def test_equal_images_are_encoded_once(tmp_path):
    model, twin = DrawingToy(), Sample("twin", png(0))
    cache = make(tmp_path / "c", model, Pictures(10, {9: twin}), shard_bytes=10**6)
    assert model.encoded == 1 + 9  # one to learn the size of a row
    assert cache.ids[9] == "twin"
    assert torch.equal(cache.rows([0])["understanding"], cache.rows([9])["understanding"])
    assert cache.info["rows"] == 10
    assert cache.info["images"] == 9
    assert cache.info["encode_seconds"] > 0


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_is_not_there(tmp_path, row):
    with pytest.raises(ValueError, match=f"no row {row}; the cache has 10 rows"):
        make(tmp_path / "c").rows([3, row])


# ---- the key -------------------------------------------------------------------------------------
def test_unchanged_is_a_hit(tmp_path):
    make(tmp_path / "c")
    before, stamp = hashes(tmp_path / "c"), (tmp_path / "c" / "manifest.json").stat().st_mtime_ns
    model = DrawingToy()
    make(tmp_path / "c", model, batch_size=2, workers=2)
    assert model.encoded == 0
    assert hashes(tmp_path / "c") == before
    assert (tmp_path / "c" / "manifest.json").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


MUTATIONS = {
    "weights": lambda: {"model": DrawingToy(seed=1)},
    "transform": lambda: {"model": DrawingToy(transform="negative")},
    "use": lambda: {"use": "read"},
    "dtype": lambda: {"dtype": "fp16"},
    "image": lambda: {
        "dataset": Pictures(10, {i: Sample(f"picture-{i}", png(90 + i)) for i in range(10)})
    },
    "code": lambda: {"code": "d" * 64},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_mutation_is_a_miss(tmp_path, mutation):
    make(tmp_path / "c")
    before = artifacts.read_json(tmp_path / "c" / ABOUT)["key"]
    changed = MUTATIONS[mutation]()
    model = changed.setdefault("model", DrawingToy())
    cache = make(tmp_path / "c", **changed)
    assert model.encoded >= 10
    assert cache.about["key"] != before
    fresh = make(tmp_path / "fresh", **changed)
    assert hashes(tmp_path / "c") == hashes(tmp_path / "fresh")
    assert torch.equal(cache.rows([1])["understanding"], fresh.rows([1])["understanding"])


def test_one_new_image_costs_one_shard(tmp_path):
    make(tmp_path / "c")
    model, dataset = DrawingToy(), Pictures(10, {9: Sample("new", png(99))})
    cache = make(tmp_path / "c", model, dataset)
    assert model.encoded == 2  # the last shard holds images 8 and 9
    assert torch.equal(cache.rows([9])["target"], live(model, dataset, [9])["target"])


def test_a_new_section_is_recorded_without_encoding(tmp_path):
    make(tmp_path / "c", section={"a": 1})
    model = DrawingToy()
    cache = make(tmp_path / "c", model, section={"a": 2})
    assert model.encoded == 0
    assert artifacts.read_manifest(tmp_path / "c")["section"] == {"a": 2}
    assert cache.info["encode_seconds"] > 0


def test_another_encoder_is_refused_when_opened(tmp_path):
    make(tmp_path / "c")
    cache = open_cache(tmp_path / "c", use="draw")
    cache.check_encoder(DrawingToy().encoder_fingerprint("draw"))
    with pytest.raises(ValueError, match="different encoder"):
        cache.check_encoder(DrawingToy(seed=1).encoder_fingerprint("draw"))
    with pytest.raises(ValueError, match="has images for use 'draw', not 'read'"):
        open_cache(tmp_path / "c", use="read")


def test_unknown_dtype(tmp_path):
    with pytest.raises(ValueError, match="'fp8' is not known; choose one of fp32, fp16, bf16"):
        make(tmp_path / "c", dtype="fp8")


# ---- unreadable images ---------------------------------------------------------------------------
def test_unreadable_images_are_counted_and_left_out(tmp_path):
    changed = {3: Sample("torn", png(3)[:60]), 6: Sample("words", None)}
    model, dataset = DrawingToy(), Pictures(10, changed)
    cache = make(tmp_path / "c", model, dataset, max_unreadable=0.1)
    assert cache.positions.tolist() == [0, 1, 2, 4, 5, 7, 8, 9]
    assert cache.about["unreadable"][0]["id"] == "torn"
    assert cache.info["unreadable"] == cache.info["without_image"] == 1
    for name, tensor in live(model, dataset, cache.positions).items():
        assert torch.equal(tensor, cache.rows(range(8))[name])


def test_too_many_unreadable_images_fail(tmp_path):
    dataset = Pictures(10, {3: Sample("torn", png(3)[:60]), 8: Sample("empty", b"")})
    with pytest.raises(ValueError, match=r"2 of 10 samples unreadable.*empty"):
        make(tmp_path / "c", dataset=dataset, max_unreadable=0.1)
    assert not (tmp_path / "c").exists()


def test_the_limit_counts_across_sessions(tmp_path):
    """Shards that were finished under a generous limit do not pass a strict one."""
    dataset = Pictures(10, {1: Sample("torn", png(3)[:60]), 9: Sample("empty", b"")})
    make(tmp_path / "c", dataset=dataset, max_unreadable=0.5)
    with pytest.raises(ValueError, match="unreadable"):
        make(tmp_path / "c", dataset=dataset, max_unreadable=0.1, section="again")


def test_what_is_left_out_is_recorded_in_fixed_words(tmp_path):
    """Refused texts, unreadable pictures and files that are not read; two runs give equal bytes."""
    for name in ("one", "two"):
        folder = tmp_path / name / "photos"
        folder.mkdir(parents=True)
        for number in range(9):
            (folder / f"{number}.png").write_bytes(png(number))
        (folder / "2.png").write_bytes(b"GIF89a" + bytes(40))
        (folder / "3.png").write_bytes(png(3)[:60])
        (folder / "4.txt").write_bytes(b"\xff\xfe")
        (folder / "metadata.jsonl").write_text('{"file_name": "5.png", "text": null}')
        (folder / "captions.csv").write_text("?")
        dataset = open_dataset("folder", folder)
        make(tmp_path / name / "c", dataset=dataset, max_unreadable=0.5, section={"n": 1})
    about = [(tmp_path / name / "c" / ABOUT).read_text() for name in ("one", "two")]
    assert about[0] == about[1]
    assert "0x" not in about[0].replace("0xff", "") and str(tmp_path) not in about[0]
    found = json.loads(about[0])
    assert sorted(row["id"] for row in found["unreadable"]) == ["2.png", "3.png", "4.png", "5.png"]
    assert found["left_out"] == {
        "neither image nor caption": {"count": 1, "first": ["captions.csv"]}
    }


def test_nothing_readable(tmp_path):
    with pytest.raises(ValueError, match="no readable image"):
        make(tmp_path / "c", dataset=Pictures(1, {0: Sample("empty", b"")}), max_unreadable=1)


# ---- kills and company ---------------------------------------------------------------------------
def _write_slowly(folder: Path, seed: int) -> None:
    from tests import toy_model

    class Slow(toy_model.DrawingToy):
        def encode(self, images, use):
            import time

            time.sleep(0.01)
            return super().encode(images, use)

    build(Slow(), Pictures(20), folder, use="draw", code=CODE, shard_bytes=SHARD)


def test_four_writers_give_one_cache(tmp_path):
    writers = [FORKS.Process(target=_write_slowly, args=(tmp_path / "c", i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    make(tmp_path / "alone", dataset=Pictures(20))
    assert hashes(tmp_path / "c") == hashes(tmp_path / "alone")
    assert len(open_cache(tmp_path / "c", verify=True)) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "c"]


def test_a_killed_build_resumes_where_it_was(tmp_path):
    def kill(done, total):
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    more = {"work": tmp_path / "w", "progress": kill}
    child = FORKS.Process(target=make, args=(tmp_path / "c",), kwargs=more)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    model = DrawingToy()
    make(tmp_path / "c", model, work=tmp_path / "w")
    assert model.encoded == 1 + 2  # the size of a row, and the last shard
    make(tmp_path / "uninterrupted")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "uninterrupted")
    assert not (tmp_path / "w").exists()


def test_a_damaged_shard_of_unfinished_work_is_encoded_again(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        make(tmp_path / "c", work=tmp_path / "w", progress=stop)
    shard = next((tmp_path / "w").glob("*.safetensors"))
    flip(shard, shard.stat().st_size - 1)
    model = DrawingToy()
    make(tmp_path / "c", model, work=tmp_path / "w")
    assert model.encoded == 1 + 2 + 4
    make(tmp_path / "uninterrupted")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "uninterrupted")


# ---- bad disks -----------------------------------------------------------------------------------
def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.unlink()  # the file may have a second name
    path.write_bytes(data)


def test_every_flipped_byte_is_found_with_its_file(tmp_path, campaign):
    cache = tmp_path / "c"
    make(cache)
    files = [path for path in sorted(cache.iterdir()) if path.name != "run.json"]
    for rng in campaign.draws(100, full=1000):
        path = rng.choice(files)
        whole = path.read_bytes()
        flip(path, rng.randrange(len(whole)))
        with campaign.case(path.name):
            with pytest.raises(ValueError, match=re.escape(f"{cache}/")) as error:
                open_cache(cache, verify=True)
            assert path.name == "manifest.json" or path.name in str(error.value)
        path.write_bytes(whole)
    open_cache(cache, verify=True)


def test_a_damaged_cache_is_repaired_by_the_next_build(tmp_path):
    make(tmp_path / "c")
    before = hashes(tmp_path / "c")
    flip(tmp_path / "c" / "features-00001.safetensors", 200)
    model = DrawingToy()
    make(tmp_path / "c", model)
    assert model.encoded == 4
    assert hashes(tmp_path / "c") == before


def test_a_full_disk_gives_one_clear_error_and_no_cache(tmp_path, monkeypatch, campaign):
    """The disk fills up at each fsync of a build in turn; the next build goes on from there."""
    real, dataset = os.fsync, Pictures(6)
    make(tmp_path / "uninterrupted", dataset=dataset)
    for point in range(100):
        calls = iter(range(1000))

        def fsync(descriptor, calls=calls, point=point):
            if next(calls) == point:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        folder = tmp_path / str(point)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                make(folder, dataset=dataset)
                break
            except ValueError as error:
                assert "No space left on device" in str(error)
                assert str(tmp_path) in str(error)
        if (folder / "manifest.json").exists():  # only the folder's own fsync failed
            open_cache(folder, verify=True)
        make(folder, dataset=dataset)
        assert hashes(folder) == hashes(tmp_path / "uninterrupted")
        campaign.count(1)
    assert point >= 12


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose a writable folder"):
        make(tmp_path / "file" / "c")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(ValueError, match=r"work/\S+: this file system has no locks \(Operation"):
        make(tmp_path / "cache", work=tmp_path / "work/cache")


def test_an_incomplete_cache_does_not_exist(tmp_path):
    make(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_cache(tmp_path / "c")


def test_a_label_of_another_form_is_named(tmp_path, monkeypatch):
    make(tmp_path / "c")
    monkeypatch.setattr(
        "reca.core.artifacts.verified", lambda path: path
    )  # as where the record fits it
    for text in ("null", "[]", "{}", '{"key": "", "covers": {}, "features": {"a": 1}}'):
        (tmp_path / "c" / ABOUT).write_text(text)
        with pytest.raises(ValueError, match=r"cache\.json: "):
            open_cache(tmp_path / "c")


def _header(text: bytes, declared: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    return (len(text) if declared is None else declared).to_bytes(8, "little") + text + data


def _tensor(begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        _header(b"{}", declared=2**60),
        _header(b"{}", declared=10**9),
        _header(b'{"a": }'),
        _header(json.dumps({"a": _tensor(0, 4), "b": _tensor(0, 4)}).encode()),
        _header(json.dumps({"a": _tensor(0, 4000)}).encode()),
        _header(json.dumps({"a": _tensor(4, 0)}).encode()),
    ],
    ids=["empty", "short", "header-2^60", "header-1e9", "json", "overlap", "beyond", "reversed"],
)
def test_malformed_safetensors_name_the_file(tmp_path, content):
    path = tmp_path / "features-00000.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"features-00000\.safetensors: not a valid safetensors"):
        map_safetensors(path)


@pytest.mark.parametrize("fault", ["rows", "dtype"])
def test_a_shard_that_does_not_fit_the_index(tmp_path, fault):
    cache, path = make(tmp_path / "c"), tmp_path / "c" / "features-00000.safetensors"
    features = {name: tensor.clone() for name, tensor in map_safetensors(path).items()}
    if fault == "rows":
        features["target"] = features["target"][:2]
    else:
        features["understanding"] = features["understanding"].double()
    save_file(features, path)
    with pytest.raises(ValueError, match=r"features-00000\.safetensors: contains"):
        cache.rows([0])


def test_samples_without_an_own_id_keep_their_positions(tmp_path):
    dataset = Pictures(5)
    dataset.samples = [replace(sample, id="same") for sample in dataset.samples]
    assert make(tmp_path / "c", dataset=dataset).positions.tolist() == np.arange(5).tolist()
