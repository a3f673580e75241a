"""Prediction files of LongBench: a folder of them → scores, as rows and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ctxext.errors import UsageError
from ctxext.records import Record, interval
from ctxext.tasks.scoring.base import Row
from ctxext.tasks.scoring.longbench import BANDS, TASKS, averages, check_task, problem_with, score

if TYPE_CHECKING:
    from rich.table import Table

Result = dict[str, Any]


def score_folder(folder: Path, extended: bool = False) -> list[Result]:
    """The scores of all `TASK.jsonl` of a folder, in the benchmark's order.

    The authors' pred.py names the files of LongBench-E in the same way, so `extended` tells.

    Returns:
        {"task", "metric", "value", "stderr", "interval", "n", "also", "parts"} for each file; the
        interval is the 95% one of `ctxext.records.interval`, [low, high].

    Raises:
        UsageError: there is no such folder or no file in it; a file is no task's or has no rows;
            a line is broken.
    """
    files = _files(folder)
    for path in files:
        check_task(path.stem, extended, f"{path} is not named after a task: ")
    order = list(TASKS)
    files.sort(key=lambda path: order.index(path.stem))
    return [_result(path.stem, _read(path, extended), extended) for path in files]


def to_table(results: Sequence[Result]) -> Table:
    """The scores as a table: two decimals, as the authors give them."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    also = list(dict.fromkeys(name for result in results for name in result["also"]))
    bands = [band for band in BANDS if any(band in _by_band(result) for result in results)]
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95% interval", "n", *also, *bands):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        numbers = [result["also"].get(name) for name in also]
        numbers += [_by_band(result).get(band) for band in bands]
        ends = " to ".join(map(_two, result["interval"]))
        cells = (result["task"], result["metric"], _two(result["value"]), ends)
        table.add_row(*cells, str(result["n"]), *map(_two, numbers))
    found = averages(results)
    banded = [_two(found.pop(band, None)) for band in bands]
    for name, value in found.items():
        table.add_row(f"average, {name}", "", _two(value), *[""] * (2 + len(also)), *banded)
    return table


def _result(task: str, rows: Sequence[Row], extended: bool) -> Result:
    found = score(task, rows, extended)
    number = {
        "task": task,
        "metric": TASKS[task],
        "value": found.value,
        "stderr": found.stderr,
        "n": len(rows),
    }
    return {
        **number,
        "interval": list(interval(cast(Record, number)) or ()),
        "also": dict(found.also),
        "parts": [dict(part) for part in found.parts],
    }


def _by_band(result: Result) -> dict[str, float]:
    return {part["name"]: part["value"] for part in result["parts"]}


def _two(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2):.2f}"


def _files(folder: Path) -> list[Path]:
    try:
        files = [path for path in folder.iterdir() if path.suffix == ".jsonl"]
    except OSError as error:
        raise UsageError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    if not files:
        raise UsageError(f"no TASK.jsonl in {folder}: give a folder of prediction files")
    return files


def _read(path: Path, extended: bool) -> list[Row]:
    """The rows of a prediction file; UsageError, with the line, where one is broken."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            problem = problem_with(path.stem, row, extended)
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 (byte {error.start} of the line)"
        except (ValueError, RecursionError):
            problem = "not JSON"
        if problem:
            raise UsageError(f"{path}, line {number}: {problem}")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} is empty: it needs one JSON object per line")
    return rows
