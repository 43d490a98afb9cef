"""Strict loading of the transformers networks that observe samples: complete, with the right shapes and classes.

`from_pretrained` initialises missing tensors at random and only logs it, so a detector without its head would give
random scores. Here everything it reports is an error, except for a few tensors that each loader lists as harmless, with
the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reca.core.finite import check_weights, number_kind
from reca.models.common.tokenizer import refuse_code
from reca.models.streaming import shard_manifest, shards_of

_FILLED = 0.9  # minimum fraction of embedding rows with a token
_SHOWN = 4  # names per kind of fault in a message
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")


def network(kind: Any, folder: Path, harmless: Iterable[str] = (), **options: Any) -> Any:
    """A network of class `kind` from the safetensors in a folder, in evaluation mode.

    `harmless`: patterns (matching full names) of tensors that may be missing or unexpected. ValueError names the file
    and the tensors if any others are missing, unexpected, of a different shape or not finite. Pickled weights are never
    loaded.
    """
    file = _weights(folder)
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except _FAULTS as error:
        refuse_code(folder, error)
        raise ValueError(
            f"{file}: cannot be read as {kind.__name__} ({_line(error)}); fetch its source again"
        ) from error
    faults = {
        "missing": _others(report["missing_keys"], harmless),
        "unexpected": _others(report["unexpected_keys"], harmless),
        "of a different shape": sorted(
            f"{name} is {list(found)}, not {list(needed)}"
            for name, found, needed in report["mismatched_keys"]
        ),
        "unreadable": sorted(str(error) for error in report.get("error_msgs", ())),
    }
    texts = [f"{len(n)} {kind} ({_listed(n)})" for kind, n in faults.items() if n]
    if texts:
        raise ValueError(
            f"{file}: not a complete {kind.__name__}: {'; '.join(texts)}; fetch its source again"
        )
    _demand_floats(file, {name for name, _ in model.named_parameters()})
    check_weights(file, model.named_parameters())
    return model.eval()


def _demand_floats(file: Path, learned: Set[str]) -> None:
    """ValueError names a weight that is not a float: transformers would cast it silently."""
    for shard in shards_of(file):
        for name, (_, dtype) in shard_manifest(shard).items():
            kind = number_kind(dtype)
            if kind not in ("float", "int", "bool") or (name in learned and kind != "float"):
                raise ValueError(
                    f"{file}: weight {name} is {dtype}, not a float of 16 bits or more; fetch its source again"
                )


def tokenizer(kind: Any, folder: Path, rows: int) -> Any:
    """A tokenizer for a network with `rows` embedding rows.

    ValueError unless its vocabulary fills at least 90 % of them (networks pad): if files are missing, transformers
    silently creates a tokenizer with an empty vocabulary, which encodes all texts alike.
    """
    found = companion(kind, folder)
    if not _FILLED * rows <= len(found) <= rows:
        raise ValueError(
            f"{folder}: {kind.__name__} has {len(found)} tokens, but the network has {rows} embeddings; fetch its "
            "source again"
        )
    return found


def companion(kind: Any, folder: Path) -> Any:
    """A tokenizer or image processor from the folder of a network; ValueError if it cannot be read."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _FAULTS as error:
        refuse_code(folder, error)
        raise ValueError(
            f"{folder}: cannot be read as {kind.__name__} ({_line(error)}); fetch its source again"
        ) from error


def demand_labels(
    where: Path,
    found: Mapping[int, str] | Sequence[str],
    needed: Sequence[str],
    aliases: Mapping[str, str],
) -> None:
    """ValueError, naming the first differences, unless a network's classes are those of a benchmark, in order.

    `aliases` maps the network's name of a class to the benchmark's.
    """
    listed = list(found.values() if isinstance(found, Mapping) else found)
    if isinstance(found, Mapping) and sorted(found) != list(range(len(found))):
        raise ValueError(
            f"{where}: class ids are not 0 to {len(found) - 1}; fetch the source that its configuration names"
        )
    if len(listed) != len(needed):
        raise ValueError(
            f"{where}: the network has {len(listed)} classes, the benchmark needs {len(needed)}; fetch the source "
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
            f"{where}: {len(other)} of {len(listed)} classes differ from the benchmark's ({_listed(other)}); fetch "
            "the source that its configuration names"
        )


# What transformers, safetensors and tokenizers raise for files that are missing, damaged or of another network.
_FAULTS = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError, SafetensorError,
)  # fmt: skip


def _weights(folder: Path) -> Path:
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"{folder}: contains neither {' nor '.join(reversed(_WEIGHTS))}; fetch its source again"
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
