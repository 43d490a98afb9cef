"""GenEval's detector and colours with tiny networks of the real classes; the official weights' conversion."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reca.core.artifacts import sha256_file
from reca.evaluation.detectors import colours, mask2former, mmdet
from reca.evaluation.detectors.instances import Instance, instances, upsampled
from reca.models.checkpoint_io import manifest_of
from tests.evaluation import tiny_networks as tiny


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return tiny.detector_folder(root / "detector"), tiny.clip_folder(root / "clip")


# ---- preprocessing -------------------------------------------------------------------------------
def test_sizes_are_those_of_the_official_transform():
    assert mask2former.resized((1024, 1024)) == (800, 800)
    assert mask2former.resized((480, 640)) == (800, 1067)
    assert mask2former.resized((300, 1200)) == (333, 1333)
    assert mask2former.padded((800, 1067)) == (800, 1088)


def test_the_input_is_normalised_and_padded_with_zeros(image):
    tensor, small, whole = mask2former.pixels(image.resize((1067, 800)))
    assert small == (800, 1067) and tensor.shape[-2:] == whole == (800, 1088)
    assert (tensor[..., 1067:] == 0).all()
    white, *_ = mask2former.pixels(Image.new("RGB", (32, 32), (255, 255, 255)))
    expected = (255 - np.array(mask2former.MEAN)) / np.array(mask2former.STD)
    assert white[0, :, 0, 0].numpy() == pytest.approx(expected, rel=1e-5)


# ---- detections ----------------------------------------------------------------------------------
def test_a_picture_gives_candidates_at_its_own_size(image, folders):
    found = mask2former.Mask2Former.open(folders[0], tiny.NAMES)(image)
    assert len(found) == 100  # of 12 queries x 80 classes
    assert [i.score for i in found] == sorted((i.score for i in found), reverse=True)
    for one in found:
        assert one.mask.shape == (48, 64) and 0 <= one.label < 80
        x1, y1, x2, y2 = one.box
        assert 0 <= x1 <= x2 <= 64 and 0 <= y1 <= y2 <= 48


def test_masks_go_through_the_padded_size_and_the_crop():
    logits = torch.zeros(1, 8, 8)
    logits[:, :, 4:] = 1.0  # what lies in the padding is cut off
    shown = upsampled(logits, (32, 32), (32, 16), (64, 32))
    assert shown.shape == (1, 64, 32) and shown[0, :, :24].max() < 0.5


def test_an_empty_mask_has_an_empty_box_and_no_score():
    found = instances(torch.zeros(1, 3), -torch.ones(1, 4, 4), (16, 16), (16, 16), (16, 16))
    assert {(i.box, i.score) for i in found} == {((0.0, 0.0, 0.0, 0.0), 0.0)}


# ---- colours -------------------------------------------------------------------------------------
def test_colours_are_those_of_clip_on_the_grey_crop(image, folders):
    classifier = mask2former.ClipColours(folders[1])
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[10:30, 20:50] = True
    one = Instance(0, (20.0, 10.0, 50.0, 30.0), 0.9, mask, 0)
    (given,) = classifier(image, [one], "traffic light")
    crop = colours.crop(np.asarray(image), one.box, mask.numpy())
    assert crop.size == (30, 20)
    embedded = classifier._pictures([crop])
    tokens = classifier.tokenizer(colours.texts("traffic light"), padding=True, return_tensors="pt")
    texts = classifier.model.get_text_features(**tokens)
    texts = getattr(texts, "pooler_output", texts).detach().numpy().reshape(10, 3, -1)
    assert given == colours.choose(embedded, colours.class_vectors(texts))[0]
    assert classifier(image, [], "cat") == []


def test_texts_come_colour_by_colour():
    texts = colours.texts("bus")
    assert texts[:3] == [
        "a photo of a red bus",
        "a photo of a red-colored bus",
        "a photo of a red object",
    ]
    assert len(texts) == 30 and texts[-1] == "a photo of a white object"


def test_the_eye_names_classes_and_asks_colours_only_where_the_prompt_does():
    mask = torch.ones(4, 4, dtype=torch.bool)
    seen = [
        Instance(label, (0, 0, 4, 4), score, mask, 0)
        for label, score in ((1, 0.9), (0, 0.8), (1, 0.2))
    ]
    asked = []

    def classifier(image, found, name):
        asked.append((name, len(found)))
        return ["blue"] * len(found)

    eye = mask2former.GenevalEye(lambda image: seen, classifier, ["tv remote", "bus"])
    rows = eye(
        Image.new("RGB", (4, 4)), {"include": [{"class": "bus", "count": 1, "color": "blue"}]}
    )
    assert [(r["class"], r["color"], r["score"]) for r in rows] == [
        ("bus", "blue", 0.9),
        ("tv remote", None, 0.8),
    ]
    assert asked == [("bus", 1)]


# ---- the official weights ------------------------------------------------------------------------
BACK = (
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.patch_embeddings\.", "backbone.patch_embed."),
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
    (r"^model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)\.downsample\.",
     r"backbone.stages.\1.downsample."),
    (r"\.attention\.relative_position_bias\.", ".attn.w_msa."),
    (r"\.attention\.o_proj\.", ".attn.w_msa.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)\.",
     lambda m: f"backbone.norm{int(m[1]) - 1}."),
    (r"^model\.pixel_level_module\.decoder\.", "panoptic_head.pixel_decoder."),
    (r"\.input_projections\.(\d)\.0\.", r".input_convs.\1.conv."),
    (r"\.input_projections\.(\d)\.1\.", r".input_convs.\1.gn."),
    (r"\.adapter_1\.0\.", ".lateral_convs.0.conv."),
    (r"\.adapter_1\.1\.", ".lateral_convs.0.gn."),
    (r"\.layer_1\.0\.", ".output_convs.0.conv."),
    (r"\.layer_1\.1\.", ".output_convs.0.gn."),
    (r"\.mask_projection\.", ".mask_feature."),
    (r"pixel_decoder\.level_embed$", "pixel_decoder.level_encoding.weight"),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norms.0."),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.1."),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
     lambda m: f"panoptic_head.mask_embed.{2 * int(m[1])}."),
    (r"^model\.transformer_module\.decoder\.layers\.", "panoptic_head.transformer_decoder.layers."),
    (r"\.cross_attn\.", ".attentions.0.attn."),
    (r"(transformer_decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.1.attn."),
    (r"\.cross_attn_layer_norm\.", ".norms.0."),
    (r"(transformer_decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norms.1."),
    (r"(transformer_decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.2."),
    (r"(layers\.\d+)\.fc1\.", r"\1.ffns.0.layers.0.0."),
    (r"(layers\.\d+)\.fc2\.", r"\1.ffns.0.layers.1."),
    (r"^model\.transformer_module\.queries_embedder\.", "panoptic_head.query_embed."),
    (r"^model\.transformer_module\.queries_features\.", "panoptic_head.query_feat."),
    (r"^model\.transformer_module\.level_embed\.", "panoptic_head.level_embed."),
    (r"^class_predictor\.", "panoptic_head.cls_embed."),
)  # fmt: skip


def official_state(model):
    """The state dict as OpenMMLab names and packs it: written backwards from reference/benchmarks.md 2."""
    found, packed = {}, {}
    for name, tensor in model.state_dict().items():
        if name in mmdet._OWN:
            continue
        for pattern, to in BACK:
            name = re.sub(pattern, to, name)
        split = re.fullmatch(r"(.*\.)(?:attention\.|attn\.)([qkv])_proj\.(weight|bias)", name)
        if split:
            packed.setdefault((split[1], split[3]), {})[split[2]] = tensor
        elif name.endswith("downsample.reduction.weight") or ".downsample.norm." in name:
            found[name] = unfold_order(tensor)
        else:
            found[name] = tensor
    for (prefix, kind), parts in packed.items():
        whole = torch.cat([parts[letter] for letter in "qkv"])
        swin = prefix.startswith("backbone")
        found[f"{prefix}attn.w_msa.qkv.{kind}" if swin else f"{prefix}attn.in_proj_{kind}"] = whole
    found["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(9, 9)
    return found


def unfold_order(tensor):
    """From patches (row + 2 column) x channels to unfold's channels x (2 row + column)."""
    rows = tensor.reshape(-1, 4, tensor.shape[-1] // 4)
    by_unfold = rows[:, [0, 2, 1, 3]]
    return by_unfold.transpose(1, 2).reshape(tensor.shape)


def test_official_names_and_packing_come_back_exactly():
    model = tiny.mask2former(seed=1)
    converted = mmdet.convert(official_state(model))
    expected = {n: t for n, t in model.state_dict().items() if n not in mmdet._OWN}
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_patch_merging_by_unfold_and_by_slices_agree():
    """The official module unfolds; transformers' slices: with converted weights both give the same."""
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    torch.manual_seed(0)
    channels, x = 6, torch.randn(2, 6, 8, 8)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    theirs = reduction(norm(nn.functional.unfold(x, 2, stride=2).transpose(1, 2)))
    ours = SwinPatchMerging(channels)
    state = {
        "reduction.weight": reduction.weight,
        "norm.weight": norm.weight,
        "norm.bias": norm.bias,
    }
    places = mmdet.convert({f"backbone.stages.0.downsample.{n}": t.data for n, t in state.items()})
    ours.load_state_dict({n.split("downsample.")[1]: t for n, t in places.items()})
    found = ours(x.flatten(2).transpose(1, 2), (8, 8))
    assert torch.allclose(found, theirs, atol=1e-5)


def test_an_unknown_tensor_is_named():
    with pytest.raises(ValueError, match=r"backbone\.extra: not a tensor"):
        mmdet.convert({"backbone.extra": torch.zeros(1)})


def test_the_official_file_is_opened_under_its_hash(tmp_path, monkeypatch):
    model = tiny.mask2former(seed=2)
    path = tmp_path / "mask2former.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": official_state(model)}, path)
    monkeypatch.setattr(mmdet, "build", lambda: tiny.mask2former(seed=3))
    loaded = mmdet.load(path, sha256_file(path), tiny.NAMES)
    tensors = model.state_dict()
    assert all(
        torch.equal(t, tensors[n]) for n, t in loaded.state_dict().items() if n not in mmdet._OWN
    )
    with pytest.raises(ValueError, match="sha256"):
        mmdet.load(path, "0" * 64, tiny.NAMES)


