"""Rotary modules: what they give for any positions, and how a patched model uses them."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine.forward import FORWARD, Forward, first
from ctxext.engine.layers import AttentionSite
from ctxext.errors import UnsupportedModelError, short
from ctxext.models.frequency_sets import FrequencySet


@dataclass(eq=False)
class RotarySite:
    """One set of frequencies as a patched model uses it.

    Attributes:
        freqs: where it is.
        axes: the shape of positions before [b, n], such as (3,) for three axes.
        factor: the attention factor, where the rotary module no longer applies it.
        own: the rotary modules of layers that have one of their own: as it was before the patch,
            where the methods leave a layer alone.
        scales: what divides the frequencies of the keys that a cache holds [d/2], where something
            does.
    """

    freqs: FrequencySet
    axes: tuple[int, ...]
    factor: float = 1.0
    own: dict[nn.Module, nn.Module] = field(default_factory=dict)
    scales: tuple[float, ...] | None = None

    def rotate(self, x: Tensor, positions: Tensor) -> Any:
        """cos and sin [b or 1, n, columns] (or e^(i·angle)) as keys in a cache are turned."""
        own = self.freqs.module.forward
        if self.scales is not None:
            copied, name = as_it_is(self.freqs.module), self.freqs.named("inv_freq")
            slow = self.freqs.inv_freq.double() / self.freqs.inv_freq.new_tensor(
                self.scales, dtype=torch.float64
            )
            copied._buffers[name] = slow.float()
            own = functools.partial(type(copied).forward, copied)
        return call_rotary(own, x, positions.to(x.device), self.freqs.layer_type)

    def turn(self, layer: AttentionSite, forward: Forward, x: Tensor, positions: Tensor) -> Tensor:
        """x [b, *, l, d] rotated as the layer rotates by positions [l] or [b, l] (on the CPU), or
        each of its pairs by its own [b or 1, l, d/2]."""
        assert layer.rotation is not None
        key = (self.freqs, layer.rotation, id(positions), x.device)
        found = forward.turned.get(key)  # all layers share a forward's few tables
        if found is None:
            angles = self._angles(positions, x.device)
            tables = None if angles is None else layer.rotation.tables(angles, x.shape[-1])
            found = forward.turned[key] = positions, tables
        return x if found[1] is None else layer.rotation.turn(x, found[1])

    def _angles(self, positions: Tensor, device: torch.device) -> Tensor | None:
        """Each frequency's [b or 1, l, d/2] on a layer's device; None where nothing is turned.

        They are rounded to float32, as rotary modules do.
        """
        if not positions.any():
            return None
        at = positions.to(device, torch.float32)
        at = at if at.ndim == 3 else at[..., None] if at.ndim == 2 else at[None, :, None]
        return at * self.freqs.inv_freq.to(device, torch.float32)


class LayerTables:
    """The tables of layers that have a rotary module of their own, made when they are asked for.

    Those made last are kept: layers share them, or each has others, too many to hold.
    """

    def __init__(self, site: RotarySite, forward: Forward, x: Tensor, positions: Tensor) -> None:
        self._site, self._forward = site, forward
        self._like, self._positions = x.new_empty((1,) * x.ndim), positions.to(x.device)
        self._last: tuple[nn.Module | None, Any] = None, None

    def of(self, layer: nn.Module) -> Any:
        """The tables of one layer."""
        module = self._site.own[layer]
        if self._last[0] is not module:
            own = functools.partial(type(module).forward, module)
            made = call_rotary(own, self._like, self._positions, self._site.freqs.layer_type)
            first(made).__dict__[FORWARD] = self._forward
            self._last = module, made
        return self._last[1]


def as_it_is(module: nn.Module) -> nn.Module:
    """A copy of a rotary module that later changes to the module's frequencies do not reach."""
    copied = copy.copy(module)
    copied._buffers = dict(module._buffers)
    return copied


