"""The transformer encoder of CLIP's and SigLIP's vision towers, under transformers' parameter names.

Operations and their order are those of transformers (tests/models/test_transformers.py). Letters: B images, P patches,
D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.common.layers import Mlp


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {width}; change one")
        self.head_width = width // heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, P, D] -> [B, P, D]; mask [B, 1, P, P]."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = self.head_width**-0.5
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, hidden_act: str, epsilon: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, epsilon)
        self.self_attn = _Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, epsilon)
        self.mlp = Mlp(width, inner, hidden_act)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, P, D] -> [B, P, D]; mask [B, 1, P, P]."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    """Pre-norm transformer layers in which patches see each other."""

    def __init__(
        self, width: int, inner: int, layers: int, heads: int, *, hidden_act: str, epsilon: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer(width, inner, heads, hidden_act, epsilon) for _ in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, layers: int | None = None) -> Tensor:
        """[B, P, D] -> [B, P, D] after the first `layers` (None: all; negative: all but so many).

        `mask` [B, 1, P, P]: true where a patch sees another.
        """
        for layer in self.layers[:layers]:
            x = layer(x, mask)
        return x
