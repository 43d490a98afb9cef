"""One rule for all readers: a caption, a question or an answer is a text, or its sample is refused by name."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reca.core.unreadable import UnreadableImage, UnreadableText
from reca.data.dataset import Corrupt, Dataset, described, read_images, read_texts
from reca.data.formats import max_unreadable, open_dataset

MARK = "\ufeff"


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder_text(path: Path, texts: list[Any]) -> Dataset:
    for number, text in enumerate(texts):
        (path / f"{number}.png").write_bytes(png(number))
        data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
        (path / f"{number}.txt").write_bytes(data)
    return open_dataset("folder", path)


def as_folder_json(path: Path, texts: list[Any]) -> Dataset:
    for number, text in enumerate(texts):
        (path / f"{number}.png").write_bytes(png(number))
        (path / f"{number}.json").write_text(json.dumps({"caption": text}))
    return open_dataset("folder", path)


def as_metadata(path: Path, texts: list[Any]) -> Dataset:
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(texts)]
    for number in range(len(texts)):
        (path / f"{number}.png").write_bytes(png(number))
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_dataset("folder", path)


def write_tar(path: Path, members: dict[str, bytes]) -> Dataset:
    with tarfile.open(path / "s.tar", "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return open_dataset("tar", path)


def as_tar_text(path: Path, texts: list[Any]) -> Dataset:
    members: dict[str, bytes] = {}
    for number, text in enumerate(texts):
        members[f"{number}.png"] = png(number)
        data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
        members[f"{number}.txt"] = data
    return write_tar(path, members)


def as_tar_json(path: Path, texts: list[Any]) -> Dataset:
    members: dict[str, bytes] = {}
    for number, text in enumerate(texts):
        members[f"{number}.png"] = png(number)
        members[f"{number}.json"] = json.dumps({"caption": text}).encode()
    return write_tar(path, members)


def write_parquet(path: Path, column: str, cells: Any) -> Dataset:
    ids = [str(number) for number in range(len(cells))]
    pictures = [png(number) for number in range(len(cells))]
    pq.write_table(pa.table({"id": ids, "image": pictures, column: cells}), path / "a.parquet")
    return open_dataset("parquet", path)


def as_conversations(path: Path, texts: list[Any]) -> Dataset:
    return write_parquet(path, "conversations", [json.dumps([[["what ?", t]]]) for t in texts])


def as_turns(path: Path, texts: list[Any]) -> Dataset:
    turns = [[{"from": "human", "value": t}, {"from": "gpt", "value": "A dot."}] for t in texts]
    return write_parquet(path, "conversations", [json.dumps(one) for one in turns])


READERS: dict[str, Callable[[Path, list[Any]], Dataset]] = {
    "folder json": as_folder_json,
    "metadata": as_metadata,
    "tar json": as_tar_json,
    "conversations": as_conversations,
    "turns": as_turns,
}
FILES = {"folder txt": as_folder_text, "tar txt": as_tar_text}
VALUES = {
    "list": (["a dot", "a spot"], "is a list, not a text"),
    "number": (3, "is a number, not a text"),
    "truth": (True, "is true or false, not a text"),
    "null": (None, "is null, not a text"),
    "object": ({"en": "a dot"}, "is an object, not a text"),
}
TEXTS = {
    "nothing": ("", "is empty or blank"),
    "blanks": (" \n\t\u00a0\u200b", "is empty or blank"),
    "mark alone": (MARK, "is empty or blank"),
    "half a letter": ("a \ud800 dot", "half a letter|is not UTF-8"),
}
BYTES = {
    "latin-1": (b"caf\xe9", r"is not UTF-8 \(byte 3\)"),
    "utf-16": ("a dot".encode("utf-16"), "is not UTF-8"),
}
CASES = [(READERS[r], *c) for r in READERS for c in (VALUES | TEXTS).values()]
CASES += [(FILES[r], *c) for r in FILES for c in (TEXTS | BYTES).values()]


@pytest.mark.parametrize(("reader", "text", "reason"), CASES)
def test_what_is_no_text_is_a_refused_sample(tmp_path, reader, text, reason):
    dataset = reader(tmp_path, ["a dot", text, "a spot"])
    name = dataset.texts(0).id.replace("0", "1")
    with pytest.raises(UnreadableText, match=rf"{name}: unreadable text: .*({reason})"):
        dataset[1]
    tally = Corrupt(3, 0.5)
    assert [at for at, _, _ in read_images(dataset, range(3), tally=tally)] == [0, 2]
    assert [bad for bad, _ in tally.bad] == [name]
    assert len(read_texts(dataset, 0.5)) == 2
    with pytest.raises(ValueError, match=rf"1 of 3 samples unreadable: {name} .*max_unreadable"):
        list(read_images(dataset, range(3)))
    with pytest.raises(ValueError, match="1 of 3 samples unreadable"):
        read_texts(dataset)


@pytest.mark.parametrize("reader", [*READERS.values(), *FILES.values()])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, reader):
    sample = reader(tmp_path, [f"{MARK}ein Fuß 点"])[0]
    assert sample.caption == "ein Fuß 点" or "ein Fuß 点" in sample.conversations[0][0]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (pa.array([["a", "b"], ["c"]]), "a list"),
        (pa.array([1, 2]), "a number"),
        (pa.array(["", " "]), "empty or blank"),
        (pa.array([b"\xff", b"\xfe"]), "is not UTF-8"),
        (pa.array([b"\xff", b"\xfe"]).cast(pa.string(), safe=False), "is not UTF-8"),
    ],
    ids=["list", "number", "blank", "bytes", "unchecked"],
)
def test_parquet_captions_follow_the_rule(tmp_path, cells, reason):
    dataset = write_parquet(tmp_path, "prompt", cells)
    with pytest.raises(UnreadableText, match=reason):
        dataset[0]
    assert [bad for bad, _ in count(dataset).bad] in (["0", "1"], ["a/0", "a/1"])


def count(dataset: Dataset) -> Corrupt:
    tally = Corrupt(len(dataset), 1.0)
    list(read_images(dataset, range(len(dataset)), tally=tally))
    return tally


def test_a_parquet_null_says_that_there_is_no_caption(tmp_path):
    """The one way a column has to say so; the laptop's edits have such rows."""
    dataset = write_parquet(tmp_path, "prompt", pa.array(["a dot", None]))
    assert [dataset[i].caption for i in (0, 1)] == ["a dot", None]
    assert count(dataset).bad == []


