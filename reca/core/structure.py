"""Plain data into dataclasses through pydantic, strictly: unknown keys, other types and values out of range are errors.

A dataclass is the only description of its section: pydantic reads its annotations to check a value and to write the
JSON schema that Snakemake validates against. Ours is the form of an error: one line with key path, value and remedy.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Interval

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

# ---- types of fields -----------------------------------------------------------------------------
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Interval(ge=0, le=1)]

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a text",  # as JSON has it
}
_RANGES = {  # pydantic's type of error: what is allowed, with pydantic's name of the bound
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
}
_LISTED = 30  # names in one message: all fields of the largest section, but not all sources


def problem(path: str, value: Any, allowed: str) -> ValueError:
    """The one form that every configuration error has: key path, value, what is allowed."""
    return ValueError(f"{path} = {value!r}: {allowed}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint at the closest known name (empty if none is close), and the list of all names."""
    names = sorted(set(known))
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > _LISTED:
        return f"{hint}allowed: {', '.join(names[:_LISTED])}, ... ({len(names)} in all)"
    return f"{hint}allowed: {', '.join(names) or 'nothing'}"


def build(kind: type[T], value: Any, path: str = "") -> T:
    """Make a dataclass, or a value of any annotation, from plain data.

    ValueError with key path, value and what is allowed.
    """
    from pydantic import ValidationError

    _check_plain(value, path)
    adapter: TypeAdapter[list[T]] = _adapter(cast(Any, kind))
    try:  # as JSON: the strict mode of pydantic takes no mapping for a dataclass, and no list for a tuple
        (built,) = adapter.validate_json(f"[{json.dumps(value)}]")
    except ValidationError as error:
        raise _one_line(kind, error, path) from None
    return built


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass and of those that it holds, as `$defs`.

    A field's description is the comment beside or above it in the source, for editors that show it.
    """
    from pydantic.json_schema import GenerateJsonSchema

    class Commented(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False  # a title would only repeat the key

        def dataclass_schema(self, schema: Any) -> dict[str, Any]:
            found = super().dataclass_schema(schema)
            for name, comment in _comments(schema["cls"]).items():
                if name in found.get("properties", {}):
                    found["properties"][name]["description"] = comment
            return found

    schema = _adapter(kind).json_schema(schema_generator=Commented)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **schema["items"],
        "$defs": schema["$defs"],
    }


def _comments(kind: type) -> dict[str, str]:
    """The comment on each field of a dataclass: at the end of its line, else the lines right above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    said = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    found, taken = {}, definition.lineno
    for field in cast(ast.ClassDef, definition).body:
        end = field.end_lineno or field.lineno
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            first = field.lineno  # of the comment lines that stand right above it
            while first - 1 > taken and first - 1 in said:
                first -= 1
            beside = [said[line] for line in range(field.lineno, end + 1) if line in said]
            comment = " ".join(beside or [said[line] for line in range(first, field.lineno)])
            if comment:
                found[field.target.id] = comment
        taken = end
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[list[Any]]:
    """The parser of a list with one `kind`: dataclasses take their configuration from what holds them."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(list[kind], config=config)


def _check_plain(value: Any, path: str) -> None:
    """ValueError if JSON would turn a key into a text, or cannot hold a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise problem(path, key, "a name of an entry must be a text; put it in quotes")
            _check_plain(inner, _join(path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, _join(path, index))
    elif not isinstance(value, str | int | float | None):
        raise problem(path, value, "must be a text, a number, true, false, null, a list or keys")


# ---- messages ------------------------------------------------------------------------------------
def _one_line(kind: type, error: ValidationError, path: str) -> ValueError:
    """The first fault in one line; an unknown key comes first, since it explains a missing one."""
    found = error.errors(include_url=False)
    fault = next((f for f in found if f["type"] == "unexpected_keyword_argument"), found[0])
    code, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if code == "value_error":  # of the dataclass itself, which names the place
        return ValueError(str(context["error"]))
    location = fault["loc"][1:]  # without the index of the list
    if location[-1:] == ("[key]",):
        names = get_args(_follow(kind, location[:-2], path)[1])[0]
        place = _follow(kind, location[:-1], path)[0]
        return ValueError(f"{place}: unknown name; {suggestion(value, get_args(names))}")
    if code == "missing" and isinstance(location[-1], int):  # of a list of a fixed length
        code, location = "length", location[:-1]
    place, hint = _follow(kind, location, path)
    if code == "missing":
        return ValueError(f"{place} is missing: must be {_describe(hint)}")
    allowed = f"must be {_describe(hint)}"
    if code == "unexpected_keyword_argument":
        section = _without_none(_follow(kind, location[:-1], path)[1])
        allowed = f"unknown key; {suggestion(str(location[-1]), _keys(section))}"
    elif code in _RANGES:
        allowed = _RANGES[code].format(**context)
    return problem(place or "configuration", value, allowed)


def _follow(kind: type, location: Sequence[str | int], path: str) -> tuple[str, Any]:
    """Key path and annotation of what pydantic's location names; it ends at a union, whose member is no key."""
    hint: Any = kind
    for key in location:
        inner: Any = _without_none(hint)
        if is_dataclass(inner):
            hint = _hints(cast(Any, inner)).get(str(key), Any)
        elif get_origin(inner) in (dict, Mapping):
            hint = get_args(inner)[1]
        elif get_origin(inner) in (list, tuple, Sequence):
            hint = get_args(inner)[0]
        else:
            break
        path = _join(path, key)
    return path, hint


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_describe, arguments)))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is Annotated:
        return _describe(arguments[0])
    if origin in (list, Sequence) or arguments[1:] == (...,):
        return f"a list, each {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_describe(arguments[0])}"
    if origin in (dict, Mapping):
        return f"a mapping from names, each {_describe(arguments[1])}"
    if hint is NoneType:
        return "null"
    if is_dataclass(hint):
        return f"a section with {', '.join(_keys(hint))}"
    return _WORDS.get(hint, "any value")


def _keys(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _join(path: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _without_none(hint: Any) -> Any:
    """The one member of `X | None`; any other annotation as it is."""
    members = [member for member in get_args(hint) if member is not NoneType]
    is_optional = get_origin(hint) in (Union, UnionType) and len(members) == 1
    return members[0] if is_optional else hint


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
