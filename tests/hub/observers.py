"""Tiny networks that observe samples, under the official file names, tensor names and labels.

Random weights would detect nothing and answer in random words, so that every score is empty or zero. A few weights are
set by hand: the networks detect what the prompts name, answer yes or no, and reply with a score, as the image has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from tests.hub import vocabularies
from tests.hub.encoded import Files
from tests.hub.encoded import document as json_document
from tests.hub.prompt_sets import COCO, SEEN

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
# How the detector's configuration spells classes that GenEval names differently.
SPELT = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
}
NEVER = {"pytorch_model.bin": b"never fetched", "README.md": b"---\nlicense: other\n---\n"}
WIDTH, STRONG = 16, 4.0  # of hidden states, and of the directions that are set by hand


# ---- what all share --------------------------------------------------------------------------------
def random_weights(model: nn.Module, scale: float, seed: int = 0) -> None:
    """Normal matrices of the given size over the root of their width; norms and biases stay."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            width = parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale / width


def saved(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration as transformers writes them, which is under the names of the hub."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load((Path(folder) / "model.safetensors").read_bytes())
        config = json.loads((Path(folder) / "config.json").read_text())
    return dict(sorted(tensors.items())), config


def document(**content: object) -> bytes:
    return json_document(content)


def safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save(dict(tensors), {"format": "pt"})


def shards(tensors: Mapping[str, Tensor]) -> Files:
    """Two files of weights and their index."""
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    files, where = {}, {}
    for number, half in enumerate(halves, 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        files[shard] = safetensors({name: tensors[name] for name in half})
        where |= dict.fromkeys(half, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = document(metadata={"total_size": total}, weight_map=where)
    return {**files, "model.safetensors.index.json": index}


def blocks(side: int) -> Tensor:
    """Four images of coloured blocks [4, 3, side, side], normalised: what the networks are balanced on."""
    small = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(small, (side, side))


def direction(place: int) -> Tensor:
    return STRONG * nn.functional.one_hot(torch.tensor(place), WIDTH).float()


def images_of(kind: str, size: object, **more: object) -> bytes:
    """A preprocessor_config.json."""
    return document(
        image_processor_type=kind, do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True,
        rescale_factor=1 / 255, resample=3, image_mean=MEAN, image_std=STD, size=size, **more,
    )  # fmt: skip


# ---- Mask2Former -----------------------------------------------------------------------------------
@cache
def detector() -> Files:
    """Swin and a transformer decoder with COCO's 80 labels; its queries vote for the classes of the prompts."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(  # patches of 16 pixels, not 4: images are enlarged to 800
        embed_dim=8, patch_size=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=7,
        out_features=stages,
    )  # fmt: skip
    names = {number: SPELT.get(name, name) for number, name in enumerate(COCO)}
    config = Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32, num_queries=8,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16,
        encoder_feedforward_dim=16, id2label=names,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = Mask2FormerForUniversalSegmentation(config)
    random_weights(model, 1.0)
    seen, head = [COCO.index(name) for name in SEEN], model.class_predictor
    with torch.no_grad():
        usual = model.eval()(blocks(800)).transformer_decoder_last_hidden_state.mean((0, 1))
        head.weight *= 8
        head.bias.fill_(-100.0)
        head.bias[seen] = -(head.weight @ usual)[seen]  # no class is preferred on the whole
        head.bias[-1] = -(head.weight @ usual)[-1] + 4.0  # no object
        masks = model.model.transformer_module.decoder.mask_predictor.mask_embedder
        masks.get_submodule("2.0").weight.mul_(8)
    tensors, described = saved(model)
    tensors = {n: t for n, t in tensors.items() if ".swin.layernorm." not in n}
    for name in [n for n in tensors if n.endswith("relative_position_bias_table")]:
        side = swin.window_size**2
        index = name.replace(
            "bias_table", "index"
        )  # in older files, computed from the window today
        tensors[index] = torch.zeros(side, side, dtype=torch.int64)
    return {
        "config.json": document(**described),
        "preprocessor_config.json": images_of(
            "Mask2FormerImageProcessor", {"height": 384, "width": 384}
        ),
        "model.safetensors": safetensors(tensors),
        **NEVER,
    }


# ---- CLIP ------------------------------------------------------------------------------------------
@cache
def clip() -> Files:
    from transformers import CLIPConfig, CLIPModel

    side = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    marks = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    text = {**side, **marks, "vocab_size": 49408}
    vision = {**side, "image_size": 224, "patch_size": 32}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    random_weights(model, 1.0)
    tensors, described = saved(model)
    tensors |= {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
    }
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
    )
    preprocessor = document(
        crop_size=224, do_center_crop=True, do_normalize=True, do_resize=True, resample=3, size=224,
        feature_extractor_type="CLIPFeatureExtractor", image_mean=MEAN, image_std=STD,
    )  # fmt: skip
    return {
        "config.json": document(**described),
        "preprocessor_config.json": preprocessor,
        "model.safetensors": safetensors(tensors),
        "tf_model.h5": b"never fetched",
        **vocabularies.clip(names),
        **NEVER,
    }


# ---- BLIP ------------------------------------------------------------------------------------------
SIZE, DEC, SEP = (
    30522,
    30522,
    102,
)  # entries of BERT, then the two that BLIP adds; the mark of the end
ANSWERS = {"yes": 2748, "no": 2053}


@cache
def blip_vqa() -> Files:
    """BLIP, which says yes or no after its first mark, and ends after that."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    side = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **side, "encoder_hidden_size": WIDTH, "vocab_size": SIZE + 2, "projection_dim": 8, "bos_token_id": DEC,
        "pad_token_id": 0, "eos_token_id": SEP, "sep_token_id": SEP,
    }  # fmt: skip
    vision = {**side, "image_size": 384, "patch_size": 64}
    torch.manual_seed(0)
    model: Any = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    random_weights(model, 1.0)
    decoder = model.text_decoder
    words, transform = (
        decoder.bert.embeddings.word_embeddings.weight,
        decoder.cls.predictions.transform,
    )
    with torch.no_grad():
        words[:, :3] = 0.0
        words[DEC], words[SEP] = direction(0), direction(2)
        transform.dense.weight.copy_(torch.eye(WIDTH))
        for before, after in ((0, 1), (1, 2)):  # of the last token, and of the next one
            transform.dense.weight[after, after] = 0.0
            transform.dense.weight[after, before] = 2.0
        for id_ in ANSWERS.values():
            words[id_] *= 0.5
            words[id_, 1] = STRONG
        decoder.bert.embeddings.position_embeddings.weight.zero_()
        for layer in decoder.bert.encoder.layer:  # only the image is added to the last token
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
            layer.crossattention.output.dense.weight[:3] = 0.0
        asked = torch.tensor([[101, *range(1232, 1260), SEP]] * 4)  # more yes than no
        said = model.eval().generate(asked, blocks(384), max_new_tokens=1, do_sample=False,
                                     output_logits=True, return_dict_in_generate=True)  # fmt: skip
        lead = said.logits[0][:, ANSWERS["no"]] - said.logits[0][:, ANSWERS["yes"]]
        decoder.cls.predictions.bias[ANSWERS["yes"]] += lead.max()
    tensors, described = saved(model)
    tensors |= {
        f"{part}.embeddings.position_ids": torch.arange(512)[None]
        for part in ("text_encoder", "text_decoder.bert")
    }
    return {
        "config.json": document(**described),
        "preprocessor_config.json": images_of("BlipImageProcessor", {"height": 384, "width": 384}),
        "model.safetensors": safetensors(tensors),
        "tf_model.h5": b"never fetched",
        **_bert(),
        **NEVER,
    }


def _bert() -> Files:
    """BERT's lower-case tokenizer with its marks, letters and two words at their ids; other entries are unused."""
    from transformers import BertTokenizer

    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": SEP, "[MASK]": 103, **ANSWERS}
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    fixed |= {sign: 999 + place for place, sign in enumerate(signs)}
    fixed |= {f"##{sign}": 1200 + place for place, sign in enumerate(signs)}
    by_id = {id_: word for word, id_ in fixed.items()}
    assert len(by_id) == len(fixed)
    listed = [by_id.get(id_, f"[unused{id_}]") for id_ in range(SIZE)]
    core = BertTokenizer(vocab={word: id_ for id_, word in enumerate(listed)}).backend_tokenizer
    marks = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]",
             "unk_token": "[UNK]"}  # fmt: skip
    config = {
        **marks,
        "do_lower_case": True,
        "model_max_length": 512,
        "tokenizer_class": "BertTokenizer",
    }
    return {
        "tokenizer.json": core.to_str().encode(),
        "tokenizer_config.json": document(**config),
        "special_tokens_map.json": document(**marks),
        "vocab.txt": "".join(f"{word}\n" for word in listed).encode(),
    }


