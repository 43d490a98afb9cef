"""One optimiser step is what the formula says, however it is split; guards; the log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reca.align import checkpoint
from reca.align.batches import plan_step, with_rows
from reca.align.distributed import ProcessGroup
from reca.align.log import truncate
from reca.align.objective import task_loss
from reca.align.schedule import learning_rate
from reca.align.state import build_state, by_rank, freeze, load_trained
from reca.align.trainer import CHECKPOINTS, NonFiniteLoss, align
from reca.config.recipe import TaskRecipe
from tests.align.runs import SEED, recipe, run
from tests.align.toy import Toy, toy_data


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The numbers below are compared with fp32 ones in main memory; a GPU would train in bf16, in its own memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def plain_data():
    """One prompt and one conversation per image, so that only the loss masks could differ between splits."""
    data = toy_data()
    turns = [conversations[:1] for conversations in data.read_conversations]
    return replace(data, prompts=["Describe it."], read_conversations=turns)


def split(batch: int, accumulation: int, **changes):
    tasks = {"reca": TaskRecipe(1.0, batch), "i2t": TaskRecipe(0.5, batch)}
    return recipe(tasks=tasks, accumulation=accumulation, turns_per_sample=None, steps=5, **changes)


def test_a_step_is_adamw_on_the_token_mean(tmp_path):
    """The loop against one written out by hand with torch's own clipping and averaging."""
    chosen, data = split(4, 2), plain_data()
    model, by_hand = Toy(), Toy()
    align(model, data, chosen, seed=SEED, work_dir=tmp_path)

    names = by_hand.trainable_parameters()
    groups, weights = by_hand.decay_groups(), dict(by_hand.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [weights[name] for name in groups.decay], "weight_decay": 0.01},
            {"params": [weights[name] for name in groups.no_decay], "weight_decay": 0.0},
        ],
        lr=1.0,
    )
    average = AveragedModel(by_hand, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(by_hand)
    for step in range(chosen.steps):
        plan = plan_step(by_hand, data, chosen, seed=SEED, step=step, processes=ProcessGroup())
        loss = 0.0
        for task, weight in (("reca", 1.0), ("i2t", 0.5)):
            batches = [batch for batch in plan if batch.task == task]
            losses = [task_loss(by_hand, with_rows(b, data, torch.device("cpu"))) for b in batches]
            loss += weight * sum(each.total for each in losses) / sum(each.count for each in losses)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weights[name] for name in names], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(chosen, step)
        optimizer.step()
        average.update_parameters(by_hand)

    saved = checkpoint.latest(tmp_path / CHECKPOINTS).path
    for name, weight in checkpoint.read_tensors(saved, "trainable"):
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)
    expected = dict(average.module.named_parameters())
    for name, weight in checkpoint.read_tensors(saved, "ema"):
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
        assert torch.equal(weight, model.get_parameter(name))  # the model holds the average


def test_adamw_over_lists_has_the_bits_of_one_tensor_after_the_other():
    """So that recorded runs keep their numbers."""
    chosen, models = split(4, 1, lr=3e-3), (Toy(), Toy())
    ours = build_state(models[0], models[0].trainable_parameters(), chosen).optimizer
    assert ours.defaults["foreach"]
    groups, weights = models[1].decay_groups(), dict(models[1].named_parameters())
    plain = torch.optim.AdamW(
        [
            {"params": [weights[name] for name in names], "weight_decay": decay}
            for names, decay in (
                (groups.decay, chosen.weight_decay),
                (groups.no_decay, 0.0),
            )
        ],
        lr=chosen.lr,
        betas=(chosen.betas[0], chosen.betas[1]),
        eps=chosen.eps,
        foreach=False,
    )
    draw = torch.Generator().manual_seed(SEED)
    for step in range(20):
        for name in models[0].trainable_parameters():
            pair = [model.get_parameter(name) for model in models]
            pair[0].grad = torch.randn(pair[0].shape, generator=draw) * 10.0 ** -(step % 7)
            pair[1].grad = pair[0].grad.clone()
        ours.step()
        plain.step()
    for name, weight in models[0].named_parameters():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("batch, accumulation", [(4, 2), (2, 4), (1, 8)])
