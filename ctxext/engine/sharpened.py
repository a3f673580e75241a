"""What an attention rule multiplies queries by, found from their scores in linear memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctxext.engine.compiled import uncompiled
from ctxext.methods.base import AttentionRule

SCORES_AT_ONCE = 2**19  # that a CPU's cache still holds a few times


@uncompiled
@torch.no_grad()
def sharpened(
    rule: AttentionRule,
    trained: int,
    query: Tensor,
    key: Tensor,
    mask: Any,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """Queries [b, h, n, d] times what the rule makes of their scores; as they are where that
    is 1. It is taken for a constant in a backward.

    Args:
        trained: T in tokens.
        key: [b, g, m, d].
        mask: [b or 1, 1, n, m] of bool or added to scores; None where causal order is all.
        scaling: what scores are multiplied by; by default 1/√d.
    """
    (b, h, n, d), (g, m) = query.shape, key.shape[1:3]
    if m <= trained:
        return query
    wide = torch.promote_types(query.dtype, torch.float32)
    scaling = d**-0.5 if scaling is None else scaling
    keys = key.to(wide).mT
    first = max(0, trained - (m - n)) if mask is None else 0  # the first that sees beyond T
    size = max(1, SCORES_AT_ONCE // (b * h * m))
    scales = [query.new_ones(b, h, first, 1, dtype=wide)]
    for start in range(first, n, size):
        stop = min(start + size, n)
        last = m if mask is not None else m - n + stop  # keys that any of them sees
        seen = _seen(mask, start, stop, n, m, query.device)[..., :last]
        place = seen.int().cumsum(-1, dtype=torch.int32) * seen
        q = query[:, :, start:stop].to(wide) * scaling
        scores = q.reshape(b, g, -1, d) @ keys[..., :last]
        scales.append(rule.sharper(scores.view(b, h, stop - start, last), place, trained))
    scale = torch.cat(scales, 2)
    return (query.to(wide) * scale).to(query.dtype)


def _seen(mask: Any, start: int, stop: int, n: int, m: int, device: torch.device) -> Tensor:
    """Which keys queries start … stop−1 see [b or 1, 1, stop − start, m]."""
    if mask is None:
        at = torch.arange(m - n + start, m - n + stop, device=device)[:, None]
        return (torch.arange(m, device=device) <= at)[None, None]
    rows: Tensor = mask[:, :, start:stop, :m]
    return rows > torch.finfo(rows.dtype).min / 2 if rows.is_floating_point() else rows.bool()
