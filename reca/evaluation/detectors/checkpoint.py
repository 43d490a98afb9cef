"""One door for the networks of transformers that score: whole, of the right shapes, and with the right classes.

`from_pretrained` fills missing tensors with random weights and only logs it, so a detector without its head
would score pictures by chance. Whatever it reports is an error here, but the few tensors that a network lists
as harmless, each with its reason beside the loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reca.core.finite import check_weights

_FILLED = 0.9  # of an embedding's rows, at least, have a word
_SHOWN = 4  # names per kind in a message
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")


def network(kind: Any, folder: Path, harmless: Iterable[str] = (), **options: Any) -> Any:
    """A network of class `kind` from a folder's safetensors, in evaluation mode.

    `harmless`: patterns (whole names) of tensors that may be missing or unexpected. ValueError names the file and
    the tensors where anything else is missing, unexpected, of another shape or not finite; pickled weights are not
    opened.
    """
    file = _weights(folder)
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except _FAULTS as error:
        raise ValueError(
            f"{file}: no {kind.__name__} can be read here ({_line(error)}); fetch its source again"
        ) from error
    faults = {
        "missing": _others(report["missing_keys"], harmless),
        "unexpected": _others(report["unexpected_keys"], harmless),
        "of another shape": sorted(
            f"{name} is {list(found)}, not {list(needed)}"
            for name, found, needed in report["mismatched_keys"]
        ),
        "unreadable": sorted(str(error) for error in report.get("error_msgs", ())),
    }
    texts = [f"{len(n)} {kind} ({_listed(n)})" for kind, n in faults.items() if n]
    if texts:
        raise ValueError(
            f"{file}: is no whole {kind.__name__}: {'; '.join(texts)}; fetch its source again"
        )
    check_weights(file, model.named_parameters())
    return model.eval()


def tokenizer(kind: Any, folder: Path, rows: int) -> Any:
    """A tokenizer for a network whose embedding has that many rows.

    ValueError unless its vocabulary fills nine tenths of them (networks pad): where the files are missing, transformers
    makes a tokenizer of no words, to which all texts are the same.
    """
    found = companion(kind, folder)
    if not _FILLED * rows <= len(found) <= rows:
        raise ValueError(
            f"{folder}: a {kind.__name__} of {len(found)} words for a network of {rows}; fetch its source again"
        )
    return found


def companion(kind: Any, folder: Path) -> Any:
    """A tokenizer or image processor from the folder of a network; ValueError where none can be read."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except _FAULTS as error:
        raise ValueError(
            f"{folder}: no {kind.__name__} can be read here ({_line(error)}); fetch its source again"
        ) from error


def demand_labels(
    where: Path,
    found: Mapping[int, str] | Sequence[str],
    needed: Sequence[str],
    aliases: Mapping[str, str],
) -> None:
    """ValueError unless a network's classes are, in order, those that a benchmark needs.

    `aliases` maps a network's name of a class to the benchmark's. The message has the first classes that differ.
    """
    listed = list(found.values() if isinstance(found, Mapping) else found)
    if isinstance(found, Mapping) and sorted(found) != list(range(len(found))):
        raise ValueError(f"{where}: its classes are not numbered from 0 to {len(found) - 1}")
    if len(listed) != len(needed):
        raise ValueError(
            f"{where}: a network of {len(listed)} classes, the benchmark needs {len(needed)}; fetch the source "
            "that its configuration names"
        )
    known = [aliases.get(plain := str(name).strip().lower(), plain) for name in listed]
    other = [
        f"{index} is {name!r}, not {wanted!r}"
        for index, (name, wanted) in enumerate(zip(known, needed, strict=True))
        if name != aliases.get(wanted, wanted)
    ]
    if other:
        raise ValueError(
            f"{where}: {len(other)} of its {len(listed)} classes are not the benchmark's ({_listed(other)}); fetch "
            "the source that its configuration names"
        )


# What transformers, safetensors and tokenizers raise for files that are absent, damaged or of another network.
_FAULTS = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError, SafetensorError,
)  # fmt: skip


def _weights(folder: Path) -> Path:
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"{folder}: holds no {' and no '.join(reversed(_WEIGHTS))}; fetch its source again"
        )
    return found[0]


def _others(names: Iterable[str], harmless: Iterable[str]) -> list[str]:
    patterns = [re.compile(pattern) for pattern in harmless]
    return sorted(n for n in names if not any(pattern.fullmatch(n) for pattern in patterns))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
