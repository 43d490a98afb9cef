"""Plain data, JSON and YAML, from files that anybody may have written: one loader with limits.

Both standard parsers follow any nesting until Python's stack ends, build numbers of any length, and
keep the last of two equal keys; an alias of YAML can stand for gigabytes. Here each of these is one
`ValueError` that names the file. Imports nothing heavy: Snakemake reads experiments through it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64  # lists and mappings within each other; our deepest files have eight
MAX_BYTES = 256 * 2**20
MAX_YAML_BYTES = 16 * 2**20  # ten times as slow to parse; the largest here has 100 KB
MAX_YAML_NODES = 200_000  # aliases counted as what they stand for
MAX_DIGITS = 40  # of a whole number: 128 bits
_MERGE = "tag:yaml.org,2002:merge"
_SHOWN = 80  # letters of a foreign text in a message
# How YAML 1.1 writes whole numbers: binary, hexadecimal, decimal and by sixties.
_YAML_INTEGER = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])*)", re.ASCII)


# ---- files ---------------------------------------------------------------------------------------
def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """A file's text in UTF-8, without a byte order mark.

    Raises:
        ValueError: a file that is missing or cannot be read, is larger than `max_bytes`, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror})") from error
    if len(data) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes, so it is not read")
    return decoded(data, path)


def decoded(data: bytes, where: object) -> str:
    """UTF-8 bytes as text, without a byte order mark; ValueError names `where` and the first wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from error


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """The JSON value of a file; ValueError names the file that cannot be read or exceeds a limit."""
    return json_value(read_text(path, max_bytes), path)


def read_yaml(path: str | Path) -> Any:
    """The YAML value of a file; ValueError names the file that cannot be read or exceeds a limit."""
    return yaml_value(read_text(path, MAX_YAML_BYTES), path)


# ---- JSON ----------------------------------------------------------------------------------------
def json_value(text: str | bytes, where: object) -> Any:
    """The value of one JSON text.

    Raises:
        ValueError: not JSON; nested deeper than `MAX_DEPTH`; a key that occurs twice in one object; a whole number
            of more than `MAX_DIGITS` digits; NaN or Infinity, which JSON does not have. Names `where`.
    """
    text = decoded(text, where) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"{where}: {_too_deep()}") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    # No text is nested deeper than it has brackets, so most are not walked.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value, where)
    return value


def json_object(text: str | bytes, where: object) -> dict[str, Any]:
    """As `json_value`, for a text that must be an object."""
    value = json_value(text, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, found {kind_of(value)}")
    return value


def fields(value: Any, where: object, **kinds: type) -> dict[str, Any]:
    """`value` as an object that has these keys, each of its kind; ValueError names `where` and the key."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, found {kind_of(value)}")
    for key, kind in kinds.items():
        if key not in value:
            raise ValueError(f"{where}: the key {key!r} is missing")
        if not isinstance(value[key], kind):
            raise ValueError(f"{where}: {key} is {kind_of(value[key])}, not {kind_of(kind())}")
    return value


def rows(value: Any, where: object, **kinds: type) -> list[dict[str, Any]]:
    """`value` as a list of such objects (`fields`); ValueError names the entry, counted from 0."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, found {kind_of(value)}")
    return [fields(row, f"{where}: entry {number}", **kinds) for number, row in enumerate(value)]


def lines(path: str | Path, **kinds: type) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, each with these keys; ValueError names file and line."""
    return [
        fields(json_value(line, f"{path}, line {number}"), f"{path}, line {number}", **kinds)
        for number, line in json_lines(path)
    ]


def texts(value: Any, where: object) -> dict[str, str]:
    """`value` as an object whose values are all texts; ValueError names the first that is none."""
    found = fields(value, where)
    return fields(found, where, **dict.fromkeys(found, str))


def json_lines(path: str | Path, max_bytes: int = MAX_BYTES) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line of a JSON Lines file that is not blank."""
    # Not `splitlines`: JSON allows the other line breaks of Unicode inside of strings.
    for number, line in enumerate(read_text(path, max_bytes).split("\n"), start=1):
        if line.strip():
            yield number, line


def kind_of(value: Any) -> str:
    """What a plain value is, in the words of a message."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:_SHOWN]!r} occurs twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:_SHOWN]} is too large for a number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_no_constant,
)


