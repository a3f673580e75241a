"""A model's own rope scaling, kept and replaced, against tables made by hand and stock models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import oracle
import pytest
import torch
import transformers
from conftest import SETTINGS, tokens
from families import tiny_model
from torch import Tensor

import ctxext
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.models.frequency_sets import find_frequency_sets, length_class
from ctxext.models.trained import explain_trained, trained_length

T, DECLARED, L, BASE = 32, 128, 150, 10000.0
BEFORE = {"original_max_position_embeddings": T}
YARN = {"rope_type": "yarn", "factor": 4.0, **BEFORE}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 1.3}
LISTS = {"short_factor": [1 + i / 9 for i in range(8)], "long_factor": [1.0 + i for i in range(8)]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OWN: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {**LLAMA3, **BEFORE, "factor": 4.0},
    "yarn": YARN,
    "yarn-mscale": {**YARN, **MSCALE, "truncate": False},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {"rope_type": "longrope", **LISTS, **BEFORE},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    "latent": {**YARN, **MSCALE},
    "latent-v2": {**YARN, "mscale_all_dim": 1.0},
}
BY_LENGTH = ("dynamic", "longrope")
LATENT = {"head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 2, "q_lora_rank": None}
LATENT |= {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
CLASSES = {"latent": "DeepseekV3", "latent-v2": "DeepseekV2"}


def made(name: str, rope: dict[str, Any] | None = None) -> Any:
    """A random model that declares DECLARED tokens, with a scaling of OWN or another rope."""
    kind = CLASSES.get(name, "Llama")
    rope = {"rope_theta": BASE, **(OWN[name] if rope is None else rope)}
    settings = {**SETTINGS, "max_position_embeddings": DECLARED, "rope_parameters": rope}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**settings, **(LATENT if kind != "Llama" else {})}
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor, **given: Any) -> Tensor:
    return model(ids, **given).logits


def pairs(name: str) -> int:
    return 4 if name in CLASSES else 8


def default(name: str) -> Tensor:
    """θ_i = base^(−2i/d) [d/2]; of proportional rotation the second half stands still."""
    theta = BASE ** (-torch.arange(pairs(name), dtype=torch.float64) / pairs(name))
    return theta.where(torch.arange(len(theta)) < 4, 0.0) if name == "proportional" else theta


def yarn(count: int, k: float, trained: int, truncate: bool = True) -> Tensor:
    """YaRN's λ [d/2]."""
    if truncate:
        return oracle.yarn_lambda(2 * count, BASE, trained, k, 32.0, 1.0)
    ends = (count * math.log(trained / (2 * math.pi * r)) / math.log(BASE) for r in (32.0, 1.0))
    low, high = (min(max(end, 0.0), 2 * count - 1.0) for end in ends)
    slow = ((torch.arange(count, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return 1 / (slow / k + 1 - slow)


def sharper(k: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(k) + 1


def by_hand(name: str, length: int) -> tuple[Tensor, float, float]:
    """θ [d/2], the attention factor, and what scores are multiplied by besides, of OWN."""
    rope, theta = OWN[name], default(name)
    k, factor, scores = rope.get("factor", DECLARED / T), 1.0, 1.0
    if name in ("linear", "proportional"):
        theta = theta / k
    elif name == "llama3":
        theta = theta / oracle.llama3_lambda(theta, T, k, 1.0, 4.0)
    elif name == "dynamic":
        stretch = max(1.0, k * length / DECLARED - (k - 1))
        theta = theta / stretch ** (torch.arange(8, dtype=torch.float64) / 7)
    elif name == "longrope":
        theta = theta / torch.tensor(rope["long_factor" if length > T else "short_factor"])
        factor = math.sqrt(1 + math.log(k) / math.log(T))
    else:
        theta = theta / yarn(pairs(name), k, T, rope.get("truncate", True))
        factor = sharper(k)
        if "mscale" in rope:
            factor = sharper(k, rope["mscale"]) / sharper(k, rope["mscale_all_dim"])
        if name in CLASSES:
            scores = sharper(k, rope["mscale_all_dim"]) ** 2
    return theta, factor, scores


def hand_logits(name: str, ids: Tensor, theta: Tensor, factor: float, scores: float) -> Tensor:
    """A float64 model without any scaling whose tables are these, and its scores multiplied."""
    model = made(name, {"rope_type": "default"}).double()
    for layer in model.model.layers:
        layer.self_attn.scaling *= scores
    angles = torch.arange(ids.shape[1], dtype=torch.float64)[:, None] * theta
    if name == "latent-v2":
        tables: Any = torch.polar(torch.full_like(angles, factor), angles)[None]
    else:
        tables = tuple(table.repeat(1, 2)[None] * factor for table in (angles.cos(), angles.sin()))
    with mock.patch.object(model.model.rotary_emb, "forward", return_value=tables):
        return logits(model, ids)


def close(ours: Tensor, wanted: Tensor) -> None:
    """Float32 against float64: θ is off by 4e-6 of itself at most, which are 6e-4 radians at L."""
    assert (ours - wanted).abs().max() <= 2e-3 * wanted.abs().max()


LAMBDAS: dict[str, Callable[[int, int], Tensor | float]] = {  # by d/2 and T
    "ntk:factor=4": lambda n, _: 4.0 ** (torch.arange(n, dtype=torch.float64) / (n - 1)),
    "yarn:factor=4": lambda n, trained: yarn(n, 4.0, trained),
    "pi:factor=2+yarn:factor=3": lambda n, trained: 2 * yarn(n, 3.0, trained),
    "logn": lambda *_: 1.0,
}
FACTORS = {"yarn:factor=4": sharper(4.0), "pi:factor=2+yarn:factor=3": sharper(3.0)}


@pytest.mark.parametrize("name", OWN)
def test_kept_tables_are_those_made_by_hand(name: str) -> None:
    model, ids = made(name), tokens(L)
    theta, factor, scores = by_hand(name, L)
    close(logits(made(name), ids), hand_logits(name, ids, theta, factor, scores))
    for spec, scale in LAMBDAS.items():
        wanted, whole = theta / scale(len(theta), DECLARED), factor * FACTORS.get(spec, 1.0)
        with ctxext.patched(model, spec, L) as handle:
            rotary = model.model.rotary_emb
            torch.testing.assert_close(rotary.inv_freq.double(), wanted, rtol=5e-6, atol=0)
            assert rotary.attention_scaling == pytest.approx(whole, rel=5e-6)
            if spec != "logn":
                close(logits(model, ids), hand_logits(name, ids, wanted, whole, scores))
            assert f"stays in force under {spec}" in handle.notes[0]
            assert f"{DECLARED} tokens" in handle.notes[0]


NTK = {"rope_type": "default", "rope_theta": BASE * 4 ** (16 / 14)}
STOCK: dict[str, Callable[[str], dict[str, Any]]] = {
    "ntk:factor=4": lambda n: {**NTK, "rope_theta": BASE * 4 ** (pairs(n) / (pairs(n) - 1))},
    "pi:factor=4": lambda _: {"rope_type": "linear", "factor": 4.0},
    "yarn:factor=4": lambda n: {
        **YARN,
        "original_max_position_embeddings": before(n),
        **variant(n),
    },
    "yarn:factor=40": lambda n: {**STOCK["yarn:factor=4"](n), "factor": 40.0},
}


def before(name: str) -> int:
    """T of what had no scaling yet."""
    return T if "original_max_position_embeddings" in OWN[name] else DECLARED


def variant(name: str) -> dict[str, Any]:
    own = OWN[name] if OWN[name]["rope_type"] == "yarn" else {}
    return {key: own[key] for key in (*MSCALE, "truncate") if key in own}


@pytest.mark.parametrize("name", [name for name in OWN if name != "proportional"])
def test_replaced_is_the_stock_model_of_that_rope(name: str) -> None:
    """Logits differ by nothing; an L that yarn's factor does not reach is said in another way."""
    model, ids = made(name), tokens(L)
    own = logits(model, ids)
    for spec, rope in STOCK.items():
        stock = logits(made(name, rope(name)), ids)
        for length in (before(name) * int(spec.partition("=")[2]), L):
            with ctxext.patched(model, spec, length, own_scaling="replace") as handle:
                ours = logits(model, ids)
            close(ours, stock)
            assert (ours - stock).abs().max() <= (0 if length != L else 1e-3)
            assert f"replaced by {spec}" in handle.notes[0]
            assert f"{before(name)} tokens" in handle.notes[0]
        if name.startswith(("yarn", "latent")) and spec == "yarn:factor=4":
            assert torch.equal(ours, own) or (ours - own).abs().max() <= 1e-3
    plain = made(name, {"rope_type": "default"})
    for spec in ("rerope:window=9", "logn", "ntk:factor=2+rerope:window=9+logn"):
        given = {"train_len": 40}
        on = ctxext.patched(model, spec, L, own_scaling="replace", **given)
        with on, ctxext.patched(plain, spec, L, **given):
            assert torch.equal(logits(model, ids), logits(plain, ids))
    if name not in BY_LENGTH:
        assert torch.equal(logits(model, ids), own)


def test_proportional_rotation_is_replaced_by_itself_without_a_factor() -> None:
    model, ids = made("proportional"), tokens(L)
    plain = made("proportional", {**OWN["proportional"], "factor": 1.0})
    for spec in ("ntk:factor=4", "logn"):
        with ctxext.patched(model, spec, L, own_scaling="replace"), ctxext.patched(plain, spec, L):
            assert torch.equal(logits(model, ids), logits(plain, ids))


def test_a_kind_of_layers_with_a_scaling_of_its_own() -> None:
    """Gemma 3's: the layers of one kind are scaled, the others have another base."""
    local = {"rope_type": "default", "rope_theta": 100.0}
    scaled = {"rope_type": "linear", "rope_theta": BASE, "factor": 8.0}
    rope = {"sliding_attention": local, "full_attention": scaled}
    model = tiny_model("gemma3_text", rope_parameters=rope, sliding_window=16)
    stock = {"linear": {**scaled, "factor": 16.0}, "plain": {**scaled, "factor": 2.0}}
    for own, name in (("keep", "linear"), ("replace", "plain")):
        wanted = tiny_model(
            "gemma3_text",
            rope_parameters={**rope, "full_attention": stock[name]},
            sliding_window=16,
        )
        with ctxext.patched(model, "pi:factor=2", L, own_scaling=own):
            rotary, other = model.model.rotary_emb, wanted.model.rotary_emb
            assert torch.equal(rotary.sliding_attention_inv_freq, other.sliding_attention_inv_freq)
            # under keep λ is divided by once more
            torch.testing.assert_close(
                rotary.full_attention_inv_freq, other.full_attention_inv_freq, rtol=5e-6, atol=0
            )
            close(logits(model, tokens(90)), logits(wanted, tokens(90)))


def test_what_attention_reads_of_a_replaced_scaling_is_gone() -> None:
    """Ministral's queries grow beyond the original length by a number beside the rope's."""
    own = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
    model = tiny_model("ministral3", rope_parameters={"rope_theta": BASE, **own}, head_dim=16)
    gone = {**own, **NTK, "llama_4_scaling_beta": 0.0}
    stock, ids = tiny_model("ministral3", rope_parameters=gone, head_dim=16), tokens(90)
    before = logits(model, ids)
    with ctxext.patched(model, "ntk:factor=4", L, own_scaling="replace"):
        assert torch.equal(logits(model, ids), logits(stock, ids))
    assert torch.equal(logits(model, ids), before)


# Scalings that go by the length ------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_rope_is_the_stock_model(name: str) -> None:
    """Bit for bit; with a length it has the tables of one forward over so many tokens."""
    for own, n in itertools.product(("keep", "replace"), (20, T, T + 1, DECLARED, DECLARED + 1, L)):
        ids, model = tokens(n), made(name)
        with ctxext.patched(model, "rope", own_scaling=own) as handle:
            assert torch.equal(logits(model, ids), logits(made(name), ids))
        logits(model, tokens(L + 9))
        with ctxext.patched(model, "rope", n, own_scaling=own) as pinned:
            short = logits(model, ids[:, :9])
            assert torch.equal(logits(model, ids), logits(made(name), ids))
            assert torch.equal(logits(model, ids[:, :9]), short)
        assert handle.notes == pinned.notes == []


@pytest.mark.parametrize("name", BY_LENGTH)
@pytest.mark.parametrize("spec", ["rope", "ntk:factor=4", "rerope:window=9", "logn"])
def test_no_number_depends_on_what_else_is_read(name: str, spec: str) -> None:
    """Before, after or beside; in parts, and row by row: tables are those of L throughout."""
    ids = tokens(L, 2)
    model = made(name)
    with ctxext.patched(model, spec, L):
        alone = logits(model, ids[:1])
    logits(model, tokens(L + 50))
    with ctxext.patched(model, "pi:factor=2", 2 * L):
        logits(model, tokens(2 * L))
    logits(model, tokens(5))
    with ctxext.patched(model, spec, L):
        assert torch.equal(logits(model, ids[:1]), alone)
        mask = torch.ones_like(ids)
        mask[1, :-9] = 0  # a short row, padded on its left, beside the long one
        padded = ids.where(mask.bool(), 0)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        both = logits(model, padded, attention_mask=mask, position_ids=positions)
        row = logits(model, ids[1:, -9:])
        torch.testing.assert_close(both[1, -9:], row[0], rtol=0, atol=2e-4)
        torch.testing.assert_close(both[:1], alone, rtol=0, atol=2e-4)
        first = model(ids[:1, :20], use_cache=True)
        rest = model(ids[:1, 20:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(rest, alone[:, 20:], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_method_asks_for_the_length(name: str) -> None:
    model = made(name)
    for spec in ("logn", "pi:factor=2", "rerope:window=9"):
        with pytest.raises(UsageError, match=f"own {name} rope scaling.*give length="):
            ctxext.patch(model, spec)
        ctxext.patch(model, spec, own_scaling="replace").remove()


def test_lengths_with_the_same_frequencies() -> None:
    lengths = (2, T, T + 1, DECLARED, DECLARED + 1, L)
    for name, kinds in {"dynamic": [0, 0, 0, 0, 1, 2], "longrope": [0, 0, 1, 1, 1, 1]}.items():
        found = [length_class(made(name), n) for n in lengths]
        assert [sorted(set(found)).index(x) for x in found] == kinds
        with ctxext.patched(model := made(name), "rope", L):
            assert length_class(model, L) is None
    assert length_class(made("yarn"), L) is None


# The trained length ------------------------------------------------------------------------------

LENGTHS: list[tuple[dict[str, Any], tuple[int, str], tuple[int, str]]] = [
    (
        {**LLAMA3, **BEFORE},
        (256, "32 × factor 8 of the config's llama3 scaling"),
        (T, "original_max_position_embeddings"),
    ),
    (
        OWN["longrope"],
        (DECLARED, "max_position_embeddings"),
        (T, "original_max_position_embeddings"),
    ),
    (YARN, (DECLARED, "max_position_embeddings"), (T, "original_max_position_embeddings")),
    (
        {**YARN, "factor": 2.5},
        (DECLARED, "max_position_embeddings"),
        (T, "original_max_position_embeddings"),
    ),
    (OWN["linear"], (DECLARED, "max_position_embeddings"), (DECLARED, "max_position_embeddings")),
    (
        {"rope_type": "default"},
        (DECLARED, "max_position_embeddings"),
        (DECLARED, "max_position_embeddings"),
    ),
    (
        {"full_attention": {**YARN, "factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
        (256, "32 × factor 8 of the config's yarn scaling"),
        (T, "original_max_position_embeddings"),
    ),
]


@pytest.mark.parametrize(("rope", "keep", "replace"), LENGTHS)
def test_the_trained_length(rope: Any, keep: tuple[int, str], replace: tuple[int, str]) -> None:
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=DECLARED, model_type="x")
    config.get_text_config = lambda: config
    assert explain_trained(config) == keep
    assert explain_trained(config, "replace") == replace
    assert trained_length(config) == keep[0]
    assert explain_trained(config, "keep", 77) == (77, "--train-len")
    with pytest.raises(UsageError, match="bad own_scaling 'both': valid: keep, replace"):
        explain_trained(config, "both")


def test_the_trained_length_beside_the_rope_or_alone() -> None:
    phi = transformers.Phi3Config(
        max_position_embeddings=DECLARED, original_max_position_embeddings=T, hidden_size=64,
        num_attention_heads=4, rope_parameters={"rope_theta": BASE, **OWN["longrope"]},
    )  # fmt: skip
    assert (trained_length(phi), trained_length(phi, "replace")) == (DECLARED, T)
    alone = SimpleNamespace(rope_parameters=None, original_max_position_embeddings=T)
    alone.get_text_config, alone.model_type = lambda: alone, "x"
    assert trained_length(alone) == T
    del alone.original_max_position_embeddings
    with pytest.raises(UnsupportedModelError, match="names no trained length"):
        trained_length(alone)


def test_facts_are_those_that_methods_start_from() -> None:
    for name in OWN:
        for length in (T, L):
            (source,) = find_frequency_sets(made(name), length=length)
            theta, factor, _ = by_hand(name, length)
            assert source.facts.theta == pytest.approx(theta.tolist(), rel=5e-6)
            assert source.start.factor == pytest.approx(factor)
        (source,) = find_frequency_sets(made(name), own_scaling="replace")
        assert source.facts.theta == pytest.approx(default(name).tolist(), rel=5e-6)
        assert source.facts.trained == before(name)


def test_own_scaling_is_keep_or_replace() -> None:
    for wrong in ("drop", "", None):
        with pytest.raises(UsageError, match=f"bad own_scaling {wrong!r}: valid: keep, replace"):
            ctxext.patch(made("yarn"), "pi", L, own_scaling=wrong)
