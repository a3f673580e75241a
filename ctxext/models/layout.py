"""Where a model's rotary frequencies are; refuses loudly a model that has none."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.errors import UnsupportedModelError
from ctxext.models.trained import trained_length
from ctxext.patches.base import Rotary

NAME = "inv_freq"
LENGTH_DEPENDENT = ("dynamic", "longrope")  # scalings that go by the length at hand
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
UNSCALED = ("default", "proportional")  # rope types whose inv_freq are the frequencies themselves


@dataclass(frozen=True, eq=False)
class Source:
    """One set of rotary frequencies: a module's only one, or its set for one layer type.

    Attributes:
        module: the rotary module.
        layer_type: what its forward is told to choose this set; None where it has but one.
        config: the config of the part of the model that the module serves.
        trained: T in tokens.
    """

    module: nn.Module
    layer_type: str | None
    config: Any
    trained: int

    def named(self, name: str) -> str:
        """The module's attribute `name` for this set."""
        return name if self.layer_type is None else f"{self.layer_type}_{name}"

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies in force [d/2], radians per token."""
        inv_freq = self.module._buffers[self.named(NAME)]
        assert inv_freq is not None
        return inv_freq

    @property
    def factor(self) -> float:
        """The attention factor in force."""
        return float(getattr(self.module, self.named("attention_scaling"), 1.0))

    @property
    def scaling(self) -> str:
        """Transformers' rope type, "default" for none."""
        return str(self.rope.get("rope_type", "default"))

    @functools.cached_property
    def facts(self) -> Rotary:
        """θ before any scaling, its base, and T; UnsupportedModelError where θ is not known."""
        theta = self._theta()
        ordered = all(fast >= slow for fast, slow in itertools.pairwise(theta))
        if self.scaling == "default" and not ordered:
            raise UnsupportedModelError(
                f"{self.config.model_type}: its frequencies are not in order, from the fastest on"
            )
        return Rotary(theta, float(self.rope.get("rope_theta") or _base_of(theta)), self.trained)

    @property
    def rope(self) -> dict[str, Any]:
        """The rope parameters in the config."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        return rope if self.layer_type is None else rope.get(self.layer_type) or {}

    def _theta(self) -> tuple[float, ...]:
        """θ before any scaling, as the float32 numbers that the model itself would use."""
        own = self.inv_freq
        if own.dtype == torch.float32 and self.scaling in UNSCALED and not own.is_meta:
            return tuple(own.double().tolist())
        default = getattr(type(self.module), "compute_default_rope_parameters", None)
        if default is None:
            raise UnsupportedModelError(
                f"{self.config.model_type}: its unscaled frequencies cannot be computed from the "
                "config"
            )
        options = {} if self.layer_type is None else {"layer_type": self.layer_type}
        return tuple(default(self.config, **options)[0].double().tolist())


def find_sources(model: nn.Module, train_len: int | None = None) -> list[Source]:
    """Every set of rotary frequencies in a transformers causal language model.

    Args:
        model: any module; its `config` is read.
        train_len: T in tokens, where the config's is not right.

    Raises:
        UnsupportedModelError: no rotary embeddings, or of a kind that is not supported.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model")
    config = config.get_text_config()
    found = [(m, name) for m in model.modules() for name in _names(m)]
    if not found:
        raise UnsupportedModelError(
            f"{config.model_type} has no rotary embeddings that can be changed: no module of it "
            "has an inv_freq"
        )
    trained = train_len or trained_length(config)
    return [
        Source(m, name.removesuffix(NAME).removesuffix("_") or None, _config(m, config), trained)
        for m, name in found
    ]


def layer_configs(config: Any) -> list[Any]:
    """The config of a model's language part, or those of its layers where settings differ."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def head_dim(config: Any) -> int:
    """The largest dimension of a query and key head, from a model's config.

    Raises:
        UnsupportedModelError: neither the language part nor any other says it.
    """
    names = getattr(config, "sub_configs", {})
    parts = (part for name in names if (part := getattr(config, name, None)) is not None)
    for some in (layer_configs(config), parts):
        if sizes := [size for part in some if (size := _head_dim(part))]:
            return max(sizes)
    raise UnsupportedModelError(f"{config.model_type}: the config names no attention heads")


def _head_dim(config: Any) -> int:
    """What a config says of one layer; 0 for nothing."""
    latent: list[Any] = [getattr(config, f"qk_{part}_head_dim", None) for part in ("rope", "nope")]
    own, wide, heads = (
        getattr(config, name, None) for name in ("head_dim", "hidden_size", "num_attention_heads")
    )
    if all(isinstance(part, int) for part in latent):
        return sum(latent)
    if isinstance(own, int) and own:
        return own
    return wide // heads if isinstance(wide, int) and isinstance(heads, int) and heads else 0


def layer_windows(config: Any) -> list[tuple[str, int | None]]:
    """The kind of each layer, and how many keys a query of it sees at most, from a config."""
    text, layers = config.get_text_config(), layer_configs(config)
    if len(layers) == 1:
        layers *= getattr(text, "num_hidden_layers", 1)
    kinds, slides = getattr(text, "layer_types", None), getattr(text, "use_sliding_window", True)
    if not isinstance(kinds, list):
        sliding = [slides and getattr(layer, "sliding_window", None) for layer in layers]
        kinds = ["sliding_attention" if one else "full_attention" for one in sliding]
    found = []
    for layer, kind in zip(layers, kinds, strict=False):
        window = getattr(layer, WINDOWS.get(kind, ""), None)
        found.append((kind, window if isinstance(window, int) and window > 0 else None))
    return found


def has_windows(config: Any, trained: int) -> bool:
    """Whether a config speaks of layers that see no further back than the trained length."""
    text, layers = config.get_text_config(), layer_configs(config)
    sizes = (getattr(layer, name, None) for name in WINDOWS.values() for layer in layers)
    windows = [size for size in sizes if size]
    if windows and min(windows) > trained:
        return False
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = any(getattr(layer, "sliding_window", None) for layer in layers)
    if window and getattr(text, "use_sliding_window", True) and "layer_types" not in vars(text):
        return True
    return bool(kinds & WINDOWS.keys())


def _names(module: nn.Module) -> list[str]:
    """The names of a module's buffers that hold frequencies in force."""
    return [
        name
        for name, buffer in module._buffers.items()
        if buffer is not None
        and (name == NAME or name.endswith(f"_{NAME}"))
        and not name.endswith((f"original_{NAME}", f"long_{NAME}"))
    ]


def _config(module: nn.Module, config: Any) -> Any:
    """The config that a rotary module has for itself, as in a nested model, or the given one."""
    own = getattr(module, "config", None)
    return config if own is None else own


def _base_of(theta: tuple[float, ...]) -> float:
    """The base of a geometric θ: θ_1 = base^(−2/d)."""
    return theta[1] ** -len(theta) if len(theta) > 1 else 10000.0
