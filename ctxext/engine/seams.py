"""The two seams: what a patched model's rotary modules return, and its attention function.

A rotary module rotates keys as the last (farthest) part needs them, so that is how they are
cached; the attention function turns queries, and the near keys, by what is left.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.engine.paths import attend
from ctxext.engine.probe import Layer, call_rotary
from ctxext.engine.runs import Run, attend_runs, find_runs
from ctxext.engine.switch import registered
from ctxext.errors import UnsupportedModelError
from ctxext.models.layout import Source
from ctxext.patches.base import Part, QueryScale, as_held, identity

KEPT = "_ctxext_kept"  # the attribute of a table that has the tables of before the patch
STATE = "_ctxext_state"  # the attribute by which an attention module finds its model's state
WATCH = "_ctxext_watch"  # … and who is told what it scores
UNKNOWN = ("position_bias", "cache", "block_table")  # arguments that change attention
CAUSAL: tuple[Part, ...] = (Part(0, None, identity, identity),)  # of layers without positions


Turn = Callable[[Tensor, Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """The function as one at which torch.compile breaks its graph: compiled models stay right."""
    return cast(Function, torch.compiler.disable(function))


@dataclass(eq=False)
class Feed:
    """One set of frequencies as a patched model uses it.

    Attributes:
        source: where it is.
        rotate: the rotary module's own forward.
        axes: the shape of positions before [b, n], such as (3,) for three axes.
        factor: the attention factor, where the rotary module no longer applies it.
        before: attributes and buffers of the rotary module as they were, for layers that the
            methods leave alone; None where there are none such.
    """

    source: Source
    rotate: Callable[..., Any]
    axes: tuple[int, ...]
    factor: float = 1.0
    before: tuple[dict[str, Any], dict[str, Tensor]] | None = None
    given: Any = None  # the tables of the forward pass that is running
    kept: Any = None  # … and those of layers left alone
    turned: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def tables(self, x: Tensor, positions: Tensor) -> Any:
        """cos and sin [b or 1, n, columns] (or e^(i·angle)) by frequencies as they stand."""
        return call_rotary(self.rotate, x, positions, self.source.layer_type)

    def as_before(self, x: Tensor, positions: Tensor) -> Any:
        """The tables that the unpatched model has."""
        with self._restored():
            return call_rotary(self.rotate, x, positions, self.source.layer_type)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        assert self.before is not None
        module, (attributes, buffers) = self.source.module, self.before
        now = {name: module.__dict__[name] for name in attributes}
        now_buffers = {name: module._buffers[name] for name in buffers}
        module.__dict__.update(attributes)
        module._buffers.update(buffers)
        try:
            yield
        finally:
            module.__dict__.update(now)
            module._buffers.update(now_buffers)

    def turn(self, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
        """x [b, *, l, d] rotated by positions [l] (on the CPU) as the layer rotates."""
        assert layer.rotation is not None
        key = (positions.numpy().tobytes(), x.device)  # all layers share a forward's few tables
        if key not in self.turned:
            like = torch.empty(0, dtype=torch.float32, device=x.device)
            here = positions.to(x.device).expand(*self.axes, 1, -1)
            self.turned[key] = _cos_sin(self.tables(like, here))
        return layer.rotation.turn(x, *self.turned[key])


def _first(x: Any) -> Any:
    """The first table of what may be a rotary module's output; None where it is none."""
    if isinstance(x, tuple) and x and isinstance(x[0], Tensor):
        x = x[0]
    return x if isinstance(x, Tensor) else None


def _cos_sin(tables: Any) -> tuple[Tensor, Tensor]:
    if isinstance(tables, tuple):
        return tables[0], tables[1]
    return tables.real, tables.imag