ODD_TURNS = {
    "number": "3",
    "deep": "[" * 5000,
    "not pairs": '[[["a", "b", "c"]]]',
    "flat": '["a", "b"]',
    "object": '{"a": 1}',
    "answers": '[{"from": "gpt", "value": "a"}]',
    "mixed": '[{"from": "human", "value": "a"}, 3]',
    "speaker": '[{"from": ["human"], "value": "a"}, {"value": "b"}]',
    "twice": '[{"from": "human", "from": "gpt"}]',
}


@pytest.mark.parametrize("case", ODD_TURNS)
def test_odd_conversations_are_refused_samples(tmp_path, case):
    dataset = write_parquet(tmp_path, "conversations", [ODD_TURNS[case]])
    with pytest.raises(UnreadableText, match="0: unreadable text"):
        dataset[0]


LLAVA_ENTRIES = {
    "null answer": ({"conversations": [("human", "q"), ("gpt", None)]}, "gpt turn is null"),
    "list answer": ({"conversations": [("human", "q"), ("gpt", ["a"])]}, "is a list"),
    "blank question": ({"conversations": [("human", " "), ("gpt", "a")]}, "empty or blank"),
    "tag alone": (
        {"conversations": [("human", "<image>\n"), ("gpt", "a")]},
        "the image tag apart, is empty",
    ),
    "image list": ({"image": ["a.png", "b.png"]}, "a list of 2 images"),
    "image number": ({"image": 7}, "image path is a number"),
    "long name": ({"image": "a" * 5000 + ".png"}, r"too long for a file's name \(5004 bytes\)"),
    "long path": ({"image": "/".join(["a" * 200] * 30)}, "too long for a file's name"),
    "half a letter": ({"image": "\ud800.png"}, "half a letter"),
    "no conversations": ({"conversations": None}, "not a list of turns"),
    "turns of text": ({"conversations": ["q", "a"]}, "not a list of turns"),
}


