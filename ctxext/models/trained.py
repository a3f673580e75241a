"""The trained length, from a config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.choices import OwnScaling, words
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.notation import is_length

ORIGINAL = "original_max_position_embeddings"
LONGEST = "max_position_embeddings"
UNSCALED = ("default", "proportional")  # rope types that scale by no more than a factor


class Trained(NamedTuple):
    """T in tokens, and what it was taken from, in a few words."""

    tokens: int
    why: str


def trained_length(config: Any, own_scaling: str = "keep") -> int:
    """T in tokens; arguments and errors as for `explain_trained`."""
    return explain_trained(config, own_scaling).tokens


def explain_trained(
    config: Any, own_scaling: str = "keep", train_len: int | None = None
) -> Trained:
    """The length up to which a model is whole, and what says so.

    Args:
        config: a transformers config.
        own_scaling: "keep": with the rope scaling of the config, the larger of
            `max_position_embeddings` and factor × `original_max_position_embeddings`; "replace":
            before it, `original_max_position_embeddings`.
        train_len: T in tokens, where the config's is not right.

    Raises:
        UsageError: `own_scaling` is neither.
        UnsupportedModelError: the config names no length.
    """
    check_own_scaling(own_scaling)
    if train_len is not None:
        return Trained(train_len, "--train-len")
    config = config.get_text_config()
    found = list(_declared(config, own_scaling))
    for length, _ in found:
        if not is_length(length):
            raise UnsupportedModelError(f"the config's trained length {length!r} is no length")
    if not found:
        raise UnsupportedModelError(f"{config.model_type}: the config names no trained length")
    return max(found, key=lambda each: each.tokens)


def check_own_scaling(own_scaling: object) -> None:
    """UsageError, unless it is a word of OwnScaling."""
    if own_scaling not in words(OwnScaling):
        raise UsageError(f"bad own_scaling {own_scaling!r}: valid: {', '.join(words(OwnScaling))}")


def scales(rope: dict[str, Any]) -> bool:
    """Whether rope parameters, of one layer type, scale the frequencies."""
    kind = rope.get("rope_type", "default")
    return kind not in UNSCALED or (kind == "proportional" and rope.get("factor", 1.0) != 1)


def _declared(config: Any, own_scaling: str) -> Iterator[Trained]:
    """The lengths that a config declares, of which the largest is meant; the first, if it ties."""
    rope = getattr(config, "rope_parameters", None) or {}
    of_types = [part for part in rope.values() if isinstance(part, dict)]  # one for a layer type
    scaled = [part for part in of_types or [rope] if scales(part)]
    longest, own = getattr(config, LONGEST, None), getattr(config, ORIGINAL, None)
    originals = [part[ORIGINAL] for part in scaled if part.get(ORIGINAL) is not None]
    before = originals[0] if originals else own
    if scaled and own_scaling == "replace" and before is not None:
        yield Trained(before, ORIGINAL)
        return
    if longest is not None:
        yield Trained(longest, LONGEST)
    for part in scaled:
        original, factor = part.get(ORIGINAL) or own, part.get("factor")
        if is_length(original):
            yield Trained(original, ORIGINAL)
        if is_length(original) and isinstance(factor, int | float) and 0 < factor < math.inf:
            why = f"{original} × factor {factor:g} of the config's {part['rope_type']} scaling"
            yield Trained(int(original * factor), why)
    if longest is None and before is not None:
        yield Trained(before, ORIGINAL)
