"""What one attention is given, and what an attention path says of itself.

To add a path, write one file with an object that is a `Path`, and enter it in `paths.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctxext.engine.positions import Positions
from ctxext.methods.base import Part

Turn = Callable[[Tensor, Tensor], Tensor]


class Attention(NamedTuple):
    """The arguments of `reference.dense_attention`, which says what they are."""

    query: Tensor
    key: Tensor
    value: Tensor
    parts: tuple[Part, ...]
    turn: Turn
    scaling: float
    at: Positions
    mask: Tensor | None = None
    dropout: float = 0.0
    softcap: float | None = None
    sinks: Tensor | None = None
    turned: Mapping[int, Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether causal order and positions that go on by one are all there is to it."""
        return self.bare and self.mask is None and self.at.offset is not None

    @property
    def bare(self) -> bool:
        """Whether scores are what they are, and weights too."""
        return not self.dropout and self.softcap is None and self.sinks is None

    @property
    def graded(self) -> bool:
        """Whether gradients are asked for."""
        some = (self.query, self.key, self.value)
        return torch.is_grad_enabled() and any(x.requires_grad for x in some)


class Place(NamedTuple):
    """Where a model runs: the type of its device, its dtype, and the widest head of its layers.

    Attributes:
        needs: what its attention has besides, such as "softcap" or "sinks".
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    needs: tuple[str, ...] = ()


class Path(Protocol):
    """A way to compute attention."""

    name: str

    def why_not(self, place: Place) -> str | None:
        """What keeps the path from running there, as a phrase; None where nothing does."""

    def serves(self, given: Attention) -> bool:
        """Whether it computes this; else the chunked reference does."""

    def run(self, given: Attention) -> Tensor:
        """The output [b, h, n, d]."""
