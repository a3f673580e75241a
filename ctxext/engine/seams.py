"""The two seams: what a patched model's rotary modules return, and its attention function.

A rotary module rotates keys as the last (farthest) part needs them, so that is how they are
cached; the attention function turns queries, and the near keys, by what is left.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.engine.attention import Turn
from ctxext.engine.forward import (
    AS_BEFORE,
    FORWARD,
    Forward,
    begin,
    begin_again,
    end,
    end_again,
    first,
    running,
    unknown_positions,
)
from ctxext.engine.paths import attend
from ctxext.engine.probe import Layer, call_rotary, handed
from ctxext.engine.runs import FEW, Run, attend_runs, counts_padding, find_runs
from ctxext.engine.switch import registered
from ctxext.engine.turned import Turned
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.models.layout import Source
from ctxext.patches.base import Part, QueryScale, as_held, identity

WRITER = "_ctxext_writer"  # the attribute by which a cache knows the methods that wrote its keys
STATE = "_ctxext_state"  # the attribute by which an attention module finds its model's state
WATCH = "_ctxext_watch"  # … and who is told what it scores
UNPICKLED = (
    "a patched model cannot be pickled: save_pretrained it and its tokenizer, for ctxext.load to "
    "patch it again, or save its state_dict, or remove the patch first"
)
CAUSAL: tuple[Part, ...] = (Part(0, None, identity, identity),)  # of layers without positions


Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """The function as one at which torch.compile breaks its graph: compiled models stay right."""
    return cast(Function, torch.compiler.disable(function))


@dataclass(eq=False)
class Feed:
    """One set of frequencies as a patched model uses it.

    Attributes:
        source: where it is.
        axes: the shape of positions before [b, n], such as (3,) for three axes.
        factor: the attention factor, where the rotary module no longer applies it.
        before: the rotary module as it was, for layers that the methods leave alone; None where
            there are none such.
    """

    source: Source
    axes: tuple[int, ...]
    factor: float = 1.0
    before: nn.Module | None = None

    def rotate(self, x: Tensor, positions: Tensor) -> Any:
        """cos and sin [b or 1, n, columns] (or e^(i·angle)) by frequencies as they stand."""
        module, positions = self.source.module, positions.to(x.device)
        return call_rotary(module.forward, x, positions, self.source.layer_type)

    def as_before(self, x: Tensor, positions: Tensor) -> Any:
        """The tables that the unpatched model has."""
        if self.before is None:
            return None
        own = functools.partial(type(self.before).forward, self.before)
        return call_rotary(own, x, positions.to(x.device), self.source.layer_type)

    def turn(self, layer: Layer, forward: Forward, x: Tensor, positions: Tensor) -> Tensor:
        """x [b, *, l, d] rotated by positions [l] or [b, l] (on the CPU) as the layer rotates."""
        assert layer.rotation is not None
        key = (self.source, id(positions), x.device)
        if key not in forward.turned:  # all layers share a forward's few tables
            forward.turned[key] = positions, self._turns(positions, x.device)
        tables = forward.turned[key][1]
        return x if tables is None else layer.rotation.turn(x, *tables)

    def _turns(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """cos and sin on a layer's device; None where nothing is turned."""
        if not positions.any():
            return None
        rows = positions if positions.ndim == 2 else positions[None]
        like = torch.empty(0, dtype=torch.float32, device=self.source.inv_freq.device)
        cos, sin = _cos_sin(self.rotate(like, rows.expand(*self.axes, *rows.shape)))
        return cos.to(device), sin.to(device)


