"""What each attention layer scores while a model runs, patched or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ctxext.engine.masks import seen_by
from ctxext.engine.seams import CAUSAL, WATCH, own_attention
from ctxext.engine.state import STATE, PatchState
from ctxext.engine.switch import replace, use_attention
from ctxext.errors import UnsupportedModelError

Watch = Callable[..., None]


@contextlib.contextmanager
def watching(model: Any, watch: Watch) -> Iterator[None]:
    """For the length of a `with` block, tell `watch` of every attention, in the layers' order.

    Args:
        model: a transformers causal language model, patched or not, on "sdpa" or "eager".
        watch: called as `watch(query, key, parts, turn, scaling, mask, softcap, sinks, at)`,
            the arguments of `chunked.chunked_entropy`; the mask is [b or 1, 1, 1 or n, m] or None.

    Raises:
        UnsupportedModelError: the model runs on another attention implementation.
    """
    state = next((s for m in model.modules() if (s := m.__dict__.get(STATE))), None)
    own = str(model.config.get_text_config()._attn_implementation)
    own = state.own if isinstance(state, PatchState) else own
    if own not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{own} attention cannot be watched, only sdpa and eager: --no-entropy explains the "
            "model without running it"
        )
    name = f"ctxext_watched_{own}"
    AttentionInterface.register(name, _watched(own))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            replace(undo, module, WATCH, watch)
        if isinstance(state, PatchState):
            replace(undo, state, "own", name)
        else:
            use_attention(model, name, undo)
        yield


def _watched(own: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Transformers' implementation `own`, whose queries and keys are rotated already."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None]:
        mask, scaling = attention_mask, given.get("scaling")
        if mask is not None and mask.is_floating_point():
            mask = seen_by(mask, "what an attention scores is not known with")
        scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
        watch = module.__dict__[WATCH]
        watch(
            query,
            key,
            CAUSAL,
            _as_is,
            scaling,
            mask,
            given.get("softcap"),
            given.get("s_aux"),
            None,
        )
        output: tuple[Tensor, Tensor | None] = own_attention(own, module)(
            module, query, key, value, attention_mask, **given
        )
        return output

    return attention


def _as_is(x: Tensor, positions: Tensor) -> Tensor:
    return x
