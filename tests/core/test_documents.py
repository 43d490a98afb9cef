"""JSON and YAML of strangers: every limit is one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from reca.config import compose
from reca.core import artifacts, documents
from reca.core.documents import MAX_DEPTH

DEEP = MAX_DEPTH + 1
CONFIG = Path(__file__).parents[2] / "config"


def laughs(line: str, first: str) -> str:
    """Nine anchors, each of which names the one before nine times: 9 ** 9 values in 500 bytes."""
    rest = [
        line.format(name=name, inner=", ".join([f"*{before}"] * 9))
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join([first, *rest])


BAD_JSON = {
    "deep list": ("[" * DEEP + "]" * DEEP, "nested deeper than 64"),
    "deep object": ('{"a":' * DEEP + "1" + "}" * DEEP, "nested deeper than 64"),
    "past the stack": ("[" * 100_000, "nested deeper than 64"),
    "long number": ("1" * 5000, "a whole number of 5000 digits"),
    "no float": ('{"a": 1e999}', "1e999 is too large"),
    "nan": ("[NaN]", "NaN is no number"),
    "infinity": ("[-Infinity]", "-Infinity is no number"),
    "key twice": ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "cut": ('{"a"', "not valid JSON"),
    "empty": ("", "not valid JSON"),
}
BAD_YAML = {
    "deep list": ("[" * DEEP + "]" * DEEP, "nested deeper than 64"),
    "deep mapping": ("{a: " * DEEP + "1" + "}" * DEEP, "nested deeper than 64"),
    "past the stack": ("[" * 100_000, "nested deeper than 64"),
    "long number": ("a: " + "1" * 5000, "a whole number of 5000 digits"),
    "long hexadecimal": ("a: 0x" + "F" * 5000, "a whole number of 5002 digits"),
    "laughs": (laughs("{name}: &{name} [{inner}]", "a: &a [x, x]"), "more than 200000 values"),
    "merges": (laughs("{name}: &{name} {{<<: [{inner}]}}", "a: &a {x: 1}"), "more than 200000"),
    "endless": ("a: &a [*a]", r"alias \*a refers to itself"),
    "no anchor": ("a: *b", "line 1: .*undefined alias"),
    "key twice": ("a: 1\na: 2", "line 2: .*the key 'a' occurs twice"),
    "list as key": ("? [1]\n: 2", r"line 1: .*the key '\[1\]' is no text"),
    "no such day": ("a: 2020-13-45", "month must be in"),
    "code": ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "two documents": ("--- 1\n--- 2", "expected a single document|another document"),
    "control letter": ("a: \x00", "not valid YAML"),
    "cut": ("[1,", "not valid YAML"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_odd_json_is_one_line_that_names_the_file(tmp_path, case):
    text, reason = BAD_JSON[case]
    path = tmp_path / "run.json"
    path.write_text(text)
    for read in (documents.read_json, artifacts.read_json):
        with pytest.raises(ValueError, match=rf"run\.json: .*{reason}") as caught:
            read(path)
        assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("case", BAD_YAML)
def test_odd_yaml_is_one_line_that_names_the_file(tmp_path, case):
    text, reason = BAD_YAML[case]
    path = tmp_path / "laptop.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"laptop\.yaml[:,] .*({reason})"):
        documents.read_yaml(path)


def test_what_is_within_the_limits_is_read():
    assert documents.json_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a") != []
    assert documents.yaml_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a") != []
    assert documents.json_value("[" + "[]," * 1000 + "[]]", "a") == [[]] * 1001
    assert documents.json_value(str(2**127), "a") == 2**127
    assert documents.yaml_value(f"a: '{'1' * 60}'", "a") == {"a": "1" * 60}
    assert documents.yaml_value("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "a")["b"] == {
        "x": 3,
        "y": 2,
    }


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert documents.read_json(path) == documents.read_yaml(path) == {"a": 1}
    assert documents.json_value("\ufeff1", "a") == 1


@pytest.mark.parametrize("read", [documents.read_json, documents.read_yaml])
def test_files_that_cannot_be_text_are_named(tmp_path, monkeypatch, read):
    path = tmp_path / "a"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"a: not UTF-8 text \(byte 7\)"):
        read(path)
    with pytest.raises(ValueError, match=r"cannot read \(No such file"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"/dev/zero: larger than \d+ bytes"):
        documents.read_text("/dev/zero", 1000)


def test_lines_keep_their_numbers_and_the_line_breaks_of_unicode(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x\xe2\x80\xa8y"}\r\n\n{"a": 2}\n')
    found = [(number, json.loads(line)) for number, line in documents.json_lines(path)]
    assert found == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]


def test_an_object_is_demanded_by_name():
    with pytest.raises(ValueError, match="x: expected a JSON object, found a list"):
        documents.json_object("[1]", "x")


def test_our_own_configuration_reads_as_the_stock_loader_reads_it():
    paths = sorted(CONFIG.rglob("*.yaml"))
    assert len(paths) > 50
    for path in paths:
        assert documents.read_yaml(path) == yaml.load(path.read_text(), yaml.CSafeLoader), path


def test_fields_rows_and_lines_name_what_is_odd(tmp_path):
    with pytest.raises(ValueError, match="x: expected an object, found a list"):
        documents.fields([], "x", a=str)
    with pytest.raises(ValueError, match="x: the key 'a' is missing"):
        documents.fields({}, "x", a=str)
    with pytest.raises(ValueError, match="x: a is null, not a text"):
        documents.fields({"a": None}, "x", a=str)
    with pytest.raises(ValueError, match="x: entry 1: expected an object, found a number"):
        documents.rows([{}, 3], "x")
    with pytest.raises(ValueError, match="x: expected a list, found an object"):
        documents.rows({}, "x")
    with pytest.raises(ValueError, match="x: b is a number, not a text"):
        documents.texts({"a": "", "b": 1}, "x")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: expected an object, found a list"):
        documents.lines(tmp_path / "a.jsonl")


# ---- where strangers' files enter ------------------------------------------------------------
ODD_DOCUMENTS = {
    "deep": "[" * 5000,
    "deep objects": '{"a":' * 5000,
    "list": "[1]",
    "null": "null",
    "number": "1" * 5000,
    "empty object": "{}",
    "odd values": '{"weight_map": {"a": [1]}, "family": [1], "sources": 3, "network": 1, "a": 2}',
    "not UTF-8": b"\xff\xfe",
}


def _readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    from reca.commands.inputs import read_section
    from reca.evaluation.tasks import dpg, geneval, imgedit, t2i_compbench, wise
    from reca.models.checkpoint_io import load_checkpoint
    from reca.models.registry import load_model
    from reca.models.streaming import shards_of
    from reca.sources.catalogue import load_sources
    from reca.sources.fetch import read_lock

    return {
        "model": ("reca_model.json", lambda path: load_model(path.parent)),
        "index": ("model.safetensors.index.json", lambda path: load_checkpoint(path)),
        "streamed index": ("model.safetensors.index.json", shards_of),
        "lock": ("sources.lock", read_lock),
        "sources": ("sources.yaml", load_sources),
        "wise": ("cultural_common_sense.json", lambda path: wise.prompts({"prompts": path.parent})),
        "geneval": (
            "evaluation_metadata.jsonl",
            lambda path: geneval.prompts({"prompts": path.parent}),
        ),
        "dpg": ("prompts.json", lambda path: dpg.prompts({"prompts": path.parent})),
        "imgedit": ("singleturn.json", lambda path: imgedit.prompts({"prompts": path.parent})),
        "compbench": (
            "val_comp.json",
            lambda path: t2i_compbench.prompts({"prompts": path.parent}),
        ),
        "section": ("section.json", lambda path: read_section(f"@{path}")),
    }


@pytest.mark.parametrize("case", ODD_DOCUMENTS)
def test_odd_documents_are_one_line_wherever_they_are_read(tmp_path, case):
    text = ODD_DOCUMENTS[case]
    for name, (file, read) in _readers().items():
        path = tmp_path / file
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        harmless = case in HARMLESS.get(name, ())
        if harmless:
            read(path)
            continue
        with pytest.raises(ValueError, match=file.replace(".", r"\.") + "|--section"):
            read(path)
        path.unlink()


# An empty object has no prompts, and a section is judged by its stage.
HARMLESS = {
    "dpg": ("empty object",),
    "imgedit": ("empty object",),
    "section": ("empty object",),
}


def test_experiments_are_held_to_the_limits_before_they_are_composed(tmp_path):
    shutil.copytree(CONFIG, tmp_path / "config")
    for name, case in (("data/laptop_world", "laughs"), ("experiment/laptop", "past the stack")):
        file = tmp_path / "config" / f"{name}.yaml"
        whole = file.read_text()
        file.write_text(BAD_YAML[case][0])
        with pytest.raises(ValueError, match=rf"{file.name}: ({BAD_YAML[case][1]})"):
            compose.load("laptop", config_dir=tmp_path / "config")
        file.write_text(whole)
