"""What is known of a model's attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ctxext.engine.rotation import Rotation
from ctxext.methods import Spec
from ctxext.models.frequency_sets import FrequencySet


@dataclass
class AttentionSite:
    """What is known of one attention layer.

    Attributes:
        module: what is handed to the attention function.
        freqs: the frequencies that rotate it; None for a layer without positions.
        rotation: the pairs that they turn.
        weights: norms that multiply queries and keys by dimension after they are rotated.
        inside: whether its mask hides every key T or more tokens back.
        window: how many tokens its mask lets a query see, itself included; None for no limit.
        softcap, sinks: whether its scores are capped, or it has attention sinks.
        head_dim: of queries and keys.
        causal: whether each token sees itself and what is before it, and no more.
        handed: the names of what else its attention was handed that could change what it gives.
        unsupported: what its attention goes by that the engine does not know, in a few words.
        index: which of the model's layers it is, from 0.
        not_understood: why it is not known how it is rotated, in a few words.
    """

    module: nn.Module
    inside: bool
    softcap: bool
    sinks: bool
    head_dim: int
    causal: bool
    unsupported: str | None
    window: int | None = None
    handed: frozenset[str] = frozenset()
    freqs: FrequencySet | None = None
    rotation: Rotation | None = None
    weights: tuple[nn.Module, nn.Module] | None = None
    index: int = 0
    not_understood: str | None = None

    def why_not(self, spec: Spec) -> str | None:
        """Why this layer keeps a model from taking a spec, in a few words."""
        if self.not_understood:
            return self.not_understood
        if not self.causal and spec.changes_attention:
            return "its attention is not causal"
        if spec.rule and (self.softcap or self.sinks):
            return "its scores are capped, or it has attention sinks"
        if self.unsupported and spec.distance:
            return self.unsupported
        return None


def handed(given: dict[str, Any]) -> Iterator[str]:
    """Which arguments of an attention function could change what it gives: functions, numbers that
    are no counts, and tensors of more than one. Flags and caches keep books."""
    for name, value in given.items():
        some = value if isinstance(value, (tuple, list)) else (value,)
        if any(callable(x) or isinstance(x, float) or _is_many(x) for x in some):
            yield name


def _is_many(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() > 1
