"""Masks: what those of transformers show, and ours, in memory linear in length where it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from ctxext.engine.compiled import uncompiled
from ctxext.errors import UnsupportedModelError

FAR = 2**31  # tokens: what sees so far back sees all


def seen_by(additive: Tensor, refusal: str = "distance methods do not support") -> Tensor:
    """The boolean mask of an additive one that only hides keys; UnsupportedModelError for others.

    Args:
        refusal: how its message begins.
    """
    seen = additive == 0
    if not (seen | (additive <= torch.finfo(additive.dtype).min / 2)).all():
        raise UnsupportedModelError(f"{refusal} a mask that adds a bias")
    return seen


def padding_mask(own: str) -> Callable[..., Tensor | None]:
    """The mask function of distance methods over the implementation `own`.

    It gives a mask in memory linear in length where it can: None where causal order is all there
    is, [b, 1, 1, m] where rows are padded besides. Anything else, such as packed sequences and
    sliding windows, has the mask of `own`, [b or 1, 1, n, m].
    """

    @uncompiled
    def mask(
        *,
        mask_function: Any = causal_mask_function,
        attention_mask: Tensor | None = None,
        **given: Any,
    ) -> Tensor | None:
        end, keys = given.get("q_offset", 0) + given["q_length"], given["kv_length"]
        short = attention_mask is not None and attention_mask.shape[1] != keys
        offset = given.get("kv_offset", 0) or end != keys or short
        plain = mask_function is causal_mask_function and given.get("allow_is_causal_skip", True)
        if offset or not plain:
            whole: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[own](
                mask_function=mask_function,
                attention_mask=attention_mask,
                **{**given, "allow_is_causal_skip": False},
            )
            return whole
        if attention_mask is None or bool(attention_mask.all()):
            return None
        return attention_mask[:, None, None].bool()

    return cast(Callable[..., "Tensor | None"], mask)


def window_of(function: Any) -> int | None:
    """How many tokens a mask function lets a query see, itself included; None for no limit."""
    if sees(function, FAR, 1):
        return None
    low, high = 0, FAR
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sees(function, middle, 1) else (low, middle)
    return high


def sees(function: Any, back: int, count: int) -> bool:
    """Whether a mask function lets any of `count` queries see the key `back` tokens before it."""
    first = max(0, back)
    query = torch.arange(first, first + count)
    zero = torch.zeros_like(query)
    seen = function(zero, zero, query, query - back)
    return bool(torch.as_tensor(seen).any())
