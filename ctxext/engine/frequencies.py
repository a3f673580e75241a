"""Put frequencies on a model's rotary modules, and take its own scaling off, until it is undone."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctxext.engine.rotary import as_it_is
from ctxext.engine.stock import numbers, stock_ropes
from ctxext.engine.switch import replace
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.methods import Spec
from ctxext.models.frequency_sets import FrequencySet, Rope


def start(freq_sets: list[FrequencySet], undo: contextlib.ExitStack) -> dict[FrequencySet, Rope]:
    """Put on what the methods start from; the rope parameters of scalings that are taken off."""
    for freqs in freq_sets:
        if freqs.replaced or (freqs.by_length and freqs.length):
            _set(freqs, *freqs.start, undo)
    return {freqs: freqs.plain_rope for freqs in freq_sets if freqs.replaced}


def apply_frequencies(
    freqs: FrequencySet, spec: Spec, length: int | None, undo: contextlib.ExitStack
) -> Rope:
    """Divide the frequencies by λ, multiply the attention factors; the rope parameters for it.

    They are as transformers computes them, where it can.
    """
    inv_freq, factor, rope = frequencies_of(freqs, spec, length)
    _set(freqs, inv_freq, factor, undo)
    return rope


def frequencies_of(
    freqs: FrequencySet, spec: Spec, length: int | None
) -> tuple[Tensor, float, Rope]:
    """What `apply_frequencies` puts on: frequencies [d/2], attention factor, rope parameters."""
    facts = freqs.facts
    if freqs.inv_freq.shape != (len(facts.theta),):
        raise UnsupportedModelError(f"{type(freqs.module).__name__}: inv_freq is no buffer [d/2]")
    scales = torch.tensor(spec.scales(facts), dtype=torch.float64)
    theta = torch.tensor(facts.theta, dtype=torch.float64) / scales
    if not torch.isfinite(theta).all():
        raise UsageError(f"{spec} gives frequencies that are not finite")
    for stock in stock_ropes(freqs, spec, length):
        return stock.inv_freq, stock.factor, stock.rope
    return theta, freqs.start.factor * spec.attention_factor(facts), freqs.plain_rope


def module_with(freqs: FrequencySet, spec: Spec, length: int | None) -> nn.Module:
    """A copy of a rotary module that has the frequencies and the factor of a spec."""
    inv_freq, factor, _ = frequencies_of(freqs, spec, length)
    check_factor(freqs, factor)
    module = as_it_is(freqs.module)
    module._buffers[freqs.named("inv_freq")] = inv_freq.to(freqs.inv_freq.device, torch.float32)
    module.__dict__[freqs.named("attention_scaling")] = factor
    return module


def _set(freqs: FrequencySet, inv_freq: Tensor, factor: float, undo: contextlib.ExitStack) -> None:
    """Give a rotary module frequencies and an attention factor that no length changes."""
    module, own, name = freqs.module, freqs.inv_freq, freqs.named("inv_freq")
    attribute = freqs.named("attention_scaling")
    check_factor(freqs, factor)
    undo.callback(_put_back, module, name, own)
    module._buffers[name] = inv_freq.to(own.device, torch.float32)
    replace(undo, module, attribute, factor)
    if freqs.by_length and (kinds := module.__dict__.get("rope_type")) is not None:
        plain = {**kinds, freqs.layer_type: "default"} if isinstance(kinds, dict) else "default"
        replace(undo, module, "rope_type", plain)


def check_factor(freqs: FrequencySet, factor: float) -> None:
    """UnsupportedModelError where a rotary module cannot apply an attention factor."""
    if not hasattr(freqs.module, freqs.named("attention_scaling")) and factor != 1:
        raise UnsupportedModelError(f"{type(freqs.module).__name__} takes no attention factor")


def _put_back(module: nn.Module, name: str, own: Tensor) -> None:
    """Give a module its buffer back, moved or cast as ours, which was float32, has been since."""
    ours = cast(Tensor, module._buffers[name])
    dtype = own.dtype if ours.dtype == torch.float32 else ours.dtype
    module._buffers[name] = own.to(ours.device, dtype)


def apply_numbers(model: Any, ropes: dict[FrequencySet, Rope], undo: contextlib.ExitStack) -> None:
    """Change what modules beside the rotary ones have of a scaling that is taken off."""
    if not ropes:
        return
    for (name, key), value in numbers(model, ropes).items():
        replace(undo, model.get_submodule(name), key, value)
    for freqs in ropes:
        if not freqs.beside:
            continue
        config = copy.deepcopy(freqs.config)
        rope = config.rope_parameters
        rope = rope if freqs.layer_type is None else rope[freqs.layer_type]
        rope |= dict.fromkeys(freqs.beside, 0)
        for module in model.modules():
            reads = module.__dict__.get("config") is freqs.config
            if reads and module is not freqs.module and not isinstance(module, PreTrainedModel):
                replace(undo, module, "config", config)
