"""Caches of keys and values that grow in place.

transformers' own puts a new key behind the others by copying all of them, at every step. Here they
are the beginning of a tensor with room for more, and what is cut off makes room again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 1.25  # times the tokens held, where more come than were expected


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one attention layer [b, g, m, d].

    As in transformers' own, `keys` and `values` are all that there is: what was put in their place
    (cut off, reordered, repeated, moved, copied) is gone on from. It is copied but where it is
    still the beginning of what has room. Where gradients are taken, it is transformers' own.

    Attributes:
        expected: tokens that there will be, as far as is known: room for as many is made at once.
    """

    keys: Tensor
    values: Tensor
    expected = 0
    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with no tokens, and no room."""
        super().lazy_initialization(key_states, value_states)
        self._key_room = self._value_room = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take on the keys and values of the next tokens [b, g, n, d]; all of them, as views."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            both: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return both
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._key_room, self.keys = self._join(self._key_room, self.keys, key_states)
        self._value_room, self.values = self._join(self._value_room, self.values, value_states)
        return self.keys, self.values

    def _join(self, room: Tensor | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """`held` with `new` behind it, a view of the room; a wider one where that is too small."""
        past = held.shape[-2] if held.numel() else 0
        total = past + new.shape[-2]
        if room is not None and _begins(room, held) and _takes(room, new, total):
            room[..., past:total, :] = new
            return room, room[..., :total, :]
        size = self.expected if total <= self.expected else int(GROWTH * total)
        dtype = torch.promote_types(held.dtype, new.dtype)
        room = new.new_empty(*new.shape[:-2], size, new.shape[-1], dtype=dtype)
        joined = room[..., :total, :]
        torch.cat([held, new] if past else [new], -2, out=joined)
        return room, joined


def _begins(room: Tensor, held: Tensor) -> bool:
    """Whether what is held is the beginning of the room."""
    if (held.data_ptr(), held.stride()) != (room.data_ptr(), room.stride()):
        return False
    return held.dtype == room.dtype and _but_tokens(held) == _but_tokens(room)


def _takes(room: Tensor, new: Tensor, total: int) -> bool:
    """Whether the room takes more tokens in place, so that there are `total`."""
    if total > room.shape[-2] or _but_tokens(new) != _but_tokens(room):
        return False
    if (new.dtype, new.device) != (room.dtype, room.device):
        return False
    return torch.is_inference_mode_enabled() or not room.is_inference()


def _but_tokens(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-2], x.shape[-1])


class GrowingCache(DynamicCache):  # type: ignore[misc]
    """The cache of a model, each of whose layers that keeps every token grows in place.

    Sliding layers are transformers' own: they hold no more than a window.
    """

    layers: list[Any]

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(x) is DynamicLayer else x for x in self.layers]

    def expect(self, tokens: int) -> None:
        """Say how many tokens there will be."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.expected = tokens


def new_cache(model: Any, expected: int = 0) -> DynamicCache | None:
    """An empty cache: one that grows in place, or transformers' own where the model keeps more than
    keys and values; None where the config names no layers, as that of several models in one.

    Args:
        expected: tokens that there will be, as far as is known.
    """
    try:
        cache = DynamicCache(config=model.config)
    except AttributeError:
        return None
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    if not cache.layers or any(type(layer) not in known for layer in cache.layers):
        return cache
    growing = GrowingCache(model.config)
    growing.expect(expected)
    return growing
