"""What is put around a model's forwards: its two seams, and hooks, until it is undone."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, cast

from torch import nn

from ctxext.engine.anatomy import Anatomy
from ctxext.engine.at_hand import AtHand
from ctxext.engine.few_tokens import WithoutProducts, forward
from ctxext.engine.frequencies import module_with
from ctxext.engine.guards import (
    check_cache,
    check_inputs,
    check_weights,
    find_turned,
    mark_cache,
)
from ctxext.engine.rotary import RotarySite, as_it_is
from ctxext.engine.seams import register_distance, register_scaled
from ctxext.engine.state import STATE, PatchState
from ctxext.engine.switch import renew, replace, use_attention
from ctxext.engine.trial import check_outputs, check_softmax, outputs
from ctxext.methods import Spec
from ctxext.models.frequency_sets import FrequencySet


def apply_seams(
    model: Any,
    anatomy: Anatomy,
    sites: list[RotarySite],
    trained: int,
    spec: Spec,
    path: str,
    undo: contextlib.ExitStack,
) -> None:
    """Put the seams on, and check on a few tokens that they are the ones the model uses."""
    distance = spec.distance if sites else None
    parts = distance.parts() if distance else ()
    rule = spec.rule if anatomy.taking else None
    deep = bool(parts or spec.query_scales or rule)
    for site in sites:
        site.own = site.own if parts or spec.frequencies else {}
    if not (deep or any(site.own for site in sites)):
        return
    own = own_implementation(model)
    if parts and any(x.softcap or x.sinks for x in anatomy.layers):
        own = "eager"  # torch's sdpa leaves both out
    elif (parts or rule) and own not in ("eager", "sdpa"):
        own = "sdpa"
    layers = {layer.module: layer for layer in anatomy.layers}
    by_freqs = {site.freqs: site for site in sites}
    state = PatchState(layers, by_freqs, trained, spec.query_scales, path, own)
    if distance:
        state.cached, state.absolute = parts[distance.cached], distance.absolute
    state.rule = rule
    told = anatomy.axes if spec.query_scales else by_freqs  # of true positions
    state.rotary = frozenset(freqs.module for freqs in told)
    for module in state.rotary:  # before others' hooks, which see what the module gives now
        hook = module.register_forward_hook(state.rotated, prepend=True, with_kwargs=True)
        undo.callback(hook.remove)
        renew(module, state.as_is, undo)
    for site in sites:
        for module in site.own:
            swap = functools.partial(state.own_tables, site)
            undo.callback(module.register_forward_pre_hook(swap, with_kwargs=True).remove)
            renew(module, state.as_is, undo)
    core = _core(model, {*layers, *state.rotary})
    cores = dict.fromkeys((model.base_model, core))
    for module in cores:
        undo.callback(module.register_forward_hook(state.end, always_call=True).remove)
    with contextlib.ExitStack() as whole:
        if own != own_implementation(model):
            use_attention(model, own, whole)
        before = outputs(model, layers, anatomy.changed) if deep else None
    if before is not None and own != own_implementation(model):
        check_softmax(model, layers, anatomy.changed, before, spec)
    state.take(parts)
    for site in sites if parts else []:
        site.factor = site.freqs.factor
        replace(undo, site.freqs.module, site.freqs.named("attention_scaling"), 1.0)
    if before is not None:
        name = register_distance(own) if parts else register_scaled(own)
        state.name = name
        use_attention(model, name, undo)
        for module in model.modules():
            if "config" in module.__dict__ or module in layers:
                replace(undo, module, STATE, state)
        check = functools.partial(check_inputs, state)
        for module in cores:
            undo.callback(module.register_forward_pre_hook(check, with_kwargs=True).remove)
        if parts:
            undo.callback(core.register_forward_pre_hook(find_turned, with_kwargs=True).remove)
        writer = spec.full()
        for module in cores if parts else ():
            known = functools.partial(check_cache, writer)
            undo.callback(module.register_forward_pre_hook(known, with_kwargs=True).remove)
            marked = functools.partial(mark_cache, writer)
            undo.callback(module.register_forward_hook(marked).remove)
            undo.callback(module.register_forward_hook(check_weights).remove)
        for layer in anatomy.taking:
            run = layer.module
            undo.callback(
                run.register_forward_pre_hook(state.before_layer, with_kwargs=True).remove
            )
            undo.callback(run.register_forward_hook(state.after_layer, always_call=True).remove)
        check_outputs(model, state, before)
    else:
        # `own_tables` refuses what it does not understand
        forward(model, 1, state.sites, WithoutProducts())


def site_of(freqs: FrequencySet, anatomy: Anatomy, spec: Spec, length: int | None) -> RotarySite:
    """A set of frequencies as it is before the patch, and as layers have it by themselves."""
    before = as_it_is(freqs.module)
    own = {layer: before for layer, source in anatomy.alone.items() if source is freqs}
    if spec.by_layer:
        made: dict[Spec, nn.Module] = {}
        for place, layer in enumerate(anatomy.layers):
            if layer.freqs is freqs and not layer.inside:
                at = spec.at_layer(place)
                if at not in made:
                    made[at] = module_with(freqs, at, length)
                own[layer.module] = made[at]
    return RotarySite(freqs, anatomy.axes[freqs], own=own)


def apply_at_hand(model: Any, at_hand: AtHand, undo: contextlib.ExitStack) -> None:
    """Let rotary modules go by the length of each sequence: before what sees their tables."""
    rotary = {freqs.module for freqs in at_hand.freq_sets}
    for module in rotary:
        hook = module.register_forward_hook(at_hand.rotated, prepend=True, with_kwargs=True)
        undo.callback(hook.remove)
        renew(module, at_hand.as_is, undo)
    core = _core(model, rotary)
    undo.callback(core.register_forward_pre_hook(at_hand.before, with_kwargs=True).remove)
    undo.callback(core.register_forward_hook(at_hand.after, always_call=True).remove)
    if callable(own := getattr(model, "generate", None)):
        replace(undo, model, "generate", functools.partial(at_hand.generate, own, model))


def _core(model: Any, needed: set[nn.Module]) -> nn.Module:
    """The innermost module that embeds tokens and has all these modules in it."""
    needed, core = {*needed, model.get_input_embeddings()}, model
    while inner := next((x for x in core.children() if needed <= {*x.modules()}), None):
        core = inner
    return cast(nn.Module, core)


def own_implementation(model: Any) -> str:
    """The attention implementation that transformers runs the model on."""
    return str(model.config.get_text_config()._attn_implementation)
