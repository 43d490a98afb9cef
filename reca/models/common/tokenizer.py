"""The text front end that families extend: loading a tokenizer folder, encoding texts, decoding generated ids.

The files of a model folder are untrusted, so every defect of them is reported in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from reca.core.documents import fields, read_json
from reca.models.common.plain_tokenizer import FILES, read_plain

IGNORE = -100
"""In labels and targets, marks a position without a loss."""

UNKNOWN = "<unk>"  # of word-level vocabularies; byte-level ones need none
_SHOWN = 200  # letters of an error of transformers


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, as transformers reads it, but without its import where `tokenizers` can read it.

    ValueError names a folder or file that is missing, not a JSON object, beyond the limits of `reca.core.documents`, or
    not a tokenizer (for which transformers may raise any exception).
    """
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    described = {path.name: fields(read_json(path), path) for path in paths}
    try:
        return read_plain(described, folder) or _read_any(folder)
    except Exception as error:
        refuse_code(folder, error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        raise ValueError(
            f"{folder}: no tokenizer can be read from {' and '.join(FILES)} ({reason}); fetch the model again"
        ) from error


def _read_any(folder: Path) -> Any:
    from transformers import AutoTokenizer

    # not given, the library asks on the terminal, and runs the folder's code on the answer "y"
    return AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def refuse_code(folder: Path, error: Exception) -> None:
    """ValueError in place of transformers' advice, where `error` asks to run Python code that lies in a folder."""
    if "trust_remote_code" in str(error):
        raise ValueError(
            f"{folder}: needs Python code of its own (auto_map), and such code is never run; use a folder with "
            f"{FILES[0]}, whose class transformers has itself"
        ) from error


def without_image_tag(question: str) -> str:
    """Drop LLaVA's `<image>` tag and its newline: the layout determines the position of the image."""
    for tag in ("<image>\n", "\n<image>", "<image>"):
        question = question.replace(tag, "")
    return question


class TextFrontEnd:
    """Encodes and decodes text; families add their templates.

    `end` ends a text. `check` raises ValueError if the tokenizer is not the one that the network was trained with; it
    may use all of this class: `self.tokenizer`, `self.config` (the network's), `self.ids`, `self.decoded`.
    """

    end: int

    def __init__(self, tokenizer: Any, config: Any, where: str = "tokenizer") -> None:
        self.tokenizer, self.config = tokenizer, config
        self._unknown = tokenizer.get_vocab().get(UNKNOWN)
        self.check(where)

    @classmethod
    def read(cls, folder: str | Path, config: Any) -> Self:
        """Create the front end from a tokenizer folder."""
        return cls(read_tokenizer(Path(folder)), config, str(folder))

    def check(self, where: str) -> None:
        """Raise ValueError unless the tokenizer's ids match the network."""
        raise NotImplementedError

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens; ValueError names words missing from a closed vocabulary."""
        return [ids for ids, _ in self.ids_and_starts(texts)]

    def ids_and_starts(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids of each text, and the character offset at which each token starts."""
        if not texts:
            return []
        coded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = []
        for text, ids, spans in zip(
            texts, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            if self._unknown is not None and self._unknown in ids:
                words = [
                    repr(text[slice(*span)])
                    for token, span in zip(ids, spans, strict=True)
                    if token == self._unknown
                ]
                raise ValueError(f"{text!r}: not in this model's vocabulary: {', '.join(words)}")
            rows.append((list(ids), [start for start, _ in spans]))
        return rows

    def decoded(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first `end`."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
