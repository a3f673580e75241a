"""A few tokens through a model, to learn how each of its attention layers sees positions.

Attention is stood in for by zeros, so that what a layer is given depends on nothing but the
tokens; the rotary tables are stood in for by quarter turns, a different set of frequencies for
each token, in a binary code. Dimensions that a frequency turns are those that change by its code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ctxext.engine.few_tokens import TOKENS, WithoutProducts, forward, kind_of
from ctxext.engine.layers import AttentionSite, handed
from ctxext.engine.masks import sees, window_of
from ctxext.engine.rotary import call_rotary, check_module, columns_of, deaf, kept, table_of
from ctxext.engine.rotation import Rotation
from ctxext.engine.switch import registered, replaced, use_attention
from ctxext.errors import UnsupportedModelError
from ctxext.models.frequency_sets import FrequencySet

PROBE = registered("probe")
QUERIES = 2**20  # asked whether they see T back: more are too much memory for a hostile T
ODD = (
    "it is rotated in a way that is not understood: a quarter turn of one frequency does not turn "
    "one pair of dimensions"
)
SERVED = ("scaling", "dropout", "softcap", "s_aux")  # numbers that our attention takes


class _NotUnderstoodError(Exception):
    """A layer is rotated in a way that is not understood."""


@dataclass
class _Seen:
    """One call of the attention function."""

    module: nn.Module
    query: Tensor  # [b, h, n, d]
    key: Tensor
    mask: Tensor | None
    given: dict[str, Any]
    norms: tuple[nn.Module | None, nn.Module | None]  # whose outputs query and key are

    def plain(self) -> tuple[Tensor, Tensor]:
        """Query and key before what multiplies them by dimension."""
        query_norm, key_norm = self.norms
        return _unweighted(self.query, query_norm), _unweighted(self.key, key_norm)


def _unweighted(x: Tensor, norm: nn.Module | None) -> Tensor:
    return x if norm is None else x / cast(Tensor, norm.weight).float()


@dataclass
class _Pass:
    """What a pass shows."""

    calls: list[_Seen] = field(default_factory=list)
    normed: dict[int, tuple[Tensor, nn.Module]] = field(default_factory=dict)  # by id
    masks: dict[int, tuple[Tensor, Any, int | None]] = field(default_factory=dict)  # by address
    used: list[FrequencySet] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)  # that rotary modules gave
    # the shape of positions before [b, n]
    axes: dict[FrequencySet, tuple[int, ...]] = field(default_factory=dict)


_PASS: ContextVar[_Pass] = ContextVar("pass")


def learn(
    model: Any, freq_sets: list[FrequencySet]
) -> tuple[list[AttentionSite], dict[FrequencySet, tuple[int, ...]]]:
    """The layers whose attention runs through transformers' interface, in order.

    Also the frequencies that a text uses, each with the shape of positions before [b, n].

    Raises:
        UnsupportedModelError: the model does not run, or rotates in a way that is not understood.
    """
    still, turned = WithoutProducts(), WithoutProducts()
    with contextlib.suppress(UnsupportedModelError):  # its products may matter
        layers, axes = _learn(model, freq_sets, still, turned)
        before = still.given == turned.given  # else some are of what is rotated already
        if layers and before and not any(layer.not_understood for layer in layers):
            return layers, axes
    return _learn(model, freq_sets)


def _learn(
    model: Any, freq_sets: list[FrequencySet], *products: WithoutProducts
) -> tuple[list[AttentionSite], dict[FrequencySet, tuple[int, ...]]]:
    """`learn`, with all products, or with these in place of some in the two passes."""
    still = _pass(model, freq_sets, None, *products[:1])
    if not still.calls or not still.used:
        return [], still.axes
    for freqs in still.used:
        check_module(freqs, still.axes[freqs])
    turned = _pass(model, freq_sets, still.used, *products[1:])
    if [c.module for c in still.calls] != [c.module for c in turned.calls]:
        raise UnsupportedModelError(
            f"{kind_of(model)} takes another way through its layers each time"
        )
    layers: dict[nn.Module, AttentionSite] = {}
    widths = {freqs: len(freqs.inv_freq) for freqs in still.used}
    columns = {s: columns_of(s, still.axes[s]) for s in still.used}
    for freqs in still.used:
        if len(columns[freqs].keys() - {-1}) < widths[freqs]:
            raise deaf(freqs.module)
    trained = freq_sets[0].trained
    for before, after in zip(still.calls, turned.calls, strict=True):
        layer = _layer(before, still, trained)
        try:
            layer.freqs, layer.rotation = _decode(before, after, widths, columns)
            query_norm, key_norm = before.norms
            if layer.freqs and query_norm and key_norm:
                layer.weights = (query_norm, key_norm)
        except _NotUnderstoodError as error:
            layer.not_understood = str(error)
        known = layers.setdefault(before.module, layer)
        if (known.freqs, known.inside) != (layer.freqs, layer.inside):
            known.not_understood = "a layer of it is called in two ways"
    for index, layer in enumerate(layers.values()):
        layer.index = index
    return list(layers.values()), still.axes


def _pass(
    model: Any,
    freq_sets: list[FrequencySet],
    turning: list[FrequencySet] | None,
    products: WithoutProducts | None = None,
) -> _Pass:
    """One pass; `turning`: those whose frequencies turn, each by codes of its own."""
    run = _Pass()
    length = max(TOKENS, _bits(freq_sets))
    with contextlib.ExitStack() as undo:
        for module in {id(s.module): s.module for s in freq_sets}.values():
            own = {s.layer_type: s for s in freq_sets if s.module is module}
            undo.enter_context(kept(module))
            undo.enter_context(replaced(module, "forward", _stand_in(run, module, own, turning)))
        AttentionInterface.register(PROBE, _attention)
        AttentionMaskInterface.register(PROBE, _mask)
        use_attention(model, PROBE, undo)
        undo.callback(_PASS.reset, _PASS.set(run))
        for module in model.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 1:
                undo.callback(module.register_forward_hook(_note_norm).remove)
        forward(model, length, [], products)
    return run


# What stands in ----------------------------------------------------------------------------------


def _stand_in(
    run: _Pass,
    module: nn.Module,
    own: dict[str | None, FrequencySet],
    turning: list[FrequencySet] | None,
) -> Callable[..., Any]:
    real = module.forward

    def tables(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        freqs = own.get(layer_type)
        if freqs is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no {layer_type!r} frequencies"
            )
        if freqs not in run.used:
            run.used.append(freqs)
            run.axes[freqs] = tuple(position_ids.shape[:-2])
        if turning is None:
            still = call_rotary(real, x, position_ids * 0, layer_type)
            run.tables += still if isinstance(still, tuple) else (still,)
            return still
        codes = _codes(freqs, turning)
        rows = [
            table_of(real, freqs, x, position_ids[..., :1], codes >> t & 1)
            for t in range(position_ids.shape[-1])
        ]
        if isinstance(rows[0], tuple):
            return tuple(torch.cat(each, -2) for each in zip(*rows, strict=True))
        return torch.cat(rows, -2)

    return tables


def _codes(freqs: FrequencySet, turning: list[FrequencySet]) -> Tensor:
    """A number above 0 for each frequency, that no other set has."""
    before = sum(len(s.inv_freq) for s in turning[: turning.index(freqs)])
    return torch.arange(len(freqs.inv_freq)) + before + 1


def _bits(turning: list[FrequencySet]) -> int:
    return sum(len(s.inv_freq) for s in turning).bit_length()


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any
) -> tuple[Tensor, None]:
    mask = args[0] if args else given.pop("attention_mask", None)
    run = _PASS.get()
    query_norm, key_norm = (
        run.normed[id(x)][1] if id(x) in run.normed else None for x in (query, key)
    )
    norms = (query_norm, key_norm)
    run.calls.append(_Seen(module, query.float(), key.float(), mask, given, norms))
    b, h, n, _ = query.shape
    return value.new_zeros(b, n, h, value.shape[-1]), None


def _note_norm(module: nn.Module, args: Any, output: Any) -> None:
    run = _PASS.get()
    run.normed[id(output)] = (output, module)


def _mask(**given: Any) -> Tensor | None:
    whole: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["eager"](**given)
    if whole is not None:
        seen = (whole, given["mask_function"], given.get("local_size"))
        _PASS.get().masks[whole.untyped_storage().data_ptr()] = seen
    return whole


def _decode(
    before: _Seen,
    after: _Seen,
    widths: dict[FrequencySet, int],
    columns: dict[FrequencySet, dict[int, int]],
) -> tuple[FrequencySet | None, Rotation | None]:
    """Which set turns which pairs of a layer's dimensions."""
    if before.query.shape[2] != before.key.shape[2]:
        raise _NotUnderstoodError("its keys are not one for each token")
    if before.query.shape[3] != before.key.shape[3] or before.query.shape != after.query.shape:
        raise _NotUnderstoodError(ODD)
    old = torch.cat(before.plain(), 1).flatten(0, 1)  # [rows · heads, n, d]
    new = torch.cat(after.plain(), 1).flatten(0, 1)
    if not (torch.isfinite(old).all() and torch.isfinite(new).all()):
        raise _NotUnderstoodError("it gives numbers that are not finite")
    changed = (new - old).abs().mean(0) > 0.05 * old.abs().mean(0)  # [n, d]
    bits = sum(widths.values()).bit_length()
    weights = 2 ** torch.arange(bits, device=changed.device)
    codes = (changed[:bits].long() * weights[:, None]).sum(0).tolist()
    if not any(codes):
        return None, None
    freqs, offset = _freqs_of(max(codes), widths)
    pairs: dict[int, list[int]] = {}
    for dimension, code in enumerate(codes):
        if code:
            pairs.setdefault(code - offset - 1, []).append(dimension)
    numbers = sorted(pairs)
    if any(len(pairs[number]) != 2 or number not in columns[freqs] for number in numbers):
        raise _NotUnderstoodError(ODD)
    i, j = (torch.tensor(each) for each in zip(*(pairs[n] for n in numbers), strict=True))
    own = [number + offset + 1 for number in numbers]
    token = torch.tensor([(code & -code).bit_length() - 1 for code in own])  # one that it turns
    x, y, turned_x, turned_y = (q[:, token, at] for q in (old, new) for at in (i, j))
    forwards = ((turned_x + y).abs() + (turned_y - x).abs()).sum(0).cpu()
    backwards = ((turned_x - y).abs() + (turned_y + x).abs()).sum(0).cpu()
    size = (x.abs() + y.abs()).sum(0).cpu()
    if (torch.minimum(forwards, backwards) > 0.03 * size).any():
        raise _NotUnderstoodError(ODD)
    a, b = torch.where(forwards <= backwards, torch.stack((i, j)), torch.stack((j, i))).tolist()
    return freqs, Rotation.of(tuple(a), tuple(b), tuple(numbers), len(codes))


