"""reca plan: exact bytes for weights, gradients and moments, an estimate for activations, and a clear refusal."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from reca.align import memory as plan
from reca.align.distributed import trained_blocks, wrapped
from reca.align.state import build_state, freeze
from reca.cli import main
from reca.config.recipe import Recipe, TaskRecipe
from tests.models import bagel_tiny, harmon_tiny, janus_tiny, openuni_tiny, showo_tiny

FAMILIES = {
    "bagel": bagel_tiny,
    "harmon": harmon_tiny,
    "janus": janus_tiny,
    "openuni": openuni_tiny,
    "showo": showo_tiny,
}


def recipe(**more):
    return Recipe(tasks={"reca": TaskRecipe(1.0, 4)}, **more)


def empty(family, **options):
    return plan.meta_model(family, FAMILIES[family].network(**options))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_parts_are_what_training_allocates(family, tmp_path):
    model = FAMILIES[family].model(tmp_path)
    found = plan.footprint(empty(family), recipe(ema=0.9), 0, half=False)
    state = build_state(model, freeze(model), recipe(ema=0.9))
    for weight in state.weights.values():
        weight.grad = torch.ones_like(weight)
    state.optimizer.step()
    size = {name: tensor.nbytes for name, tensor in state.weights.items()}
    assert found.trained == sum(weight.numel() for weight in state.weights.values())
    assert found.parts["trained weights"] == found.parts["gradients"] == sum(size.values())
    moments = [t for s in state.optimizer.state.values() for k, t in s.items() if k != "step"]
    assert found.parts["optimiser (two moments)"] == sum(tensor.nbytes for tensor in moments)
    assert state.average is not None
    assert found.parts["moving average"] == sum(tensor.nbytes for tensor in state.average.values())
    others = [w for n, w in model.named_parameters() if n not in state.weights]
    frozen = sum(tensor.nbytes for tensor in [*others, *model.buffers()])
    assert found.parts["frozen weights"] == frozen


def test_frozen_weights_in_sixteen_bits_take_half():
    whole, half = (
        plan.footprint(empty("bagel", frozen_dtype=kind), recipe(), 0, half=False)
        for kind in ("float32", "bfloat16")
    )
    assert half.parts["frozen weights"] < whole.parts["frozen weights"]
    assert half.parts["trained weights"] == whole.parts["trained weights"]


def test_the_activation_estimate_is_of_the_right_size(tmp_path):
    """Within a factor of two of what autograd really keeps, at tiny size; checkpointing lowers it."""
    from perf.bagel_two_phase import Sample, loss_of, scaled
    from perf.pairs import kept_bytes
    from reca.models.registry import build_model

    network = scaled(112, 4, 8)
    model = build_model("bagel", network)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in set(model.trainable_parameters()))
    sample = Sample(model, 4)
    kept = kept_bytes(model, lambda: loss_of(model, sample, "two_phase"))
    found = plan.footprint(plan.meta_model("bagel", network), recipe(), 0, half=False)
    assert 0.5 < found.parts["activations (estimate)"] / kept < 2
    lean = recipe(activation_checkpointing=True)
    less = plan.footprint(plan.meta_model("bagel", network), lean, 0, half=False)
    assert less.parts["activations (estimate)"] < found.parts["activations (estimate)"]


def kept_for_drawing(model, batch):
    """Bytes that autograd holds between the two passes of a drawing loss, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, int] = {}
    held: list[torch.Tensor] = []  # or a freed address could come twice

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    features = model.encode(harmon_tiny.pictures(batch), "draw")
    condition = model.condition(["describe the image"] * batch, features)
    noise = model.sample_noise(batch, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.generation_loss(features, condition, noise).mean
    del loss
    return sum(seen.values())


def test_the_head_is_counted_and_computed_again(tmp_path, monkeypatch):
    """Harmon's head, made large: within a factor of two of what autograd keeps, in both modes."""
    network = harmon_tiny.network()
    network["mar"] |= {"head_depth": 8, "head_width": 128, "repeats": 4}
    monkeypatch.setattr(harmon_tiny, "network", lambda **options: network)
    model = harmon_tiny.model(tmp_path)
    freeze(model, [])
    empty, kept, estimate = plan.meta_model("harmon", network), {}, {}
    for again in (False, True):
        with wrapped(trained_blocks(model), recompute=again):
            kept[again] = kept_for_drawing(model, 4)
        found = plan.footprint(empty, recipe(activation_checkpointing=again), 0, half=False)
        estimate[again] = found.parts["activations (estimate)"]
    assert 0.5 < estimate[False] / kept[False] < 2
    # the estimate has one complete block in addition to the stored inputs
    assert kept[True] < estimate[True] < 3 * kept[True]
    assert kept[True] < kept[False] / 4  # not if shifts, scales and gates were kept


@pytest.mark.parametrize("use", ["draw", "read"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_on_disk_is_that_of_the_features(family, use, tmp_path):
    model = FAMILIES[family].model(tmp_path)
    picture = Image.new("RGB", (plan.SQUARE, plan.SQUARE))
    features = model.encode([picture], use)
    exact = sum(rows.nbytes for rows in features.values())
    halved = sum(rows.nbytes // 2 for rows in features.values() if rows.is_floating_point())
    network = FAMILIES[family].network()
    assert plan.cached_bytes(plan.meta_model(family, network), use, "fp32") == exact
    assert plan.cached_bytes(plan.meta_model(family, network), use, "bf16") == exact - halved


def test_more_devices_share_the_trained_state():
    one, four = (plan.footprint(empty("bagel"), recipe(), n, half=False) for n in (1, 4))
    for part in ("trained weights", "gradients", "optimiser (two moments)"):
        assert four.parts[part] == one.parts[part] / 4
    assert four.parts["frozen weights"] == one.parts["frozen weights"]
    memory = one.total / (1 - plan.RESERVE) * 0.99
    assert not plan.fits(one, memory)
    assert plan.least_gpus(empty("bagel"), recipe(), memory * 100, half=False) == 1


def test_the_verb_prints_and_refuses(capsys):
    assert main(["plan", "paper_bagel", "--memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "6,539,861,056 trained; on each of 6 devices" in text and "80.00 GiB" in text
    assert "cached keys and values" in text and ": fits" in text
    assert "'draw': 1.64 MB per image in bf16, all images of the data set" in text
    wide = ["plan", "paper_bagel", "models.bagel_7b.cache_dtype=fp32", "--memory", "80"]
    assert main(wide) == 0
    assert "'draw': 3.28 MB per image in fp32" in capsys.readouterr().out
    assert main(["plan", "paper_bagel", "models.bagel_7b.cache_rows=visited"]) == 0
    assert "at most 48,000 images: 78.6 GB" in capsys.readouterr().out
    assert main(["plan", "paper_bagel", "--memory", "24"]) == 2
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out
    assert "paper_bagel does not fit; models.bagel_7b:" in said.err and "accumulation" in said.err


def test_the_verb_knows_which_families_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr("reca.models.registry.runnable", lambda: ["showo"])
    assert main(["plan", "paper_bagel"]) == 0
    assert "family bagel cannot run yet" in capsys.readouterr().out


def test_a_run_that_cannot_fit_a_gpu_is_refused_before_it_starts(monkeypatch):
    from reca.commands import plan as verb

    given = ("bagel", bagel_tiny.network(), recipe())
    monkeypatch.setattr(plan, "device_bytes", lambda gpus: (1e5, "a tiny device"))
    said: list[str] = []
    monkeypatch.setattr(verb._log, "warning", lambda form, *args: said.append(form % args))
    verb.before_a_run(*given, 1)  # on the CPU a warning
    assert len(said) == 1 and "does not fit" in said[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="does not fit"):
        verb.before_a_run(*given, 1)


@pytest.mark.parametrize("memory", ["-5", "0", "nan", "inf"])
def test_a_device_has_some_memory(memory, capsys):
    assert main(["plan", "laptop", f"--memory={memory}"]) == 2
    assert f"--memory {memory}: must be a number of GiB above 0" in capsys.readouterr().err


def test_a_family_without_a_profile_does_not_fit_by_silence():
    found = plan.Footprint(10, 10, 1, {"trained weights": 40.0})
    said = "\n".join(plan.described("mine", found, float(plan.GIB), "a device"))
    assert "activations" in said and "not known" in said
    assert said.endswith("fits without activations")
    known = plan.Footprint(10, 10, 1, {"trained weights": 40.0, plan.ACTIVATIONS: 1.0})
    assert "\n".join(plan.described("mine", known, float(plan.GIB), "a device")).endswith(": fits")
