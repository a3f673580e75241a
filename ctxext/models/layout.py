"""What a loaded model's rotary layout is; refuses loudly what is not supported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.errors import UnsupportedModelError
from ctxext.models.trained import trained_length
from ctxext.patches.base import Rotary

# Scalings that choose their frequencies by the length of the sequence at hand.
LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True)
class Layout:
    """A model's rotary module and the facts that formulas need."""

    module: nn.Module
    facts: Rotary
    scaling: str  # transformers' rope type, "default" for none


def find_layout(model: nn.Module, train_len: int | None = None) -> Layout:
    """The layout of a transformers causal language model.

    Args:
        model: any module; its `config` is read.
        train_len: T in tokens, where the config's is not right.

    Raises:
        UnsupportedModelError: no rotary embeddings, or of a kind that is not supported yet.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model")
    config = config.get_text_config()
    found = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]
    kind = config.model_type
    if not found:
        layered = any(n.endswith("_inv_freq") for n, _ in model.named_buffers())
        why = "rotary embeddings per layer type" if layered else "no rotary embeddings"
        raise UnsupportedModelError(
            f"{kind} has {why}: a rotary module with one inv_freq is needed"
        )
    if len(found) > 1:
        raise UnsupportedModelError(f"{kind} has {len(found)} rotary modules; one is supported")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("mrope_section"):
        raise UnsupportedModelError(f"{kind} has positions of several axes, which is not supported")
    scaling = str(rope.get("rope_type", "default"))
    theta = _own_theta(found[0], config, scaling)
    base = float(rope.get("rope_theta") or _base_of(theta))
    return Layout(found[0], Rotary(theta, base, train_len or trained_length(config)), scaling)


def head_dim(config: Any) -> int:
    """The dimension of a query and key head, from a model's config."""
    text = config.get_text_config()
    own = getattr(text, "head_dim", None)
    return int(own or text.hidden_size // text.num_attention_heads)


def _own_theta(module: nn.Module, config: Any, scaling: str) -> tuple[float, ...]:
    """θ before any scaling, as the float32 numbers that the model itself would use."""
    own = getattr(module, "inv_freq", None)
    default = getattr(type(module), "compute_default_rope_parameters", None)
    if isinstance(own, Tensor) and scaling == "default" and own.dtype == torch.float32:
        return tuple(own.double().tolist())
    if default is None:
        raise UnsupportedModelError(
            f"{config.model_type}: its unscaled frequencies cannot be computed from the config"
        )
    return tuple(default(config)[0].double().tolist())


def _base_of(theta: tuple[float, ...]) -> float:
    """The base of a geometric θ: θ_1 = base^(−2/d)."""
    return theta[1] ** -len(theta) if len(theta) > 1 else 10000.0