def _freqs_of(code: int, widths: dict[FrequencySet, int]) -> tuple[FrequencySet, int]:
    """The set that a code belongs to, and the codes of those before it."""
    offset = 0
    for freqs, width in widths.items():
        if code <= offset + width:
            return freqs, offset
        offset += width
    raise _NotUnderstoodError(ODD)


def _layer(call: _Seen, run: _Pass, trained: int) -> AttentionSite:
    """What a call says of its layer, but for its rotation."""
    inside, causal, window = False, call.given.get("is_causal") is not False, None
    if call.mask is not None and call.mask.untyped_storage().data_ptr() in run.masks:
        _, function, local = run.masks[call.mask.untyped_storage().data_ptr()]
        try:
            inside = not sees(function, trained, min(trained, QUERIES))
            window = window_of(function)
        except IndexError:  # it goes by what these few tokens are
            inside, window = local is not None and local <= trained, local
        causal = causal and not sees(function, -1, 2)
    given = {name: x for name, x in call.given.items() if name not in SERVED}
    names = frozenset(handed(given))
    others = [name for name in sorted(names) if not _says_positions(given[name], run, call)]
    why = f"its attention takes {others[0]!r}, by which it may choose keys" if others else None
    if call.mask is not None and call.mask.untyped_storage().data_ptr() not in run.masks:
        why = "its attention chooses keys by a mask of its own, which may go by positions"
    sinks, softcap = call.given.get("s_aux") is not None, bool(call.given.get("softcap"))
    head_dim = call.query.shape[-1]
    return AttentionSite(call.module, inside, softcap, sinks, head_dim, causal, why, window, names)


def _says_positions(value: Any, run: _Pass, call: _Seen) -> bool:
    """Whether tensors are the tokens' positions or the tables that rotate them."""
    some, n = value if isinstance(value, (tuple, list)) else (value,), call.query.shape[2]

    def says(x: Any) -> bool:
        if not isinstance(x, Tensor):
            return False
        count = torch.arange(n, device=x.device)
        return any(x is t for t in run.tables) or (
            x.shape[-1:] == (n,) and bool((x == count).all())
        )

    return all(map(says, some))
