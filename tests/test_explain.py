"""What `ctxext explain` says: angles by exact arithmetic, entropy by plain softmax, the command."""

from __future__ import annotations

import math
import shutil
import time
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import transformers
from conftest import FAMILIES, SETTINGS, TRAINED, fitted, random_model, tokens, whole
from families import tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eval import VOCABULARY, Ran, Run, letters, save_model, save_tokenizer
from test_methods import COMPOSED, ROWS

import ctxext
from ctxext import patches
from ctxext.advise import explain
from ctxext.advise.explain import angles as angle_table
from ctxext.advise.explain import figures, tables
from ctxext.advise.explain.entropy import measure
from ctxext.advise.explain.layers import find_kinds, turned
from ctxext.advise.explain.study import Block
from ctxext.engine import chunked
from ctxext.engine.chunked import chunked_entropy
from ctxext.engine.seams import CAUSAL
from ctxext.engine.watch import watching
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.measure.monitor import Monitor
from ctxext.methods.base import Part, Rotary, Span
from ctxext.models.loading import Source
from ctxext.report.plots import save

TINY = Rotary(tuple(1e4 ** (-i / 32) for i in range(32)), 1e4, 512)


def under(spec: str, length: int, rotary: Rotary = TINY) -> angle_table.Angles:
    method = patches.parse(spec).resolve(Span(rotary.trained, length))
    theta = np.array(rotary.theta)
    parts = method.distance.parts() if method.distance else angle_table.PLAIN
    scaled = theta / np.array(method.scales(rotary))
    return angle_table.angles(theta, rotary.trained, scaled, parts, length)


# Angles, in whole parts of a circle.


@st.composite
def _circles(draw: st.DrawFn) -> tuple[Fraction, int, int, int, int, int]:
    """θ as a share of a full turn, T, L, λ, window and leak."""
    theta = Fraction(draw(st.integers(1, 40)), draw(st.integers(1, 400)))
    trained, length = draw(st.integers(2, 40)), draw(st.integers(2, 150))
    return theta, trained, length, *(draw(st.integers(1, most)) for most in (9, 40, 9))


@settings(max_examples=150, deadline=None)
@given(_circles())
def test_outside_is_what_exact_arithmetic_says(
    given: tuple[Fraction, int, int, int, int, int],
) -> None:
    """Every angle against every angle of training, as fractions of a turn: no rounding at all."""
    turn, trained, length, scale, window, leak = given
    seen = {turn * d % 1 for d in range(trained)}
    expected = 0
    for d in range(length):
        e = Fraction(d) if d < window else window + Fraction(d - window, leak)
        at = turn / scale * e % 1
        away = min(min((at - s) % 1, (s - at) % 1) for s in seen)
        expected += away >= turn and away > 0
    method = patches.parse(f"leaky-rerope:window={window},leak={leak}")
    theta = np.array([2 * math.pi * turn.numerator / turn.denominator])
    assert method.distance is not None
    found = angle_table.angles(theta, trained, theta / scale, method.distance.parts(), length)
    assert found.outside.tolist() == [expected]
    assert found.seen == length
    assert found.share == expected / length


def test_what_the_methods_promise() -> None:
    length = 4096
    rope, ntk = under("rope", length), under("ntk", length)
    assert [i for i, n in enumerate(rope.outside) if n == 0] == [
        i for i, theta in enumerate(TINY.theta) if theta * 513 > 2 * math.pi
    ]
    slow = [i for i, theta in enumerate(TINY.theta) if theta * (length + 1) < 2 * math.pi]
    assert slow
    assert {rope.outside[i] for i in slow} == {length - 512}
    assert ntk.outside[-1] == 0 < ntk.outside[20] < rope.outside[20]
    assert under("ntk-old", length).outside[-1] > 0
    for inside in ("pi", "yarn", "rerope", "leaky-rerope", "rerope+ntk"):
        assert under(inside, length).share == 0, inside
    assert under("pi:factor=7", length).outside[-1] == length - 7 * 512
    for spec in ("rope", "rerope", "ntk:factor=8", "pi"):
        assert under(spec, 512).share == 0, spec


def test_wavelengths() -> None:
    found = under("pi:factor=4", 2048)
    np.testing.assert_allclose(found.wavelength, [4 * 2 * math.pi / t for t in TINY.theta])
    still = angle_table.angles(np.array([1.0, 0.0]), 8, np.array([1.0, 0.0]), angle_table.PLAIN, 64)
    assert still.wavelength[1] == math.inf
    assert still.outside.tolist() == [0, 0]


