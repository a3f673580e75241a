"""The variants that scripts/train_tiny.py trains beside the shipped models."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import ctxext
from ctxext.errors import UnsupportedModelError
from ctxext.models.aliases import ASSETS, SHIPPED

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
train: Any = importlib.import_module("train_tiny")
LAB = [name for name in train.VARIANTS if name not in SHIPPED]
TEXT = (ROOT / "LICENSE").read_text(encoding="utf-8") * 20


def fresh(name: str) -> Any:
    """A variant with its first weights, not patched."""
    torch.manual_seed(0)
    variant = train.VARIANTS[name]
    return variant.model(train.build_config(variant)).eval()


def words(n: int = 300) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 2048, (1, n)))


def attention(name: str, layer: int, x: torch.Tensor) -> tuple[Any, Any, Any, torch.Tensor]:
    """Query, key and value [heads, n, d] of a layer as it projects them, and what it gives."""
    model = fresh(name)
    site = model.model.layers[layer].self_attn
    n = x.shape[1]
    tables = model.model.rotary_emb(x, torch.arange(n)[None])
    mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
    heads = [p(x).view(n, 3, 64).transpose(0, 1) for p in (site.q_proj, site.k_proj, site.v_proj)]
    apply = sys.modules[transformers.LlamaForCausalLM.__module__].apply_rotary_pos_emb
    q, k = (y[0] for y in apply(heads[0][None], heads[1][None], *tables))
    return q, k, heads[2], site(x, position_embeddings=tables, attention_mask=mask)[0][0]


def out(name: str, layer: int, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    site = fresh(name).model.layers[layer].self_attn
    given: torch.Tensor = site.o_proj((weights @ value).transpose(0, 1).flatten(1))
    return given


@pytest.mark.parametrize("name", LAB)
def test_a_variant_begins_as_tiny_does(name: str, tmp_path: Path) -> None:
    model, tiny = fresh(name), fresh("tiny")
    assert model.state_dict().keys() == tiny.state_dict().keys()
    assert all(x.equal(tiny.state_dict()[key]) for key, x in model.state_dict().items())
    own, same = (m(words()).logits for m in (model, tiny))
    assert not torch.allclose(own, same, atol=1e-2)
    other = words()
    other[:, -1] = 1
    assert torch.equal(model(other).logits[:, :-1], own[:, :-1])
    model.save_pretrained(tmp_path)
    loaded, _ = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, attn_implementation="sdpa", output_loading_info=True
    )
    assert torch.equal(loaded(words()).logits, own)


@torch.no_grad()
def test_keys_have_one_length_and_queries_their_own() -> None:
    x = torch.randn(1, 40, 192, generator=torch.manual_seed(1))
    query, key, value, given = attention("key-norm", 1, x)
    plain = fresh("tiny").model.layers[1].self_attn.q_proj(x).view(40, 3, 64).transpose(0, 1)
    torch.testing.assert_close(query.norm(dim=-1), plain.norm(dim=-1))
    unit = key / key.norm(dim=-1, keepdim=True)
    scores = (query @ unit.mT).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(given, out("key-norm", 1, scores.softmax(-1), value))


@pytest.mark.parametrize("n", [40, 1100])
@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
@torch.no_grad()
def test_relu2_is_as_published(name: str, n: int) -> None:
    x = torch.randn(1, n, 192, generator=torch.manual_seed(1))
    query, key, value, given = attention(name, 1, x)
    weights = (query @ key.mT).div(8).tril().relu().square()
    weights = weights / (512 if name == "relu2" else weights.sum(-1, keepdim=True).clamp(min=1e-9))
    torch.testing.assert_close(given, out(name, 1, weights, value), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "full"), [("hwfa", 3), ("hwfa2", 2)])
@torch.no_grad()
def test_one_layer_sees_all_and_it_alone_is_scaled_by_log_n(name: str, full: int) -> None:
    model = fresh(name)
    ids, far = words(700), words(700)
    far[:, 0] = 1
    seen: list[list[bool]] = [[], []]
    for layer, block in enumerate(model.model.layers):
        given: list[torch.Tensor] = []
        hook = block.self_attn.register_forward_hook(lambda m, a, o, g=given: g.append(o[0]))
        model(ids)
        model(far)
        with ctxext.patched(model, "logn:clip=false", 700):
            model(ids)
        hook.remove()
        reach = (given[0] != given[1]).any(-1)[0].nonzero().max().item()
        seen[0].append(reach == 699 if layer >= full else reach == 127 * (layer + 1))
        if layer <= full:
            seen[1].append(torch.equal(given[0], given[-1]) == (layer < full))
    assert seen == [[True] * 4, [True] * (full + 1)]
    rotated = [bool(block.self_attn.use_rope) for block in model.model.layers]
    assert rotated == [name == "hwfa2" or layer != full for layer in range(4)]


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train.tokenizers.Tokenizer.from_file(str(ASSETS / "tiny" / "tokenizer.json"))
    ids = np.array(tokenizer.encode(TEXT).ids, np.uint16)
    kinds = ("code", "books", "held_out")
    corpus = train.Corpus(tokenizer, dict.fromkeys(kinds, ids), dict.fromkeys(kinds, TEXT), {})

    def build(books: Path, work: Path) -> Any:
        work.mkdir(parents=True, exist_ok=True)
        return corpus

    monkeypatch.setattr(train, "build_corpus", build)
    monkeypatch.setattr(train, "check", lambda *_: {})
    monkeypatch.setattr(train, "PHASES", (train.Phase(0, 1, 0.5, 0.5, 0.0, 0.0),))
    handlers: list[Any] = []
    monkeypatch.setattr(train.signal, "signal", lambda _, handler: handlers.append(handler))

    def run(folder: str) -> None:
        train.main(ROOT, "key-norm", tmp_path / folder / "out", tmp_path / folder, 6 * 512,
                   threads=torch.get_num_threads())  # fmt: skip

    run("whole")
    steps, step = [], train.train_step

    def stopped(*given: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            handlers[-1](signal.SIGTERM, None)
        return step(*given)

    monkeypatch.setattr(train, "train_step", stopped)
    run("halves")
    assert not (tmp_path / "halves" / "out").exists()
    run("halves")
    assert len(steps) == 6
    files = [tmp_path / folder / "out" / "model.safetensors" for folder in ("whole", "halves")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("spec", ["rerope", "window", "entropy-cap", "ntk+entropy-cap"])
@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
def test_what_rests_on_softmax_is_refused_where_attention_is_another(name: str, spec: str) -> None:
    model = fresh(name)
    with pytest.raises(UnsupportedModelError, match="'relu2' is not softmax"):
        ctxext.patch(model, spec, 1024)
    assert model.config._attn_implementation == "relu2"


@pytest.mark.parametrize("name", ["relu2", "relu2-norm"])
@torch.no_grad()
def test_relu2_takes_what_changes_queries_and_keys_alone(name: str) -> None:
    model, given = fresh(name), {}
    for spec in ("rope", "ntk", "logn"):
        with ctxext.patched(model, spec, 700):
            given[spec] = model(words(700)).logits
    assert not torch.allclose(given["ntk"], given["rope"], atol=1e-3)
    # where weights add up to 1, what multiplies a query's scores cancels: nothing sharpens them
    assert torch.allclose(given["logn"], given["rope"], atol=1e-4) == (name == "relu2-norm")


@torch.no_grad()
def test_another_attention_that_is_softmax_is_taken() -> None:
    transformers.AttentionInterface.register("other", transformers.AttentionInterface()["sdpa"])
    given, model = [], fresh("tiny")
    for attention in ("sdpa", "other"):
        model.config._attn_implementation = attention
        with ctxext.patched(model, "rerope", 700):
            given.append(model(words(700)).logits)
    assert torch.equal(*given)


@torch.no_grad()
def test_a_rule_is_for_layers_without_positions_too() -> None:
    model = fresh("hwfa")
    plain = model(words(900)).logits
    with ctxext.patched(model, "entropy-cap", 900):
        given = model(words(900)).logits
    assert torch.equal(given[:, :512], plain[:, :512])
    assert not torch.allclose(given[:, 512:], plain[:, 512:], atol=1e-4)
