"""95% intervals against scipy, against a likelihood maximised by search, and by their coverage."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from ctxext.records import Record, difference, interval
from ctxext.records.intervals import Interval, apart, student, tango, wilson

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("right", "count"), [(0, 1), (2, 2), (0, 10), (3, 7), (81, 263)])
def test_a_share_has_wilsons_interval(right: int, count: int) -> None:
    want = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((want.low, want.high), abs=1e-12)


@pytest.mark.parametrize(("count", "off"), [(10, 3e-4), (30, 3e-6), (500, 1e-9)])
def test_a_mean_has_students_interval(count: int, off: float) -> None:
    want = stats.t.ppf([0.025, 0.975], count - 1)
    assert student(0.0, 1.0, count) == pytest.approx(tuple(want), abs=off)


def score(gains: int, losses: int, count: int, apart: float) -> float:
    """Tango's statistic at a true difference, with the likelihood maximised by search."""

    def minus(lost: float) -> float:
        shares = (lost + apart, lost, 1 - 2 * lost - apart)
        rest = count - gains - losses
        terms = zip((gains, losses, rest), shares, strict=True)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

    low, high = max(0.0, -apart), (1 - apart) / 2
    found = optimize.minimize_scalar(minus, bounds=(low, high), options={"xatol": 1e-12})
    lost = min((low, high, found.x), key=minus)
    variance = count * (2 * lost + apart - apart**2)
    return (gains - losses - count * apart) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("gains", "losses", "count"), [(0, 0, 2), (2, 0, 2), (0, 1, 44), (5, 3, 20), (9, 2, 24)]
)
def test_paired_shares_have_tangos_interval(gains: int, losses: int, count: int) -> None:
    ends, z = tango(gains, losses, count), stats.norm.ppf(0.975)
    for end, want in zip(ends, (z, -z), strict=True):
        if abs(end) < 1:
            assert score(gains, losses, count, end) == pytest.approx(want, rel=1e-4)
    assert tango(losses, gains, count) == pytest.approx((-ends.high, -ends.low))


def test_nothing_apart_in_few_samples_says_as_little_as_none_found() -> None:
    for count in (1, 2, 10, 100):
        reach = wilson(0.0, count).high
        assert tango(0, 0, count) == pytest.approx((-reach, reach))


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.3, 0.1), (0.1, 0.6)])
def test_tangos_interval_holds_the_truth_as_often_as_it_says(gain: float, loss: float) -> None:
    count, held = 15, 0.0
    for gains, losses in itertools.product(range(count + 1), repeat=2):
        if gains + losses <= count:
            low, high = tango(gains, losses, count)
            cells = [gains, losses, count - gains - losses]
            if low <= gain - loss <= high:
                held += stats.multinomial.pmf(cells, count, [gain, loss, 1 - gain - loss])
    assert held > 0.93


def record(scores: list[float], **more: Any) -> Record:
    count = len(scores)
    stderr = float(np.std(scores, ddof=1)) / math.sqrt(count) if count > 1 else None
    named = {"task": "ruler:qa_1", "metric": "string_match_all"}
    facts = {**named, "buckets": [], "n": count, "stderr": stderr}
    kept = {"prompts": "ab", "scores": scores}
    return {**facts, "value": float(np.mean(scores)), "by_sample": kept, **more}


def test_a_record_of_shares_has_wilsons_interval_on_its_scale() -> None:
    assert interval(record([100.0, 100.0])) == pytest.approx(wilson(1, 2).times(100))
    assert interval(record([0.0])) == pytest.approx(wilson(0, 1).times(100))
    assert interval(record([50.0, 25.0, 75.0])) == pytest.approx(wilson(0.5, 3).times(100))
    shares = record([0.0, 1.0, 1.0, 1.0] * 10, metric="passkey")
    assert interval(shares) == pytest.approx(wilson(0.75, 40))


def test_wilsons_interval_holds_the_mean_of_scores_that_are_right_in_part() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        scores = 100 * rng.beta(0.5, 0.5, 12)
        low, high = interval(record(scores.tolist())) or (0, 0)
        held += low <= 50 <= high
    assert held >= 0.95 * 400


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "odd"},
        {"value": 101.0},
        {"n": 0},
        {"buckets": [{"n": 1}]},
        {"by_window": {"n": [1]}},
    ],
    ids=str,
)
def test_what_is_no_share_of_samples_has_no_interval(change: dict[str, Any]) -> None:
    assert interval(record([100.0, 0.0], **change)) is None


def test_a_task_says_what_a_perfect_score_is() -> None:
    told = record([3.0, 0.0], metric="odd", perfect_score=3.0)
    assert interval(told) == pytest.approx(wilson(0.5, 2).times(3))


@pytest.mark.parametrize(
    ("metric", "scores", "most"),
    [
        ("qa_f1_score", [0.25, 0.5], None),  # of ours it is from 0 to 100
        ("accuracy", [0.0, 100.0], None),
        ("acc", [0.0, 0.0, 100.0], None),
        ("accuracy", [0.0, 1.0], 1.0),
        ("acc", [0.0, 1.0], 1.0),
    ],
)
def test_another_librarys_scale_is_not_told_by_the_name_of_a_metric(
    metric: str, scores: list[float], most: float | None
) -> None:
    found = interval(record(scores, metric=metric, task="lm-eval:some"))
    assert found == (None if most is None else wilson(0.5, 2))


def test_differences_over_the_same_samples_are_paired() -> None:
    ours, theirs = [100, 100, 0, 100], [0, 100, 0, 0]
    found = difference(record(ours), record(theirs))
    assert found.value == 50
    assert found.stderr == pytest.approx(stats.sem([100, 0, 0, 100]))
    assert found.interval == pytest.approx(tango(2, 0, 4).times(100))
    same = difference(record(ours), record(ours))
    assert (same.value, same.interval) == (0, tango(0, 0, 4).times(100))

    rng = np.random.default_rng(0)
    base = rng.uniform(0, 100, 60).tolist()
    moved = [0.9 * x for x in base]
    found = difference(record(moved), record(base))
    steps = np.subtract(moved, base)
    want = stats.ttest_1samp(steps, 0).confidence_interval()
    assert found.interval == pytest.approx((want.low, want.high), rel=1e-5)


def test_other_samples_or_none_kept_are_not_paired() -> None:
    ours, theirs = record([100, 100]), record([0, 100])
    wide = apart(100, 50, wilson(1, 2).times(100), wilson(0.5, 2).times(100))
    for other in ({"by_sample": None}, {"by_sample": {"prompts": "cd", "scores": [0, 100]}}):
        found = difference(ours, {**theirs, **other})
        assert (found.value, found.stderr) == (50, None)
        assert found.interval == pytest.approx(wide)
    few = difference(record([50, 25]), record([40, 20]))
    assert few.interval is not None
    assert few.interval.low < 0 < few.interval.high
    odd = difference(record([5, 7], metric="odd"), record([5, 6], metric="odd"))
    assert (odd.value, odd.stderr, odd.interval) == (0.5, 0.5, None)


def test_two_independent_shares_have_newcombes_interval() -> None:
    """The first of his examples, 56 of 70 against 48 of 80: 0.0524 to 0.3339."""
    found = apart(56 / 70, 48 / 80, wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert found == pytest.approx(Interval(0.0524, 0.3339), abs=5e-5)
