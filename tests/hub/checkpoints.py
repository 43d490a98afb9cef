"""Tiny checkpoints in the released layouts, by source of `config/sources.yaml`.

File names, tensor names, dtypes, pickles and shards are those of the releases; names and dtypes are compared with the
manifests of the releases, layer numbers left out. What a released configuration says of sizes is left as it is: we do
not read it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from reca.models.janus.config import Layout
from reca.models.janus.weights import NAMING, unread_shapes
from reca.models.openuni import weights as openuni_weights
from tests.hub import vocabularies
from tests.hub.networks import Networks, released
from tests.hub.vocabularies import Files

SHOWO = "showo_clip_256"  # whose companions are those of every Show-o
OTHERS = {"README.md": b"---\nlicense: other\n---\n", "modeling_remote.py": b"raise SystemExit\n"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
QWEN = (*TOKENIZER, "vocab.json", "merges.txt")
MAPS = ("added_tokens.json", "special_tokens_map.json")


# ---- files ---------------------------------------------------------------------------------------
def part(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


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
def showo(networks: Networks, model: str, reca: str | None = None) -> Files:
    is_clip, config = "clip" in model, networks.of(model, reca).config
    where = f"showo/show-o{'-w-clip-vit' if is_clip else ''}"
    tensors = released(networks.state(model, trained=reca), where)
    described = document(
        _class_name="Showo", codebook_size=config.codebook_size, llm_model_path="microsoft/phi-1_5",
        llm_vocab_size=config.llm_vocab_size, mask_token_id=config.ids.mask,
        num_vq_tokens=config.num_vq_tokens, vocab_size=config.vocab_size, w_clip_vit=is_clip,
    )  # fmt: skip
    if reca:
        return {"config.json": described, "pytorch_model.bin": pickle_of(tensors)}
    return {"config.json": described, "pytorch_model.safetensors": safetensors(tensors)}


def magvit(networks: Networks) -> Files:
    tensors = released(networks.state(SHOWO, "image_tokenizer"), "showo/magvitv2")
    config = document(_class_name="MAGVITv2")
    return {"config.json": config, "pytorch_model.safetensors": safetensors(tensors)}


def clip(networks: Networks) -> Files:
    """CLIP's vision tower with the text model, the projections and the position ids beside it."""
    name = "showo/clip-vit-large-patch14-336-vision"
    tensors = released(networks.state(SHOWO, "vision"), name)
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
        **vocabularies.clip((*QWEN, "special_tokens_map.json"), networks.scale),
    }


def phi(networks: Networks) -> Files:
    config = document(
        model_type="phi", architectures=["PhiForCausalLM"], qk_layernorm=False, vocab_size=51200
    )
    return {"config.json": config, **vocabularies.phi((*QWEN, *MAPS), networks.scale)}


# ---- Harmon --------------------------------------------------------------------------------------
def harmon_state(
    networks: Networks, model: str, trained: str | None = None, inside: bool = False
) -> dict[str, Tensor]:
    """The network as released; with the autoencoder `inside`, as on its own hub."""
    vae = {f"vae.{name}": t for name, t in networks.state(model, "image_tokenizer").items()}
    size = "0.5b" if "05b" in model else "1.5b"
    tensors = released(networks.state(model, trained=trained) | vae, f"harmon/harmon_{size}")
    return tensors if inside else {n: t for n, t in tensors.items() if not n.startswith("vae.")}


def harmon(networks: Networks) -> Files:
    vae = detached(networks.state("harmon_15b", "image_tokenizer"))
    large = detached(harmon_state(networks, "harmon_15b"))
    return {
        "kl16.ckpt": pickled({"model": vae}),
        "harmon_0.5b.pth": pickle_of(harmon_state(networks, "harmon_05b")),
        "harmon_1.5b.pth": pickled({"state_dict": large}),
        "harmon_1.5b-o.pth": pickle_of(harmon_state(networks, "harmon_15b", "1.5b-o")),
    }


def harmon_hub(networks: Networks, model: str) -> Files:
    tensors = harmon_state(networks, model, inside=True)
    files = {"config.json": document(model_type="harmon", llm={}, mar={"type": "mar_base"})}
    if model == "harmon_05b":
        return files | {"model.safetensors": safetensors(tensors)}
    return files | sharded(tensors, "model", ".safetensors", safetensors)


def harmon_reca(networks: Networks, model: str, name: str = "reca") -> Files:
    return {"model.pth": pickle_of(harmon_state(networks, model, name))}


def qwen(networks: Networks) -> Files:
    config = document(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=151936)
    return {"config.json": config, "generation_config.json": document(eos_token_id=[151645, 151643]),
            **vocabularies.qwen(QWEN, scale=networks.scale)}  # fmt: skip


# ---- BAGEL ---------------------------------------------------------------------------------------
def bagel_state(networks: Networks, reca: str | None = None) -> dict[str, Tensor]:
    state = networks.state("bagel_7b", trained=reca)
    return released(state, "bagel/BAGEL-RecA_model_bf16")


def bagel(networks: Networks) -> Files:
    """Without a config.json that says what the tokenizer is."""
    vae = released(networks.state("bagel_7b", "vae"), "bagel/BAGEL-7B-MoT_ae")
    return {
        "llm_config.json": document(model_type="qwen2", vocab_size=152064),
        "vit_config.json": document(
            model_type="siglip_vision_model", image_size=980, patch_size=14
        ),
        "ema.safetensors": safetensors(bagel_state(networks)),
        "ae.safetensors": safetensors(vae),
        **vocabularies.qwen(QWEN, scale=networks.scale),
    }


