"""The tiny networks whose weights the loopback hub serves: random, and the same whenever they are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reca.config.compose import model_config
from reca.config.scale import sizes
from reca.config.schema import ModelConfig
from reca.core.documents import read_yaml
from reca.core.rng import generator
from reca.models.registry import build_model
from tests.reference.golden_cases import manifest

SCALES = Path(__file__).parents[2] / "config/scales"
configured = cache(model_config)


class Networks:
    """The networks of configured models at the sizes of a scale.

    Every weight is drawn by its name and that of the file that it is in, so pins of one run fit the files of the next,
    models that read the same companion have its weights, and all other files differ.
    """

    def __init__(self, scale: str) -> None:
        self.scale, self._file = scale, SCALES / f"{scale}.yaml"
        self._numbers = read_yaml(self._file)
        self._built: dict[tuple[str, str | None], Any] = {}

    def section(self, config: ModelConfig) -> dict[str, Any]:
        """The `network` section of a configuration at these sizes."""
        changed = sizes(config.family, config.network, self._numbers, self._file)
        return merged(config.network, changed)

    def of(self, name: str, trained: str | None = None) -> Any:
        """The network of a configured model; `trained` names weights that training made of it, a RecA result, say."""
        key = (name, trained)
        if key not in self._built:
            config = configured(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                built: Any = build_model(config.family, self.section(config))
            for module, file in _parts(built, config, name, trained):
                _draw(module, file)
            self._built[key] = built
        return self._built[key]

    def state(
        self, name: str, role: str = "weights", trained: str | None = None
    ) -> dict[str, Tensor]:
        """The tensors of one of a model's files under their released names."""
        model = self.of(name, trained)
        (file,) = (file for file in model.weight_files() if file.role == role)
        tensors: dict[str, Tensor] = file.naming.state(file.module)
        return tensors


def merged(full: Mapping[str, Any], tiny: Mapping[str, Any]) -> dict[str, Any]:
    """`full` with the values of `tiny`, section by section."""
    inner = {key for key in tiny if isinstance(tiny[key], dict) and isinstance(full.get(key), dict)}
    return {**full, **tiny, **{key: merged(full[key], tiny[key]) for key in inner}}


def _parts(
    model: Any, config: ModelConfig, name: str, trained: str | None
) -> Iterator[tuple[nn.Module, str]]:
    """Modules and the files that they are in: a module comes after the one that it is part of."""
    weights, *others = model.weight_files()
    companions = config.weights.companions
    yield weights.module, f"{name} {trained}"
    for file in others:
        yield file.module, companions.get(file.role, name)
    if "generator" in companions and trained is None:  # OpenUni trains SANA, after its stage 1
        yield model.network.transformer, companions["generator"]


def _draw(module: nn.Module, file: str) -> None:
    """Draw all weights but vectors that start at a constant, scales and most biases.

    Matrices that start small or at zero would hide the condition.
    """
    for name, parameter in module.named_parameters():
        value = parameter.detach()
        is_matrix = value.dim() > 1
        if is_matrix or value.min() < value.max():
            std = value[0].numel() ** -0.5 if is_matrix else 0.02
            drawn = torch.randn(value.shape, generator=generator("hub", file, name))
            value.copy_(drawn * std)


def released(state: Mapping[str, Tensor], where: str, inside: str = "") -> dict[str, Tensor]:
    """`state` in the dtypes of a manifest (`family/name`), after comparing the names but for the numbers in them."""
    full = {
        n.removeprefix(inside): kind
        for n, (_, kind) in manifest(*where.split("/")).items()
        if n.startswith(inside)
    }
    kinds = {unnumbered(name): kind for name, kind in full.items()}
    strangers = kinds.keys() ^ {unnumbered(name) for name in state}
    assert not strangers, f"{where}: {sorted(strangers)}"
    return {
        name: tensor.to(getattr(torch, kinds[unnumbered(name)])) for name, tensor in state.items()
    }


def unnumbered(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)