@dataclass
class State:
    """What the attention function of one patched model needs to know."""

    layers: dict[nn.Module, Layer]
    feeds: dict[Source, Feed]  # of the layers that take the methods
    trained: int
    parts: tuple[Part, ...]  # empty: only query scales, or only frequencies
    query_scales: tuple[QueryScale, ...]
    path: str  # an attention path
    own: str  # transformers' implementation, for what the methods leave alone
    positions: Tensor | None = None  # [b or 1, n], of the forward pass that is running
    padding: tuple[Tensor, list[int] | None] | None = None  # a mask, and what it says
    causal: Tensor | None = None  # a mask that shows no token what comes after it
    name: str | None = None  # what the attention function is registered as
    cached: Callable[[Tensor], Tensor] = identity  # the positions of the keys that a cache holds
    absolute: bool = False  # whether the parts go by more than distance
    before: int = 0  # tokens that the cache has seen before the forward pass that is running
    # … and the runs of positions, a mask, and as many slots
    runs: tuple[Tensor, Tensor | None, int, list[Run] | None] | None = None

    @uncompiled
    def forward(
        self,
        module: nn.Module,
        own: Callable[..., Any],
        x: Tensor,
        position_ids: Tensor,
        layer_type: str | None = None,
    ) -> Any:
        """The new forward of a rotary module."""
        self.positions = position_ids if position_ids.ndim == 2 else position_ids[0]
        self.padding = self.causal = self.runs = None
        known = (f for f in self.feeds.values() if f.source.module is module)
        feed = next((f for f in known if f.source.layer_type == layer_type), None)
        if feed is None:
            return call_rotary(own, x, position_ids, layer_type)
        feed.turned.clear()
        feed.given = self._tables(feed, x, position_ids)
        if feed.before is not None:
            feed.kept = feed.as_before(x, position_ids)
            _first(feed.given).__dict__[KEPT] = feed.kept
        return feed.given

    @uncompiled
    def keep_tables(self, feed: Feed, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A pre-hook of a layer that is left alone: gives it the tables of before the patch.

        Tables are known by themselves, for a layer may run again after another forward; copies
        on another device by their values.
        """
        found = []

        def kept(x: Any) -> Any:
            first = _first(x)
            if first is None:
                return x
            own, given = first.__dict__.get(KEPT), _first(feed.given)
            if own is None and given is not None and first.shape == given.shape:
                same = torch.equal(first, given.to(first.device, first.dtype))
                own = feed.kept if same else None
            if own is None:
                return x
            found.append(x)
            if isinstance(own, tuple):
                return tuple(table.to(first.device) for table in own)
            return own.to(first.device)

        swapped = tuple(kept(x) for x in args), {name: kept(x) for name, x in kwargs.items()}
        if not found:
            raise UnsupportedModelError(
                f"{type(module).__name__} is handed its rotation in a way that is not understood, "
                "so that it cannot be left as it is"
            )
        return swapped

    def _tables(self, feed: Feed, x: Tensor, position_ids: Tensor) -> Any:
        """The tables as far keys need them."""
        if not self.parts:
            return call_rotary(feed.rotate, x, position_ids, feed.source.layer_type)
        tables = feed.tables(x, self.cached(position_ids.double()))
        if feed.factor == 1:
            return tables
        if isinstance(tables, tuple):
            return tuple(table * feed.factor for table in tables)
        return tables * feed.factor

    def left_over(self) -> tuple[Part, ...]:
        """The parts as seen from keys, and queries, that the rotary module rotated already."""
        done = self.cached

        def left(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda p: own(p) - done(p)

        return tuple(
            replace(
                part,
                query=left(part.query),
                key=as_held if part.key is done else left(part.key),
            )
            for part in self.parts
        )

    def first_tokens(self, mask: Tensor | None, n: int) -> list[int] | None:
        """Each row's first slot that holds a token, where the mask [b, 1, 1, m] says no more.

        A mask over the keys of n = 1 query may also hide the newest ones, unlike padding.
        """
        if mask is None or mask.shape[2] != 1 or (n == 1 and not mask[..., -1].all()):
            return None
        if self.padding is None or self.padding[0] is not mask:
            flat = mask[:, 0, 0]
            self.padding = (mask, None if has_holes(flat) else flat.int().argmax(-1).tolist())
        return self.padding[1]

    def find_runs(
        self, mask: Tensor | None, given: Tensor | None, query: Tensor, key: Tensor
    ) -> list[Run] | None:
        """`find_runs` of the forward that is running, whose layers share positions and mask."""
        positions = self.positions if given is None else given
        assert positions is not None
        positions = positions if positions.ndim == 2 else positions[0]
        (b, _, n, _), m = query.shape, key.shape[2]
        known = self.runs
        if known is None or known[0] is not positions or known[1] is not mask or known[2] != m:
            dropped = max(0, self.before + n - m)
            known = (positions, mask, m, find_runs(positions, mask, b, n, m, dropped))
            self.runs = known
        return known[3]

    def refuse_ahead(self, mask: Tensor) -> None:
        """UnsupportedModelError where a mask [b, 1, n, m] shows a token what comes after it."""
        if self.causal is mask:  # the layers of a forward share theirs
            return
        n, m = mask.shape[2:]
        if bool(mask.triu(m - n + 1).any()):
            raise UnsupportedModelError(
                "distance methods do not support a mask that lets tokens see what comes after them"
            )
        self.causal = mask

    def scale_query(self, query: Tensor, given: Tensor | None) -> Tensor:
        """Queries [b, h, n, d] times the query scales of their true positions."""
        if not self.query_scales:
            return query
        positions = self.positions if given is None else given
        if positions is None or positions.shape[1] < query.shape[2]:
            raise UnsupportedModelError(
                "query scales do not know the positions of a layer that runs again after another "
                "forward: run it before, or without gradient checkpointing"
            )
        n = positions[:, -query.shape[2] :].to(query.device, torch.float64) + 1
        scale = torch.ones_like(n)
        for method in self.query_scales:
            scale = scale * method.scale(n, self.trained)
        wide = torch.promote_types(query.dtype, torch.float32)
        return (query * scale[:, None, :, None].to(wide)).to(query.dtype)


def has_holes(mask: Tensor) -> bool:
    """Whether any row of a mask [b, m] has more than one run of tokens."""
    starts = torch.diff(mask.bool().int(), prepend=torch.zeros_like(mask[:, :1]).int()) == 1
    return bool((starts.sum(-1) > 1).any())


def has_gaps(positions: Tensor, mask: Tensor | None) -> bool:
    """Whether tokens next to each other stand further apart, by positions [b or 1, n].

    Args:
        mask: of tokens and padding [b, n or more], None where there is no padding.
    """
    if positions.ndim != 2 or positions.shape[1] < 2:  # of images, several axes may skip
        return False
    gaps = positions.diff(dim=-1) > 1
    if mask is not None:
        tokens = mask[:, -positions.shape[1] :].to(gaps.device).bool()
        gaps = gaps & tokens[:, 1:] & tokens[:, :-1]
    return bool(gaps.any())


@uncompiled
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
    if not isinstance(state, State):
        raise UnsupportedModelError(f"{type(module).__name__} was asked for ctxext but not patched")
    layer = state.layers.get(module)
    if layer is None and any(type(known) is type(module) for known in state.layers):
        raise UnsupportedModelError(f"{type(module).__name__} did not run when it was patched")
    if layer is not None and not layer.inside:
        query = state.scale_query(query, kwargs.get("position_ids"))
        if state.parts:
            return _distance_attention(state, layer, query, key, value, attention_mask, **kwargs)
    own = own_attention(state.own, module)
    output: tuple[Tensor, Tensor | None] = own(module, query, key, value, attention_mask, **kwargs)
    return output


def own_attention(name: str, module: nn.Module) -> Callable[..., Any]:
    """Transformers' attention function of this name for an attention module."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return cast("Callable[..., Any]", ALL_ATTENTION_FUNCTIONS.get_interface(name, eager))


def _distance_attention(
    state: State,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attention` with the parts of a distance method, or causal where there are no positions."""
    if odd := [name for name in UNKNOWN if kwargs.get(name) is not None]:
        raise UnsupportedModelError(f"distance methods do not support attention with {odd[0]!r}")
    if mask is not None and mask.is_floating_point():
        mask = seen_by(mask)
    if mask is not None and mask.shape[2] > 1:
        state.refuse_ahead(mask)
    query, key = query.to(value.dtype), key.to(value.dtype)
    parts, turn = CAUSAL, _turn_of(None, layer)
    if layer.source is not None:
        parts, turn = state.left_over(), _turn_of(state.feeds[layer.source], layer)
    if layer.weights is not None:
        query, key, turn = _unweighted(layer.weights, query, key, turn)
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    if watch := layer.module.__dict__.get(WATCH):
        watch(query, key, parts, turn, scaling, mask, softcap, s_aux)
    run = functools.partial(
        attend, state.path, turn=turn, scaling=scaling,
        dropout=dropout, softcap=softcap, sinks=s_aux,
    )  # fmt: skip
    if state.absolute and layer.source is not None:
        runs = state.find_runs(mask, kwargs.get("position_ids"), query, key)
        output = attend_runs(run, parts, runs, query, key, value)
    else:
        first = state.first_tokens(mask, query.shape[2])
        output = run(query, key, value, parts=parts, mask=mask, first=first)
    return output.transpose(1, 2).contiguous(), None


def _turn_of(feed: Feed | None, layer: Layer) -> Turn:
    return lambda x, positions: x if feed is None else feed.turn(layer, x, positions)


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
        odd = given.get("kv_offset", 0) or end != keys or short
        plain = mask_function is causal_mask_function and given.get("allow_is_causal_skip", True)
        if odd or not plain:
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
