"""A model folder's tokenizer may come from anybody: each fault of its files is one line that names them."""

import shutil
from pathlib import Path

import pytest

from reca.models.common.tokenizer import read_tokenizer

SHIPPED = Path(__file__).resolve().parents[2] / "weights/showo_tiny"
ODD = ["null", "[null]", "3", "", '{"a":', "{}", '{"a": NaN}', "[" * 9999, "\x00", '{"model": []}']


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_odd_tokenizer_files_are_named(tmp_path, name):
    folder = shutil.copytree(SHIPPED, tmp_path / "model")
    whole = len(read_tokenizer(folder))
    for text in ODD:
        (folder / name).write_text(text)
        if name == "tokenizer_config.json" and text in ("{}", '{"model": []}'):  # all has defaults
            assert len(read_tokenizer(folder)) == whole
            continue
        with pytest.raises(ValueError, match=f"{name}"):
            read_tokenizer(folder)
