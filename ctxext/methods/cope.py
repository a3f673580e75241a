"""CoPE, clipped RoPE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require, tokens_between


@register("cope")
@dataclass(frozen=True)
class CoPE(Frequency):
    """CoPE: the slowest pairs turn less and less, and the last not at all.

    Formula: 1/λ_i = (1 + cos(π·j/(c−1)))/2 for the last c pairs, j = 0 … c−1, or 0 with hard=true;
    else 1

    Source: CoPE, arXiv 2602.05258, which trains on

    Parameters: clip (c, pairs, at least 1, all at most; default 20, as its code has for 64 pairs; 1
    changes nothing unless hard=true), hard (default false)

    Inside T: what slow pairs told of position is lost in part, which an untrained model pays for.

    Beyond T: the slower a pair, the later its angles leave what training saw; those of pairs that
    turn within T never do.
    """

    clip: int = 20
    hard: bool = False

    def __post_init__(self) -> None:
        require(self.clip >= 1, "clip", self.clip, "at least 1")

    def search(self, span: Span) -> dict[str, Range] | None:
        """c from 2 to 32."""
        return {"clip": tokens_between(2, 32)}

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = 2/(1 + cos(π·j/(c−1))), or ∞."""
        pairs = len(rotary.theta)
        clip = min(self.clip, pairs)
        steps = [i - (pairs - clip) for i in range(pairs)]
        if self.hard:
            return [math.inf if j >= 0 else 1.0 for j in steps]
        turns = [max(0, j) / max(1, clip - 1) for j in steps]
        return [math.inf if t == 1 else 2 / (1 + math.cos(math.pi * t)) for t in turns]
