"""The outline of a model: its modules and their shapes, without weights."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ctxext.errors import UnsupportedModelError, short
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.layout import head_dim
from ctxext.models.sizes import is_size

MANY = 2000  # layers: a config that names more is not a model's
WIDE = 2**16  # a head's dimensions: frequencies are made of as many as a config names


def outline(
    config: Any, trust_remote_code: bool = False, *, dtype: Any = None, attn: str = "eager"
) -> Any:
    """The model on the meta device, but with real rotary frequencies.

    Args:
        dtype: torch's, of its weights; None for the config's.
        attn: transformers' attention implementation.

    Raises:
        UnsupportedModelError: transformers builds no such model, or it has no such frequencies.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if is_size(layers) and not 1 <= layers <= MANY:
        raise UnsupportedModelError(
            f"bad num_hidden_layers {layers} in the config: 1 to {MANY} are served"
        )
    if (wide := head_dim(config)) > WIDE:
        raise UnsupportedModelError(
            f"bad head dimension {wide} of the config: at most {WIDE} are served"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),  # it writes into the configs of a config's parts
                attn_implementation=attn,
                trust_remote_code=trust_remote_code,
                **({} if dtype is None else {"dtype": dtype}),
            )
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers builds no causal language model of type {config.model_type}: "
            f"{short(error)}"
        ) from error
    for module in {s.module: s.module for s in find_frequency_sets(model)}:
        if hasattr(module, "config"):
            module.__init__(module.config)  # type: ignore[misc]
    return model
