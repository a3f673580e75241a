"""`ctxext tune`: what it searches, what may win, what a killed search does again, what it says.

The search itself runs on a random model of trained length 32, whose values were not chosen: only
what holds for any values is asserted, against records and formulas computed here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_eval import Ran, Run, folders, here, letters  # noqa: F401

from ctxext import patches, tasks
from ctxext.advise.tune import outcome as outcomes
from ctxext.advise.tune.outcome import Comparison, Outcome, Trial
from ctxext.advise.tune.search import Search, TuneRequest
from ctxext.advise.tune.space import Space, parse_families
from ctxext.advise.tune.unseen import compare
from ctxext.errors import UsageError
from ctxext.measure import tokens as reading
from ctxext.measure.loaded import Loaded
from ctxext.measure.run import Evaluation
from ctxext.methods.base import Rotary, Span
from ctxext.models.loading import Source
from ctxext.records import Interval, Store
from ctxext.records.intervals import tango
from ctxext.records.paired import Difference
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_methods
from ctxext.tasks.passkey import PassKey
from ctxext.tasks.ppl import Perplexity
from ctxext.tasks.scoring.tokens import BLOCKS, TokenScores

TRAINED, LENGTH = 32, 64
TAIL = tasks.parse("ppl-tail")
SCALES = {n for n in patches.names() if patches.REGISTRY.get(n).changes == "query scale"}
SPECS = (
    "ntk+rerope",
    "rerope+logn:clip=false",
    "leaky-rerope:window=5",
    "beta-radix:b=0.625",
    "yarn:beta_slow=20",
    "yarn:beta_fast=2",
    "llama3:low_freq_factor=3",
    "llama3:high_freq_factor=1.5",
)


class Drawn:
    """Draws by a random generator, now and then from the very ends."""

    def __init__(self, seed: int) -> None:
        self._rng, self.ends = random.Random(seed), seed % 3
        self.found: dict[str, Any] = {}

    def _between(self, name: str, low: float, high: float) -> float:
        assert low <= high, name
        self.found[name] = [self._rng.uniform(low, high), low, high][self.ends]
        return self.found[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        assert low > 0 or not log
        return self._between(name, low, high)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        assert (type(low), type(high)) == (int, int)
        assert low > 0 or not log
        return round(self._between(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.found[name] = self._rng.choice(list(choices))
        return self.found[name]


class Given:
    """Draws what it was given, which must be in range."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.left = dict(values)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = self.left.pop(name)
        assert low <= value <= high, (name, low, value, high)
        return value

    suggest_int = suggest_float

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        assert self.left[name] in choices
        return self.left.pop(name)


def space(trained: int, length: int, *methods: str) -> Space:
    span = Span(trained, length)
    return Space(parse_families(methods, span), span)


spans = st.integers(2, 5000).flatmap(
    lambda t: st.tuples(st.just(t), st.integers(t + 1, 100 * t + 7))
)


@settings(max_examples=150, deadline=None)
@given(spans, st.integers(0, 10**6), st.sampled_from([(), *((spec,) for spec in SPECS)]))
def test_every_spec_of_the_space_parses_resolves_and_can_be_computed(
    span: tuple[int, int], seed: int, methods: tuple[str, ...]
) -> None:
    trained, length = span
    spec = space(trained, length, *methods).draw(Drawn(seed))
    method = spec.resolve(Span(trained, length))
    assert patches.parse(str(method)) == method == patches.parse(method.full())
    theta = tuple(10000 ** (-i / 4) for i in range(4))
    scales = method.scales(Rotary(theta, 10000.0, trained))
    assert all(scale > 0 for scale in scales)  # NaN is not; ∞ is of pairs that do not turn
    if method.distance is not None:
        assert method.distance.parts()[0].start == 0
        window = getattr(method.distance, "window", None)
        assert window is None or 1 <= window <= trained or "window" in str(methods)


@settings(max_examples=60, deadline=None)
@given(spans)
def test_every_default_is_in_the_space(span: tuple[int, int]) -> None:
    found = space(*span)
    whole = Span(*span)
    for default in found.defaults():
        draw = Given(default.drawn)
        drawn = found.draw(draw).resolve(whole).full()
        assert draw.left == {}
        kept = default.spec.resolve(whole).full()
        assert [p.partition(":")[0] for p in drawn.split("+")] == [
            p.partition(":")[0] for p in kept.split("+")
        ]
        numbers = [[float(v) for v in _values(text) if v[0].isdigit()] for text in (drawn, kept)]
        assert numbers[0] == pytest.approx(numbers[1], rel=5e-3)  # three digits are kept


