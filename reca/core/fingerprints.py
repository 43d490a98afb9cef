"""Hashes of the code that a stage runs, so that an edit reruns exactly the stages whose results it can change.

What is hashed is the syntax tree without docstrings: comments, layout and docstrings rerun nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from reca.core.artifacts import sha256_file, sha256_json
from reca.core.code_cache import CodeCache

OWN_PACKAGES = ("reca", "reca_kernels")
# Modules of which a stage runs some functions only: an import of one name follows that name, not the whole module. So a
# kernel belongs to the stages of the families that call it, and a benchmark's scoring does not rerun its images.
FACADES = re.compile(r"reca_kernels(\.ops)?|reca\.evaluation\.tasks\.\w+")
# Compares a kernel with its reference before the first use; results come from one of the two, which are hashed.
UNCOUNTED = ("reca_kernels.selfcheck",)
DATA_FILES = (".html", ".css", ".json")

Vertex = tuple[str, str | None]
"""A module, and the name in it that is used where the module is a facade (None: all of it)."""


@dataclass(frozen=True)
class Part:
    """A piece of code: the hash of its syntax tree, and the names that it imports as (module, name or None)."""

    digest: str
    imports: tuple[Vertex, ...]
    uses: frozenset[str] = frozenset()


class SourceTree:
    """The sources of our packages, each file read and parsed once.

    Args:
        roots: package -> its folder; default: where Python finds the packages.
    """

    def __init__(self, roots: Mapping[str, Path] | None = None) -> None:
        self._roots = dict(roots or {})
        self._sources: dict[str, Path | None] = {}
        self._wholes: dict[str, Part] = {}
        self._facades: dict[str, dict[str, Part]] = {}

    def source(self, module: str) -> Path | None:
        """The file of a module of ours, found by its path: `find_spec` on a dotted name would import the parents."""
        if module not in self._sources:
            package, *rest = module.split(".")
            path = Path(self._root(package), *rest)
            # the first: a package that is one file
            candidates = (path, path.with_suffix(".py"), path / "__init__.py")
            self._sources[module] = next((one for one in candidates if one.is_file()), None)
        return self._sources[module]

    def reached(
        self, modules: Collection[str | Vertex], hidden: Mapping[str, Collection[str]] | None = None
    ) -> set[Vertex]:
        """All code of ours that the modules, or the names in facades, import, directly or not, lazily or not.

        Ours are the packages of this repository and those that the modules belong to: a family of another package.
        `hidden`: module -> modules that it imports and that do not count. ValueError for a module without a source.
        """
        waiting = [(item, None) if isinstance(item, str) else item for item in modules]
        ours = {*OWN_PACKAGES, *(module.split(".")[0] for module, _ in waiting)}
        missing = [module for module, _ in waiting if self.source(module) is None]
        if missing:
            raise ValueError(f"no source found for module {missing[0]!r}")
        seen: set[Vertex] = set()
        while waiting:
            vertex = waiting.pop()
            if vertex not in seen:
                seen.add(vertex)
                left_out = (hidden or {}).get(vertex[0], ())
                waiting.extend(
                    found for found in self._edges(vertex, ours) if found[0] not in left_out
                )
        return seen

    def fingerprint(
        self, modules: Collection[str | Vertex], hidden: Mapping[str, Collection[str]] | None = None
    ) -> str:
        """Hash (hex sha256) of the syntax trees of all that `reached` gives."""
        found = sorted(
            self.reached(modules, hidden), key=lambda vertex: (vertex[0], vertex[1] or "")
        )
        digests = [[module, name, self._part((module, name)).digest] for module, name in found]
        _cache().save()
        return sha256_json(digests)

    def names(self, module: str) -> set[str]:
        """The names that a facade binds at its top level."""
        return set(self._facade(module))

    def _root(self, package: str) -> Path:
        if package not in self._roots:
            spec = importlib.util.find_spec(package)
            locations = list((spec and spec.submodule_search_locations) or ())
            alone = spec.origin if spec and spec.has_location else None
            self._roots[package] = Path(locations[0] if locations else alone or package)
        return self._roots[package]

    def _part(self, vertex: Vertex) -> Part:
        module, name = vertex
        return self._whole(module) if name is None else self._facade(module)[name]

    def _edges(self, vertex: Vertex, ours: Collection[str]) -> Iterator[Vertex]:
        module, name = vertex
        part = self._part(vertex)
        for target, wanted in part.imports:
            absolute = self._absolute(target, module)
            if absolute.split(".")[0] in ours:
                yield from self._targets(absolute, wanted)
        if name is not None:
            yield from ((module, used) for used in part.uses & self._facade(module).keys())

    def _absolute(self, target: str, module: str) -> str:
        """The name of an imported module; a relative one (leading dots) as seen from `module`."""
        if not target.startswith("."):
            return target
        path = self.source(module)
        is_package = path is not None and path.name == "__init__.py"
        package = module if is_package else module.rpartition(".")[0]
        return importlib.util.resolve_name(target, package)

    def _targets(self, module: str, name: str | None) -> Iterator[Vertex]:
        """What an import of `name` from `module` runs: the module, and `name` where it is a module itself."""
        if module in UNCOUNTED:
            return
        if name is not None and self.source(f"{module}.{name}"):
            if f"{module}.{name}" not in UNCOUNTED:
                yield f"{module}.{name}", None
            name = None
            if FACADES.fullmatch(module):
                return
        if name and FACADES.fullmatch(module) and name in self._facade(module):
            yield module, name
        elif self.source(module):
            yield module, None

    def _whole(self, module: str) -> Part:
        if module not in self._wholes:
            path = self.source(module)
            assert path is not None, module
            digest, imports = _cache().found("module", path.read_bytes(), _parsed)
            data = _data_hashes(path)
            self._wholes[module] = Part(
                sha256_json([digest, *data]) if data else digest, _vertices(imports)
            )
        return self._wholes[module]

    def _facade(self, module: str) -> dict[str, Part]:
        if module not in self._facades:
            path = self.source(module)
            assert path is not None, module
            found = _cache().found("names", path.read_bytes(), _named)
            self._facades[module] = {
                name: Part(digest, _vertices(imports), frozenset(uses))
                for name, digest, imports, uses in found
            }
        return self._facades[module]


def _definitions(tree: ast.Module) -> Iterator[tuple[str, Part]]:
    """The names that a module binds at its top level, with the code of each."""
    for node in tree.body:
        uses = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, Part("", ((node.module, alias.name),))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, Part(_digest(node), tuple(_imports(node)), uses)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            part = Part(_digest(node), tuple(_imports(node)), uses)
            for name in ast.walk(node):  # `A, B = 1, 2` binds both
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield name.id, part


@lru_cache(maxsize=1)
def _cache() -> CodeCache:
    return CodeCache(Path(__file__))


def _parsed(text: bytes) -> tuple[str, list[Vertex]]:
    """A module's digest, and what it imports."""
    tree = ast.parse(text)
    return _digest(tree), sorted(set(_imports(tree)), key=str)


