"""The two seams: what a patched model's rotary module returns, and its attention function.

The rotary module rotates keys as the last (farthest) part needs them, so that is how they are
cached; the attention function turns queries, and the near keys, by what is left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.engine.paths import attend
from ctxext.errors import UnsupportedModelError
from ctxext.patches.base import Part, QueryScale

TURN_AT_ONCE = 512  # tokens: a slice and its temporaries stay in a CPU's cache
STATE = "_ctxext_state"  # the attribute by which an attention module finds its model's state
UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")  # arguments that change attention


Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """The function as one at which torch.compile breaks its graph: compiled models stay right."""
    return cast(Function, torch.compiler.disable(function))


@dataclass
class State:
    """What the attention function of one patched model needs to know."""

    rotary: nn.Module
    rotate: Callable[..., tuple[Tensor, Tensor]]  # the rotary module's own forward
    trained: int
    parts: tuple[Part, ...]  # empty: only query scales
    query_scales: tuple[QueryScale, ...]
    factor: float  # the attention factor, where the rotary module no longer applies it
    path: str  # an attention path, or transformers' own implementation where there are no parts
    positions: Tensor | None = None  # [b or 1, n], of the forward pass that is running
    calls: int = 0
    tables: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    padding: tuple[Tensor, list[int] | None] | None = None  # a mask, and what it says

    @uncompiled
    def far_tables(self, x: Tensor, position_ids: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """The rotary module's new forward: cos and sin [b or 1, n, d] as far keys need them."""
        self.positions = position_ids
        self.tables.clear()
        self.padding = None
        if not self.parts:
            return self.rotate(x, position_ids, *args)
        cos, sin = self.rotate(x, self.parts[-1].key(position_ids.double()), *args)
        return cos * self.factor, sin * self.factor

    def left_over(self) -> tuple[Part, ...]:
        """The parts as seen from keys, and queries, that the rotary module rotated already."""
        done = self.parts[-1].key
        return tuple(
            Part(
                part.start,
                part.stop,
                lambda p, own=part.query: own(p) - done(p),  # type: ignore[misc]
                lambda p, own=part.key: own(p) - done(p),  # type: ignore[misc]
            )
            for part in self.parts
        )

    def turn(self, module: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
        """x [b, *, l, d] rotated by positions [l] (on the CPU), through the family's function."""
        key = (positions.numpy().tobytes(), x.device)  # all layers share a forward's few tables
        if key not in self.tables:
            like = torch.empty(0, dtype=torch.float32, device=x.device)
            self.tables[key] = self.rotate(like, positions[None].to(x.device))
        cos, sin = self.tables[key]
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return rotate_with(module, x, cos, sin)
        out = torch.empty_like(x)
        for start in range(0, x.shape[-2], TURN_AT_ONCE):
            here = slice(start, start + TURN_AT_ONCE)
            out[..., here, :] = rotate_with(module, x[..., here, :], cos[:, here], sin[:, here])
        return out

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

    def scale_query(self, query: Tensor, given: Tensor | None) -> Tensor:
        """Queries [b, h, n, d] times the query scales of their true positions."""
        positions = self.positions if given is None else given
        if not self.query_scales or positions is None:
            return query
        n = positions.to(query.device, torch.float64) + 1
        scale = torch.ones_like(n)
        for method in self.query_scales:
            scale = scale * method.scale(n, self.trained)
        wide = torch.promote_types(query.dtype, torch.float32)
        return (query * scale[:, None, :, None].to(wide)).to(query.dtype)


def has_holes(mask: Tensor) -> bool:
    """Whether any row of a mask [b, m] has more than one run of tokens."""
    starts = torch.diff(mask.bool().int(), prepend=torch.zeros_like(mask[:, :1]).int()) == 1
    return bool((starts.sum(-1) > 1).any())


def rotate_with(module: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b, *, l, d] rotated by the `apply_rotary_pos_emb` of the attention module's family.

    A family that slices the rotated part out before it calls that function (cos is narrower than
    the head, and the function does not take it) has the first cos.shape[-1] dimensions rotated.
    """
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
    try:
        out: Tensor = apply(x, x[:, :0], cos, sin)[0]
    except RuntimeError:
        width = cos.shape[-1]
        head = apply(x[..., :width], x[:, :0, :, :width], cos, sin)[0]
        out = torch.cat((head, x[..., width:].to(head.dtype)), -1)
    return out.to(x.dtype)


def state_of(module: nn.Module) -> State:
    """The state of the patched model that an attention module belongs to."""
    state = getattr(module, STATE, None)
    if not isinstance(state, State):
        raise UnsupportedModelError(f"{type(module).__name__} was asked for ctxext but not patched")
    state.calls += 1
    return state


@uncompiled
def distance_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of models with a distance method; transformers' signature.

    query [b, h, n, d], key and value [b, g, m, d], attention_mask as `padding_mask` gives it, or
    [b or 1, 1, n, m] of bool or added to scores; returns [b, n, h, d] and no weights.
    """
    state = state_of(module)
    odd = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if odd:
        raise UnsupportedModelError(f"distance methods do not support attention with {odd[0]!r}")
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = _seen_by(attention_mask)
    output = attend(
        state.path,
        state.scale_query(query, kwargs.get("position_ids")).to(value.dtype),
        key.to(value.dtype),
        value,
        state.left_over(),
        lambda x, positions: state.turn(module, x, positions),
        scaling if scaling is not None else query.shape[-1] ** -0.5,
        attention_mask,
        dropout,
        state.first_tokens(attention_mask, query.shape[2]),
    )
    return output.transpose(1, 2).contiguous(), None


def _seen_by(additive: Tensor) -> Tensor:
    """The boolean mask of an additive one that only hides keys."""
    seen = additive == 0
    if not (seen | (additive <= torch.finfo(additive.dtype).min / 2)).all():
        raise UnsupportedModelError("distance methods do not support a mask that adds a bias")
    return seen


@uncompiled
def scaled_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function of models with query scales alone: scale, then the model's own."""
    state = state_of(module)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own = ALL_ATTENTION_FUNCTIONS.get_interface(state.path, eager)
    query = state.scale_query(query, kwargs.get("position_ids"))
    output: tuple[Tensor, Tensor | None] = own(module, query, key, value, *args, **kwargs)
    return output


@uncompiled
def padding_mask(
    *, mask_function: Any = causal_mask_function, attention_mask: Tensor | None = None, **given: Any
) -> Tensor | None:
    """The mask of `distance_attention`, in memory linear in length where it can be.

    None where causal order is all there is, [b, 1, 1, m] where rows are padded besides, and the
    whole of sdpa's mask [b or 1, 1, n, m] for anything else, such as packed sequences.
    """
    end, keys = given.get("q_offset", 0) + given["q_length"], given["kv_length"]
    plain = mask_function is causal_mask_function and given.get("allow_is_causal_skip", True)
    short = attention_mask is not None and attention_mask.shape[1] != keys
    if not plain or given.get("kv_offset", 0) or end != keys or short:
        whole: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
            mask_function=mask_function,
            attention_mask=attention_mask,
            **{**given, "allow_is_causal_skip": False},
        )
        return whole
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, None, None].bool()


def register_distance() -> str:
    """Register `distance_attention` and its mask, and return its name."""
    AttentionInterface.register("ctxext", distance_attention)
    AttentionMaskInterface.register("ctxext", padding_mask)
    return "ctxext"


def register_scaled(own: str) -> str:
    """Register `scaled_attention` over the implementation `own`, with its mask; its new name."""
    if own not in ALL_MASK_ATTENTION_FUNCTIONS:  # without one the model would not be causal
        raise UnsupportedModelError(f"query scales do not run on {own!r} attention: load with sdpa")
    name = f"ctxext_{own}"
    AttentionInterface.register(name, scaled_attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name
