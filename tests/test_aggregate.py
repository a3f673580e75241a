"""The means over a benchmark's tasks and over seeds, against those of the numbers that went in."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from test_eval import Run

from ctxext.errors import UsageError
from ctxext.records import Store, sealed
from ctxext.report import aggregate, multiples, plots

pytestmark = pytest.mark.quick

LENGTHS, SEEDS = (512, 1024, 2048), (0, 1, 2)
TASKS = ("niah_single_1", "niah_multikey_1", "vt")


def score(method: str, length: int, task: str, seed: int) -> float:
    """Some number from 0 to 100."""
    lost = LENGTHS.index(length) * (9 if method == "rope" else 2) + 4 * TASKS.index(task)
    return float(98 - lost + (seed - 1) * (1 + TASKS.index(task)))


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Of two methods, all but one cell; and a task of no benchmark."""
    kept, _ = Store(Path(__file__).parent.parent / "results" / "tiny").read_all()
    one = next(r for r in kept if (r["task"], r["length"]) == ("passkey", 512))
    made = [one]
    for number, (method, length, task, seed) in enumerate(
        (m, n, t, s) for m in ("rope", "ntk") for n in LENGTHS for t in TASKS for s in SEEDS
    ):
        if (method, length, task, seed) == ("ntk", 2048, "vt", 2):
            continue
        spec, value = f"ruler:{task},samples=5", score(method, length, task, seed)
        fields = {"requested": method, "length": length, "seed": seed, "value": value}
        fields |= {"task": spec, "task_resolved": spec, "metric": "string_match_all", "n": 5}
        fields |= {"stderr": 3.0, "perfect_score": 100.0, "by_sample": None, "parts": []}
        made.append(sealed({**one, **fields, "key": f"{number + 1:012x}"}))
    return made


def test_the_mean_over_tasks_is_of_all_of_them(records: list[dict[str, Any]]) -> None:
    for found in aggregate.headlines(records, "ruler"):
        [seed] = found.seeds
        assert set(found.tasks) == set(TASKS)
        for method in ("rope", "ntk"):
            for length in LENGTHS:
                mean = found.mean(method, length)
                if (method, length, seed) == ("ntk", 2048, 2):
                    assert mean is None
                    continue
                assert mean is not None
                some = [score(method, length, task, seed) for task in TASKS]
                assert mean.value == pytest.approx(statistics.fmean(some))
                assert mean.error == pytest.approx(3**0.5)
    assert len(aggregate.headlines(records, "ruler")) == 3


def test_seeds_are_averaged_with_their_spread(records: list[dict[str, Any]]) -> None:
    [found] = aggregate.headlines(records, "ruler", "mean")
    assert found.seeds == SEEDS
    one = found.of("ntk", 1024, "vt")
    some = [score("ntk", 1024, "vt", seed) for seed in SEEDS]
    assert one == pytest.approx((statistics.fmean(some), statistics.stdev(some)))
    assert found.of("ntk", 2048, "vt") is None  # of two seeds alone
    first = aggregate.sheets(found)[0]
    assert first.header == ("method", "512", "1k", "2k", "effective")
    assert [[item.text for item in row] for row in first.rows] == [
        ["rope", "94.0 ± 1.2", "85.0 ± 1.2", "76.0 ± 1.2", "512"],
        ["ntk", "94.0 ± 1.2", "92.0 ± 1.2", "–", "1k"],
    ]


def test_refuses_what_it_has_no_records_of(records: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="no record of longbench: run"):
        aggregate.headlines(records, "longbench")
    with pytest.raises(UsageError, match="unknown benchmark 'nolima': valid: "):
        aggregate.headlines(records, "nolima")


def test_the_command_prints_and_writes_them(
    records: list[dict[str, Any]],
    tmp_path: Path,
    run: Run,
) -> None:
    store = Store(tmp_path)
    for record in records:
        store.write(record)
    asked = ("report", "--out", tmp_path, "--aggregate", "ruler", "--seeds", "mean")
    ran = run(*asked, "--format", "csv", "--write")
    assert ran.code == 0
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert {row["column"]: row["value"] for row in rows if row["table"].endswith("mean")}["1k"]
    names = {"ruler.md", "ruler.csv", "ruler.png", "ruler.svg"}
    assert names == {path.name for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert "effective" in run(*asked).out
    assert run("report", "--out", tmp_path, "--seeds", "mean").code == 2
    assert "\\toprule" in run(*asked, "--format", "latex").out
    assert run(*asked, "--format", "html", "--write").code == 2
    wide = run(*asked, "--write", "--format", "latex", "--plots", "pdf", "--width", "3.3in")
    told = {Path(line.split()[1]).name for line in wide.err.splitlines()}
    assert told == {"ruler.md", "ruler.tex", "ruler--plots.pdf", "ruler--plots.tex"}


def test_draws_a_small_plot_for_the_mean_and_each_task(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    [found] = aggregate.headlines(records, "ruler", "mean")
    titles = [axes.get_title() for axes in multiples.draw(found).axes[:4]]
    assert titles == ["mean of 3", *found.tasks]
    plots.save(tmp_path / "a.png", lambda: multiples.draw(found))
    plots.save(tmp_path / "b.png", lambda: multiples.draw(found))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
