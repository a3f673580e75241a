"""The engine on models: the attention paths against each other, caches, padding, removal, refusals.

Logits are compared relative to the largest (`close`). Two float32 computations of the same thing
differ by 1e-6 to 5e-6 of it here: at 50 tokens an angle is off by 50·2^-24 = 3e-6 rad, once for
each of two rotations, and a sum of 96 products by 96·2^-24 = 6e-6 at the very worst. So 1e-5;
every mistake we know of shows as 1e-3 or more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import oracle
import pytest
import torch
import transformers
from conftest import CACHE, FAMILIES, SETTINGS, TRAINED, fitted, pairs_of, random_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved

import ctxext
from ctxext.advise.explain.layers import find_kinds
from ctxext.advise.explain.study import Block
from ctxext.engine import chunked
from ctxext.engine.chunked import chunked_attention
from ctxext.engine.forward import Forward
from ctxext.engine.reference import dense_attention
from ctxext.engine.stock import stock_ropes
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.methods import REGISTRY, Spec, names, parse
from ctxext.methods.base import (
    Distance,
    Frequency,
    Method,
    Part,
    QueryScale,
    Rotary,
    as_held,
    identity,
)
from ctxext.models.frequency_sets import find_frequency_sets

pytestmark = pytest.mark.quick

L = 50  # beyond TRAINED, so that every default method has something to do
MIX = "yarn+rerope:window=5+logn"
KINDS = {name: REGISTRY.get(name) for name in names()}
DISTANCE = [name for name in names() if issubclass(KINDS[name], Distance)]
# Of one position for all pairs: what frequencies of a part's own do is looked at on models.
ALIKE = [name for name in DISTANCE if name != "jet-long-freq"]
SCALED = [name for name in names() if issubclass(KINDS[name], QueryScale)]
# Frequency methods differ in nothing but λ, which test_methods.py looks at: three stand for all.
SPECS = ["rope", "ntk", "yarn", *DISTANCE, *SCALED, MIX]
WIDE = {
    "dca": "dca:chunk=4096,reach=8192",
    "inv-leaky-rerope": "inv-leaky-rerope:window=4096,expansion=2",
    "jet-long": "jet-long:window=4096,group=3",
    "jet-long-freq": "jet-long-freq:window=4096,factor=1",
    "leaky-rerope": "leaky-rerope:window=4096,leak=3",
    "lm-infinite": "lm-infinite:window=4096",
    "rerope": "rerope:window=4096",
    "self-extend": "self-extend:window=4096,group=3",
    "streaming": "streaming:window=4096",
    "string": "string:shift=4096,local=100",
    "window": "window:window=4096",
}
IDLE = {"abf": "abf:base=10000", "cope": "cope:clip=1", "p-rope": "p-rope:keep=1"}
NARROW = {
    "dca": "dca:chunk=5,local=3,reach=12",
    "inv-leaky-rerope": "inv-leaky-rerope:window=5,expansion=2",
    "jet-long": "jet-long:window=4,group=3",
    "jet-long-freq": "jet-long-freq:window=5,factor=4,beta_slow=0.05",
    "leaky-rerope": "leaky-rerope:window=5,leak=3",
    "lm-infinite": "lm-infinite:window=5,sinks=3",
    "rerope": "rerope:window=5",
    "self-extend": "self-extend:window=5,group=3",
    "streaming": "streaming:window=5,sinks=3",
    "string": "string:shift=5,local=2",
    "window": "window:window=5",
}
FEW = ["ntk", "rerope:window=5", "dca:chunk=5,local=3,reach=12", "logn", MIX]  # one of each kind
# Every spec on one family, and on every other one of each kind; the last has a relative distance.
CROSS = [("llama-gqa", spec) for spec in SPECS] + [
    (family, spec) for family in list(FAMILIES)[1:] for spec in ("ntk", "dca", "logn", MIX)
]


def logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def close(ours: Tensor, truth: Tensor, tolerance: float = 1e-5) -> None:
    assert torch.isfinite(ours).all()
    assert ours.shape == truth.shape
    worst = float((ours.double() - truth.double()).abs().max() / truth.double().abs().max())
    assert worst <= tolerance, worst


def padded(rows: list[Tensor], left: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ids as one batch, with its attention mask and its true position_ids."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        here = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, here], mask[i, here] = row, 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


# The paths alone ---------------------------------------------------------------------------------

D = 8
THETA = torch.tensor([1.0, 0.6, 0.3, 0.1], dtype=torch.float64)  # each turns within 40 tokens


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """x [b, *, l, d] rotated by positions [l], halves paired."""
    angle = positions.double()[:, None] * THETA
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def three_parts(window: int, leak: float) -> tuple[Part, ...]:
    """δ, then window + (δ − window)/leak, then from 2·window on a constant: an invented method."""
    return (
        Part(0, window, identity, identity),
        Part(window, 2 * window, lambda q: window + (q - window) / leak, lambda k: k / leak),
        Part(2 * window, None, lambda q: q * 0 + 1.5 * window, lambda k: k * 0),
    )


def arguments(kind: str, window: int, leak: float) -> dict[str, Any]:
    """Parameters of a distance method, made from two numbers."""
    group = math.ceil(leak)
    more: dict[str, dict[str, Any]] = {
        "inv-leaky-rerope": {"expansion": leak},
        "jet-long": {"group": group},
        "leaky-rerope": {"leak": leak},
        "lm-infinite": {"sinks": group},
        "self-extend": {"group": group},
        "streaming": {"sinks": group},
    }
    if kind == "dca":
        return {"chunk": window, "local": max(1, window // 2)}
    if kind == "string":
        return {"shift": window, "local": max(1, window // 2)}
    return {"window": window, **more.get(kind, {})}


def parts_of(kind: str, window: int, leak: float) -> tuple[Part, ...]:
    if kind == "three":
        return three_parts(window, leak)
    more = {"reach": window + 3} if kind == "dca" else {}
    return KINDS[kind](**arguments(kind, window, leak), **more).parts()


def shown(kind: str, window: int, leak: float, m: int) -> tuple[Tensor, Tensor]:
    """The effective relative positions, and which keys are seen, from the oracle: [m, m] each."""
    if kind != "three":
        method = {"T": window + 3, "distance": (kind, arguments(kind, window, leak))}
        return oracle.effective_positions(m, method), oracle.seen(m, method)
    method = {"distance": ("leaky-rerope", {"window": window, "leak": leak})}
    r, delta = oracle.effective_positions(m, method), oracle.effective_positions(m, {})
    return r.where(delta < 2 * window, torch.tensor(1.5 * window)), oracle.seen(m, {})


def inputs(
    b: int, h: int, g: int, n: int, m: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, h, n, D), (b, g, m, D), (b, g, m, D + 2))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def rotated(
    q: Tensor, k: Tensor, parts: tuple[Part, ...]
) -> tuple[Tensor, Tensor, tuple[Part, ...]]:
    """q and k as a model hands them over, rotated like the last part's keys, and what is left."""
    done, position = parts[-1].key, torch.arange(k.shape[2], dtype=torch.float64)
    left = tuple(
        dataclasses.replace(
            p,
            query=lambda x, p=p: p.query(x) - done(x),
            key=as_held if p.key is done else lambda x, p=p: p.key(x) - done(x),
        )
        for p in parts
    )
    return turn(q, done(position[-q.shape[2] :])), turn(k, done(position)), left