def test_a_conversation_without_turns_is_no_conversation(tmp_path):
    with pytest.raises(UnreadableText, match="a conversation has no turns"):
        write_parquet(tmp_path, "conversations", ["[[]]"])[0]


@pytest.mark.parametrize("case", LLAVA_ENTRIES)
def test_llava_entries_that_cannot_be_used_say_why(tmp_path, case):
    odd, reason = LLAVA_ENTRIES[case]
    entries = [
        {"id": number, "image": "0.png", "conversations": [("human", "q"), ("gpt", "a")]} | more
        for number, more in enumerate([{}, odd])
    ]
    for entry in entries:
        turns = entry["conversations"]
        if turns and isinstance(turns[0], tuple):
            entry["conversations"] = [{"from": who, "value": value} for who, value in turns]
    (tmp_path / "0.png").write_bytes(png())
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=rf"1 of 2 entries malformed, first mix/1: .*{reason}"):
        open_dataset("llava", tmp_path)
    dataset = open_dataset("llava", tmp_path, max_malformed=0.5)
    assert (len(dataset), dataset[0].conversations) == (1, [[("q", "a")]])
    assert len(dataset.fingerprint()) == 64
    assert list(dataset.left_out) == ["malformed entries"]


def test_deep_llava_files_are_one_line(tmp_path):
    (tmp_path / "mix.json").write_text("[" * 20_000)
    with pytest.raises(ValueError, match=r"mix\.json: nested deeper than 64 levels"):
        open_dataset("llava", tmp_path)


# ---- what a folder holds -----------------------------------------------------------------------
def test_links_that_lead_to_no_file_are_named(tmp_path, caplog):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data, elsewhere):
        folder.mkdir()
        (folder / "a.png").write_bytes(png())
    (data / "b.png").symlink_to(elsewhere / "a.png")
    (data / "c.png").symlink_to(elsewhere / "gone.png")
    (data / "more").symlink_to(elsewhere)
    os.mkfifo(data / "pipe.png")
    dataset = open_dataset("folder", data)
    assert [dataset[at].id for at in range(len(dataset))] == ["a.png", "b.png"]
    left = {
        "links to nothing": ["c.png"],
        "links to folders": ["more"],
        "special files": ["pipe.png"],
    }
    assert dataset.left_out == left
    assert all(reason in caplog.text and names[0] in caplog.text for reason, names in left.items())


