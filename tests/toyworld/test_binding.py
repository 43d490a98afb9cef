"""The term that gives words and pictures the same states: what it compares and trains, which families have it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reca.align.state import freeze
from reca.models.contract import Loss
from reca.models.registry import load_model
from reca.toyworld.pretrain import binding, run
from reca.toyworld.scenes import PLACES, SHAPE_NAMES, draw_scene

WEIGHTS = Path(__file__).parents[2] / "weights"
READERS = {  # of the weights that the term trains
    "bagel": "network.language_model.model.layers.3.self_attn.v_proj.weight",
    "janus": "network.language_model.model.layers.3.self_attn.v_proj.weight",
    "harmon": "network.llm.model.layers.3.self_attn.v_proj.weight",
    "openuni": "network.lmm.model.language_model.layers.3.self_attn.v_proj.weight",
    "showo": "network.showo.model.layers.3.self_attn.v_proj.weight",
}


def test_the_noun_of_a_told_object_is_found_by_its_place() -> None:
    for index in range(60):
        generator = np.random.default_rng(index)
        scene = draw_scene(generator)
        text, nouns = binding.told(scene, binding.FORMS[index % 3], generator)
        found = {place: text.split()[at - 1 : at + 1] for place, at in nouns}
        assert found == {thing.place: [thing.colour, thing.shape] for thing in scene.things}


@pytest.mark.parametrize("family", READERS)
def test_the_term_trains_the_reader_and_is_the_same_again(family: str) -> None:
    model, name = load_model(WEIGHTS / f"{family}_tiny"), READERS[family]
    freeze(model, [name])
    values = run.pretraining_of(family).attention_values
    first, second = (
        binding.difference(values, model, np.random.default_rng(3), 4) for _ in range(2)
    )
    assert first == second > 0
    first.backward()
    gradient = dict(model.named_parameters())[name].grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_a_constant_of_the_kind_of_token_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = torch.Generator().manual_seed(0)

    def values(_: Any, images: Any, texts: list[str]) -> Any:
        told = torch.zeros(len(texts), 40, 8)
        seen = torch.full((len(texts), 4, 8), 3.0)  # the constant
        for row, text in enumerate(texts):
            words = text.split()
            for at in (n for n, word in enumerate(words) if word in SHAPE_NAMES):
                told[row, at] = torch.randn(8, generator=objects)
                before = PLACES.index(" ".join(words[at - 4 : at - 2]))
                seen[row, before] += told[row, at]
        return [seen] * 2, [told] * 2, 0

    monkeypatch.setattr(binding, "FORMS", ("place first",))
    model: Any = None
    assert binding.difference(values, model, np.random.default_rng(0)) < 1e-10


def test_smaller_values_are_no_smaller_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = torch.ones((), requires_grad=True)

    def values(_: Any, images: Any, texts: list[str]) -> Any:
        fixed = torch.Generator().manual_seed(0)
        seen, told = (torch.randn(len(texts), n, 8, generator=fixed) * scale for n in (4, 40))
        return [seen] * 2, [told] * 2, 0

    model: Any = None
    term = binding.difference(values, model, np.random.default_rng(0))
    (gradient,) = torch.autograd.grad(term, scale)
    assert 0.8 < term < 1.2 and abs(gradient) < 1e-6


def test_one_shared_direction_is_not_enough_if_objects_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binding, "FORMS", ("place first",))
    model: Any = None

    def values(_: Any, images: Any, texts: list[str]) -> Any:
        """The place in one large direction, nothing in common in the others."""
        fixed = torch.Generator().manual_seed(0)
        told, seen = torch.zeros(len(texts), 40, 9), torch.zeros(len(texts), 4, 9)
        for row, text in enumerate(texts):
            words = text.split()
            for at in (n for n, word in enumerate(words) if word in SHAPE_NAMES):
                place = PLACES.index(" ".join(words[at - 4 : at - 2]))
                for state in (told[row, at], seen[row, place]):
                    state[1:] = torch.randn(8, generator=fixed)
                    state[0] = 100.0 * place
        return [seen] * 2, [told] * 2, 0

    plain, told_apart = (
        binding.difference(values, model, np.random.default_rng(0), contrast=contrast)
        for contrast in (0.0, 1.0)
    )
    assert plain < 1e-3 and told_apart > 1.0
    own = binding._told_apart(*[torch.eye(4)] * 2, torch.eye(4, dtype=torch.bool))
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert own < 1e-3 and binding._told_apart(alike, alike, everything) == 0


def test_the_term_is_added_to_answers_about_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "difference", lambda *_, **__: torch.tensor(2.0))
    model: Any = SimpleNamespace(answer_loss=lambda *_: Loss(torch.tensor(5.0), 10))
    pictures = {"understanding": torch.ones(1)}
    for ids in (torch.ones(2, 3, dtype=torch.long), [[1, 2], [3]]):
        conversation = SimpleNamespace(ids=ids)
        with binding.bound(run.pretraining_of("bagel").attention_values, model, 0.5):
            assert model.answer_loss(conversation, None).mean == 0.5
            assert model.answer_loss(conversation, pictures).mean == 1.5
        assert model.answer_loss(conversation, pictures).mean == 0.5  # the next phase is without


def test_a_place_is_the_mean_of_its_tokens() -> None:
    rows = torch.arange(16.0).view(1, 16, 1)  # 4 x 4 tokens, row by row
    means = [
        (0 + 1 + 4 + 5) / 4,
        (2 + 3 + 6 + 7) / 4,
        (8 + 9 + 12 + 13) / 4,
        (10 + 11 + 14 + 15) / 4,
    ]
    assert binding.by_place(rows).flatten().tolist() == means
    four = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(binding.by_place(four), four)


@pytest.mark.parametrize("tokens", [9, 12])
def test_binding_of_images_without_whole_places_is_an_error(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"images have {tokens} tokens, which no place has whole"):
        binding.by_place(torch.zeros(1, tokens, 8))


def test_binding_of_an_unknown_phase_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"names c_joins, but the phases are b_ask, c_joint"):
        run.check_binding({"c_joins": 0.5}, ["c_joint", "b_ask"])
