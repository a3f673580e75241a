"""What configs say of rotary embeddings: read as transformers reads it, or refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ctxext import patch
from ctxext.errors import UsageError
from ctxext.models.loading import Source, load_config

HEAD, BASE = 8, 5000.0
THETA = np.float64(BASE) ** (-2 * np.arange(HEAD // 2) / HEAD)
LISTS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 8.0]}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": BASE,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}


def read(folder: Path, settings: dict[str, Any], model_type: str = "llama") -> Any:
    """The config of a folder that holds nothing but a config.json."""
    raw = {"model_type": model_type, **SHAPE, **settings}
    raw = {key: value for key, value in raw.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    return load_config(Source(str(folder)))


def frequencies(config: Any, sequence: int = 1) -> Any:
    """What a model of it turns by, when it reads so many tokens."""
    model = AutoModelForCausalLM.from_config(config)
    [rotary] = [m for m in model.modules() if hasattr(m, "inv_freq")]
    rotary(torch.zeros(1, 1, 1), torch.tensor([[sequence - 1]]))
    return rotary.inv_freq.double().numpy()


def yarn(factor: float, original: int, fast: float = 32, slow: float = 1) -> Any:
    """The paper's ramp between the pairs that turn `fast` and `slow` times, as whole pairs."""
    low, high = (
        HEAD * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE))
        for turns in (fast, slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), HEAD - 1)
    ramp = np.clip((np.arange(HEAD // 2) - low) / (high - low), 0, 1)
    return THETA * (1 - ramp) + THETA / factor * ramp


def llama3(factor: float, original: int) -> Any:
    """Llama 3.1's three ranges of wavelengths, with 1 and 4."""
    turns = original * THETA / (2 * math.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    return THETA * ((1 - smooth) / factor + smooth)


def dynamic(factor: float, sequence: int, longest: int) -> Any:
    stretch = factor * sequence / longest - (factor - 1)
    return THETA * stretch ** (-2 * np.arange(HEAD // 2) / (HEAD - 2))


RIGHT: dict[str, tuple[dict[str, Any], Any]] = {
    "none": ({}, THETA),
    "null": ({"rope_scaling": None}, THETA),
    "empty": ({"rope_scaling": {}}, THETA),
    "theta within": (
        {"rope_theta": ..., "rope_parameters": {"rope_theta": BASE, "rope_type": "default"}},
        THETA,
    ),
    "theta within alone": ({"rope_theta": ..., "rope_parameters": {"rope_theta": BASE}}, THETA),
    "type": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, THETA / 4),
    "rope_type": ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, THETA / 4),
    "both types": (
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}},
        THETA / 4,
    ),
    "both blocks": (
        {
            "rope_scaling": {"type": "linear", "factor": 4},
            "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": BASE},
        },
        THETA / 4,
    ),
    "parameters": ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, THETA / 4),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, dynamic(2, 512, 256)),
    "yarn": ({"rope_scaling": {"type": "yarn", **YARN}}, yarn(4, 64)),
    "yarn, finetuned": ({"rope_scaling": {"type": "yarn", **YARN, "finetuned": True}}, yarn(4, 64)),
    "yarn, attn_factor 1": (
        {"rope_scaling": {"type": "yarn", **YARN, "attn_factor": 1}},
        yarn(4, 64),
    ),
    "yarn, null": (
        {"rope_scaling": {"type": "yarn", **YARN, "factor": None, "beta_fast": None}},
        yarn(4, 64),
    ),
    "yarn, betas": (
        {"rope_scaling": {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2}},
        yarn(4, 64, 16, 2),
    ),
    "yarn, original beside": (
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 4},
            "original_max_position_embeddings": 64,
        },
        yarn(4, 64),
    ),
    "llama3": ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, llama3(4, 64)),
    "llama3, as of Llama 4": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
        np.where(64 * THETA / (2 * math.pi) < 1, THETA / 4, THETA),
    ),
    "longrope": (
        {"rope_scaling": {"type": "longrope", **YARN, **LISTS}},
        THETA / LISTS["long_factor"],
    ),
}


@pytest.mark.parametrize("spelling", RIGHT)
def test_what_transformers_reads_right_is_left_as_it_is(tmp_path: Path, spelling: str) -> None:
    settings, wanted = RIGHT[spelling]
    found = frequencies(read(tmp_path, settings), 512)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # some roundings of float32


PHI3 = {
    "su": {"type": "su", "original_max_position_embeddings": 64},
    "longrope": {"type": "longrope"},
    "yarn, of first Phi-3 models": {"type": "yarn", "factor": 4.0},
}