def _check_depth(value: Any, where: object) -> None:
    """Refuse what recursive code further down could not walk; level by level, so without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner for outer in level for inner in _inside(outer) if type(inner) in (dict, list)
        ]
        if not level:
            return
    raise ValueError(f"{where}: {_too_deep()}")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> str:
    return f"nested deeper than {MAX_DEPTH} levels"


# ---- YAML ----------------------------------------------------------------------------------------
def yaml_value(text: str, where: object) -> Any:
    """The value of one YAML document, made of plain types only.

    Raises:
        ValueError: not YAML; nested deeper than `MAX_DEPTH`; aliases that stand for more than `MAX_YAML_NODES` values
            or for themselves; a key that occurs twice; a whole number of more than `MAX_DIGITS` digits. Names `where`.
    """
    import yaml

    check_yaml(text, where)
    loader = _yaml_loader()(text.removeprefix("\ufeff"))
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise _no_yaml(error, where) from error
    except (ValueError, TypeError, OverflowError) as error:  # a date or number that is none
        raise ValueError(f"{where}: not valid YAML ({error})") from error
    finally:
        loader.dispose()


def check_yaml(text: str, where: object) -> None:
    """Demand the limits of `yaml_value` of a text that another library (Hydra) will load."""
    import yaml

    text = text.removeprefix("\ufeff")
    size = _Size(where)
    try:
        for event in yaml.parse(text, Loader=_parser()):
            size.count(event)
    except yaml.YAMLError as error:
        raise _no_yaml(error, where) from error


def _no_yaml(error: Any, where: object) -> ValueError:
    """What is wrong and in which line; the library's own words name every text `<unicode string>`."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem and mark:
        return ValueError(f"{where}, line {mark.line + 1}: not valid YAML ({problem})")
    words = " ".join(str(error).replace(' in "<unicode string>"', "").split())
    return ValueError(f"{where}: not valid YAML ({words})")


def check_yaml_files(paths: Iterable[Path]) -> None:
    """`check_yaml` of every file of a configuration; ValueError names the first that cannot be read, exceeds a limit,
    or has no keys.
    """
    import yaml

    for path in paths:
        text = read_text(path, MAX_YAML_BYTES)
        check_yaml(text, path)
        roots = (e for e in yaml.parse(text, Loader=_parser()) if isinstance(e, yaml.NodeEvent))
        root = next(roots, None)
        if isinstance(root, yaml.ScalarEvent | yaml.SequenceStartEvent):
            found = (
                "a list" if isinstance(root, yaml.SequenceStartEvent) else repr(root.value[:_SHOWN])
            )
            raise ValueError(f"{path}: must have keys (`name: value`), but is {found}")


class _Size:
    """Depth and number of nodes of a YAML document while its events pass; an alias counts as what it names."""

    def __init__(self, where: object) -> None:
        self.where = where
        self.open: list[
            tuple[str | None, int]
        ] = []  # anchor and first node of each open collection
        self.nodes = 0
        self.of_anchor: dict[str, int] = {}

    def count(self, event: Any) -> None:
        import yaml

        if isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor))
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open.append((event.anchor, self.nodes))
            self.nodes += 1
            if len(self.open) > MAX_DEPTH:
                raise ValueError(f"{self.where}: {_too_deep()}")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, first = self.open.pop()
            if anchor is not None:
                self.of_anchor[anchor] = self.nodes - first
        if self.nodes > MAX_YAML_NODES:
            raise ValueError(f"{self.where}: more than {MAX_YAML_NODES} values, aliases included")

    def _alias(self, anchor: str) -> None:
        if any(anchor == name for name, _ in self.open):
            raise ValueError(f"{self.where}: the alias *{anchor[:_SHOWN]} refers to itself")
        self.nodes += self.of_anchor.get(anchor, 1)

    def _scalar(self, event: Any) -> None:
        self.nodes += 1
        if event.anchor is not None:
            self.of_anchor[event.anchor] = 1
        digits = len(event.value)
        if digits > MAX_DIGITS and event.implicit[0] and _YAML_INTEGER.fullmatch(event.value):
            raise ValueError(
                f"{self.where}: a whole number of {digits} digits; at most {MAX_DIGITS} are read"
            )


def _parser() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def _yaml_loader() -> Any:
    """The safe loader, but a key may occur once; the stock one keeps the last of two silently."""
    import yaml

    class UniqueKeys(_parser()):  # type: ignore[misc]
        pass

    def mapping(loader: Any, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
        keys = []
        for key, _ in node.value:  # before `<<` brings in others, which a key may override
            if key.tag == _MERGE:
                continue
            try:
                keys.append(loader.construct_object(key, deep=True))
                problem = "occurs twice" if keys.count(keys[-1]) > 1 else ""
                hash(keys[-1])
            except TypeError:
                problem = "is no text"
            if problem:
                mark, name = key.start_mark, str(keys[-1])[:_SHOWN]
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} {problem}", mark
                )
        found: dict[Any, Any] = {}
        yield found
        loader.flatten_mapping(node)
        found.update(loader.construct_mapping(node, deep=True))

    UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return UniqueKeys
