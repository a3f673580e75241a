"""What a cell will take: counted by hand, for plain configs; and `--dry-run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_model
from test_eval import Ran, Run, evaluate, kept, letters, runner, save_model

from ctxext.estimate import Shape
from ctxext.models import loading

ASKED = ("--model", "plain", "--data", "t.txt", "--limit", "3")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(run: Run, *argv: str) -> Ran:
    ran = run("eval", *ASKED, *argv, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    return ran


# The arithmetic.


def test_the_shape_of_a_llama() -> None:
    shape = Shape.of(random_model())  # 64 wide, 96 inside, 4 heads of 16, 2 for keys; 97 tokens
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3
    assert (shape.active, shape.head, shape.vocabulary) == (2 * layer, 97 * 64, 97)
    assert (shape.hidden, shape.heads, shape.layers, shape.windows) == (64, 64, 2, (None, None))
    assert shape.parameters == 2 * layer + 2 * 97 * 64 + 5 * 64
    assert shape.read(1) == 2 * 2 * layer + 2 * 4 * 64


def test_a_token_meets_the_experts_it_is_sent_to() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, **heads, num_local_experts=8, num_experts_per_tok=2)
    with torch.device("meta"):
        shape = Shape.of(MixtralForCausalLM(config))
    assert shape.active == 4 * 32 * 32 + 8 * 32 + 2 * 3 * 32 * 48


@pytest.mark.parametrize(("tokens", "after"), [(1, 0), (7, 0), (5, 3), (9, 30), (40, 0)])
@pytest.mark.parametrize("window", [None, 1, 4, 16])
def test_pairs_are_counted_one_by_one(tokens: int, after: int, window: int | None) -> None:
    shape = Shape(0, 0, 0, 1, heads=1, windows=(window,), layers=1)
    seen = [range(q + 1)[-window if window else None :] for q in range(after, after + tokens)]
    assert shape.read(tokens, after) == 4 * sum(map(len, seen))


def test_a_forward_after_a_cache_costs_what_it_adds(llama: Any) -> None:
    shape = Shape.of(llama)
    assert shape.read(10) + shape.read(6, after=10) == shape.read(16)


# The command.


def test_the_cells_are_printed_and_nothing_is_computed_or_written(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(loading, "load_model", load)
    before = sorted(here.rglob("*"))
    argv = ("--len", "32,64", "--method", "rerope:window=8", "--task", "ppl,acc,kv:samples=1")
    lines = dry(run, *argv, "--seed", "0,1").records
    assert sorted(here.rglob("*")) == before
    assert [(e["method"], e["length"], e["task"], e["seed"]) for e in lines] == [
        (method, length, task, seed)
        for method in ("rope", "rerope:window=8")
        for length in (32, 64)
        for task, seed in (("ppl", 0), ("acc", 0), ("kv:samples=1", 0), ("kv:samples=1", 1))
    ]
