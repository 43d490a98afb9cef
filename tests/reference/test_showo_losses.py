"""Show-o's losses against the official training loop: ids, masks, targets, logits, gradients."""

from __future__ import annotations

import os
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.contract import Loss
from reca.models.showo import layout as layouts
from reca.models.showo import loss as losses
from reca.models.showo.batch import Condition, Conversation, MaskNoise
from reca.models.showo.config import ShowoOptions
from reca.models.showo.layout import IGNORE, Layout
from reca.models.showo.model import ShowoModel
from tests.reference import golden_cases as golden
from tests.reference.showo_config import golden_config

CASES = golden.cases("showo", __file__)
TASKS = ("recon", "t2i", "mmu")
# Of losses and attention; tests/kernels runs this file once more with triton, in the interpreter.
IMPLEMENTATION = os.environ.get("RECA_TEST_IMPLEMENTATION", "torch")


class Case:
    """One golden case: its model, and for each task that it covers the layout and the loss."""

    def __init__(self, name: str) -> None:
        self.described, self.stored = golden.load("showo", name)
        self.config = golden_config(self.described["config"])
        self.is_clip = self.config.understanding == "clip"
        # untrimmed: the stored ids and masks hold every pad
        options = ShowoOptions(
            max_text_training=self.described["max_seq_length"],
            trim=False,
            implementation=IMPLEMENTATION,
        )
        self.model = ShowoModel(self.config, options)
        seed = self.described["seed"]
        golden.fill_(self.model.network, seed)
        golden.fill_(self.model.frozen.magvit, seed)
        if self.model.frozen.clip is not None:
            golden.fill_(self.model.frozen.clip, seed, prefix="vision_model.")
        has_system = self.is_clip and "mmu.system_ids" in self.stored
        self.system = self.stored["mmu.system_ids"][0].tolist() if has_system else []
        self.understanding = lru_cache(self._understanding)
        self.codes = lru_cache(self._codes)

    @property
    def tasks(self) -> list[str]:
        return [task for task in TASKS if f"loss_{task}" in self.described]

    # ---- what goes in ----------------------------------------------------------------------------
    def pixels(self, task: str) -> Tensor:
        return golden.images(self.stored[f"{task}.images_u8"])

    def sample_noise(self, task: str) -> MaskNoise:
        t, u = (self.stored[f"{task}.{name}"] for name in ("t", "perm_uniform"))
        return MaskNoise(t, u, self.stored.get("t2i.cond_dropout_uniform", torch.ones_like(t)))

    def recon_prompts(self) -> list[list[int]]:
        """The placeholder prompts, read back from the stored ids: from after eoi to the last eos."""
        ids, prompts = self.config.ids, []
        for row in self.stored["recon.input_ids"].tolist():
            text = row[row.index(ids.eoi) + 1 : len(row) - self.config.num_vq_tokens - 2]
            prompts.append([token for token in text if token != ids.pad])
        return prompts

    def _understanding(self, task: str) -> Tensor:
        """Frozen features of the pictures, computed here; only the stored pictures go in.

        total_clip stores no mmu picture: its features are those of mmu_clip.
        """
        frozen = self.model.frozen
        if task == "mmu" and "mmu.images_u8" not in self.stored:
            return golden.load("showo", self.mmu_twin())[1]["mmu.clip_features"]
        pixels = self.pixels(task)
        if self.is_clip:
            scaled = frozen.clip_condition(pixels) if task == "recon" else pixels
            with torch.no_grad():
                return frozen.clip(scaled)
        return frozen.codes(frozen.vq_condition(pixels) if task == "recon" else pixels)

    def mmu_twin(self) -> str:
        return self.described["case"].replace("total_", "mmu_", 1)

    # ---- what comes out --------------------------------------------------------------------------
    def condition(self, task: str) -> Condition:
        if task == "recon":
            return Condition(self.recon_prompts(), self.understanding("recon"))
        ids = self.config.ids
        texts = [[ids.bos, *text, ids.eos] for text in self.described["t2i.text_ids"]]
        return Condition(texts)

    def conversation(self) -> Conversation:
        texts, labels = (self.stored[f"mmu.text_{name}"].tolist() for name in ("ids", "labels"))
        pads = [row.count(self.config.ids.pad) for row in texts]
        cut = [len(row) - pad for row, pad in zip(texts, pads, strict=True)]
        texts = [row[:n] for row, n in zip(texts, cut, strict=True)]
        labels = [row[:n] for row, n in zip(labels, cut, strict=True)]
        room = layouts.conversation_room(self.config, self.model.options, self.system)
        return Conversation(texts, labels, room, self.system)

    def _codes(self, task: str) -> Tensor:
        return self.model.frozen.codes(self.pixels(task))

    def layout(self, task: str) -> Layout:
        if task == "mmu":
            found = losses.conversation_layout(
                self.config, self.conversation(), self.understanding("mmu")
            )
        else:
            given = (self.codes(task), self.condition(task), self.sample_noise(task))
            found = losses.generation_layout(self.config, self.model.options, *given)
        return found.prepared(self.model.options.trim, torch.device("cpu"))

    def loss(self, task: str) -> Loss:
        if task == "mmu":
            features = {"understanding": self.understanding("mmu")}
            return self.model.answer_loss(self.conversation(), features)
        target = {"target": self.codes(task)}
        return self.model.generation_loss(target, self.condition(task), self.sample_noise(task))

    def total(self) -> Tensor:
        weights = self.described["coefficients"]
        active = [task for task in self.tasks if weights[task]]
        return sum(weights[task] * self.loss(task).mean for task in active)


