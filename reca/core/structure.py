"""Plain data into dataclasses, strictly, and the JSON schema of those dataclasses.

The types in `reca.config.schema` are the only description of a configuration: both the one-line errors here
and the schema that Snakemake validates against come from them.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_JSON = {str: "string", int: "integer", float: "number", bool: "boolean"}
_LISTED = 30  # names in one message: all fields of the largest section, but not all sources
_UNSET = "???"  # how Hydra writes a value that must be given


def problem(path: str, value: Any, allowed: str) -> ValueError:
    """The one form that every configuration error has: key path, value, what is allowed."""
    return ValueError(f"{path} = {value!r}: {allowed}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint at the closest known name (empty where none is close), and the list of all names."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > _LISTED:
        return f"{hint}allowed: {', '.join(names[:_LISTED])}, ... ({len(names)} in all)"
    return f"{hint}allowed: {', '.join(names) or 'nothing'}"


def build(kind: type[T], value: Any, path: str = "") -> T:
    """Make a dataclass of `kind` from plain data; ValueError with key path, value and what is allowed."""
    if not isinstance(value, Mapping):
        raise problem(path or "configuration", value, f"must be a section with {_keys(kind)}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise problem(_join(path, key), value[key], f"unknown key; {suggestion(key, known)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name, field in known.items():
        if _is_required(field) and value.get(name, _UNSET) == _UNSET:
            raise ValueError(f"{_join(path, name)} is missing: must be {_describe(hints[name])}")
    return kind(
        **{key: _convert(hints[key], item, _join(path, key)) for key, item in value.items()}
    )


def _convert(hint: Any, value: Any, path: str, or_null: str = "") -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        inner = _without_none(arguments)
        return None if value is None else _convert(inner, value, path, " or null")
    if is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin in (list, tuple) and isinstance(value, list | tuple):  # tuple[T, ...] alone
        return origin(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, _join(path, _text(k, path))) for k, v in value.items()}
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise problem(path, value, "must be a finite number")
        return float(value)
    if type(value) is hint:
        return value
    raise problem(path, value, f"must be {_describe(hint)}{or_null}")


def _text(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise problem(path, key, "a name of an entry must be a text; put it in quotes")
    return key


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"{_describe(_without_none(arguments))} or null"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (list, tuple):
        return f"a list, each {_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping from names, each {_describe(arguments[1])}"
    return f"a section with {_keys(hint)}" if is_dataclass(hint) else _WORDS.get(hint, "any value")


def _keys(kind: Any) -> str:
    return ", ".join(f.name for f in fields(kind))


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _without_none(arguments: tuple[Any, ...]) -> Any:
    (hint,) = (argument for argument in arguments if argument is not type(None))
    return hint


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


# ---- JSON schema ---------------------------------------------------------------------------------
def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass; nested dataclasses become `$defs`."""
    definitions: dict[str, Any] = {}
    root = _object_schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.__name__,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _object_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = _hints(kind)
    return {
        "description": (kind.__doc__ or "").split("\n")[0],
        "type": "object",
        "properties": {name: _schema(hint, definitions) for name, hint in hints.items()},
        "required": [f.name for f in fields(kind) if _is_required(f)],
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(_without_none(arguments), definitions), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if is_dataclass(hint):
        kind = cast(type, hint)
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}  # reserves the name before nested sections ask for it
            definitions[name] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    return {"type": _JSON[hint]}
