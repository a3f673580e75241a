"""Paired standard errors, against a jackknife over windows and a record's own error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctxext.records import Difference, Record, difference
from ctxext.records.paired import influences, spread
from ctxext.tasks.acc import Accuracy
from ctxext.tasks.base import TokenScores, TokenTask
from ctxext.tasks.ppl import Perplexity

pytestmark = pytest.mark.quick

TASKS = (Perplexity(), Accuracy())


def scores(seed: int, sizes: list[int], harder: np.ndarray[Any, Any]) -> TokenScores:
    """Windows of these sizes, some harder than others for every model."""
    rng = np.random.default_rng(seed)
    window = np.repeat(np.arange(len(sizes)), sizes)
    nll = rng.gamma(2.0, 1.0, len(window)) + harder[window]
    return TokenScores(999, window, np.ones_like(window), nll, rng.random(len(window)) < 0.4)


def record(task: TokenTask, found: TokenScores) -> Record:
    score = task.summarise(found)
    facts = {"metric": task.metric, "value": score.value, "stderr": score.stderr}
    return {**facts, "by_window": found.by_window()}


def left_out(task: TokenTask, found: TokenScores, one: int) -> float:
    kept = found.window != one
    place = np.unique(found.window[kept], return_inverse=True)[1]
    columns = (found.position[kept], found.nll[kept], found.hit[kept])
    return task.summarise(TokenScores(found.length, place, *columns)).value


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_paired_error_is_that_of_leaving_out_windows(task: TokenTask) -> None:
    sizes = [200 + 3 * i % 7 for i in range(60)]
    harder = np.random.default_rng(9).normal(2.0, 0.5, 60)
    one, other = (scores(seed, sizes, harder) for seed in (1, 2))
    found = difference(record(task, one), record(task, other))
    assert found.value == task.summarise(one).value - task.summarise(other).value
    values = np.array([left_out(task, one, i) - left_out(task, other, i) for i in range(60)])
    jackknife = (59 / 60 * ((values - values.mean()) ** 2).sum()) ** 0.5
    # both estimate one number; they part in second order, by about a window's share, 1/60
    assert found.stderr == pytest.approx(jackknife, rel=3 / 60)
    apart = sum(record(task, x)["stderr"] ** 2 for x in (one, other)) ** 0.5
    if task.metric == "perplexity":
        assert found.stderr < apart / 3  # what is hard for both cancels


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_influences_give_the_error_of_the_record_itself(task: TokenTask) -> None:
    one = record(task, scores(3, [5, 9, 1, 30], np.zeros(4)))
    assert spread(influences(one)) == pytest.approx(one["stderr"], rel=1e-9)
    assert sum(influences(one)) == pytest.approx(0, abs=1e-12)


def test_no_error_without_pairs() -> None:
    one, other = (record(TASKS[0], scores(seed, [5, 9], np.zeros(2))) for seed in (1, 2))
    shifted = record(TASKS[0], scores(1, [9, 5], np.zeros(2)))
    single = record(TASKS[0], scores(1, [9], np.zeros(1)))
    for lone in ({**other, "by_window": None}, {**other, "metric": "passkey"}, shifted):
        assert difference(one, lone) == Difference(one["value"] - lone["value"])
    assert difference(single, single) == Difference(0)


@pytest.mark.parametrize("nll", [[1e308, 1e308], [2**62, 2**62], [1e308, 0], [0, 0]])
def test_an_error_beyond_all_numbers_is_none(nll: list[float]) -> None:
    """Of figures that no model gives, but that a record file may have."""
    hostile = {"metric": "perplexity", "value": 1e308}
    hostile["by_window"] = {"n": [2, 2], "nll": nll, "hits": [0, 0]}
    usual = {**hostile, "value": 3.0, "by_window": {"n": [2, 2], "nll": [2, 3], "hits": [0, 0]}}
    for one, other in ((hostile, usual), (usual, hostile), (hostile, hostile)):
        error = difference(one, other).stderr
        assert error is None or 0 <= error < float("inf")
