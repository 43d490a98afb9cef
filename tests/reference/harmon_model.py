"""A Harmon as a golden case describes it, filled by name, and a notebook of what passes through it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from reca.models.common.autoencoder_kl import AutoencoderKL
from reca.models.harmon import weights
from reca.models.harmon.config import HarmonConfig, HarmonOptions
from reca.models.harmon.layout import IMAGE, IMAGE_AT
from reca.models.harmon.model import HarmonModel
from tests.reference import golden_cases as golden
from tests.reference.harmon_config import golden_config

# Of the answers' loss and attention; tests/kernels runs the losses once more with triton, in the interpreter.
IMPLEMENTATION: Any = os.environ.get("RECA_TEST_IMPLEMENTATION", "torch")
VB = 1e-3  # harmon.md h: tolerance for the variational bound and for gradients


def model_of(described: dict[str, Any], with_vae: bool = False) -> HarmonModel:
    """The case's network with its weights; the (full-size) VAE only where asked, it takes seconds to fill."""
    with torch.device("meta"):
        model = HarmonModel(
            golden_config(described["config"]),
            HarmonOptions(
                condition_gradient=described["config"].get("grad_scale", 1.0),
                implementation=IMPLEMENTATION,
            ),
        )
    model.network.to_empty(device="cpu")
    model.network.llm.tie_weights()
    golden.filling("harmon").fill_(weights.NETWORK.state(model.network).items(), described["seed"])
    if with_vae:
        model.frozen.vae = filled_vae(model.config, described["seed"])
    return model.eval()


_VAES: dict[tuple[Any, ...], AutoencoderKL] = {}


def filled_vae(config: HarmonConfig, seed: int) -> AutoencoderKL:
    """The full-size VAE with the weights of a seed; kept, as several cases share it."""
    from reca.models.harmon.encoders import build_vae

    key = (config.vae, config.mar.latent_channels, seed)
    if key not in _VAES:
        vae = build_vae(config)
        state = {f"vae.{k}": v.clone() for k, v in weights.VAE.state(vae).items()}
        golden.filling("harmon").fill_(state.items(), seed)
        weights.VAE.load(vae, {k.removeprefix("vae."): v for k, v in state.items()}, "fill")
        _VAES[key] = vae.requires_grad_(False).eval()
    return _VAES[key]


def rows_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Prompts without their padding."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def with_image(ids: Sequence[int]) -> list[int]:
    """A prompt without a placeholder, with one inserted after three tokens."""
    return [*ids[:IMAGE_AT], IMAGE, *ids[IMAGE_AT:]]


class Notebook:
    """Writes down arguments and results of methods of an object, in order of the calls."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[tuple, dict, Any]]] = {}

    def watch(self, owner: Any, name: str) -> Notebook:
        """Watch a method of one object."""
        object.__setattr__(owner, name, self.noted(name, getattr(owner, name)))
        return self

    def noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The function, writing down under `name`."""
        calls = self.calls.setdefault(name, [])

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            calls.append((args, kwargs, result))
            return result

        return watched


@lru_cache(maxsize=2)
def stored(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return golden.load("harmon", case)