# ---- Qwen2.5-VL ------------------------------------------------------------------------------------
NEWLINE, END = 198, 151645  # the last token of every prompt, and of a reply
OPENING, CLOSING = 1000, 1001  # entries without a merge, which only the network writes
DIGITS = range(16, 25)  # 1 to 9: these ids are those of bytes
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def qwen_vl() -> Files:
    """Qwen2.5-VL in two shards, which replies `{"score":N5}` to whatever it is asked."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "vocab_size": 152064, "bos_token_id": 151643, "eos_token_id": END,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH,
        "patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [0], "window_size": 112,
    }  # fmt: skip
    marks = {"vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655,
             "video_token_id": 151656}  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **marks
    )
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    random_weights(model, 1.0)
    _reply_with_scores(model)
    tensors, described = saved(model.to(torch.bfloat16))
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    words = vocabularies.qwen(names)
    for id_, word in ((OPENING, '{"score":'), (CLOSING, "5}")):
        for name in ("tokenizer.json", "vocab.json"):
            found = words[name].replace(f'"filler-{id_}"'.encode(), json.dumps(word).encode())
            assert found != words[name], f"{name} has no free entry {id_}"
            words[name] = found
    tokenizer = {**json.loads(words["tokenizer_config.json"]), "chat_template": TEMPLATE}
    preprocessor = images_of(
        "Qwen2VLImageProcessor", None, min_pixels=3136, max_pixels=12845056, patch_size=14,
        temporal_patch_size=2, merge_size=2,
    )  # fmt: skip
    generation = document(
        do_sample=True,
        temperature=0.1,
        repetition_penalty=1.05,
        pad_token_id=151643,
        eos_token_id=[END, 151643],
    )
    return {
        **words,
        "tokenizer_config.json": document(**tokenizer),
        "chat_template.json": document(chat_template=TEMPLATE),
        "config.json": document(**described),
        "generation_config.json": generation,
        "preprocessor_config.json": _without(preprocessor, "size"),
        "README.md": NEVER["README.md"],
        **shards(tensors),
    }


def _without(data: bytes, key: str) -> bytes:
    return document(**{k: v for k, v in json.loads(data).items() if k != key})


def _reply_with_scores(model: Any) -> None:
    """The next token by the last one: the opening, a digit by all that was read, the closing, the end."""
    words, head = model.model.language_model.embed_tokens.weight, model.lm_head.weight
    chain: Sequence[tuple[int, Sequence[int]]] = (
        (NEWLINE, [OPENING]), (OPENING, DIGITS), (DIGITS[0], [CLOSING]), (CLOSING, [END]),
    )  # fmt: skip
    seen = len(chain)  # a direction of all image tokens
    with torch.no_grad():
        words[:, : seen + 1] = 0.0
        head.mul_(0.1)[:, : seen + 1] = 0.0
        for place, (last, following) in enumerate(chain):
            for id_ in DIGITS if last == DIGITS[0] else [last]:
                words[id_] = direction(place)
            for id_ in following:
                head[id_, place] = 8 * STRONG
        head[list(DIGITS), seen + 1 :] *= 20
        model.model.visual.merger.mlp[-1].bias[seen] = STRONG
        for layer in model.model.language_model.layers:
            attention, slowest = layer.self_attn, WIDTH // 2 - 1  # which position hardly rotates
            attention.q_proj.weight[slowest, 1] = attention.k_proj.weight[slowest, seen] = STRONG
            attention.o_proj.weight[: seen + 1] = 0.0
            layer.mlp.down_proj.weight.zero_()


# ---- by source -------------------------------------------------------------------------------------
WRITERS: Mapping[str, Callable[[], Files]] = {
    "mask2former-swin-small-coco": detector,
    "clip-vit-large-patch14": clip,
    "blip-vqa": blip_vqa,
    "qwen2.5-vl-32b-instruct": qwen_vl,
}


def files() -> dict[str, Files]:
    """The networks by source."""
    return {name: write() for name, write in WRITERS.items()}
