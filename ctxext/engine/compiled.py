"""What torch.compile is to leave alone, or to take as one operation that it does not look into."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ctxext.engine.switch import registered

Function = TypeVar("Function", bound=Callable[..., Any])

_COUNT = itertools.count()
_KNOWN: WeakValueDictionary[int, Any] = WeakValueDictionary()


def uncompiled(function: Function) -> Function:
    """The function as one at which torch.compile breaks its graph: compiled models stay right."""
    return cast(Function, torch.compiler.disable(function))


def number_of(state: object) -> int:
    """A number by which compiled code finds it, as long as it lives."""
    number = next(_COUNT)
    _KNOWN[number] = state
    return number


@torch.library.custom_op(
    f"ctxext::{registered('scale')}",
    mutates_args=(),
    schema="(Tensor query, Tensor? mask, int state, int layer) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),  # it goes by the forward that is running
)
def compiled_scale(query: Tensor, mask: Tensor | None, state: int, layer: int) -> Tensor:
    """`PatchState.query_scale` of the state and the layer with these numbers [b, 1, n, 1]."""
    scale: Tensor = _KNOWN[state].query_scale(layer, query, mask)
    return scale.expand(len(query), -1, -1, -1).contiguous()


@compiled_scale.register_fake
def _(query: Tensor, mask: Tensor | None, state: int, layer: int) -> Tensor:
    b, _, n, _ = query.shape
    return query.new_empty(b, 1, n, 1, dtype=torch.promote_types(query.dtype, torch.float32))