def test_accumulation_equals_one_batch(tmp_path, batch, accumulation):
    whole, parts = Toy(hide_all=True).double(), Toy(hide_all=True).double()
    whole_recipe, parts_recipe = split(8, 1), split(batch, accumulation)
    data = plain_data()
    plan = plan_step(parts, data, parts_recipe, seed=SEED, step=0, processes=ProcessGroup())
    # micro-batches differ in tokens, so a mean of their means would be another number
    assert len({batch.count for batch in plan if batch.task == "i2t"}) > 1
    align(whole, data, whole_recipe, seed=SEED, work_dir=tmp_path / "whole")
    align(parts, data, parts_recipe, seed=SEED, work_dir=tmp_path / "parts")
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(weight, parts.get_parameter(name), rtol=0, atol=1e-6)
    one, two = (read_log(tmp_path / name) for name in ("whole", "parts"))
    for first, second in zip(one, two, strict=True):
        assert first["tokens"] == second["tokens"]
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-6)


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_frozen_parts_are_bitwise_unchanged(tmp_path):
    """E1: no gradient reaches them, weight decay and averaging leave them alone."""
    before = Toy()
    trained = set(before.trainable_parameters())
    model, _ = run(tmp_path, changes={"weight_decay": 0.5})
    moved = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.equal(tensor, before.state_dict()[name]):
            continue
        moved.add(name)
    assert moved == trained
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_activation_checkpointing_changes_no_number(tmp_path):
    plain, _ = run(tmp_path / "plain", changes={"steps": 3})
    saving, _ = run(tmp_path / "saving", changes={"steps": 3, "activation_checkpointing": True})
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, saving.get_parameter(name))
    assert "forward" not in saving.blocks[0].__dict__


def test_bf16_autocast_trains_in_fp32_weights(tmp_path):
    low, _ = run(tmp_path / "low", changes={"precision": "bf16"})
    run(tmp_path / "full")
    assert all(weight.dtype == torch.float32 for weight in low.parameters())
    one, two = read_log(tmp_path / "low")[0]["loss"], read_log(tmp_path / "full")[0]["loss"]
    assert one == pytest.approx(two, rel=0.05) and one != two


# ---- losses that are not finite ----------------------------------------------------------------
class Poisoned:
    """Rows in which one image has NaN features."""

    def __init__(self, rows, index: int) -> None:
        self.inner, self.index = rows, index

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, indices):
        features = self.inner.rows(indices)
        features["understanding"][[index == self.index for index in indices]] = float("nan")
        return features


def poisoned(index: int):
    return replace(toy_data(), draw=Poisoned(toy_data().draw, index))


def first_step_with(index: int) -> int:
    chosen = recipe(tasks={"reca": TaskRecipe(1.0, 3)})
    for step in range(20):
        plan = plan_step(Toy(), toy_data(), chosen, seed=SEED, step=step, processes=ProcessGroup())
        if any(index in batch.indices for batch in plan):
            return step
    raise AssertionError(index)


def sample_not_in_the_first_step() -> int:
    return next(index for index in range(11) if first_step_with(index) == 1)


def test_nan_stops_the_run_and_names_the_samples(tmp_path):
    bad = sample_not_in_the_first_step()
    changes = {"tasks": {"reca": TaskRecipe(1.0, 3)}, "checkpoint_every": 1}
    with pytest.raises(NonFiniteLoss, match="step 2, task reca: the loss is nan") as caught:
        run(tmp_path, data=poisoned(bad), changes=changes)
    assert caught.value.step == 2 and bad in caught.value.samples
    assert [line["step"] for line in read_log(tmp_path)] == [1]
    assert checkpoint.latest(tmp_path / CHECKPOINTS).step == 1


def test_nan_steps_can_be_skipped_and_are_counted(tmp_path):
    bad = sample_not_in_the_first_step()
    tasks = {"reca": TaskRecipe(1.0, 3)}
    changes = {"tasks": tasks, "steps": 2, "nonfinite": "skip", "checkpoint_every": 1, "warmup": 0}
    _, summary = run(tmp_path, data=poisoned(bad), changes=changes)
    assert summary.skipped == 1
    assert [line.get("skipped", False) for line in read_log(tmp_path)] == [False, True]
    assert read_log(tmp_path)[1]["loss"] == {"reca": None} == summary.loss  # JSON knows no NaN
    paths = [tmp_path / CHECKPOINTS / f"step-{step:010d}" for step in (1, 2)]
    one, two = (dict(checkpoint.read_tensors(path, "trainable")) for path in paths)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_too_many_skipped_steps_stop_the_run(tmp_path):
    changes = {"tasks": {"reca": TaskRecipe(1.0, 3)}, "nonfinite": "skip", "nonfinite_limit": 2}
    with pytest.raises(NonFiniteLoss):
        run(tmp_path, data=poisoned(0), changes=changes)


