"""The oracle against transformers' own Llama, and against itself where two methods must agree."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import oracle
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.quick

T, L = 64, 160
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {"num_key_value_heads": 2},
    "mha": {"num_key_value_heads": 4},
    "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "head-dim": {"num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-3},
}


def build(layers: int = 2, theta: float = 10000.0, **changes: Any) -> LlamaForCausalLM:
    """A random float64 model whose attention is sharp enough for positions to matter."""
    rope = {"rope_type": "default", "rope_theta": theta, **changes.pop("rope", {})}
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=T, initializer_range=0.2,
        rope_parameters=rope, attn_implementation="eager", **changes,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    return model


def double_nll(ids: list[int], **changes: Any) -> torch.Tensor:
    """transformers' own per-token NLL, with its float32 islands (angles, norms) in float64 too."""
    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64), torch.no_grad():
        model = build(**changes)
        assert model.model.rotary_emb.inv_freq.dtype == torch.float64
        out = model(torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(out[:-1], torch.tensor(ids[1:]), reduction="none")


def nll(ids: list[int], method: dict[str, Any], **changes: Any) -> torch.Tensor:
    """The oracle's NLL of the same model."""
    model = build(**changes)
    return oracle.token_nll(model.state_dict(), model.config.to_dict(), ids, method)


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(97, (L,), generator=torch.Generator().manual_seed(1)).tolist()


def same(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
def test_rope_is_transformers(shape: str, ids: list[int]) -> None:
    ours = nll(ids, {}, **SHAPES[shape])
    assert ours.dtype == torch.float64
    assert ours.shape == (L - 1,)
    same(ours, double_nll(ids, **SHAPES[shape]))


def test_saved_folder(tmp_path: Path, ids: list[int]) -> None:
    model = build(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    same(oracle.token_nll(*oracle.load(tmp_path), ids, {}), nll(ids, {}, tie_word_embeddings=True))


@pytest.mark.parametrize("factor", [2.5, 8.0])
def test_pi_is_transformers_linear(factor: float, ids: list[int]) -> None:
    ours = nll(ids, {"frequency": [("pi", {"factor": factor})]})
    same(ours, double_nll(ids, rope={"rope_type": "linear", "factor": factor}))


@pytest.mark.parametrize("betas", [{}, {"beta_fast": 4.0, "beta_slow": 0.5}])
@pytest.mark.parametrize("trained", [T, 4096, 10**7])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_yarn_is_transformers(
    betas: dict[str, float], trained: int, head_dim: int, ids: list[int]
) -> None:
    ours = nll(
        ids, {"T": trained, "frequency": [("yarn", {"factor": 8.0, **betas})]}, head_dim=head_dim
    )
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": trained}
    same(ours, double_nll(ids, rope=rope | betas, head_dim=head_dim))


def test_yarn_ramp_of_no_width() -> None:
    lam = oracle.yarn_lambda(16, 10000.0, 6, 8.0, 32, 1)  # T/2π < 1: low = high = 0
    same(lam, torch.tensor([1.0] + [8.0] * 7, dtype=torch.float64))


@pytest.mark.parametrize(("name", "exponent"), [("ntk", 16 / 14), ("ntk-old", 1.0)])
def test_ntk_is_another_base(name: str, exponent: float, ids: list[int]) -> None:
    theirs = double_nll(ids, theta=10000.0 * 8**exponent)
    same(nll(ids, {"frequency": [(name, {"factor": 8.0})]}), theirs)


def test_frequencies_by_hand() -> None:
    config = {"head_dim": 4, "rope_theta": 100.0}
    for name, args, lams in [
        ("ntk-fixed", {"factor": 9.0}, (3, 9)),
        ("ntk", {"factor": 9.0}, (1, 9)),
        ("ntk-old", {"factor": 9.0}, (1, 3)),
        ("beta-radix", {"factor": 9.0, "b": 2.0}, (9**0.25, 9)),
        ("beta-radix", {"factor": 9.0}, (9 ** (0.5**0.625), 9)),
    ]:
        theta, attention_factor = oracle.frequencies(config, {"frequency": [(name, args)]})
        same(theta, torch.tensor([1 / lams[0], 0.1 / lams[1]], dtype=torch.float64), 1e-12)
        assert attention_factor == 1
    both = {"T": 64, "frequency": [("yarn", {"factor": 2.0}), ("yarn", {"factor": 4.0})]}
    expected = (0.1 * math.log(2) + 1) * (0.1 * math.log(4) + 1)
    assert oracle.frequencies(config, both)[1] == pytest.approx(expected)


def test_beta_radix_ends(ids: list[int]) -> None:
    for b, name in [(1.0, "ntk-fixed"), (0.0, "pi")]:
        radix = nll(ids, {"frequency": [("beta-radix", {"factor": 8.0, "b": b})]})
        same(radix, nll(ids, {"frequency": [(name, {"factor": 8.0})]}))


def test_effective_positions_by_hand() -> None:
    def r(name: str, **args: float) -> list[float]:
        r = oracle.effective_positions(8, {"T": 6, "distance": (name, args)})
        return r[-1].flip(0).tolist()  # of the last query, by δ

    assert r("rerope", window=3) == [0, 1, 2, 3, 3, 3, 3, 3]
    assert r("leaky-rerope", window=3, leak=2) == [0, 1, 2, 3, 3.5, 4, 4.5, 5]
    assert r("inv-leaky-rerope", window=3, expansion=2) == [0, 1, 2, 3, 7, 11, 15, 19]
    assert r("self-extend", window=3, group=2) == [0, 1, 2, 3, 4, 4, 5, 5]  # 7//2 − k//2 + 2
    assert r("self-extend", window=4, group=3) == [0, 1, 2, 3, 4, 5, 5, 5]  # 7//3 − k//3 + 3
    assert r("dca", chunk=3, local=3) == [0, 1, 4 - 2, 4 - 1, 4 - 0, 5 - 2, 5 - 1, 5 - 0]
    assert r("dca", chunk=5, local=1) == [0, 1, 2, 5 - 4, 5 - 3, 5 - 2, 5 - 1, 5 - 0]
    assert r("dca", chunk=4, local=2) == [0, 1, 2, 3, 5 - 3, 5 - 2, 5 - 1, 5 - 0]
    assert r("lm-infinite", window=3, sinks=2) == [0, 1, 2, 3, 3, 3, 3, 3]
    assert r("window", window=3) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert r("streaming", window=3, sinks=2) == [0, 1, 2, 0, 0, 0, 3, 4]  # 0, 1, 5, 6, 7 are kept


def test_seen_by_hand() -> None:
    def keys(name: str, **args: float) -> list[list[int]]:
        seen = oracle.seen(6, {"distance": (name, args)})
        return [row.nonzero().flatten().tolist() for row in seen]

    assert keys("window", window=2) == [[0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    kept = [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]]
    assert keys("streaming", window=2, sinks=1) == keys("lm-infinite", window=2, sinks=1) == kept
    assert oracle.seen(6, {}).equal(torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("self-extend", {"window": 16, "group": 1}),
        ("self-extend", {"window": L, "group": 4}),
        ("dca", {"chunk": L, "local": 1}),
        ("lm-infinite", {"window": L, "sinks": 0}),
        ("streaming", {"window": L - 4, "sinks": 4}),
        ("window", {"window": L}),
        ("inv-leaky-rerope", {"window": 16, "expansion": 0.5}),
    ],
)
def test_what_leaves_rope_as_it_is(name: str, args: dict[str, float], ids: list[int]) -> None:
    same(nll(ids, {"T": 2 * L, "distance": (name, args)}), nll(ids, {}))


def test_window_of_transformers(ids: list[int]) -> None:
    """Mistral is Llama with a window: of so many keys, a query's own with them."""
    from transformers import MistralConfig, MistralForCausalLM

    model = build()
    settings = {**model.config.to_dict(), "sliding_window": 20, "model_type": "mistral"}
    mistral = MistralForCausalLM(MistralConfig(**settings)).double().eval()
    mistral.load_state_dict(model.state_dict())
    mistral.model.rotary_emb.inv_freq = mistral.model.rotary_emb.inv_freq.float()
    with torch.no_grad():
        out = mistral(torch.tensor([ids])).logits[0]
    theirs = torch.nn.functional.cross_entropy(out[:-1], torch.tensor(ids[1:]), reduction="none")
    ours = nll(ids, {"distance": ("window", {"window": 20})})
    same(ours, theirs, 1e-3)  # their angles are float32
    assert (ours - nll(ids, {"distance": ("window", {"window": 21})})).abs().max() > 0.1


@pytest.mark.parametrize("base", [500.0, 10000.0])
def test_llama3_is_transformers(base: float, ids: list[int]) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = T
    ours = nll(ids, {"T": T, "frequency": [("llama3", {"factor": 8.0})]}, theta=base)
    same(ours, double_nll(ids, rope=rope, theta=base))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dynamic_is_transformers(factor: float, ids: list[int]) -> None:
    method = {"T": T, "frequency": [("dynamic-ntk", {"length": L, "factor": factor})]}
    theirs = double_nll(ids, rope={"rope_type": "dynamic", "factor": factor})
    same(nll(ids, method), theirs, 1e-4)  # their exponents are float32


@pytest.mark.parametrize("length", [T, L])
def test_longrope_is_transformers(length: int, ids: list[int]) -> None:
    lists = {"short": [1.0 + i / 9 for i in range(8)], "long": [1.0 + i for i in range(8)]}
    rope: dict[str, Any] = {f"{name}_factor": values for name, values in lists.items()}
    rope |= {"rope_type": "longrope", "factor": max(1.0, length / T)}
    rope["original_max_position_embeddings"] = T
    method = {"T": T, "frequency": [("longrope", {"length": length, **lists})]}
    same(nll(ids[:length], method), double_nll(ids[:length], rope=rope), 1e-4)  # as above


def test_distance_identities(ids: list[int]) -> None:
    rope, rerope = nll(ids, {}), nll(ids, {"distance": ("rerope", {"window": 16})})
    same(nll(ids, {"distance": ("rerope", {"window": L})}), rope)
    same(nll(ids, {"distance": ("leaky-rerope", {"window": 16, "leak": 1})}), rope)
    same(nll(ids, {"distance": ("leaky-rerope", {"window": 16, "leak": 1e12})}), rerope, 1e-6)
    assert (rope - rerope).abs().mean() > 0.1
    same(rope[:16], rerope[:16])  # δ = w is first seen by the query at w, and there r = δ still
    assert (rope[17:] - rerope[17:]).abs().min() > 0


def test_off_by_one_is_seen(ids: list[int]) -> None:
    for name, fixed in [("rerope", {}), ("leaky-rerope", {"leak": 8})]:
        a, b = (nll(ids, {"distance": (name, {"window": w, **fixed})}) for w in (32, 33))
        assert (a - b).abs().mean() > 1e-3


def test_beyond_the_window_order_is_lost(ids: list[int]) -> None:
    """In one layer, the order of keys that are all at least w behind a query means nothing."""
    window, cut = 24, 80
    shuffled = ids[:cut][::-1] + ids[cut:]
    for frequency in ([], [("yarn", {"factor": 4.0})]):
        method = {"T": T, "frequency": frequency, "scales": [("logn", {"clip": False})]}
        rerope = method | {"distance": ("rerope", {"window": window})}
        a, b = nll(ids, rerope, layers=1), nll(shuffled, rerope, layers=1)
        first = cut - 1 + window  # the first query with every shuffled key at w or more
        same(a[first:], b[first:])
        assert abs(a[first - 1] - b[first - 1]) > 1e-6
        a, b = nll(ids, method, layers=1), nll(shuffled, method, layers=1)
        assert (a[first:] - b[first:]).abs().mean() > 1e-3


def test_logn(ids: list[int]) -> None:
    clip, plain = (
        {"T": T, "scales": [("logn", {"clip": True})]},
        {"T": T, "scales": [("logn", {"clip": False})]},
    )
    same(nll(ids[:T], clip), nll(ids[:T], {}))
    a, b, rope = nll(ids, clip), nll(ids, plain), nll(ids, {})
    same(a[:T], rope[:T])
    assert abs(a[T] - rope[T]) > 1e-6
    assert abs(b[1] - rope[1]) > 1e-6
    ln_t = math.log(T)
    same(oracle.query_scale(T + 1, plain, 16)[[0, 1, T]],
         torch.tensor([0, math.log(2) / ln_t, math.log(T + 1) / ln_t]).double(), 1e-6)  # fmt: skip
    assert oracle.query_scale(T + 1, clip, 16)[:T].eq(1).all()


def test_logn_scales_the_query(ids: list[int]) -> None:
    """In one layer, the last position sees log-n as a query projection that much larger."""
    model = build(layers=1)
    weights, config = model.state_dict(), model.config.to_dict()
    scaled = oracle.logits(weights, config, ids, {"T": T, "scales": [("logn", {"clip": True})]})[-1]
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name] * (math.log(L) / math.log(T))
    same(oracle.logits(weights, config, ids, {})[-1], scaled)


def test_published_defaults() -> None:
    assert oracle.default_factor(4096, 512) == 8
    assert oracle.default_factor(100, 512) == 1
    assert oracle.default_rerope_window(512) == 256
    assert oracle.default_leaky_window(512) == 128
    for length, window in [(4096, 128), (1025, 64), (100, 128), (512, 128), (385, 128), (386, 128)]:
        leak = oracle.default_leak(length, 512, window)
        assert leak >= 1
        assert window + (length - 1 - window) / leak <= 256
        assert leak == 1 or window + (length - 1 - window) / (leak - 1) > 256  # the smallest
    assert [oracle.default_leak(n, 512, 128) for n in (256, 257, 258, 4096)] == [1, 1, 2, 31]
    assert [oracle.default_group(n, 512, 128) for n in (9, 512, 513, 896, 897)] == [1, 1, 2, 2, 3]


def test_mistakes_are_errors(ids: list[int]) -> None:
    for method, error in [
        ({"freqency": []}, ValueError),
        ({"frequency": [("nkt", {})]}, KeyError),
        ({"frequency": [("pi", {"b": 1})]}, TypeError),
        ({"distance": ("rerope", {"window": 4, "leak": 2})}, TypeError),
        ({"scales": [("logn", {"clip": True})]}, KeyError),
    ]:
        with pytest.raises(error):
            nll(ids, method)
