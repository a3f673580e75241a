"""Where a model's rotary frequencies are; refuses loudly a model that has none."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ctxext.errors import UnsupportedModelError
from ctxext.methods.base import Rotary
from ctxext.models.layout import head_dim, layer_configs
from ctxext.models.rope import check_config
from ctxext.models.trained import ORIGINAL, explain_trained, scales

NAME = "inv_freq"
LENGTH_DEPENDENT = ("dynamic", "longrope")  # scalings that go by the length at hand
# All that transformers' rope types read, so what an older scaling leaves behind.
SCALING_KEYS = frozenset(
    "rope_type type factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate "
    "short_factor long_factor short_mscale long_mscale low_freq_factor high_freq_factor alpha "
    f"{ORIGINAL}".split()
)
VARIANT = ("mscale", "mscale_all_dim")  # by which a family's yarn is not the paper's

Rope = dict[str, Any]  # what stands in a config as `rope_parameters`, for one layer type


class Start(NamedTuple):
    """What a method starts from: frequencies [d/2] in radians per token, attention factor."""

    inv_freq: Tensor
    factor: float


@dataclass(frozen=True, eq=False)
class FrequencySet:
    """One set of rotary frequencies: a module's only one, or its set for one layer type.

    Attributes:
        module: the rotary module.
        layer_type: what its forward is told to choose this set; None where it has but one.
        config: the config of the part of the model that the module serves.
        trained: T in tokens.
        why: what T was taken from, in a few words.
        own_scaling: whether methods "keep" or "replace" the scaling that the config names.
        length: L in tokens, for scalings that go by the length.
    """

    module: nn.Module
    layer_type: str | None
    config: Any
    trained: int
    why: str = ""
    own_scaling: str = "keep"
    length: int | None = None

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

    @functools.cached_property
    def scaling(self) -> str:
        """The rope type that the module ran on when first asked, "default" for none."""
        kind = self.module.__dict__.get("rope_type")
        kind = kind.get(self.layer_type) if isinstance(kind, dict) else kind
        return str(kind or self.rope.get("rope_type", "default"))

    @property
    def by_length(self) -> bool:
        """Whether the frequencies change with the length of what is read."""
        return self.scaling in LENGTH_DEPENDENT

    @property
    def scaled(self) -> bool:
        """Whether the config names a scaling."""
        return scales(self.rope)

    @property
    def replaced(self) -> bool:
        """Whether a scaling is to be taken off."""
        return self.own_scaling == "replace" and self.scaled

    @property
    def rope(self) -> Rope:
        """The rope parameters in the config."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        return rope if self.layer_type is None else rope.get(self.layer_type) or {}

    @property
    def plain_rope(self) -> Rope:
        """The rope parameters without any scaling."""
        kept = {k: v for k, v in self.rope.items() if k not in SCALING_KEYS}
        kind = "proportional" if self.rope.get("rope_type") == "proportional" else "default"
        return {**kept, "rope_type": kind}

    @property
    def beside(self) -> set[str]:
        """The keys of numbers among the rope parameters that the rotary module does not read."""
        special = set(getattr(self.config, "ignore_keys_at_rope_validation", None) or ())
        given = {key: self.rope.get(key) for key in special - {"partial_rotary_factor"}}
        return {key for key, value in given.items() if type(value) in (int, float)}

    @functools.cached_property
    def facts(self) -> Rotary:
        """θ that methods divide by λ, its base, and T; UnsupportedModelError where not known."""
        theta = tuple(self.start.inv_freq.double().tolist())
        ordered = all(fast >= slow for fast, slow in itertools.pairwise(theta))
        if self.scaling == "default" and not ordered:
            raise UnsupportedModelError(
                f"{self.config.model_type}: its frequencies are not in order, from the fastest on"
            )
        base = float(self.rope.get("rope_theta") or _base_of(theta))
        return Rotary(theta, base, self.trained, self._variant() if self.replaced else {})

    @functools.cached_property
    def start(self) -> Start:
        """As the model computes them in float32: unscaled, at L, or as they are."""
        if self.replaced:
            if not hasattr(type(self.module), "compute_default_rope_parameters"):
                raise UnsupportedModelError(
                    f"{self.config.model_type}: its unscaled frequencies cannot be computed from "
                    "the config"
                )
            return self.compute(self.plain_rope)
        if self.by_length:
            return self._at(self.length or 1)
        own = self.inv_freq
        if own.dtype == torch.float32 and not own.is_meta:
            return Start(own, self.factor)
        return self.compute(self.rope)

    def at_length(self, length: int) -> int:
        """The shortest length with the same frequencies, or one below which all have the same."""
        if not self.by_length:
            return 0
        if self.scaling == "longrope":
            original = int(self.rope[ORIGINAL])
            return original + 1 if length > original else original
        return max(length, self.unscaled)

    @property
    def unscaled(self) -> int:
        """The length in tokens up to which a dynamic scaling changes nothing."""
        own = getattr(self.module, "original_max_seq_len", None)
        return int(own or self.config.max_position_embeddings)

    def compute(self, rope: Rope) -> Start:
        """What transformers makes of other rope parameters; any exception where it refuses."""
        kind, settings = self.layer_type, self.config.to_dict()
        layers = layer_configs(self.config)
        if all(getattr(layer, "head_dim", 0) is None for layer in layers):  # its yarn reads it
            settings["head_dim"] = head_dim(self.config)
        settings["rope_parameters"] = (
            rope if kind is None else {**self.config.rope_parameters, kind: rope}
        )
        if hasattr(self.config, ORIGINAL) and ORIGINAL in rope:  # it goes before rope_parameters
            settings[ORIGINAL] = rope[ORIGINAL]
        other = type(self.config).from_dict(settings)
        if rope.get("rope_type", "default") == "default":
            own: Any = type(self.module)
            found = own.compute_default_rope_parameters(_of_layer(other, kind), **self._options())
        else:
            function: Any = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
            found = function(other, None, **self._options())
        inv_freq, factor = found
        if inv_freq.dtype != torch.float32 or inv_freq.is_meta:
            raise TypeError(inv_freq.dtype)
        return Start(inv_freq, float(factor))

    def _at(self, length: int) -> Start:
        """What the module has in force when it reads a sequence of `length` tokens."""
        device, shortest = self.inv_freq.device, self.at_length(1)
        if self.at_length(length) == shortest:
            inv_freq = getattr(self.module, self.named(f"original_{NAME}"))
            return Start(inv_freq.detach().clone(), self.factor)
        function: Any = ROPE_INIT_FUNCTIONS[self.scaling]
        last = torch.tensor(length, device=device)  # its forward counts in tensors, in float32
        return Start(function(self.config, device, seq_len=last, **self._options())[0], self.factor)

    def _options(self) -> dict[str, Any]:
        return {} if self.layer_type is None else {"layer_type": self.layer_type}

    def _variant(self) -> dict[str, Any]:
        """What sets the family's yarn apart from the paper's, where it is its own scaling."""
        if self.rope.get("rope_type") != "yarn":
            return {}
        truncate = self.config.rope_parameters.get("truncate")  # beside layer types, as it is read
        given = {**{key: self.rope.get(key) for key in VARIANT}, "truncate": truncate}
        return {key: value for key, value in given.items() if value is not None}