@pytest.mark.parametrize("spec", ["rope", "ntk", "leaky-rerope:window=9,leak=3"])
def test_maps_are_the_means_of_their_columns(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    length, rotary = 1111, Rotary(TINY.theta, 1e4, 64)
    found = under(spec, length, rotary)
    monkeypatch.setattr(angle_table, "AT_ONCE", 97)
    pieces = under(spec, length, rotary)
    assert pieces.outside.tolist() == found.outside.tolist()
    np.testing.assert_allclose(pieces.off, found.off, atol=1e-12)
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (0, length, 257)
    assert (found.off >= 0).all()
    assert ((found.off > 0).sum(1) > 0).tolist() == (found.outside > 0).tolist()
    i, column = 25, 200
    delta = np.arange(found.edges[column], found.edges[column + 1])
    if spec == "rope":  # past the arc, and nearer to its end than to its beginning
        np.testing.assert_allclose(found.off[i, column], (TINY.theta[i] * (delta - 63)).mean())
        assert TINY.theta[i] * 1111 < math.pi


def test_a_million_tokens_are_quick() -> None:
    start = time.process_time()
    found = under("ntk", 2**20)
    assert time.process_time() - start < 15  # a second, on a machine with nothing else to do
    assert 0 < found.share < 1
    with pytest.raises(UsageError, match="too long"):
        under("rope", 2**24 + 1)


# Distances.


def test_effective_positions_are_those_of_the_formulas() -> None:
    delta = np.arange(300.0)
    rerope = patches.parse("rerope:window=64").distance
    leaky = patches.parse("leaky-rerope:window=32,leak=8").distance
    assert rerope is not None
    assert leaky is not None
    np.testing.assert_allclose(
        angle_table.effective(rerope.parts(), 299, delta), np.minimum(delta, 64), atol=1e-9
    )
    np.testing.assert_allclose(
        angle_table.effective(leaky.parts(), 299, delta),
        np.where(delta < 32, delta, 32 + (delta - 32) / 8),
        atol=1e-9,
    )


def shown(parts: tuple[Part, ...], query: int) -> Any:
    """Effective positions of the keys at 0 … query."""
    return angle_table.effective(parts, query, query - np.arange(query + 1))


def truth(length: int, method: oracle.Method) -> Any:
    """r(q, k) of the oracle [L, L], NaN where a key is not seen."""
    r = oracle.effective_positions(length, method)
    return r.where(oracle.seen(length, method), math.nan).numpy()


# Those of one position for all pairs.
DISTANCES = [n for n in patches.names() if patches.REGISTRY.get(n).changes == "distance"]
DISTANCES.remove("jet-long-freq")


@pytest.mark.parametrize(("trained", "length"), [(32, 31), (32, 97), (45, 33 * 3 + 1), (64, 192)])
@pytest.mark.parametrize("name", DISTANCES)
def test_every_query_sees_the_oracles_keys_where_they_seem_to_be(
    name: str, trained: int, length: int
) -> None:
    for spec, _ in ROWS[name]:
        found = patches.parse(spec).resolve(Span(trained, length)).distance
        args = {key: value for key, value in vars(found).items() if key != "ladder"}
        method = {"T": args.pop("reach", trained), "distance": (name, args)}
        for q, row in enumerate(truth(length, method)):
            np.testing.assert_allclose(shown(found.parts(), q), row[: q + 1], atol=1e-9)


@pytest.mark.parametrize("length", [2, TRAINED - 1, TRAINED, TRAINED + 1, 72, 97])
@pytest.mark.parametrize("name", [*patches.names(), "composed"])
def test_every_method_is_explained_as_the_oracle_has_it(name: str, length: int) -> None:
    """At the last query: distances by pair, keys seen, and each angle against each of training."""
    config = {"head_dim": 16, "rope_theta": 1e4}
    own = oracle.frequencies(config, {})[0].numpy()
    (kind,) = find_kinds(transformers.LlamaConfig(**SETTINGS), length, None, False)
    for spec, expected in COMPOSED if name == "composed" else ROWS[name]:
        method = expected(length)
        seen = oracle.seen(length, method).numpy()[-1, ::-1]  # by distance
        r = oracle.pair_positions(length, config, method).numpy()[..., -1, ::-1]
        theta = oracle.frequencies(config, method)[0].numpy()
        resolved = patches.parse(fitted(spec, 8)).resolve(Span(TRAINED, length))
        block = Block(kind, *kind.under(resolved, length))
        effects = np.where(seen, r * (theta / own)[:, None], np.nan)
        given = block.effective(np.arange(length))
        np.testing.assert_allclose(given, np.sort(effects, 0)[[0, 4, -1]], rtol=1e-6, atol=1e-9)
        assert block.angles.seen == seen.sum()
        edges = np.flatnonzero(np.diff(seen)) + 1  # where keys begin or end to be seen
        assert set(edges.tolist()) <= block.bounds
        apart = (effects.T * own)[seen, None] - np.arange(TRAINED)[:, None] * own
        apart = np.abs((apart + math.pi) % (2 * math.pi) - math.pi).min(1)  # [keys, pairs]
        assert block.angles.outside.tolist() == (apart >= own * (1 - 1e-5)).sum(0).tolist()


def test_parts_that_go_by_the_query_are_taken_at_the_last_one() -> None:
    """Chunks of 10 as in dual chunk attention, a hole between, and floors as in self-extend."""
    parts = (
        Part(0, 4, lambda q: q % 10, lambda k: k % 10 - 10 * (k % 10 > 7)),
        Part(20, None, lambda q: (q / 4).floor() + 3, lambda k: (k / 4).floor()),
    )
    at = angle_table.effective(parts, 37, np.arange(38))
    assert at[:4].tolist() == [7 - 7, 7 - 6, 7 - 5, 7 - 4]
    assert np.isnan(at[4:20]).all()
    assert at[20:].tolist() == [9 + 3 - (37 - d) // 4 for d in range(20, 38)]
    found = angle_table.angles(np.array([0.1]), 8, np.array([0.1]), parts, 38)
    assert found.seen == 22
    assert np.isnan(found.off[0, 4:20]).all()
    assert not np.isnan(found.off[0, 20:]).any()


# Layers.


def config(kind: str, **changes: Any) -> Any:
    return getattr(transformers, kind)(**{**SETTINGS, "head_dim": 16, **changes})


SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "llama": (config("LlamaConfig"), [("full_attention", 2, None)]),
    "mistral": (config("MistralConfig", sliding_window=8), [("sliding_attention", 2, 8)]),
    "wide": (config("MistralConfig", sliding_window=100), [("sliding_attention", 2, 100)]),
    "gemma3": (
        config("Gemma3TextConfig", **MIXED),
        [("full_attention", 1, None), ("sliding_attention", 1, 8)],
    ),
    "gemma2": (
        config("Gemma2Config", **MIXED),
        [("full_attention", 1, None), ("sliding_attention", 1, 8)],
    ),
    "smollm3": (config("SmolLM3Config", no_rope_layers=[1, 0]), [("full_attention", 1, None)]),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_layers(name: str) -> None:
    made, expected = KINDS[name]
    kinds = find_kinds(made, 128, None, False)
    assert [(kind.name, kind.layers, kind.window) for kind in kinds] == expected
    assert [kind.alone for kind in kinds] == [(w or 99) <= TRAINED for _, _, w in expected]
    for kind in kinds:
        found, parts = kind.under(patches.parse("rerope:window=4+ntk:factor=2"), 128)
        plain, _ = kind.under(patches.parse("rope"), 128)
        assert found.seen == min(128, kind.window or 128)
        same = found.theta.tolist() == plain.theta.tolist()
        assert (parts == angle_table.PLAIN, same) == (kind.alone, kind.alone)
        assert plain.share > 0 or kind.alone


@pytest.mark.parametrize("spec", ["rope", "streaming:window=12", "dca:chunk=9"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "cohere2", "llama4_text"])
def test_the_keys_seen_are_those_that_layers_see(name: str, spec: str) -> None:
    window = "attention_chunk_size" if name == "llama4_text" else "sliding_window"
    model, n = tiny_model(name, **{window: 24}), 100
    with ctxext.patched(model, spec, n, train_len=16):
        keys = measure(model, whole(tokens(n))).keys[:, -1]
    method = patches.parse(spec).resolve(Span(16, n))
    kinds = turned(find_kinds(model.config, n, 16, False), model)
    blocks = [Block(kind, *kind.under(method, n)) for kind in kinds]
    found = {int(np.isfinite(block.effective(np.arange(n))[1]).sum()) for block in blocks}
    assert found == {block.angles.seen for block in blocks}
    assert found <= set(keys.tolist())
    assert len(found) == 1 + (name == "gemma3_text")


def test_layers_that_share_frequencies_are_one_kind() -> None:
    (kind,) = find_kinds(tiny_config("moshi"), 128, None, False)  # with a rotary module each
    assert kind.layers == 4


def test_kinds_with_frequencies_of_their_own() -> None:
    full, sliding = find_kinds(KINDS["gemma3"][0], 128, None, False)
    rope = KINDS["gemma3"][0].rope_parameters
    for kind in (full, sliding):
        base = rope[kind.name]["rope_theta"]
        expected = [base ** (-2 * i / 16) for i in range(8)]
        np.testing.assert_allclose(kind.trained_theta, expected, rtol=1e-5)
    assert full.theta[-1] != sliding.theta[-1]


def test_a_scaling_of_its_own_is_in_force_before_the_method() -> None:
    rope = {**SCALED, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    made = config("LlamaConfig", max_position_embeddings=256, rope_parameters=rope)
    unscaled = np.array([1e4 ** (-i / 8) for i in range(8)])
    for own, trained in (("keep", 256), ("replace", 32)):
        (kind,) = find_kinds(made, 128, None, False, own)
        assert kind.trained == trained
        np.testing.assert_allclose(kind.theta[-1], unscaled[-1] / 8, rtol=1e-5)
        started = kind.theta if own == "keep" else unscaled
        np.testing.assert_allclose(kind.trained_theta, started, rtol=1e-5)
        plain, _ = kind.under(patches.parse("rope"), 128)
        assert plain.theta.tolist() == kind.theta.tolist()
        far, _ = kind.under(patches.parse("pi:factor=2"), 128)
        np.testing.assert_allclose(far.theta, started / 2, rtol=1e-5)
        near, _ = kind.under(patches.parse("rerope:window=8"), 128)
        np.testing.assert_allclose(near.theta, started, rtol=1e-5)


def test_a_scaling_by_length_is_that_of_the_length() -> None:
    made = config("LlamaConfig", rope_parameters={"rope_type": "dynamic", "factor": 2.0} | BASE)
    model = transformers.LlamaForCausalLM(made)
    model(torch.ones(1, 100, dtype=torch.long))
    (kind,) = find_kinds(made, 100, None, False)
    np.testing.assert_allclose(kind.theta, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert kind.theta[-1] < kind.trained_theta[-1]


BASE = {"rope_theta": 1e4}


def test_models_without_rotary_embeddings_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="rotary"):
        find_kinds(transformers.GPT2Config(), 128, None, False)


# Entropy.


def plain_entropy(weights: torch.Tensor) -> np.ndarray[Any, Any]:
    """[layers, length] of weights [layers, b, h, n, m]: −Σ p ln p, a mean over b and h."""
    p = weights.detach().double()
    return (-torch.special.xlogy(p, p).sum(-1)).mean((1, 2)).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_is_that_of_transformers_own_weights(family: str) -> None:
    model, ids = random_model(family), tokens(70, batch=2)
    found = measure(model, whole(ids))
    model.set_attn_implementation("eager")
    weights = torch.stack(model(ids, output_attentions=True).attentions)
    np.testing.assert_allclose(found.nats, plain_entropy(weights), atol=2e-5)
    assert found.keys.tolist() == [list(range(1, 71))] * 2
    np.testing.assert_allclose(found.ceiling[0], np.log(np.arange(1, 71)))
    assert (found.nats <= found.ceiling + 1e-5).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_entropy_of_windows_and_frequencies(attention: str) -> None:
    torch.manual_seed(0)
    made = transformers.Gemma3ForCausalLM(KINDS["gemma3"][0]).eval()
    made.set_attn_implementation(attention)
    ids = tokens(70)
    with ctxext.patched(made, "ntk:factor=3"):
        found = measure(made, whole(ids))
        made.set_attn_implementation("eager")
        weights = torch.stack(made(ids, output_attentions=True).attentions)
        made.set_attn_implementation(attention)
    np.testing.assert_allclose(found.nats, plain_entropy(weights), atol=2e-5)
    assert found.keys[0].tolist() == [min(n, 8) for n in range(1, 71)]
    assert found.far(TRAINED).tolist() == [False, True]


@pytest.mark.parametrize("name", [*patches.names(), "composed"])
def test_entropy_and_keys_are_those_of_the_oracles_weights(name: str) -> None:
    """In the first layer. A float32 angle is off by more, the further its relative position is."""
    model, n = random_model("llama-gqa"), 90
    ids, first = tokens(n), model.model.layers[0]
    with torch.no_grad():
        x = first.input_layernorm(model.model.embed_tokens(ids))
        q = first.self_attn.q_proj(x).view(n, 4, 16).transpose(0, 1).double()
        k = first.self_attn.k_proj(x).view(n, 2, 16).transpose(0, 1).double()
    k = k.repeat_interleave(2, 0)
    for spec, expected in COMPOSED if name == "composed" else ROWS[name][:3]:
        method = expected(n)
        with ctxext.patched(model, fitted(spec, 8), n):
            found = measure(model, whole(ids))
        config = {"head_dim": 16, "rope_theta": 1e4}
        r, seen = oracle.pair_positions(n, config, method), oracle.seen(n, method)
        theta, factor = oracle.frequencies(config, method)
        scaled = q * oracle.query_scale(n, method, 16)[:, None] * oracle.temperature(method)
        scores = oracle.scores(scaled, k, theta, r) * factor**2 / 4
        if rule := method.get("entropy"):
            scores *= oracle.entropy_scale(scores, ~seen, method["T"], **rule)
        weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
        atol = 2e-5 * max(1.0, float(r.max()) / n)
        np.testing.assert_allclose(found.nats[0], plain_entropy(weights[None, None])[0], atol=atol)
        assert found.keys.tolist() == [seen.sum(-1).tolist()] * 2


@pytest.mark.parametrize("chunk", [16, 128])
def test_masks_caps_and_sinks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LONGEST_CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, h, 40, 8, generator=generator, dtype=torch.float64) for h in (4, 2))
    mask = torch.ones(40, 40).tril().triu(-12).bool()[None, None].repeat(2, 1, 1, 1)
    mask[1, :, 20:, 15] = False
    sinks = torch.randn(4, generator=generator, dtype=torch.float64)
    found, keys = chunked_entropy(q, k, CAUSAL, lambda x, p: x, 0.5, mask, 1.5, sinks)
    assert keys.equal(mask[:, 0].sum(-1) + 1)
    scores = 1.5 * torch.tanh(q @ k.repeat_interleave(2, 1).mT * 0.5 / 1.5)
    scores = scores.masked_fill(~mask, -math.inf)
    scores = torch.cat((scores, sinks.view(1, 4, 1, 1).expand(2, 4, 40, 1)), -1)
    p = torch.softmax(scores, -1)
    torch.testing.assert_close(found, -torch.special.xlogy(p, p).sum(-1))


@pytest.mark.parametrize("spec", ["rope", "logn", "rerope:window=8+ntk:factor=2"])
def test_being_watched_changes_nothing(spec: str) -> None:
    model, ids, seen = random_model(), tokens(50), []
    with ctxext.patched(model, spec), torch.no_grad():
        own = model.config._attn_implementation
        before = model(ids).logits
        with watching(model, lambda *given: seen.append(given)):
            during = model(ids).logits
        assert len(seen) == 2
        assert torch.equal(before, during)
        assert torch.equal(before, model(ids).logits)
        assert len(seen) == 2
        assert model.config._attn_implementation == own
    assert not any("watch" in name for m in model.modules() for name in vars(m))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("falcon", "attention interface: --no-entropy"),
        ("blt", "not one for each token: --no-entropy"),
        ("doge", "adds a bias"),
    ],
)
def test_a_model_that_cannot_be_watched_is_refused(kind: str, why: str) -> None:
    model = tiny_model(kind).eval()
    with pytest.raises(UnsupportedModelError, match=why):
        measure(model, whole(tokens(20)))
    assert find_kinds(model.config, 128, TRAINED, False)


