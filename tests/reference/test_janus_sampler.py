"""Janus-Pro's guided sampler and VQ model against the official modules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reca.models.janus import sampler
from reca.models.janus.batch import Condition
from tests.reference import golden_cases as golden
from tests.reference.janus_model import VALUES, model_of, rows_of

SAMPLERS = golden.cases("janus", __file__, "sampler_*")
TOKENIZERS = golden.cases("janus", __file__, "vq_*")


@pytest.mark.parametrize("name", SAMPLERS)
@torch.no_grad()
def test_guided_sampling(name: str) -> None:
    """Stored rows alternate (conditional, unconditional); ours are stacked (janus.md d)."""
    described, stored = golden.load("janus", name)
    model, ids = model_of(described), described["config"]
    prompt = stored["prompt_ids"]
    mask = stored.get("attention_mask", torch.ones_like(prompt))
    rows = rows_of(described, prompt, mask, model.config.image_length)
    condition = Condition(rows[::2], ids["pad"])
    empty = Condition([[ids["bos"], ids["boi"]]] * len(condition), ids["pad"])
    prompts, embeddings = sampler.prepare(model.network, condition, empty)
    ours = [ids[real].tolist() for ids, real in zip(prompts.ids, prompts.real, strict=True)]
    assert ours == [*rows[::2], *rows[1::2]]
    steps = list(
        sampler.sample(
            model.network,
            prompts,
            embeddings,
            described["cfg_weight"],
            lambda step, guided: guided.argmax(dim=-1),
        )
    )
    codes = torch.stack([step.codes for step in steps], dim=1)
    guided = torch.stack([step.guided for step in steps])
    logits = torch.stack([step.logits for step in steps])
    found = {
        "codes": codes,
        "guided_logits": guided,
        "probs_temperature1": guided.softmax(dim=-1),
        "logits": torch.stack(logits.chunk(2, dim=1), dim=2).flatten(1, 2),
        "decoded_pixels": model.frozen.vqmodel.decode(codes),
    }
    golden.assert_reproduces(stored, found, ("prompt_ids", "attention_mask"), VALUES)


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_codes_and_images(name: str) -> None:
    """With the normalisation that transformers' `encode` leaves out, and needs here (janus.md g1)."""
    described, stored = golden.load("janus", name)
    frozen = model_of(described).frozen
    pixels, codes = stored["pixel_values"], frozen.codes(stored["pixel_values"])
    book = F.normalize(frozen.vqmodel.quantize.embedding.weight, dim=-1)
    found = {
        "pre_quant": frozen.latents(pixels),
        "codes": codes,
        "quantized": book[codes].transpose(1, 2).unflatten(2, (frozen.config.grid, -1)),
        "decoded": frozen.vqmodel.decode(codes),
    }
    golden.assert_reproduces(stored, found, ("pixel_values",), VALUES)
    plain = frozen.vqmodel.encode(pixels).image_tokens.view_as(codes)
    lengths = frozen.vqmodel.quantize.embedding.weight.norm(dim=-1)
    assert torch.equal(plain, codes) == torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)
