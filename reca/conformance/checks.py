"""Checks of encoders and losses: what the cache stores, and what the trainer minimises."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from reca.conformance.subject import (
    ROWS,
    Subject,
    close,
    demand,
    equal,
    global_random,
    snapshot,
    tensors_in,
)
from reca.core.rng import generator
from reca.models.contract import Features, UnifiedModel, reconstruction_loss

ROUNDING = 3e-6  # relative rounding error of a float32 sum
_DRAWING = ("reconstruction_loss", "text_to_image_loss")


# ---- encoders ------------------------------------------------------------------------------------
def encode_is_deterministic(subject: Subject) -> None:
    """`encode` returns the same rows twice, without gradients and without global random numbers."""
    model = subject.model
    for use in subject.uses:
        found = []
        for seed in (1, 2):
            with global_random(seed, f"encode(images, {use!r})", model, "encode"):
                found.append(model.encode(subject.images, use))
        first, second = found
        names = {"target"} if use == "draw" else set()
        demand(
            names <= set(first) and len(first) > 0,
            f"encode(images, {use!r}) returns {sorted(first)}; the name 'target' is required",
            model,
            "encode",
        )
        for name, rows in first.items():
            where = f"encode(images, {use!r})[{name!r}]"
            demand(
                len(rows) == len(subject.images),
                f"{where} has {len(rows)} rows for {len(subject.images)} images",
                model,
                "encode",
            )
            demand(not rows.requires_grad, f"{where} requires a gradient", model, "encode")
            demand(
                equal([rows], [second[name]]),
                f"{where} differs between two calls with the same images",
                model,
                "encode",
            )


def encode_ignores_the_batch(subject: Subject) -> None:
    """An image has the same row alone and in a batch."""
    model = subject.model
    for use in subject.uses:
        together = subject.features[use]
        for row, image in enumerate(subject.images):
            for name, alone in model.encode([image], use).items():
                demand(
                    close(alone[0], together[name][row]),
                    f"encode(images, {use!r})[{name!r}]: row {row} of a batch differs from the image's row alone",
                    model,
                    "encode",
                )


# ---- losses --------------------------------------------------------------------------------------
def counts_before_losses(subject: Subject) -> None:
    """Each loss counts as many tokens as announced before it, and is a finite fp32 scalar."""
    model = subject.model
    announced = {"answer_loss": "conversation", "edit_loss": "sample_edit_noise"}
    for name, loss in subject.losses(model).items():
        found, count, _ = loss()
        method = name.split(" ")[0]
        source = announced.get(method, "loss_count")
        method = method if hasattr(model, method) else "generation_loss"
        demand(
            isinstance(count, int),
            f"{name}: {source} announces {count!r}; its attribute count must be a whole number of tokens",
            model,
            source,
        )
        demand(
            found.count == count,
            f"{name} counts {found.count} tokens, but {source} announced {count}",
            model,
            source,
            method,
        )
        demand(count > 0, f"{name} announces no tokens", model, source)
        demand(
            found.total.dtype == torch.float32 and found.total.shape == (),
            f"{name}.total is {found.total.dtype} {list(found.total.shape)}; it must be a float32 scalar",
            model,
            method,
        )
        demand(bool(torch.isfinite(found.total)), f"{name}.total is {found.total:g}", model, method)


def questions_have_no_labels(subject: Subject) -> None:
    """Labels are on answers and their ends alone: a longer question has no more of them."""
    model = subject.model
    for question, answer in subject.turns:
        short, long = (
            model.conversation([[(asked, answer)]]).count
            for asked in (question, f"{question} {question}")
        )
        demand(
            long <= short,
            f"a conversation has {short} labels, and {long} where its question is twice as long; labels belong on "
            "answers and their ends alone",
            model,
            "conversation",
        )


def losses_are_sums(subject: Subject) -> None:
    """Losses are sums over tokens, so that micro-batches add up; a mean would not grow with the batch size."""
    model = subject.model
    with torch.no_grad():
        spoken = subject.conversations()
        read = subject.features["read"]
        whole = model.answer_loss(model.conversation(spoken), read).total
        parts = [
            model.answer_loss(model.conversation([one]), _row(read, row)).total
            for row, one in enumerate(spoken)
        ]
        demand(
            torch.allclose(whole, torch.stack(parts).sum(), rtol=ROUNDING, atol=1e-4),
            f"answer_loss of {ROWS} rows is {whole:.6f}, but its rows alone add up to {sum(parts):.6f}; return the sum "
            "over tokens, and do not attend to padding",
            model,
            "answer_loss",
        )
        few = _median(subject, times=1, seeds=9)
        many = _median(subject, times=12, seeds=3)
        demand(
            0.25 < many / max(few, 1e-12) < 4,
            f"generation_loss per token is {few:.3g} for {ROWS} rows and {many:.3g} for {12 * ROWS}; total must "
            "be the sum over the counted tokens, not their mean",
            model,
            "generation_loss",
        )


def losses_ignore_the_batch(subject: Subject) -> None:
    """Changing the text of one row changes the loss by an amount that does not depend on the texts of other rows."""
    model, rows = subject.model, subject.features["draw"]
    short, *others, long = sorted(subject.texts, key=len)
    other = others[0]
    for features in (None, rows):
        for seed in range(3):
            noise = model.sample_noise(ROWS, generator("conformance", "rows", seed))
            total = partial(_total, model, rows, features, noise)
            beside_long = total(short, other, long) - total(other, other, long)
            beside_short = total(short, other, short) - total(other, other, short)
            bound = ROUNDING * abs(total(short, other, long)) + 1e-3 * abs(beside_long)
            demand(
                abs(beside_long - beside_short) <= bound,
                f"generation_loss: changing the text of row 0 changes it by {beside_long:.6f} with a long text in "
                f"another row and by {beside_short:.6f} with a short one; rows must not attend to each other or "
                "to padding",
                model,
                "generation_loss",
                "condition",
            )


def _total(
    model: UnifiedModel, target: Features, features: Features | None, noise: Any, *texts: str
) -> float:
    with torch.no_grad():
        return float(model.generation_loss(target, model.condition(texts, features), noise).total)


def _median(subject: Subject, times: int, seeds: int) -> float:
    """Median over noise samples of the RecA loss per token, with each image `times` times in the batch."""
    model, found = subject.model, []
    features = subject.features["draw"]
    rows = {n: rows.repeat(times, *[1] * (rows.dim() - 1)) for n, rows in features.items()}
    for seed in range(seeds):
        noise = model.sample_noise(times * ROWS, generator("conformance", "sums", seed))
        found.append(reconstruction_loss(model, list(subject.texts) * times, rows, noise).mean)
    return float(torch.stack(found).median())


def losses_are_pure(subject: Subject) -> None:
    """A loss is a pure function of its arguments: it uses no global random numbers and modifies nothing."""
    model = subject.model
    weights = snapshot(model.state_dict())
    for name, loss in subject.losses(model).items():
        method = name.split(" ")[0]
        method = method if hasattr(model, method) else "generation_loss"
        totals, inputs = [], []
        for seed in (1, 2):
            with global_random(seed, f"{name} or what prepares it", model, method, "sample_noise"):
                found, _, (before, after) = loss()
            totals.append(found.total.detach())
            inputs.append(before)
            demand(
                equal(before, list(tensors_in(after))),
                f"{name} modifies its inputs (features, noise or conversation) in place",
                model,
                method,
            )
        source = {"answer_loss": "with_noise", "edit_loss": "sample_edit_noise"}.get(
            method, "sample_noise"
        )
        demand(
            equal(*inputs),
            f"{name}: its noise differs between two calls with equal generators",
            model,
            source,
        )
        demand(
            equal([totals[0]], [totals[1]]),
            f"{name} returns {totals[0]:.8g} and then {totals[1]:.8g} for the same inputs",
            model,
            method,
        )
    demand(
        equal(weights, list(model.state_dict().values())),
        "a loss modifies weights or buffers of the model",
        model,
        "generation_loss",
        "answer_loss",
    )


def the_condition_is_used(subject: Subject) -> None:
    """RecA's loss depends on the features of the image: other features give another loss."""
    model, rows = subject.model, subject.features["draw"]
    noise = model.sample_noise(ROWS, generator("conformance", "noise"))
    other = {name: one.roll(1, 0) for name, one in rows.items()}
    with torch.no_grad():
        own, foreign = (
            model.generation_loss(rows, model.condition(subject.texts, given), noise).total
            for given in (rows, other)
        )
    demand(
        not torch.equal(own, foreign),
        "the RecA loss is the same with the features of another image: condition(texts, features) ignores features",
        model,
        "condition",
        "generation_loss",
    )