def _values(spec: str) -> list[str]:
    pairs = [pair for item in spec.split("+") for pair in item.partition(":")[2].split(",")]
    return [pair.partition("=")[2] for pair in pairs if pair]


def test_all_methods_but_those_for_training_or_with_a_file_are_searched() -> None:
    names = {family.name for family in parse_families((), Span(512, 4096))}
    left_out = {n for n in patches.names() if n not in names and n not in SCALES}
    assert left_out == {"inv-leaky-rerope", "longrope"}
    assert len(list(space(512, 4096).defaults())) == 2 * len(names)


def test_every_parameter_but_a_few_is_searched() -> None:
    """What is left out: dca's other two, entropy-cap's sinks, the length that dynamic-ntk is for,
    which is L, the ladder of what goes by the length at hand, factors by layer, the bands of
    jet-long-freq, and what is no number."""
    span = Span(512, 4096)
    missing = set()
    for family in parse_families((), span):
        (method,) = family.spec.methods
        searched = {name for _, name in family.ranges(span)}
        fields = {field.name for field in dataclasses.fields(method)} - {"ladder", "layers"}
        missing |= {f"{method.name}:{name}" for name in fields - searched}
    assert missing == {
        "dca:local",
        "entropy-cap:sinks",
        "dca:reach",
        "dynamic-ntk:sequence",
        "mrrope:kind",
        "cope:hard",
        "jet-long-freq:beta_fast",
        "jet-long-freq:beta_slow",
    }


def test_given_parameters_stay() -> None:
    for text, kept in (("beta-radix:b=0.625", "b=0.625"), ("yarn: beta_fast = 32", "beta_fast=32")):
        (_, family) = parse_families([text], Span(512, 4096))
        for seed in range(20):
            assert kept in family.draw(Drawn(seed), Span(512, 4096)).full()
    assert patches.given("ntk:factor=1e+3+yarn: beta_slow=2 , factor=3+logn") == [
        {"factor"},
        {"beta_slow", "factor"},
        set(),
    ]


def test_a_query_scale_is_drawn_unless_one_is_given() -> None:
    drawn = {str(space(512, 4096, "rope").draw(Drawn(seed))) for seed in range(99)}
    assert drawn == {"rope", *SCALES}
    fixed = space(512, 4096, "rerope+logn:clip=false").families[1]
    assert fixed.draw(Drawn(1), Span(512, 4096)).query_scales == (
        patches.parse("logn:clip=false").methods[0],
    )


def test_a_default_that_does_not_exist_is_left_out() -> None:
    defaults = space(512, 4096, "leaky-rerope:window=400").defaults()
    assert [str(one.spec) for one in defaults] == ["rope", "logn"]


@pytest.mark.parametrize("spec", ["inv-leaky-rerope", "longrope"])
def test_methods_that_cannot_be_tried_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=f"{spec} cannot be tuned .*valid: .*rerope"):
        parse_families([spec], Span(512, 4096))


def a_trial(number: int, value: float | None, tax: float | None, **more: Any) -> Trial:
    spec = patches.parse(f"rerope:window={number + 1}")
    given: dict[str, Any] = {"default": False, "status": "ok", "reason": None, "stderr": 0.1}
    given |= {"seconds": 1.0, "read": 2, "keys": ("k",), **more}
    return Trial(number, spec, value=value, tax=tax, **given)


def an_outcome(*trials: Trial, lower: bool = True) -> Outcome:
    source = Source("a model", revision="v1", train_len=32)
    metric = "perplexity" if lower else "passkey"
    return Outcome(source, 32, 64, "a task", metric, lower, 0.02, list(trials))