@lru_cache(maxsize=1)
def built(name: str) -> Case:
    return Case(name)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return built(request.param)


@pytest.fixture(scope="module")
def ours(case: Case) -> dict[str, Tensor]:
    """Everything that the case stores but gradients, computed by us, under the stored names."""
    found: dict[str, Tensor] = {}
    main: list[tuple[str, Layout]] = []
    for task in case.tasks:
        layout = case.layout(task)
        read = None if task == "t2i" else case.understanding(task)
        with torch.no_grad():
            layers = _hidden_by_layer(case.model, layout, read)
        found |= {f"{task}.{name}": t for name, t in _tokens(case, task, layout).items()}
        found |= {f"{task}.{name}": t for name, t in _outputs(case, task, layers).items()}
        found |= {f"{task}.{name}": t for name, t in _features(case, task, read).items()}
        if task != "recon":
            main.append((task, layout))
    if main:
        found["main.attn_allowed"] = torch.cat([layout.allowed() for _, layout in main])
        found["main.labels"] = torch.cat([_labels(case, *one) for one in main])
    return found


def _hidden_by_layer(
    model: ShowoModel, layout: Layout, read: Tensor | None
) -> tuple[Tensor, Tensor]:
    caught: list[Tensor] = []
    handle = model.network.showo.model.layers[0].register_forward_hook(
        lambda module, args, out: caught.append(out if isinstance(out, Tensor) else out[0])
    )
    final = losses.hidden(model.network, model.options, layout, read)
    handle.remove()
    return caught[0], final


def _labels(case: Case, task: str, layout: Layout) -> Tensor:
    """Our targets in the stored convention: unshifted; outside the loss range the stored labels
    say.
    """
    if task == "mmu":
        return layout.targets.roll(1, dims=1)
    n = case.config.num_vq_tokens
    # The official bookkeeping keeps labels on the prompt too, which no loss reads.
    prompt = layout.ids[:, : -n - 2].masked_fill(layout.roles[:, : -n - 2] == 0, IGNORE)
    return torch.cat([prompt, layout.targets[:, -n - 2 :]], dim=1)


def _tokens(case: Case, task: str, layout: Layout) -> dict[str, Tensor]:
    n = case.config.num_vq_tokens
    found = {"input_ids": layout.ids}
    if task == "recon":
        found["attn_allowed"] = layout.allowed()
        found["labels"] = layout.targets
        found["mask_positions"] = layout.targets[:, -1 - n : -1] != IGNORE
        found["target_codes"] = case.codes(task).long()
    elif task == "t2i":
        found["target_codes"] = case.codes(task).long() + case.config.ids.first_image
    return found