# ---- gradients -----------------------------------------------------------------------------------
def gradients_where_promised(subject: Subject) -> None:
    """Gradients reach exactly the `trainable_parameters`; the decay groups contain each of these names once."""
    model = subject.fresh()
    known, promised = dict(model.named_parameters()), model.trainable_parameters()
    unknown = sorted(set(promised) - set(known))
    demand(
        not unknown,
        f"trainable_parameters names {unknown[:3]}, which are not in named_parameters",
        model,
        "trainable_parameters",
    )
    groups = model.decay_groups()
    demand(
        sorted([*groups.decay, *groups.no_decay]) == sorted(promised),
        "decay_groups must contain each name of trainable_parameters exactly once",
        model,
        "decay_groups",
    )
    drawn: set[str] = set()
    for name, loss in subject.losses(model).items():
        model.zero_grad(set_to_none=True)
        total = loss()[0].total
        if not total.requires_grad and name.startswith("answer_loss"):
            continue
        demand(total.requires_grad, f"{name} has no gradient", model, "generation_loss")
        total.backward()
        reached = {n for n, weight in known.items() if weight.grad is not None}
        if name in _DRAWING:  # other losses may be used in pre-training only
            extra = sorted(reached - set(promised))
            demand(
                not extra,
                f"{name} has gradients for {extra[:3]}, which are not in trainable_parameters; call "
                "requires_grad_(False) on frozen modules, or detach",
                model,
                "generation_loss",
                "trainable_parameters",
            )
        drawn |= reached & set(promised)
    missing = [n for n in promised if n not in drawn]
    demand(
        not missing,
        f"no loss has gradients for {missing[:3]} ({len(missing)} names), which are in trainable_parameters",
        model,
        "trainable_parameters",
        "generation_loss",
    )


def reads(model: UnifiedModel, subject: Subject) -> bool:
    """Whether `answer_loss` trains anything once all but the trainable parameters are frozen."""
    total = subject.losses(model)["answer_loss"]()[0].total
    return bool(total.requires_grad)


def _row(features: Features, row: int) -> Features:
    return {name: rows[row : row + 1] for name, rows in features.items()}