def as_it_is(module: nn.Module) -> nn.Module:
    """A copy of a rotary module that later changes to the module's frequencies do not reach."""
    copied = copy.copy(module)
    copied._buffers = dict(module._buffers)
    return copied


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
    query_scales: tuple[QueryScale, ...]
    path: str  # an attention path
    own: str  # transformers' implementation, for what the methods leave alone
    rotary: frozenset[nn.Module] = frozenset()  # the modules whose tables are changed or seen
    parts: tuple[Part, ...] = ()  # empty: only query scales, or only frequencies
    name: str | None = None  # what the attention function is registered as
    cached: Callable[[Tensor], Tensor] = identity  # the positions of the keys that a cache holds
    left: tuple[Part, ...] = ()  # the parts, for queries and keys that are turned so already
    absolute: bool = False  # whether the parts go by more than distance

    def take(self, parts: tuple[Part, ...]) -> None:
        """Attend by these parts from now on."""
        done = self.cached

        def left(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda p: own(p) - done(p)

        self.parts = parts
        self.left = tuple(
            replace(
                part,
                query=left(part.query),
                key=as_held if part.key is done else left(part.key),
            )
            for part in parts
        )

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
        known = (f for f in self.feeds.values() if f.source.module is module)
        feed, given = next((f for f in known if f.source.layer_type == layer_type), None), own
        if feed is not None:
            given = self._tables(feed, x, position_ids) if self.parts else own
            now.tables[feed.source] = given
            first(given).__dict__[AS_BEFORE] = feed.as_before(x, position_ids)
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
            uncompiled(begin_again)(self, args, kwargs)

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook of an attention module: leaves that forward."""
        if torch.is_grad_enabled():
            uncompiled(end_again)()

    @uncompiled
    def keep_tables(self, feed: Feed, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A pre-hook of a layer that is left alone: gives it the tables of before the patch.

        Tables are known by themselves, for a layer may run again after another forward; copies
        on another device by their values.
        """
        found, now = [], running(self)
        given = None if now is None else first(now.tables.get(feed.source))

        def kept(x: Any) -> Any:
            table = first(x)
            if table is None:
                return x
            own = table.__dict__.get(AS_BEFORE)
            if own is None and given is not None and table.shape == given.shape:
                same = torch.equal(table, given.to(table.device, table.dtype))
                own = given.__dict__[AS_BEFORE] if same else None
            if own is None:
                return x
            found.append(x)
            if isinstance(own, tuple):
                return tuple(each.to(table.device) for each in own)
            return own.to(table.device)

        swapped = tuple(kept(x) for x in args), {name: kept(x) for name, x in kwargs.items()}
        if not found:
            raise UnsupportedModelError(
                f"{type(module).__name__} is handed its rotation in a way that is not understood, "
                "so that it cannot be left as it is"
            )
        return swapped

    def _tables(self, feed: Feed, x: Tensor, position_ids: Tensor) -> Any:
        """The tables as far keys need them."""
        tables = feed.rotate(x, self.cached(position_ids.double()))
        if feed.factor == 1:
            return tables
        if isinstance(tables, tuple):
            return tuple(table * feed.factor for table in tables)
        return tables * feed.factor

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        copied = memo[id(self)] = object.__new__(State)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
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
        self, layer: Layer, mask: Tensor | None, ends: Tensor | None, query: Tensor, key: Tensor
    ) -> list[Run]:
        """`find_runs` of the layer that is running."""
        (b, _, n, _), m = query.shape, key.shape[2]
        now = self.forward(n)

        def find() -> list[Run]:
            seen = mask
            if mask is not None:
                seen = seen_by(mask) if mask.is_floating_point() else mask.bool()
            return find_runs(now.positions, seen, ends, b, n, m, layer.window, self.absolute)

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

    def scale_query(self, layer: Layer, query: Tensor, mask: Any) -> Tensor:
        """Queries [b, h, n, d] times the query scales of their true positions."""
        if not self.query_scales:
            return query
        n = query.shape[2]
        now, shape = self.forward(n), (n, layer.window)
        scale: Tensor = now.once(mask, shape, lambda: self._scales(layer, now.positions, n, mask))
        wide = torch.promote_types(query.dtype, torch.float32)
        scaled: Tensor = query * scale.to(query.device, wide)
        return scaled.to(query.dtype)

    def _scales(self, layer: Layer, positions: Tensor, n: int, mask: Any) -> Tensor:
        """The query scales of n queries [b or 1, 1, n, 1], float64."""
        positions = positions.reshape(-1, *positions.shape[-2:])[0, :, -n:]
        chosen = any(layer.odd for layer in self.layers.values())  # keys that a mask may hide
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
            scale = scale * method.scale(counted, self.trained)
        return scale[:, None, :, None]


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
        query = state.scale_query(layer, query, attention_mask)
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
    is_causal: bool | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`attention` with the parts of a distance method, or causal where there are no positions."""
    ends = None
    for name in handed(kwargs):
        if name in layer.handed or state.is_positions(kwargs[name]):
            continue
        if not state.is_ends(kwargs[name], query) or not same_ends(kwargs[name], ends):
            raise UnsupportedModelError(f"distance methods do not support attention with {name!r}")
        ends = kwargs[name]
    if is_causal is False and mask is None and query.shape[2] > 1:
        raise UnsupportedModelError("distance methods do not support attention that is not causal")
    runs, held = state.runs(layer, mask, ends, query, key), key
    query, key = query.to(value.dtype), key.to(value.dtype)
    parts: tuple[Part, ...] = CAUSAL
    turn: Turn = _unturned
    if layer.source is not None:
        feed, now = state.feeds[layer.source], state.forward()
        parts, turn = state.left, functools.partial(feed.turn, layer, now)
    if layer.weights is not None:
        query, key, turn = _unweighted(layer.weights, query, key, turn)
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    watch = layer.module.__dict__.get(WATCH)

    turned: dict[int, Tensor] = {}
    if len(runs) == 1:
        turned = _turned_keys(state, layer, runs[0], turn, query, key, held)

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


def _are_ends(x: Tensor, n: int) -> bool:
    return bool(x[0] == 0) and bool(x[-1] == n) and bool((x.diff() > 0).all())


def _turned_keys(
    state: State,
    layer: Layer,
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
    if n >= FEW or graded or not whole or layer.source is None or state.path == "dense":
        return {}
    kept = state.forward().turned_keys.pop(layer.module, None)
    if kept is None or not kept.goes_on(state.left, run.at, held):
        Turned(layer.module, state.left, run.at.first).hang(held)
        return {}
    kept.hang(held)
    return {
        index: kept.keys(index, band, key[:, :, : run.keys.stop], run.at, turn)
        for index, band in enumerate(run.at.bands(state.left))
        if band.key is not None and band.low < band.high
    }


def same_ends(x: Tensor, other: Tensor | None) -> bool:
    """Whether two arguments, if there are two, say the same of sequences."""
    return other is None or torch.equal(x, other)


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
