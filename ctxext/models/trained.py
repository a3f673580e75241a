"""The trained length, from a config alone."""

from __future__ import annotations

from typing import Any

from ctxext.errors import UnsupportedModelError
from ctxext.registry import is_length

ORIGINAL = "original_max_position_embeddings"


def trained_length(config: Any) -> int:
    """T in tokens: the length before any rope scaling, else `max_position_embeddings`.

    Raises:
        UnsupportedModelError: the config names no length.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    of_types = [part for part in rope.values() if isinstance(part, dict)]  # one for a layer type
    for length in (
        *(part.get(ORIGINAL) for part in (rope, *of_types)),
        getattr(config, ORIGINAL, None),
        getattr(config, "max_position_embeddings", None),
    ):
        if length is None:
            continue
        if not is_length(length):
            raise UnsupportedModelError(f"the config's trained length {length!r} is no length")
        return length
    raise UnsupportedModelError(f"{config.model_type}: the config names no trained length")