def test_what_is_over_the_bound_or_failed_is_shown_and_cannot_win() -> None:
    trials = (
        a_trial(0, 9.0, 0.0, default=True),
        a_trial(1, 5.0, 0.03),
        a_trial(2, 7.0, 0.02),
        a_trial(3, None, None, status="oom", reason="memory"),
        a_trial(4, 8.0, -0.1, default=True),
    )
    outcome = an_outcome(*trials)
    assert [t.number for t in outcome.ranked] == [2, 4, 0, 1, 3]
    assert outcome.winner is trials[2]
    assert outcome.best_default is trials[4]
    assert [r["winner"] for r in outcomes.records(outcome)] == [True] + [False] * 4
    assert [r["within_tax"] for r in outcomes.records(outcome)] == [True] * 3 + [False] * 2


def test_higher_shares_are_better_and_ties_go_to_less_tax_and_then_the_first() -> None:
    trials = (
        a_trial(0, 0.2, 0.0, default=True),
        a_trial(1, 1.0, 0.015, default=True),
        a_trial(2, 1.0, 0.01),
        a_trial(3, 1.0, 0.01),
    )
    assert [t.number for t in an_outcome(*trials, lower=False).ranked] == [2, 3, 1, 0]


def in_finals(trial: Trial, value: float | None, tax: float | None, **more: Any) -> Trial:
    more = {"keys": ("f",), "read": 6, "value": value, "tax": tax, **more}
    return dataclasses.replace(trial, final=dataclasses.replace(trial, **more))


@pytest.mark.parametrize("lower", [True, False])
def test_finalists_are_ordered_by_the_finals_and_come_before_others(lower: bool) -> None:
    sign = 1.0 if lower else -1.0
    first, second, third, fourth = (a_trial(n, sign * (n + 1.0), 0.0) for n in range(4))
    default, other = a_trial(4, sign * 5.0, 0.0, default=True), a_trial(5, sign * 0.5, 0.9)
    outcome = an_outcome(first, second, third, fourth, default, other, lower=lower)
    assert [t.number for t in outcome.finalists(3)] == [0, 1, 4]
    assert [t.number for t in outcome.finalists(5)] == [0, 1, 2, 3, 4]
    assert [t.number for t in outcome.finalists(9)] == [0, 1, 2, 3, 4]
    outcome.trials = [
        in_finals(first, sign * 8.0, 0.0),
        in_finals(second, sign * 6.0, 0.03),
        in_finals(third, None, None, status="oom", reason="memory"),
        fourth,
        in_finals(default, sign * 7.0, 0.02),
        other,
    ]
    assert [t.number for t in outcome.ranked] == [4, 0, 3, 1, 5, 2]
    assert outcome.winner is outcome.best_default is outcome.trials[4]
    found = outcomes.records(outcome)
    assert [(r["status"], r["reason"]) for r in found[-2:]] == [("ok", None), ("oom", "memory")]
    assert [r["value"] for r in found] == [sign * n for n in (5.0, 1.0, 4.0, 2.0, 0.5, 3.0)]
    assert found[0]["final"] == {"value": sign * 7.0, "stderr": 0.1, "tax": 0.02, "read": 6}
    assert (found[0]["keys"], found[0]["read"]) == (["k", "f"], 2)
    assert found[2]["final"] is None


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Difference(-0.5, 0.2), "-0.500 ± 0.200 (paired): better"),
        (Difference(0.5, 0.2), "+0.500 ± 0.200 (paired): worse: take the default"),
        (Difference(-0.3, 0.2), "-0.300 ± 0.200 (paired): no difference beyond 2 standard errors"),
        (
            Difference(-2.0, 0.0, Interval(-2.0, 0.4)),
            "-2.000 [-2.000, +0.400] (paired): its 95% interval holds 0",
        ),
        (Difference(-2.0, 0.0, Interval(-2.0, -0.4)), "-2.000 [-2.000, -0.400] (paired): better"),
        (Difference(-0.3, None), "-0.300 (paired): one alone tells nothing of its error"),
    ],
)
def test_the_verdict_says_how_the_winner_did_on_unseen_text(
    difference: Difference, said: str
) -> None:
    outcome = an_outcome(a_trial(0, 9.0, 0.0, default=True), a_trial(1, 8.0, 0.0))
    outcome.comparison = Comparison(outcome.trials[0], difference, 12, "windows")
    lines = outcomes.verdict(outcome)
    assert lines[0] == "winner: rerope:window=2"
    assert lines[1].startswith("on 12 windows that the search did not read, perplexity against")
    assert lines[1].endswith(said)
    advised = 0 if "worse" in said else 1
    use = f"ctxext patch --model 'a model' --method {outcome.trials[advised].spec} "
    use += "--len 64 --out DIR --revision v1 --train-len 32"
    assert lines[2] == f"use it: {use}"
    found = {record["trial"]: record["command"] for record in outcomes.records(outcome)}
    assert found == {advised: use, 1 - advised: None}