def bagel_reca(networks: Networks) -> Files:
    return {"model_bf16.safetensors": safetensors(bagel_state(networks, "reca"))}


# ---- OpenUni -------------------------------------------------------------------------------------
OPENUNI = {"openuni_b_512": "b_internvl3_1b_sana_0_6b_512", "openuni_l_512": "l_internvl3_2b_sana_1_6b_512",
           "openuni_l_1024": "l_internvl3_2b_sana_1_6b_1024"}  # fmt: skip
STAGE_2 = "blip3o60k"


def openuni_state(networks: Networks, model: str, trained: str | None = None) -> dict[str, Tensor]:
    """The whole network and the autoencoder, in the released dtypes."""
    vae = networks.state(model, "image_tokenizer")
    state = networks.state(model, trained=trained) | networks.state(model, "vision")
    state |= {f"vae.{name}": tensor for name, tensor in vae.items()}
    return released(state, f"openuni/{model}")


def openuni(networks: Networks) -> Files:
    """Stage 1 without SANA, stage 2 with it."""
    files = {}
    for model, name in OPENUNI.items():
        first = part(openuni_state(networks, model), *openuni_weights.STAGE_1)
        second = part(openuni_state(networks, model, STAGE_2), *openuni_weights.TRAINED)
        files[f"openuni_{name}_hf_text2image23m.pth"] = pickle_of(first)
        files[f"openuni_{name}_hf_{STAGE_2}.pth"] = pickle_of(second)
    return files


def openuni_reca(networks: Networks, model: str) -> Files:
    tensors = openuni_state(networks, model, "reca")
    return {"model.pth": pickle_of(part(tensors, *openuni_weights.TRAINED))}


def internvl(networks: Networks, model: str) -> Files:
    """InternVL3 under the names of the transformers that its hub's files were written with."""
    renamed = (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    )
    tensors = {}
    for name, tensor in networks.of(model).network.lmm.state_dict().items():
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
        **vocabularies.qwen((*QWEN, *MAPS), vocabularies.INTERNVL, networks.scale),
    }


def sana(networks: Networks, model: str, shards: bool) -> Files:
    prefix, stem = openuni_weights.GENERATOR, "transformer/diffusion_pytorch_model"
    state = part(openuni_state(networks, model), prefix)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
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


def dc_ae(networks: Networks) -> Files:
    tensors = part(openuni_state(networks, "openuni_b_512"), "vae.")
    tensors = {name.removeprefix("vae."): tensor for name, tensor in tensors.items()}
    config = document(_class_name="AutoencoderDC", scaling_factor=0.41407)
    return {"config.json": config, "diffusion_pytorch_model.safetensors": safetensors(tensors)}


# ---- Janus-Pro -----------------------------------------------------------------------------------
def janus(networks: Networks, model: str, layout: Layout) -> Files:
    network = networks.of(model)
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
        **vocabularies.deepseek((*TOKENIZER, "special_tokens_map.json"), networks.scale),
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
WRITERS: dict[str, Callable[[Networks], Files]] = {
    "show-o": partial(showo, model="showo_vq_256"),
    "show-o-512x512": partial(showo, model="showo_vq_512"),
    "show-o-w-clip-vit": partial(showo, model="showo_clip_256"),
    "show-o-w-clip-vit-512x512": partial(showo, model="showo_clip_512"),
    "show-o-reca": partial(showo, model="showo_clip_256", reca="reca"),
    "show-o-512x512-reca": partial(showo, model="showo_clip_512", reca="reca"),
    "magvitv2": magvit,
    "clip-vit-large-patch14-336": clip,
    "phi-1.5": phi,
    "harmon": harmon,
    "harmon-0.5b": partial(harmon_hub, model="harmon_05b"),
    "harmon-1.5b": partial(harmon_hub, model="harmon_15b"),
    "harmon-0.5b-reca": partial(harmon_reca, model="harmon_05b"),
    "harmon-1.5b-reca": partial(harmon_reca, model="harmon_15b"),
    "harmon-1.5b-reca-plus": partial(harmon_reca, model="harmon_15b", name="reca-plus"),
    "qwen2.5-0.5b-instruct": qwen,
    "qwen2.5-1.5b-instruct": qwen,
    "bagel-7b-mot": bagel,
    "bagel-reca": bagel_reca,
    "openuni": openuni,
    "openuni-1-0.6b-reca": partial(openuni_reca, model="openuni_b_512"),
    "openuni-reca": partial(openuni_reca, model="openuni_l_512"),
    "internvl3-1b": partial(internvl, model="openuni_b_512"),
    "internvl3-2b": partial(internvl, model="openuni_l_512"),
    "sana-600m-512": partial(sana, model="openuni_b_512", shards=False),
    "sana-1600m-512": partial(sana, model="openuni_l_512", shards=True),
    "sana1.5-1.6b-1024": partial(sana, model="openuni_l_1024", shards=True),
    "dc-ae-f32c32-sana-1.1": dc_ae,
    "janus-pro-1b": partial(janus, model="janus_pro_1b", layout="official"),
    "janus-pro-7b": partial(janus, model="janus_pro_7b", layout="official"),
    "janus-pro-1b-transformers": partial(janus, model="janus_pro_1b", layout="transformers"),
    "janus-pro-7b-transformers": partial(janus, model="janus_pro_7b", layout="transformers"),
}


def repository_of(source: str, networks: Networks) -> Files:
    """All files of a source's repository."""
    return {**OTHERS, **WRITERS[source](networks)}
