"""Greedy decoding with a KV cache, shared by the families.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reca.core.finite import chosen_finite, demand
from reca.models.common.tokenizer import TextFrontEnd
from reca.models.contract import warn_truncated

Steps = Iterator[tuple[Tensor, Tensor]]


def greedy(
    logits: Tensor, advance: Callable[[Tensor], Tensor], end: int, max_new_tokens: int
) -> Steps:
    """Logits [B, V] and their argmax [B], token by token, until every row has produced `end`.

    `logits` are those after the prompt; `advance` feeds tokens [B] to the network and returns the next logits. Raises
    NonFinite, after the last token, with the rows whose logits were not finite.
    """
    finished = torch.zeros_like(logits[:, 0], dtype=torch.bool)
    finite = torch.ones_like(finished)
    for step in range(max_new_tokens):
        token = logits.argmax(dim=-1)
        finite = finite & (finished | chosen_finite(logits, token))
        yield logits, token
        finished = finished | (token == end)
        if step == max_new_tokens - 1 or bool(finished.all()):
            break
        logits = advance(token)
    demand(finite, "logits of the answers")


def answers(steps: Steps, text: TextFrontEnd, rows: int) -> list[str]:
    """The texts of `greedy`'s tokens, one per row; the number of truncated rows is logged."""
    tokens = [token for _, token in steps]
    ids = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in range(rows)]
    warn_truncated(ids, text.end)
    return [text.decoded(row) for row in ids]