def test_metadata_is_read_in_all_folders_and_endings_in_any_case(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("d.PNG", "e.JPG", "b/f.Gif", "b/g.tiff", "b/raw"):
        (tmp_path / name).write_bytes(png(5))
    (tmp_path / "d.TXT").write_text("a dot\n")
    (tmp_path / "e.Json").write_text('{"caption": "a spot", "licence": "CC0"}')
    rows = [{"file_name": "f.Gif", "text": "f", "n": 1}, {"file_name": "raw", "caption": "r"}]
    (tmp_path / "b" / "Metadata.JSONL").write_bytes(
        MARK.encode() + "\r\n".join(map(json.dumps, rows)).encode()
    )
    outer = {"file_name": "b/g.tiff", "text": "g"}
    (tmp_path / "metadata.jsonl").write_text(f"\n{json.dumps(outer)}\n")
    dataset = open_dataset("folder", tmp_path)
    found = [dataset[i] for i in range(len(dataset))]
    assert {s.id: s.caption for s in found} == {
        "b/f.Gif": "f",
        "b/g.tiff": "g",
        "b/raw": "r",
        "d.PNG": "a dot",
        "e.JPG": "a spot",
    }
    assert [s.extra for s in found if s.extra] == [{"n": 1}, {"licence": "CC0"}]
    assert (dataset.ignored, dataset.left_out, count(dataset).bad) == ([], {}, [])
    first = dataset.fingerprint()
    (tmp_path / "metadata.jsonl").write_text(json.dumps(outer | {"text": "another"}))
    assert open_dataset("folder", tmp_path).fingerprint() != first


def test_files_that_a_folder_does_not_read_are_counted_and_named(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "manifest.json").write_text("{}")  # of a fetched source: the house's own record
    for name in ("captions.csv", "b.svg", "notes.txt", "b.avif", "metadata.csv", "README"):
        (tmp_path / name).write_text("?")
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset("folder", tmp_path)
    assert "6 files are not read" in caplog.text and "captions.csv" in caplog.text
    record = described(dataset.left_out)["neither image nor caption"]
    assert record["count"] == 6 and "notes.txt" in record["first"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no image \(.*; it contains 2 \.csv, "):
        open_dataset("folder", tmp_path)


ODD_LINES = {
    "no file name": ('{"text": "a"}', "file_name is null"),
    "other folder": ('{"file_name": "../a.png"}', "leaves the image folder"),
    "absolute": ('{"file_name": "/etc/passwd"}', "leaves the image folder"),
    "long": (json.dumps({"file_name": "a" * 5000}), "too long"),
    "not JSON": ("{", "not valid JSON"),
    "deep": ("[" * 5000, "nested deeper"),
    "not an object": ("[1]", "expected a JSON object"),
    "twice": ('{"file_name": "./0.png"}', "a second line for 0.png"),
}


@pytest.mark.parametrize("case", ODD_LINES)
def test_odd_lines_of_metadata_are_refused_samples(tmp_path, case):
    (tmp_path / "0.png").write_bytes(png())
    line, reason = ODD_LINES[case]
    text = json.dumps({"file_name": "0.png", "text": "a dot"})
    (tmp_path / "metadata.jsonl").write_text(f"{text}\n{line}\n")
    dataset = open_dataset("folder", tmp_path)
    ((name, why),) = count(dataset).bad
    assert name == "metadata.jsonl:2" and reason in why
    assert len(dataset.fingerprint()) == 64


def test_a_picture_that_metadata_names_must_be_there(tmp_path):
    (tmp_path / "0.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a"}')
    assert [bad for bad, _ in count(open_dataset("folder", tmp_path)).bad] == ["gone.png"]


def test_two_captions_that_differ_in_capitals_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for name in ("a.txt", "a.TXT"):
        (tmp_path / name).write_text(name)
    with pytest.raises(UnreadableText, match=r"a\.png: .*two captions, a\.TXT and a\.txt"):
        open_dataset("folder", tmp_path)[0]


# ---- tar ---------------------------------------------------------------------------------------
def test_a_stem_with_dots_is_named_with_the_reason(tmp_path):
    dataset = write_tar(tmp_path, {"a.png": png(), "c/x.b.jpg": png(), "c/x.txt": b"words"})
    with pytest.raises(UnreadableImage, match=r"s/c/x: .*'x\.b\.jpg' has dots in its stem: Web"):
        dataset[1]
    with pytest.raises(ValueError, match=r"1 of 2 samples unreadable: s/c/x .*dots in its stem"):
        list(read_images(dataset, range(2)))


def test_members_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    members = {"a.PNG": png(), "a.TXT": b"a dot", "a.seg.png": png(), "a.cls": b"3", "m.csv": b""}
    dataset = write_tar(tmp_path, members)
    assert dataset[0].caption == "a dot"
    left = dataset.left_out
    assert left["members that are neither image nor txt nor json"] == ["s/a.cls", "s/a.seg.png"]
    assert left["keys without an image"] == ["s/m"]
    assert "s/a.seg.png" in caplog.text and "s/m" in caplog.text


def test_names_that_are_not_utf_8_are_refused_samples(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(png())
    ((bad, reason),) = count(open_dataset("folder", tmp_path)).bad
    assert bad.isascii() and "name is not UTF-8" in reason


# ---- thresholds --------------------------------------------------------------------------------
def test_the_threshold_is_an_option_of_every_kind(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    assert len(open_dataset("folder", tmp_path, max_unreadable=0.5)) == 1
    assert (max_unreadable({"max_unreadable": 1}), max_unreadable({})) == (1.0, 0.001)
    for value in (-1, 2, True, "all", None, float("nan")):
        with pytest.raises(ValueError, match=r"max_unreadable = .*: must be a number from 0 to 1"):
            open_dataset("folder", tmp_path, max_unreadable=value)