def test_without_a_winner_or_a_better_one_the_verdict_says_so() -> None:
    assert outcomes.verdict(an_outcome(a_trial(0, 9.0, 1.0))) == [
        "no winner: no trial is within the tax of 0.02 nats per token"
    ]
    lines = outcomes.verdict(an_outcome(a_trial(0, 9.0, 0.0, default=True)))
    assert lines[1] == "it is a default: the search found nothing better"


def test_the_comparison_is_over_the_windows_that_follow() -> None:
    """Against sums by hand: two windows seen, two left, of 10 and 30 tokens."""
    n = [10, 10, 10, 30]
    facts = {"metric": "perplexity", "value": 99.0, "windows": 4}
    a = {**facts, "by_window": {"n": n, "nll": [1, 9, 20, 30], "hits": [0] * 4}}
    b = {**facts, "by_window": {"n": n, "nll": [7, 7, 24, 48], "hits": [0] * 4}}
    found = compare(a, b, 2)
    assert found is not None
    assert found[0].value == pytest.approx(math.exp(50 / 40) - math.exp(72 / 40))
    assert found[0].stderr is not None
    assert found[1] == 2
    assert compare(a, b, 4) is None
    assert compare({**a, "by_window": None}, b, 2) is None
    hostile = {**b, "by_window": {**b["by_window"], "nll": [7, 7, 1e308, 1e308]}}
    assert compare(a, hostile, 2) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 3000), st.floats(0, 1), st.integers(0, 10**6))
def test_windows_that_are_kept_together_with_one_seen_do_not_count(
    windows: int, share: float, seed: int
) -> None:
    """A window of 1 token and the loss 0 where it was seen, 1 where it was not."""
    seen = max(1, int(share * (windows - 1)))
    window = np.arange(windows)
    nll = np.asarray(window >= seen, dtype=float)
    scores = TokenScores(2, window, np.ones_like(window), nll, nll > 0)
    one = {"metric": "perplexity", "windows": windows, "by_window": scores.by_window()}
    other = {**one, "by_window": {**one["by_window"], "nll": [0.0] * len(one["by_window"]["n"])}}
    found = compare(one, other, seen)
    together = -(-windows // BLOCKS)
    if found is None:
        assert windows - seen < together
    else:
        assert found[0].value == pytest.approx(math.e - 1)  # all of them unseen
        assert windows - seen - together < found[1] <= windows - seen


def test_the_comparison_of_answers_is_over_the_samples_that_follow() -> None:
    facts = {"task": "passkey", "metric": "passkey", "buckets": [], "value": 0.8}
    facts |= {"stderr": 0.2, "n": 5}
    a, b = (
        {**facts, "by_sample": {"prompts": "ab", "scores": scores}}
        for scores in ([0, 1, 1, 1, 1], [1, 1, 0, 0, 1])
    )
    found = compare(a, b, 2)
    assert found is not None
    assert found[0].value == pytest.approx(2 / 3)  # right in 3 of 3 against 1 of 3
    assert found[0].stderr == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))
    assert found[0].interval == pytest.approx(tango(2, 0, 3))
    assert found[1] == 3
    assert compare(a, b, 5) is None
    other = {**b, "by_sample": {**b["by_sample"], "prompts": "cd"}}
    assert compare(a, other, 2) is compare(a, {**b, "by_sample": None}, 2) is None


