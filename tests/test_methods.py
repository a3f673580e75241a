"""Every registered method against the float64 oracle, and its text: specs, messages, docstrings."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import oracle
import pytest
import torch
from conftest import CACHE, FAMILIES, LONG, SHORT, TRAINED, fitted, pairs_of, random_model, tokens
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ctxext
import ctxext.methods
from ctxext.errors import UsageError
from ctxext.methods import REGISTRY, Spec, names, parse
from ctxext.methods.base import (
    SECTIONS,
    AttentionRule,
    Distance,
    Frequency,
    Method,
    QueryScale,
    Rotary,
    Span,
    Stretch,
)
from ctxext.registry import Registry

pytestmark = pytest.mark.quick

T = TRAINED
LENGTHS = (T - 5, T, 97, 8 * T)  # below T and odd, T, odd, and the longest
Row = tuple[str, Callable[[int], oracle.Method]]


def freq(name: str, **args: Any) -> Callable[[int], oracle.Method]:
    """The oracle's method with a frequency λ; without a factor, the default one for the length."""
    return lambda n: {
        "T": T,
        "frequency": [(name, {"factor": oracle.default_factor(n, T)} | args)],
    }


def rerope(window: int) -> Callable[[int], oracle.Method]:
    return lambda n: {"distance": ("rerope", {"window": window})}


def leaky(window: int, leak: float | None = None) -> Callable[[int], oracle.Method]:
    return lambda n: {
        "distance": (
            "leaky-rerope",
            {"window": window, "leak": leak or oracle.default_leak(n, T, window)},
        )
    }


def distance(name: str, **args: float) -> Callable[[int], oracle.Method]:
    return lambda n: {"T": T, "distance": (name, args)}


def given_lambda(name: str, **args: Any) -> Callable[[int], oracle.Method]:
    """The oracle's method with a λ that depends on no length."""
    return lambda n: {"T": T, "frequency": [(name, args)]}


def by_length(name: str, **args: Any) -> Callable[[int], oracle.Method]:
    """The oracle's method with a λ that is chosen by the length."""
    return lambda n: {"T": T, "frequency": [(name, {"length": n} | args)]}


def self_extend(window: int) -> Callable[[int], oracle.Method]:
    """… with the default group."""
    return lambda n: distance(
        "self-extend", window=window, group=oracle.default_group(n, T, window)
    )(n)


def jet_long_freq(window: int) -> Callable[[int], oracle.Method]:
    """… with the default factor."""
    return lambda n: distance(
        "jet-long-freq", window=window, factor=max(1.0, (n - window) / (T - window))
    )(n)


