"""What a patched model's rotary modules return, and what its layers know of their patch.

A rotary module rotates keys as the last (farthest) part needs them, so that is how they are
cached; the attention function turns queries, and the near keys, by what is left.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctxext.engine.compiled import compiled_scale, number_of, uncompiled
from ctxext.engine.forward import (
    FORWARD,
    OF_LAYERS,
    Forward,
    begin,
    begin_again,
    end,
    end_again,
    first,
    running,
    unknown_positions,
)
from ctxext.engine.layers import AttentionSite
from ctxext.engine.masks import seen_by
from ctxext.engine.rotary import LayerTables, RotarySite
from ctxext.engine.runs import Run, find_runs
from ctxext.engine.slots import counts_padding
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.methods.base import AttentionRule, Part, QueryScale, Rotary, as_held, identity
from ctxext.models.frequency_sets import FrequencySet

WHOLE = Part(0, None, identity, identity)
STATE = "_ctxext_state"  # the attribute by which an attention module finds its model's state
UNPICKLED = (
    "a patched model cannot be pickled: save_pretrained it and its tokenizer, for ctxext.load to "
    "patch it again, or save its state_dict, or remove the patch first"
)


@dataclass
class PatchState:
    """What the attention function of one patched model needs to know."""

    layers: dict[nn.Module, AttentionSite]
    sites: dict[FrequencySet, RotarySite]  # of the layers that take the methods
    trained: int
    query_scales: tuple[QueryScale, ...]
    path: str  # an attention path
    own: str  # transformers' implementation, for what the methods leave alone
    rotary: frozenset[nn.Module] = frozenset()  # the modules whose tables are changed or seen
    parts: tuple[Part, ...] = ()  # empty: only query scales, or only frequencies
    rule: AttentionRule | None = None
    name: str | None = None  # what the attention function is registered as
    cached: Part = WHOLE  # as whose keys a cache holds keys
    # … for what is turned so
    left: dict[FrequencySet, tuple[Part, ...]] = field(default_factory=dict)
    absolute: bool = False  # whether the parts go by more than distance

    def __post_init__(self) -> None:
        self.number = number_of(self)

    def take(self, parts: tuple[Part, ...]) -> None:
        """Attend by these parts from now on."""
        self.parts = parts
        scaled = any(part.scales for part in parts)
        shared = tuple(self._left(part, None) for part in parts if not scaled)
        for source, site in self.sites.items():
            own = source.facts if scaled else None
            self.left[source] = shared or tuple(self._left(part, own) for part in parts)
            scales = self.cached.scales
            site.scales = None if scales is None else tuple(scales(source.facts))

    def _left(self, part: Part, rotary: Rotary | None) -> Part:
        """A part, on a model if given, for queries and keys that are turned as cached ones are."""
        cached, held = self.cached, part.key is self.cached.key
        if rotary is not None:
            held = held and part.scales == cached.scales
            part, cached = part.on(rotary), cached.on(rotary)

        def left(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda p: _less(own(p), cached.key(p))

        return replace(part, query=left(part.query), key=as_held if held else left(part.key))

    @uncompiled
    def rotated(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """A hook of a rotary module: gives what far keys need in place of its own tables."""
        return self._rotated(module, output, *args, **kwargs)

    def as_is(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module's own forward."""
        return forward(*args, **kwargs)

    def _rotated(
        self,
        module: nn.Module,
        own: Any,
        x: Tensor,
        position_ids: Tensor,
        layer_type: str | None = None,
    ) -> Any:
        if module not in self.rotary:
            raise UnsupportedModelError(
                f"{type(module).__name__} is a replica of one that was patched, as DataParallel "
                "makes them: run one process for each device (torchrun) or on one device "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        now = begin(self, position_ids)
        known = (f for f in self.sites.values() if f.freqs.module is module)
        site, given = next((f for f in known if f.freqs.layer_type == layer_type), None), own
        if site is not None:
            given = self._tables(site, x, position_ids) if self.parts else own
            now.tables[site.freqs] = given
            if site.own:
                first(given).__dict__[OF_LAYERS] = LayerTables(site, now, x, position_ids)
        first(given).__dict__[FORWARD] = now
        return given

    @uncompiled
    def end(self, *_: Any) -> None:
        """A hook of the base model: nothing outlives a forward."""
        end(self)

    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A pre-hook of an attention module: finds the forward whose tables it is handed.

        In a backward a layer may run again after another forward.
        """
        if torch.is_grad_enabled():
            begin_again(self, args, kwargs)

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook of an attention module: leaves that forward."""
        if torch.is_grad_enabled():
            end_again()

    @uncompiled
    def own_tables(self, site: RotarySite, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A pre-hook of a layer that has tables of its own: gives it these.

        Tables are known by themselves, for a layer may run again after another forward; copies
        on another device by their values.
        """
        found, now = [], running(self)
        given = None if now is None else first(now.tables.get(site.freqs))

        def kept(x: Any) -> Any:
            table = first(x)
            if table is None:
                return x
            tables = table.__dict__.get(OF_LAYERS)
            if tables is None and given is not None and table.shape == given.shape:
                same = torch.equal(table, given.to(table.device, table.dtype))
                tables = given.__dict__[OF_LAYERS] if same else None
            if tables is None:
                return x
            found.append(x)
            own = tables.of(module)
            if isinstance(own, tuple):
                return tuple(each.to(table.device) for each in own)
            return own.to(table.device)

        swapped = tuple(kept(x) for x in args), {name: kept(x) for name, x in kwargs.items()}
        if not found:
            raise UnsupportedModelError(
                f"{type(module).__name__} is handed its rotation in a way that is not understood, "
                "so that it cannot have one of its own"
            )
        return swapped

    def _tables(self, site: RotarySite, x: Tensor, position_ids: Tensor) -> Any:
        """The tables as far keys need them."""
        tables = site.rotate(x, self.cached.key(position_ids.double()))
        if site.factor == 1:
            return tables
        if isinstance(tables, tuple):
            return tuple(table * site.factor for table in tables)
        return tables * site.factor

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchState:
        copied = memo[id(self)] = object.__new__(PatchState)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied.number = number_of(copied)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(UNPICKLED)

    def forward(self, n: int = 0) -> Forward:
        """The forward of the layer that is running, which has n queries."""
        now = running(self)
        if now is None or now.positions.shape[-1] < n:
            raise unknown_positions()
        return now

    def runs(
        self,
        layer: AttentionSite,
        mask: Tensor | None,
        ends: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> list[Run]:
        """`find_runs` of the layer that is running."""
        (b, _, n, _), m = query.shape, key.shape[2]
        now = self.forward(n)

        def find() -> list[Run]:
            seen = mask
            if mask is not None:
                seen = seen_by(mask) if mask.is_floating_point() else mask.bool()
            counts = self.absolute or (ends is not None and bool(self.query_scales))
            return find_runs(now.positions, seen, ends, b, n, m, layer.window, counts)

        return cast("list[Run]", now.once(mask, (b, n, m, layer.window, id(ends)), find))

    def is_positions(self, x: Any) -> bool:
        """Whether an argument is the positions of the layer that is running, of any axis."""
        now = self.forward()
        if not isinstance(x, Tensor) or x.shape[-2:] != now.positions.shape[-2:]:
            return False
        same = functools.partial(torch.equal, *torch.broadcast_tensors(x, now.positions))
        return bool(now.once(x, (), same))

    def is_ends(self, x: Any, query: Tensor) -> bool:
        """Whether an argument says where each sequence of one packed row begins and ends."""
        if not isinstance(x, Tensor) or x.ndim != 1 or x.is_floating_point() or len(query) > 1:
            return False
        n = query.shape[2]
        return bool(self.forward().once(x, (n,), lambda: _are_ends(x, n)))

    def query_scale(self, layer: int, query: Tensor, mask: Any) -> Tensor:
        """The query scales of true positions [b or 1, 1, n, 1], of queries [b, h, n, d]."""
        site, n = [*self.layers.values()][layer], query.shape[2]
        now, shape = self.forward(n), (n, site.window, site.head_dim)
        scale: Tensor = now.once(mask, shape, lambda: self._scales(site, now.positions, n, mask))
        return scale.to(query.device, torch.promote_types(query.dtype, torch.float32))

    def scale_query(self, layer: AttentionSite, query: Tensor, mask: Any) -> Tensor:
        """Queries [b, h, n, d] times the query scales of their true positions."""
        if not self.query_scales:
            return query
        if torch.compiler.is_compiling() and (mask is None or isinstance(mask, Tensor)):
            scale = compiled_scale(query, mask, self.number, layer.index)
        else:
            scale = self.query_scale(layer.index, query, mask)
        scaled: Tensor = query * scale
        return scaled.to(query.dtype)

    def _scales(self, layer: AttentionSite, positions: Tensor, n: int, mask: Any) -> Tensor:
        """The query scales of n queries [b or 1, 1, n, 1], float64."""
        positions = positions.reshape(-1, *positions.shape[-2:])[0, :, -n:]
        chosen = any(
            layer.unsupported for layer in self.layers.values()
        )  # keys that a mask may hide
        if isinstance(mask, Tensor) and not chosen:
            seen = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask
            seen = seen.bool() if seen.ndim == 4 else seen[:, None, None].bool()
            if counts_padding(positions, seen[:, :1], n, layer.window):
                raise UnsupportedModelError(
                    "query scales count positions from a row's first token: give position_ids "
                    "that do, or none"
                )
        counted = positions.double() + 1
        scale = torch.ones_like(counted)
        for method in self.query_scales:
            scale = scale * method.scale_on(counted, self.trained, layer.head_dim)
        return scale[:, None, :, None]


def _less(a: Tensor, b: Tensor) -> Tensor:
    """a − b of positions, either of which may be by pair."""
    if a.ndim < b.ndim:
        return a[..., None] - b
    return a - (b[..., None] if b.ndim < a.ndim else b)


def _are_ends(x: Tensor, n: int) -> bool:
    return bool(x[0] == 0) and bool(x[-1] == n) and bool((x.diff() > 0).all())