def _outputs(case: Case, task: str, layers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    first, final = layers
    n = case.config.num_vq_tokens
    head = case.model.network.head
    with torch.no_grad():
        if task == "mmu":
            text = case.stored["mmu.text_ids"].shape[1]
            logits = {"logits_tail": head(final[:, -1 - text : -1])}
            return logits | {"hidden_final_tail": final[:, -1 - text :]}
        if task == "t2i":
            return {"logits_image": head(final[:, -n - 2 :])}
        tail = slice(-n - 12, None)
        logits = {"logits_image": head(final[:, -1 - n : -1])}
        return logits | {"hidden_layer0_tail": first[:, tail], "hidden_final_tail": final[:, tail]}


def _features(case: Case, task: str, read: Tensor | None) -> dict[str, Tensor]:
    if read is None:
        return {}
    if case.is_clip:
        with torch.no_grad():
            return {"clip_features": read, "und_embeddings": case.model.network.project(read)}
    if task != "recon":
        return {}
    frozen = case.model.frozen
    return {"cond_codes": read.long(), "cond_pixels": frozen.vq_condition(case.pixels("recon"))}


INPUTS = (
    "images_u8",
    ".t",
    "perm_uniform",
    "cond_dropout_uniform",
    "text_ids",
    "text_labels",
    "system_ids",
)


def test_every_stored_tensor_is_reproduced(case: Case, ours: dict[str, Tensor]) -> None:
    compared = set()
    for name, stored in case.stored.items():
        if name.startswith("grad.") or name.endswith(INPUTS):
            continue
        if name.endswith("_packed"):
            mine = ours[name.removesuffix("_packed")]
            golden.assert_same(name, mine, golden.unpack_mask(stored, mine.shape[-1]))
        elif name == "recon.labels":
            n = case.config.num_vq_tokens
            inside = slice(-1 - n, -1)
            golden.assert_same(name, ours[name][:, inside], stored[:, inside])
            outside = ours[name].clone()
            outside[:, inside] = IGNORE
            assert (outside == IGNORE).all()
        else:
            golden.assert_same(name, ours[name], stored)
        compared.add(name)
    assert compared, "the case stores nothing to compare"


def test_blocks_say_what_the_dense_mask_says(case: Case) -> None:
    for task in case.tasks:
        layout = case.layout(task)
        batch, length = layout.roles.shape
        dense = layout.blocks().dense().view(batch, length, batch, length)
        assert torch.equal(torch.stack([dense[i, :, i] for i in range(batch)]), layout.allowed())
        assert int(dense.sum()) == int(layout.allowed().sum()), "rows of the batch see each other"


def test_losses_and_gradients(case: Case) -> None:
    for task in case.tasks:
        loss = case.loss(task)
        golden.assert_number(task, loss.mean.item(), case.described[f"loss_{task}"])
        if task != "mmu":
            assert loss.count == case.model.loss_count(
                case.sample_noise(task), with_image=task == "recon"
            )
        else:
            assert loss.count == case.conversation().count
    case.model.zero_grad(set_to_none=True)
    total = case.total()
    total.backward()
    golden.assert_number("loss", total.item(), case.described["loss"])
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in case.model.network.named_parameters()
    }
    for name, stored in case.stored.items():
        if name.startswith("grad."):
            golden.assert_same(name, gradients[name.removeprefix("grad.")], stored)
    norms = case.described["grad_norms_per_parameter"]
    assert set(norms) == set(gradients)
    largest = max(norms.values())
    for name, norm in norms.items():
        assert abs(gradients[name].norm().item() - norm) <= 1e-4 * norm + 1e-6 * largest, name
    whole = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    golden.assert_number("grad_norm", whole, case.described["grad_norm"])


def test_trimming_changes_no_loss(case: Case) -> None:
    model = case.model
    trimming = ShowoOptions(max_text_training=model.options.max_text_training)
    for task in case.tasks:
        with torch.no_grad():
            whole = case.loss(task)
            length = case.layout(task).ids.shape[1]
            model.options, kept = trimming, model.options
            try:
                trimmed = case.loss(task)
                assert case.layout(task).ids.shape[1] <= length
            finally:
                model.options = kept
        assert trimmed.count == whole.count
        assert abs(trimmed.mean - whole.mean) <= 1e-6 * abs(whole.mean) + 1e-6, task


RECONSTRUCTING = [name for name in CASES if "loss_recon" in golden.load("showo", name)[0]]


@pytest.mark.parametrize("name", RECONSTRUCTING)
def test_restricting_the_vocabulary_is_the_sliced_cross_entropy(name: str) -> None:
    case = built(name)
    model = case.model
    kept = model.options
    model.options = ShowoOptions(
        max_text_training=kept.max_text_training, loss_vocab="image", t2i_boundary_tokens=False
    )
    try:
        restricted = case.loss("recon")
    finally:
        model.options = kept
    n, codes = case.config.num_vq_tokens, case.config.ids.codes
    wanted = case.stored["recon.labels"][:, -1 - n : -1]
    logits = case.stored["recon.logits_image"][..., codes]
    rows = wanted != IGNORE
    expected = F.cross_entropy(logits[rows], wanted[rows] - codes.start)
    golden.assert_number("image vocabulary", restricted.mean.item(), expected.item())
