"""Where a model's rotary frequencies are; refuses loudly a model that has none."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.errors import UnsupportedModelError
from ctxext.models.rope import check_config
from ctxext.models.trained import trained_length
from ctxext.patches.base import Rotary

NAME = "inv_freq"
LENGTH_DEPENDENT = ("dynamic", "longrope")  # scalings that go by the length at hand
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
        UsageError: the config's rope parameters cannot be meant.
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
    check_config(config)
    trained = train_len or trained_length(config)
    return [
        Source(m, name.removesuffix(NAME).removesuffix("_") or None, _config(m, config), trained)
        for m, name in found
    ]


def head_dim(config: Any) -> int:
    """The dimension of a query and key head, from a model's config."""
    text = config.get_text_config()
    latent = (getattr(text, "qk_rope_head_dim", None), getattr(text, "qk_nope_head_dim", None))
    if all(isinstance(part, int) for part in latent):
        return sum(latent)  # type: ignore[arg-type]
    own = getattr(text, "head_dim", None)
    return int(own or text.hidden_size // text.num_attention_heads)


def has_windows(config: Any, trained: int) -> bool:
    """Whether a config speaks of layers that see no further back than the trained length."""
    text = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size")
    windows = [size for name in names if (size := getattr(text, name, None))]
    if windows and min(windows) > trained:
        return False
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if window and "layer_types" not in vars(text):
        return True
    return bool(kinds & {"sliding_attention", "chunked_attention"})


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
