"""Distance attention on torch's FlexAttention: one call for each part, merged by autograd itself.

Compiled, FlexAttention skips every block of pairs that a part does not touch, so that it too
scores no pair twice but along the parts' edges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ctxext.patches.base import Part, as_held

BLOCK = 128  # queries and keys of a block


def flex_part_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    flex: Callable[..., Any] | None = None,
) -> Tensor:
    """Equal to `merged.merged_attention`, for parts whose unit is 1; arguments as there.

    Args:
        flex: the FlexAttention function, by default compiled.
    """
    flex = flex or _compiled()
    (n, m), grouped = (query.shape[2], key.shape[2]), query.shape[1] != key.shape[1]
    position = torch.arange(m, dtype=torch.float64)
    out, lse = torch.empty(0), torch.empty(0)
    for part in parts:
        low = max(m - n, part.start)
        left, right = part.span(low, m - 1)
        if left >= right:
            continue
        q, k = query[:, :, low - (m - n) :], key[:, :, left:right]
        new, aux = flex(
            turn(q, part.query(position[low:])),
            k if part.key is as_held else turn(k, part.key(position[left:right])),
            value[:, :, left:right],
            block_mask=block_mask(m - low, right - left, low - left, part, query.device),
            scale=scaling,
            enable_gqa=grouped,
            return_aux=AuxRequest(lse=True),
        )
        wide = torch.promote_types(new.dtype, torch.float32)
        new, its = new.to(wide), aux.lse[..., None]
        if part is parts[0]:
            out, lse = new, its
            continue
        skip = low - (m - n)
        share = torch.sigmoid(its - lse[:, :, skip:])
        both = torch.lerp(out[:, :, skip:], new, share.to(wide))
        out = torch.cat((out[:, :, :skip], both), 2)
        lse = torch.cat((lse[:, :, :skip], torch.logaddexp(lse[:, :, skip:], its)), 2)
    return out.to(value.dtype)


@functools.cache
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled


def block_mask(n: int, m: int, ahead: int, part: Part, device: torch.device) -> BlockMask:
    """The blocks of n queries and m keys that a part touches, and those that it fills.

    Args:
        ahead: how far the first query stands ahead of the first key, in tokens.
    """
    stop = part.stop or n + m + ahead
    nearest, end = (torch.tensor(x - ahead, device=device) for x in (part.start, stop))

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k >= nearest) & (q - k < end)  # tensors: their values compile nothing anew

    q = torch.arange(0, n, BLOCK, device=device)[:, None] + ahead
    k = torch.arange(0, m, BLOCK, device=device)
    least, most = q - k - (BLOCK - 1), q - k + (BLOCK - 1)  # distances in a block
    touched = (most >= part.start) & (least < stop)
    whole = (q + BLOCK <= n + ahead) & (k + BLOCK <= m)
    full = (least >= part.start) & (most < stop) & whole
    return BlockMask.from_kv_blocks(
        *_ordered(touched & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(n, m),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each row has, and their indices first: [1, 1, rows(, columns)]."""
    order = (~blocks).to(torch.int8).argsort(dim=-1, stable=True).to(torch.int32)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order[None, None]
