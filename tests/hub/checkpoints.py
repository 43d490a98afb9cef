"""Tiny checkpoints in the released layouts, by source of `config/sources.yaml`.

File names, tensor names, dtypes, pickles and shards are those of the releases, networks the families' tiny ones with
the released vocabularies. Names and dtypes are compared with the manifests of the releases, layer numbers left out.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from reca.config.compose import model_config
from reca.config.schema import ModelConfig
from reca.models.janus.weights import NAMING, unread_shapes
from reca.models.openuni import weights as openuni_weights
from reca.models.registry import build_model
from tests.hub import vocabularies
from tests.hub.vocabularies import Files
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny
from tests.reference.golden_cases import manifest

TINY: dict[str, Any] = {
    "showo": showo_tiny,
    "harmon": harmon_tiny,
    "bagel": bagel_tiny,
    "openuni": openuni_tiny,
    "janus": janus_tiny,
}
SHOWO = "showo_clip_256"  # whose companions are those of every Show-o
# What a tiny configuration has for its closed vocabulary; here the released values stay
OF_VOCABULARY = ("llm_vocab_size", "endoftext", "max_text", "head_text", "special", "end")
OTHERS = {"README.md": b"---\nlicense: other\n---\n", "modeling_remote.py": b"raise SystemExit\n"}
# Levels of several widths, whose first blocks have a shortcut of their own
LEVELS = {
    "bagel": {"vae": {"ch_mult": [1, 1, 2]}},
    "janus": {"vq": {"channel_multiplier": [1, 1, 2]}},
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
QWEN = (*TOKENIZER, "vocab.json", "merges.txt")
MAPS = ("added_tokens.json", "special_tokens_map.json")


# ---- networks ------------------------------------------------------------------------------------
def tiny_network(config: ModelConfig) -> dict[str, Any]:
    """The configured `network` section with the sizes of the family's tiny one; vocabulary and options stay."""
    named = {"understanding": config.network["understanding"]} if config.family == "showo" else {}
    tiny = TINY[config.family].network(**named)
    for key in (*OF_VOCABULARY, "system_prompt", "options"):
        tiny.pop(key, None)
    tiny["llm"].pop("vocab_size", None)
    tiny["llm"].pop("max_position_embeddings", None)
    return merged(config.network, merged(tiny, LEVELS.get(config.family, {})))


def merged(full: Mapping[str, Any], tiny: Mapping[str, Any]) -> dict[str, Any]:
    """`full` with the values of `tiny`, section by section."""
    inner = {key for key in tiny if isinstance(tiny[key], dict) and isinstance(full.get(key), dict)}
    return {**full, **tiny, **{key: merged(full[key], tiny[key]) for key in inner}}


@cache
def network_of(name: str) -> Any:
    """The tiny network of a configured model, with random weights."""
    config = model_config(name)
    torch.manual_seed(0)
    built: Any = build_model(config.family, tiny_network(config))
    if config.family == "showo" and name != SHOWO:  # all have one image tokenizer
        built.frozen.magvit.load_state_dict(network_of(SHOWO).frozen.magvit.state_dict())
    return built


def state_of(name: str, role: str = "weights") -> dict[str, Tensor]:
    """The tensors of one of a model's files under their released names."""
    model = network_of(name)
    (file,) = (file for file in model.weight_files() if file.role == role)
    return file.naming.state(file.module)


def released(state: Mapping[str, Tensor], where: str, inside: str = "") -> dict[str, Tensor]:
    """`state` in the dtypes of a manifest (`family/name`), after comparing the names but for the numbers in them."""
    full = {
        n.removeprefix(inside): kind
        for n, (_, kind) in manifest(*where.split("/")).items()
        if n.startswith(inside)
    }
    kinds = {unnumbered(name): kind for name, kind in full.items()}
    strangers = kinds.keys() ^ {unnumbered(name) for name in state}
    assert not strangers, f"{where}: {sorted(strangers)}"
    return {
        name: tensor.to(getattr(torch, kinds[unnumbered(name)])) for name, tensor in state.items()
    }


def unnumbered(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)