def tune(run: Run, *more: Any) -> Ran:
    """A short search of a random model, a family, two windows a trial."""
    given = ["--model", "plain", "--data", "t.txt", "--limit", 2, "--out", "out"]
    given += ["--trials", 8, "--method", "streaming", "--seed", 3]
    given += ["--tax", 0.05]
    return run("tune", *given, *(() if "--len" in more else ("--len", LENGTH)), *more)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    folders: dict[str, Path],  # noqa: F811
) -> tuple[Path, list[dict[str, Any]]]:
    """The records of that search, made once, and what it found."""
    place = tmp_path_factory.mktemp("made")
    (place / "t.txt").write_text(letters())
    shutil.copytree(folders["plain"], place / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        request = TuneRequest(
            Source("plain"),
            LENGTH,
            ("streaming",),
            data="t.txt",
            trials=8,
            tax=0.05,
            limit=2,
            seed=3,
            out=Path("out"),
        )
        found = outcomes.records(Search(request).run())
    return place / "out", found


@pytest.fixture
def done(made: tuple[Path, list[dict[str, Any]]], here: Path) -> list[dict[str, Any]]:  # noqa: F811
    """What the search found, its records at hand."""
    shutil.copytree(made[0], here / "out")
    return made[1]


def ppl_of(path: str, key: str) -> dict[str, Any]:
    record = Store(path).finished(key)
    assert record is not None
    return record


def test_a_search_is_made_of_records_and_the_best_of_them_are_read_again(
    run: Run,
    done: list[dict[str, Any]],
) -> None:
    ran = tune(run, "--json")
    assert ran.code == 0, ran.err
    assert ran.records == done
    found = sorted(ran.records, key=lambda r: r["trial"])
    assert [r["method"] for r in found[:4]] == [
        "rope", "logn", "streaming:window=28", "streaming:window=28+logn",
    ]  # fmt: skip
    assert [r["default"] for r in found] == [True] * 4 + [False] * (len(found) - 4)
    assert len({r["method"] for r in found}) == len(found)
    base = ppl_of("out", found[0]["keys"][1])["value"]
    for one in found:
        objective, inside = (ppl_of("out", key) for key in one["keys"][:2])
        resolved = patches.parse(one["method"]).full()
        assert objective["method"] == inside["method"] == resolved
        assert (objective["length"], inside["length"]) == (LENGTH, TRAINED)
        assert (objective["task"], inside["task"]) == ("ppl-tail", "ppl")
        assert one["value"] == objective["value"]
        assert one["tax"] == pytest.approx(math.log(inside["value"] / base), abs=1e-12)
        assert one["within_tax"] == ((one["final"] or one)["tax"] <= 0.05)
    best = sorted((r for r in found if r["tax"] <= 0.05), key=lambda r: r["value"])
    default = next(r for r in best if r["default"])
    expected = best[:6] if default in best[:6] else [*best[:5], default]
    assert {r["trial"] for r in found if r["final"]} == {r["trial"] for r in expected}
    (winner,) = [r for r in found if r["winner"]]
    assert ran.records[0] == winner
    assert winner["command"].split()[:2] == ["ctxext", "patch"]
    assert [r["command"] is None for r in found] == [not r["advised"] for r in found]
    assert sum(r["advised"] for r in found) == sum(r["winner"] for r in found) == 1


def evaluated(
    run: Run,
    methods: Sequence[str],
    task: str,
    length: int,
    limit: int,
) -> list[dict[str, Any]]:
    """The records that eval makes of the search's text, in the order of the methods."""
    given = [part for method in methods for part in ("--method", method)]
    given += ["--data", "t.txt", "--task", task, "--len", str(length), "--limit", str(limit)]
    ran = run("eval", "--model", "plain", "--out", "other", "--json", *given)
    found = {record["method"]: record for record in ran.records}
    return [found[patches.parse(method).full()] for method in methods]


def test_the_winner_is_the_best_finalist_on_six_times_the_windows(
    run: Run,
    done: list[dict[str, Any]],
) -> None:
    finalists = [r for r in done if r["final"]]
    assert {r["default"] for r in finalists} == {True, False}
    methods = [r["method"] for r in finalists]
    records = evaluated(run, methods, "ppl-tail", LENGTH, 12)
    base, *inside = [
        record["value"] for record in evaluated(run, ["rope", *methods], "ppl", TRAINED, 24)
    ]
    allowed = {}
    for one, record, value in zip(finalists, records, inside, strict=True):
        tax = math.log(value / base)
        assert one["final"]["value"] == pytest.approx(record["value"], rel=1e-9)
        assert one["final"]["tax"] == pytest.approx(tax, abs=1e-9)
        assert one["final"]["read"] == 12
        assert one["keys"][2] == record["key"]
        if tax <= 0.05:
            allowed[one["method"]] = record["value"]
    assert done[0]["winner"]
    assert done[0]["method"] == min(allowed, key=allowed.__getitem__)


def test_a_finalist_that_fails_drops_out_with_its_reason(
    run: Run,
    done: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(reading, "score", fail)
    next(Path("out").glob(f"*{done[0]['keys'][2][:12]}.json")).unlink()
    ran = tune(run, "--json")
    assert ran.code == 0  # there is a winner, and the failed one is told
    assert ": oom: " in ran.err
    assert ran.records[0]["method"] == done[1]["method"]
    (failed,) = [r for r in ran.records if r["status"] != "ok"]
    assert (failed["method"], failed["status"]) == (done[0]["method"], "oom")
    assert (failed["winner"], failed["within_tax"]) == (False, False)
    assert failed["value"] == done[0]["value"]
    assert f"{failed['method']}: oom: {failed['reason']}" in ran.err.splitlines()


def test_the_winner_is_compared_on_windows_that_neither_trial_nor_finalist_read(
    run: Run,
    done: list[dict[str, Any]],
) -> None:
    winner = done[0]
    assert not winner["default"]  # small windows suit a model that only repeats
    against = next(r["method"] for r in done if r["default"] and r["within_tax"])
    assert winner["unseen"]["against"] == against
    assert winner["unseen"]["windows"] == 12
    pair = evaluated(run, (winner["method"], against), "ppl-tail", LENGTH, 24)
    kept = [record["by_window"] for record in pair]
    values = [math.exp(sum(one["nll"][12:]) / sum(one["n"][12:])) for one in kept]
    assert winner["unseen"]["difference"] == pytest.approx(values[0] - values[1], abs=1e-9)


@pytest.mark.parametrize(("windows", "final", "left"), [(30, 12, 12), (16, 8, 8), (11, 5, 6)])
def test_what_there_is_is_shared_by_the_finals_and_the_comparison(
    run: Run,
    done: list[dict[str, Any]],
    windows: int,
    final: int,
    left: int,
) -> None:
    """Two windows a trial, so twelve in the finals, where as many are left."""
    ran = tune(run, "--json", "--tokens", windows * LENGTH)
    assert ran.code == 0, ran.err
    assert {r["final"]["read"] for r in ran.records if r["final"]} == {final}
    assert ran.records[0]["unseen"]["windows"] == left


def test_a_search_begun_again_computes_nothing_and_finds_the_same(
    run: Run,
    done: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(reading, "score", lambda *a, **k: calls.append(a))
    assert tune(run, "--json").records == done
    assert calls == []


def test_a_search_that_was_interrupted_goes_on_where_it_ended(
    run: Run,
    here: Path,  # noqa: F811
    made: tuple[Path, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No windows are read twice, and the same trials are made as without the interrupts: in the
    fourth trial that is proposed, and in the finals."""
    count, real, after = 0, reading.score, [15, 30]

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count in after:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(reading, "score", counted)
    stopped = tune(run, "--json")
    assert stopped.code == 130
    assert "interrupted: finished trials are kept" in stopped.err
    assert {r["method"] for r in stopped.records} < {r["method"] for r in made[1]}
    stopped = tune(run, "--json")
    assert stopped.code == 130
    assert "finals: " in stopped.err
    assert {r["method"] for r in stopped.records} == {r["method"] for r in made[1]}
    assert not any(r["final"] for r in stopped.records)
    again = tune(run, "--json")
    plain = [[{**r, "seconds": 0} for r in found] for found in (again.records, made[1])]
    assert plain[0] == plain[1]
    assert count - len(after) == len({record["key"] for record in Store(made[0]).read_all()[0]})


def zeroed(folder: str) -> None:
    """Weights of 0, in a file that looks as old as the one before it."""
    file = Path(folder) / "model.safetensors"
    was = file.stat()
    save_file({n: torch.zeros_like(w) for n, w in load_file(file).items()}, file, {"format": "pt"})
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size


def test_a_model_that_has_changed_is_loaded_again(run: Run, here: Path) -> None:  # noqa: F811
    """A model of zeros finds all tokens of its vocabulary equally likely."""
    cells = EvaluationRequest(
        Source("plain"), parse_methods([]), (32,), (Perplexity(),), "t.txt", 2, out=here
    )
    loaded = Loaded()
    (before,) = Evaluation([cells], loaded=loaded).run()
    zeroed("plain")
    (after,) = Evaluation([cells], loaded=loaded).run()
    vocabulary = json.loads(Path("plain/config.json").read_text())["vocab_size"]
    assert before["model_sha256"] != after["model_sha256"]
    assert after["value"] == pytest.approx(vocabulary, rel=1e-6)
    assert before["value"] != pytest.approx(vocabulary, rel=1e-6)


@pytest.mark.parametrize("what", ["model", "data"])
def test_a_search_ends_where_the_model_or_the_data_changes(
    run: Run,
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    count, real = 0, reading.score

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 6 and what == "model":
            zeroed("plain")
        elif count == 6:
            Path("t.txt").write_text(letters()[::-1])
        return real(*given, **more)

    monkeypatch.setattr(reading, "score", counted)
    ran = tune(run, "--json")
    assert (ran.code, ran.out) == (1, "")
    assert "have changed since the search began: begin again" in ran.err.splitlines()[-1]


def test_a_killed_search_leaves_its_finished_trials(
    run: Run,
    here: Path,  # noqa: F811
) -> None:
    given = ["tune", "--model", "plain", "--data", "t.txt", "--len", "64", "--limit", "2"]
    given += ["--method", "rerope", "--trials", "3", "--tax", "9", "--out", "out"]
    argv = [sys.executable, "-m", "ctxext", *given]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list(Path("out").glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.json")}
    assert len(kept) >= 3
    again = run(*given, "--json")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sum(record["winner"] for record in again.records) == 1


def test_the_table_has_every_default_and_the_winner(
    run: Run,
    done: list[dict[str, Any]],
) -> None:
    ran = tune(run)
    lines = ran.out.splitlines()
    assert sum(" default" in line for line in lines if "│" in line) == 4
    assert sum("winner" in line for line in lines if "│" in line) == 1
    assert any(line.startswith("winner: ") for line in lines)
    assert lines[-1].startswith("use it: ctxext patch --model plain --method ")
    assert "[4/19] streaming:window=28+logn" in ran.err
    assert "[13/19] finals: " in ran.err
    assert "finals" in next(line for line in lines if "perplexity" in line)


def test_names_are_shown_as_they_are(
    run: Run,
    here: Path,  # noqa: F811
) -> None:
    """In the table, brackets are no markup, and nothing of a name commands the terminal."""
    lists = Path("[x]/[/b].json")
    lists.parent.mkdir(parents=True)
    lists.write_text(json.dumps({"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}))
    Path("plain").rename("[red]\x1b[2Jplain")
    spec = f"longrope:factors=@{lists}"
    ran = tune(run, "--model", "[red]\x1b[2Jplain", "--trials", 0, "--tax", 9, "--method", spec)
    assert ran.code == 0, ran.err
    table = ran.out.partition("winner: ")[0]
    assert "[red]" in table
    assert "@[x]/[/b].json" in table
    assert "\x1b" not in table


def test_what_failed_inside_has_no_figures_and_large_ones_are_short(
    run: Run,
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NaN at T for all but the unpatched model, and losses of about 480 nats."""
    count, real = 0, reading.score

    def spoilt(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        found = real(*given, **more)
        return found._replace(nll=found.nll * (math.nan if count == 4 else 100))

    monkeypatch.setattr(reading, "score", spoilt)
    ran = tune(run, "--trials", 0, "--json")
    (failed,) = [r for r in ran.records if r["status"] != "ok"]
    assert (failed["value"], failed["stderr"], failed["tax"]) == (None, None, None)
    assert any((r["value"] or 0) > 1e100 for r in ran.records)
    ran = tune(run, "--trials", 0)
    assert max(len(line) for line in ran.out.splitlines() if "│" in line) <= 100


def test_a_retrieval_score_is_sought_too(run: Run, here: Path) -> None:  # noqa: F811
    ran = run(
        "tune", "--model", "plain", "--len", 512, "--train-len", 256, "--objective",
        "passkey:samples=2,depths=3", "--limit", 2, "--trials", 0, "--method", "ntk",
        "--tokens", "2k", "--tax", 100, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert [r["metric"] for r in ran.records] == ["passkey"] * 4
    winner = ran.records[0]
    assert winner["final"]["value"] == max(r["final"]["value"] for r in ran.records)
    assert {r["final"]["read"] for r in ran.records} == {3}  # half of six
    inside = ppl_of("results/tune", winner["keys"][1])
    assert inside["data"]["name"] == "stdlib"


def test_a_method_that_the_model_cannot_take_is_a_failed_trial(
    run: Run,
    done: list[dict[str, Any]],
) -> None:
    ran = tune(run, "--json", "--trials", 0, "--method", "longrope:factors=@lists.json")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no file 'lists.json'" in ran.err
    Path("lists.json").write_text(json.dumps({"short_factor": [1.0], "long_factor": [2.0]}))
    ran = tune(run, "--json", "--trials", 0, "--method", "longrope:factors=@lists.json")
    assert ran.code == 0  # logn is there to win
    failed = [r for r in ran.records if r["status"] == "error"]
    assert len(failed) == 2
    assert all("has 1 numbers, and the model 8 pairs" in r["reason"] for r in failed)
    assert not any(r["winner"] or r["within_tax"] for r in failed)
    assert ran.err.count("has 1 numbers") >= 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--trials", -1), "bad value -1 for --trials: give 0 …"),
        (("--tax", -0.1), "bad value -0.1 for --tax: give nats per token, 0 or more"),
        (("--tax", "nan"), "bad value nan for --tax"),
        (("--tax", "inf"), "bad value inf for --tax"),
        (("--limit", 0), "bad value 0 for --limit: give 1 …"),
        (("--seed", -1), "bad value -1 for --seed"),
        (("--len", 32), "--len 32 is not beyond the trained length 32"),
        (("--len", "4x"), "malformed length '4x'"),
        (("--len", "64,128"), "--len 64,128 are 2: give one"),
        (("--objective", "ppl"), "--objective cannot be ppl: give ppl-tail, or a task whose"),
        (("--objective", "lm-eval:arc_easy"), "--objective cannot be lm-eval:arc_easy"),
        (("--objective", "pplt"), "unknown task 'pplt': did you mean 'ppl'?"),
        (("--objective", "passkey,kv"), "--objective passkey,kv are 2: give one"),
        (("--method", "rerop"), "unknown method 'rerop': did you mean 'rerope'?"),
        (("--method", "inv-leaky-rerope"), "inv-leaky-rerope cannot be tuned"),
        (("--data", "none.txt"), "data 'none.txt' cannot be read"),
        (("--model", "no-such"), "model 'no-such'"),
        (("--attn", "quick"), "unknown attention path 'quick'"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(
    run: Run,
    here: Path,  # noqa: F811
    given: tuple[Any, ...],
    said: str,
) -> None:
    ran = tune(run, "--json", *given)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert said in ran.err.splitlines()[-1]
    assert not Path("out").exists() or not list(Path("out").glob("*.json"))


@dataclasses.dataclass(frozen=True)
class Lost(PassKey):
    """A task whose number is better the lower it is."""

    higher_is_better = False


@dataclasses.dataclass(frozen=True)
class Untold(PassKey):
    """A task that does not say which is better."""

    higher_is_better = None


def test_what_is_better_is_what_the_task_says() -> None:
    for task, lower in ((PassKey(), False), (Lost(), True)):
        search = Search(TuneRequest(Source("tiny"), 1024, objective=task))
        assert search.outcome.lower is lower
    with pytest.raises(UsageError, match="does not say whether more of its passkey is better"):
        TuneRequest(Source("tiny"), 1024, objective=Untold())


def test_data_too_short_for_a_window_is_refused(run: Run, here: Path) -> None:  # noqa: F811
    Path("short.txt").write_text("a b c")
    ran = tune(run, "--data", "short.txt")
    assert ran.code == 2
    assert "fewer than one window of 64" in ran.err


def test_without_text_left_there_are_no_finals_and_no_comparison(run: Run, here: Path) -> None:  # noqa: F811
    ran = tune(run, "--tokens", 2 * LENGTH, "--trials", 1)
    assert ran.code == 0
    assert "not compared on unseen text" in ran.out or "it is a default" in ran.out
    assert "finals" not in ran.out
    assert "finals: " not in ran.err


def test_without_optuna_one_line_says_how_to_have_it(
    run: Run,
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = tune(run)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: ctxext tune needs Optuna: pip install 'ctxext[tune]'\n"
