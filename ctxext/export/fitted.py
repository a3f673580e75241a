"""What a spec meets in a model, from a small random model of the same config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctxext.engine.anatomy import Anatomy, examine
from ctxext.engine.at_hand import check_at_hand
from ctxext.errors import UnsupportedModelError
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import FrequencySet, find_frequency_sets
from ctxext.models.trained import Trained


@dataclass(frozen=True)
class Fitted:
    """A spec on a model.

    Attributes:
        spec: resolved, but for what goes by the length of each sequence.
        longest: as it is for L tokens.
        trained: T in tokens, and what it was taken from.
    """

    spec: Spec
    longest: Spec
    trained: Trained
    anatomy: Anatomy

    def only_axis(self, kind: str) -> FrequencySet:
        """The one set of frequencies; UnsupportedModelError where a GGUF file has no place for
        what there is."""
        if len(self.anatomy.axes) != 1 or self.anatomy.alone:
            raise UnsupportedModelError(
                f"{kind} has layers of several kinds, which GGUF export does not serve"
            )
        (freqs,) = self.anatomy.axes
        return freqs


def fit(
    small: Any, spec: Spec, length: int, train_len: int | None = None, own_scaling: str = "keep"
) -> Fitted:
    """Resolve a spec for a model, and learn what it meets in it.

    Args:
        small: a model of its config, in memory.
        length: L in tokens.

    Raises:
        UsageError: a default cannot be had.
        UnsupportedModelError: the model cannot take the spec.
    """
    own = "keep" if spec.unpatched else own_scaling
    freq_sets = find_frequency_sets(small, train_len, own, length)
    trained = Trained(freq_sets[0].trained, freq_sets[0].why)
    span = Span(trained.tokens, length)
    settled, longest = spec.settle(span), spec.resolve(span)
    if settled.at_hand:
        check_at_hand(settled, freq_sets)
    anatomy = examine(small, freq_sets, settled)
    if settled.unpatched:
        anatomy = Anatomy([], dict.fromkeys(freq_sets, ()), [])
    return Fitted(settled, longest, trained, anatomy)
