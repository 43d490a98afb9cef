"""Tokenizer folders that need nothing but `tokenizers`, the library under transformers' fast tokenizers.

Our own model folders are such: transformers wrote them, and takes over a second to be imported for reading them again.
Answers are those of transformers' `AutoTokenizer` (tests/models/test_tokenizer.py). Any other folder is left to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import write_atomic

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json")
_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_KEYS = {
    *_SPECIAL,
    "backend",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "model_max_length",
    "tokenizer_class",
}
_PATCHED = 100_000  # entries above which transformers may correct a published vocabulary


class PlainTokenizer:
    """The part of a transformers tokenizer that families use, around a `tokenizers.Tokenizer`."""

    def __init__(self, core: Tokenizer, config: Mapping[str, Any]) -> None:
        self._core, self._config = core, dict(config)

    def __len__(self) -> int:
        return self._core.get_vocab_size()

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text; None where none is named."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text; None where none is named."""
        return self._special_id("eos_token")

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True, **ignored: Any
    ) -> dict[str, list[Any]]:
        """`input_ids` and `offset_mapping` of a text, or of each of several."""
        if isinstance(texts, str):
            rows = self([texts], add_special_tokens=add_special_tokens)
            return {name: values[0] for name, values in rows.items()}
        coded = self._core.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {
            "input_ids": [one.ids for one in coded],
            "offset_mapping": [one.offsets for one in coded],
        }

    def get_vocab(self) -> dict[str, int]:
        """Id by token, added ones included."""
        return self._core.get_vocab()

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        return self._core.token_to_id(token)

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """The token of an id, or those of several; None where there is none."""
        if isinstance(ids, int):
            return self._core.id_to_token(ids)
        return [self._core.id_to_token(one) for one in ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self._core.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def add_tokens(self, tokens: Sequence[str | AddedToken]) -> int:
        """Append tokens that are new; gives their number."""
        return self._core.add_tokens(list(tokens))

    def add_special_tokens(self, named: Mapping[str, str]) -> int:
        """Name special tokens by their role, such as `pad_token`, and append those that are new; gives their number."""
        self._config |= named
        return self._core.add_special_tokens(list(named.values()))

    def save_pretrained(self, folder: str) -> None:
        """Write both files of a tokenizer folder."""
        config = json.dumps(self._config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, text in zip(FILES, (self._core.to_str(pretty=True), config), strict=True):
            write_atomic(Path(folder) / name, text)

    def _special_id(self, role: str) -> int | None:
        token = self._config.get(role)
        return None if token is None else self._core.token_to_id(token)


def read_plain(described: Mapping[str, Mapping[str, Any]], folder: Path) -> PlainTokenizer | None:
    """The tokenizer of a folder with these contents by file name; None where `tokenizers` alone cannot read it.

    An error of any kind where tokenizer.json describes no tokenizer.
    """
    if set(FILES) - set(described):
        return None
    core, config = (described[name] for name in FILES)
    if config.get("tokenizer_class") not in _CLASSES or set(config) - _KEYS:
        return None
    special = [config.get(name) for name in _SPECIAL] + list(config.get("extra_special_tokens", []))
    added = [token["content"] for token in core["added_tokens"]]
    if not set(special) <= {None, *added} or core.get("truncation") or core.get("padding"):
        return None
    from tokenizers import Tokenizer

    tokenizer = PlainTokenizer(Tokenizer.from_file(str(folder / FILES[0])), config)
    return tokenizer if len(tokenizer) <= _PATCHED else None
