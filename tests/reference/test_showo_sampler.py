"""Show-o's inference against the official code: the guided sampler step by step, and greedy
answers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reca.models.showo import layout as layouts
from reca.models.showo import sampler
from reca.models.showo.batch import Condition
from reca.models.showo.config import ShowoOptions
from reca.models.showo.model import ShowoModel
from tests.reference import golden_cases as golden
from tests.reference.showo_config import golden_config


def model_of(described: dict, **options: int) -> ShowoModel:
    model = ShowoModel(golden_config(described["config"], **options))
    golden.fill_(model.network, described["seed"])
    golden.fill_(model.frozen.magvit, described["seed"])
    if model.frozen.clip is not None:
        golden.fill_(model.frozen.clip, described["seed"], prefix="vision_model.")
    return model


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("name", golden.cases("showo", __file__, "sample_t2i*"))
@torch.no_grad()
def test_guided_sampler(name: str, trim: bool) -> None:
    described, stored = golden.load("showo", name)
    model = model_of(described, max_text=described["max_seq_length"])
    options = ShowoOptions(trim=trim)
    ids, slots = model.config.ids, model.config.num_vq_tokens
    texts = [[ids.bos, *prompt, ids.eos] for prompt in described["prompts"]]
    both = [Condition(texts), model.unconditional(len(texts))]
    fed: list[tuple[Tensor, Tensor]] = []
    network = sampler.code_logits(model.network, options, *both)

    def logits(codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor | None]:
        fed.append(network(codes, masked))
        seen.append(torch.where(masked, ids.mask, codes + ids.first_image))
        return fed[-1]

    def noise(step: int, masked: Tensor) -> tuple[Tensor, Tensor]:
        return stored["step.exp_noise"][step], stored["step.gumbel_uniform"][step]

    seen: list[Tensor] = []
    chosen = sampler.SamplerOptions(described["guidance_scale"], described["timesteps"])
    masked = torch.ones(len(texts), slots, dtype=torch.bool)
    steps = list(sampler.sample(logits, masked, chosen, noise))
    image = torch.stack(seen)
    prefix = layouts_of(model, both)
    ours = {
        "input_ids": prefix[0].ids,
        "uncond_input_ids": prefix[1].ids,
        "attn_allowed_packed": torch.cat([layout.allowed() for layout in prefix]),
        "step.model_ids": fed_ids([layout.ids for layout in prefix], image),
        "step.cond_logits": torch.stack([conditional for conditional, _ in fed]),
        "step.uncond_logits": torch.stack([unconditional for _, unconditional in fed]),
        "step.probs": torch.stack([step.probabilities for step in steps]),
        "step.sampled": torch.stack(
            [
                sampler.draw_codes(step.probabilities, stored["step.exp_noise"][i])
                for i, step in enumerate(steps)
            ]
        ),
        "step.temperature": torch.tensor([step.temperature for step in steps]).double(),
        "step.masking": torch.stack([step.masked for step in steps]),
        "output_codes": steps[-1].codes,
    }
    length = prefix[0].ids.shape[1]
    unpacked = golden.unpack_mask(stored["attn_allowed_packed"], length)
    expected = {**stored, "attn_allowed_packed": unpacked}
    inputs = ("step.exp_noise", "step.gumbel_uniform", "step.mask_len")
    golden.assert_reproduces(expected, ours, inputs)
    remasked = stored["step.mask_len"].squeeze(-1)
    assert torch.equal(torch.stack([step.masked.sum(1) for step in steps]).float(), remasked)


def layouts_of(model: ShowoModel, both: list[Condition]) -> list:
    slots, ids = model.config.num_vq_tokens, model.config.ids
    image = torch.full((len(both[0]), slots), ids.mask)
    targets = torch.full_like(image, -100)
    given = (image, targets, model.config.max_text)
    return [layouts.generation(model.config, model.options, one, *given) for one in both]


def fed_ids(start: list[Tensor], image: Tensor) -> Tensor:
    """Full sequences (T, 2B, L) from the two prefixes and the image part of each step."""
    rows = torch.cat(start).expand(len(image), -1, -1).clone()
    n = image.shape[-1]
    rows[:, :, -1 - n : -1] = image.repeat(1, 2, 1)
    return rows


@pytest.mark.parametrize("name", golden.cases("showo", __file__, "generate_mmu*"))
@torch.no_grad()
def test_greedy_answers(name: str) -> None:
    described, stored = golden.load("showo", name)
    model = model_of(described)
    ids = model.config.ids
    pixels = golden.images(stored["images_u8"])
    prompt = stored["input_ids"].tolist()
    system: list[int] = []
    if model.config.understanding == "clip":
        read = model.frozen.clip(pixels)
        system = prompt[0][1 : prompt[0].index(ids.soi)]
        found = {"clip_features": read, "und_embeddings": model.network.project(read)}
    else:
        read = model.frozen.codes(pixels)
        found = {"codes": read.long()}
    texts = [row[row.index(ids.eoi) + 1 :] for row in prompt]
    layout = sampler.question_layout(model.config, texts, read, system)
    layout = layout.prepared(True, model.network.device)
    embeddings = model.network.inputs(layout.ids, read)
    steps = len(stored["output_ids"])
    told = list(sampler.greedy(model.network, layout, embeddings, steps))
    length = layout.ids.shape[1]
    assert length == described["L"]
    found |= {
        "input_ids": layout.ids[layout.ids >= 0].view(1, -1),
        "attn_allowed_packed": layout.allowed(),
        "step_logits": torch.cat([logits for logits, _ in told]),
        "output_ids": torch.cat([token for _, token in told]),
    }
    unpacked = golden.unpack_mask(stored["attn_allowed_packed"], length)
    golden.assert_reproduces(
        {**stored, "attn_allowed_packed": unpacked}, found, inputs=("images_u8",)
    )