def _named(text: bytes) -> list[tuple[str, str, list[Vertex], list[str]]]:
    """Name, digest, imports and used names of what a facade binds."""
    return [
        (name, part.digest, list(part.imports), sorted(part.uses))
        for name, part in _definitions(ast.parse(text))
    ]


def _vertices(pairs: Iterable[Sequence[Any]]) -> tuple[Vertex, ...]:
    return tuple((module, name) for module, name in pairs)


def _digest(node: ast.AST) -> str:
    words: list[str] = []
    _write(node, words)
    return sha256("\0".join(words).encode()).hexdigest()


def _write(node: ast.AST, words: list[str]) -> None:
    """The tree as words: node types, fields, constants; positions, contexts and docstrings left out."""
    words.append(type(node).__name__)
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            words.append("[")
            for item in value[_docstring(node, name, value) :]:
                if isinstance(item, ast.AST):
                    _write(item, words)
                else:
                    words.append(repr(item))
            words.append("]")
        elif not isinstance(value, ast.AST):
            words.append(repr(value))
        elif name != "ctx":
            _write(value, words)


def _docstring(node: ast.AST, name: str, body: list[ast.AST]) -> int:
    """1 where the body opens with a docstring, else 0."""
    if name != "body" or not body:
        return 0
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return 0
    first = body[0]
    constant = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return int(constant and isinstance(first.value.value, str))  # type: ignore[attr-defined]


def _imports(node: ast.AST) -> Iterator[Vertex]:
    """What the code imports anywhere, type-checking blocks left out."""
    for child in (
        [node] if isinstance(node, ast.Import | ast.ImportFrom) else ast.iter_child_nodes(node)
    ):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, None) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from ((module, alias.name) for alias in child.names)
        elif not isinstance(child, ast.expr_context | ast.operator):
            yield from _imports(child)


def _data_hashes(source: Path) -> list[str]:
    """Hashes of a package's own data files (templates, manifests), which belong to its code."""
    if source.name != "__init__.py":
        return []
    data = [path for path in source.parent.iterdir() if path.suffix in DATA_FILES]
    return [f"{path.name} {sha256_file(path)}" for path in sorted(data)]


@lru_cache(maxsize=1)
def installed() -> SourceTree:
    """The sources that Python would run in this process."""
    return SourceTree()
