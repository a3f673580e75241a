"""The attention paths of distance methods: which can run where, and which one is taken.

flash    FlashAttention calls with a window, merged            CUDA, 16 bits
sdpa     torch's own operators, in blocks, merged              CPU, CUDA
eager    the reference, chunked by query                       anywhere
dense    the reference itself, memory quadratic in length      for checking the others
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctxext.engine import PATHS, check_path
from ctxext.engine.attention import Attention, Path, Place, Turn
from ctxext.engine.chunked import chunked_attention
from ctxext.engine.merged import merged_attention
from ctxext.engine.operators import TORCH, CudaFlash, Operator
from ctxext.engine.positions import Positions
from ctxext.engine.reference import dense_attention
from ctxext.engine.runs import FEW
from ctxext.errors import UsageError
from ctxext.methods.base import Part


class Merged:
    """Two plain attentions, or a few, merged."""

    name: str

    def why_not(self, place: Place) -> str | None:
        """No path of these has caps or sinks."""
        return f"{' and '.join(place.needs)} are not served" if place.needs else None

    def serves(self, given: Attention) -> bool:
        """All but FEW queries in 32 bits or more, and values that are wider than keys."""
        n = given.query.shape[2]
        few = n < FEW and given.value.dtype in (torch.float32, torch.float64)
        if few or given.value.shape[3] > given.key.shape[3]:
            return False
        rows = n == 1 and given.bare and not given.graded and self.operator(given.query).row_masks
        return given.plain or rows

    def operator(self, query: Tensor) -> Operator:
        """What computes plain attention for these queries."""
        return TORCH[query.device.type]

    def run(self, given: Attention) -> Tensor:
        """Values of a smaller head dimension than the keys' are filled up."""
        query, key, value, parts, turn, scaling, at, mask, *_, turned = given
        operator, (d, width) = self.operator(query), (key.shape[3], value.shape[3])
        value = pad(value, (0, d - width)) if width < d else value
        out = merged_attention(query, key, value, parts, turn, scaling, operator, at, turned, mask)
        return out[..., :width]


class Sdpa(Merged):
    """Torch's own operators."""

    name = "sdpa"

    def why_not(self, place: Place) -> str | None:
        """Where torch has one."""
        if place.device not in TORCH:
            return f"torch has no such operator for {place.device}"
        if place.device == "cuda" and place.dtype == torch.float64:
            return "float64 is not served"
        return super().why_not(place)


class Flash(Merged):
    """FlashAttention."""

    name = "flash"

    def why_not(self, place: Place) -> str | None:
        """Where a kernel of it is installed and takes the numbers."""
        device, dtype, head_dim, _ = place
        if device != "cuda":
            return "it needs a CUDA device"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"it needs float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
        if head_dim > 256 or head_dim % 8:
            return f"a head dimension of {head_dim} is not a multiple of 8 up to 256"
        if not CudaFlash.available():
            return "neither flash-attn nor this torch has FlashAttention 2"
        return super().why_not(place)

    def operator(self, query: Tensor) -> Operator:
        """FlashAttention; under autocast a layer may have numbers that it does not take."""
        place = Place(query.device.type, query.dtype, query.shape[3])
        return super().operator(query) if self.why_not(place) else CudaFlash()


class Eager:
    """The reference by query chunks, which serves all."""

    name = "eager"

    def why_not(self, place: Place) -> str | None:
        """It runs anywhere."""
        return None

    def serves(self, given: Attention) -> bool:
        """All."""
        return True

    def run(self, given: Attention) -> Tensor:
        """Memory is linear in length."""
        return chunked_attention(**given._asdict())


class Dense(Eager):
    """The reference."""

    name = "dense"

    def run(self, given: Attention) -> Tensor:
        """Memory is quadratic in length."""
        fields = given._asdict()
        del fields["turned"]
        return dense_attention(**fields)


EAGER = Eager()
_PATHS: dict[str, Path] = {path.name: path for path in (Flash(), Sdpa(), EAGER, Dense())}


class PathChoice(NamedTuple):
    """A path, and why those before it in PATHS were not taken, a phrase each."""

    name: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " · ".join((self.name, *(f"not {reason}" for reason in self.reasons)))


def choose(
    asked: str,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    needs: Sequence[str] = (),
) -> PathChoice:
    """The path to take.

    Args:
        asked: "auto", "dense" or one of PATHS.
        device: where the model is: "cpu", "cuda", "cuda:1", ….
        head_dim: of queries and keys.
        needs: what the model's attention has besides, such as "softcap" or "sinks", which only
            the reference serves.

    Raises:
        UsageError: an unknown path, or one that cannot run there; the message says why.
    """
    if asked == "dense":
        return PathChoice(asked, ())
    check_path(asked)
    place = Place(torch.device(device).type, dtype, head_dim, tuple(needs))
    why = {name: _PATHS[name].why_not(place) for name in PATHS}
    if asked == "auto":
        name = next(name for name in PATHS if why[name] is None)
        passed = PATHS[: PATHS.index(name)]
        return PathChoice(name, tuple(f"{other}: {why[other]}" for other in passed))
    if why[asked]:
        able = ", ".join(("auto", *(name for name in PATHS if why[name] is None)))
        raise UsageError(f"attention path {asked!r} cannot run: {why[asked]}; valid here: {able}")
    return PathChoice(asked, ())


def attend(
    path: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Turn,
    scaling: float,
    at: Positions | None = None,
    **more: Any,
) -> Tensor:
    """Distance attention on a path, or on the chunked reference where that does not serve it.

    Arguments as for `reference.dense_attention`; the mask is [b or 1, 1, n or 1, m].
    """
    at = at or Positions.consecutive(query.shape[2], key.shape[2])
    given = Attention(query, key, value, parts, turn, scaling, at, **more)
    chosen = _PATHS[path]
    return (chosen if chosen.serves(given) else EAGER).run(given)
