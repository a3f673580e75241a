"""Which dimensions of a head a layer rotates, in which pairs, by which of its frequencies."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TURN_AT_ONCE = 512  # tokens: a slice and its temporaries stay in a CPU's cache
SHORT = 16  # tokens at most, whose dimensions are turned all at once

Index = slice | Tensor


class Tables(NamedTuple):
    """What turns l tokens: cos and sin of each pair [b or 1, 1, l, p]; or of each dimension
    [b or 1, 1, l, d], where `partner` [d] is the other one of its pair."""

    cos: Tensor
    sin: Tensor
    partner: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Rotation:
    """Pairs of dimensions: x_a, x_b become x_a cos − x_b sin, x_b cos + x_a sin.

    Attributes:
        a, b: the dimensions of a head that are turned towards each other [p], of d.
        number: for each pair that of its frequency.
        whole: whether all of a head's dimensions are in a pair.
    """

    a: Index
    b: Index
    number: Index
    whole: bool

    @staticmethod
    @functools.cache
    def of(a: tuple[int, ...], b: tuple[int, ...], number: tuple[int, ...], d: int) -> Rotation:
        """One for all layers that are turned alike, with heads of d dimensions."""
        return Rotation(as_index(a), as_index(b), as_index(number), 2 * len(a) == d)

    def tables(self, angles: Tensor, d: int) -> Tables:
        """What turns heads of d dimensions by angles of each frequency [b or 1, l, ·]."""
        angles = angles[:, None, :, self.number]
        cos, sin = angles.cos(), angles.sin()
        if angles.shape[2] > SHORT:
            return Tables(cos, sin)
        partner = torch.arange(d, device=angles.device)
        partner[self.a], partner[self.b] = partner[self.b], partner[self.a].clone()
        every, signed = cos.new_ones(*cos.shape[:3], d), sin.new_zeros(*sin.shape[:3], d)
        for at, by in ((self.a, -sin), (self.b, sin)):
            every[..., at], signed[..., at] = cos, by
        return Tables(every, signed, partner)

    def turn(self, x: Tensor, tables: Tables) -> Tensor:
        """x [b, h, l, d] rotated.

        The products are taken in float32 at least and rounded once.
        """
        cos, sin, partner = tables
        if partner is not None:
            return torch.addcmul(x * cos, x.index_select(-1, partner), sin).to(x.dtype)
        out = torch.empty_like(x) if self.whole else x.clone()
        few = x.shape[-2] <= TURN_AT_ONCE
        if few or torch.is_grad_enabled() or x.device.type != "cpu":
            return self._turn(x, cos, sin, out)
        for start in range(0, x.shape[-2], TURN_AT_ONCE):
            at = (..., slice(start, start + TURN_AT_ONCE), slice(None))
            self._turn(x[at], cos[at], sin[at], out[at])
        return out

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
        a, b = x[..., self.a], x[..., self.b]
        out[..., self.a] = torch.addcmul(a * cos, b, sin, value=-1).to(x.dtype)
        out[..., self.b] = torch.addcmul(b * cos, a, sin).to(x.dtype)
        return out


def as_index(numbers: tuple[int, ...]) -> Index:
    """The numbers as a slice where they are equally spaced and ascend, else as a tensor."""
    first, step = numbers[0], numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step > 0 and numbers == tuple(range(first, first + step * len(numbers), step)):
        return slice(first, numbers[-1] + 1, step)
    return torch.tensor(numbers)
