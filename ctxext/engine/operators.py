"""Plain attention that also returns its log-sum-exp: the operators that the merged path runs on.

An operator takes q [b, h, n, d], k and v [b, g, m, d] of one dtype, contiguous in d, and gives out
[b, h, n, d] and lse [b, h, n], the natural logarithm of each row's sum of weights. Its backward
takes the output and log-sum-exp of the merged whole in place of its own.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

aten: Any = torch.ops.aten
Gradients = tuple[Tensor, Tensor, Tensor]


class Pattern(NamedTuple):
    """Which keys the queries see: all of them, unless one of these says less."""

    causal: bool = False  # the last query sees the last key; without `windows`, n = m
    mask: Tensor | None = None  # [n, m], or [b, 1, 1, m] for `row_masks`, added to the scores
    window: int | None = None  # a causal query sees its last so many keys


class Operator(Protocol):
    """An attention operator."""

    windows: bool  # takes windows, n < m under causal, and g < h; else it takes masks
    row_masks: bool  # also such of each row [b, 1, 1 or n, m]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        """out and lse."""

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        pattern: Pattern,
    ) -> Gradients:
        """The gradients of q, k and v."""


class CpuFlash:
    """torch's flash attention for the CPU; its own autograd formula leaves the lse out."""

    windows = False
    row_masks = True

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, pattern.causal, attn_mask=pattern.mask, scale=scale
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        pattern: Pattern,
    ) -> Gradients:
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, pattern.causal, attn_mask=pattern.mask, scale=scale
        )
        return dq, dk, dv


class CudaEfficient:
    """torch's memory-efficient attention for CUDA.

    It pads the log-sum-exp to multiples of 32 rows, and wants a mask's rows to start at multiples
    of 16 bytes.
    """

    windows = False
    row_masks = False  # not tried

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        out, lse, _, _ = aten._scaled_dot_product_efficient_attention(
            q, k, v, self._bias(q, pattern.mask), True, 0.0, pattern.causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        pattern: Pattern,
    ) -> Gradients:
        lse = pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf).contiguous()
        seed = torch.zeros((), dtype=torch.long, device=q.device)  # of a dropout of 0
        bias, wanted = self._bias(q, pattern.mask), (True, True, True, False)
        dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, bias, out, lse, seed, seed, 0.0, wanted, pattern.causal, scale=scale
        )
        return dq, dk, dv

    @staticmethod
    def _bias(q: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        rows, columns = mask.shape
        aligned = pad(mask, (0, -columns % 16))[:, :columns]
        return aligned.expand(*q.shape[:2], rows, columns)


@functools.cache
def _flash_attn() -> Any:
    """FlashAttention 2's function; None where it is not there, as in a FlashAttention 4 alone."""
    try:
        return getattr(importlib.import_module("flash_attn"), "flash_attn_func", None)
    except Exception:  # built for another torch, it raises as it likes
        return None


class CudaFlash:
    """FlashAttention: that of the flash-attn package where it has it, else torch's own copy."""

    windows = True
    row_masks = False

    @staticmethod
    def available() -> bool:
        """Whether there is either of them."""
        return _flash_attn() is not None or torch.backends.cuda.is_flash_attention_available()

    def __init__(self) -> None:
        self._package = _flash_attn()

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        left, right = self._sides(pattern)
        if self._package is not None:
            out, lse, _ = self._package(
                q,
                k,
                v,
                softmax_scale=scale,
                causal=pattern.causal,
                window_size=(left, right),
                return_attn_probs=True,
            )
        else:
            out, lse, *_ = aten._flash_attention_forward(
                q,
                k,
                v,
                None,
                None,
                q.shape[1],
                k.shape[1],
                0.0,
                pattern.causal,
                False,
                scale=scale,
                window_size_left=left,
                window_size_right=right,
            )
        return out.transpose(1, 2), lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        pattern: Pattern,
    ) -> Gradients:
        grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, q, k, v, out))
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout of 0
        left, right = self._sides(pattern)
        dq, dk, dv = aten._flash_attention_backward(
            grad.contiguous(),
            q,
            k,
            v,
            out,
            lse.contiguous(),
            None,
            None,
            q.shape[1],
            k.shape[1],
            0.0,
            pattern.causal,
            state,
            state,
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)

    @staticmethod
    def _sides(pattern: Pattern) -> tuple[int, int]:
        """How many keys before and after its own a query sees; −1 for all."""
        left = -1 if pattern.window is None else pattern.window - 1
        return left, 0 if pattern.causal else -1


TORCH: dict[str, Operator] = {"cpu": CpuFlash(), "cuda": CudaEfficient()}  # by device type
