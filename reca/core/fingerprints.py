"""Hashes of the code that a stage runs, so that an edit of one module reruns exactly the stages that import it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from reca.core.artifacts import sha256_bytes, sha256_file, sha256_json

OWN_PACKAGES = ("reca", "reca_kernels")


@lru_cache(maxsize=512)
def _source(module: str) -> Path | None:
    """The file of a module of ours, found by its path: `find_spec` on a dotted name would import the parents."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location, *rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Module names that the code imports anywhere, type-checking blocks left out; `from a import b`
    may name a module.
    """
    for node in ast.iter_child_nodes(tree):
        if _is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imports(node)


@lru_cache(maxsize=512)
def _direct(module: str) -> tuple[str, tuple[str, ...]]:
    source = _source(module)
    if source is None:
        return "", ()
    text = source.read_bytes()
    content = [sha256_bytes(text), *_data_hashes(source)]
    own = (name for name in _imports(ast.parse(text)) if name.split(".")[0] in OWN_PACKAGES)
    return sha256_json(content), tuple(sorted({name for name in own if _source(name)}))


def _data_hashes(source: Path) -> list[str]:
    """Hashes of a package's own data files (templates, manifests), which belong to its code."""
    if source.name != "__init__.py":
        return []
    data = [p for p in source.parent.iterdir() if p.suffix in (".html", ".css", ".json")]
    return [f"{path.name} {sha256_file(path)}" for path in sorted(data)]


def code_modules(*modules: str) -> list[str]:
    """The named modules and all own modules that they import, directly or not."""
    missing = [module for module in modules if _source(module) is None]
    if missing:
        raise ValueError(f"no source found for module {missing[0]!r}")
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(_direct(module)[1])
    return sorted(seen)


def code_fingerprint(*modules: str) -> str:
    """Hash of the sources that the modules run: an edit of one module changes exactly the stages that import it."""
    return sha256_json({module: _direct(module)[0] for module in code_modules(*modules)})
