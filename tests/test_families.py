"""Every causal model type of the installed transformers takes methods exactly, or says why not."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import model_types, survey, tiny_model

import ctxext
from ctxext.engine.seams import STATE
from ctxext.models.families import families, tried

KNOWN = {family.model_type: family for family in families()}
TYPES = model_types()


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_type(kind: str) -> None:
    """Numbers are checked by `survey`; what it says is what `ctxext models --families` says."""
    row = survey(kind)
    if transformers.__version__ == tried():
        assert row == {k: v for k, v in KNOWN[kind]._asdict().items() if k != "model_type"}


@pytest.mark.skipif(transformers.__version__ != tried(), reason="the table is of another version")
def test_the_table_is_whole() -> None:
    assert sorted(KNOWN) == sorted(TYPES)
    assert sum(family.frequency == "yes" for family in KNOWN.values()) >= 105
    assert sum(family.distance == "yes" for family in KNOWN.values()) >= 100


WINDOWED = ["gemma2", "gemma3_text", "gpt_oss", "olmo3", "qwen2"]


@pytest.mark.parametrize("spec", ["ntk:factor=4", "yarn:factor=4+logn", "rerope:window=4+logn"])
@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_inside_the_trained_length_are_left_alone(kind: str, spec: str) -> None:
    """The first layer, which has a window of 16, gives the same bits; the model does not."""
    changes = {"sliding_window": 16}
    if kind == "qwen2":
        kinds = ["sliding_attention", "full_attention"] * 2
        changes |= {"use_sliding_window": True, "layer_types": kinds}  # type: ignore[dict-item]
    model = tiny_model(kind, **changes)
    ids = torch.arange(3, 90)[None]
    attention = model.model.layers[0].self_attn
    seen: list[torch.Tensor] = []
    attention.register_forward_hook(lambda *args: seen.append(args[2][0]))
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        with ctxext.patched(model, spec, 400) as handle:
            ours = model(ids, use_cache=False).logits
    assert torch.equal(seen[0], seen[-1])
    assert (ours - plain).abs().max() > 1e-3 * plain.abs().max()
    assert any("2 of 4 attention layers" in note for note in handle.notes)


@pytest.mark.parametrize("attn", ["auto", "eager", "dense"])
def test_norms_with_weights_after_the_rotation(attn: str) -> None:
    """HunYuan's; that a dimension is multiplied by its own weight must not be turned with it."""
    model = tiny_model("hunyuan_v1_dense")
    for layer in model.model.layers:
        for norm in (layer.self_attn.query_layernorm, layer.self_attn.key_layernorm):
            torch.nn.init.uniform_(norm.weight, 0.3, 3.0)
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        with ctxext.patched(model, "rerope:window=4096", attn=attn):
            wide = model(ids, use_cache=False).logits
        with ctxext.patched(model, "leaky-rerope:window=9,leak=1", attn=attn):  # rope again
            same = model(ids, use_cache=False).logits
    for ours in (wide, same):
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_a_layer_without_positions_is_plain_causal_attention() -> None:
    """SmolLM 3 rotates nothing in every fourth layer."""
    model = tiny_model("smollm3")
    rotates = [bool(layer.self_attn.use_rope) for layer in model.model.layers]
    assert set(rotates) == {True, False}
    with ctxext.patched(model, "rerope:window=4") as handle:
        state = getattr(model.model.layers[0].self_attn, STATE)
        found = [state.layers[layer.self_attn].source is not None for layer in model.model.layers]
        assert found == rotates
        assert handle.notes == []
