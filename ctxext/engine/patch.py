"""Put a spec on a model in place, and take it off again, bit for bit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ctxext.engine.anatomy import Anatomy, check_by_layer, examine
from ctxext.engine.around import apply_at_hand, apply_seams, own_implementation, site_of
from ctxext.engine.at_hand import AtHand, check_at_hand
from ctxext.engine.frequencies import apply_frequencies, apply_numbers, start
from ctxext.engine.layers import AttentionSite
from ctxext.engine.paths import PathChoice, choose
from ctxext.engine.rotary import check_module
from ctxext.engine.state import STATE, UNPICKLED
from ctxext.engine.switch import own_configs, replace
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.methods import Spec, parse
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import FrequencySet, find_frequency_sets
from ctxext.models.layout import head_dim
from ctxext.models.mark import MARK, Mark, read_mark
from ctxext.models.trained import check_own_scaling
from ctxext.notation import is_length

HANDLE = "_ctxext_handle"


class Handle:
    """A patch that is on a model; `remove` takes it off.

    Attributes:
        spec: the resolved spec, every parameter a value, or `auto`.
        notes: what a user should know about this model with this method, a line each.
        choice: the attention path that a distance method runs on, or for other methods the
            model's own implementation; and why faster ones were not taken, a phrase each.
        seconds: what putting it on took.
    """

    def __init__(
        self, spec: Spec, attention: PathChoice, notes: list[str], undo: contextlib.ExitStack
    ):
        self.spec = spec
        self.choice = attention
        self.notes = notes
        self.seconds = 0.0
        self._undo = undo

    @property
    def attention(self) -> str:
        """The name of the attention path, or of the model's own implementation."""
        return self.choice.name

    def remove(self) -> None:
        """Leave the model as it was before the patch, bit for bit; a second call does nothing."""
        self._undo.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(UNPICKLED)

    def __deepcopy__(self, memo: Any) -> Handle:
        """A copied model stays patched for good: what would restore it belongs to the original."""
        copied = Handle(self.spec, self.choice, self.notes, contextlib.ExitStack())
        copied._undo.callback(_refuse_removal)
        return copied


def _refuse_removal() -> None:
    raise UsageError("this model was copied while it was patched: copy it unpatched instead")


def patch(
    model: Any,
    spec: str | Spec,
    length: int | None = None,
    *,
    train_len: int | None = None,
    own_scaling: str = "keep",
    attn: str = "auto",
) -> Handle:
    """Patch a transformers causal language model in place.

    Args:
        model: a loaded model with rotary position embeddings.
        spec: such as `"rerope:window=256+logn"`, or a parsed one. With `factor=auto` each sequence
            that is begun has the smallest factor of the ladder for its own length, with what
            `generate` may add; what a cache goes on from keeps the one it began with.
        length: L, the longest sequence in tokens that will be read, prompt and continuation;
            defaults that depend on it (a `factor`, a `leak`) need it, and so does a method on a
            model whose own rope scaling goes by the length (dynamic, longrope). Such a model has
            the frequencies of a sequence of L tokens then, whatever it reads, under `rope` too.
        train_len: T in tokens where the config's is not right.
        own_scaling: "keep": methods change the frequencies as the model's own rope scaling makes
            them, and T is the length that it declares with that; "replace": the scaling is taken
            off first, with all that it does, and T is the length before it. `rope` is the model
            as it is given under both.
        attn: the attention path of distance methods: "auto", "flash", "sdpa", "eager", or "dense",
            the reference whose memory is quadratic in length. All other methods run on the model's
            own implementation.

    Returns:
        A handle whose `remove()` restores the model bit for bit.

    Raises:
        UsageError: a bad spec, a default without its length, a model that is patched already, an
            attention path that cannot run here.
        UnsupportedModelError: the model cannot take the method; the model is left as it was.
    """
    begun = time.perf_counter()
    parsed = parse(spec) if isinstance(spec, str) else spec
    for name, value in (("length", length), ("train_len", train_len)):
        if value is not None and not is_length(value):
            raise UsageError(
                f"bad {name} {value!r}: give a whole number of tokens, at least 2, below 2^31"
            )
    check_own_scaling(own_scaling)
    own = "keep" if parsed.unpatched else own_scaling
    model = _unwrapped(model)
    freq_sets = find_frequency_sets(model, train_len, own, length)
    holder = freq_sets[0].module
    if HANDLE in holder.__dict__:
        on = holder.__dict__[HANDLE].spec
        raise UsageError(f"the model is patched already, with {on}: remove that patch first")
    trained = freq_sets[0].trained
    resolved = parsed.settle(Span(trained, length))
    if resolved.at_hand:
        check_at_hand(resolved, freq_sets)
    _check_length(freq_sets, resolved)
    anatomy = examine(model, freq_sets, resolved)
    check_by_layer(resolved, anatomy)
    attention = _choose(model, anatomy, resolved, attn)
    notes = [*anatomy.notes(resolved), *_saved_otherwise(model, resolved)]
    with contextlib.ExitStack() as undo:
        ropes = start(freq_sets, undo)
        sites = [site_of(freqs, anatomy, resolved, length) for freqs in anatomy.changed]
        alike = resolved.frequencies and not (resolved.at_hand or resolved.by_layer)
        for freqs in anatomy.changed if alike else []:
            ropes[freqs] = apply_frequencies(freqs, resolved, length, undo)
        apply_numbers(model, {s: ropes[s] for s in freq_sets if s.replaced}, undo)
        if not resolved.unpatched:
            _mark(model, Mark(resolved, length, trained, own), undo)
        for freqs in anatomy.changed:
            check_module(freqs, anatomy.axes[freqs])
        apply_seams(model, anatomy, sites, trained, resolved, attention.name, undo)
        if resolved.at_hand:
            apply_at_hand(model, AtHand(resolved, trained, anatomy.changed), undo)
        handle = Handle(resolved, attention, notes, undo)
        replace(undo, holder, HANDLE, handle)
        replace(undo, model, "ctxext", handle)
        handle._undo = undo.pop_all()
    handle.seconds = time.perf_counter() - begun
    return handle


