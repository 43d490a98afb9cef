from __future__ import annotations

import pytest
import torch

from reca.models.showo import layout as layouts
from reca.models.showo.config import SpecialIds
from reca.models.showo.layout import CONDITION, IGNORE, IMAGE, PAD, TEXT, Layout

IDS = SpecialIds.of(llm_vocab_size=60, codebook_size=64, endoftext=59)
IMAGE_IDS = torch.tensor([[70, 134, 72, 134]] * 2)
TARGETS = torch.tensor([[IGNORE, 71, IGNORE, 73]] * 2)
SHORT, LONG = [59, 5, 59], [59, 5, 6, 7, 59]


def every_layout() -> dict[str, Layout]:
    texts = [SHORT, LONG]
    codes = torch.tensor([[80, 81], [82, 83]])
    clip = layouts.clip_prefix(2, 3, [1, 2], IDS)
    vq = layouts.vq_prefix(codes, IDS)
    labels = [[IGNORE, 5, 59], [IGNORE, IGNORE, 6, 7, 59]]
    return {
        "t2i": layouts.text_to_image(texts, IMAGE_IDS, TARGETS, IDS, max_text=8),
        "reca_clip": layouts.reconstruction_clip(texts, 3, IMAGE_IDS, TARGETS, IDS, 12),
        "reca_vq": layouts.reconstruction_vq(texts, codes, IMAGE_IDS, TARGETS, IDS, 9),
        "mmu_clip": layouts.conversation(clip, texts, labels, 9, IDS),
        "mmu_vq": layouts.conversation(vq, texts, labels, 9, IDS),
        "text": layouts.conversation(layouts.text_prefix(2, IDS), texts, labels, 9, IDS),
        "question": layouts.question(clip, texts, IDS),
    }


def rule(layout: Layout, row: int, q: int, k: int) -> bool:
    """The mask in words, one pair at a time."""
    asks, seen = int(layout.roles[row, q]), int(layout.roles[row, k])
    if seen == PAD and (asks != PAD or layout.pads_are_hidden):
        return False
    if k <= q:
        return True
    if seen == CONDITION:
        return layout.condition_is_open or asks == CONDITION
    return seen == IMAGE and asks == IMAGE


@pytest.mark.parametrize("name", every_layout())
def test_mask_follows_the_rule(name: str) -> None:
    layout = every_layout()[name]
    batch, length = layout.ids.shape
    expected = [
        [[rule(layout, b, q, k) for k in range(length)] for q in range(length)]
        for b in range(batch)
    ]
    assert torch.equal(layout.allowed(), torch.tensor(expected))


@pytest.mark.parametrize("name", every_layout())
def test_trimming_only_drops_pads_of_all_rows(name: str) -> None:
    layout = every_layout()[name]
    trimmed = layout.trimmed()
    keep = (layout.roles != PAD).any(0)
    assert torch.equal(trimmed.ids, layout.ids[:, keep])
    assert torch.equal(trimmed.positions, layout.positions[:, keep])
    assert torch.equal(trimmed.allowed(), layout.allowed()[:, keep][:, :, keep])
    assert trimmed.count == layout.count > 0 or name == "question"
    assert (trimmed.roles != PAD).any(0).all()


def test_conversation_labels_are_predicted_one_token_earlier() -> None:
    layout = every_layout()["mmu_clip"]
    row = layout.ids[0].tolist()
    for at, wanted in enumerate(layout.targets[0].tolist()):
        assert wanted in (IGNORE, row[min(at + 1, len(row) - 1)])
    assert layout.count == 2 + 3


def test_too_long_texts() -> None:
    long = [59, *range(20), 59]
    layout = layouts.text_to_image([long], IMAGE_IDS[:1], TARGETS[:1], IDS, max_text=8)
    assert layout.ids[0, :9].tolist() == [IDS.t2i, 59, *range(6), 59]
    with pytest.raises(ValueError, match=r"22 tokens .* only 9 fit"):
        layouts.reconstruction_clip([long], 3, IMAGE_IDS[:1], TARGETS[:1], IDS, 12)
    with pytest.raises(ValueError, match="only 9 fit"):
        layouts.reconstruction_vq([long], IMAGE_IDS[:1], IMAGE_IDS[:1], TARGETS[:1], IDS, 9)


def test_questions_read_as_they_would_alone() -> None:
    prefix = layouts.clip_prefix(1, 3, [], IDS)
    alone = layouts.question(prefix, [SHORT], IDS)
    beside = layouts.question(layouts.clip_prefix(2, 3, [], IDS), [SHORT, LONG], IDS)
    real = beside.roles[0] != PAD
    assert beside.ids[0, real].tolist() == alone.ids[0].tolist()
    assert beside.positions[0, real].tolist() == alone.positions[0].tolist()
    assert torch.equal(beside.allowed()[0][real][:, real], alone.allowed()[0])


def test_boundary_targets_are_optional() -> None:
    texts = [SHORT, LONG]
    with_ends = layouts.text_to_image(texts, IMAGE_IDS, TARGETS, IDS, 8)
    without = layouts.text_to_image(texts, IMAGE_IDS, TARGETS, IDS, 8, boundary_targets=False)
    assert with_ends.count == without.count + 4
    assert (with_ends.roles[:, -6:] == IMAGE).all() and (with_ends.roles[1, 3:9] == TEXT).all()


@pytest.mark.parametrize("build", [layouts.reconstruction_vq, layouts.text_to_image])
def test_layouts_need_no_codes_on_the_cpu(build) -> None:
    """Codes on the meta device have no values to bring back; put in later, they give the same layout."""
    read = torch.tensor([[80, 81], [82, 83]])
    codes, masked = torch.tensor([[70, 71, 72, 73]] * 2), torch.tensor([[False, True] * 2] * 2)

    def made(read: torch.Tensor, codes: torch.Tensor) -> Layout:
        image, targets = codes.masked_fill(masked, 134), codes.masked_fill(~masked, IGNORE)
        given = (read,) if build is layouts.reconstruction_vq else ()
        return build([SHORT, LONG], *given, image, targets, IDS, 9).trimmed()

    nowhere = torch.empty(2, 4, dtype=torch.long, device="meta")
    stand_ins = layouts.stand_ins(nowhere[:, :2], 4), layouts.stand_ins(nowhere)
    found, expected = made(*stand_ins), made(read, codes)
    assert found.count == expected.count
    found = found.filled(torch.cat([codes, read], dim=1))
    for name in ("ids", "roles", "targets", "positions"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
