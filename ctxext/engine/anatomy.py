"""What a spec meets in a model: which layers take it, which are left alone, and why not any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ctxext.engine.layers import AttentionSite
from ctxext.engine.probe import learn
from ctxext.errors import CtxextError, UnsupportedModelError, UsageError, short
from ctxext.methods import Spec
from ctxext.methods.base import parse_layers
from ctxext.models.frequency_sets import FrequencySet
from ctxext.models.layout import has_windows
from ctxext.text import counted


@dataclass(frozen=True)
class Anatomy:
    """A model's attention layers, where they are known, and the frequencies that take a spec.

    Attributes:
        layers: those that run through transformers' attention interface, in order.
        axes: the frequencies that a text uses, with the shape of positions before [b, n].
        changed: of them those that a method changes.
    """

    layers: list[AttentionSite]
    axes: dict[FrequencySet, tuple[int, ...]]
    changed: list[FrequencySet]

    @property
    def taking(self) -> list[AttentionSite]:
        """The layers that see T tokens back or more."""
        return [layer for layer in self.layers if not layer.inside]

    @property
    def alone(self) -> dict[nn.Module, FrequencySet]:
        """The layers that do not, but are rotated by frequencies of those that do."""
        inside = ((layer.module, layer.freqs) for layer in self.layers if layer.inside)
        return {module: freqs for module, freqs in inside if freqs in self.changed}

    def notes(self, spec: Spec) -> list[str]:
        """What a user should know of it, a line each."""
        scaled = [s for s in self.axes if s.scaled and (s.by_length or not spec.unpatched)]
        lines = [_of_scaling(freqs, spec) for freqs in scaled]
        return [*dict.fromkeys(lines), *self._left_alone(spec)]

    def _left_alone(self, spec: Spec) -> list[str]:
        inside, count = sum(layer.inside for layer in self.layers), len(self.layers)
        if not inside:
            return []
        line = f"{inside} of {count} attention layers see no further back than the trained length: "
        if inside == count:
            return [f"{line}they are left as they are, so that {spec} changes nothing"]
        lines = [f"{line}they are left as they are"]
        if not self.changed and (spec.distance or spec.frequencies):
            lines.append("the other layers have no positions: no rotation is changed")
        return lines


def _of_scaling(freqs: FrequencySet, spec: Spec) -> str:
    """What becomes of the model's own scaling, and which T that makes."""
    kind, what = freqs.rope.get("rope_type"), f"stays in force under {spec}"
    if freqs.replaced:
        what = f"is replaced by {spec}" if spec.frequencies else f"is taken off under {spec}"
    elif freqs.by_length:
        what += f", as it is at {freqs.length} tokens"
    return (
        f"the model's own {kind} rope scaling {what}; its trained length is taken to be "
        f"{freqs.trained} tokens ({freqs.why})"
    )


def examine(model: Any, freq_sets: list[FrequencySet], spec: Spec) -> Anatomy:
    """Learn the model's layers; UnsupportedModelError where they cannot take the spec.

    A model on the meta device, which cannot run, and one that does not run on plain tokens take
    frequency methods where all of their layers are alike.
    """
    kind = model.config.get_text_config().model_type
    deep = spec.changes_attention or bool(spec.by_layer)
    if spec.unpatched:
        return Anatomy([], {}, [])
    try:
        layers, axes = _learn(model, freq_sets)
    except UnsupportedModelError:
        if deep or len(freq_sets) > 1 or has_windows(model.config, freq_sets[0].trained):
            raise
        layers, axes = [], dict.fromkeys(freq_sets, ())
    if not layers:
        if deep or len(axes) > 1 or has_windows(model.config, freq_sets[0].trained):
            raise UnsupportedModelError(
                f"{kind} does not take {spec}: it does not use transformers' attention interface; "
                "frequency methods (ntk, yarn, …) need none where all layers are alike"
            )
        return Anatomy([], axes, list(axes))
    if not deep and not any(layer.inside for layer in layers):
        return Anatomy(layers, axes, list(axes))
    reasons = [layer.why_not(spec) for layer in layers]
    if reason := next(filter(None, reasons), None):
        raise UnsupportedModelError(f"{kind} does not take {spec}: {reason}")
    taking = {layer.freqs for layer in layers if not layer.inside}
    return Anatomy(layers, axes, [freqs for freqs in axes if freqs in taking])


def check_by_layer(spec: Spec, anatomy: Anatomy) -> None:
    """UsageError where a spec has a factor for each layer, and not as many as there are."""
    for name, layers in spec.by_layer.items():
        factors, count = len(parse_layers(layers)), len(anatomy.layers)
        if factors != count:
            raise UsageError(
                f"{name} has {counted(factors, 'factor')}, and the model "
                f"{counted(count, 'attention layer')}: give one for each"
            )


def _learn(
    model: Any, freq_sets: list[FrequencySet]
) -> tuple[list[AttentionSite], dict[FrequencySet, tuple[int, ...]]]:
    """`learn`; UnsupportedModelError for whatever stands in its way."""
    kind = model.config.get_text_config().model_type
    if next(model.parameters()).is_meta:
        raise UnsupportedModelError(
            f"{kind} has no weights in memory, so that its layers are not known: patch it before "
            "they are offloaded"
        )
    try:
        return learn(model, freq_sets)
    except CtxextError:
        raise
    except Exception as error:
        why = short(repr(error))
        raise UnsupportedModelError(f"{kind} is not understood: {why}") from error