# The command.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models of trained length 32: `plain`, `mixed` (gemma3) and `partly` (cohere2)."""
    root = tmp_path_factory.mktemp("models")
    save_model(root / "plain")
    torch.manual_seed(0)
    for name, kind in (("mixed", "Gemma3"), ("partly", "Cohere2")):
        text = "TextConfig" if kind == "Gemma3" else "Config"
        made = config(f"{kind}{text}", vocab_size=VOCABULARY, **MIXED)
        getattr(transformers, f"{kind}ForCausalLM")(made).save_pretrained(root / name)
        save_tokenizer(root / name)
    return root


@pytest.fixture
def here(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models, and the data `t.txt`."""
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are written without being drawn."""
    monkeypatch.setattr(explain, "save", lambda path, draw: path.touch())


def ask(run: Run, *more: object, model: str = "plain") -> Ran:
    given = ("--model", model, "--data", "t.txt", "--limit", 2)
    return run("explain", *given, *(() if "--len" in more else ("--len", 128)), *more)


def test_tables_plots_and_what_is_where(run: Run, here: Path) -> None:
    ran = ask(run, "--method", "rerope:window=8", "--method", "ntk")
    assert ran.code == 0
    for title in ("angles by rotary pair", "position by distance", "entropy of attention"):
        assert title in " ".join(ran.out.split())
    names = [line.removeprefix("wrote ") for line in ran.err.splitlines() if "wrote" in line]
    files = sorted(path.as_posix() for path in Path().glob("results/*"))
    assert sorted(names) == files
    assert [Path(name).suffix for name in files] == [".png", ".svg", ".png", ".svg", ".md"]
    png, svg, *_, text = (Path(name).read_bytes() for name in files)
    assert png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    rows = [line for line in text.decode().splitlines() if line.startswith("| 7 |")]
    wavelength = 2 * math.pi * 1e4 ** (7 / 8)
    assert rows == [
        f"| 7 | {wavelength:.0f} | {32 / wavelength:.3f} | {wavelength:.0f} · 75.0% | "
        f"{wavelength:.0f} · 0% | {4 * wavelength:.0f} · 0% |"
    ]
    assert run("report").code == 2  # what is explained is no record


def test_json_is_one_object_for_each_method(run: Run, here: Path, undrawn: None) -> None:
    ran = ask(run, "--method", "leaky-rerope:window=8,leak=4+logn", "--json")
    assert ran.code == 0
    plain, leaky = ran.records
    assert [plain["method"], leaky["method"]] == [
        "rope",
        "leaky-rerope:window=8,leak=4+logn:clip=true",
    ]
    for record in (plain, leaky):
        assert (record["length"], record["trained_length"]) == (128, 32)
        (layers,) = record["layers"]
        assert (layers["count"], layers["angles"], len(layers["pairs"])) == (2, 128, 8)
        outside = sum(pair["outside"]["after"] for pair in layers["pairs"])
        assert layers["outside"] == outside / 128 / 8
        before = [pair["outside"]["before"] for pair in layers["pairs"]]
        assert before == [p["outside"]["after"] for p in plain["layers"][0]["pairs"]]
        assert before[-1] == 96
        entropy = record["entropy"]
        assert (entropy["windows"], entropy["data"], entropy["dtype"]) == (2, "t.txt", "float32")
        assert [b["start"] for b in entropy["positions"]] == list(range(0, 128, 2))
        assert all(0 <= b["nats"] <= b["ceiling"] + 1e-5 for b in entropy["positions"])
        ceiling = entropy["positions"][-1]["ceiling"]
        assert ceiling == pytest.approx((math.log(127) + math.log(128)) / 2)
        means = np.mean([layer["nats"] for layer in entropy["layers"]], 0)
        np.testing.assert_allclose(means, [b["nats"] for b in entropy["positions"]])
    effects = {d["distance"]: d["effective"]["middle"] for d in leaky["layers"][0]["distances"]}
    assert effects == {d: d if d < 8 else 8 + (d - 8) / 4 for d in (1, 8, 16, 32, 64, 127)}
    assert leaky["layers"][0]["outside"] > 0  # 8 + 119/4 is beyond 32


def test_hidden_keys_are_not_counted(run: Run, here: Path, undrawn: None) -> None:
    ran = ask(run, "--method", "streaming:window=28", "--json")
    kept = ran.records[1]
    (layers,) = kept["layers"]
    assert [r["layers"][0]["angles"] for r in ran.records] == [128, 32]
    effects = {d["distance"]: d["effective"]["middle"] for d in layers["distances"]}
    hidden = {28: None, 32: None, 64: None}  # from where the window ends; sinks are at 124 … 127
    assert effects == {1: 1, 8: 8, 16: 16} | hidden | {124: 28, 127: 31}
    last = kept["entropy"]["positions"][-1]
    assert last["nats"] < last["ceiling"] == pytest.approx(math.log(32))
    mixed = ask(run, "--method", "streaming:window=28", "--json", model="mixed").records
    averaged = [[layer["averaged"] for layer in r["entropy"]["layers"]] for r in mixed]
    assert averaged == [[False, True]] * 2  # as where nothing is hidden
    ran = ask(run, "--method", "streaming:window=28", "--no-entropy")
    (row,) = (line for line in ran.out.splitlines() if "keys seen" in line)
    assert row.replace("│", " ").split() == ["keys", "seen", "128", "32"]


def test_the_config_alone_will_do_without_entropy(run: Run, here: Path, undrawn: None) -> None:
    for file in Path("plain").iterdir():
        if file.name != "config.json":
            file.unlink()
    ran = ask(run, "--method", "yarn", "--no-entropy", "--json")
    assert ran.code == 0
    assert [record["entropy"] for record in ran.records] == [None, None]
    ran = ask(run, "--no-entropy", "--len", "64k")
    assert ran.code == 0
    assert "entropy" not in ran.out


def test_layers_with_windows_are_named_and_left_alone(run: Run, here: Path, undrawn: None) -> None:
    ran = ask(run, "--method", "rerope:window=8", model="mixed")
    assert ran.code == 0
    last = ran.out.splitlines()[-1]
    assert last.startswith("1 sliding_attention layer with a window of 8 tokens")
    assert "1 that see no further than T left out" in " ".join(ran.out.split())
    assert not list(here.glob("results/*sliding*"))
    ran = ask(run, "--method", "rerope:window=8", "--no-entropy", "--json", model="mixed")
    full, sliding = ran.records[1]["layers"]
    assert (full["left_alone"], sliding["left_alone"]) == (False, True)
    assert (sliding["angles"], sliding["outside"]) == (8, 0)
    assert full["distances"][-1] == {
        "distance": 127,
        "effective": {"least": 8.0, "middle": 8.0, "most": 8.0},
    }
    assert {d["effective"]["most"] for d in sliding["distances"]} <= set(range(8))


def test_layers_without_positions_have_no_angles(run: Run, here: Path, undrawn: None) -> None:
    ran = ask(run, "--json", model="partly")
    assert [layers["type"] for layers in ran.records[0]["layers"]] == ["sliding_attention"]
    assert len(ran.records[0]["entropy"]["layers"]) == 2
    ran = ask(run, "--json", "--no-entropy", model="partly")
    assert len(ran.records[0]["layers"]) == 2  # the config does not tell
    assert "may be without positions" in ran.err


REFUSED = {
    ("--len", "1k,2k"): "one length",
    ("--len", "1"): "length 1",
    ("--len", "1000m"): "too long",
    ("--len", "64k"): "--no-entropy",
    ("--len", "x"): "'x'",
    ("--method", "rerop"): "did you mean 'rerope'",
    ("--method", "leaky-rerope:window=17"): "leak",
    ("--model", "nope"): "'nope'",
    ("--data", "no.txt"): "'no.txt'",
    ("--data", ""): "--data",
    ("--limit", "0"): "--limit",
    ("--dtype", "fp16"): "'fp16'",
    ("--device", "gpu"): "'gpu'",
    ("--train-len", "1"): "--train-len",
    ("--out", "t.txt/deeper"): "t.txt",
    ("--out", "n\0ul"): "null",
}


def test_names_are_drawn_as_they_are(run: Run, here: Path) -> None:
    name = "$\\frac{<b>" + "a" * 120
    Path("plain").rename(name)
    assert ask(run, "--no-entropy", model=f"./{name}").code == 0
    (svg,) = (file.read_text() for file in here.glob("results/*--curves.svg"))
    assert ElementTree.fromstring(svg).tag.endswith("svg")


@pytest.mark.parametrize(("option", "value"), REFUSED, ids=lambda x: ascii(x)[:20])
def test_a_bad_argument_is_one_line(run: Run, here: Path, option: str, value: str) -> None:
    ran = ask(run, option, value)
    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert line.startswith("error: ")
    assert REFUSED[option, value] in line
    assert not list(here.glob("results/*"))


@pytest.mark.parametrize("length", ["2", "31", "32", "33"])
def test_short_lengths_and_extreme_factors(
    run: Run, here: Path, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if length != "2":
        monkeypatch.setattr(explain, "save", lambda path, draw: path.touch())
    specs = ("rerope", "leaky-rerope+ntk", "pi:factor=1e308+pi:factor=1e308")
    ran = ask(run, "--len", length, "--no-entropy", *(x for s in specs for x in ("--method", s)))
    assert ran.code == 0
    assert len(list(here.glob("results/*.[ps][nv]g"))) == 4


@pytest.mark.parametrize("name", ["模型 🦙", "new\nline", "[bold] <b>a|b<b>", "a" * 200])
def test_any_folder_name_will_do(run: Run, here: Path, undrawn: None, name: str) -> None:
    Path("plain").rename(name)
    ran = ask(run, "--no-entropy", model=f"./{name}")
    assert ran.code == 0
    assert all(file.name.isascii() and file.name.isprintable() for file in here.glob("results/*"))
    (text,) = (file.read_text() for file in here.glob("results/*.md"))
    assert "<b>" not in text


# The figures.


@pytest.fixture(scope="module")
def study() -> explain.Study:
    specs = ("rope", "ntk", "leaky-rerope:window=64,leak=13.5+logn+yarn:factor=2")
    methods = tuple(patches.parse(spec) for spec in specs)
    source = Source("tiny")
    return explain.explain(explain.ExplainRequest(source, methods, 2048, None), Monitor())


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def labels(legend: Any) -> list[str]:
    return [text.get_text().replace("\n", "") for text in legend.get_texts()]


def test_curves_have_whole_labels_and_a_legend_beside_them(study: explain.Study) -> None:
    figure = figures.curves(study, 0)
    figure.canvas.draw()
    *axes, last = figure.axes
    legend = last.get_legend()
    assert labels(legend) == [str(one.requested) for one in study.explained]
    assert not last.axison
    for panel in axes:
        assert not legend.get_window_extent().overlaps(panel.get_window_extent())
    shown = axes[1].get_lines()
    expected = [100 * one.blocks[0].angles.outside / 2048 for one in study.explained]
    for line, share in zip(shown, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), share)
    looks = {(line.get_color(), line.get_marker()) for line in shown}
    assert len(looks) == 3


def test_a_few_keys_far_away_are_drawn() -> None:
    methods = tuple(patches.parse(spec) for spec in ("rope", "streaming", "dca"))
    study = explain.explain(explain.ExplainRequest(Source("tiny"), methods, 4096, None), Monitor())
    lines = figures.curves(study, 0).axes[2].get_lines()[:3]
    x, y = lines[1].get_data()
    assert 4092 in x[lines[1].get_markevery()]  # sinks, at 4092 … 4095
    assert dict(zip(x, y, strict=True))[4092] == 508
    assert np.isnan(y[(x > 507) & (x < 4092)]).all()
    x, y = lines[2].get_data()
    assert min(y) > 0
    assert max(y) == 511
    assert "white: keys that" in " ".join(figures.maps(study, 0).get_suptitle().split())


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_study_gives_the_same_bytes(
    study: explain.Study, tmp_path: Path, ending: str
) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        save(path, lambda: figures.maps(study, 0))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_maps_say_how_much_is_outside(study: explain.Study) -> None:
    figure = figures.maps(study, 0)
    titles = [panel.get_title(loc="left").replace("\n", "") for panel in figure.axes[:3]]
    for title, one in zip(titles, study.explained, strict=True):
        share = tables.percent(one.blocks[0].angles.share, 1)
        assert title == f"{one.requested}{share} outside"
    image = figure.axes[0].collections[0]
    assert image.get_array().shape == (32, 256)
    assert image.get_array().max() <= math.pi


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0124, "0.012"), (0.125, "0.125"), (1, "1"), (6.283, "6.28"), (26.5, "26.5")),
        *((628.3, "628"), (47117.2, "47117"), (3e9, "3e+09"), (math.inf, "∞"), (math.nan, "–")),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert tables.amount(value) == text


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0%"), (1, "<0.1%"), (100, "0.1%"), (100_000, "100.0%")]
)
def test_percents(part: int, text: str) -> None:
    assert tables.percent(part, 100_000) == text