def test_a_wrong_token_count_is_noticed(tmp_path):
    model = Toy()
    model.loss_count = lambda noise, with_image: noise.count + (not with_image)  # wrong for t2i
    with pytest.raises(AssertionError, match="t2i: loss over"):
        run(tmp_path, model=model)


# ---- log and results ---------------------------------------------------------------------------
def test_log_has_each_step_once_and_is_published(tmp_path):
    _, summary = run(tmp_path / "work", log=tmp_path / "out" / "log.jsonl")
    published = tmp_path / "out" / "log.jsonl"
    assert published.read_bytes() == (tmp_path / "work" / "log.jsonl").read_bytes()
    log = read_log(tmp_path / "out")
    assert [line["step"] for line in log] == list(range(1, 21))
    assert sum(sum(line["tokens"].values()) for line in log) == summary.tokens
    assert summary.samples == 20 * 2 * (3 + 2 + 2 + 1)
    assert log[-1]["loss"] == summary.loss
    timing = (tmp_path / "work" / "timing.jsonl").read_text().splitlines()
    assert len(timing) == 20 and json.loads(timing[0])["seconds"] > 0


def test_truncated_log_drops_later_and_torn_lines(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate(path, 2, complete=True)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert "2 lines from an older version have no checksum" in caplog.text
    with pytest.raises(
        ValueError, match=r"log.jsonl, line 3: no line for step 3, though a checkpoint"
    ):
        truncate(path, 5, complete=True)


def test_tensorboard_holds_the_losses(tmp_path):
    run(tmp_path, changes={"steps": 2, "tensorboard": True})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = events.Scalars("loss/reca")
    assert [each.step for each in scalars] == [1, 2]
    assert scalars[0].value == pytest.approx(read_log(tmp_path)[0]["loss"]["reca"])


def test_load_trained_gives_the_result_of_the_run(tmp_path):
    trained, _ = run(tmp_path)
    fresh = Toy()
    assert load_trained(tmp_path / CHECKPOINTS, fresh, freeze(fresh)) == 20
    assert all(torch.equal(w, fresh.get_parameter(n)) for n, w in trained.named_parameters())
    with pytest.raises(ValueError, match="no valid checkpoint"):
        load_trained(tmp_path / "nothing", fresh, freeze(fresh))


def test_weights_missing_from_the_model_are_refused(tmp_path):
    model = Toy()
    model.trainable_parameters = lambda: ["head.weight", "tail.weight"]
    with pytest.raises(ValueError, match=r"missing in the model: \['tail.weight'\]"):
        run(tmp_path, model=model)


def test_a_phase_trains_what_its_patterns_name(tmp_path):
    """Only the matching weights change, whatever the family publishes; matrices decay, vectors do not."""
    name = "embedding.weight"  # all tasks but reading pass it
    tasks = {"reca": TaskRecipe(1.0, 3), "t2i": TaskRecipe(1.0, 3)}
    model, _ = run(tmp_path, changes={"trains": [name], "tasks": tasks, "steps": 2, "warmup": 0})
    changed = {n for n, w in Toy().named_parameters() if not torch.equal(w, model.state_dict()[n])}
    assert changed == {name}
    assert by_rank({"m": torch.ones(2, 2), "v": torch.ones(2)}).decay == ("m",)
    with pytest.raises(ValueError, match=r"align\.trains: nothing\.\* matches no weight"):
        freeze(model, [name, "nothing.*"])


def test_a_loss_that_no_trained_weight_reaches_is_refused(tmp_path):
    """Reading features does not pass the embedding, so its loss has no gradient there."""
    changes = {"trains": ["embedding.weight"], "tasks": {"i2t": TaskRecipe(1.0, 3)}, "steps": 1}
    with pytest.raises(ValueError, match=r"the loss of i2t depends on none of these weights"):
        run(tmp_path, changes=changes)