def part(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


# ---- files ---------------------------------------------------------------------------------------
def document(**content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()


def safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save({n: t.detach().clone().contiguous() for n, t in tensors.items()}, {"format": "pt"})


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def pickle_of(tensors: Mapping[str, Tensor]) -> bytes:
    return pickled(detached(tensors))


def sharded(
    tensors: Mapping[str, Tensor],
    stem: str,
    suffix: str,
    write: Callable[[dict[str, Tensor]], bytes],
) -> Files:
    """Two shards and their index."""
    names = list(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    files, where = {}, {}
    for number, half in enumerate(halves, 1):
        shard = f"{stem}-0000{number}-of-00002{suffix}"
        files[shard] = write({name: tensors[name] for name in half})
        where |= dict.fromkeys(half, PurePosixPath(shard).name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = document(metadata={"total_size": total}, weight_map=where)
    return files | {f"{stem}{suffix}.index.json": index}


# ---- Show-o --------------------------------------------------------------------------------------
def showo(model: str, reca: bool = False) -> Files:
    is_clip, config = "clip" in model, network_of(model).config
    tensors = released(state_of(model), f"showo/show-o{'-w-clip-vit' if is_clip else ''}")
    described = document(
        _class_name="Showo", codebook_size=config.codebook_size, llm_model_path="microsoft/phi-1_5",
        llm_vocab_size=config.llm_vocab_size, mask_token_id=config.ids.mask,
        num_vq_tokens=config.num_vq_tokens, vocab_size=config.vocab_size, w_clip_vit=is_clip,
    )  # fmt: skip
    if reca:
        return {"config.json": described, "pytorch_model.bin": pickle_of(tensors)}
    return {"config.json": described, "pytorch_model.safetensors": safetensors(tensors)}


def magvit() -> Files:
    tensors = released(state_of(SHOWO, "image_tokenizer"), "showo/magvitv2")
    config = document(_class_name="MAGVITv2")
    return {"config.json": config, "pytorch_model.safetensors": safetensors(tensors)}


def clip() -> Files:
    """CLIP's vision tower with the text model, the projections and the position ids beside it."""
    name = "showo/clip-vit-large-patch14-336-vision"
    tensors = released(state_of(SHOWO, "vision"), name)
    count = len(tensors["vision_model.embeddings.position_embedding.weight"])
    tensors |= {
        "logit_scale": torch.tensor(4.6),
        "text_projection.weight": torch.zeros(4, 4),
        "visual_projection.weight": torch.zeros(4, 24),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.embeddings.token_embedding.weight": torch.zeros(8, 4),
        "vision_model.embeddings.position_ids": torch.arange(count)[None],
    }
    return {
        "config.json": document(model_type="clip", architectures=["CLIPModel"]),
        "preprocessor_config.json": document(crop_size=336, do_resize=True, size=336),
        "pytorch_model.bin": pickle_of(tensors),
        "tf_model.h5": b"never fetched",
        **vocabularies.clip((*QWEN, "special_tokens_map.json")),
    }


def phi() -> Files:
    config = document(
        model_type="phi", architectures=["PhiForCausalLM"], qk_layernorm=False, vocab_size=51200
    )
    return {"config.json": config, **vocabularies.phi((*QWEN, *MAPS))}


# ---- Harmon --------------------------------------------------------------------------------------
def harmon_state(model: str, inside: bool = False) -> dict[str, Tensor]:
    """The network as released; with the autoencoder `inside`, as on its own hub."""
    vae = {f"vae.{name}": t for name, t in state_of(model, "image_tokenizer").items()}
    size = "0.5b" if "05b" in model else "1.5b"
    tensors = released(state_of(model) | vae, f"harmon/harmon_{size}")
    return tensors if inside else {n: t for n, t in tensors.items() if not n.startswith("vae.")}


def harmon() -> Files:
    vae = detached(state_of("harmon_15b", "image_tokenizer"))
    large = detached(harmon_state("harmon_15b"))
    return {
        "kl16.ckpt": pickled({"model": vae}),
        "harmon_0.5b.pth": pickle_of(harmon_state("harmon_05b")),
        "harmon_1.5b.pth": pickled({"state_dict": large}),
        "harmon_1.5b-o.pth": pickle_of(large),
    }


def harmon_hub(model: str) -> Files:
    tensors = harmon_state(model, inside=True)
    files = {"config.json": document(model_type="harmon", llm={}, mar={"type": "mar_base"})}
    if model == "harmon_05b":
        return files | {"model.safetensors": safetensors(tensors)}
    return files | sharded(tensors, "model", ".safetensors", safetensors)


def harmon_reca(model: str) -> Files:
    return {"model.pth": pickle_of(harmon_state(model))}


def qwen() -> Files:
    config = document(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=151936)
    return {"config.json": config, "generation_config.json": document(eos_token_id=[151645, 151643]),
            **vocabularies.qwen(QWEN)}  # fmt: skip


# ---- BAGEL ---------------------------------------------------------------------------------------
def bagel_state() -> dict[str, Tensor]:
    return released(state_of("bagel_7b"), "bagel/BAGEL-RecA_model_bf16")


def bagel() -> Files:
    """Without a config.json that says what the tokenizer is."""
    vae = released(state_of("bagel_7b", "vae"), "bagel/BAGEL-7B-MoT_ae")
    return {
        "llm_config.json": document(model_type="qwen2", vocab_size=152064),
        "vit_config.json": document(
            model_type="siglip_vision_model", image_size=980, patch_size=14
        ),
        "ema.safetensors": safetensors(bagel_state()),
        "ae.safetensors": safetensors(vae),
        **vocabularies.qwen(QWEN),
    }


def bagel_reca() -> Files:
    return {"model_bf16.safetensors": safetensors(bagel_state())}


# ---- OpenUni -------------------------------------------------------------------------------------
OPENUNI = {"openuni_b_512": "b_internvl3_1b_sana_0_6b_512", "openuni_l_512": "l_internvl3_2b_sana_1_6b_512",
           "openuni_l_1024": "l_internvl3_2b_sana_1_6b_1024"}  # fmt: skip


@cache
def openuni_state(model: str) -> dict[str, Tensor]:
    """The whole network and the autoencoder, in the released dtypes."""
    network = network_of(model)
    state = state_of(model) | state_of(model, "vision")
    state |= {f"vae.{name}": tensor for name, tensor in state_of(model, "image_tokenizer").items()}
    assert network.config.llm.vocab_size == 151674
    return released(state, f"openuni/{model}")


def openuni() -> Files:
    """Stage 1 without SANA, stage 2 with it."""
    files = {}
    for model, name in OPENUNI.items():
        state = openuni_state(model)
        stages = {"text2image23m": openuni_weights.STAGE_1, "blip3o60k": openuni_weights.TRAINED}
        for stage, prefixes in stages.items():
            files[f"openuni_{name}_hf_{stage}.pth"] = pickle_of(part(state, *prefixes))
    return files


def openuni_reca(model: str) -> Files:
    return {"model.pth": pickle_of(part(openuni_state(model), *openuni_weights.TRAINED))}


def internvl(model: str) -> Files:
    """InternVL3 under the names of the transformers that its hub's files were written with."""
    renamed = (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    )
    tensors = {}
    for name, tensor in network_of(model).network.lmm.state_dict().items():
        for pattern, older in renamed:
            name = re.sub(pattern, older, name)
        tensors[name] = tensor.to(torch.bfloat16)
    return {
        "config.json": document(
            model_type="internvl", architectures=["InternVLForConditionalGeneration"]
        ),
        "generation_config.json": document(),
        "preprocessor_config.json": document(size={"height": 448, "width": 448}),
        "processor_config.json": document(
            processor_class="InternVLProcessor", image_seq_length=256
        ),
        "chat_template.jinja": b"{% for message in messages %}{{ message }}{% endfor %}",
        "model.safetensors": safetensors(tensors),
        **vocabularies.qwen((*QWEN, *MAPS), vocabularies.INTERNVL),
    }


def sana(model: str, shards: bool) -> Files:
    prefix, stem = openuni_weights.GENERATOR, "transformer/diffusion_pytorch_model"
    tensors = {
        name.removeprefix(prefix): t for name, t in part(openuni_state(model), prefix).items()
    }
    files = {
        "model_index.json": document(_class_name="SanaPipeline"),
        "transformer/config.json": document(_class_name="SanaTransformer2DModel"),
        "scheduler/scheduler_config.json": document(_class_name="DPMSolverMultistepScheduler"),
        "vae/diffusion_pytorch_model.safetensors": b"never fetched",
        "text_encoder/model.safetensors": b"never fetched",
    }
    if shards:
        return files | sharded(tensors, stem, ".safetensors", safetensors)
    return files | {f"{stem}.safetensors": safetensors(tensors)}


def dc_ae() -> Files:
    tensors = part(openuni_state("openuni_b_512"), "vae.")
    tensors = {name.removeprefix("vae."): tensor for name, tensor in tensors.items()}
    config = document(_class_name="AutoencoderDC", scaling_factor=0.41407)
    return {"config.json": config, "diffusion_pytorch_model.safetensors": safetensors(tensors)}


# ---- Janus-Pro -----------------------------------------------------------------------------------
def janus(model: str, layout: str) -> Files:
    network = network_of(model)
    network.unread = {name: torch.zeros(shape) for name, shape in unread_shapes(network.config)}
    size = model.removeprefix("janus_pro_")
    tensors = released(NAMING[layout].state(network), f"janus/janus_pro_{size}_{layout}")
    is_official = layout == "official"
    files = {
        "config.json": document(model_type="multi_modality" if is_official else "janus"),
        "preprocessor_config.json": document(
            image_size=384, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        "processor_config.json": document(num_image_tokens=576),
        **vocabularies.deepseek((*TOKENIZER, "special_tokens_map.json")),
    }
    if not is_official:
        files |= {"chat_template.jinja": b"", "generation_config.json": document()}
    stem, suffix, write = (
        ("pytorch_model", ".bin", pickle_of)
        if is_official
        else ("model", ".safetensors", safetensors)
    )
    if size == "7b":
        return files | sharded(tensors, stem, suffix, write)
    return files | {f"{stem}{suffix}": write(tensors)}


# ---- by source -----------------------------------------------------------------------------------
WRITERS: dict[str, Callable[[], Files]] = {
    "show-o": partial(showo, "showo_vq_256"),
    "show-o-512x512": partial(showo, "showo_vq_512"),
    "show-o-w-clip-vit": partial(showo, "showo_clip_256"),
    "show-o-w-clip-vit-512x512": partial(showo, "showo_clip_512"),
    "show-o-reca": partial(showo, "showo_clip_256", reca=True),
    "show-o-512x512-reca": partial(showo, "showo_clip_512", reca=True),
    "magvitv2": magvit,
    "clip-vit-large-patch14-336": clip,
    "phi-1.5": phi,
    "harmon": harmon,
    "harmon-0.5b": partial(harmon_hub, "harmon_05b"),
    "harmon-1.5b": partial(harmon_hub, "harmon_15b"),
    "harmon-0.5b-reca": partial(harmon_reca, "harmon_05b"),
    "harmon-1.5b-reca": partial(harmon_reca, "harmon_15b"),
    "harmon-1.5b-reca-plus": partial(harmon_reca, "harmon_15b"),
    "qwen2.5-0.5b-instruct": qwen,
    "qwen2.5-1.5b-instruct": qwen,
    "bagel-7b-mot": bagel,
    "bagel-reca": bagel_reca,
    "openuni": openuni,
    "openuni-1-0.6b-reca": partial(openuni_reca, "openuni_b_512"),
    "openuni-reca": partial(openuni_reca, "openuni_l_512"),
    "internvl3-1b": partial(internvl, "openuni_b_512"),
    "internvl3-2b": partial(internvl, "openuni_l_512"),
    "sana-600m-512": partial(sana, "openuni_b_512", shards=False),
    "sana-1600m-512": partial(sana, "openuni_l_512", shards=True),
    "sana1.5-1.6b-1024": partial(sana, "openuni_l_1024", shards=True),
    "dc-ae-f32c32-sana-1.1": dc_ae,
    "janus-pro-1b": partial(janus, "janus_pro_1b", "official"),
    "janus-pro-7b": partial(janus, "janus_pro_7b", "official"),
    "janus-pro-1b-transformers": partial(janus, "janus_pro_1b", "transformers"),
    "janus-pro-7b-transformers": partial(janus, "janus_pro_7b", "transformers"),
}


def repository_of(source: str) -> Files:
    """All files of a source's repository."""
    return {**OTHERS, **WRITERS[source]()}
