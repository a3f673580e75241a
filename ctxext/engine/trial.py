"""A few tokens through a model, by which it gives under an infinite window what it gave before."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.engine.few_tokens import TOKENS, WithoutProducts, forward, kind_of
from ctxext.engine.state import PatchState
from ctxext.errors import UnsupportedModelError
from ctxext.methods import Spec
from ctxext.methods.base import Part, identity
from ctxext.models.frequency_sets import FrequencySet


class Outputs(NamedTuple):
    """What attention layers give on a few tokens: [tokens, ·] each.

    Attributes:
        real: the layers whose products were taken, besides those of which noise stood in for
            products; None where all were.
    """

    layers: list[Tensor]
    real: Collection[nn.Module] | None


def outputs(
    model: Any, layers: Collection[nn.Module], freq_sets: Iterable[FrequencySet]
) -> Outputs:
    """What each attention layer gives on a few tokens, in evaluation mode.

    Noise stands in for the products of all else, unless that is not finite somewhere.
    """
    real: Collection[nn.Module] | None
    for real in (layers, None):
        found = _outputs(model, layers, freq_sets, real)
        if all(bool(torch.isfinite(x).all()) for x in found):
            break
    return Outputs(found, real)


def _outputs(
    model: Any,
    layers: Collection[nn.Module],
    freq_sets: Iterable[FrequencySet],
    real: Collection[nn.Module] | None,
) -> list[Tensor]:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen.append(first.detach().flatten(0, 1).float().cpu())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        forward(model, TOKENS, freq_sets, None if real is None else WithoutProducts(real))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def check_outputs(model: Any, state: PatchState, before: Outputs) -> None:
    """With a window wider than the probe, each attention must give what it gave before the patch.

    Off means relative to a token's largest output. In float32 no token may be off by 1e-3, where
    rounding an angle of TOKENS radians costs 1e-6 a layer; in 16 bits or under autocast, where each
    rounding costs 4e-3 and may route a token to another expert, half of the tokens must be within
    1e-1.
    """
    kept = state.parts
    state.take(_wide(state) if kept else ())
    scales, state.query_scales = state.query_scales, ()
    rule, state.rule = state.rule, None
    try:
        after = _outputs(model, state.layers, state.sites, before.real)
    finally:
        state.take(kept)
        state.query_scales, state.rule = scales, rule
    if worst := _off(model, before.layers, after):
        raise UnsupportedModelError(
            f"{kind_of(model)} is rotated in a way that is not understood: with an infinite "
            f"window its attention is off by {worst:.1g}"
        )


def check_softmax(
    model: Any,
    layers: Collection[nn.Module],
    freq_sets: Iterable[FrequencySet],
    softmax: Outputs,
    spec: Spec,
) -> None:
    """UnsupportedModelError where the implementation that a model runs on gives other than softmax.

    Transformers' own implementations are all softmax, and are not run. Off means as for
    `check_outputs`.
    """
    name = str(model.config.get_text_config()._attn_implementation)
    own = ALL_ATTENTION_FUNCTIONS.get_interface(name, None)
    if getattr(own, "__module__", "").partition(".")[0] == transformers.__name__:
        return
    given = _outputs(model, layers, freq_sets, softmax.real)
    if worst := _off(model, softmax.layers, given):
        raise UnsupportedModelError(
            f"{kind_of(model)} does not take {spec}: its attention {name!r} is not softmax, on "
            f"which distance methods and attention rules rest (off by {worst:.1g})"
        )


def _off(model: Any, before: list[Tensor], after: list[Tensor]) -> float | None:
    """By how much one of these outputs is off; None where all are near enough."""
    weight = next(model.parameters())
    wide = weight.dtype in (torch.float32, torch.float64)
    wide = wide and not torch.is_autocast_enabled(weight.device.type)
    for old, new in zip(before, after, strict=True):
        off = (old - new).abs().amax(-1) / old.abs().amax(-1).clamp(min=1e-9)
        worst = float(off.max() if wide else off.median())
        if not worst <= (1e-3 if wide else 1e-1):
            return worst
    return None


def _wide(state: PatchState) -> tuple[Part, ...]:
    """The same cached keys, with a near part that reaches over the whole probe."""
    own = state.cached.key
    far = replace(state.cached, start=TOKENS, stop=None, unit=1, first=None, query=own, factor=1.0)
    return (Part(0, TOKENS, identity, identity), far)
