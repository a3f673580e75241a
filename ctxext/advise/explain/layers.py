"""Which frequencies turn which layers of a model, and how far back these see: from its config."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ctxext.advise.explain.angles import PLAIN, Angles, Floats, angles
from ctxext.engine.probe import learn
from ctxext.errors import UnsupportedModelError, UsageError, short
from ctxext.methods import Spec
from ctxext.methods.base import Part
from ctxext.models.frequency_sets import FrequencySet, find_frequency_sets
from ctxext.models.layout import layer_windows

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")


@dataclass(frozen=True)
class Kind:
    """Layers that are alike: one set of frequencies, one window.

    Attributes:
        name: transformers' name for the layer type.
        layers: how many there are.
        window: how many keys, its own included, a query sees at most; None for all.
        trained_theta: θ [p] in radians per token as training had it at T: of the model's own
            scaling, or before it where that is replaced.
        theta: θ [p] of the unpatched model at the length.
        trained: T in tokens.
        freqs: the set that methods start from at the length.
    """

    name: str
    layers: int
    window: int | None
    trained_theta: Floats
    theta: Floats
    trained: int
    freqs: FrequencySet

    @property
    def alone(self) -> bool:
        """Whether no layer of it sees further back than T, so that methods leave it alone."""
        return self.window is not None and self.window <= self.trained

    def under(self, spec: Spec, length: int) -> tuple[Angles, tuple[Part, ...]]:
        """The angles at `length` tokens under a resolved spec, and its parts.

        Raises:
            UsageError: the spec's frequencies are not finite, or the length is too long.
        """
        theta, parts = self.theta, PLAIN
        if not spec.unpatched:
            theta = np.array(self.freqs.facts.theta)
        if spec.frequencies and not self.alone:
            with np.errstate(all="ignore"):
                theta = theta / np.array(spec.scales(self.freqs.facts))
            if not np.isfinite(theta).all():
                raise UsageError(f"{spec} gives frequencies that are not finite")
        if spec.distance and not self.alone:
            parts = tuple(part.on(self.freqs.facts) for part in spec.distance.parts())
        own, reach = self.trained_theta, self.window
        if reach and self.name == "chunked_attention":  # back to where the last query's chunk began
            reach = (length - 1) % reach + 1
        return angles(own, self.trained, theta, parts, length, reach), parts


def find_kinds(
    config: Any, length: int, train_len: int | None, trusted: bool, own_scaling: str = "keep"
) -> list[Kind]:
    """The kinds of layers with positions, those that see furthest first.

    Raises:
        UnsupportedModelError: no rotary embeddings, or of a kind that is not supported.
    """
    model = bare_model(config, trusted)
    freq_sets = find_frequency_sets(model, train_len, own_scaling, length)
    given = find_frequency_sets(model, train_len, "keep", length)
    before = find_frequency_sets(model, train_len, own_scaling, freq_sets[0].trained)
    counts = Counter(_layers(config))
    kinds: dict[tuple[str, int | None, bytes], Kind] = {}
    for (name, window), count in counts.items():
        sets = zip(freq_sets, given, before, strict=True)
        used = [some for some in sets if some[0].layer_type in (None, name)]
        for freqs, *others in used[: None if len(counts) == 1 else 1]:
            now, theta = (np.array(one.facts.theta) for one in others)
            kind = Kind(name, count, window, theta, now, freqs.trained, freqs)
            kinds.setdefault((name, window, now.tobytes()), kind)  # a module each, of some models
    if not kinds:
        raise UnsupportedModelError(
            f"{config.model_type}: its layer types {', '.join(sorted(n for n, _ in counts))} are "
            "not those of its frequencies"
        )
    return sorted(kinds.values(), key=lambda kind: (-(kind.window or 2**31), kind.name))


def turned(kinds: list[Kind], model: Any) -> list[Kind]:
    """The kinds as a few tokens through the loaded model show them: without layers that it does
    not rotate. All as they are where the model is not understood, or none would be left."""
    try:
        layers, _ = learn(model, find_frequency_sets(model, kinds[0].trained))
        numbers = [layer.module.layer_idx for layer in layers if layer.freqs is not None]
        types = getattr(model.config.get_text_config(), "layer_types", None)
        counts = Counter(types[int(str(i))] if types else kinds[0].name for i in numbers)
    except Exception:  # what is not understood stays as the config has it
        return kinds
    left = [replace(kind, layers=counts[kind.name]) for kind in kinds if counts[kind.name]]
    return left or kinds


def _layers(config: Any) -> list[tuple[str, int | None]]:
    """Type and window of each attention layer that has positions, as the config has them."""
    layers = layer_windows(config)
    turned = getattr(config.get_text_config(), "no_rope_layers", None) or [1] * len(layers)
    found = [
        (name, window)
        for (name, window), positions in zip(layers, turned, strict=False)
        if positions and name in ATTENTION  # 1: with positions
    ]
    return found or [("full_attention", None)] * len(layers)


def bare_model(config: Any, trusted: bool) -> Any:
    """The model without weights: all on the meta device but the rotary modules, which are real.

    Raises:
        UnsupportedModelError: transformers cannot build it, or its rotary modules alone.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", trust_remote_code=trusted
            )
        for module in {freqs.module for freqs in find_frequency_sets(model, 2)}:
            module.__init__(module.config)  # type: ignore[misc]
    except UnsupportedModelError:
        raise
    except Exception as error:
        why = short(error, 200)
        raise UnsupportedModelError(
            f"{config.model_type} cannot be explained from its config: {why}"
        ) from error
    return model