def jet_long(group: int) -> Callable[[int], oracle.Method]:
    return distance("jet-long", window=T // 16, group=group)


def by_default(n: int) -> dict[str, int]:
    """STRING's S and W: 0.33 of the length, or as much as it needs, and T/4."""
    third = max(1, min(33 * n // 100, T))
    local = max(1, min(T // 4, third))
    return {"shift": max(third, min(n - T + local, T)), "local": local}


def scaled(name: str, **args: Any) -> Callable[[int], oracle.Method]:
    """The oracle's method with a query scale."""
    return lambda n: {"T": T, "scales": [(name, args)]}


def logn(clip: bool, **args: Any) -> Callable[[int], oracle.Method]:
    return scaled("logn", clip=clip, **args)


def entropy(sinks: int = 4, most: float = 2.0) -> Callable[[int], oracle.Method]:
    return lambda n: {"T": T, "entropy": {"sinks": sinks, "most": most}}


def both(*methods: Callable[[int], oracle.Method]) -> Callable[[int], oracle.Method]:
    """The oracle's methods in one; their λs multiply, and so do their query scales."""

    def merged(n: int) -> oracle.Method:
        made = [method(n) for method in methods]
        lambdas = [pair for one in made for pair in one.get("frequency", [])]
        scales = [pair for one in made for pair in one.get("scales", [])]
        out: oracle.Method = {"T": T, "frequency": lambdas, "scales": scales}
        for one in made:
            out |= {key: one[key] for key in ("distance", "entropy") if key in one}
        return out

    return merged


# A new method needs a row here, made from the oracle alone; the tests fail until it has one.
ROWS: dict[str, list[Row]] = {
    "rope": [("rope", lambda n: {})],
    "pi": [("pi", freq("pi")), ("pi:factor=2.5", freq("pi", factor=2.5))],
    "ntk": [("ntk", freq("ntk")), ("ntk:factor=8", freq("ntk", factor=8))],
    "ntk-old": [("ntk-old", freq("ntk-old")), ("ntk-old:factor=8", freq("ntk-old", factor=8))],
    "ntk-fixed": [
        ("ntk-fixed", freq("ntk-fixed")),
        ("ntk-fixed:factor=8", freq("ntk-fixed", factor=8)),
    ],
    "beta-radix": [
        ("beta-radix", freq("beta-radix")),
        ("beta-radix:factor=12,b=0.75", freq("beta-radix", factor=12, b=0.75)),
    ],
    "yarn": [
        ("yarn", freq("yarn")),
        (
            "yarn:factor=4,beta_fast=3,beta_slow=0.5",
            freq("yarn", factor=4, beta_fast=3, beta_slow=0.5),
        ),
        (
            "yarn:factor=4,beta_fast=1e6,beta_slow=1e-6",  # the widest ramp
            freq("yarn", factor=4, beta_fast=1e6, beta_slow=1e-6),
        ),
    ],
    "abf": [
        ("abf", given_lambda("abf", new=5e5)),
        ("abf:base=3e5", given_lambda("abf", new=3e5)),
    ],
    "p-rope": [
        ("p-rope", given_lambda("p-rope", keep=0.75)),
        ("p-rope:keep=0.4", given_lambda("p-rope", keep=0.4)),
    ],
    "cope": [
        ("cope", given_lambda("cope", clip=20)),
        ("cope:clip=5", given_lambda("cope", clip=5)),
        ("cope:clip=3,hard=true", given_lambda("cope", clip=3, hard=True)),
    ],
    "mrrope": [
        ("mrrope", freq("mrrope")),
        ("mrrope:kind=uni", freq("mrrope", kind="uni")),
        *(
            (
                f"mrrope:factor=4,kind={kind},beta_fast=1.5,beta_slow=0.01",
                freq("mrrope", factor=4, kind=kind, beta_fast=1.5, beta_slow=0.01),
            )
            for kind in ("pro", "uni")
        ),
        (
            "mrrope:factor=4,beta_fast=32,beta_slow=8",  # no pair between
            freq("mrrope", factor=4, beta_fast=32, beta_slow=8),
        ),
    ],
    "rerope": [("rerope", rerope(T // 2))]
    + [(f"rerope:window={w}", rerope(w)) for w in (1, 2, 7, 94, 300)],
    "leaky-rerope": [
        ("leaky-rerope", leaky(T // 4)),
        ("leaky-rerope:window=5", leaky(5)),
        ("leaky-rerope:leak=3", leaky(T // 4, 3)),
    ]
    + [(f"leaky-rerope:window={w},leak=2.5", leaky(w, 2.5)) for w in (1, 2, 7, 94, 300)],
    "entropy-cap": [
        ("entropy-cap", entropy()),
        ("entropy-cap:sinks=0,most=1.05", entropy(0, 1.05)),
        ("entropy-cap:sinks=9,most=8", entropy(9, 8.0)),
    ],
    "logn": [
        ("logn", logn(True)),
        ("logn:clip=false", logn(False)),
        ("logn:power=0.5", logn(True, power=0.5)),
        ("logn:clip=false,power=2", logn(False, power=2.0)),
    ],
    "mscale": [
        ("mscale", scaled("mscale")),
        ("mscale:factor=6", scaled("mscale", factor=6.0)),
        ("mscale:power=1", scaled("mscale", power=1.0)),
    ],
    "infoscale": [
        ("infoscale", scaled("infoscale")),
        ("infoscale:clip=false", scaled("infoscale", clip=False)),
        ("infoscale:dim=64", scaled("infoscale", dim=64)),
    ],
    "llama4": [
        ("llama4", scaled("llama4", floor=T)),
        ("llama4:floor=7,scale=0.5", scaled("llama4", floor=7, scale=0.5)),
    ],
    "jet-long": [
        ("jet-long", lambda n: jet_long(-(-n // T))(n)),
        *(
            (f"jet-long:window={w},group={g}", distance("jet-long", window=w, group=g))
            for w, g in ((1, 3), (7, 5), (60, 2))
        ),
    ],
    "string": [
        ("string", lambda n: distance("string", **by_default(n))(n)),
        *(
            (f"string:shift={s},local={w}", distance("string", shift=s, local=w))
            for s, w in ((1, 1), (7, 2), (94, 1))
        ),
    ],
    "llama3": [
        ("llama3", freq("llama3")),
        (
            "llama3:factor=4,low_freq_factor=0.5,high_freq_factor=2",
            freq("llama3", factor=4, low_freq_factor=0.5, high_freq_factor=2),
        ),
    ],
    "dynamic-ntk": [
        ("dynamic-ntk", by_length("dynamic-ntk")),
        ("dynamic-ntk:factor=2", by_length("dynamic-ntk", factor=2)),
        ("dynamic-ntk:sequence=200", lambda n: by_length("dynamic-ntk")(200)),
    ],
    "longrope": [
        ("longrope", by_length("longrope", short=SHORT, long=LONG)),
        ("longrope:sequence=200", lambda n: by_length("longrope", short=SHORT, long=LONG)(200)),
        (
            "longrope:attention=1.3",
            by_length("longrope", short=SHORT, long=LONG, attention=1.3),
        ),
    ],
    "inv-leaky-rerope": [
        (
            "inv-leaky-rerope",
            lambda n: distance(
                "inv-leaky-rerope", window=T // 4, expansion=oracle.default_factor(n, T)
            )(n),
        ),
        *(
            (
                f"inv-leaky-rerope:window={w},expansion=1.5",
                distance("inv-leaky-rerope", window=w, expansion=1.5),
            )
            for w in (1, 7, 94)
        ),
    ],
    "jet-long-freq": [
        ("jet-long-freq", jet_long_freq(T // 16)),
        ("jet-long-freq:window=7", jet_long_freq(7)),
        (
            "jet-long-freq:window=5,factor=6,beta_fast=3,beta_slow=0.01",
            distance("jet-long-freq", window=5, factor=6, beta_fast=3, beta_slow=0.01),
        ),
    ],
    "self-extend": [
        ("self-extend", self_extend(T // 4)),
        ("self-extend:window=5", self_extend(5)),
        *(
            (f"self-extend:window={w},group={g}", distance("self-extend", window=w, group=g))
            for w, g in ((1, 3), (7, 3), (8, 5), (60, 2))
        ),
    ],
    "dca": [
        ("dca", distance("dca", chunk=3 * T // 4, local=T // 4)),
        *(
            (f"dca:chunk={s},local={local}", distance("dca", chunk=s, local=local))
            for s, local in ((1, 1), (9, 4), (25, 2), (31, 31))
        ),
        ("dca:chunk=20", distance("dca", chunk=20, local=T - 20)),
        (
            "dca:chunk=9,local=4,reach=20",
            lambda n: {"T": 20, "distance": ("dca", {"chunk": 9, "local": 4})},
        ),
    ],
    "lm-infinite": [
        ("lm-infinite", distance("lm-infinite", window=T, sinks=10)),
        *(
            (f"lm-infinite:window={w},sinks={s}", distance("lm-infinite", window=w, sinks=s))
            for w, s in ((5, 3), (1, 1), (9, 0), (7, 30))
        ),
    ],
    "streaming": [
        ("streaming", distance("streaming", window=T - 4, sinks=4)),
        ("streaming:sinks=6", distance("streaming", window=T - 6, sinks=6)),
        *(
            (f"streaming:window={w},sinks={s}", distance("streaming", window=w, sinks=s))
            for w, s in ((5, 3), (1, 2), (11, 0), (7, 30))
        ),
    ],
    "window": [
        ("window", distance("window", window=T)),
        *((f"window:window={w}", distance("window", window=w)) for w in (2, 7, 90)),
    ],
}
COMPOSED: list[Row] = [
    ("ntk+logn", both(freq("ntk"), logn(True))),
    ("yarn+entropy-cap+logn", both(freq("yarn"), entropy(), logn(True))),
    ("yarn+rerope:window=5+logn", both(freq("yarn"), rerope(5), logn(True))),
    ("logn+leaky-rerope+beta-radix", both(freq("beta-radix"), leaky(T // 4), logn(True))),
    ("yarn:factor=4+leaky-rerope:leak=3", both(freq("yarn", factor=4), leaky(T // 4, 3))),
    ("pi+ntk", both(freq("pi"), freq("ntk"))),
    ("pi:factor=2+yarn:factor=4", both(freq("pi", factor=2), freq("yarn", factor=4))),
    ("rope+ntk:factor=2+logn:clip=false", both(freq("ntk", factor=2), logn(False))),
    (
        "longrope+self-extend:window=5,group=3+logn",
        both(
            by_length("longrope", short=SHORT, long=LONG),
            distance("self-extend", window=5, group=3),
            logn(True),
        ),
    ),
    ("yarn:factor=4+dca", both(freq("yarn", factor=4), distance("dca", chunk=24, local=8))),
    (
        "llama3:factor=4+streaming:window=9+logn",
        both(freq("llama3", factor=4), distance("streaming", window=9, sinks=4), logn(True)),
    ),
    (
        "dca:chunk=24,local=8+mscale:factor=8",  # Qwen2.5-1M's
        both(distance("dca", chunk=24, local=8), scaled("mscale", factor=8.0)),
    ),
    (
        "mrrope+string:shift=9,local=2+llama4:floor=9+mscale",
        both(
            freq("mrrope"),
            distance("string", shift=9, local=2),
            scaled("llama4", floor=9),
            scaled("mscale"),
        ),
    ),
    (
        "string:shift=9,local=2+mscale:factor=2",  # as its authors' code
        both(distance("string", shift=9, local=2), scaled("mscale", factor=2.0)),
    ),
    ("jet-long:group=4+logn:power=2", both(jet_long(4), logn(True, power=2.0))),
    (
        "ntk:factor=2+jet-long-freq:window=5,factor=6",
        both(freq("ntk", factor=2), distance("jet-long-freq", window=5, factor=6)),
    ),
    (
        "dynamic-ntk+lm-infinite:window=9",
        both(by_length("dynamic-ntk"), distance("lm-infinite", window=9, sinks=10)),
    ),
]
BY_LAYER: list[Row] = [
    (
        "pi:layers=2/5+yarn:factor=2+mscale",  # what one layer has, times what all have
        both(freq("pi", factor=(2.0, 5.0)), freq("yarn", factor=2), scaled("mscale")),
    ),
    ("yarn:layers=1/4+entropy-cap:sinks=9", both(freq("yarn", factor=(1.0, 4.0)), entropy(9))),
]
NEAR: dict[str, Row] = {  # far parts begin early: what goes with them is seen at 97 tokens
    name: rows[1] for name, rows in ROWS.items() if issubclass(REGISTRY.get(name), Distance)
}
FREQUENCY = [name for name in names() if issubclass(REGISTRY.get(name), Frequency)]
RULES = [name for name in names() if issubclass(REGISTRY.get(name), AttentionRule)]
DISTANCE = [name for name in names() if issubclass(REGISTRY.get(name), Distance)]
STRETCHED = [name for name in FREQUENCY if issubclass(REGISTRY.get(name), Stretch)]


SCALES = [name for name in names() if issubclass(REGISTRY.get(name), QueryScale)]


def all_rows() -> list[Row]:
    return [row for rows in ROWS.values() for row in rows] + COMPOSED


def rows_of(name: str) -> list[Row]:
    """Its rows, and where it stretches one with a factor for each layer."""
    more = [(f"{name}:layers=6/1.5", freq(name, factor=(6.0, 1.5)))]
    return ROWS[name] + more * (name in STRETCHED)


def shake(model: Any) -> Any:
    """Biases and norms, which a fresh model has at 0 and 1, made random too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(("norm" in name) + 0.2 * torch.randn(p.shape, generator=generator))
    return model


def nll(model: Any, ids: Tensor) -> Tensor:
    """The NLL of every token of ids [1, L] but the first, [L−1], float64."""
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
    return -log_p.gather(1, ids[0, 1:, None])[:, 0]


def assert_nll(ours: Tensor, truth: Tensor, farthest: float = 256) -> None:
    """The issue asks for 1e-4 nat in the mean and 2e-2 at the worst token; we ask for a tenth.

    At 256 tokens a float32 angle is off by 256·2^-24 = 1.5e-5 rad, and a score, a float32 sum of
    16 products of up to 10, by about 1e-5: seen are 3e-6 nat in the mean and 9e-5 at the worst.
    A window off by one costs 0.1 in the mean of these models, 3e-3 in that of a trained one.
    Where relative positions go beyond 256, to `farthest`, angles are off by as much more.
    """
    more = max(1.0, farthest / 256)
    assert torch.isfinite(ours).all()
    difference = (ours - truth).abs()
    assert difference.mean() <= min(1e-5 * more, 1e-4)
    assert difference.max() <= min(1e-3 * more, 2e-2)


# Against the oracle ------------------------------------------------------------------------------


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(names())


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_in_a_row(name: str) -> None:
    """But for a ladder, which test_at_hand.py looks at, and longrope's file, which all have."""
    found = {parameter for spec, _ in rows_of(name) for parameter in ctxext.methods.given(spec)[0]}
    fields = {field.name for field in dataclasses.fields(REGISTRY.get(name))}
    assert fields - found <= {"ladder", *(("factors",) if name == "longrope" else ())}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", names())
def test_nll(name: str, length: int) -> None:
    model, ids = shake(random_model()), tokens(length)
    weights, config = model.state_dict(), model.config.to_dict()
    for spec, method in rows_of(name):
        with ctxext.patched(model, fitted(spec, 8), length):
            ours = nll(model, ids)
        farthest = float(oracle.effective_positions(length, method(length)).max())
        truth = oracle.token_nll(weights, config, ids[0].tolist(), method(length))
        assert_nll(ours, truth, farthest)


@pytest.mark.parametrize(("spec", "method"), [*COMPOSED, *BY_LAYER])
def test_nll_composed(spec: str, method: Callable[[int], oracle.Method]) -> None:
    model, ids = shake(random_model()), tokens(97)
    with ctxext.patched(model, fitted(spec, 8), 97):
        ours = nll(model, ids)
    truth = (model.state_dict(), model.config.to_dict(), ids[0].tolist(), method(97))
    assert_nll(ours, oracle.token_nll(*truth))


@pytest.mark.parametrize("distance", ["rerope:window=5", "leaky-rerope:window=5,leak=3"])
def test_nll_distance_and_unclipped_logn(distance: str) -> None:
    model, ids = random_model(), tokens(97)
    apart = rerope(5) if distance.startswith("rerope") else leaky(5, 3)
    with ctxext.patched(model, f"{distance}+logn:clip=false"):
        ours = nll(model, ids)
    method = both(apart, logn(False))(97)
    truth = (model.state_dict(), model.config.to_dict(), ids[0].tolist(), method)
    assert_nll(ours, oracle.token_nll(*truth))


@pytest.mark.parametrize("distance", DISTANCE)
def test_nll_of_every_query_scale_with_every_distance(distance: str) -> None:
    model, ids = shake(random_model()), tokens(97)
    weights, config = model.state_dict(), model.config.to_dict()
    near, far = NEAR[distance]
    for name in SCALES:
        scale, method = ROWS[name][0]
        with ctxext.patched(model, f"{near}+{scale}", 97):
            ours = nll(model, ids)
        truth = both(far, method)(97)
        assert_nll(ours, oracle.token_nll(weights, config, ids[0].tolist(), truth))


@pytest.mark.parametrize(
    ("name", "attn"),
    [
        *((name, "auto") for name in (*names(), "composed")),
        *((name, attn) for name in DISTANCE for attn in ("eager", "dense")),
    ],
)
def test_nll_of_padded_and_packed_rows(name: str, attn: str) -> None:
    """Padded on the left, a prefill in two chunks, one by one, a last few; and in one row."""
    lengths = (60, 41, T, 9)
    model, rows = shake(random_model()), [tokens(n, seed=n)[0] for n in lengths]
    weights, config = model.state_dict(), model.config.to_dict()
    ids = torch.stack([torch.nn.functional.pad(row, (60 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(60) >= 60 - len(row) for row in rows]).long()
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    for spec, method in COMPOSED + BY_LAYER if name == "composed" else rows_of(name):
        with ctxext.patched(model, fitted(spec, 8), 97, attn=attn), torch.no_grad():
            out, cache = [], None
            for a, z in itertools.pairwise((0, 25, 45, *range(46, 52), 60)):
                seen = {"attention_mask": mask[:, :z], CACHE: cache}
                step = model(ids[:, a:z], **seen)
                cache = step[CACHE]
                out.append(step.logits)
            one = model(torch.cat(rows)[None], position_ids=places, use_cache=False).logits[0]
        padded = torch.cat(out, 1)
        for row, left, packed in zip(rows, padded, one.split(lengths), strict=True):
            truth = oracle.token_nll(weights, config, row.tolist(), method(97))
            farthest = float(oracle.effective_positions(len(row), method(97)).max())
            for logits in (left[60 - len(row) :], packed):
                log_p = logits[:-1].double().log_softmax(-1)
                assert_nll(-log_p.gather(1, row[1:, None])[:, 0], truth, farthest)


SHAPES: dict[str, dict[str, Any]] = {
    "mha": {"num_key_value_heads": 4},
    "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head-dim": {"head_dim": 32, "rms_norm_eps": 1e-3},
    "three-pairs": {"head_dim": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_nll_of_other_shapes(shape: str) -> None:
    model, ids = shake(random_model(**SHAPES[shape])), tokens(97)
    weights, config = model.state_dict(), model.config.to_dict()
    for spec, method in [rows[0] for rows in ROWS.values()] + COMPOSED[:3]:
        with ctxext.patched(model, fitted(spec, pairs_of(model)), 97):
            ours = nll(model, ids)
        assert_nll(ours, oracle.token_nll(weights, config, ids[0].tolist(), method(97)))


def test_nll_of_a_folder(tmp_path: Path) -> None:
    shake(random_model(rope_parameters={"rope_type": "default", "rope_theta": 500.0})).to(
        torch.float32
    ).save_pretrained(tmp_path)
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path), tokens(97)
    for spec, method in COMPOSED:
        with ctxext.patched(model, fitted(spec, 8), 97):
            ours = nll(model, ids)
        assert_nll(ours, oracle.token_nll(*oracle.load(tmp_path), ids[0].tolist(), method(97)))


# Which dimensions of a head of 16 are rotated together: (neighbours?, rotated width).
LAYOUT = {
    "llama-gqa": (False, 16),
    "cohere-interleaved": (True, 16),
    "glm-interleaved-partial": (True, 8),
    "phi-partial-outside": (False, 8),
    "gpt_neox-partial-inside": (False, 4),
    "qwen3-qk-norm": (False, 16),
}


def shaken(family: str) -> Any:
    """A random model of the family whose logits are not scaled down, as Cohere's are."""
    return shake(random_model(family, **({"logit_scale": 1.0} if "cohere" in family else {})))


def float64_nll(family: str, ids: Tensor, method: oracle.Method) -> Tensor:
    """A family's own float64 model around the oracle's attention: no rotation, only scores.

    Its rotary module is made to return cos = 1 and sin = 0, so that queries and keys reach the
    attention function raw; there the oracle scores the rotated slice, pairs put into its order.
    """
    neighbours, width = LAYOUT[family]
    model, length = shaken(family).double(), ids.shape[1]
    head = {"head_dim": width, "rope_theta": model.config.rope_parameters["rope_theta"]}
    theta, factor = oracle.frequencies(head, method)
    assert theta.shape == model.base_model.rotary_emb.inv_freq.shape
    d = model.config.hidden_size // model.config.num_attention_heads
    r, n = oracle.pair_positions(length, head, method), oracle.query_scale(length, method, d)
    hidden = ~oracle.seen(length, method)
    order = torch.arange(width).view(-1, 2).mT.flatten() if neighbours else torch.arange(width)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        q, k, v = query[0] * n[:, None] * oracle.temperature(method), key[0], value[0]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        s = oracle.scores(q[..., order], k[..., order], theta, r) * factor**2
        s = (s + q[..., width:] @ k[..., width:].mT) * scaling
        if rule := method.get("entropy"):
            s = s * oracle.entropy_scale(s, hidden, method["T"], **rule)
        return (s.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1)[None], None

    AttentionInterface.register("oracle", attend)
    model.set_attn_implementation("oracle")
    one = torch.ones(1, length, width, dtype=torch.float64)
    with mock.patch.object(model.base_model.rotary_emb, "forward", return_value=(one, one * 0)):
        return nll(model, ids)


# Every method on the layout farthest from Llama's, whose methods `test_nll` looks at.
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("glm-interleaved-partial", name) for name in names()),
        *((family, name) for family in FAMILIES for name in ("yarn", "dca", "logn", "composed")),
    ],
)
def test_nll_of_every_family(family: str, name: str) -> None:
    model, ids = shaken(family), tokens(97)
    for spec, method in COMPOSED[1:3] if name == "composed" else ROWS[name][:2]:
        with ctxext.patched(model, fitted(spec, pairs_of(model)), 97):
            ours = nll(model, ids)
        assert_nll(ours, float64_nll(family, ids, method(97)))


def test_methods_differ() -> None:
    """No two rows of the tests above say the same, so none can stand in for another."""
    model, ids = random_model(), tokens(97)
    seen: dict[str, Tensor] = {}
    same = [
        {"rope", "rerope:window=300", "leaky-rerope:window=300,leak=2.5", "string:shift=1,local=1"},
        {"dynamic-ntk", "ntk"},  # the same factor, by default
    ]
    for spec, _ in all_rows():
        with ctxext.patched(model, fitted(spec, 8), 97):
            seen[spec] = nll(model, ids)
    for a in seen:
        for b in seen:
            if a < b and not any({a, b} <= some for some in same):
                assert (seen[a] - seen[b]).abs().max() > 2e-3, (a, b)


# Formulas and published equalities ---------------------------------------------------------------


@pytest.mark.parametrize("name", FREQUENCY)
def test_lambdas(name: str) -> None:
    """θ/λ in float64 is the oracle's: both are a dozen roundings of 1e-16."""
    for (spec, method), layer in itertools.product(rows_of(name), (0, 1)):
        for d in (2, 4, 6, 16, 128):
            for base in (50.0, 1e4, 5e5):
                if d == 2 and "ntk" in name.split("-")[-1]:
                    continue  # 0/0 in the formula
                config = {"head_dim": d, "rope_theta": base}
                expected, factor = oracle.frequencies(config, method(97), layer)
                theta = tuple(base ** (-2 * i / d) for i in range(d // 2))
                resolved = parse(fitted(spec, d // 2)).resolve(Span(T, 97)).at_layer(layer)
                scales = resolved.scales(Rotary(theta, base, T))
                ours = [own / scale for own, scale in zip(theta, scales, strict=True)]
                assert ours == pytest.approx(expected.tolist(), rel=1e-12)
                assert resolved.attention_factor() == pytest.approx(factor, rel=1e-12)


def test_ntk_of_one_pair_is_rope() -> None:
    assert parse("ntk:factor=8").scales(Rotary((1.0,), 1e4, T)) == [1.0]


@pytest.mark.parametrize("name", STRETCHED)
def test_factor_one_is_the_identity(name: str) -> None:
    rotary = Rotary(tuple(1e4 ** (-i / 8) for i in range(8)), 1e4, T)
    spec = parse(f"{name}:factor=1")
    assert spec.scales(rotary) == pytest.approx([1.0] * 8, rel=1e-15)
    assert spec.attention_factor() == 1


def transformers_inv_freq(rope: dict[str, Any], family: str = "llama-gqa") -> tuple[Tensor, float]:
    """What transformers itself computes for a family's model with these rope parameters."""
    config = random_model(family).config
    config.rope_parameters = {**config.rope_parameters, **rope}
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": T,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": T}


@pytest.mark.parametrize("family", ["llama-gqa", "glm-interleaved-partial", "phi-partial-outside"])
@pytest.mark.parametrize(
    ("spec", "rope"),
    [
        ("pi:factor=8", {"rope_type": "linear", "factor": 8.0}),
        ("yarn:factor=8", YARN),
        (
            "yarn:factor=8,beta_fast=4,beta_slow=0.5",
            YARN | {"beta_fast": 4.0, "beta_slow": 0.5},
        ),
        ("llama3:factor=8", LLAMA3),
        (
            "llama3:factor=8,low_freq_factor=0.5,high_freq_factor=6",
            LLAMA3 | {"low_freq_factor": 0.5, "high_freq_factor": 6.0},
        ),
    ],
)
def test_published_by_transformers(spec: str, rope: dict[str, Any], family: str) -> None:
    """Frequencies agree to four float32 roundings (2.4e-7), theirs being float32 throughout."""
    expected, factor = transformers_inv_freq(rope, family)
    model, own = random_model(family), random_model(family).base_model.rotary_emb.inv_freq
    with ctxext.patched(model, spec):
        rotary = model.base_model.rotary_emb
        torch.testing.assert_close(rotary.inv_freq, expected, rtol=2.4e-7, atol=0)
        assert rotary.attention_scaling == pytest.approx(factor, rel=1e-12)
        assert rotary.inv_freq.dtype == torch.float32
        assert not torch.equal(rotary.inv_freq, own)


@pytest.mark.parametrize("keep", [0.25, 0.3, 0.75, 1.0])
def test_p_rope_is_that_of_transformers(keep: float) -> None:
    """Bit for bit."""
    if "proportional" not in ROPE_INIT_FUNCTIONS:
        pytest.skip("this transformers has no `proportional`")
    rope = {"rope_type": "proportional", "partial_rotary_factor": keep}
    expected, factor = transformers_inv_freq(rope)
    model = random_model()
    with ctxext.patched(model, f"p-rope:keep={keep}"):
        assert torch.equal(model.model.rotary_emb.inv_freq, expected)
        assert model.model.rotary_emb.attention_scaling == factor == 1
    assert int((expected == 0).sum()) == 8 - int(8 * keep)


@pytest.mark.parametrize("family", ["llama-gqa", "glm-interleaved-partial", "phi-partial-outside"])
@pytest.mark.parametrize("length", [T - 1, T, T + 1, 8 * T])
def test_longrope_is_that_of_transformers(length: int, family: str) -> None:
    """As its own forward has it, by a sequence of that length, attention factor and all."""
    model = random_model(family)
    pairs = pairs_of(model)
    lists = {"short_factor": SHORT[:pairs], "long_factor": LONG[:pairs]}
    rope = {"rope_type": "longrope", "factor": max(1.0, length / T), **lists}
    config = random_model(family).config
    config.rope_parameters = {**config.rope_parameters, **rope}
    config.rope_parameters["original_max_position_embeddings"] = T
    init = ROPE_INIT_FUNCTIONS["longrope"]
    expected, factor = init(config, torch.device("cpu"), seq_len=length)
    with ctxext.patched(model, fitted("longrope", pairs), length):
        rotary = model.base_model.rotary_emb
        torch.testing.assert_close(rotary.inv_freq, expected, rtol=2.4e-7, atol=0)
        assert rotary.attention_scaling == pytest.approx(factor, rel=1e-12)
        assert (factor > 1) == (length > T)


@pytest.mark.parametrize("settings", [{"floor": T, "scale": 0.1}, {"floor": 7, "scale": 0.5}])
def test_llama4_is_that_of_transformers(settings: dict[str, Any]) -> None:
    """As Ministral 3 has it, whose positions begin at 0."""
    theirs = pytest.importorskip("transformers.models.ministral3.modeling_ministral3")
    positions = torch.arange(8 * T)[None]
    scale = theirs.get_llama_4_attn_scale(positions, settings["scale"], settings["floor"])
    ours = REGISTRY.get("llama4")(**settings).scale_on(positions[0].double() + 1, T, 8)
    torch.testing.assert_close(ours.float(), scale[0, 0, :, 0], rtol=2.4e-7, atol=0)


def test_entropy_abf_is_a_larger_base_with_log_n() -> None:
    """A base of 8 times the model's, and scores × max(1, ln n/ln T), of the unscaled model."""
    model, ids = shake(random_model()), tokens(97)
    config = model.config.to_dict()
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 80000.0}
    method = {"T": T, "scales": [("logn", {"clip": True})]}
    truth = oracle.token_nll(model.state_dict(), config, ids[0].tolist(), method)
    with ctxext.patched(model, "ntk-old:factor=8+logn"):
        assert_nll(nll(model, ids), truth)


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("length", [T, T + 1, 8 * T])
def test_dynamic_ntk_is_that_of_transformers(length: int, factor: float) -> None:
    """The base of a whole sequence of that length, at each of its tokens and under all its keys."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": factor}
    theirs, model, ids = random_model(rope_parameters=rope), random_model(), tokens(length)
    with torch.no_grad():
        whole = theirs(ids, use_cache=False).logits
        with ctxext.patched(model, f"dynamic-ntk:factor={factor}", length):
            bits = model.model.rotary_emb.inv_freq.clone()
            ours, cache = [], None
            for some in ids.split([length - 3, 1, 1, 1], 1):
                out = model(some, **{CACHE: cache})
                ours.append(out.logits)
                cache = out[CACHE]
                assert torch.equal(model.model.rotary_emb.inv_freq, bits)
    torch.testing.assert_close(bits, theirs.model.rotary_emb.inv_freq, rtol=2.4e-7, atol=0)
    assert_close_logits(torch.cat(ours, 1), whole)


def assert_close_logits(ours: Tensor, truth: Tensor) -> None:
    assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize(
    ("spec", "base"),
    [
        ("ntk:factor=8", 10000.0 * 8 ** (16 / 14)),
        ("ntk-old:factor=8", 80000.0),
        ("abf:base=80000", 80000.0),
        ("abf:base=500", 500.0),
    ],
)
def test_another_base(spec: str, base: float) -> None:
    rope = {"rope_type": "default", "rope_theta": base}
    expected = random_model(rope_parameters=rope).model.rotary_emb.inv_freq
    model = random_model()
    with ctxext.patched(model, spec):
        torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected, rtol=2.4e-7, atol=0)


def test_beta_radix_ends_at_its_neighbours() -> None:
    rotary = Rotary(tuple(1e4 ** (-i / 8) for i in range(8)), 1e4, T)
    for b, name in ((1, "ntk-fixed"), (0, "pi")):
        radix = parse(f"beta-radix:factor=8,b={b}").scales(rotary)
        assert radix == pytest.approx(parse(f"{name}:factor=8").scales(rotary), rel=1e-14)


@pytest.mark.parametrize("spec", ["logn", "logn:power=0.5", "mscale", "llama4", "infoscale"])
def test_query_scales_are_exactly_the_identity_up_to_the_trained_length(spec: str) -> None:
    model, ids = random_model(), tokens(T + 1)
    plain = model(ids).logits
    with ctxext.patched(model, spec):
        ours = model(ids).logits
    assert torch.equal(ours[:, :T], plain[:, :T])
    assert not torch.equal(ours[:, T], plain[:, T])


# Defaults ----------------------------------------------------------------------------------------

SPANS = [
    (trained, max(2, length))
    for trained in (4, 5, 32, 33, 512, 4096)
    for length in (2, trained - 1, trained, trained + 1, 2 * trained, 8 * trained - 1, 99 * trained)
]


@pytest.mark.parametrize("name", STRETCHED)
def test_default_factor(name: str) -> None:
    for trained, length in SPANS:
        resolved = parse(name).resolve(Span(trained, length))
        assert resolved.methods[0].factor == oracle.default_factor(length, trained)
    assert parse(f"{name}:factor=3").resolve(Span(32, 320)) == parse(f"{name}:factor=3")


def test_default_windows_and_leak() -> None:
    for trained, length in SPANS:
        near = parse("rerope").resolve(Span(trained, length)).methods[0]
        assert near.window == oracle.default_rerope_window(trained)
        assert parse("rerope").resolve(Span(trained)).methods[0] == near  # needs no length
        far = parse("leaky-rerope").resolve(Span(trained, length)).methods[0]
        assert far.window == oracle.default_leaky_window(trained)
        assert far.leak == oracle.default_leak(length, trained, far.window)
        window = max(1, trained // 3)
        far = parse(f"leaky-rerope:window={window}").resolve(Span(trained, length)).methods[0]
        assert far.window == window
        assert far.leak == oracle.default_leak(length, trained, window)
    kept = parse("leaky-rerope:window=30,leak=2.5")
    assert kept.resolve(Span(32)) == kept


def test_no_default_leak_for_a_window_of_half() -> None:
    """From w = T/2 on no leak keeps far keys within T/2; up to L = w + 1 there is no far key."""
    assert parse("leaky-rerope:window=16").resolve(Span(32, 17)).methods[0].leak == 1
    for window, length in ((16, 18), (40, 400)):
        with pytest.raises(UsageError, match=rf"window {window}.*give leak, or window < T/2"):
            parse(f"leaky-rerope:window={window}").resolve(Span(32, length))


NEEDS_LENGTH = dict.fromkeys(STRETCHED, "factor") | {
    "dynamic-ntk": "sequence",
    "inv-leaky-rerope": "expansion",
    "jet-long": "group",
    "jet-long-freq": "factor",
    "leaky-rerope": "leak",
    "longrope": "sequence",
    "self-extend": "group",
}


@pytest.mark.parametrize("name", names())
def test_defaults_without_a_length(name: str) -> None:
    model = random_model()
    if name not in NEEDS_LENGTH:
        with ctxext.patched(model, name) as handle:
            assert "None" not in handle.spec.full()
        return
    with pytest.raises(UsageError, match=rf"{NEEDS_LENGTH[name]}.*length.*give length= or"):
        ctxext.patch(model, fitted(name, 8))
    with ctxext.patched(model, fitted(name, 8), 97) as handle:
        assert f"{NEEDS_LENGTH[name]}=" in handle.spec.full()
        assert parse(handle.spec.full()) == handle.spec


def test_default_groups_chunks_and_sinks() -> None:
    for trained, length in SPANS:
        span = Span(trained, length)
        extended = parse("self-extend").resolve(span).methods[0]
        assert extended.window == trained // 4
        assert extended.group == oracle.default_group(length, trained, extended.window)
        chunked = parse("dca").resolve(span)
        s = 3 * trained // 4
        assert chunked.full() == str(parse(f"dca:chunk={s},local={trained - s},reach={trained}"))
        assert parse("window").resolve(span) == parse(f"window:window={trained}")
        assert parse("lm-infinite").resolve(span) == parse(f"lm-infinite:window={trained}")
        jet = parse("jet-long").resolve(span).methods[0]
        assert jet.window == max(1, trained // 16)
        assert (jet.group - 1) * trained < length <= jet.group * trained
        assert oracle.effective_positions(
            min(length, 999), distance("jet-long", window=jet.window, group=jet.group)(0)
        ).max() < max(trained, 2)
        kept = max(1, trained - 4)
        assert parse("streaming").resolve(span) == parse(f"streaming:window={kept}")
        inverse = parse("inv-leaky-rerope").resolve(span).methods[0]
        assert inverse.expansion == oracle.default_factor(length, trained)
        assert inverse.window == trained // 4


def test_groups_and_chunks_that_cannot_be() -> None:
    assert parse("self-extend:window=40").resolve(Span(32, 40)).methods[0].group == 1
    with pytest.raises(UsageError, match=r"window 40.*give group, or window < T"):
        parse("self-extend:window=40").resolve(Span(32, 41))
    shifts = [parse("string").resolve(Span(512, n)).methods[0] for n in (512, 700, 940, 4096)]
    assert [(m.shift, m.local) for m in shifts] == [(168, 128), (316, 128), (512, 128), (512, 128)]
    with pytest.raises(UsageError, match=r"local 11 is above 10: give a smaller local, or shift"):
        parse("string:local=11").resolve(Span(32))
    for text in ("dca:chunk=32", "dca:chunk=40,local=3"):
        with pytest.raises(UsageError, match=r"chunk \d+ is not below 32: give a smaller chunk"):
            parse(text).resolve(Span(32, 400))


def test_train_len_replaces_the_trained_length() -> None:
    model = random_model()
    with ctxext.patched(model, "yarn+leaky-rerope", 256, train_len=64) as handle:
        assert handle.spec.full() == (
            "yarn:factor=4,beta_fast=32,beta_slow=1+leaky-rerope:window=16,leak=15"
        )
    with ctxext.patched(model, "yarn+leaky-rerope", 256) as handle:
        assert handle.spec.full() == (
            "yarn:factor=8,beta_fast=32,beta_slow=1+leaky-rerope:window=8,leak=31"
        )


# Specs as text -----------------------------------------------------------------------------------


def values(kind: str, below: float) -> st.SearchStrategy[Any]:
    """Values for a parameter of this declared type."""
    if kind.startswith("bool"):
        return st.booleans()
    if kind.startswith("Count"):
        return st.integers(0, 2**31 - 1)
    if kind.startswith("Literal"):
        return st.sampled_from(ast.literal_eval(kind.removeprefix("Literal")))
    if kind.startswith("str"):
        return st.sampled_from(["@lists.json", "@a/b c#0123456789ab", "@@"])
    if kind.startswith("int"):
        return st.integers(1, 2**31 - 1)
    return st.one_of(st.floats(0, below), st.floats(1, 64), st.integers(1, 10**6).map(float))


@st.composite
def methods(draw: st.DrawFn, below: float) -> Method:
    cls = REGISTRY.get(draw(st.sampled_from(names())))
    chosen = {
        f.name: draw(values(str(f.type), below))
        for f in dataclasses.fields(cls)
        if draw(st.booleans())
    }
    try:
        return cls(**chosen)
    except UsageError:
        return assume(False)


def is_a_spec(found: list[Method]) -> bool:
    rules = sum(isinstance(m, AttentionRule) for m in found)
    distances = sum(isinstance(m, Distance) for m in found)
    layers = any(isinstance(m, Stretch) and m.layers for m in found)
    return distances + rules < 2 and not (layers and distances)


def specs(below: float) -> st.SearchStrategy[Spec]:
    found = st.lists(methods(below), min_size=1, max_size=4).filter(is_a_spec)
    return found.map(lambda found: Spec(tuple(found)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(specs(1e15))
def test_specs_round_trip(spec: Spec) -> None:
    for text in (str(spec), spec.full()):
        again = parse(text)
        assert again == spec
        assert (str(again), again.full()) == (str(spec), spec.full())  # canonical
        assert parse(re.sub("([:,=+])", r" \1 ", text)) == spec
    assert len(str(spec)) <= len(spec.full())


@pytest.mark.parametrize("text", ["pi:factor=1e16", "pi:factor=1e+3+logn"])
def test_exponents_round_trip(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "canonical", "full"),
    [
        ("ntk", "ntk", "ntk"),
        ("ntk:factor=8.0", "ntk:factor=8", "ntk:factor=8"),
        ("ntk:factor=2.5", "ntk:factor=2.5", "ntk:factor=2.5"),
        ("rerope:window=4k+logn", "rerope:window=4096+logn", "rerope:window=4096+logn:clip=true"),
        (" logn : clip = TRUE ", "logn", "logn:clip=true"),
        ("logn:clip=false", "logn:clip=false", "logn:clip=false"),
        ("beta-radix:b=0.625", "beta-radix", "beta-radix:b=0.625"),
        ("beta-radix:b=.75,factor=12", "beta-radix:factor=12,b=0.75", None),
        ("yarn:beta_slow=2", "yarn:beta_slow=2", "yarn:beta_fast=32,beta_slow=2"),
        ("leaky-rerope:leak=8,window=128", "leaky-rerope:window=128,leak=8", None),
        ("rope", "rope", "rope"),
        ("logn:power=2", "logn:power=2", "logn:clip=true,power=2"),
        ("logn:power=1.0", "logn", "logn:clip=true"),  # which records of before `power` say
        ("mrrope:kind=pro", "mrrope", "mrrope:kind=pro,beta_fast=32,beta_slow=1"),
    ],
)
def test_canonical_text(text: str, canonical: str, full: str | None) -> None:
    assert str(parse(text)) == canonical
    assert parse(text).full() == (full or canonical)


VALID = ", ".join(sorted(ROWS))
MISTAKES = {
    "nkt": ["'nkt'", "did you mean 'ntk'?", VALID],
    "ntk+self_extend": ["'self_extend'", VALID],
    "": ["''", VALID],
    "ntk+": ["''", VALID],
    "base": ["'base'", VALID],
    "leaky_rerope": ["'leaky_rerope'", "did you mean 'leaky-rerope'?", VALID],
    "ntk:fctor=2": ["'fctor'", "did you mean 'factor'?", "valid: factor"],
    "leaky-rerope:factor=2": ["'factor'", "valid: ladder, leak, window"],
    "rope:factor=2": ["'factor'", "it takes none"],
    "ntk:": ["''", "'ntk:'", "name:key=value"],
    "ntk:factor": ["'factor'", "'ntk:factor'", "name:key=value"],
    "ntk:factor=": ["'factor='", "name:key=value"],
    "ntk:=8": ["'=8'", "name:key=value"],
    "ntk:factor=2,": ["''", "name:key=value"],
    "ntk:factor=2,factor=3": ["'factor'", "twice"],
    "ntk:factor=two": ["'two'", "'factor'", "finite number"],
    "ntk:factor=nan": ["'nan'", "'factor'", "finite number"],
    "ntk:factor=inf": ["'inf'", "'factor'", "finite number"],
    "rerope:window=1.5": ["'1.5'", "'window'", "whole number"],
    "rerope:window=0": ["'0'", "'window'", "whole number"],
    "rerope:window=-3": ["'-3'", "'window'", "whole number"],
    "rerope:window=2048m": ["'2048m'", "'window'", "whole number"],
    "logn:clip=yes": ["'yes'", "'clip'", "true or false"],
    "ntk:factor=0.5": ["0.5", "'factor'", "at least 1", "'ntk:factor=0.5'"],
    "leaky-rerope:leak=0.5": ["0.5", "'leak'", "at least 1"],
    "beta-radix:b=-1": ["-1", "'b'", "at least 0"],
    "beta-radix:factor=0": ["0", "'factor'", "at least 1"],
    "yarn:beta_slow=0": ["0", "'beta_slow'", "at least"],
    "yarn:beta_slow=1e-320": ["1e-320", "'beta_slow'", "at least 1e-6 turns"],
    "yarn:beta_fast=1e308": ["1e+308", "'beta_fast'", "at most 1e6 turns"],
    "yarn:beta_fast=1,beta_slow=2": ["1", "'beta_fast'", "beta_slow"],
    "self-extend:group=0": ["'0'", "'group'", "whole number"],
    "lm-infinite:sinks=-1": ["'-1'", "'sinks'", "whole number such as 5"],
    "dca:chunk=9,reach=9": ["9", "'chunk'", "below reach, 9"],
    "inv-leaky-rerope:expansion=0.5": ["0.5", "'expansion'", "at least 1"],
    "dynamic-ntk:factor=0.5": ["0.5", "'factor'", "at least 1"],
    "mrrope:kind=PRO": ["'PRO'", "'kind'", "one of: pro, uni"],
    "mrrope:beta_fast=1,beta_slow=2": ["1", "'beta_fast'", "beta_slow"],
    "string:shift=4,local=5": ["5", "'local'", "at most shift, 4"],
    "mscale:factor=0.5": ["0.5", "'factor'", "at least 1"],
    "p-rope:keep=0": ["0", "'keep'", "above 0, at most 1"],
    "p-rope:keep=1.5": ["1.5", "'keep'", "above 0, at most 1"],
    "cope:clip=0": ["'0'", "'clip'", "whole number"],
    "infoscale:dim=0": ["'0'", "'dim'", "whole number"],
    "mscale:power=0": ["0", "'power'", "from 0.01 to 10"],
    "llama4:scale=-1": ["-1", "'scale'", "from 0 to 100"],
    "logn:power=0": ["0", "'power'", "from 0.01 to 10"],
    "abf:base=1": ["1", "'base'", "from 1.1 to 1e15"],
    "llama3:low_freq_factor=4": ["4", "'high_freq_factor'", "above low_freq_factor"],
    "llama3:low_freq_factor=0": ["0", "'low_freq_factor'", "at least 1e-6"],
    "longrope:factors=a.json": ["'a.json'", "'factors'", "@ and the name of a JSON file"],
    "longrope:factors=@": ["'@'", "'factors'", "@ and the name of a JSON file"],
    "longrope:attention=0": ["0", "'attention'", "0.1 … 1e"],
    "window+streaming": ["window and streaming", "exclude each other"],
    "rerope+leaky-rerope": ["rerope and leaky-rerope", "exclude each other"],
    "rerope+rerope": ["rerope and rerope", "exclude each other"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    for part in MISTAKES[text]:
        assert part in message


def needs_resolving(name: str) -> bool:
    """Whether a method has parameters whose defaults depend on T or L."""
    method = REGISTRY.get(name)()
    try:
        return method.resolve(Span(T, 97)) != method
    except UsageError:  # no default at all
        return True


@pytest.mark.parametrize("kwargs", [{"window": 0}, {"window": -1}, {"window": 4, "leak": 0.5}])
def test_mistakes_in_python(kwargs: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="bad value"):
        REGISTRY.get("leaky-rerope")(**kwargs)


@pytest.mark.parametrize("name", [n for n in FREQUENCY + DISTANCE if needs_resolving(n)])
def test_unresolved_methods_refuse(name: str) -> None:
    method = REGISTRY.get(name)()
    with pytest.raises(UsageError, match="resolve"):
        method.parts() if isinstance(method, Distance) else method.scales(Rotary((1.0,), 100.0, T))


@pytest.mark.parametrize("text", ["ntk:factor=1e300", "dynamic-ntk:factor=1e300,sequence=97"])
def test_a_base_that_no_float_holds(text: str) -> None:
    """λ_i = k^(i/3) of four pairs are finite, and base·k^(8/6) is not."""
    model, ids = random_model(rope_theta=10000.0, head_dim=8), torch.arange(3, 40)[None]
    with ctxext.patched(model, text), torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
        found = model.model.rotary_emb.inv_freq
    assert found.tolist() == [1.0, 0.0, 0.0, 0.0]  # in float32


# LongRoPE's file ---------------------------------------------------------------------------------

GOOD = {"short_factor": [1.0] * 8, "long_factor": [1.5] * 8}
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "is not JSON"),
    "no text": (b"\xff\xfe\x00\x01", "is not JSON"),
    "too deep": (b"[" * 200_000, "is not JSON"),
    "too large": (b" " * (2**20 + 1), "more than 1048576 bytes"),
    "a list": (b"[]", "must hold an object with short_factor and long_factor"),
    "one list": (json.dumps({"short_factor": [1.0]}).encode(), "must hold an object with"),
    "more than lists": (json.dumps(GOOD | {"attention_factor": 2}).encode(), "and no more"),
    "no list": (json.dumps(GOOD | {"long_factor": 3}).encode(), "long_factor of .* must be a list"),
    "text": (json.dumps(GOOD | {"long_factor": ["\n"]}).encode(), r"long_factor\[0\] of .* is"),
    "true": (json.dumps(GOOD | {"long_factor": [True]}).encode(), "give numbers of 0.1"),
    "NaN": (json.dumps(GOOD | {"long_factor": [1, math.nan]}).encode(), r"\[1\] of .* is 'nan'"),
    "infinity": (json.dumps(GOOD | {"short_factor": [math.inf]}).encode(), "is 'inf'"),
    "zero": (json.dumps(GOOD | {"long_factor": [0]}).encode(), "is '0': give numbers of 0.1"),
    "below": (json.dumps(GOOD | {"long_factor": [-1e300]}).encode(), "give numbers of 0.1"),
    "a long number": (b'{"short_factor": [' + b"9" * 9999 + b'], "long_factor": []}', "JSON|give"),
    "too short": (json.dumps(GOOD | {"long_factor": [2.0] * 7}).encode(), "7 numbers.*8 pairs"),
    "too long": (json.dumps(GOOD | {"long_factor": [2.0] * 9}).encode(), "9 numbers.*8 pairs"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_of_factors(what: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[what]
    file = tmp_path / "lists.json"
    file.write_bytes(content)
    model, own = random_model(), random_model().model.rotary_emb.inv_freq
    with pytest.raises(UsageError, match=message) as caught:
        ctxext.patch(model, f"longrope:factors=@{file}", 97)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert torch.equal(model.model.rotary_emb.inv_freq, own)


@pytest.mark.parametrize("name", ["", "none.json", "nul\0.json", "x" * 5000])
def test_files_of_factors_that_are_not_there(name: str, tmp_path: Path) -> None:
    """Also a folder, for no name."""
    told = r"there is no file|cannot be read|File name too long|printable"
    with pytest.raises(UsageError, match=told):
        parse(f"longrope:factors=@{tmp_path}/{name}").resolve(Span(T, 97))


def test_configs_that_are_tried_are_not_warned_about() -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.modeling_rope_utils")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model = random_model()
        for length in (T, 97):
            with ctxext.patched(model, fitted("longrope", pairs_of(model)), length):
                pass
        assert heard == []
        logger.warning("still heard")
        assert heard == ["still heard"]
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def test_a_resolved_longrope_says_which_file_it_read(tmp_path: Path) -> None:
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(GOOD | {"type": "longrope"}))
    with pytest.raises(UsageError, match=r"no default factors: give factors=@FILE\.json"):
        parse("longrope").resolve(Span(T, 97))
    found = parse(f"longrope:factors=@{file}").resolve(Span(T, 97))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    attention = math.sqrt(1 + math.log(97 / T) / math.log(T))
    text = f"longrope:factors=@{file}#{digest},sequence=97,attention={attention!r}"
    assert found.full() == text
    assert parse(text) == parse(text).resolve(Span(T, 97)) == found
    rotary = Rotary(tuple(1e4 ** (-i / 8) for i in range(8)), 1e4, T)
    assert found.scales(rotary) == [1.5] * 8
    file.write_text(json.dumps(GOOD | {"long_factor": [3.0] * 8}))
    other = parse(f"longrope:factors=@{file}").resolve(Span(T, 97))
    assert other != found
    assert other.scales(rotary) == [3.0] * 8
    ctxext.patches.REGISTRY.get("longrope").scales.__globals__["_lists"].cache_clear()
    with pytest.raises(UsageError, match=rf"is not the file that it was.*leave out #{digest}"):
        parse(text).resolve(Span(T, 97))


# The registry and the docstrings -----------------------------------------------------------------


def test_names_are_the_files() -> None:
    files = {m.name for m in pkgutil.iter_modules(ctxext.patches.__path__)} - {
        "base",
        "files",
        "parts",
        "values",
    }
    assert names() == sorted(file.replace("_", "-") for file in files)
    assert ctxext.patches.names() == names()


@pytest.mark.parametrize("name", names())
def test_described(name: str) -> None:
    cls = REGISTRY.get(name)
    assert cls.__module__ == f"ctxext.methods.{name.replace('-', '_')}"
    text = cls.describe()
    kinds = {
        Frequency: "frequency",
        Distance: "distance",
        QueryScale: "query scale",
        AttentionRule: "attention rule",
    }
    assert text["kind"] == next(kind for base, kind in kinds.items() if issubclass(cls, base))
    assert text["name"] == cls.name == name
    for section in ("summary", "formula", "source", "inside_t", "beyond_t"):
        assert len(text[section]) > 5, section
        assert "\n" not in text[section]
    known = {"name", "kind", "summary", *(s.lower().replace(" ", "_") for s in SECTIONS)}
    assert set(text) <= known
    for field in dataclasses.fields(cls):
        assert re.search(rf"\b{field.name}\b", text["parameters"])
    assert str(cls()) == name  # all parameters have defaults


def test_describing_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from ctxext.patches import REGISTRY, names\n"
        "for n in names(): REGISTRY.get(n).describe(), str(REGISTRY.get(n)())\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@dataclasses.dataclass(frozen=True)
class Half(Frequency):
    """Angles halved.

    Formula: λ_i = 2
    """

    def scales(self, rotary: Rotary) -> list[float]:
        return [2.0] * len(rotary.theta)


def test_register() -> None:
    with mock.patch.dict(REGISTRY._found):
        assert ctxext.patches.register("half")(Half) is Half
        assert "half" in names()
        assert parse("half+logn").methods[0] == Half()
        ctxext.patches.register("half")(Half)  # the same class again, as on a reload
        model = random_model()
        own = model.model.rotary_emb.inv_freq.clone()
        with ctxext.patched(model, "half"):
            assert torch.equal(model.model.rotary_emb.inv_freq, own / 2)
        with pytest.raises(ValueError, match=r"method 'half' is registered twice"):
            ctxext.patches.register("half")(REGISTRY.get("pi"))
        assert REGISTRY.get("ntk-old") is not Half
        with pytest.raises(ValueError, match=r"method 'ntk-old' is the package's own"):
            ctxext.patches.register("ntk-old")(Half)
        assert REGISTRY.get("ntk-old") is not Half


@dataclasses.dataclass(frozen=True)
class LogNTwice(QueryScale):
    """Log-n, clipped, times log-n."""

    def scale(self, n: Tensor, trained: int) -> Tensor:
        plain = n.log() / math.log(trained)
        return plain.clamp(min=1) * plain


def test_query_scales_multiply() -> None:
    model, ids = random_model(), tokens(97)
    with mock.patch.dict(REGISTRY._found):
        ctxext.patches.register("logn-twice")(LogNTwice)
        found = []
        for spec in ("logn-twice", "logn+logn:clip=false", "logn:clip=false+rerope:window=97+logn"):
            with ctxext.patched(model, spec):
                found.append(nll(model, ids))
    assert_nll(found[1], found[0])
    assert_nll(found[2], found[0])


def test_register_refuses_the_name_of_a_file_not_imported_yet() -> None:
    fresh: Registry[Method] = Registry("method", "ctxext.methods", private=("base",))
    with pytest.raises(ValueError, match="'pi'"), mock.patch.object(Half, "name", "", create=True):
        fresh.register("pi")(Half)


@pytest.mark.parametrize(
    "spec",
    [
        "longrope:factors=@two\nlines.json",
        "longrope:factors=@nul\0.json",
        "inv-leaky-rerope:expansion=1e308",
    ],
)
def test_values_that_no_method_can_use(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(spec).resolve(Span(512, 4096))
    assert re.search(r"bad value .* must be [^\n]*$", str(caught.value))
    assert "\n" not in str(caught.value)
