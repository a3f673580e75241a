"""`ctxext check`: what measures as it did passes, and what does not is told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_eval import Run, folders, here  # noqa: F401 - fixtures

from ctxext.advise import check
from ctxext.advise.baseline import read_baseline
from ctxext.errors import UsageError
from ctxext.measure import tokens as reading
from ctxext.records import sealed
from ctxext.records.store import Store
from ctxext.tasks.base import TokenScores

pytestmark = pytest.mark.quick
CELLS = ("--model", "plain", "--data", "t.txt", "--len", "256", "--limit", "3", "--out", "base")
METHODS = ("--method", "ntk:factor=4", "--method", "rerope:window=8")


@pytest.fixture
def baseline(run: Run, here: Path) -> Path:  # noqa: F811
    done = run("eval", *CELLS, *METHODS, "--task", "ppl,acc,passkey:samples=1,depths=2")
    assert done.code == 0, done.err
    return here / "base"


def plant(monkeypatch: pytest.MonkeyPatch, nats: float, call: int) -> None:
    """Let one of the readings be off by so many nats at each token."""
    real, calls = reading.score, iter(range(100))

    def off(*args: Any) -> TokenScores:
        found = real(*args)
        return found._replace(nll=found.nll + nats * (next(calls) == call))

    monkeypatch.setattr(reading, "score", off)


def test_what_is_as_it_was_passes(baseline: Path) -> None:
    outcome = check.check(baseline)
    assert outcome.passed
    assert {one.verdict for one in outcome.findings} == {check.SAME}
    assert len(outcome.findings) == 9
    assert check.to_markdown(outcome) == ""
    assert len(check.to_markdown(outcome, every=True).splitlines()) == 2 + 9


@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_fault_in_one_method_is_told(
    baseline: Path, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, sign * 0.02, call=1)
    outcome = check.check(baseline)
    told = [one for one in outcome.findings if one.verdict != check.SAME]
    assert [(one.record["requested"], one.record["task"]) for one in told] == [
        ("ntk:factor=4", "ppl")
    ]
    assert told[0].verdict == (check.WORSE if sign > 0 else check.BETTER)
    assert outcome.passed is (sign < 0)
    assert "ntk:factor=4" in check.to_markdown(outcome)


def test_a_tolerance_in_nats_takes_the_place_of_errors(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 0.02, call=1)
    assert check.check(baseline, tolerance=0.021).passed
    plant(monkeypatch, 0.02, call=1)
    assert not check.check(baseline, tolerance=0.019).passed


def test_other_text_and_cells_that_fail_do_not_pass(baseline: Path) -> None:
    Path("t.txt").write_text(Path("t.txt").read_text()[::-1])
    outcome = check.check(baseline)
    moved = {one.record["task"]: one.verdict for one in outcome.findings}
    assert moved == {
        "ppl": check.MOVED,
        "acc": check.MOVED,
        "passkey:samples=1,depths=2": check.MOVED,
    }
    old = read_baseline(baseline)
    assert {one.verdict for one in check.compare(old, []).findings} == {check.MISSING}


def test_cells_that_are_new_are_told_and_pass(baseline: Path) -> None:
    old = read_baseline(baseline)
    some = [r for r in old if r["requested"] != "ntk:factor=4"]
    outcome = check.compare(some, old)
    assert outcome.passed
    assert [one.verdict for one in outcome.findings].count(check.NEW) == 3


def test_a_baseline_may_be_one_file_and_its_latest_records_count(baseline: Path) -> None:
    store = Store(baseline)
    (record,) = (r for r in store.read_all()[0]
                 if (r["requested"], r["task"]) == ("rope", "acc"))  # fmt: skip
    assert read_baseline(store.path(record)) == [record]
    later = {**record, "key": "f" * 64, "created": "2999-01-01T00:00:00+00:00", "value": 0.5}
    path = store.write(later)
    found = {r["key"]: r for r in read_baseline(baseline)}
    assert record["key"] not in found
    assert found["f" * 64] == sealed(later)
    path.write_text(json.dumps(later))
    with pytest.raises(UsageError, match=r"not sound: .*digest"):
        read_baseline(baseline)


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no baseline"):
        read_baseline(tmp_path / "none")
    with pytest.raises(UsageError, match="no finished record"):
        read_baseline(tmp_path)


def test_the_command_tells_and_updates(
    baseline: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = run("check", "--baseline", "base")
    assert (done.code, done.out) == (0, "9 cells: 9 same\n")
    assert "9 same" in summary.read_text()
    plant(monkeypatch, 0.02, call=1)
    done = run("check", "--baseline", "base", "--json")
    assert done.code == 1
    verdicts = {(one["requested"], one["task"]): one["verdict"] for one in done.records}
    assert [cell for cell, verdict in verdicts.items() if verdict != "same"] == [
        ("ntk:factor=4", "ppl")
    ]
    plant(monkeypatch, 0.02, call=1)
    assert run("check", "--baseline", "base", "--update").code == 0
    done = run("check", "--baseline", "base")
    assert done.code == 0
    assert "1 better" in done.out  # what was planted is gone again


def test_a_grid_says_the_cells(baseline: Path, run: Run, here: Path) -> None:  # noqa: F811
    (here / "g.yaml").write_text(
        "models: plain\ndata: t.txt\nlengths: 256\nlimit: 3\ntasks: ppl\n"
        "methods: [ntk:factor=4, pi:factor=2]\n"
    )
    done = run("check", "--baseline", "base", "--grid", "g.yaml", "--json")
    verdicts = [one["verdict"] for one in done.records]
    assert (done.code, verdicts.count("same"), verdicts.count("missing"), verdicts[-1]) == (
        1, 2, 7, "new",
    )  # fmt: skip


def test_what_is_asked_wrongly_is_told(baseline: Path, run: Run) -> None:
    for arguments, said in (
        (("--baseline", "none"), "no baseline 'none'"),
        (("--baseline", "base", "--out", "./base"), "it is the baseline's folder"),
        (("--baseline", "base", "--sigma", "-1"), "bad value -1.0 for --sigma"),
        (("--baseline", "base", "--tolerance", "nan"), "bad value nan for --tolerance"),
    ):
        done = run("check", *arguments)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
