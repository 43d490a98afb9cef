"""The golden data of the reference implementations: where it lies, and which test owns a case.

Layout: `<root>/<family>/{fill.py,manifest_*.json,golden/<case>.{json,safetensors}}`. The root is
the environment variable RECA_REFERENCE_DIR if set, else the copy beside this file. Cases are
discovered by listing; a case that no test claims fails in `test_golden_cases.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

COPY = Path(__file__).parent / "golden"
RELATIVE = 1e-4  # of a tensor's largest value, in float32 (docs/reference, suggested tolerances)
ABSOLUTE = 1e-6  # some stored gradients are zero but for rounding (a bias before a GroupNorm)

# family -> test file -> patterns of the cases that it reproduces
CLAIMS: dict[str, dict[str, tuple[str, ...]]] = {
    "showo": {
        "test_showo_network.py": ("phi_lm*", "magvit_*"),
        "test_showo_losses.py": ("reca_*", "t2i_*", "mmu_*", "total_*"),
        "test_showo_sampler.py": ("sample_t2i*", "generate_*"),
        "test_showo_preprocess.py": ("preprocess*",),
    },
    "bagel": {
        "test_bagel_losses.py": ("reca_loss*", "t2i_loss*", "i2t_loss*", "edit_loss*"),
        "test_bagel_sampler.py": ("sampler_*", "understanding_decode*"),
        "test_bagel_images.py": ("vae*", "preprocess*", "data_order*"),
    },
    "openuni": {
        "test_openuni.py": ("*_loss*", "sampler*", "schedules*", "preprocess*", "stochastic_depth*")
    },
    "harmon": {
        "test_harmon_losses.py": ("reca_loss*", "t2i_loss*", "i2t_loss*"),
        "test_harmon_diffusion.py": ("diffloss_*", "diffusion_tables*"),
        "test_harmon_sampler.py": ("sample_*",),
        "test_harmon_vae.py": ("vae*", "preprocess*"),
        "test_harmon_text.py": ("prompt_ids*",),
        "test_harmon_training.py": ("train_step*", "data_sampler*", "lr_schedule*"),
    },
    "janus": {
        "test_janus_losses.py": ("reca_loss*", "text2image_loss*", "image2text_loss*"),
        "test_janus_sampler.py": ("sampler_*", "vq_tokenizer*"),
    },
}


def root() -> Path:
    """Folder of the families' data; a wrong RECA_REFERENCE_DIR is an error, never a skip."""
    named = os.environ.get("RECA_REFERENCE_DIR")
    if named and not Path(named).is_dir():
        raise ValueError(f"RECA_REFERENCE_DIR={named} is no folder")
    return Path(named) if named else COPY


def listed(family: str) -> list[str]:
    """All cases of a family, by listing; empty where the root lacks the family."""
    return sorted(path.stem for path in (root() / family / "golden").glob("*.json"))


def claimants(family: str, case: str) -> list[str]:
    """The test files that claim a case."""
    return [
        file
        for file, patterns in CLAIMS.get(family, {}).items()
        if any(fnmatchcase(case, pattern) for pattern in patterns)
    ]


def cases(family: str, test_file: str, pattern: str = "*") -> list[str]:
    """The cases that a test file (`__file__`) claims, of those that match `pattern`."""
    file = Path(test_file).name
    return [c for c in listed(family) if file in claimants(family, c) and fnmatchcase(c, pattern)]


def load(family: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a case; what the json names and what is stored must agree."""
    folder = root() / family / "golden"
    described = json.loads((folder / f"{case}.json").read_text())
    stored = folder / f"{case}.safetensors"
    tensors = load_file(stored) if stored.exists() else {}
    named = described.get("shapes", described.get("tensors", {}))
    assert set(tensors) == set(named), f"{case}: json and tensors disagree"
    return described, tensors


def manifest(family: str, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Official names, shapes and dtypes of a released checkpoint."""
    file = f"{family}/manifest_{name}.json"
    path = root() / file if (root() / file).is_file() else COPY / file
    stored = json.loads(path.read_text())
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in stored.items()}


@lru_cache
def _fill_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_fill_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filling(family: str) -> ModuleType:
    """The family's `fill.py`."""
    path = root() / family / "fill.py"
    return _fill_module(path if path.exists() else COPY / family / "fill.py")


def fill_(module: nn.Module, seed: int, prefix: str = "", family: str = "showo") -> nn.Module:
    """Give every learned tensor its value by (seed, prefix + name), as the reference run did."""
    return filling(family).fill_(module, seed, prefix)


def images(u8: Tensor) -> Tensor:
    """Stored uint8 pictures as floats in [-1, 1]."""
    return u8.float() / 127.5 - 1


def unpack_mask(packed: Tensor, length: int) -> Tensor:
    """Bits packed over the last axis -> bool [..., length]."""
    bits = packed.unsqueeze(-1).bitwise_and(2 ** torch.arange(7, -1, -1, dtype=torch.uint8)) != 0
    return bits.flatten(-2)[..., :length]


def assert_same(name: str, ours: Tensor, stored: Tensor, relative: float = RELATIVE) -> None:
    """Equal shapes; integers and booleans exactly, floats to `relative` of the largest value."""
    assert tuple(ours.shape) == tuple(stored.shape), f"{name}: shape {list(ours.shape)}"
    if not stored.is_floating_point():
        assert torch.equal(ours.to(stored.dtype), stored), f"{name}: not exactly equal"
        return
    error = (ours.detach().double() - stored.double()).abs().max().item()
    scale = stored.abs().max().item()
    assert error <= relative * scale + ABSOLUTE, (
        f"{name}: off by {error:.3g} where values reach {scale:.3g}"
    )


def assert_number(name: str, ours: float, stored: float, relative: float = RELATIVE) -> None:
    """One float of the json, to a relative tolerance."""
    assert abs(ours - stored) <= relative * abs(stored) + ABSOLUTE, (
        f"{name}: {ours}, stored {stored}"
    )


def assert_reproduces(
    stored: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    inputs: Collection[str],
    relative: float = RELATIVE,
) -> None:
    """Compare every stored tensor that is not an input; a tensor that nobody named fails."""
    unnamed = set(stored) - set(ours) - set(inputs)
    assert not unnamed, f"stored, but neither input nor compared: {sorted(unnamed)}"
    for name in sorted(set(ours) & set(stored)):
        assert_same(name, ours[name], stored[name], relative)


def assert_gradients(
    described: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    relative: float = RELATIVE,
) -> None:
    """Compare the global gradient norm and, where stored, the norm of each parameter's gradient."""
    norms = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in parameters.items()}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    assert_number("grad_norm", total, described["grad_norm"], relative)
    stored = described.get("grad_norms_per_parameter", {})
    assert set(stored) <= set(norms), f"no such parameters: {sorted(set(stored) - set(norms))}"
    for name, norm in stored.items():
        assert abs(norms[name] - norm) <= relative * norm + ABSOLUTE, (
            f"{name}: gradient norm {norms[name]}"
        )
