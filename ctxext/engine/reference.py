"""Distance attention in its plainest form: every part over every pair, then a choice.

Dimensions: b batch, h query heads, g key heads, n queries, m keys, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctxext.engine.positions import Positions, row
from ctxext.methods.base import Part


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    at: Positions | None = None,
) -> Tensor:
    """Softmax attention in which each pair is scored by the part that it is in.

    Args:
        query: [b, h, n, d].
        key, value: [b, g, m, d], with h a multiple of g.
        parts: none of which share a pair; pairs in none are not seen.
        turn: `turn(x [b, *, l, d], positions [l] or [b, l])` rotates each x by its position
            (tokens; float64, on the CPU), or its pairs by [b or 1, l, d/2].
        scaling: what scores are multiplied by.
        mask: [b or 1, 1, n, m], True where seen; None hides nothing more.
        dropout: probability of dropping a weight.
        softcap: scores s become softcap · tanh(s / softcap).
        sinks: [h], a score for each head that takes weight and gives nothing.
        at: the positions of queries and keys; by default keys stand at 0 … m−1, and queries are
            the last n of them.

    Returns:
        [b, h, n, d], in the dtype of `query`; float64 throughout where the inputs are. Memory
        is b·h·n·m.
    """
    n, m = query.shape[2], key.shape[2]
    at = at or Positions.consecutive(n, m)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    q, k = at.query.double(), at.key.double()
    scores = query.new_zeros(*query.shape[:3], m)
    seen = torch.zeros(1, 1, n, m, dtype=torch.bool, device=query.device)
    for part in parts:
        far = turn(query, row(part.query(q))) @ turn(key, row(part.key(k))).mT
        here = at.held(part, 0, n, 0, m)[:, None].to(query.device)
        scores, seen = torch.where(here, far * (scaling * part.factor), scores), seen | here
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = seen if mask is None else mask & seen
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), -1)
    weights = torch.softmax(scores, -1, dtype=wide)[..., :m].to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value
