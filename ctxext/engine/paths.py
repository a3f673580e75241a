"""The attention paths of distance methods: which can run where, and which one is taken.

flash    FlashAttention calls with a window, merged            CUDA, 16 bits
sdpa     torch's own operators, in blocks, merged              CPU, CUDA
eager    the reference, chunked by query                       anywhere
dense    the reference itself, memory quadratic in length      for checking the others
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctxext.engine import PATHS, check_path
from ctxext.engine.chunked import chunked_attention
from ctxext.engine.merged import merged_attention
from ctxext.engine.operators import TORCH, CudaFlash, Operator
from ctxext.engine.positions import Positions
from ctxext.engine.reference import dense_attention
from ctxext.engine.runs import FEW
from ctxext.errors import UsageError
from ctxext.patches.base import Part


class Choice(NamedTuple):
    """A path, and why those before it in PATHS were not taken, a phrase each."""

    name: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " · ".join((self.name, *(f"not {reason}" for reason in self.reasons)))


def choose(
    asked: str,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    needs: Sequence[str] = (),
) -> Choice:
    """The path to take.

    Args:
        asked: "auto", "dense" or one of PATHS.
        device: where the model is: "cpu", "cuda", "cuda:1", ….
        head_dim: of queries and keys.
        needs: what the model's attention has besides, such as "softcap" or "sinks", which only
            the reference serves.

    Raises:
        UsageError: an unknown path, or one that cannot run there; the message says why.
    """
    if asked == "dense":
        return Choice(asked, ())
    check_path(asked)
    why = {name: _why_not(name, torch.device(device).type, dtype, head_dim) for name in PATHS}
    if needs:
        unserved = dict.fromkeys(PATHS[:-1], f"{' and '.join(needs)} are not served")
        why |= {name: why[name] or reason for name, reason in unserved.items()}
    if asked == "auto":
        name = next(name for name in PATHS if why[name] is None)
        passed = PATHS[: PATHS.index(name)]
        return Choice(name, tuple(f"{other}: {why[other]}" for other in passed))
    if why[asked]:
        able = ", ".join(("auto", *(name for name in PATHS if why[name] is None)))
        raise UsageError(f"attention path {asked!r} cannot run: {why[asked]}; valid here: {able}")
    return Choice(asked, ())


def _why_not(name: str, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps a path from running, as a phrase; None where nothing does."""
    if name == "sdpa" and device not in TORCH:
        return f"torch has no such operator for {device}"
    if name == "flash" and device != "cuda":
        return "it needs a CUDA device"
    if name == "sdpa" and device == "cuda" and dtype == torch.float64:
        return "float64 is not served"
    if name == "flash" and dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
    if name == "flash" and (head_dim > 256 or head_dim % 8):
        return f"a head dimension of {head_dim} is not a multiple of 8 up to 256"
    if name == "flash" and not CudaFlash.available():
        return "neither flash-attn nor this torch has FlashAttention 2"
    return None


def attend(
    path: str,
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
    """Distance attention on a path; the other arguments as for `reference.dense_attention`.

    From every path a mask, positions that differ by row or leave some out, dropout, softcap, sinks
    and values of a larger head dimension than the keys' go to the chunked reference, and so do FEW
    queries in 32 bits or more.

    Args:
        mask: [b or 1, 1, n or 1, m], True where seen.
    """
    n = query.shape[2]
    (d, width) = key.shape[3], value.shape[3]
    odd = mask is not None or (at is not None and at.offset is None) or dropout or width > d
    odd = odd or softcap is not None or sinks is not None
    few = n < FEW and value.dtype in (torch.float32, torch.float64)
    if path in ("eager", "dense") or few or odd:
        plain = dense_attention if path == "dense" else chunked_attention
        return plain(query, key, value, parts, turn, scaling, mask, dropout, softcap, sinks, at)
    thin = width < d
    value = pad(value, (0, d - width)) if thin else value
    operator = _operator(path, query)
    out = merged_attention(query, key, value, parts, turn, scaling, operator, at)
    return out[..., :width] if thin else out


def _operator(path: str, query: Tensor) -> Operator:
    """What computes plain attention on the path for these queries."""
    head_dim, device, dtype = query.shape[3], query.device.type, query.dtype
    flash = path != "sdpa" and _why_not("flash", device, dtype, head_dim) is None
    return CudaFlash() if flash else TORCH[device]
