"""Progress: the ETA by costs, the lines without a terminal, and the two lines on one."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from rich.console import Console

from ctxext.advise import progress
from ctxext.cli import console
from ctxext.measure.monitor import Monitor, Step
from ctxext.system import hub


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def record(**changes: Any) -> dict[str, Any]:
    whole = {"requested": "ntk", "task": "ppl", "metric": "perplexity", "length": 512}
    found = {"status": "ok", "value": 5.25, "seconds": 2.0, "tokens_per_second": 2048.0}
    return {**whole, **found, **changes}


def test_a_long_cell_is_not_taken_to_last_as_long_as_a_short_one(clock: Clock) -> None:
    course = progress.Course()
    course.begin(Step("short", 100, "tokens", 1.0, {"tokens": 30.0}))
    assert course.eta() is None
    clock.now += 2
    course.end()
    assert course.eta() == pytest.approx(60)
    course.begin(Step("long", 100, "tokens", 30.0, {}))
    assert course.eta() == pytest.approx(60)
    clock.now += 20  # twice as quick as the short one was
    course.read = 50
    assert course.rate == pytest.approx(2.5)
    assert course.eta() == pytest.approx(15 * 22 / 16)


def test_each_kind_goes_at_its_own_pace_and_an_unmeasured_one_at_the_mean(clock: Clock) -> None:
    course = progress.Course()
    for kind, seconds in (("tokens", 2), ("passkey", 10)):
        course.begin(Step("cell", 10, kind, 1.0, {}))
        clock.now += seconds
        course.end()
    course.begin(Step("loading", left={"tokens": 3.0, "passkey": 2.0, "kv": 1.0}))
    clock.now += 100  # which is no cell's
    assert course.eta() == pytest.approx(3 * 2 + 2 * 10 + 6)


def test_nobody_knows_how_long_a_cell_of_unknown_cost_takes(clock: Clock) -> None:
    course = progress.Course()
    course.begin(Step("known", 10, "tokens", 1.0, {"tokens": 1.0, "lm-eval": math.nan}))
    clock.now += 1
    course.end()
    assert course.eta() is None
    course.begin(Step("unknown", 0, "lm-eval", math.nan, {"tokens": 1.0}))
    clock.now += 1
    course.end()
    assert course.eta() == pytest.approx(1)


def test_lines_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress() as shown:
        told = shown.monitor()
        told.plan(4, 1)
        told.begin(Step("ntk 512 ppl", 4096, "tokens", 1.0, {"tokens": 100.0}))
        clock.now += 2
        told.advance(4096)
        told.done(record())
        told.begin(Step("ntk 4k ppl", 32768, "tokens", 50.0, {"tokens": 50.0}))
        for _ in range(4):
            clock.now += 20
            told.advance(4096)
        told.done(record(length=4096, status="oom", value=None, tokens_per_second=None))
        told.note("a\x1bb")
        told.done(record())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "4 cells, 1 of them found",
        "[2/4] ntk 512 perplexity 5.2500 (2.0 s, 2,048 tokens/s, ETA 3:20)",
        "[3/4] ntk 4k ppl (12,288/32,768 tokens, 205/s, ETA 4:15)",
        "[3/4] ntk 4k perplexity oom (2.0 s, ETA 1:20)",
        "a?b",
        "[4/4] ntk 512 perplexity 5.2500 (2.0 s, 2,048 tokens/s)",
    ]


def test_a_silent_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress(silent=True) as shown:
        shown.monitor().plan(4, 1)
        shown.monitor().done(record())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [80, 140])
def test_two_lines_on_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    long = "leaky-rerope:window=100,leak=9+logn 16k passkey:samples=10,depths=11 " + "x" * width
    with progress.Progress() as shown:
        told = shown.monitor()
        assert lines(shown, width)[0].startswith("starting")
        told.plan(40, 11)
        told.begin(Step("rope 512 ppl", 10, "tokens", 1.0, {"tokens": 9.0}))
        clock.now += 10
        told.done(record(status="error", value=None))
        told.begin(Step(long, 1_000_000, "tokens", 3.0, {"tokens": 6.0}))
        clock.now += 10
        told.advance(250_000)
        whole, cell = lines(shown, width)
    assert whole.startswith("12 of 40 cells, 1 failed")
    assert whole.rstrip().endswith("20 s, ETA 1:34")  # 6 + 2.25 of cost, at 20 s for 1 + 0.75
    assert cell.startswith("leaky-rerope")
    assert "…" in cell
    assert "250,000/1,000,000 tokens" in cell
    assert max(len(whole), len(cell)) <= width - 3


def lines(shown: progress.Progress, width: int) -> list[str]:
    """What stands on the terminal."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(shown._drawn())
    return capture.get().splitlines()


def test_lines_in_a_notebook_which_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`!ctxext …` in a Jupyter cell has a terminal, but of one line."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    with progress.Progress() as shown:
        told = shown.monitor()
        told.plan(1, 0)
        told.begin(Step("rope 512 ppl", 10, "tokens", 1.0, {}))
        told.done(record())
    assert "\x1b" not in capsys.readouterr().err


def test_a_monitor_may_be_left_as_it_is() -> None:
    monitor = Monitor()
    monitor.begin(Step("cell"))
    monitor.done(None)


def test_what_draws_on_the_terminal_meanwhile_has_it_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress() as shown:
        assert shown._live.is_started
        with shown.monitor().outside():
            assert not shown._live.is_started
        assert shown._live.is_started


@pytest.mark.parametrize("terminal", [True, False])
def test_only_who_can_watch_a_download_is_shown_it(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    console.quieten()
    with hub.hub_client(progress=True):
        assert are_progress_bars_disabled() is not terminal
    with hub.hub_client(progress=False):
        assert are_progress_bars_disabled()
    assert are_progress_bars_disabled()


def test_one_is_no_several(capsys: pytest.CaptureFixture[str]) -> None:
    for cells, found in ((1, 0), (1, 1), (2, 2)):
        with progress.Progress() as shown:
            shown.monitor().plan(cells, found)
            if not found:
                shown.monitor().begin(Step("rope 512 ppl", 10, "tokens", 1.0))
    said = capsys.readouterr().err.splitlines()
    assert said == ["1 cell", "1 cell, found", "2 cells, all of them found"]
