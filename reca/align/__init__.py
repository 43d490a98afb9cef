"""Post-training: the objective with its lambdas, one training loop for all families, exact checkpoints.

`align` is imported lazily, so that `reca.config.recipe` stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reca.align.trainer import Summary, align

__all__ = ["Summary", "align"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from reca.align import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
