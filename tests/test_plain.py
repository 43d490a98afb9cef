"""JSON and YAML of strangers: every limit is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from reca import plain, records
from reca.plain import MAX_DEPTH

DEEP = MAX_DEPTH + 1
CONFIG = Path(__file__).parent.parent / "config"


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
    "endless": ("a: &a [*a]", r"alias \*a stands for itself"),
    "no anchor": ("a: *b", "undefined alias, line 1"),
    "key twice": ("a: 1\na: 2", "the key 'a' occurs twice, line 2"),
    "list as key": ("? [1]\n: 2", r"the key '\[1\]' is no text, line 1"),
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
    for read in (plain.read_json, records.read_json):
        with pytest.raises(ValueError, match=rf"run\.json: .*{reason}") as caught:
            read(path)
        assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("case", BAD_YAML)
def test_odd_yaml_is_one_line_that_names_the_file(tmp_path, case):
    text, reason = BAD_YAML[case]
    path = tmp_path / "laptop.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"laptop\.yaml: .*({reason})"):
        plain.read_yaml(path)


def test_what_is_within_the_limits_is_read():
    assert plain.json_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a") != []
    assert plain.yaml_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, "a") != []
    assert plain.json_value("[" + "[]," * 1000 + "[]]", "a") == [[]] * 1001
    assert plain.json_value(str(2**127), "a") == 2**127
    assert plain.yaml_value(f"a: '{'1' * 60}'", "a") == {"a": "1" * 60}
    assert plain.yaml_value("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "a")["b"] == {"x": 3, "y": 2}


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert plain.read_json(path) == plain.read_yaml(path) == {"a": 1}
    assert plain.json_value("\ufeff1", "a") == 1


@pytest.mark.parametrize("read", [plain.read_json, plain.read_yaml])
def test_files_that_cannot_be_text_are_named(tmp_path, monkeypatch, read):
    path = tmp_path / "a"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"a: not UTF-8 text \(byte 7\)"):
        read(path)
    with pytest.raises(ValueError, match=r"cannot read \(No such file"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"/dev/zero: larger than \d+ bytes"):
        plain.read_text("/dev/zero", 1000)


def test_lines_keep_their_numbers_and_the_line_breaks_of_unicode(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x\xe2\x80\xa8y"}\r\n\n{"a": 2}\n')
    found = [(number, json.loads(line)) for number, line in plain.json_lines(path)]
    assert found == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]


def test_an_object_is_demanded_by_name():
    with pytest.raises(ValueError, match="x: expected a JSON object, found a list"):
        plain.json_object("[1]", "x")


def test_our_own_configuration_reads_as_the_stock_loader_reads_it():
    paths = sorted(CONFIG.rglob("*.yaml"))
    assert len(paths) > 50
    for path in paths:
        assert plain.read_yaml(path) == yaml.load(path.read_text(), yaml.CSafeLoader), path
