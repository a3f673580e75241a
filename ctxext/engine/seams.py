"""The attention function of patched models, as transformers' attention interface knows it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.engine.attention import Turn
from ctxext.engine.compiled import uncompiled
from ctxext.engine.layers import AttentionSite, handed
from ctxext.engine.masks import padding_mask
from ctxext.engine.paths import attend
from ctxext.engine.runs import FEW, Run, attend_runs
from ctxext.engine.sharpened import sharpened
from ctxext.engine.state import STATE, WHOLE, PatchState
from ctxext.engine.switch import registered
from ctxext.engine.turned import Turned
from ctxext.errors import UnsupportedModelError
from ctxext.methods.base import Part

WATCH = "_ctxext_watch"  # the attribute by which an attention module finds who is told its scores
CAUSAL: tuple[Part, ...] = (WHOLE,)  # of layers without positions


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of patched models; transformers' signature.

    query [b, h, n, d], key and value [b, g, m, d], attention_mask as `padding_mask` gives it, or
    [b or 1, 1, n, m] of bool or added to scores; returns [b, n, h, d], and weights or None.
    """
    state = getattr(module, STATE, None)
    if not isinstance(state, PatchState):
        raise UnsupportedModelError(f"{type(module).__name__} was asked for ctxext but not patched")
    layer = state.layers.get(module)
    if layer is None and any(type(known) is type(module) for known in state.layers):
        raise UnsupportedModelError(f"{type(module).__name__} did not run when it was patched")
    if layer is not None and not layer.inside:
        query = state.scale_query(layer, query, attention_mask)
        if state.rule is not None:
            query = sharpened(state.rule, state.trained, query, key, attention_mask, **kwargs)
        if state.parts:
            return _distance_attention(state, layer, query, key, value, attention_mask, **kwargs)
    own = own_attention(state.own, module)
    output: tuple[Tensor, Tensor | None] = own(module, query, key, value, attention_mask, **kwargs)
    return output


def own_attention(name: str, module: nn.Module) -> Callable[..., Any]:
    """Transformers' attention function of this name for an attention module."""
    homes = (sys.modules[cls.__module__] for cls in type(module).__mro__)  # FSDP derives classes
    eager = next((f for x in homes if (f := getattr(x, "eager_attention_forward", None))), None)
    return cast("Callable[..., Any]", ALL_ATTENTION_FUNCTIONS.get_interface(name, eager))


@uncompiled
def _distance_attention(
    state: PatchState,
    layer: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`attention` with the parts of a distance method, or causal where there are no positions."""
    ends = None
    for name in handed(kwargs):
        if name in layer.handed or state.is_positions(kwargs[name]):
            continue
        if not state.is_ends(kwargs[name], query) or not (
            ends is None or torch.equal(kwargs[name], ends)
        ):
            raise UnsupportedModelError(f"distance methods do not support attention with {name!r}")
        ends = kwargs[name]
    if is_causal is False and mask is None and query.shape[2] > 1:
        raise UnsupportedModelError("distance methods do not support attention that is not causal")
    runs, held = state.runs(layer, mask, ends, query, key), key
    query, key = query.to(value.dtype), key.to(value.dtype)
    parts: tuple[Part, ...] = CAUSAL
    turn: Turn = _unturned
    if layer.freqs is not None:
        site, now = state.sites[layer.freqs], state.forward()
        parts, turn = state.left[layer.freqs], functools.partial(site.turn, layer, now)
    if layer.weights is not None:
        query, key, turn = _unweighted(layer.weights, query, key, turn)
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    watch = layer.module.__dict__.get(WATCH)

    turned: dict[int, Tensor] = {}
    if len(runs) == 1:
        turned = _turned_keys(state, layer, parts, runs[0], turn, query, key, held)

    def attend_run(run: Run, q: Tensor, k: Tensor, v: Tensor, dropout: float = dropout) -> Tensor:
        mask = None if run.mask is None else run.mask.to(q.device)
        more = {"mask": mask, "dropout": dropout, "softcap": softcap, "sinks": s_aux}
        return attend(state.path, q, k, v, parts, turn, scaling, run.at, turned=turned, **more)

    if watch:
        for run in runs:
            q, k, _ = run.cut(query, key, value)
            watch(q, k, parts, turn, scaling, run.mask, softcap, s_aux, run.at)
    weights = None
    if output_attentions:  # what each key gives where it is all that its value has
        m = key.shape[2]
        one = torch.eye(m, dtype=value.dtype, device=value.device).expand(*key.shape[:2], -1, -1)
        kept = functools.partial(attend_run, dropout=0.0)
        weights = attend_runs(kept, runs, query, key, one)
    output = attend_runs(attend_run, runs, query, key, value)
    return output.transpose(1, 2).contiguous(), weights


def _turned_keys(
    state: PatchState,
    layer: AttentionSite,
    parts: tuple[Part, ...],
    run: Run,
    turn: Turn,
    query: Tensor,
    key: Tensor,
    held: Tensor,
) -> dict[int, Tensor]:
    """The turned keys of each part that turns some, by index, where a cache goes on untouched.

    Args:
        held: the keys as the cache holds them.
    """
    b, _, n, _ = query.shape
    whole = (run.rows, run.queries, run.keys.start) == (slice(0, b), slice(0, n), 0)
    graded = torch.is_grad_enabled() and (key.requires_grad or query.requires_grad)
    uncounted = torch.is_inference_mode_enabled() or held.is_inference()  # what is written to it
    alone = uncounted or layer.freqs is None or state.path == "dense"
    if n >= FEW or graded or not whole or alone:
        return {}
    kept = state.forward().turned_keys.pop(layer.module, None)
    if kept is None or not kept.goes_on(parts, run.at):
        Turned(layer.module, parts, run.at.first).hang(held)
        return {}
    kept.hang(held)
    return {
        index: kept.keys(index, band, key[:, :, : run.keys.stop], run.at, turn)
        for index, band in enumerate(run.at.bands(parts))
        if band.key is not None and band.low < band.high
    }


def _unturned(x: Tensor, positions: Tensor) -> Tensor:
    return x


def _unweighted(
    norms: tuple[nn.Module, nn.Module], query: Tensor, key: Tensor, turn: Turn
) -> tuple[Tensor, Tensor, Turn]:
    """Query and key as pure rotations, where norms multiply them by dimension afterwards.

    Their product with both weights is put on queries when these are turned, as each is once.
    """
    a, b = (cast(Tensor, norm.weight).to(query.dtype) for norm in norms)
    query, key, weight = query / a, key / b, a * b
    place = query.untyped_storage().data_ptr()

    def weighted(x: Tensor, positions: Tensor) -> Tensor:
        out = turn(x, positions)
        return out * weight if x.untyped_storage().data_ptr() == place else out

    return query, key, weighted


def register_distance(own: str) -> str:
    """Register `attention` and its mask, with `own` for what is left alone; its name."""
    name = registered(f"distance_{own}")
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, padding_mask(own))
    return name


def register_scaled(own: str) -> str:
    """Register `attention` over the implementation `own`, with its mask; its new name."""
    if own not in ALL_MASK_ATTENTION_FUNCTIONS:  # without one the model would not be causal
        raise UnsupportedModelError(f"query scales do not run on {own!r} attention: load with sdpa")
    name = registered(own)
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name