@contextlib.contextmanager
def patched(
    model: Any, spec: str | Spec, length: int | None = None, **options: Any
) -> Iterator[Handle]:
    """`patch` for the length of a `with` block; arguments and errors as there."""
    handle = patch(model, spec, length, **options)
    try:
        yield handle
    finally:
        handle.remove()


def refit(model: Any, handle: Handle) -> None:
    """Choose the attention path anew for a patched model that has moved, in place."""
    states = (m.__dict__[STATE] for m in model.modules() if STATE in m.__dict__)
    state = next(states, None)
    if state is not None and state.parts:
        taking = [layer for layer in state.layers.values() if not layer.inside]
        handle.choice = _fitting(model, taking, "auto")
        state.path = handle.choice.name


def _unwrapped(model: Any) -> Any:
    """The transformers model in what wraps it, such as PEFT's models and compiled ones."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    inside = [module for module in modules if isinstance(module, PreTrainedModel)]
    if not inside:
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model")
    within = {id(m) for m in inside[0].modules()}
    if other := next((m for m in inside if id(m) not in within), None):
        names = f"a {type(inside[0]).__name__} and a {type(other).__name__}"
        raise UsageError(f"{type(model).__name__} holds {names}: give the one to patch")
    return inside[0]


def _mark(model: Any, mark: Mark, undo: contextlib.ExitStack) -> None:
    """Leave the patch in the config that the model is saved with, unless that says its own."""
    own_configs(model, undo)
    if "ctxext" not in vars(model.config):
        mark.leave(model.config)


def _saved_otherwise(model: Any, spec: Spec) -> list[str]:
    """A note where the model was saved under another method, if it says so."""
    given = vars(model.config).get(MARK)
    if given is None:
        return []
    try:
        saved = read_mark(given).spec
    except UsageError as error:
        return [str(error)]
    same = saved.full() == spec.full()
    return [] if same else [f"the model was saved while it was patched with {saved}, not {spec}"]


def _choose(model: Any, anatomy: Anatomy, spec: Spec, attn: str) -> PathChoice:
    """The attention path; errors as for `paths.choose`, whatever the spec."""
    choice = _fitting(model, anatomy.taking, attn)
    if spec.rule and attn not in ("auto", "eager"):
        raise UsageError(
            f"attention path {attn!r} cannot run {spec.rule.name}, which looks at every score "
            "before its attention: valid: auto, eager"
        )
    return (
        choice if spec.distance and anatomy.changed else PathChoice(own_implementation(model), ())
    )


def _fitting(model: Any, layers: list[AttentionSite], attn: str) -> PathChoice:
    """The path for these layers where the model is."""
    wide = max((layer.head_dim for layer in layers), default=None)
    needs = [name for name in ("softcap", "sinks") if any(getattr(x, name) for x in layers)]
    return choose(attn, str(model.device), model.dtype, wide or head_dim(model.config), needs)


def _check_length(freq_sets: list[FrequencySet], spec: Spec) -> None:
    """UsageError where a method needs L to know a model's own frequencies, and has none."""
    for freqs in freq_sets:
        if freqs.by_length and not (freqs.length or freqs.replaced or spec.unpatched):
            raise UsageError(
                f"the model's own {freqs.scaling} rope scaling goes by the length: give length= "
                f"for {spec}, or own_scaling='replace'"
            )
