"""A folder with a PEFT adapter is loaded with it or refused, and exported without it or not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import random_model, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

import ctxext
from ctxext import patches
from ctxext.errors import UsageError
from ctxext.export import write
from ctxext.export.write import Order, export
from ctxext.models import adapter as module
from ctxext.models.aliases import TINY
from ctxext.models.loading import Source, load_config, load_model, load_tokenizer

HERE = importlib.util.find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HERE, reason="PEFT is not installed")
KEY = "model.layers.{0}.self_attn.q_proj"
RANK, ALPHA = 4, 8


def adapt(folder: Path, base: Path) -> Path:
    """An adapter of the queries in `folder`, as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    seed = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (RANK, 64), "lora_B": (64, RANK)}
    weights = {
        f"base_model.model.{KEY.format(layer)}.{name}.weight": torch.randn(shape, generator=seed)
        / 4
        for layer in (0, 1)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def merged(base: Path, folder: Path) -> transformers.PreTrainedModel:
    """W + (alpha/r) B A, by hand."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(base)).eval()
    state = load_file(base / "model.safetensors")
    held = load_file(folder / "adapter_model.safetensors")
    for layer in (0, 1):
        a, b = (held[f"base_model.model.{KEY.format(layer)}.lora_{x}.weight"] for x in "AB")
        state[f"{KEY.format(layer)}.weight"] += ALPHA / RANK * b @ a
    model.load_state_dict(state)
    return model


@torch.no_grad()
def logits(model: transformers.PreTrainedModel, spec: str = "rope") -> Tensor:
    with ctxext.patched(model, spec, 128):
        return model(tokens(64)).logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    random_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture(params=["alone", "beside"])
def folder(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    """An adapter alone, and one beside the weights that it is for."""
    if request.param == "beside":
        shutil.copytree(base, tmp_path / "adapted")
    return adapt(tmp_path / "adapted", base)


@needs_peft
@pytest.mark.parametrize("spec", ["rope", "yarn", "rerope:window=8+logn"])
def test_an_adapter_is_loaded_with_its_model(spec: str, base: Path, folder: Path) -> None:
    told: list[str] = []
    model = load_model(Source(str(folder)), told.append)
    assert len(told) == 1
    assert "with its PEFT adapter" in told[0]
    want = logits(merged(base, folder), spec)
    torch.testing.assert_close(logits(model, spec), want, rtol=1e-4, atol=1e-4)  # 64 products
    assert float((logits(random_model(), spec) - want).abs().max()) > 0.1


def test_without_peft_no_adapter_is_left_out_in_silence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: False)
    with pytest.raises(UsageError, match="pip install peft; or merge it") as error:
        load_model(Source(str(folder)))
    assert "\n" not in str(error.value)


def test_an_adapter_names_its_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_require_peft", lambda _: None)
    assert load_config(Source(str(folder))).num_hidden_layers == 2
    (folder / "config.json").unlink(missing_ok=True)
    for wrong, said in (("{}", "does not name what it is for"), ("[", "no readable JSON")):
        (folder / "adapter_config.json").write_text(wrong)
        with pytest.raises(UsageError, match=said):
            load_config(Source(str(folder)))


def test_an_adapter_without_a_tokenizer_has_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_require_peft", lambda _: None)
    folder = adapt(tmp_path / "adapted", TINY)
    assert load_tokenizer(Source(str(folder))).vocab_size == 2048
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "none"}')
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_tokenizer(Source(str(folder)))


def test_an_export_has_the_whole_model_and_no_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "prove", lambda *_, **__: None)
    alone = adapt(tmp_path / "alone", base)
    beside = adapt(shutil.copytree(base, tmp_path / "beside"), base)
    order = Order(alone, patches.parse("pi"), 128, tmp_path / "out")
    config = shutil.copytree(alone, tmp_path / "config")
    shutil.copyfile(base / "config.json", config / "config.json")
    for source in (alone, config):
        with pytest.raises(UsageError, match=r"no whole model: merge it first \(PEFT's merge_and"):
            export(Order(source, order.spec, 128, order.out))
    with pytest.raises(UsageError, match="leave out --verify full"):
        export(Order(beside, order.spec, 128, order.out, full=True))
    assert not order.out.exists()
    done = export(Order(beside, order.spec, 128, order.out))
    assert not any("adapter" in name for name in done.files)
    assert "is left out" in done.notes[0]
    assert "adapter beside the weights" in (order.out / "README.md").read_text()
    written = load_file(order.out / "model.safetensors")
    torch.testing.assert_close(written, load_file(base / "model.safetensors"), rtol=0, atol=0)
