"""A tokenizer that pads with what the model can embed."""

from __future__ import annotations

import copy
from typing import Any

from ctxext.models.calls import padding_id


def padding(tokenizer: Any, model: Any) -> Any:
    """A copy of the tokenizer, padding with the first that exists of what lm_eval would take."""
    names = ("pad_token_id", "unk_token_id", "eos_token_id")
    copied = copy.deepcopy(tokenizer)
    copied.pad_token_id = padding_id(model, *(getattr(tokenizer, name, None) for name in names))
    return copied
