"""Put a spec on a model in place, and take it off again, bit for bit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine import seams
from ctxext.engine.paths import Choice, choose
from ctxext.engine.probe import check_probe, probe
from ctxext.engine.seams import STATE, State
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.models.layout import LENGTH_DEPENDENT, Layout, find_layout, head_dim
from ctxext.patches import Spec, parse
from ctxext.patches.base import Span

HANDLE = "_ctxext_handle"


class Handle:
    """A patch that is on a model; `remove` takes it off.

    Attributes:
        spec: the resolved spec, every parameter a value.
        notes: what a user should know about this model with this method, a line each.
        attention: the attention path that a distance method runs on, or for other methods the
            model's own implementation.
        reasons: why faster paths than this were not taken, a phrase each.
    """

    def __init__(self, spec: Spec, attention: Choice, notes: list[str], undo: contextlib.ExitStack):
        self.spec = spec
        self.attention, self.reasons = attention
        self.notes = notes
        self._undo = undo

    def remove(self) -> None:
        """Leave the model as it was before the patch, bit for bit; a second call does nothing."""
        self._undo.close()

    def __deepcopy__(self, memo: Any) -> Handle:
        """A copied model stays patched for good: what would restore it belongs to the original."""
        attention = Choice(self.attention, self.reasons)
        copied = Handle(self.spec, attention, self.notes, contextlib.ExitStack())
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
    attn: str = "auto",
) -> Handle:
    """Patch a transformers causal language model in place.

    Args:
        model: a loaded model with rotary position embeddings.
        spec: such as `"rerope:window=256+logn"`, or a parsed one.
        length: L, the longest sequence in tokens that will be read, prompt and continuation;
            defaults that depend on it (a `factor`, a `leak`) need it.
        train_len: T in tokens where the config's is not right.
        attn: the attention path of distance methods: "auto", "flash", "triton", "flex", "sdpa",
            "eager", or "dense", the reference whose memory is quadratic in length. All other
            methods run on the model's own implementation.

    Returns:
        A handle whose `remove()` restores the model bit for bit.

    Raises:
        UsageError: a bad spec, a default without its length, a model that is patched already, an
            attention path that cannot run here.
        UnsupportedModelError: the model cannot take the method; the model is left as it was.
    """
    parsed = parse(spec) if isinstance(spec, str) else spec
    for name, value in (("length", length), ("train_len", train_len)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 2
        ):
            raise UsageError(f"bad {name} {value!r}: give a whole number of tokens, at least 2")
    layout = find_layout(model, train_len)
    if HANDLE in layout.module.__dict__:
        on = layout.module.__dict__[HANDLE].spec
        raise UsageError(f"the model is patched already, with {on}: remove that patch first")
    resolved = parsed.resolve(Span(layout.facts.trained, length))
    with contextlib.ExitStack() as undo:
        notes = _apply_frequencies(layout, resolved, undo)
        attention = choose(attn, str(model.device), model.dtype, head_dim(model.config))
        if not resolved.distance:
            attention = Choice(str(model.config._attn_implementation), ())
        if resolved.distance or resolved.query_scales:
            _apply_attention(model, layout, resolved, attention.name, undo)
        handle = Handle(resolved, attention, notes, undo)
        _replace(undo, layout.module, HANDLE, handle)
        handle._undo = undo.pop_all()
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


def _replace(undo: contextlib.ExitStack, target: Any, name: str, value: Any) -> None:
    """Set an attribute of a module or config until `undo`."""
    kept = target.__dict__.get(name, undo)  # undo itself stands for "not there"
    target.__dict__[name] = value
    if kept is undo:
        undo.callback(target.__dict__.pop, name, None)
    else:
        undo.callback(target.__dict__.__setitem__, name, kept)


def _apply_frequencies(layout: Layout, spec: Spec, undo: contextlib.ExitStack) -> list[str]:
    """Replace inv_freq and the attention factor; what a user should know of it, a line each."""
    if not spec.frequencies:
        return []
    module, facts = layout.module, layout.facts
    factor = spec.attention_factor()
    if not hasattr(module, "attention_scaling") and factor != 1:
        raise UnsupportedModelError(f"{type(module).__name__} takes no attention factor")
    own = module._buffers["inv_freq"]
    if own is None or own.shape != (len(facts.theta),):
        raise UnsupportedModelError(f"{type(module).__name__}: inv_freq is no buffer of [d/2]")
    scales = torch.tensor(spec.scales(facts), dtype=torch.float64)
    theta = torch.tensor(facts.theta, dtype=torch.float64) / scales
    if not torch.isfinite(theta).all():
        raise UsageError(f"{spec} gives frequencies that are not finite")
    undo.callback(module._buffers.__setitem__, "inv_freq", own)
    module._buffers["inv_freq"] = theta.to(own.device, torch.float32)
    _replace(undo, module, "attention_scaling", factor)
    if layout.scaling != "default":
        _replace(undo, module, "rope_type", "default")
    _check_tables(module, factor)
    if layout.scaling == "default":
        return []
    return [f"the model's own {layout.scaling} rope scaling is replaced by {spec}"]


def _check_tables(module: nn.Module, factor: float) -> None:
    """UnsupportedModelError where the rotary module does not go by its inv_freq.

    At position 1 its cosines must be cos θ times the factor: float32 rounds them by 6e-8.
    """
    inv_freq = module._buffers["inv_freq"]
    if inv_freq is None or inv_freq.is_meta:
        return
    one = torch.ones(1, 1, dtype=torch.long, device=inv_freq.device)
    try:
        out = module(torch.zeros(1, 1, 1, device=inv_freq.device), one)
    except Exception as error:
        raise UnsupportedModelError(f"{type(module).__name__} cannot be called: {error}") from error
    cos = (out[0] if isinstance(out, tuple) else out.real).flatten()
    expected = (inv_freq.cos() * factor).sort().values
    found = cos if len(cos) == len(expected) else cos.sort().values[::2]
    if not torch.allclose(found.sort().values, expected, rtol=0, atol=1e-5):
        raise UnsupportedModelError(
            f"{type(module).__name__} does not rotate by its inv_freq, so frequency methods would "
            "do nothing"
        )


def _apply_attention(
    model: Any,
    layout: Layout,
    spec: Spec,
    path: str,
    undo: contextlib.ExitStack,
) -> None:
    """Put the seams on, and check on a few tokens that they are the ones the model uses."""
    parts = spec.distance.parts() if spec.distance else ()
    if parts:
        _refuse_distance(model, layout, spec)
    rotary = layout.module
    factor = float(getattr(rotary, "attention_scaling", 1.0)) if parts else 1.0
    state = State(
        rotary, rotary.forward, layout.facts.trained, parts, spec.query_scales, factor, path
    )
    before = probe(model, rotary)
    name = seams.register_distance() if parts else seams.register_scaled(path)
    if parts and hasattr(rotary, "attention_scaling"):
        _replace(undo, rotary, "attention_scaling", 1.0)
    _own_config(model, name, state, undo)
    _replace(undo, rotary, "forward", state.far_tables)
    hook = model.base_model.register_forward_pre_hook(_check_inputs(state), with_kwargs=True)
    undo.callback(hook.remove)
    check_probe(model, state, before)


def _refuse_distance(model: Any, layout: Layout, spec: Spec) -> None:
    """UnsupportedModelError for what the distance path does not do yet."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    sliding = "sliding_attention" in kinds or bool(window and "layer_types" not in vars(config))
    by_length = layout.scaling in LENGTH_DEPENDENT and not spec.frequencies
    reasons = {
        "its attention is not causal": not getattr(config, "is_causal", True),
        "it has sliding-window layers": sliding,
        f"its layers are of several kinds ({', '.join(sorted(set(kinds)))})": len(set(kinds)) > 1,
        f"its own {layout.scaling} rope scaling depends on the length at hand": by_length,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(
                f"{config.model_type} does not take {spec.distance} yet: {reason}; "
                "frequency methods (ntk, yarn, …) do"
            )


def _own_config(model: Any, name: str, state: State, undo: contextlib.ExitStack) -> None:
    """Give this model configs of its own that name our attention: models may share one config."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if config is None or not hasattr(config, "_attn_implementation"):
            continue
        if id(config) not in copies:
            copies[id(config)] = copy.deepcopy(config)
            copies[id(config)]._attn_implementation = name
        _replace(undo, module, "config", copies[id(config)])
        _replace(undo, module, STATE, state)


def _check_inputs(state: State) -> Any:
    """A pre-hook of the base model: refuses what we cannot serve, and finds true positions."""

    @seams.uncompiled
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        named = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False))
        given = {**kwargs, **named}
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        if state.parts and getattr(cache, "is_compileable", False):
            raise UnsupportedModelError(
                f"distance methods do not support {type(cache).__name__}: use the default cache"
            )
        if state.parts and flat is not None and seams.has_holes(flat):
            raise UnsupportedModelError(
                "distance methods do not support padding between the tokens of a row: pad on one "
                "side only"
            )
        if state.query_scales and flat is not None and given.get("position_ids") is None:
            tokens = given.get("input_ids")
            tokens = given["inputs_embeds"] if tokens is None else tokens
            positions = (flat.long().cumsum(-1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -tokens.shape[1] :]
        return args, kwargs

    return hook
