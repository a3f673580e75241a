"""A proof holds for an export that is the patched model, and for no other."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import TRAINED, random_model
from families import tiny_model
from transformers import AutoConfig

import ctxext
from ctxext import patches
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import check, fresh, proof
from ctxext.export.proof import Figure, Proof, prove
from ctxext.export.small import merge, old_values, small_model
from ctxext.models.layout import find_sources, head_dim

LENGTH = 4 * TRAINED


def folder(path: Path, model: Any) -> Path:
    model.save_pretrained(path)
    return path


def edited(source: Path, stage: Path, **changes: object) -> Path:
    """A folder with the source's config, some keys of it changed, and no weights."""
    stage.mkdir(exist_ok=True)
    raw = json.loads((source / "config.json").read_text()) | changes
    (stage / "config.json").write_text(json.dumps(raw))
    return stage


def run(source: Path, stage: Path, spec: str, length: int = LENGTH, **options: Any) -> Proof:
    given = {"train_len": None, "trust_remote_code": False, "carried": False, "full": False}
    return prove(source, stage, patches.parse(spec), length, **{**given, **options})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs in this process, which takes a tenth of the time."""

    @contextlib.contextmanager
    def stand_in(box: Path, job: dict[str, Any], _: float | None) -> Iterator[fresh.Fresh]:
        stream = io.BytesIO()
        try:
            check._answer(stream, job)
            check.send(stream, "end", **check._about())
        except Exception as error:
            check.send(stream, "end", error=check.one_line(error))
        stream.seek(0)
        yield fresh.Fresh(SimpleNamespace(stdout=stream), box, None)  # type: ignore[arg-type]

    monkeypatch.setattr(proof, "fresh", stand_in)


# Native exports ----------------------------------------------------------------------------------

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = PLAIN | {"rope_type": "linear", "factor": 4.0}
LONG = {  # which divides by 4 too
    **PLAIN,
    **{"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0},
    **{"short_factor": [4.0] * 4, "long_factor": [4.0] * 4},
    **{"original_max_position_embeddings": 256, "partial_rotary_factor": 0.5},
}
HALF, QUARTER = {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.25}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # rotation of each; with pi
    **dict.fromkeys(("llama", "qwen3", "mixtral", "cohere", "gemma2"), (PLAIN, LINEAR)),
    "deepseek_v3": (PLAIN, LINEAR),
    "phi3": (PLAIN | HALF, LONG),
    "gpt_neox": (PLAIN | QUARTER, LINEAR | QUARTER),
    "gemma3_text": (
        {"sliding_attention": PLAIN, "full_attention": PLAIN},
        {"sliding_attention": PLAIN, "full_attention": LINEAR},
    ),
}
WINDOWS = {"gemma2": {"sliding_window": 128}, "gemma3_text": {"sliding_window": 16}}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_prove_right(kind: str, tmp_path: Path) -> None:
    own, rope = FAMILIES[kind]
    model = tiny_model(kind, rope_parameters=own, **WINDOWS.get(kind, {}))
    source = folder(tmp_path / "source", model)
    stage = edited(source, tmp_path / "stage", rope_parameters=rope)
    found = run(source, stage, "pi:factor=4", 256)
    assert all(figure.value == 0 for figure in found.figures), found.rows()
    assert found.moved is not None
    assert found.moved > proof.FAR * proof.EXACT
    assert found.notes == ()
    with pytest.raises(UnsupportedModelError, match="is not the patched"):
        run(source, edited(source, stage), "pi:factor=4", 256)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return folder(tmp_path / "source", random_model())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "named"),
    {
        "theta": ({"rope_theta": 10001.0}, "frequencies"),
        "a factor forgotten": ({"rope_type": "default"}, "frequencies"),
        "a factor nearly right": ({"factor": 4.00001}, "frequencies"),
        "attention scaled": (
            {
                **{"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.001},
                **{"short_factor": [4.0] * 8, "long_factor": [4.0] * 8},
                "original_max_position_embeddings": LENGTH,
            },
            "cos and sin",
        ),
        "other beyond T": (
            {
                **{"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0},
                **{"short_factor": [4.0] * 8, "long_factor": [5.0] * 8},
                "original_max_position_embeddings": TRAINED,
            },
            "frequencies",
        ),
    }.values(),
    ids=str,
)
def test_wrong_rotations_are_found(
    changes: dict[str, Any], named: str, llama: Path, tmp_path: Path
) -> None:
    stage = edited(llama, tmp_path / "stage", rope_parameters=LINEAR | changes)
    with pytest.raises(UnsupportedModelError, match=f"the patched llama model: .*{named}") as found:
        run(llama, stage, "pi:factor=4")
    assert "\n" not in str(found.value)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 49.0}),
        ("gemma2", {"final_logit_softcapping": 31.0}),
        ("gemma2", {"query_pre_attn_scalar": 255}),
        ("gemma2", {"sliding_window": 16}),
        ("llama", {"rms_norm_eps": 1e-5}),
        ("llama", {"head_dim": 8}),
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"vocab_size": 96}),
        ("mixtral", {"num_experts_per_tok": 1}),
    ],
    ids=str,
)
def test_other_settings_are_found(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(kind, rope_parameters=PLAIN, **WINDOWS.get(kind, {}))
    source = folder(tmp_path / "source", model)
    edited(source, tmp_path / "stage", rope_parameters=LINEAR)
    run(source, tmp_path / "stage", "pi:factor=4", 256)
    edited(source, tmp_path / "stage", rope_parameters=LINEAR, **changes)
    with pytest.raises(UnsupportedModelError) as found:
        run(source, tmp_path / "stage", "pi:factor=4", 256)
    assert "\n" not in str(found.value)