def find_frequency_sets(
    model: nn.Module,
    train_len: int | None = None,
    own_scaling: str = "keep",
    length: int | None = None,
) -> list[FrequencySet]:
    """Every set of rotary frequencies in a transformers causal language model.

    Args:
        model: any module; its `config` is read.
        train_len: T in tokens, where the config's is not right.
        own_scaling: whether methods "keep" or "replace" the scaling that the config names.
        length: L in tokens, for scalings that go by the length.

    Raises:
        UsageError: `own_scaling` is neither, or the config's rope parameters cannot be meant.
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
    check_config(config)
    trained = explain_trained(config, own_scaling, train_len)
    return [
        FrequencySet(
            m,
            name.removesuffix(NAME).removesuffix("_") or None,
            _config(m, config),
            *trained,
            own_scaling,
            length,
        )
        for m, name in found
    ]


def length_class(model: nn.Module | list[FrequencySet], length: int) -> int | None:
    """A number that lengths share at which a model's own scaling has the same frequencies.

    Args:
        model: a model, or its sets; of a patched one whose frequencies are fixed, none change.
        length: in tokens.

    Returns:
        None where nothing goes by the length.
    """
    freq_sets = model if isinstance(model, list) else find_frequency_sets(model)
    steps = [freqs.at_length(length) for freqs in freq_sets if freqs.by_length]
    return sum(steps) if steps else None  # none ever falls: sums are equal where all are


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


def _of_layer(config: Any, kind: str | None) -> Any:
    """The config of the layers of one type, where these differ in more than their rotation."""
    if kind is None or not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[kind]


def _base_of(theta: tuple[float, ...]) -> float:
    """The base of a geometric θ: θ_1 = base^(−2/d)."""
    return theta[1] ** -len(theta) if len(theta) > 1 else 10000.0