SAID = {
    "mmdet 2": lambda names: {"CLASSES": tuple(names)},
    "mmdet 3": lambda names: {"dataset_meta": {"classes": list(names)}},
    "mmdet 3, as mmdet 2": lambda names: {"dataset_meta": {"CLASSES": tuple(names)}},
}


@pytest.mark.parametrize("how", SAID)
def test_classes_that_the_official_file_names_are_the_benchmarks(tmp_path, monkeypatch, how):
    state = official_state(tiny.mask2former(seed=2))
    monkeypatch.setattr(mmdet, "build", lambda: tiny.mask2former(seed=3))
    for names, message in ((tiny.NAMES, ""), (tiny.NAMES[::-1], "0 is 'thing 77', not 'cat'"),
                           (tiny.NAMES[:20], "20 classes, the benchmark needs 80")):  # fmt: skip
        path = tmp_path / f"{len(names)}-{names[0]}.pth"
        torch.save({"meta": SAID[how](names), "state_dict": state}, path)
        if not message:
            assert mmdet.load(path, sha256_file(path), tiny.NAMES) is not None
            continue
        with pytest.raises(ValueError, match=message):
            mmdet.load(path, sha256_file(path), tiny.NAMES)


def test_the_official_names_are_known_backwards():
    model = tiny.mask2former(seed=1)
    official = {n: t for n, t in official_state(model).items() if "position_index" not in n}
    assert mmdet.expected(model) == manifest_of(official)
    with pytest.raises(ValueError, match=r"elsewhere\.weight: has no name"):
        mmdet.official_name("elsewhere.weight")


