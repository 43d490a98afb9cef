"""Networks that score: missing and unexpected tensors and other shapes end before a picture is seen."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca.evaluation.detectors import checkpoint, coco, mask2former, similarity, vqa
from tests.evaluation import tiny_networks as tiny


def detector(folder):
    return mask2former.Mask2Former.open(folder, tiny.NAMES)


# network -> its tiny folder, its loader, tensors whose loss was silent, and tensors that are harmless besides
NETWORKS = {
    "mask2former": (tiny.detector_folder, detector, "class_predictor.",
                    ["model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"]),
    "clip colours": (tiny.clip_folder, mask2former.ClipColours, "visual_projection.",
                     ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"]),
    "clip cosine": (tiny.clip_folder, similarity.CosineAlike.clip, "text_projection.",
                    ["text_model.embeddings.position_ids"]),
    "dino": (tiny.dino_folder, similarity.CosineAlike.dino, "layernorm.", []),
    "blip": (tiny.blip_folder, vqa.BlipVqa, "text_decoder.cls.predictions.transform.",
             ["text_encoder.embeddings.position_ids", "text_decoder.bert.embeddings.position_ids"]),
    "qwen": (tiny.chat_folder, vqa.ChatModel, "lm_head.", []),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = NETWORKS[name][0](tmp_path_factory.mktemp("networks") / "whole")
        return folders[name]

    return of


def changed(whole, folder, change):
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(whole, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_checkpoint_lacks_or_has_besides_is_named(tmp_path, made, name):
    _, load, head, harmless = NETWORKS[name]
    heads = [n for n in load_file(made(name) / "model.safetensors") if n.startswith(head)]
    assert heads

    def without(tensors):
        for one in heads:
            del tensors[one]

    def besides(tensors):
        tensors["junk.weight"] = torch.zeros(3)

    def other(tensors):
        tensors[heads[0]] = torch.zeros(5, 7)

    def fine(tensors):
        for one in harmless:
            tensors[one] = torch.zeros(1, 3, dtype=torch.long)

    def damaged(tensors):
        tensors[heads[-1]].view(-1)[-1] = -math.inf

    faults = {
        "missing": (without, heads[0]),
        "unexpected": (besides, "junk.weight"),
        "of a different shape": (other, "[5, 7]"),
        "not finite": (damaged, "weight "),  # one of -inf in front of a softmax is no NaN behind it
    }
    for number, (kind, (change, named)) in enumerate(faults.items()):
        with pytest.raises(ValueError) as raised:
            load(changed(made(name), tmp_path / str(number), change))
        said = str(raised.value)
        assert f"{number}/model.safetensors: " in said and kind in said and named in said, said
        assert "fetch" in said and said.endswith("again") and "\n" not in said
    assert load(changed(made(name), tmp_path / "fine", fine)) is not None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_another_kind_are_named(tmp_path, made, dtype):
    def cast(tensors):
        tensors["layernorm.weight"] = tensors["layernorm.weight"].to(dtype)

    folder = changed(made("dino"), tmp_path / "cast", cast)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: weight layernorm\.weight is .*again"
    ):
        similarity.CosineAlike.dino(folder)


def test_tensors_that_scoring_never_reads_may_be_missing(tmp_path, made):
    def older(tensors):
        for name in [n for n in tensors if n.startswith("criterion.") or ".swin.layernorm." in n]:
            del tensors[name]

    assert detector(changed(made("mask2former"), tmp_path / "older", older)) is not None


@pytest.mark.parametrize("fault", ["empty", "pickle", "damaged", "no config", "no tokenizer"])
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, made, fault):
    folder = tmp_path / "folder"
    shutil.copytree(made("clip colours"), folder)
    weights = folder / "model.safetensors"
    if fault == "damaged":
        weights.write_bytes(weights.read_bytes()[:100])
    elif fault == "no config":
        (folder / "config.json").write_text("{")
    elif fault == "no tokenizer":
        for path in folder.glob("*tokenizer*"):
            path.unlink()
        for path in (*folder.glob("vocab*"), *folder.glob("merges*")):
            path.unlink()
    else:
        if fault == "pickle":
            torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(ValueError, match=str(folder)) as raised:
        mask2former.ClipColours(folder)
    assert "\n" not in str(raised.value) and "fetch its source again" in str(raised.value)


# ---- classes -------------------------------------------------------------------------------------
COCO = ["tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "motorcycle", "couch"]


def test_classes_are_known_by_name_and_order(tmp_path):
    for names in (
        COCO,
        ["tvmonitor", "laptop", "mouse", "remote", "keyboard", "motorbike", "Sofa"],
    ):
        checkpoint.demand_labels(tmp_path, dict(enumerate(names)), COCO, coco.ALIASES)
    wrong = {
        "LABEL_0": ({i: f"LABEL_{i}" for i in range(7)}, "7 of 7 classes .*0 is 'label_0', not 'tv'"),
        "turned": (dict(enumerate(COCO[1:] + COCO[:1])), "0 is 'laptop', not 'tv'"),
        "20": ({i: f"c{i}" for i in range(20)}, "the network has 20 classes, the benchmark needs 7"),
        "gap": (dict(zip((0, 1, 2, 3, 4, 5, 7), COCO, strict=True)), "class ids are not 0 to 6"),
    }  # fmt: skip
    for found, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            checkpoint.demand_labels(tmp_path, found, COCO, coco.ALIASES)


@pytest.mark.parametrize("count", [20, 133])
def test_a_detector_of_another_number_of_classes_is_refused(tmp_path, count):
    """A whole checkpoint of another data set: Pascal's 20 classes, COCO's 133 panoptic ones."""
    from transformers import Mask2FormerForUniversalSegmentation

    config = tiny.swin_config()
    config.id2label = {i: f"class {i}" for i in range(count)}
    config.label2id = {f"class {i}": i for i in range(count)}
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"config\.json: the network has {count} classes, the benchmark needs 80"
    ):
        detector(tmp_path)


def test_a_detector_with_the_classes_in_another_order_is_refused(tmp_path, made):
    shutil.copytree(made("mask2former"), tmp_path / "turned")
    path = tmp_path / "turned/config.json"
    config = json.loads(path.read_text())
    names = [*tiny.NAMES[1:], tiny.NAMES[0]]
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"80 of 80 classes differ from the benchmark's.*0 is 'dog', not 'cat'"
    ):
        detector(tmp_path / "turned")