@pytest.mark.parametrize(("n", "m", "with_mask"), [(7, 7, False), (3, 7, True), (1, 6, True)])
@pytest.mark.parametrize("kind", [*ALIKE, "three"])
def test_dense_by_hand(kind: str, n: int, m: int, with_mask: bool) -> None:
    """The reference against three loops over plain floats."""
    window, leak, scaling, h, g = 3, 2.5, 0.7, 4, 2
    q, k, v = inputs(2, h, g, n, m)
    seen = torch.rand(2, 1, n, m, generator=torch.Generator().manual_seed(1)) < 0.6
    seen |= torch.eye(m, dtype=torch.bool)[m - n :]
    ours = dense_attention(
        q, k, v, parts_of(kind, window, leak), turn, scaling, seen if with_mask else None
    )
    relative, visible = (x.tolist() for x in shown(kind, window, leak, m))
    for b, head, i in itertools.product(range(2), range(h), range(n)):
        query, place, group = q[b, head, i].tolist(), m - n + i, head // (h // g)
        weights = []
        for j in range(m):
            key = k[b, group, j].tolist()
            r = relative[place][j]
            score = 0.0
            for p, theta in enumerate(THETA.tolist()):
                a, c = complex(query[p], query[p + 4]), complex(key[p], key[p + 4])
                score += (
                    a * c.conjugate() * complex(math.cos(r * theta), math.sin(r * theta))
                ).real
            here = visible[place][j] and (not with_mask or bool(seen[b, 0, i, j]))
            weights.append(math.exp(score * scaling) if here else 0.0)
        expected = sum(w * v[b, group, j] for j, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(ours[b, head, i], expected, rtol=0, atol=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_chunked_is_dense(data: st.DataObject) -> None:
    """Shapes, windows, chunks and masks at random.

    Sums of at most 40 products of size 10: 40·10·2^-53 = 4e-14 in float64 and 2.4e-5 at the very
    worst in float32, where rounding errors average out to a tenth of it.
    """
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    b, g, r = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    m = draw(st.integers(1, 40))
    n = draw(st.one_of(st.just(m), st.just(1), st.integers(1, m)))
    window = draw(st.one_of(st.just(1), st.just(m), st.integers(1, m + 5)))
    kind = draw(st.sampled_from([*ALIKE, "three"]))
    parts = parts_of(kind, window, draw(st.sampled_from([1.0, 2.5, 8.0])))
    q, k, v = inputs(b, g * r, g, n, m, dtype, draw(st.integers(0, 99)))
    mask = None
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        mask = torch.rand(draw(st.sampled_from([1, b])), 1, n, m, generator=generator) < 0.5
        mask |= torch.eye(m, dtype=torch.bool)[m - n :]
    expected = dense_attention(q, k, v, parts, turn, 0.5, mask)
    ours_q, ours_k, left = rotated(q, k, parts)
    sizes = {
        "SCORES_AT_ONCE": draw(st.sampled_from([1, 200, 2**22])),
        "LONGEST_CHUNK": draw(st.sampled_from([1, 2, 3, 7, 16, 128])),
    }
    with mock.patch.multiple(chunked, **sizes):
        ours = chunked_attention(ours_q, ours_k, v, left, turn, 0.5, mask)
    assert ours.dtype == dtype
    assert ours.shape == expected.shape == (b, g * r, n, D + 2)
    assert float((ours - expected).abs().max()) <= (1e-10 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("attention", [dense_attention, chunked_attention])
def test_rows_that_see_nothing_are_finite(attention: Callable[..., Tensor]) -> None:
    parts = parts_of("rerope", 3, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, k, v = inputs(2, 2, 1, 9, 9, dtype)
        mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
        mask[1, :, :, :6] = False  # as a left-padded row has it
        out = attention(q, k, v, parts, turn, 0.5, mask)
        assert torch.isfinite(out).all()
        alone = attention(q[1:, :, 6:], k[1:, :, 6:], v[1:, :, 6:], parts, turn, 0.5)
        rounding = 16 * torch.finfo(dtype).eps  # a dozen sums of numbers up to 3, rounded once
        torch.testing.assert_close(out[1:, :, 6:], alone, rtol=0, atol=rounding)


@pytest.mark.parametrize("kind", [*ALIKE, "three"])
@pytest.mark.parametrize("chunk", [2, 128])
def test_gradients_of_the_paths(kind: str, chunk: int) -> None:
    parts = parts_of(kind, 2, 2.5)
    mask = torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)[2:]
    q, k, v = (x.requires_grad_() for x in inputs(1, 2, 1, 4, 6))
    with mock.patch.object(chunked, "LONGEST_CHUNK", chunk):
        for seen in (None, mask):

            def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = seen) -> Tensor:
                q, k, left = rotated(q, k, parts)
                return chunked_attention(q, k, v, left, turn, 0.5, seen)

            assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
            cotangent = inputs(1, 2, 2, 4, 4, seed=3)[2]
            ours = torch.autograd.grad(attend(q, k, v), (q, k, v), cotangent)
            dense = dense_attention(q, k, v, parts, turn, 0.5, seen)
            for a, b in zip(ours, torch.autograd.grad(dense, (q, k, v), cotangent), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", [dense_attention, chunked_attention])
def test_dropout(attention: Callable[..., Tensor]) -> None:
    """Weights are dropped, and the rest made up for: of values 1 the mean stays 1.

    4·64 outputs, each of variance below p/(1−p) = 1: the mean is within 4/√256 = 0.25.
    """
    q, k, v = inputs(1, 4, 2, 64, 64)
    torch.manual_seed(0)
    out = attention(q, k, v * 0 + 1, parts_of("rerope", 5, 1), turn, 0.5, None, 0.5)
    assert abs(out.mean() - 1) < 0.25
    assert (out - 1).abs().max() > 0.1


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operator gives."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.size = max(self.size, x.numel())
        return out


@pytest.mark.parametrize("kind", DISTANCE)
def test_memory_is_linear(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the length, at most twice the largest tensor (and four times the dense path's)."""
    monkeypatch.setattr(chunked, "SCORES_AT_ONCE", 2**10)  # else these lengths are one chunk
    model = random_model(num_hidden_layers=1, vocab_size=97)
    sizes: dict[bool, list[int]] = {False: [], True: []}
    for dense in sizes:
        with ctxext.patched(model, kind, 1024, attn="dense" if dense else "sdpa"), torch.no_grad():
            for length in (512, 1024):
                with Largest() as largest:
                    model(tokens(length))
                sizes[dense].append(largest.size)
    assert sizes[False][1] <= 2.1 * sizes[False][0]
    assert sizes[True] == [4 * 512**2, 4 * 1024**2]
    assert sizes[False][1] <= 4 * 1024 * 97  # a few rows of scores, or a layer's activations


def test_a_chunk_holds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk's scores: SCORES_AT_ONCE, and for each row those of the near part, w + rows."""
    seen: list[int] = []
    softmax = torch.softmax

    def watch(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x.numel())
        return softmax(x, *args, **kwargs)

    q, k, v = inputs(1, 4, 2, 512, 512)
    monkeypatch.setattr(chunked, "SCORES_AT_ONCE", 2**16)
    monkeypatch.setattr(torch, "softmax", watch)
    chunked_attention(q, k, v, parts_of("rerope", 8, 1), turn, 0.5)
    rows = 2**16 // (4 * 512)
    assert 0 < max(seen) <= 2**16 + 4 * rows * (8 + rows)


@dataclasses.dataclass(frozen=True)
class Slowed(Distance):
    """Beyond a window of 5 distances count by 1/λ_i."""

    name = "slowed"
    scales: Callable[[Rotary], list[float]]
    factor: float = 1.0

    def parts(self) -> tuple[Part, ...]:
        far = {"scales": self.scales, "offset": 5.0, "factor": self.factor}
        return (
            Part(0, 5, identity, identity, factor=self.factor),
            Part(5, None, lambda q: q - 5, identity, **far),
        )


def alike(scale: float) -> Slowed:
    return Slowed(lambda rotary: [scale] * len(rotary.theta))


@pytest.mark.parametrize("attn", ["sdpa", "eager", "dense"])
@pytest.mark.parametrize("family", ["llama-gqa", "glm-interleaved-partial"])
def test_frequencies_of_a_part_of_its_own(family: str, attn: str) -> None:
    """With one λ for all pairs it is leaky-rerope, with a λ of infinity rerope; and so it is in a
    padded batch on a cache whose near keys stay turned. A λ of 1 and a factor scale all scores."""
    model = random_model(family)
    ids, mask, _ = padded([tokens(40)[0], tokens(27, seed=2)[0]])

    def outputs(*methods: Method) -> Tensor:
        out, cache = [], None
        with ctxext.patched(model, Spec(methods), 64, attn=attn), torch.no_grad():
            for a, z in itertools.pairwise((0, 22, 38, 39, 40)):
                step = model(ids[:, a:z], attention_mask=mask[:, :z], **{CACHE: cache})
                cache = step[CACHE]
                out.append(step.logits)
        return torch.cat(out, 1)[mask.bool()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, theirs in (
            (alike(3.0), "leaky-rerope:window=5,leak=3"),
            (alike(math.inf), "rerope:window=5"),
        ):
            close(outputs(ours), outputs(*parse(theirs).methods))
    sharp = Slowed(lambda rotary: [1.0] * len(rotary.theta), factor=1.25)
    close(outputs(sharp), outputs(Sharper()))


@dataclasses.dataclass(frozen=True)
class Still(Frequency):
    """Every other pair does not turn."""

    name = "still"

    def scales(self, rotary: Rotary) -> list[float]:
        return [math.inf if i % 2 else 1.0 for i in range(len(rotary.theta))]


def test_pairs_that_do_not_turn() -> None:
    """A λ of infinity: as with a θ of 0, without NaN or a warning, in an explanation too; no rope
    parameters say it, for JSON has no such number."""
    model, spec, ids = random_model(), Spec((Still(),)), tokens(L)
    other, (freqs,) = random_model(), find_frequency_sets(model, None, "keep", L)
    other.model.rotary_emb.inv_freq[1::2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ctxext.patched(model, spec, L):
            assert torch.equal(logits(model, ids), logits(other, ids))
        with ctxext.patched(model, Spec((Still(), *parse(NARROW["rerope"]).methods)), L):
            ours = logits(model, ids)
        with ctxext.patched(other, NARROW["rerope"], L):
            close(ours, logits(other, ids))
        assert not list(stock_ropes(freqs, spec, L))
        (kind,) = find_kinds(model.config, L, None, False)
        block = Block(kind, *kind.under(spec, L))
        assert block.effective(np.arange(L))[:, -1].tolist() == [0, L - 1, L - 1]
        assert block.angles.outside[1::2].tolist() == [0] * 4


@dataclasses.dataclass(frozen=True)
class Sharper(QueryScale):
    """All scores by 5/4."""

    name = "sharper"

    def scale(self, n: Tensor, trained: int) -> Tensor:
        raise AssertionError("it is asked with the dimension of heads")

    def scale_on(self, n: Tensor, trained: int, head_dim: int) -> Tensor:
        assert head_dim == 16
        return torch.full_like(n, 1.25)


# Models: infinite windows, paths, caches, padding, generation ------------------------------------


def test_every_distance_method_has_a_wide_window() -> None:
    assert set(WIDE) == set(NARROW) == set(DISTANCE)


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama-gqa", name) for name in names()] + [c for c in CROSS[len(SPECS) :] if c[1] != MIX],
)
def test_nothing_to_do_is_unpatched(family: str, name: str) -> None:
    """An infinite window, a factor of 1, log-n within T: the unpatched logits."""
    model, ids = random_model(family), tokens(L, 2)
    plain = logits(model, ids)
    spec = {**WIDE, **IDLE}.get(name, fitted(name, pairs_of(model)))
    with ctxext.patched(model, spec, 2, train_len=4096):
        close(logits(model, ids), plain)


@pytest.mark.parametrize(("family", "spec"), CROSS)
def test_paths_and_caches(family: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, chunked, chunked prefill, a continued cache and single steps: one full forward."""
    model, ids = random_model(family), tokens(L, 2)
    plain = logits(model, ids)
    with ctxext.patched(model, spec, 4 * L, attn="dense") as handle:
        full = logits(model, ids)
        distant = handle.spec.distance is not None
        assert handle.attention == ("dense" if distant else "sdpa")
    with ctxext.patched(model, spec, 4 * L) as handle:
        assert handle.attention == ("sdpa")
        close(logits(model, ids), full)
        monkeypatch.setattr(chunked, "LONGEST_CHUNK", 7)
        close(logits(model, ids), full)
        cache, given = DynamicCache(config=model.config), []
        stops = [1, 20, 21, 43, *range(44, L + 1)]
        for start, stop in itertools.pairwise([0, *stops]):
            given.append(logits(model, ids[:, start:stop], **{CACHE: cache}))
        close(torch.cat(given, 1), full)
        cache.crop(-20)
        close(logits(model, ids[:, 30:], **{CACHE: cache}), full[:, 30:])
        close(logits(model, ids[:, :1]), full[:, :1])
        embedded = model.get_input_embeddings()(ids).detach()
        close(model(inputs_embeds=embedded).logits.detach(), full)
    if spec != "rope":
        assert (full - plain).abs().max() > 1e-2 * plain.abs().max()  # the method does something


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
def test_nothing_outlives_a_forward(family: str) -> None:
    """Neither tables nor masks, also where it ends in an error."""
    two = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    model = small("Gemma3", "Gemma3Text", **two) if family == "gemma3" else random_model()
    ids, mask, _ = padded([tokens(L)[0], tokens(9)[0]])
    begun: list[weakref.ref[Any]] = []
    with ctxext.patched(model, MIX, 4 * L):

        def note(positions: Tensor, *_: Any) -> None:
            begun.append(weakref.ref(positions))

        plain = Forward.__init__
        with mock.patch.object(
            Forward, "__init__", lambda self, *a: (plain(self, *a), note(self))[0]
        ):
            logits(model, ids, attention_mask=mask)
            model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(ids, attention_mask=mask)
    assert len(begun) == 2
    assert [ref() for ref in begun] == [None, None]


@pytest.mark.parametrize(("family", "spec"), CROSS)
def test_padding_and_packing(family: str, spec: str) -> None:
    """Rows of a padded batch, or of a packed sequence, give what they give alone."""
    model = random_model(family)
    rows = [tokens(n, seed=n)[0] for n in (41, 9, 1)]
    with ctxext.patched(model, spec, 4 * L):
        alone = [logits(model, row[None])[0] for row in rows]
        for left in (True, False):
            ids, mask, positions = padded(rows, left)
            for position_ids in (positions, None) if left else (None,):
                whole = logits(model, ids, attention_mask=mask, position_ids=position_ids)
                cache, given = DynamicCache(config=model.config), []
                for a, b in itertools.pairwise((0, 17, 40, 41)):  # 0–17 is all padding in two rows
                    part = None if position_ids is None else position_ids[:, a:b]
                    kwargs = {"position_ids": part, CACHE: cache}
                    given.append(logits(model, ids[:, a:b], attention_mask=mask[:, :b], **kwargs))
                for out in (whole, torch.cat(given, 1)):
                    for i, truth in enumerate(alone):
                        close(out[i][mask[i].bool()], truth)
        positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
        packed = logits(model, torch.cat(rows)[None], position_ids=positions, use_cache=False)
        close(packed[0], torch.cat(alone))


@pytest.mark.parametrize("spec", FEW)
def test_padding_in_the_middle(spec: str) -> None:
    """A left-padded batch continued by a left-padded batch: a second turn of several chats.

    Slots and positions then differ by more than a shift; a method that counts slots must refuse.
    """
    model = random_model()
    first, second = ([tokens(n, seed=n)[0] for n in ns] for ns in ((20, 9), (5, 16)))
    (ids1, mask1, _), (ids2, mask2, _) = padded(first), padded(second)
    mask = torch.cat((mask1, mask2), 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with ctxext.patched(model, spec, 4 * L) as handle:
        cache = DynamicCache(config=model.config)
        given = {"attention_mask": mask1, "position_ids": positions[:, :20]}
        logits(model, ids1, **{CACHE: cache}, **given)
        given = {"attention_mask": mask, "position_ids": positions[:, 20:]}
        if handle.spec.distance:
            with pytest.raises(UnsupportedModelError, match="padding between the tokens of a row"):
                model(ids2, **{CACHE: cache}, **given)
            return
        out = logits(model, ids2, **{CACHE: cache}, **given)
        for i in range(2):
            alone = logits(model, torch.cat((first[i], second[i]))[None])[0]
            close(out[i][mask2[i].bool()], alone[len(first[i]) :])


@pytest.mark.parametrize(("family", "spec"), CROSS)
def test_generate(family: str, spec: str) -> None:
    """Greedy tokens are the arg max of one full forward of the same tokens, row by row."""
    model = random_model(family)
    model.generation_config.eos_token_id = None
    rows = [tokens(n, seed=n)[0] for n in (30, 9, 1)]
    ids, mask, _ = padded(rows)
    greedy = {"do_sample": False, "max_new_tokens": 6}
    with ctxext.patched(model, spec, 4 * L):
        batch = model.generate(ids, attention_mask=mask, **greedy)
        for row, out in zip(rows, batch, strict=True):
            assert out.shape == (36,)
            full = logits(model, torch.cat((row, out[30:]))[None])[0]
            assert torch.equal(full[len(row) - 1 : -1].argmax(-1), out[30:])
        single = model.generate(rows[0][None], **greedy)
        assert torch.equal(single[0], batch[0])


@pytest.mark.parametrize("spec", FEW)
def test_generate_in_other_ways(spec: str) -> None:
    model = random_model()
    model.generation_config.eos_token_id = None
    ids, mask, _ = padded([tokens(n, seed=n)[0] for n in (30, 9)])
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "attention_mask": mask}
    with ctxext.patched(model, spec, 4 * L):
        plain = model.generate(ids, **greedy)
        assert torch.equal(model.generate(ids, prefill_chunk_size=7, **greedy), plain)
        assert torch.equal(model.generate(ids, use_cache=False, **greedy), plain)
        beams = model.generate(ids, num_beams=2, **greedy)
        assert beams.shape == plain.shape
        assert torch.equal(beams[:, :30], ids)
        one = {"do_sample": False, "max_new_tokens": 6}
        guessed = model.generate(ids[:1], prompt_lookup_num_tokens=3, **one)  # crops its cache
        assert torch.equal(guessed, plain[:1])


def test_masks_of_four_dimensions() -> None:
    model, ids = random_model(), tokens(20)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    with ctxext.patched(model, MIX, L):
        close(logits(model, ids, attention_mask=causal), logits(model, ids))


def test_additive_masks() -> None:
    """One that hides keys is taken, one that adds a bias, as ALiBi's, is refused."""
    model, ids = random_model(), tokens(20)
    ahead = torch.ones(20, 20, dtype=torch.bool).triu(1)[None, None]
    with ctxext.patched(model, "rerope:window=5"):
        plain = logits(model, ids)
        for low in (torch.finfo(torch.float32).min, -math.inf):
            additive = torch.zeros(1, 1, 20, 20).masked_fill(ahead, low)
            close(logits(model, ids, attention_mask=additive), plain)
            additive[..., 0] = -1.0
            with pytest.raises(UnsupportedModelError, match="mask that adds a bias"):
                model(ids, attention_mask=additive)


@pytest.mark.parametrize("spec", ["logn", MIX])
def test_a_mask_given_by_position(spec: str) -> None:
    model, row = random_model(), tokens(9)[0]
    ids, mask, _ = padded([tokens(40)[0], row])
    with ctxext.patched(model, spec, L, train_len=9), torch.no_grad():
        close(model.model(ids, mask)[0][1, 31:], model.model(row[None])[0][0])


ABSOLUTE = [spec for name, spec in NARROW.items() if KINDS[name].absolute]


def test_which_methods_go_by_more_than_distance() -> None:
    names_of = {spec.partition(":")[0] for spec in ABSOLUTE}
    assert names_of == {"dca", "jet-long", "lm-infinite", "self-extend", "streaming"}


@pytest.mark.parametrize("spec", NARROW.values())
def test_what_methods_go_by(spec: str) -> None:
    """Moved as a whole, positions change nothing, or are refused where they would."""
    model, ids = random_model(), tokens(20)
    moved = torch.arange(7, 27)[None]
    with ctxext.patched(model, spec, L):
        plain = logits(model, ids)
        if spec not in ABSOLUTE:
            close(logits(model, ids, position_ids=moved), plain)
            return
        for wrong in (moved, torch.arange(20)[None] * 2, moved - 8):
            with pytest.raises(UnsupportedModelError, match="from a row's first token") as caught:
                model(ids, position_ids=wrong)
            assert "\n" not in str(caught.value)
        assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("spec", ABSOLUTE)
def test_sliding_caches_of_methods_that_count(spec: str) -> None:
    """A model's own window, above T, drops keys of its cache: positions count on, rows padded."""
    changed = {**SETTINGS, "sliding_window": 38}
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**changed)).eval()
    rows = [tokens(n, seed=n)[0] for n in (75, 51)]
    ids, mask, _ = padded(rows)
    with ctxext.patched(model, spec, 4 * L):
        alone = [logits(model, row[None], use_cache=False)[0] for row in rows]
        for size in (1, 19, 50):
            cache, given = DynamicCache(config=model.config), []
            for a in range(0, 75, size):
                kwargs = {"attention_mask": mask[:, : a + size], CACHE: cache}
                given.append(logits(model, ids[:, a : a + size], **kwargs))
            for i, truth in enumerate(alone):
                close(torch.cat(given, 1)[i][mask[i].bool()], truth)


@pytest.mark.parametrize("spec", ABSOLUTE)
def test_positions_that_count_padding_are_refused(spec: str) -> None:
    model = random_model()
    ids, mask, _ = padded([tokens(20)[0], tokens(9)[0]])
    with ctxext.patched(model, spec, L):
        with pytest.raises(UnsupportedModelError, match="from a row's first token"):
            model(ids, attention_mask=mask, position_ids=torch.arange(20)[None])
        cache = DynamicCache(config=model.config)  # at whose first step a row is all padding
        model(ids[:, :1], attention_mask=mask[:, :1], **{CACHE: cache})
        given = {"position_ids": torch.arange(1, 20)[None], CACHE: cache}
        with pytest.raises(UnsupportedModelError, match="from a row's first token"):
            model(ids[:, 1:], attention_mask=mask, **given)


@pytest.mark.parametrize("spec", [spec for spec in NARROW.values() if spec not in ABSOLUTE])
def test_positions_with_gaps_are_refused(spec: str) -> None:
    model, ids = random_model(), tokens(20)
    with ctxext.patched(model, spec, L), pytest.raises(UnsupportedModelError, match="leave out"):
        model(ids, position_ids=torch.arange(20)[None] * 2)


@pytest.mark.parametrize("attn", ["sdpa", "eager", "dense"])
@pytest.mark.parametrize("spec", ABSOLUTE)
def test_masks_over_positions_that_count(spec: str, attn: str) -> None:
    """Masks of four dimensions: causal, of a padded row, of what a row may not see."""
    model, ids = random_model(), tokens(40)
    causal = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    with ctxext.patched(model, spec, L, attn=attn):
        plain = logits(model, ids)
        close(logits(model, ids, attention_mask=causal), plain)
        short, positions = logits(model, ids[:, 9:]), (torch.arange(40) - 9).clamp(min=0)[None]
        padding = causal.clone()
        padding[..., :9] = False
        given = {"attention_mask": padding, "position_ids": positions}
        close(logits(model, ids, **given)[:, 9:], short)
        with pytest.raises(UnsupportedModelError, match="from a row's first token"):
            model(ids, attention_mask=causal, position_ids=positions)
        hidden = causal.clone()
        hidden[..., 20:, 15:18] = False
        ours = logits(model, ids, attention_mask=hidden)
        close(ours[:, :20], plain[:, :20])
        assert (ours[:, 20] - plain[:, 20]).abs().max() > 1e-2
    with ctxext.patched(model, spec, L, attn="dense"):
        close(ours, logits(model, ids, attention_mask=hidden))


@pytest.mark.parametrize("spec", ABSOLUTE)
def test_one_step_under_a_mask_of_its_own(spec: str) -> None:
    """A step of a padded batch, whose mask [b, 1, 1, m] hides the newest key of one row."""
    model, ids = random_model(), tokens(20, 2)
    with ctxext.patched(model, spec, L):
        cache = DynamicCache(config=model.config)
        logits(model, ids[:, :-1], **{CACHE: cache})
        seen = torch.ones(2, 1, 1, 20, dtype=torch.bool)
        seen[1, ..., -3:] = False
        ours = logits(model, ids[:, -1:], attention_mask=seen, **{CACHE: cache})
    with ctxext.patched(model, spec, L, attn="dense"):
        hidden = torch.ones(20, 20, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
        hidden[1, ..., -1, -3:] = False
        close(ours, logits(model, ids, attention_mask=hidden)[:, -1:])


@pytest.mark.parametrize(
    ("spec", "windows"),
    [
        ("window:window=6", lambda q: range(q - 5, q + 1)),
        ("streaming:window=6,sinks=2", lambda q: [0, 1, *range(q - 5, q + 1)]),
        ("lm-infinite:window=6,sinks=2", lambda q: [0, 1, *range(q - 5, q + 1)]),
    ],
)
def test_unseen_keys_change_nothing(spec: str, windows: Callable[[int], Any]) -> None:
    """In one layer, a token's logits are those of what it sees, and of no other token."""
    model, ids = random_model(num_hidden_layers=1), tokens(30)
    for attn in ("sdpa", "eager", "dense"):
        with ctxext.patched(model, spec, attn=attn):
            plain = logits(model, ids)
            for changed in (0, 1, 2, 11):
                other = ids.clone()
                other[0, changed] = 5 if ids[0, changed] != 5 else 6
                same = (logits(model, other) == plain).all(-1)[0]
                for q in range(30):
                    assert bool(same[q]) == (changed > q or changed not in windows(q))


# Number formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama-gqa", torch.float16), *((family, torch.bfloat16) for family in FAMILIES)],
)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """An infinite window costs no more than the format itself: errors against float32 logits.

    Two roundings by 2^-9 (or 2^-12) of a rotated key stand beside the dozens of a layer: seen
    are 0.9 to 1.15 times the unpatched model's mean error.
    """
    model, ids = random_model(family), tokens(300)  # bfloat16 counts to 256 only
    truth = logits(model, ids)
    model.to(dtype)
    own = (logits(model, ids) - truth).abs().mean()
    for spec in [*WIDE.values(), *(f"{spec}+logn" for spec in WIDE.values())]:
        with ctxext.patched(model, spec, train_len=4096):
            ours = logits(model, ids)
        assert ours.dtype == dtype
        assert 0.5 * own < (ours - truth).abs().mean() < 1.4 * own


@pytest.mark.parametrize("spec", SPECS)
def test_other_formats_of_one_model(spec: str) -> None:
    """float64 agrees with float32; 16 bits do not round the frequencies of a patched model."""
    model, ids = random_model(), tokens(L)
    with ctxext.patched(model, spec, 4 * L):
        truth, exact = logits(model, ids), model.model.rotary_emb.inv_freq.clone()
    model.double()
    with ctxext.patched(model, spec, 4 * L):
        ours = logits(model, ids)
        assert ours.dtype == torch.float64
        close(ours, truth)
        assert torch.equal(model.model.rotary_emb.inv_freq.float(), exact)
    model.to(torch.bfloat16)
    kept = model.model.rotary_emb.inv_freq
    assert not torch.equal(kept.float(), random_model().model.rotary_emb.inv_freq)  # rounded
    with ctxext.patched(model, spec, 4 * L) as handle:
        rounded = logits(model, ids)
        if handle.spec.frequencies:
            assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    assert model.model.rotary_emb.inv_freq is kept
    assert (rounded - truth).abs().mean() < 0.05 * truth.abs().mean()  # as without a patch


@pytest.mark.parametrize("spec", FEW)
def test_autocast(spec: str) -> None:
    """Under autocast the paths agree to a few of bfloat16's roundings, 2^-9 each."""
    model, ids = random_model(), tokens(L)
    outs = []
    for dense in (False, True):
        with ctxext.patched(model, spec, 4 * L, attn="dense" if dense else "sdpa"):
            truth = logits(model, ids)
            with torch.autocast("cpu", torch.bfloat16):
                outs.append(logits(model, ids))
    for out in outs:
        assert (out - truth).abs().mean() < 0.05 * truth.abs().mean()


@pytest.mark.parametrize("spec", FEW)
def test_patching_under_autocast(spec: str) -> None:
    """The few tokens that are tried are rounded there, which is no fault of the model's."""
    model, ids = random_model(), tokens(L)
    with ctxext.patched(model, spec, 4 * L):
        plain = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        handle = ctxext.patch(model, spec, 4 * L)
    assert torch.equal(logits(model, ids), plain)
    handle.remove()


# Training ----------------------------------------------------------------------------------------


def gradient(model: Any, spec: str, dense: bool, ids: Tensor) -> Tensor:
    """The gradient of two forward passes at different positions, as one vector.

    The second is of other positions, or of two packed rows where those must count from 0.
    """
    model.zero_grad()
    with ctxext.patched(model, spec, 4 * L, attn="dense" if dense else "sdpa") as handle:
        distance = handle.spec.distance
        other = torch.arange(9, 9 + L)
        if distance and distance.absolute:
            other = torch.cat((torch.arange(20), torch.arange(L - 20)))
        loss = model(ids, labels=ids, use_cache=False).loss
        second = model(ids, labels=ids, position_ids=other[None], use_cache=False).loss
        (loss + second).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *(("llama-gqa", spec) for spec in [*NARROW.values(), MIX]),
        *((family, spec) for family in list(FAMILIES)[1:] for spec in (NARROW["dca"], MIX)),
    ],
)
def test_training(family: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of chunked, dense and checkpointed passes are the same, and the method's own."""
    model, ids = random_model(family).train(), tokens(L)
    monkeypatch.setattr(chunked, "LONGEST_CHUNK", 16)
    dense, ours = (gradient(model, spec, dense, ids) for dense in (True, False))
    close(ours, dense, 2e-5)  # back and forth: twice the forward's
    model.gradient_checkpointing_enable({"use_reentrant": False})
    close(gradient(model, spec, False, ids), ours, 2e-6)
    model.gradient_checkpointing_disable()
    plain = gradient(model, "rope", False, ids)
    assert (ours - plain).abs().max() > 1e-2 * plain.abs().max()


# Removal -----------------------------------------------------------------------------------------


def snapshot(model: Any) -> dict[str, Any]:
    """Everything a model holds: each module's attributes, each config's, the values of tensors."""
    modules = dict(model.named_modules(remove_duplicate=False))
    held = {
        f"{path}.{key}": dict(value) if isinstance(value, dict) else value
        for path, module in modules.items()
        for key, value in vars(module).items()
    }
    configs = {
        path: (vars(m)["config"], dict(vars(vars(m)["config"])), m.config._attn_implementation)
        for path, m in modules.items()
        if "config" in vars(m)
    }
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    return {
        "held": held,
        "configs": configs,
        "tensors": {key: (x, x.detach().clone()) for key, x in tensors.items()},
        "generation": vars(model)["generation_config"],
        "random": torch.get_rng_state(),
    }


def is_same(a: Any, b: Any) -> bool:
    """The same object, or equal plain values, or containers of such in the same order."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return isinstance(a, (str, int, float, type(None))) and type(a) is type(b) and a == b


def assert_untouched(model: Any, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert list(after["held"]) == list(before["held"])
    for part in ("held", "configs"):
        for key, value in before[part].items():
            assert is_same(after[part][key], value), key
    assert list(after["tensors"]) == list(before["tensors"])
    for key, (tensor, values) in before["tensors"].items():
        now, clone = after["tensors"][key]
        assert now.data_ptr() == tensor.data_ptr(), key
        assert now.dtype == values.dtype
        assert torch.equal(clone, values), key
    assert after["generation"] is before["generation"]
    assert torch.equal(after["random"], before["random"])


@contextlib.contextmanager
def untouched(model: Any, ids: Tensor) -> Iterator[None]:
    """That the block leaves the model as it was, and its logits bit for bit."""
    plain, before = logits(model, ids), snapshot(model)
    yield
    assert_untouched(model, before)
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize(("family", "spec"), CROSS)
def test_removal(family: str, spec: str) -> None:
    model, ids = random_model(family), tokens(L)
    plain = logits(model, ids)
    with untouched(model, ids):
        handle = ctxext.patch(model, spec, 4 * L)
        first = logits(model, ids)
        handle.remove()
        handle.remove()  # again: nothing
        assert torch.equal(logits(model, ids), plain)

        def broken() -> None:
            with ctxext.patched(model, spec, 4 * L):
                assert torch.equal(logits(model, ids), first)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            broken()
        with ctxext.patched(model, spec, 4 * L, attn="dense"):
            logits(model, ids[:, :3])


@pytest.mark.parametrize("training", [True, False])
def test_removal_keeps_the_mode(training: bool) -> None:
    model = random_model().train(training)
    for spec in FEW:
        with ctxext.patched(model, spec, 4 * L):
            assert all(module.training == training for module in model.modules())
        assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("spec", ["rerope", "dca"])
def test_modes_of_single_modules_stay(spec: str) -> None:
    model = random_model().train()
    model.model.layers[0].eval()  # frozen, say
    before = [module.training for module in model.modules()]
    with ctxext.patched(model, spec, 4 * L):
        assert [module.training for module in model.modules()] == before
    assert [module.training for module in model.modules()] == before


def test_removal_after_a_move_to_another_format() -> None:
    """What was on the model while its weights were cast comes off as well."""
    model, ids = random_model(), tokens(L)
    with ctxext.patched(model, MIX, 4 * L):
        model.double()
        logits(model, ids)
    assert not any("ctxext" in key for m in model.modules() for key in vars(m))
    fresh = random_model().double()
    assert torch.equal(logits(model, ids), logits(fresh, ids))


# One model and another ---------------------------------------------------------------------------


@pytest.mark.parametrize("spec", FEW)
def test_models_that_share_a_config(spec: str) -> None:
    config = random_model().config
    torch.manual_seed(1)
    one, other = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    assert one.config is other.config
    ids = tokens(L)
    implementation = config._attn_implementation
    plain = logits(one, ids)
    with untouched(other, ids):
        handle = ctxext.patch(one, spec, 4 * L)
        patched = logits(one, ids)
        before = logits(other, ids)
        assert other.config is config
        assert config._attn_implementation == implementation
        assert all(m.config is config for m in other.modules() if hasattr(m, "config"))
        with ctxext.patched(other, "leaky-rerope:window=3,leak=2+logn"):  # in turns
            logits(other, ids[:, :7])
            assert torch.equal(logits(one, ids), patched)
        assert torch.equal(logits(other, ids), before)
        handle.remove()
    assert one.config is config
    assert torch.equal(logits(one, ids), plain)


@pytest.mark.parametrize("spec", FEW)
def test_a_copy_of_a_patched_model_stands_alone(spec: str) -> None:
    model, ids = random_model(), tokens(L)
    handle = ctxext.patch(model, spec, 4 * L)
    patched, twin = logits(model, ids), copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), patched)
    handle.remove()
    assert torch.equal(logits(twin, ids), patched)
    assert not torch.equal(logits(model, ids), patched)


# Own scalings ------------------------------------------------------------------------------------

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": TRAINED},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "dynamic": {"factor": 2.0},
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": TRAINED,
    },
}


def own_scaling(rope_type: str) -> Any:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **SCALINGS[rope_type]}
    model = random_model(rope_parameters=rope)
    assert model.model.rotary_emb.rope_type == rope_type
    return model


def untouched_scaling(model: Any, ids: Tensor) -> Any:
    """As `untouched`; longrope's forward puts other buffers in, on transformers 5.17."""
    if model.model.rotary_emb.rope_type == "longrope":
        return contextlib.nullcontext()
    return untouched(model, ids)


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_own_scaling_is_kept(rope_type: str) -> None:
    model, ids = own_scaling(rope_type), tokens(L)
    plain = logits(model, ids)
    assert not torch.allclose(plain, logits(random_model(), ids), atol=1e-2)
    with untouched_scaling(model, ids):
        for spec in [*WIDE.values(), *(f"{spec}+logn" for spec in WIDE.values()), "logn"]:
            with ctxext.patched(model, spec, L, train_len=4096) as handle:
                close(logits(model, ids), plain)
                assert len(handle.notes) == 1


@pytest.mark.parametrize(("rope_type", "same"), [("linear", "pi:factor=4"), ("yarn", "yarn")])
def test_own_scaling_is_the_method_of_that_name(rope_type: str, same: str) -> None:
    """A distance method on a scaled model is that method and the scaling's own, composed."""
    scaled, model, ids = own_scaling(rope_type), random_model(), tokens(L)
    for spec in ("rerope:window=5", "leaky-rerope:window=5,leak=3+logn"):
        on = ctxext.patched(scaled, spec, train_len=TRAINED)
        with on, ctxext.patched(model, f"{same}+{spec}", 4 * TRAINED):
            close(logits(scaled, ids), logits(model, ids))


def test_a_huge_trained_length_takes_no_memory() -> None:
    """A sliding window is asked whether it sees so far back."""
    config = transformers.MistralConfig(**SETTINGS, sliding_window=16)
    model, ids = transformers.MistralForCausalLM(config).eval(), tokens(L)
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kw: Any = None) -> Any:
            out = function(*args, **(kw or {}))
            made.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    with untouched(model, ids), Sizes():
        ctxext.patch(model, "rerope", train_len=2**24).remove()
    assert max(made) < 2**22


@pytest.mark.parametrize("length", [1, 2**31, 10**400])
def test_a_trained_length_that_is_none(length: Any) -> None:
    model, ids = random_model(), tokens(9)
    model.config.max_position_embeddings = length
    with untouched(model, ids), pytest.raises(UnsupportedModelError, match="is no length"):
        ctxext.patch(model, "yarn", 99)


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_own_scaling_is_replaced_by_frequency_methods(rope_type: str) -> None:
    scaled, model, ids = own_scaling(rope_type), random_model(), tokens(L)
    for spec in ("pi", "yarn", "ntk+rerope:window=5+logn"):
        on = ctxext.patched(scaled, spec, 4 * L, own_scaling="replace")
        with untouched(scaled, ids), on as handle:
            ours = logits(scaled, ids)
            assert [note for note in handle.notes if rope_type in note and "replaced" in note]
            with ctxext.patched(model, spec, 4 * L) as plain:
                assert torch.equal(ours, logits(model, ids))
                assert plain.notes == []


def test_the_probe_leaves_dynamic_frequencies_alone() -> None:
    model, ids = own_scaling("dynamic"), tokens(L)
    with untouched(model, ids):
        ctxext.patch(model, "logn", L).remove()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama-gqa", "phi-partial-outside"])
def test_own_attention_implementation(family: str, implementation: str) -> None:
    model, reference, ids = random_model(family), random_model(family), tokens(L, 2)
    model.set_attn_implementation(implementation)
    with untouched(model, ids):
        for spec in ("logn", "ntk+logn", "rerope:window=5"):
            with (
                ctxext.patched(model, spec, 4 * L) as handle,
                ctxext.patched(reference, spec, 4 * L),
            ):
                close(logits(model, ids), logits(reference, ids))
                assert handle.attention == ("sdpa" if "rerope" in spec else implementation)


# Refusals ----------------------------------------------------------------------------------------

SMALL = {**SETTINGS, "head_dim": 16}


def small(family: str, config: str = "", without: tuple[str, ...] = (), **changes: Any) -> Any:
    """A small random model of a family that conftest does not have."""
    kept = {key: value for key, value in SMALL.items() if key not in without}
    made = getattr(transformers, f"{config or family}Config")(**{**kept, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(made).eval()


@pytest.mark.parametrize("spec", FEW)
@pytest.mark.parametrize("family", ["Llama", "Mixtral"])
def test_patching_takes_no_products_but_those_of_attention(family: str, spec: str) -> None:
    """Weights of all else may be anything."""
    model = small(family)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "self_attn" not in name and "embed_tokens" not in name:
                weight.fill_(math.nan)
    handle = ctxext.patch(model, spec, 4 * L)
    assert handle.seconds > 0
    handle.remove()


FULL = ["full_attention", "full_attention"]
REFUSED: dict[str, tuple[Callable[[], Any], list[str], str]] = {
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97, n_positions=64)
        ).eval(),
        ["ntk", "logn", "rerope"],
        "gpt2 has no rotary embeddings",
    ),
    "falcon": (
        lambda: small("Falcon", without=("head_dim",)),
        ["rerope", "logn"],
        "falcon does not take .*: it does not use transformers' attention interface",
    ),
    "phimoe": (  # which computes its frequencies anew in each forward
        lambda: small("Phimoe", without=("head_dim",), num_local_experts=2),
        ["ntk", MIX],
        "PhimoeRotaryEmbedding does not rotate by its inv_freq",
    ),
    "doge": (
        lambda: small("Doge", without=("head_dim",)), ["rerope"], "by a mask of its own",
    ),
    "deepseek_v32": (
        lambda: small(
            "DeepseekV32", without=("head_dim",), num_key_value_heads=4, q_lora_rank=16,
            kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
            index_head_dim=16, index_n_heads=2,
        ),
        ["rerope", "ntk+rerope"],
        "deepseek_v32 does not take .*rerope.*'indices', by which it may choose keys",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", REFUSED)
def test_refused_models_are_untouched(model: str) -> None:
    """A model that cannot take a method says so by name, and is left as it was."""
    build, refused, message = REFUSED[model]
    made, ids = build(), tokens(L)
    for spec in refused:
        with untouched(made, ids), pytest.raises(UnsupportedModelError, match=message) as caught:
            ctxext.patch(made, spec, 4 * L)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DISTANCE)
def test_layers_without_rotation_stay(name: str) -> None:
    """SmolLM3 rotates nothing in every fourth layer: an infinite window must change nothing."""
    model = small("SmolLM3", without=("head_dim",), num_hidden_layers=4)
    assert not all(layer.self_attn.use_rope for layer in model.model.layers)
    ids = tokens(L)
    plain = logits(model, ids)
    with ctxext.patched(model, WIDE[name]):
        close(logits(model, ids), plain)


def test_a_sliding_window_stays_under_methods() -> None:
    """On Mistral, two layers of 40 tokens: what happens at 0 is not seen from 2·39 + 1 on."""
    model, ids = small("Mistral", sliding_window=40), tokens(90)
    changed = ids.clone()
    changed[0, 0] += 1
    for spec in ("ntk:factor=4", "logn", "yarn:factor=4+logn", "rerope:window=9+logn"):
        with ctxext.patched(model, spec):
            one, other = logits(model, ids), logits(model, changed)
        assert torch.equal(one[:, 79:], other[:, 79:])
        assert not torch.equal(one[:, 78], other[:, 78])
    base = 10000.0 * 4 ** (16 / 14)
    rope = {"rope_type": "default", "rope_theta": base}
    larger = small("Mistral", sliding_window=40, rope_parameters=rope)
    with ctxext.patched(model, "ntk:factor=4"):
        close(logits(model, ids), logits(larger, ids))


@pytest.mark.parametrize("spec", ["ntk:factor=4", "logn", "rerope:window=9", "leaky-rerope+logn"])
def test_layers_that_see_no_further_than_trained_are_left_alone(spec: str) -> None:
    model, ids = small("Mistral", sliding_window=TRAINED), tokens(60)
    plain = logits(model, ids)
    with ctxext.patched(model, spec, 256) as handle:
        assert torch.equal(logits(model, ids), plain)
        assert handle.notes[0].startswith("2 of 2 attention layers see no further back than")
        assert "changes nothing" in handle.notes[0]
    assert model.config.sliding_window == TRAINED


@pytest.mark.parametrize("spec", ["ntk:factor=4", "rerope:window=9", "yarn+leaky-rerope:window=9"])
def test_layers_of_two_kinds_that_share_their_rotation(spec: str) -> None:
    """Qwen 2 with a window of 16 in its first layer, whose output must stay, and none after."""
    kinds = ["sliding_attention", "full_attention"]
    windows = {"layer_types": kinds, "use_sliding_window": True, "sliding_window": 16}
    model, ids = small("Qwen2", without=("head_dim",), **windows), tokens(60)
    seen: list[Tensor] = []
    hook = model.model.layers[0].register_forward_hook(lambda *args: seen.append(args[2]))
    plain = logits(model, ids)
    with ctxext.patched(model, spec, 256):
        ours = logits(model, ids)
        with ctxext.patched(small("Qwen2", without=("head_dim",), **windows), spec, 256) as other:
            assert other.spec == ctxext.patches.parse(str(other.spec))
    hook.remove()
    assert torch.equal(seen[0], seen[-1])
    assert not torch.allclose(ours, plain, atol=1e-3)
    assert torch.equal(logits(model, ids), plain)


LLAMA = transformers.models.llama.modeling_llama
OWN = LLAMA.apply_rotary_pos_emb


def reversed_sign(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return OWN(q, k, cos, -sin)


def shuffled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that no slice has."""
    order = torch.tensor([3, 0, 9, 6, 12, 1, 15, 4, 10, 2, 5, 14, 7, 13, 8, 11])
    q, k = (x[..., order.argsort()] for x in OWN(q[..., order], k[..., order], cos, sin))
    return q, k


def stretched(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Dimensions scaled one by one after they are rotated, so that it is a rotation no more."""
    weight = torch.linspace(0.5, 2, q.shape[-1])
    q, k = (x * weight for x in OWN(q, k, cos, sin))
    return q, k


def multiplied(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """A product behind the rotation, which changes nothing."""
    q, k = (torch.nn.functional.linear(x, torch.eye(x.shape[-1])) for x in OWN(q, k, cos, sin))
    return q, k


@pytest.mark.parametrize("apply", [reversed_sign, shuffled, multiplied])
def test_any_pairs_are_found(apply: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLAMA, "apply_rotary_pos_emb", apply)
    model, ids = random_model(), tokens(L)
    plain = logits(model, ids)
    for spec in WIDE.values():
        with untouched(model, ids), ctxext.patched(model, spec):
            close(logits(model, ids), plain)


@pytest.mark.parametrize("apply", [stretched, interleaved])
def test_a_rotation_that_is_none_is_refused(
    apply: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also pairs that stand side by side, turned by tables for halves: each by two frequencies."""
    monkeypatch.setattr(LLAMA, "apply_rotary_pos_emb", apply)
    model, ids = random_model(), tokens(L)
    refusal = pytest.raises(UnsupportedModelError, match="rotated in a way that is not understood")
    for spec in (*DISTANCE, MIX):
        with untouched(model, ids), refusal:
            ctxext.patch(model, spec, 4 * L)
    with ctxext.patched(model, "ntk", 4 * L):  # which rotates nothing itself
        logits(model, ids)


def test_rotary_modules_of_complex_numbers() -> None:
    """DeepSeek-V2's returns exp(jθ): frequency methods need no more than its inv_freq."""
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    sizes |= {"v_head_dim": 16, "num_key_value_heads": 4, "first_k_dense_replace": 2}
    rope = {"rope_type": "default", "rope_theta": 40000.0}
    model, larger = small("DeepseekV2", **sizes), small("DeepseekV2", rope_parameters=rope, **sizes)
    ids = tokens(L)
    with ctxext.patched(model, "ntk-old:factor=4"):
        close(logits(model, ids), logits(larger, ids))


@pytest.mark.parametrize("spec", FEW)
def test_patching_twice_is_refused(spec: str) -> None:
    model, ids = random_model(), tokens(L)
    with untouched(model, ids), ctxext.patched(model, spec, 4 * L) as handle:
        first, before = logits(model, ids), snapshot(model)
        for second in ("rope", "rerope:window=3"):
            with pytest.raises(UsageError, match=r"patched already, with .*: remove") as caught:
                ctxext.patch(model, second)
            assert str(handle.spec) in str(caught.value)
        assert_untouched(model, before)
        assert torch.equal(logits(model, ids), first)


@pytest.mark.parametrize("inner_first", [True, False])
def test_patching_a_model_and_its_base_is_refused(inner_first: bool) -> None:
    model = random_model()
    order = (model.model, model) if inner_first else (model, model.model)
    with (
        ctxext.patched(order[0], "pi:factor=2"),
        pytest.raises(UsageError, match="patched already"),
    ):
        ctxext.patch(order[1], "pi:factor=2").remove()


@pytest.mark.parametrize("value", [0, 1, -3, 2.5, "16k", True, float("nan"), 2**31, 10**400])
@pytest.mark.parametrize("name", ["length", "train_len"])
def test_bad_lengths(name: str, value: Any) -> None:
    model, ids = random_model(), tokens(9)
    with untouched(model, ids), pytest.raises(UsageError, match=f"bad {name} {value!r}: give"):
        ctxext.patch(model, "rerope", **{name: value})


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        ("nkt", 9),
        ("rerope+leaky-rerope", 9),
        ("ntk:factor=0", 9),
        ("ntk", None),
        ("pi:factor=2+leaky-rerope:window=3", None),
        ("pi+rerope", None),
        ("leaky-rerope:window=16", 99),
    ],
)
def test_bad_specs_leave_the_model_alone(spec: str, length: int | None) -> None:
    model, ids = random_model(), tokens(9)
    with untouched(model, ids), pytest.raises(UsageError):
        ctxext.patch(model, spec, length)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a transformers model"):
        ctxext.patch(torch.nn.Linear(2, 2), "rope")