KEYS = {  # renamed, packed, reordered, a bias table
    "plain": "panoptic_head.query_feat.weight",
    "packed by Swin": "backbone.stages.0.blocks.0.attn.w_msa.qkv.weight",
    "packed by the decoder": "panoptic_head.transformer_decoder.layers.0.attentions.1.attn.in_proj_bias",
    "reordered": "backbone.stages.0.downsample.reduction.weight",
    "reordered norm": "backbone.stages.0.downsample.norm.weight",
    "shifted": "backbone.norm0.bias",
}


@pytest.mark.parametrize("fault", ["missing", "unexpected", "different"])
@pytest.mark.parametrize("key", KEYS)
def test_an_official_tensor_that_does_not_fit_is_named(tmp_path, monkeypatch, key, fault):
    state, name = official_state(tiny.mask2former(seed=2)), KEYS[key]
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        name = f"{name}.extra"
        state[name] = torch.zeros(3)
    else:
        state[name] = state[name].flatten()[:2].clone()
    path = tmp_path / "official.pth"
    torch.save({"meta": {}, "state_dict": state}, path)
    monkeypatch.setattr(mmdet, "build", lambda: tiny.mask2former(seed=3))
    with pytest.raises(ValueError) as raised:
        mmdet.load(path, sha256_file(path), tiny.NAMES)
    said = str(raised.value)
    assert "official.pth: does not fit" in said and f"1 {fault} ({name}" in said
    assert "fetch source mask2former-swin-small-coco-mmdet" in said and "\n" not in said


def test_the_official_configuration_has_the_official_sizes():
    with torch.device("meta"):
        model = mmdet.build()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    swin = "model.pixel_level_module.encoder.swin.encoder.layers"
    assert shapes[f"{swin}.2.blocks.17.mlp.fc1.weight"] == (1536, 384)
    assert shapes["model.transformer_module.queries_features.weight"] == (100, 256)
    assert shapes["class_predictor.weight"] == (81, 256)
    assert "model.transformer_module.decoder.layers.8.fc1.weight" in shapes
    assert "model.transformer_module.decoder.layers.9.fc1.weight" not in shapes
    assert shapes["model.pixel_level_module.decoder.encoder.layers.5.fc1.weight"] == (1024, 256)
