"""Weights that an export takes are those that transformers loads; others are refused at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import random_model
from families import tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctxext import patches
from ctxext.errors import UsageError
from ctxext.export import write
from ctxext.export.write import Order, export

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
State = dict[str, Tensor]
Edit = Callable[[Path], None]


@pytest.fixture(autouse=True)
def without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "prove", lambda *_, **__: None)


def run(source: Path, **options: Any) -> tuple[str, ...]:
    """An export's notes."""
    out = source.parent / "out"
    return export(Order(source, patches.parse("ntk"), 128, out, force=True, **options)).notes


def refused(source: Path, said: str, **options: Any) -> None:
    """It is, in a line, before anything is written."""
    shutil.rmtree(source.parent / "out", ignore_errors=True)
    with pytest.raises(UsageError, match=said) as error:
        run(source, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def loads(folder: Path) -> bool:
    """Whether transformers has a weight for all of the model."""
    auto = transformers.AutoModelForCausalLM
    try:
        _, found = auto.from_pretrained(folder, output_loading_info=True)
    except Exception:
        return False
    return not (found["missing_keys"] or found["mismatched_keys"])


def state(change: Callable[[State], State]) -> Edit:
    def edit(folder: Path) -> None:
        new = {k: v.contiguous() for k, v in change(load_file(folder / WEIGHTS)).items()}
        save_file(new, folder / WEIGHTS, {"format": "pt"})

    return edit


def settings(**changes: object) -> Edit:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return edit


def content(change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))

    return edit


def renamed(change: Callable[[str], str]) -> Edit:
    return state(lambda s: {change(k): v for k, v in s.items()})


def without(*ends: str) -> Edit:
    return state(lambda s: {k: v for k, v in s.items() if not k.endswith(ends)})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
UP = "layers.1.mlp.up_proj.weight"
LLAMAS: dict[str, tuple[Edit, str]] = {  # what is done to a folder; what is said, or nothing
    "as saved": (lambda _: None, ""),
    "of a base model": (renamed(lambda k: k.removeprefix("model.")), ""),
    "a tensor too many": (state(lambda s: s | {"more": torch.ones(2)}), ""),
    "other precision": (state(lambda s: {k: v.bfloat16() for k, v in s.items()}), ""),
    "LFS pointer": (content(lambda _: POINTER), "Git LFS pointer .*git lfs pull"),
    "cut short": (content(lambda b: b[:-9]), r"no readable weights \(.*download it anew"),
    "cut in its header": (content(lambda b: b[:99]), "no readable weights"),
    "more bytes": (content(lambda b: b + b"more"), "no readable weights"),
    "empty": (content(lambda _: b""), "no readable weights"),
    "a page": (content(lambda _: b"<html>no such file</html>"), "no readable weights"),
    "prefix": (
        renamed(lambda k: f"other.{k}"),
        "lack 21 .*no place for 21, such as 'other.lm_head",
    ),
    "wrapped": (renamed(lambda k: f"_orig_mod.{k}"), "lack .*_orig_mod"),
    "no head": (without("lm_head.weight"), "lack 1 .*'lm_head.weight'"),
    "no embedding": (without("embed_tokens.weight"), "lack 1 .*embed_tokens"),
    "a tensor missing": (without(UP), f"lack 1 .*'model.{UP}'"),
    "other shape": (
        state(lambda s: {k: v[:9] if k.endswith(UP) else v for k, v in s.items()}),
        rf"1 tensors of another shape .*'model.{UP}', \[9, 64\] and not \[96, 64\]",
    ),
    "more layers in the config": (settings(num_hidden_layers=3), "lack 9 .*layers.2"),
    "bitsandbytes": (
        settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "cannot be loaded here: .*bitsandbytes.*--config-only",
    ),
    "gptq": (
        settings(quantization_config={"quant_method": "gptq", "bits": 4}),
        "cannot be loaded here: .*--config-only",
    ),
    "a quantization that transformers leaves alone": (
        settings(quantization_config={"quant_method": "mine"}),
        "",
    ),
}


@pytest.mark.parametrize("name", LLAMAS)
def test_what_transformers_loads_is_taken_and_nothing_else(name: str, tmp_path: Path) -> None:
    edit, said = LLAMAS[name]
    random_model().save_pretrained(tmp_path / "source")
    edit(tmp_path / "source")
    assert loads(tmp_path / "source") is not bool(said)
    if said:
        refused(tmp_path / "source", said)
    else:
        notes = run(tmp_path / "source")
        assert ["'more'" in note for note in notes] == [True] * (name == "a tensor too many")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """Transformers would take them for weights, without the scales that they are stored with."""
    random_model().save_pretrained(tmp_path / "source")
    turn = state(lambda s: {k: v.to(torch.int8) if "mlp" in k else v for k, v in s.items()})
    turn(tmp_path / "source")
    refused(tmp_path / "source", "whole numbers in 6 tensors.*no quantization")


@pytest.mark.parametrize(
    "kind",
    ["gemma3_text", "gemma2", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_neox", "phi3", "gpt_oss"],
)
def test_tied_renamed_and_merged_tensors_are_found(kind: str, tmp_path: Path) -> None:
    tiny_model(kind).save_pretrained(tmp_path / "source")
    assert loads(tmp_path / "source")
    assert not any("tensors" in note for note in run(tmp_path / "source"))
    names = sorted(load_file(tmp_path / "source" / WEIGHTS))
    without(names[len(names) // 2])(tmp_path / "source")
    assert not loads(tmp_path / "source")
    refused(tmp_path / "source", r"lack|cannot be loaded|another shape")


def test_untied_needs_a_head_that_tied_has_not(tmp_path: Path) -> None:
    random_model(tie_word_embeddings=True).save_pretrained(tmp_path / "source")
    assert "lm_head.weight" not in load_file(tmp_path / "source" / WEIGHTS)
    run(tmp_path / "source")
    settings(tie_word_embeddings=False)(tmp_path / "source")
    refused(tmp_path / "source", r"lack 1 .*lm_head\.weight")


def test_shards_that_are_not_what_the_index_says(tmp_path: Path) -> None:
    source = tmp_path / "source"
    random_model().save_pretrained(source, max_shard_size="60KB")
    run(source)
    first, *_, last = sorted(source.glob("*.safetensors"))
    shutil.copyfile(first, last)
    refused(source, rf"lack .* \(by {INDEX}, '{last.name}' should hold ")
    last.unlink()
    refused(source, f"1 of .* weight files are missing.*'{last.name}'")


@pytest.mark.parametrize("zipped", [True, False])
def test_of_pickles_the_file_alone_is_looked_at(zipped: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    random_model().save_pretrained(source)
    file = source / "pytorch_model.bin"
    torch.save(load_file(source / WEIGHTS), file, _use_new_zipfile_serialization=zipped)
    (source / WEIGHTS).unlink()
    (note,) = run(source, allow_pickle=True)
    assert "was not opened" in note
    whole = file.read_bytes()
    for wrong in (whole[:-999], POINTER, b"", b"<html>", whole[: len(whole) // 2]):
        if zipped or wrong[:2] != whole[:2]:  # of the older format the end is not known
            file.write_bytes(wrong)
            refused(source, "no readable weights|Git LFS pointer", allow_pickle=True)


def test_pointers_beside_the_weights_are_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_bytes(POINTER)
    refused(tmp_path / "source", r"tokenizer\.json' is a Git LFS pointer", config_only=True)
