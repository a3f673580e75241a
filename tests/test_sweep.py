"""A grid that is killed, shared and broken: the same records, none twice, none lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ctxext.grid import read_grid
from ctxext.models.loading import Source
from ctxext.request import Request
from ctxext.results import Record, Store

KILLS = 20
GRID = """
models: tiny
methods: [ntk, pi, rerope, rerope+logn]
lengths: [256, 512]
tasks: [ppl, acc, "passkey:samples=2,depths=2"]
seeds: [0, 1]
limit: 4
tokens: 4k
"""
CELLS = 5 * 2 * 4
VARYING = ("seconds", "tokens_per_second", "peak_memory_bytes", "created", "digest")


def requests(folder: Path, **changed: Any) -> tuple[Request, ...]:
    path = folder.with_suffix(".yaml")
    path.write_text(GRID)
    base = Request(Source("tiny", device="cpu"), (), (), (), out=folder, **changed)
    return read_grid(path, base)


def sweep(folder: str) -> None:
    """One run of the grid; every cell that is computed leaves its key in a journal."""
    from ctxext import run

    record = run._Run._record

    def journalled(self: Any, done: Any) -> Record:
        found = record(self, done)
        with open(f"{folder}.journal", "ab", buffering=0) as file:
            file.write(found["key"].encode() + b"\n")
        return found

    run._Run._record = journalled  # type: ignore[method-assign]
    run.Evaluation(requests(Path(folder))).run()


@pytest.fixture(scope="module")
def started() -> Any:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctxext.run", "ctxext.measure.session", "transformers"])

    def start(folder: Path) -> Any:
        process = context.Process(target=sweep, args=(str(folder),))
        process.start()
        return process

    return start


def records(folder: Path) -> dict[str, Record]:
    """By file name, without what no two runs have in common."""
    found, problems = Store(folder).read_all()
    assert problems == []
    names = [Store(folder).path(record).name for record in found]
    assert len(set(names)) == len(names)
    bare = [{k: v for k, v in record.items() if k not in VARYING} for record in found]
    return dict(zip(names, bare, strict=True))


def answers(folder: Path) -> dict[str, list[Record]]:
    """By file name, without times; margins to four digits, since who goes on with a cell reads
    its prompts in other batches."""
    return {
        path.relative_to(folder).as_posix(): [
            {**json.loads(line), "seconds": 0, "margin": round(json.loads(line)["margin"], 4)}
            for line in path.read_bytes().splitlines()
        ]
        for path in sorted((folder / "predictions").rglob("*.jsonl"))
    }


def journal(folder: Path) -> Counter[str]:
    return Counter(Path(f"{folder}.journal").read_text().split())


@pytest.fixture(scope="module")
def whole(started: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    process = started(folder)
    process.join()
    assert process.exitcode == 0
    assert len(records(folder)) == CELLS
    assert set(journal(folder).values()) == {1}
    return folder


def test_a_grid_killed_again_and_again_ends_as_one_that_was_not(
    whole: Path, started: Any, tmp_path: Path
) -> None:
    """Killed while it starts, and at any moment of the next two or three cells."""
    folder, rng = tmp_path / "out", random.Random(0)
    for _ in range(KILLS):
        process, before = started(folder), len(list(folder.glob("*.json")))
        if more := rng.randrange(3):
            while process.is_alive() and len(list(folder.glob("*.json"))) < before + more:
                time.sleep(0.005)
        process.join(rng.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert Store(folder).read_all()[1] == []
    last = started(folder)
    last.join()
    assert last.exitcode == 0
    assert records(folder) == records(whole)
    assert answers(folder) == answers(whole)
    assert not list(folder.glob(".record-*"))
    assert not (folder / "set-aside").exists()


def test_two_runs_on_one_folder_compute_no_cell_twice(
    whole: Path, started: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    both = [started(folder) for _ in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert records(folder) == records(whole)
    assert answers(folder) == answers(whole)
    assert set(journal(folder).values()) == {1}
    assert len(journal(folder)) == CELLS


def test_the_survivor_takes_over_from_a_run_that_is_killed(
    whole: Path, started: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    doomed, survivor = started(folder), started(folder)
    while not list(folder.glob("*.json")):
        time.sleep(0.05)
    os.kill(doomed.pid, signal.SIGKILL)
    survivor.join()
    assert survivor.exitcode == 0
    assert records(folder) == records(whole)
