"""A model folder's tokenizer may come from anybody: each fault of its files is one line that names them."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from reca.evaluation.detectors.checkpoint import companion
from reca.models.common.options import check_generation
from reca.models.common.plain_tokenizer import FILES, PlainTokenizer
from reca.models.common.tokenizer import TextFrontEnd, read_tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
SHIPPED = WEIGHTS / "showo_tiny"
FOLDERS = sorted(path.parent.name for path in WEIGHTS.glob("*/tokenizer.json"))
TEXTS = [
    "A red circle left of two blue squares, and nothing else?",
    "<|im_start|>user\ndescribe the image\n\n<|im_end|>[PAD]<|endoftext|> <|soi|>tail <unk>",
    "Zebra: naïve café\t用户",
    "",
]
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


def test_code_in_a_tokenizer_folder_is_never_run(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tok.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    described = {"auto_map": {"AutoTokenizer": ["tok.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # as from `yes | reca ...`
    from transformers import AutoTokenizer

    for read in (read_tokenizer, partial(companion, AutoTokenizer)):
        with pytest.raises(
            ValueError, match=r"model: .* never run; use .*tokenizer\.json"
        ) as error:
            read(folder)
        assert "trust_remote_code" not in str(error.value) and not marker.exists()


def test_a_front_end_may_encode_texts_when_it_checks_its_tokenizer():
    seen = []

    class Text(TextFrontEnd):
        def check(self, where):
            seen.append((where, self.ids(["a red circle"]), self.config))

    read = Text.read(SHIPPED, "sizes")
    assert seen == [(str(SHIPPED), read.ids(["a red circle"]), "sizes")]


def test_guidance_zero_is_none():
    check_generation(1, ["generator"], None, 0.0)
    check_generation(1, ["generator"], None)
    with pytest.raises(ValueError, match=r"guidance 1 needs an unconditional"):
        check_generation(1, ["generator"], None, 1.0)


def library(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    found, wanted = ours(TEXTS, **options), theirs(TEXTS, **options)
    for name in ("input_ids", "offset_mapping"):
        assert [list(row) for row in found[name]] == [list(row) for row in wanted[name]]
    assert ours(TEXTS[1])["input_ids"] == theirs(TEXTS[1])["input_ids"]
    everything = [*range(len(ours)), *reversed(range(len(ours)))]
    assert ours.convert_ids_to_tokens(everything) == theirs.convert_ids_to_tokens(everything)
    for skip in (True, False):
        assert ours.decode(everything, skip_special_tokens=skip) == theirs.decode(
            everything, skip_special_tokens=skip
        )
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for token in theirs.get_vocab():
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)


def saved(file):
    """A saved file without the two arguments of `from_pretrained` that transformers records in it."""
    return {
        key: value
        for key, value in json.loads(file.read_text()).items()
        if key not in ("is_local", "local_files_only")
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_our_own_folders_are_read_as_transformers_does(tmp_path, name):
    ours, theirs = read_tokenizer(WEIGHTS / name), library(WEIGHTS / name)
    assert isinstance(ours, PlainTokenizer)
    assert_alike(ours, theirs)
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens({"pad_token": "[FILL]"})
        tokenizer.add_tokens(["lamp", "a"])
    ours.save_pretrained(str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for file in FILES:
        assert saved(tmp_path / "ours" / file) == saved(tmp_path / "theirs" / file)
    assert_alike(read_tokenizer(tmp_path / "ours"), library(tmp_path / "theirs"))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"clean_up_tokenization_spaces": True},
        {"eos_token": "<|new|>"},
        {"extra_special_tokens": ["<|new|>"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_folders_are_left_to_transformers(tmp_path, change):
    folder = shutil.copytree(SHIPPED, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not isinstance(read_tokenizer(folder), PlainTokenizer)
