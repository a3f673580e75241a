"""Every causal model type of the installed transformers takes methods exactly, or says why not."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from commands import tried
from conftest import CACHE
from families import PLAIN_ROPE, model_types, tiny_config, tiny_model
from packaging.version import Version

import ctxext
from ctxext.engine.state import STATE
from ctxext.errors import UnsupportedModelError
from ctxext.models import families
from ctxext.models.trained import trained_length

KNOWN = {family.model_type: family for family in families.families()}
TYPES = model_types()


OLDER = Version(transformers.__version__) < Version(families.tried())
RENEW = "with this release of transformers run python scripts/families.py, which renews the table"


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_type(kind: str) -> None:
    """Numbers are checked by `tried`; what it says is what `ctxext models --families` says."""
    row = tried(kind)
    if not OLDER:
        known = KNOWN[kind]._asdict() if kind in KNOWN else {}
        assert {"model_type": kind, **row} == known, RENEW


def test_the_table_is_whole() -> None:
    """An older release may lack types, and no release may have others."""
    unlisted, gone = set(TYPES) - KNOWN.keys(), set() if OLDER else KNOWN.keys() - set(TYPES)
    assert (unlisted, gone) == (set(), set()), RENEW
    assert sum(family.frequency == "yes" for family in KNOWN.values()) >= 105
    assert sum(family.distance == "yes" for family in KNOWN.values()) >= 100
    assert sum(family.export == "yes" for family in KNOWN.values()) >= 100


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
        found = [state.layers[layer.self_attn].freqs is not None for layer in model.model.layers]
        assert found == rotates
        assert handle.notes == []


@pytest.mark.parametrize("spec", ["logn:clip=false", "rerope:window=8+logn:clip=false"])
def test_log_n_where_only_layers_without_positions_take_it(spec: str) -> None:
    """Llama 4: its rotated layers see a chunk back, and its others are not told positions."""
    types = ["chunked_attention"] * 3 + ["full_attention"]
    model = tiny_model(
        "llama4_text", attention_chunk_size=16, no_rope_layers=[1, 1, 1, 0], layer_types=types,
        max_position_embeddings=32,
    )  # fmt: skip
    ids = torch.arange(3, 90)[None]
    scale = torch.arange(1.0, 88.0).log() / math.log(32)
    with torch.no_grad():
        with ctxext.patched(model, spec):
            ours = model(ids, use_cache=False).logits
            cache = model(ids[:, :60], use_cache=True)[CACHE]
            later = model(ids[:, 60:], **{CACHE: cache}).logits
        model.model.layers[3].self_attn.q_proj.register_forward_hook(
            lambda module, args, queries: queries * scale[:, None]
        )
        scaled = model(ids, use_cache=False).logits
    for found, wanted in ((ours, scaled), (later, scaled[:, 60:])):
        assert (found - wanted).abs().max() <= 1e-5 * scaled.abs().max()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("spec", ["ntk:factor=4", "rerope:window=8"])
def test_gradient_checkpointing_with_another_forward_between(spec: str, reentrant: bool) -> None:
    """Layers that run again in the backward are left alone again."""
    ids = torch.arange(3, 90)[None]
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("gemma2", sliding_window=16)
        ctxext.patch(model, spec, 400)
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            options = {"use_reentrant": reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        loss = model(ids, labels=ids, use_cache=False).loss
        with torch.no_grad():
            model(ids[:, :30], use_cache=False)
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_layers_behind_hooks_that_copy_what_they_are_given() -> None:
    """As accelerate's are, where a model stands on several devices."""
    model, ids = tiny_model("gemma2", sliding_window=16), torch.arange(3, 90)[None]
    for spec in ("ntk:factor=4", "rerope:window=8"):
        with ctxext.patched(model, spec, 400), torch.no_grad():
            plain = model(ids, use_cache=False).logits
        hooks = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: (
                    args,
                    {
                        name: tuple(y.clone() for y in x) if isinstance(x, tuple) else x
                        for name, x in kwargs.items()
                    },
                ),
                with_kwargs=True,
            )
            for layer in model.model.layers
        ]
        with ctxext.patched(model, spec, 400), torch.no_grad():
            assert torch.equal(model(ids, use_cache=False).logits, plain)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3", "phi"])
def test_one_head_is_enough(kind: str) -> None:
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}
    for seed in range(10):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **heads)).eval()
        ctxext.patch(model, "rerope:window=8").remove()


def test_capped_scores_stay_capped_on_a_model_that_was_loaded_with_sdpa() -> None:
    """Which leaves the caps out: what is patched is the model as it was trained."""
    model, ids = tiny_model("gemma2", attn_logit_softcapping=0.5), torch.arange(3, 90)[None]
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        try:
            model.set_attn_implementation("sdpa")
        except ValueError:
            pytest.skip("this transformers refuses sdpa where scores are capped")
        with ctxext.patched(model, "rerope:window=4096") as handle:
            ours = model(ids, use_cache=False).logits
    assert handle.attention == "eager"
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("additive", [True, False])
def test_masks_that_see_ahead_are_refused(additive: bool) -> None:
    model, ids = tiny_model("llama"), torch.arange(3, 40)[None]
    size = (1, 1, ids.shape[1], ids.shape[1])
    mask = torch.zeros(size) if additive else torch.ones(size, dtype=torch.bool)
    with ctxext.patched(model, "rerope:window=8"):
        with pytest.raises(UnsupportedModelError, match="see what comes after them"):
            model(ids, attention_mask=mask, use_cache=False)
        seen = torch.ones(size, dtype=torch.bool).tril()
        given = torch.zeros(size).masked_fill(~seen, torch.finfo().min) if additive else seen
        with torch.no_grad():
            ours = model(ids, attention_mask=given, use_cache=False).logits
            plain = model(ids, use_cache=False).logits
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_another_implementation_on_a_patched_model_is_refused() -> None:
    model, ids = tiny_model("llama"), torch.arange(3, 40)[None]
    handle = ctxext.patch(model, "rerope:window=8")
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModelError, match="remove the patch first"):
        model(ids)
    handle.remove()
    model(ids)


def test_the_trained_length_of_a_layer_type() -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
    types = {"full_attention": {**yarn, "rope_theta": 1e6}, "sliding_attention": PLAIN_ROPE}
    config = tiny_config("gemma3_text", rope_parameters=types, max_position_embeddings=256)
    assert (trained_length(config), trained_length(config, "replace")) == (256, 32)
