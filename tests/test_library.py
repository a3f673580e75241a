"""`ctxext.evaluate`: the cells, records and store of `ctxext eval`, from Python."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_eval import Run, folders, here  # noqa: F401 - fixtures

import ctxext
from ctxext.errors import UsageError
from ctxext.models.loading import Source, load_model, load_tokenizer
from ctxext.records import Store, load, problem_with

pytestmark = pytest.mark.quick
ASKED: dict[str, Any] = {"lengths": [48, "64"], "tasks": "ppl,acc", "data": "t.txt", "limit": 2}
METHODS = ["rerope:window=8"]
SCORED = ("requested", "task", "length", "value", "stderr", "n", "by_window", "buckets")


@pytest.fixture
def model(here: Path) -> Any:  # noqa: F811
    return load_model(Source("plain"))


@pytest.fixture
def tokenizer(here: Path) -> Any:  # noqa: F811
    return load_tokenizer(Source("plain"))


def scores(records: Any) -> list[dict[str, Any]]:
    return [{name: record[name] for name in SCORED} for record in records]


def test_what_the_command_line_measured_is_found(
    run: Run,
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ("--task", "ppl,acc", "--len", "48,64", "--data", "t.txt", "--limit", "2", "--json")
    ran = run("eval", "--model", "plain", *argv, *(x for m in METHODS for x in ("--method", m)))
    found = ctxext.evaluate("plain", METHODS, out="results", **ASKED)
    assert [r["digest"] for r in found] == [r["digest"] for r in ran.records]
    assert len(found) == 2 * 2 * 2
    assert capsys.readouterr() == ("", "")
    anew = ctxext.evaluate("plain", METHODS, **ASKED)
    assert [r["key"] for r in anew] == [r["key"] for r in found]
    assert scores(anew) == scores(found)
    assert any("trained length 32" in line for line in anew.notes)


def test_a_loaded_model_is_measured_as_one_by_name_and_left_as_it_was(
    model: Any, tokenizer: Any, here: Path  # noqa: F811
) -> None:  # fmt: skip
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    config, weights = model.config.to_dict(), copy.deepcopy(model.state_dict())
    named = ctxext.evaluate("plain", METHODS, **ASKED)
    held = ctxext.evaluate(
        model, METHODS, tokenizer=tokenizer, out="kept", **ASKED | {"data": here / "t.txt"}
    )
    assert scores(held) == scores(named)
    assert {r["model"] for r in held} == {"plain"}
    assert [problem_with(r) for r in held] == [None] * len(held)
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    again = ctxext.evaluate(model, METHODS, tokenizer=tokenizer, out="kept", **ASKED)
    assert [r["key"] for r in again] == [r["key"] for r in held]
    assert [r["created"] for r in again] == [r["created"] for r in held]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    other = ctxext.evaluate(model, tokenizer=tokenizer, name="other", **ASKED)
    assert {r["key"] for r in other}.isdisjoint(r["key"] for r in held)
    assert {r["model"] for r in other} == {"other"}


def test_a_cell_that_fails_is_a_record(here: Path) -> None:  # noqa: F811
    done = ctxext.evaluate("plain", lengths=[64, "1m"], data="t.txt", limit=1)
    assert [r["status"] for r in done] == ["ok", "error"]
    assert done.failed == [done.records[1]]
    assert "too" in done.failed[0]["reason"] or "tokens" in done.failed[0]["reason"]
    assert repr(done) == "<Results: 2 records, 1 failed>"


def test_results_become_tables_frames_and_figures(here: Path) -> None:  # noqa: F811
    done = ctxext.evaluate("plain", METHODS, out="kept", **ASKED)
    kept, _ = Store("kept").read_all()
    frame, stored = done.to_dataframe(), load("kept")
    assert list(frame.columns) == list(stored.columns)
    assert sorted(frame["key"]) == sorted(stored["key"]) == sorted(r["key"] for r in kept)
    assert "| rerope:window=8 | " in done.table()
    assert r"\begin{tabular}" in done.table("latex")
    assert done.table("csv").startswith("model,task,metric")
    figures = done.plot()
    assert "perplexity--plain--t.txt" in figures
    assert {type(figure).__name__ for figure in figures.values()} == {"Figure"}
    with pytest.raises(UsageError, match=r"unknown table format 'html': .*csv, latex, md"):
        done.table("html")  # type: ignore[arg-type]


def test_progress_is_shown_where_it_is_asked_for(
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    ctxext.evaluate("plain", lengths=64, data="t.txt", limit=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/1] rope 64 perplexity" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": "nkt"}, "unknown method 'nkt': did you mean 'ntk'"),
        ({"lengths": ()}, "no lengths"),
        ({"tasks": []}, "no tasks"),
        ({"seeds": ()}, "no seeds"),
        ({"out": ""}, "bad out ''"),
        ({"lengths": 64.5}, "malformed length '64.5'"),
        ({"tasks": ["pppl"]}, "unknown task 'pppl': did you mean 'ppl'"),
        ({"data": "none.txt"}, "none.txt"),
        ({"data": 3}, "bad data 3"),
        ({"out": 3}, "bad out 3"),
        ({"limit": 0}, "bad value 0 for limit"),
        ({"batch_size": "x"}, "bad value 'x' for batch_size"),
        ({"dtype": "fp32"}, "unknown dtype 'fp32'"),
        ({"attn": "fast"}, "unknown attention path 'fast'"),
        ({"own_scaling": "drop"}, "unknown own_scaling 'drop'"),
        ({"device": "cudda"}, "device 'cudda' is not available"),
        ({"model": "tinny"}, "unknown model 'tinny'"),
        ({"model": 3}, "bad model 3"),
        ({"tokenizer": object()}, "tokenizer= is for a loaded model"),
        ({"name": "mine"}, "name= is for a loaded model"),
    ],
)
def test_what_cannot_be_meant_is_told(
    given: dict[str, Any],
    said: str,
    here: Path,  # noqa: F811
) -> None:
    asked = {"model": "plain", "methods": "ntk", "lengths": 64, "data": "t.txt", **given}
    with pytest.raises(UsageError) as raised:
        ctxext.evaluate(**asked)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_does_not_go_with_a_loaded_model(model: Any, tokenizer: Any) -> None:
    for given, said in (
        ({}, "needs its tokenizer"),
        ({"tokenizer": "plain"}, "bad tokenizer 'plain'"),
        ({"tokenizer": object()}, "bad tokenizer <object"),
        ({"tokenizer": tokenizer, "name": 3}, "bad name 3"),
        ({"tokenizer": tokenizer, "dtype": "float16"}, "dtype= says how a model is loaded"),
        ({"tokenizer": tokenizer, "revision": "main"}, "revision= says how"),
    ):
        with pytest.raises(UsageError, match=said):
            ctxext.evaluate(model, "ntk", 64, **given)
    with ctxext.patched(model, "ntk:factor=2"), pytest.raises(UsageError, match="patched already"):
        ctxext.evaluate(model, "ntk", 64, data="t.txt", limit=1, tokenizer=tokenizer)
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(UsageError, match="not in memory"):
        ctxext.evaluate(empty, "ntk", 64, data="t.txt", limit=1, tokenizer=tokenizer)