def call_rotary(function: Any, x: Tensor, positions: Tensor, layer_type: str | None) -> Any:
    """A rotary module's tables for positions [·, b, l]."""
    return function(x, positions, **({} if layer_type is None else {"layer_type": layer_type}))


def plain_type(scaling: Any) -> Any:
    """A rotary module's `rope_type` by which its forward changes no frequency."""
    return dict.fromkeys(scaling, "default") if isinstance(scaling, dict) else "default"


@contextlib.contextmanager
def kept(rotary: nn.Module) -> Iterator[None]:
    """Undo what a forward does to a rotary module whose frequencies depend on the length."""
    values = {name: (x, x.clone()) for name, x in rotary._buffers.items() if x is not None}
    attributes = {name: value for name, value in vars(rotary).items() if name[0] != "_"}
    try:
        yield
    finally:
        for name in vars(rotary).keys() - attributes.keys():
            if name[0] != "_":
                delattr(rotary, name)
        rotary.__dict__.update(attributes)
        for name, (buffer, value) in values.items():
            rotary._buffers[name] = buffer
            buffer.data.copy_(value)


def table_of(real: Any, freqs: FrequencySet, x: Tensor, like: Tensor, quarter: Tensor) -> Any:
    """The tables of one token whose frequencies turn by a quarter where `quarter` [d/2] is 1."""
    module, name = freqs.module, freqs.named("inv_freq")
    kept, scaling = freqs.inv_freq, module.__dict__.get("rope_type")
    module._buffers[name] = (quarter * torch.pi / 2).to(kept.device, kept.dtype)
    try:
        if scaling is not None:
            module.__dict__["rope_type"] = plain_type(scaling)
        return call_rotary(real, x, torch.ones_like(like), freqs.layer_type)
    finally:
        module._buffers[name] = kept
        if scaling is not None:
            module.__dict__["rope_type"] = scaling


def check_module(freqs: FrequencySet, axes: tuple[int, ...]) -> None:
    """UnsupportedModelError where a rotary module does not go by its inv_freq.

    At position 1/2 its cosines must be cos(θ/2) times the factor: float32 rounds them by 6e-8.
    """
    module = freqs.module
    if freqs.inv_freq.is_meta:
        return
    half = torch.full((*axes, 1, 1), 0.5, device=freqs.inv_freq.device)
    like = torch.zeros(1, 1, 1, device=freqs.inv_freq.device)
    with kept(module):
        try:
            out = call_rotary(module.forward, like, half, freqs.layer_type)
        except Exception as error:
            why = short(error)
            raise UnsupportedModelError(
                f"{type(module).__name__} cannot be called: {why}"
            ) from error
        expected = (freqs.inv_freq.float() / 2).cos() * freqs.factor
    cos = (out[0] if isinstance(out, tuple) else out.real).flatten()
    if not ((cos[:, None] - expected).abs().amin(0) <= 1e-5).all():
        raise deaf(module)


def deaf(module: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__} does not rotate by its inv_freq, so methods would do nothing"
    )


def columns_of(freqs: FrequencySet, axes: tuple[int, ...]) -> dict[int, int]:
    """The column of the rotary module's tables that holds each frequency, by its number."""
    inv_freq = freqs.inv_freq
    like = torch.zeros(1, 1, 1, device=inv_freq.device)
    position = torch.ones(*axes, 1, 1, device=inv_freq.device)
    codes = torch.arange(len(inv_freq)) + 1
    found = torch.zeros((), dtype=torch.long)
    with kept(freqs.module):
        for t in range(int(codes[-1]).bit_length()):
            out = table_of(freqs.module.forward, freqs, like, position, codes >> t & 1)
            cos, sin = out if isinstance(out, tuple) else (out.real, out.imag)
            found = found + ((sin.abs() > cos.abs()).long().flatten().cpu() << t)
    columns: dict[int, int] = {}
    for column, code in enumerate(found.tolist()):
        columns.setdefault(code - 1, column)
    return columns
