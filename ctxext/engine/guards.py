"""Hooks of a patched model around each forward: what is not as the patch left it is refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache

from ctxext.engine.compiled import uncompiled
from ctxext.engine.forward import announce
from ctxext.engine.state import PatchState
from ctxext.engine.turned import take_turned
from ctxext.errors import UnsupportedModelError

WRITER = "_ctxext_writer"  # the attribute by which a cache knows the methods that wrote its keys


@uncompiled
def check_inputs(state: PatchState, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """A pre-hook of the base model: finds true positions, where methods count."""
    configs = {id(c): c for layer in state.layers if (c := layer.__dict__.get("config"))}
    given = (getattr(c, "_attn_implementation", None) for c in configs.values())
    if any(name not in (state.name, None) for name in given):
        raise UnsupportedModelError(
            "the attention implementation was changed while the model was patched: remove the "
            "patch first"
        )
    named = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False))
    inputs = {**kwargs, **named}
    mask, counting = inputs.get("attention_mask"), state.query_scales or state.absolute
    flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if counting and flat is not None and inputs.get("position_ids") is None:
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"] if tokens is None else tokens
        positions = (flat.long().cumsum(-1) - 1).clamp(min=0)
        kwargs["position_ids"] = positions[:, -tokens.shape[1] :]
    return args, kwargs


@uncompiled
def check_cache(writer: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """A pre-hook of the base model: refuses a cache whose keys are not as the patch leaves them."""
    for cache in (x for x in (*args, *kwargs.values()) if isinstance(x, Cache)):
        if int(cache.get_seq_length()) and cache.__dict__.get(WRITER) != writer:
            raise UnsupportedModelError(
                "the cache holds keys that were not written under this patch, as those of prefix "
                "tuning or of the model before it was patched: begin with a cache that is empty"
            )
        cache.__dict__[WRITER] = writer


@uncompiled
def find_turned(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """A pre-hook of what holds all layers: finds the keys of a cache that stay turned."""
    caches = [x for x in (*args, *kwargs.values()) if isinstance(x, Cache)]
    announce(take_turned(caches[0]) if len(caches) == 1 else {})


@uncompiled
def mark_cache(writer: str, module: nn.Module, args: Any, output: Any) -> None:
    """A hook of the base model: leaves in the cache that it has made what wrote its keys."""
    for cache in output.values() if isinstance(output, dict) else output:
        if isinstance(cache, Cache):
            cache.__dict__[WRITER] = writer


def check_weights(module: nn.Module, args: Any, output: Any) -> None:
    """A hook of the base model: refuses to give nothing where attention weights are asked for."""
    given = output.values() if isinstance(output, dict) else output
    if any(isinstance(x, tuple) and all(each is None for each in x) for x in given):
        raise UnsupportedModelError(
            "a distance method gives attention weights for `output_attentions=True` of a forward "
            "alone: the model was asked for them in another way, or its layers do not pass it on"
        )
