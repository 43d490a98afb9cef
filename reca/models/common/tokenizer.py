"""The tokenizer of a model folder: files that anybody may have written, so every fault of them is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reca.core.documents import fields, read_json

_FILES = ("tokenizer.json", "tokenizer_config.json")
_SHOWN = 200  # letters of what transformers says


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, as transformers reads it.

    ValueError names the folder or file where it is missing, no JSON object, beyond the limits of `core.documents`, or
    not a tokenizer: transformers raises whatever its code runs into.
    """
    from transformers import AutoTokenizer

    for path in (folder / name for name in _FILES):
        if path.is_file():
            fields(read_json(path), path)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        raise ValueError(
            f"{folder}: no tokenizer can be read from {' and '.join(_FILES)} ({reason}); fetch the model again"
        ) from error
