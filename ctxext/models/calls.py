"""How models are called, whatever their release of transformers: with a cache, and padded."""

from __future__ import annotations

import inspect
from typing import Any


def cache_name(model: Any) -> str:
    """What the forward of a model, or of a class of models, and its output call the cache."""
    kind: Any = model if isinstance(model, type) else type(model)
    takes = inspect.signature(kind.forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


def padding_id(model: Any, *wanted: int | None) -> int:
    """The first of the ids that the model can embed, or 0: what is masked is embedded too."""
    rows = model.get_input_embeddings().weight.shape[0]
    return next((int(i) for i in wanted if i is not None and 0 <= i < rows), 0)