@pytest.mark.parametrize("spelling", PHI3)
def test_names_that_phi3_had_for_longrope(tmp_path: Path, spelling: str) -> None:
    settings = {"original_max_position_embeddings": 64, "rope_scaling": {**PHI3[spelling], **LISTS}}
    config = read(tmp_path, settings, "phi3")
    for sequence, key in ((64, "short_factor"), (65, "long_factor")):
        found = frequencies(config, sequence)
        np.testing.assert_allclose(found, THETA / LISTS[key], rtol=1e-6)


def scaling(**settings: Any) -> dict[str, Any]:
    return {"rope_scaling": settings}


LAYERS = {"layer_types": ["full_attention"]}
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a list": ({"rope_scaling": [{"type": "linear"}]}, ("rope_scaling", "object")),
    "a text": ({"rope_scaling": "linear"}, ("rope_scaling", '"linear"', "object")),
    "a number": ({"rope_parameters": 4}, ("rope_parameters", "4", "object")),
    "false": ({"rope_parameters": False}, ("rope_parameters", "false", "object")),
    "an empty list": ({"rope_scaling": []}, ("rope_scaling", "[]", "object")),
    "an object for a number": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": {"a": 1}}},
        ("rope_theta", '{"a": 1}', "number above 1"),
    ),
    "two bases": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_theta": 5e5},
        ("rope_parameters.rope_theta", "10000", "500000", "leave one"),
    ),
    "two shares": (
        {
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0},
            "partial_rotary_factor": 0.5,
        },
        ("partial_rotary_factor", "0.5", "leave one"),
    ),
    "no type": (scaling(factor=4.0), ("'factor'", "rope_type", "linear")),
    "null type": (scaling(rope_type=None, factor=4.0), ("rope_type", "null", "linear")),
    "number type": (scaling(type=4, factor=4.0), ("rope_scaling.type", "4", "linear")),
    "unknown type": (scaling(type="ntk", factor=4.0), ("'ntk'", "dynamic")),
    "capital": (scaling(type="Linear", factor=4.0), ("'Linear'", "did you mean 'linear'")),
    "su elsewhere": (scaling(type="su", **YARN, **LISTS), ("'su'", "longrope")),
    "su without a length": (
        {**scaling(type="su", **LISTS), "original_max_position_embeddings": 64},
        ("rope_scaling.type", '"su"', '"longrope"'),
    ),
    "mrope elsewhere": (scaling(type="mrope", mrope_section=[1, 1, 2]), ("'mrope'", "default")),
    "two types": (
        scaling(type="linear", rope_type="dynamic", factor=4.0),
        ("'linear'", "'dynamic'", "differ"),
    ),
    "two blocks": (
        {**scaling(type="linear", factor=4.0), "rope_parameters": {"rope_theta": 1e6}},
        ("rope_scaling and rope_parameters", "rope_theta"),
    ),
    "text factor": (scaling(type="yarn", **{**YARN, "factor": "4.0"}), ("factor", '"4.0"', "1")),
    "no factor": (scaling(type="linear"), ("'linear'", "'factor'", "at least 1")),
    "null factor": (scaling(type="linear", factor=None), ("factor", "null", "at least 1")),
    "zero factor": (scaling(type="linear", factor=0), ("factor", "0", "at least 1")),
    "below one": (scaling(type="dynamic", factor=0.5), ("factor", "0.5", "at least 1")),
    "negative": (scaling(type="dynamic", factor=-2.0), ("factor", "-2.0", "at least 1")),
    "nan": (scaling(type="linear", factor=math.nan), ("factor", "NaN", "at least 1")),
    "infinite": (scaling(type="linear", factor=math.inf), ("factor", "Infinity", "at least 1")),
    "true": (scaling(type="linear", factor=True), ("factor", "true", "at least 1")),
    "list factor": (scaling(type="linear", factor=[4.0]), ("factor", "[4.0]", "at least 1")),
    "attention": (
        scaling(type="yarn", **YARN, attention_factor="1.2"),
        ("attention_factor", '"1.2"', "above 0"),
    ),
    "attn_factor": (scaling(type="yarn", **YARN, attn_factor=1.2), ("attn_factor", "1.2")),
    "betas": (
        scaling(type="yarn", **YARN, beta_fast=1, beta_slow=32),
        ("beta_fast", "1", "at least beta_slow"),
    ),
    "text beta": (scaling(type="yarn", **YARN, beta_fast="32"), ("beta_fast", '"32"')),
    "mscale": (scaling(type="yarn", **YARN, mscale="1"), ("mscale", '"1"')),
    "truncate": (scaling(type="yarn", **YARN, truncate="no"), ("truncate", "true or false")),
    "text original": (
        scaling(type="yarn", factor=4.0, original_max_position_embeddings="64"),
        ("original_max_position_embeddings", '"64"', "whole number"),
    ),
    "zero original": (
        scaling(type="llama3", **{**LLAMA3, "original_max_position_embeddings": 0}),
        ("original_max_position_embeddings", "0", "at least 2"),
    ),
    "two originals": (
        {**scaling(type="yarn", **YARN), "original_max_position_embeddings": 128},
        ("64", "128", "leave one"),
    ),
    "no original": (scaling(type="yarn", factor=4.0), ("original_max_position", "--train-len")),
    "high below low": (
        scaling(rope_type="llama3", **{**LLAMA3, "high_freq_factor": 0.5}),
        ("high_freq_factor", "0.5", "low_freq_factor"),
    ),
    "no low": (
        scaling(rope_type="llama3", **YARN, high_freq_factor=4.0),
        ("'llama3'", "'low_freq_factor'"),
    ),
    "short list": (
        scaling(type="longrope", **YARN, **{**LISTS, "long_factor": [1.0, 2.0]}),
        ("long_factor", "2 numbers", "give 4"),
    ),
    "null list": (
        scaling(type="longrope", **YARN, **{**LISTS, "short_factor": None}),
        ("short_factor", "null", "list"),
    ),
    "text in list": (
        scaling(type="longrope", **YARN, **{**LISTS, "short_factor": ["1", 1, 1, 1]}),
        ("short_factor", "list of numbers"),
    ),
    "one list": (
        scaling(type="longrope", **YARN, long_factor=[1.0] * 4),
        ("'longrope'", "'short_factor'"),
    ),
    "text theta": ({"rope_theta": "5000"}, ("rope_theta", '"5000"', "10000")),
    "theta within": (
        {"rope_parameters": {"rope_theta": None, "rope_type": "default"}},
        ("rope_parameters.rope_theta", "null"),
    ),
    "zero theta": ({"rope_theta": 0}, ("rope_theta", "0", "above 1")),
    "partial": ({"partial_rotary_factor": "0.5"}, ("partial_rotary_factor", "at most 1")),
    "local": ({"rope_local_base_freq": "1e4"}, ("rope_local_base_freq", '"1e4"')),
    "longest": ({"max_position_embeddings": "256"}, ("max_position_embeddings", '"256"')),
    "layer types": (
        {**LAYERS, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": "2"}}},
        ("rope_parameters.full_attention.factor", '"2"'),
    ),
    "beside layer types": (
        {**LAYERS, "rope_parameters": {"full_attention": {"rope_type": "default"}, "factor": 2}},
        ("'factor'", "full_attention"),
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_meant_is_refused_by_its_key(tmp_path: Path, fault: str) -> None:
    settings, words = REFUSED[fault]
    model_type = "gemma3_text" if "layer_types" in settings else "llama"
    with pytest.raises(UsageError) as caught:
        read(tmp_path, settings, model_type)
    line = str(caught.value)
    assert line.startswith(f"model {str(tmp_path)!r}: ")
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_a_config_that_was_edited_by_hand_is_refused_by_patch() -> None:
    config = LlamaConfig(**{k: v for k, v in SHAPE.items() if k != "rope_theta"})
    model = AutoModelForCausalLM.from_config(config)
    model.config.rope_parameters = {"rope_type": "linear", "factor": "4", "rope_theta": BASE}
    with pytest.raises(UsageError, match=r'rope_parameters\.factor cannot be "4": give a number'):
        patch(model, "ntk:factor=2")


def test_a_length_that_a_family_overrides_is_refused(tmp_path: Path) -> None:
    """Phi-3's class has an original length of its own, and takes no other from the block."""
    inside = {"type": "longrope", "original_max_position_embeddings": 64, **LISTS}
    with pytest.raises(UsageError, match="is 64, but phi3 takes 4096: write it beside the block"):
        read(tmp_path, {"rope_scaling": inside}, "phi3")


def test_a_trained_length_that_is_given_needs_no_original(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="256, is the length before it or after: add it, or give"):
        read(tmp_path, scaling(type="yarn", factor=4.0))
    assert load_config(Source(str(tmp_path), train_len=64)).max_position_embeddings == 256
