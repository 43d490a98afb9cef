"""The state of training, by name: weights, AdamW moments, moving average; saved and restored exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from reca.align import checkpoint
from reca.align.checkpoint import Groups
from reca.align.distributed import full_tensor, like
from reca.config.recipe import Recipe
from reca.models.contract import DecayGroups, UnifiedModel


def freeze(model: UnifiedModel, patterns: Sequence[str] = ()) -> list[str]:
    """Require gradients of `model.trainable_parameters()` only, or of the weights that match one of `patterns`.

    `patterns` are shell patterns, as in a phase of pre-training. Returns the names in the model's order.
    """
    known = [name for name, _ in model.named_parameters()]
    trained = set(model.trainable_parameters())
    if patterns:
        unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in known)]
        if unused:
            raise ValueError(
                f"align.trains: {', '.join(unused)} matches no weight; examples of names: {known[:3]}"
            )
        trained = {name for name in known if any(fnmatchcase(name, p) for p in patterns)}
    if not trained or not trained <= set(known):
        raise ValueError(
            f"trainable names that are missing in the model: {sorted(trained - set(known))[:5]}"
        )
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    return [name for name in known if name in trained]


def weights_hash(model: nn.Module) -> str:
    """Hash of every weight and buffer, so that resuming from another base model is refused."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(full_tensor(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class Tally:
    """Running counts of a run, restored on resume."""

    tokens: int = 0
    samples: int = 0
    skipped: int = 0


@dataclass
class TrainState:
    """All tensors that a checkpoint stores."""

    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor] | None
    tally: Tally = field(default_factory=Tally)

    def groups(self) -> Groups:
        """Tensors by group and name; moments as `exp_avg/<weight>`, absent for weights without a gradient so far."""
        groups: dict[str, dict[str, Tensor]] = {"trainable": dict(self.weights), "optimizer": {}}
        for name, weight in self.weights.items():
            for moment, tensor in sorted(self.optimizer.state.get(weight, {}).items()):
                groups["optimizer"][f"{moment}/{name}"] = tensor
        if self.average is not None:
            groups["ema"] = self.average
        return groups

    def checkpoint_bytes(self) -> int:
        """Size in bytes of a checkpoint after a step, with both moments of every weight."""
        averages = (self.average or {}).values()
        return 3 * checkpoint.size_of(self.weights.values()) + checkpoint.size_of(averages)

    def restore(self, path: Path) -> None:
        """Restore a checkpoint's tensors bit for bit; ValueError names missing weights."""
        _copy_all(self.weights, checkpoint.read_tensors(path, "trainable"), path)
        if self.average is not None:
            _copy_all(self.average, checkpoint.read_tensors(path, "ema"), path)
        for key, tensor in checkpoint.read_tensors(path, "optimizer"):
            moment, name = key.split("/", 1)
            weight = self.weights[name]
            self.optimizer.state[weight][moment] = self._placed(moment, tensor, weight)
        self.tally = Tally(**checkpoint.read_state(path)["tally"])

    def _placed(self, moment: str, tensor: Tensor, weight: nn.Parameter) -> Tensor:
        """A moment like its weight; AdamW's step counter is a plain scalar, on the device where AdamW is fused."""
        if moment != "step":
            return like(tensor, weight)
        return tensor.to(weight.device) if self.optimizer.defaults["fused"] else tensor

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """One step of the moving average: decay * average + (1 - decay) * weight."""
        assert self.average is not None
        for name, value in self.average.items():
            value.lerp_(self.weights[name], 1.0 - decay)

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Replace the model's weights with the moving average, which the recipe evaluates and releases."""
        for name, value in (self.average or {}).items():
            self.weights[name].copy_(value)


@torch.no_grad()
def _copy_all(own: Mapping[str, Tensor], read: Iterable[tuple[str, Tensor]], path: Path) -> None:
    missing = set(own)
    for name, tensor in read:
        if name not in own or tensor.shape != own[name].shape:
            raise ValueError(f"{path}: {name} {tuple(tensor.shape)} does not fit this model")
        own[name].copy_(like(tensor, own[name]))
        missing.discard(name)
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} trained weights are missing, for instance {min(missing)}"
        )


def build_state(model: UnifiedModel, names: list[str], recipe: Recipe) -> TrainState:
    """AdamW over the trainable weights with the family's decay groups, and the moving average if the recipe has one."""
    by_name = dict(model.named_parameters())
    weights = {name: by_name[name] for name in names}
    groups = by_rank(weights) if recipe.trains else model.decay_groups()
    if sorted([*groups.decay, *groups.no_decay]) != sorted(names):
        raise ValueError(
            f"{model.family}: decay_groups() must hold every trainable name exactly once"
        )
    fused = fuses(weights.values())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [weights[name] for name in groups.decay],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [weights[name] for name in groups.no_decay], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(recipe.betas[0], recipe.betas[1]),
        eps=recipe.eps,
        fused=fused,
        foreach=not fused,  # the same bits as tensor by tensor, without Python between them
    )
    average = None
    if recipe.ema is not None:
        average = {name: weight.detach().clone() for name, weight in weights.items()}
    return TrainState(weights, optimizer, average)


def fuses(weights: Iterable[Tensor]) -> bool:
    """Whether AdamW updates all weights in one kernel: on a GPU.

    On a CPU that rounds differently, and recorded runs keep their numbers.
    """
    return all(weight.device.type == "cuda" for weight in weights)


def by_rank(weights: Mapping[str, Tensor]) -> DecayGroups:
    """Decay groups for weights that no published recipe trains: matrices decay, vectors do not."""
    return DecayGroups(
        decay=tuple(name for name, weight in weights.items() if weight.ndim >= 2),
        no_decay=tuple(name for name, weight in weights.items() if weight.ndim < 2),
    )


def load_trained(folder: Path, model: UnifiedModel, names: Sequence[str]) -> int:
    """Load the newest checkpoint of a working folder into an unsharded `model` (its average, if it has one).

    `names` are the weights that the run trained, as `freeze` returns them. Returns the step. After a run of several
    ranks, rank 0 uses this to get a model that `save` can write.
    """
    newest = checkpoint.latest(folder)
    if newest.path is None:
        raise ValueError(
            f"{folder}: no valid checkpoint here: {[reason for _, reason in newest.broken]}"
        )
    group = "ema" if any(newest.path.glob("ema-*.safetensors")) else "trainable"
    known = dict(model.named_parameters())
    weights = {name: known[name] for name in names}
    _copy_all(weights, checkpoint.read_tensors(newest.path, group), newest.path)
    return newest.step
