"""Harmon's diffusion head alone, and its schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reca.models.harmon.diffusion import noised, posterior, reverse, tables, timestep_code
from tests.reference import golden_cases as golden
from tests.reference.harmon_model import VB, model_of


@pytest.mark.parametrize("name", golden.cases("harmon", __file__, "diffusion_tables*"))
def test_tables(name: str) -> None:
    _, stored = golden.load("harmon", name)
    for key, table in stored.items():
        count, field = key.split("/")
        ours = getattr(tables(int(count)), "timesteps" if field == "timestep_map" else field)
        if field == "timestep_map":
            assert torch.equal(ours, table), key
        else:
            assert ours.dtype == torch.float64
            torch.testing.assert_close(ours, table, rtol=1e-9, atol=1e-300, msg=key)


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("name", golden.cases("harmon", __file__, "diffloss_*"))
def test_head(name: str, slices: int) -> None:
    described, stored = golden.load("harmon", name)
    head = model_of(described).network.mar.diffloss
    t, noise, target = stored["t"], stored["noise"], stored["target"]
    z = stored["z"].clone().requires_grad_()
    mse, vb = head.losses(target, z, t, noise, slices)
    mask = stored["mask"]
    loss = ((mse + vb) * mask).sum() / mask.sum()
    head.zero_grad()
    loss.backward()
    with torch.no_grad():
        ours: dict[str, Tensor] = {
            "x_t": noised(target, t, noise),
            "sinusoid": timestep_code(t),
            "time_emb": head.net.time(t),
            "net_out": head.net(noised(target, t, noise), t, stored["z"]),
            "loss": loss.reshape(1),
            "mse": mse,
            **_reverse_steps(head, stored, described),
        }
    loose = {"vb": vb, "grad_z": z.grad}
    gradients = {n: p.grad for n, p in head.named_parameters(prefix="mar.diffloss")}
    loose |= {k: gradients[k.removeprefix("grad/")] for k in stored if k.startswith("grad/")}
    inputs = ("target", "z", "mask", "t", "noise", "ps_x", "ps_t", "ps_noise")
    golden.assert_reproduces(stored, ours, {*inputs, *loose})
    golden.assert_reproduces(stored, loose, {*inputs, *ours}, VB)
    golden.assert_number("loss", loss.item(), described["loss"])


def _reverse_steps(head, stored: dict[str, Tensor], described: dict) -> dict[str, Tensor]:
    """One guided step at the stored index, one at index 0, and the unguided posterior; both halves share x."""
    rows = len(stored["ps_x"])
    (index,) = stored["ps_t"].unique().tolist()
    schedule = tables(head.sampling_steps)
    guidance, temperature = described["cfg_scale"], described["temperature"]

    def predicted(at: int) -> Tensor:
        t = schedule.timesteps[at].expand(rows)
        return head.net(stored["ps_x"], t, stored["z"])

    def step(at: int, noise: Tensor | None) -> Tensor:
        half = rows // 2
        conditional = reverse(
            schedule.at(at), stored["ps_x"][:half], predicted(at), noise, guidance, temperature
        )
        return conditional

    half = rows // 2
    found = {
        "ps_sample": step(index, stored["ps_noise"][:half]),
        "ps0_sample": step(0, None),
        "ps_pred_xstart": _guided_start(schedule.at(index), stored, predicted(index), guidance),
    }
    # the official code also walks the second half, with the unconditional variance; only its first half is kept
    whole = {name: torch.cat([value, stored[name][half:]]) for name, value in found.items()}
    eps, raw = predicted(index).chunk(2, dim=-1)
    mean, log_variance, start = posterior(schedule.at(index), stored["ps_x"], eps, raw)
    return whole | {"pm_mean": mean, "pm_log_variance": log_variance, "pm_pred_xstart": start}


def _guided_start(step, stored: dict[str, Tensor], predicted: Tensor, guidance: float) -> Tensor:
    eps, raw = predicted.chunk(2, dim=-1)
    conditional, unconditional = eps.chunk(2)
    guided = unconditional + guidance * (conditional - unconditional)
    half = len(guided)
    return posterior(step, stored["ps_x"][:half], guided, raw[:half])[2]


@pytest.mark.parametrize("name", golden.cases("harmon", __file__, "diffloss_*"))
@torch.no_grad()
def test_sampling_in_chunks_is_the_plain_reverse_process(name: str, monkeypatch) -> None:
    """Modulations made for several steps at once give what one step after another gives."""
    from reca.models.common import packing
    from reca.models.harmon import denoiser

    monkeypatch.setattr(packing, "LEAST", 0)
    described, stored = golden.load("harmon", name)
    head = model_of(described).network.mar.diffloss
    z, rows = stored["z"], len(stored["z"]) // 2
    schedule, x = tables(head.sampling_steps), stored["noise"][:rows] * 1e-2
    noises = torch.randn(
        head.sampling_steps, rows, head.channels, generator=torch.Generator().manual_seed(1)
    )
    plain = x
    for i, index in enumerate(reversed(range(head.sampling_steps))):
        t = schedule.timesteps[index].expand(2 * rows)
        both = head.net(plain.repeat(2, 1), t, z)
        plain = reverse(schedule.at(index), plain, both, noises[i] if index else None, 2.5, 0.8)
    for held in (1, 2**25):
        monkeypatch.setattr(denoiser, "_HELD", {"cpu": held})
        drawn = denoiser.Denoiser(head).sample(z, x, noises, 2.5, 0.8)
        golden.assert_same("sample", drawn, plain)
