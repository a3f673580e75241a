"""Llama 3.1's frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Range, Rotary, Span, Stretch, require


@register("llama3")
@dataclass(frozen=True)
class Llama3(Stretch):
    """Llama 3.1: pairs that turn often within T stay, those that hardly turn are interpolated.

    Formula: λ_i = 1 for more than high_freq_factor turns within T, k for fewer than
    low_freq_factor, else 1/((1−m)/k + m), m = (turns − low_freq_factor)/(high_freq_factor −
    low_freq_factor)

    Source: Llama 3.1; equal to transformers' `llama3`

    Parameters: factor (k, at least 1; default L/T, at least 1), low_freq_factor (turns; default
    1), high_freq_factor (turns, above low_freq_factor; default 4)

    Inside T: identity at k = 1; above, a small loss.

    Beyond T: as for yarn, with another ramp and without its sharper logits.
    """

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.low_freq_factor, self.high_freq_factor
        require(low >= 1e-6, "low_freq_factor", low, "at least 1e-6 turns")
        require(high <= 1e6, "high_freq_factor", high, "at most 1e6 turns")
        require(high > low, "high_freq_factor", high, "above low_freq_factor")

    def search(self, span: Span) -> dict[str, Range] | None:
        """k, and both ends of the ramp, the upper one above the lower one."""
        low = min(2.0, self.high_freq_factor / 1.25)
        high = max(2.5, self.low_freq_factor * 1.25)
        return {
            **(super().search(span) or {}),
            "low_freq_factor": Range(min(0.25, low), low),
            "high_freq_factor": Range(high, max(32.0, high)),
        }

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = 1/((1−m)/k + m), m from 0 to 1 over the turns between the two factors."""
        low, high = self.low_freq_factor, self.high_freq_factor
        turns = [rotary.trained * theta / (2 * math.pi) for theta in rotary.theta]
        kept = [min(max((n - low) / (high - low), 0.0), 1.0) for n in turns]
        return [1 / ((1 - m) / self.k + m) for m in kept]

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """Transformers' `llama3`."""
        return {
            "rope_type": "llama3",
            "factor": self.k,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": rotary.trained,
        }
