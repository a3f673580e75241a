"""Which dimensions of a head a layer rotates, in which pairs, by which of its frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TURN_AT_ONCE = 512  # tokens: a slice and its temporaries stay in a CPU's cache

Index = slice | Tensor


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

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [b, h, l, d] rotated; cos and sin are of each frequency [b or 1, l, d/2].

        The products are taken in float32 at least and rounded once.
        """
        cos, sin = cos[..., self.number][:, None], sin[..., self.number][:, None]
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


def as_index(numbers: list[int]) -> Index:
    """The numbers as a slice where they are equally spaced and ascend, else as a tensor."""
    first, step = numbers[0], numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step > 0 and numbers == list(range(first, first + step * len(numbers), step)):
        return slice(first, numbers[-1] + 1, step)
    return torch.tensor(numbers)
