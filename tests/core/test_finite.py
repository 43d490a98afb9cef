"""NaN and infinity end drawing, answering, editing, caching, scoring, training and loading with one line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reca.align import checkpoint, trainer
from reca.cli import main
from reca.config.schema import BenchmarkConfig, Fit
from reca.core.artifacts import write_json, write_lines
from reca.core.finite import NonFinite, check_weights
from reca.core.images import decode
from reca.evaluation.detectors import colours
from reca.evaluation.detectors.instances import instances
from reca.evaluation.detectors.vqa import BlipVqa, ChatModel
from reca.evaluation.observers.view import View, seen
from reca.evaluation.tasks import reconstruction
from reca.features.build import build
from reca.inference.generate import Origin, answers, edit, generate
from reca.inference.imageset import ImageSetWriter
from reca.inference.items import Prompt, Question
from reca.models.checkpoint_io import save_safetensors
from reca.models.contract import Sampling
from reca.models.registry import load_model
from reca.toyworld import examiner
from reca.toyworld.pretrain.fit import CHECKPOINTS, fit
from tests.align.runs import run
from tests.evaluation import tiny_networks as tiny
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny
from tests.toy_model import CODE, DrawingToy, Pictures, png

FAMILIES = {
    "showo": showo_tiny,
    "harmon": harmon_tiny,
    "janus": janus_tiny,
    "bagel": bagel_tiny,
    "openuni": openuni_tiny,
}
ORIGIN = Origin("m" * 64, "test", 0, CODE)
SAMPLING = Sampling(guidance=2.0, steps=3)
PROMPTS = [
    Prompt(f"p{i}", text, "task") for i, text in enumerate(("a red circle", "a blue circle"))
]
BAD = (math.nan, math.inf, -math.inf)
LINE = "the weights are damaged, or too large for this precision"


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param].model(folder / "words").save(folder / "model")
    (folder / "photo.png").write_bytes(png(5, size=24))
    return folder


def poisoned(folder, name, value, place=0):
    """The model of the folder with one value of one weight replaced."""
    model = load_model(folder / "model")
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[place] = value
    return model


def family(folder):
    return json.loads((folder / "model/reca_model.json").read_text())["family"]


# ---- drawing and answering -----------------------------------------------------------------------
READS = {  # in front of the words' head
    "showo": "network.showo.model.final_layernorm.weight",
    "harmon": "network.llm.model.norm.weight",
    "janus": "network.language_model.model.norm.weight",
    "bagel": "network.language_model.model.norm.weight",
    "openuni": "network.lmm.model.language_model.norm.weight",
}
DRAWS = READS | {"bagel": "network.language_model.model.norm_moe_gen.weight"}
DECODES = {
    "showo": "frozen.magvit",
    "harmon": "frozen.vae",
    "janus": "frozen.vqmodel",
    "bagel": "frozen.vae",
    "openuni": "frozen.vae",
}


def drawn(model, tmp_path, prompts=PROMPTS, make=generate, **more):
    with ImageSetWriter(tmp_path / "s.tar") as writer:
        make(model, prompts, writer, ORIGIN, SAMPLING, batch_size=2, work=tmp_path / "work", **more)


@pytest.mark.parametrize("value", BAD)
def test_nothing_is_drawn_or_answered_by_a_damaged_model(whole, value, tmp_path):
    name = family(whole)
    what = "logits of the image codes" if name in ("showo", "janus") else "latents"
    with pytest.raises(NonFinite, match=rf"^{what} are not finite for '.+' and 1 more; {LINE}"):
        drawn(poisoned(whole, DRAWS[name], value), tmp_path)
    with pytest.raises(NonFinite, match=rf"^pixels are not finite for '.+'; {LINE}"):
        drawn(poisoned(whole, f"{DECODES[name]}.decoder.conv_out.bias", value), tmp_path)
    assert not (tmp_path / "s.tar").exists() and not list(tmp_path.rglob("*.png"))
    photo = decode((whole / "photo.png").read_bytes(), name="photo")
    question = Question("q7", "photo", "what this ?", "red", "kind")
    with pytest.raises(NonFinite, match=rf"^logits of the answers are not finite for 'q7'; {LINE}"):
        answers(poisoned(whole, READS[name], value), [question], {"photo": photo}, max_new_tokens=3)


def test_of_a_batch_the_prompts_at_fault_are_named(whole, tmp_path):
    model = load_model(whole / "model")
    (bad,) = set(model.text.tokenizer("blue")["input_ids"]) - set(
        model.text.tokenizer("a red circle")["input_ids"]
    )
    weights = dict(model.named_parameters())
    (name,) = [n for n in weights if n.startswith("network") and n.endswith("embed_tokens.weight")]
    with torch.no_grad():
        weights[name][bad] = math.nan
    with pytest.raises(NonFinite, match="are not finite for 'a blue circle'; the weights"):
        drawn(model, tmp_path)
    drawn(model, tmp_path, prompts=PROMPTS[:1])


def test_no_picture_is_edited_by_a_damaged_model(tmp_path):
    bagel_tiny.model(tmp_path / "words").save(tmp_path / "model")
    files = [
        png(5, size=24),
        png(6, size=16),
    ]  # two sizes: two batches, whose rows are not those of the whole
    model = poisoned(tmp_path, DRAWS["bagel"], math.nan)
    with pytest.raises(NonFinite, match=r"latents are not finite for 'a (red|blue) circle'; "):
        drawn(model, tmp_path, list(zip(PROMPTS, files, strict=True)), make=edit)


# ---- weights on the disk -------------------------------------------------------------------------
def test_a_file_of_damaged_weights_is_refused_by_its_name(whole, capsys):
    path = whole / "model/model.safetensors"
    right = path.read_bytes()
    tensors = load_file(path)
    name = next(n for n in tensors if "norm" in n)
    for value in BAD:
        tensors[name].view(-1)[-1] = value
        save_file(tensors, path, metadata={"format": "pt"})
        command = [
            "draw",
            "a red circle",
            "--model",
            str(whole / "model"),
            "--out",
            str(whole / "out.png"),
        ]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert path.name in line and f"weight {name}" in line and "not finite; fetch" in line
        with pytest.raises(ValueError, match=f"weight {name} holds values that are not finite"):
            save_safetensors(tensors, path)
    assert not (whole / "out.png").exists()
    path.write_bytes(right)


# ---- training ------------------------------------------------------------------------------------
def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path, monkeypatch):
    real = trainer.update

    def update(state, *rest):
        real(state, *rest)
        next(iter(state.weights.values())).data.view(-1)[0] = math.inf

    monkeypatch.setattr(trainer, "update", update)
    with pytest.raises(ValueError, match=r"step 1: the weights are not finite .* Lower align\.lr"):
        run(tmp_path, changes={"checkpoint_every": 1})
    assert checkpoint.latest(tmp_path / trainer.CHECKPOINTS).path is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_no_weight_is_of_a_dtype_that_hides_nan(dtype):
    odd = torch.full((2,), math.nan).to(dtype)
    with pytest.raises(ValueError, match=r"file: weight w is .* convert it"):
        check_weights("file", [("w", odd)])
    check_weights("file", [("ids", torch.arange(3)), ("mask", torch.ones(2, dtype=torch.bool))])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_part_of_a_base_is_not_fitted_to_what_is_not_finite(tmp_path, what):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)

    def loss(indices):  # the square root of 0 is finite, its slope is not
        return module.weight.sum().log() if what == "loss" else module.weight.sum().sqrt()

    recipe = Fit(steps=2, batch=1, lr=0.1)
    with pytest.raises(ValueError, match=rf"the {what}( norm)? is -?inf; lower lr"):
        fit(module, loss, recipe, size=3, seed=0, work_dir=tmp_path, data="d")
    assert not module.weight.any() and checkpoint.latest(tmp_path / CHECKPOINTS).path is None


# ---- caches, scoring, files ----------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_no_cache_holds_features_that_are_not_finite(tmp_path, dtype):
    model = DrawingToy()
    with torch.no_grad():  # fp16: finite as computed, too large as kept
        model.encoder.bias[1] = math.nan if dtype == "fp32" else 1e6
    with pytest.raises(NonFinite, match=r"^features understanding in float\d+ .* for 'picture-0'"):
        build(model, Pictures(5), tmp_path / "c", use="draw", code=CODE, dtype=dtype)
    assert not (tmp_path / "c").exists()


def test_no_network_scores_with_numbers_that_are_not_finite(tmp_path):
    def look(item, k, picture):
        raise NonFinite("detector logits", [0])

    section = BenchmarkConfig(kind="geneval")
    pictures, places = {("p1", 0): b"picture"}, (tmp_path, tmp_path, tmp_path / "l")
    rows = seen(View(section, PROMPTS, pictures, {}, 1, *places), look, None, lambda item: None)
    with pytest.raises(NonFinite, match="detector logits are not finite for 'p1/0'; "):
        list(rows)
    assert not (tmp_path / "evidence.jsonl").exists()
    for bad in BAD:
        logits, masks = torch.zeros(3, 5), torch.ones(3, 2, 2)
        for harmed in (logits, masks):
            harmed.view(-1)[3] = bad
            with pytest.raises(NonFinite, match="detector logits"):
                instances(logits, masks, (8, 8), (8, 8), (8, 8))
            harmed.view(-1)[3] = 0
        rows = np.ones((2, 4))
        rows[1, 2] = bad
        with np.errstate(all="ignore"), pytest.raises(NonFinite, match="CLIP similarities"):
            colours.choose(rows, np.eye(10, 4))
        with pytest.raises(ValueError, match="Inception features are not finite"):
            reconstruction.frechet(np.ones((2, 4)), rows)
    with pytest.raises(ValueError, match="reads uint8 pixels, not float64"):
        examiner.detect(np.full((8, 8, 3), math.nan))


@pytest.mark.parametrize(
    ("scorer", "made"), [(BlipVqa, tiny.blip_folder), (ChatModel, tiny.chat_folder)]
)
def test_no_answer_of_a_damaged_vqa_model(tmp_path, scorer, made):
    made(tmp_path / "model")
    model, picture = scorer(tmp_path / "model"), decode(png(3, size=40), name="p")
    assert len(model(picture, ["is there a cat ?"])) == 1
    with torch.no_grad():
        next(w for n, w in model.model.named_parameters() if "norm" in n.lower()).fill_(math.nan)
    with pytest.raises(NonFinite, match="logits are not finite"):
        model(picture, ["is there a cat ?"])


def test_json_holds_no_nan_and_the_number_is_named(tmp_path):
    value = {"guidance": {"2.0": {"dense": [1.0, math.nan]}}}
    with pytest.raises(
        ValueError, match=r"s\.json: guidance\.2\.0\.dense\[1\] is nan; not written"
    ):
        write_json(tmp_path / "s.json", value)
    with pytest.raises(ValueError, match=r"i\.jsonl: \[1\]\.score is -inf; not written"):
        write_lines(tmp_path / "i.jsonl", [{"score": 1.0}, {"score": -math.inf}])
    assert not list(tmp_path.iterdir())
