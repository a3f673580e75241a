"""What is read from a config alone, where its layers differ or it is made of several."""

from __future__ import annotations

import json
from pathlib import Path

import conftest
import pytest
from families import LAYERS, VOCABULARY, tiny_config, tiny_model
from transformers import PreTrainedConfig, RwkvConfig

import ctxext
from ctxext.errors import UnsupportedModelError
from ctxext.export import native
from ctxext.export.check import kept
from ctxext.measure.attempts import reads_in_parts
from ctxext.measure.costs.work import Shape
from ctxext.models.contents import to_config
from ctxext.models.layout import head_dim, layer_windows
from ctxext.models.outline import outline

HEADS = {"llama": 16, "gemma4": 32, "gemma4_text": 32, "dots3_note_text": 20, "blt": 16}


@pytest.mark.parametrize("kind", HEADS)
def test_the_largest_head_of_any_layer(kind: str) -> None:
    """Global layers of Gemma 4 have 32 dimensions, Dots 3's sliding ones 12 + 8; BLT's parts 16."""
    assert head_dim(tiny_config(kind)) == HEADS[kind]


def test_a_config_without_attention_heads_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="rwkv: the config names no attention heads"):
        head_dim(RwkvConfig())


def test_windows_that_are_a_layers_own() -> None:
    config = PreTrainedConfig(num_hidden_layers=3, head_dim=8, sliding_window=16)
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    config.per_layer_config = {2: {"sliding_window": 8}}
    kinds = [("sliding_attention", 16), ("full_attention", None), ("sliding_attention", 8)]
    assert layer_windows(config) == kinds


def test_the_shape_of_a_model_whose_layers_are_not_alike() -> None:
    shape = Shape.of(tiny_model("gemma4_text"))
    assert (shape.heads, shape.layers) == (4 * HEADS["gemma4_text"], LAYERS)


def test_a_model_made_of_several_is_read_at_once() -> None:
    model = tiny_model("blt")
    assert not reads_in_parts(model)  # no cache is made for its config
    assert Shape.of(model).vocabulary == VOCABULARY


def test_an_outline_leaves_the_config_as_it_is() -> None:
    """Else the proof of a wrapper's export finds a dtype where the file has none."""
    config = tiny_config("gemma3")
    before = kept(config, [])
    outline(config)
    assert kept(config, []) == before


def test_infinities_in_a_config(tmp_path: Path) -> None:
    """Transformers writes them as objects, by which its own classes cannot be built."""
    config = tiny_config("bamba")
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert {"__float__": "Infinity"} in raw["time_step_limit"]
    assert to_config(type(config), raw).time_step_limit[1] == float("inf")
    native._without_old_keys(raw, config, False)


def test_frequencies_in_another_order_are_refused() -> None:
    """λ goes by a pair's number."""
    model = conftest.random_model()
    rotary = model.base_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.flip(0)
    with pytest.raises(UnsupportedModelError, match="not in order"):
        ctxext.patch(model, "ntk:factor=4")
    ctxext.patch(model, "rerope:window=4").remove()
