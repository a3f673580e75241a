"""A grid that is killed, shared and broken: the same records, none twice, none lost."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctxext.errors import UsageError
from ctxext.models.loading import Source
from ctxext.records import SPENT, Record, Store, problem_with
from ctxext.records.claims import Claims
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.grid import read_grid

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
VARYING = ("seconds", "tokens_per_second", "peak_memory_bytes", "created", "digest", *SPENT)


def requests(folder: Path, **changed: Any) -> tuple[EvaluationRequest, ...]:
    path = folder.with_suffix(".yaml")
    path.write_text(GRID)
    base = EvaluationRequest(Source("tiny", device="cpu"), (), (), (), out=folder, **changed)
    return read_grid(path, base)


def sweep(folder: str) -> None:
    """One run of the grid; every cell that is computed leaves its key in a journal."""
    from ctxext.measure import run

    record = run.Run._record

    def journalled(self: Any, done: Any) -> Record:
        found = record(self, done)
        with open(f"{folder}.journal", "ab", buffering=0) as file:
            file.write(found["key"].encode() + b"\n")
        return found

    run.Run._record = journalled  # type: ignore[method-assign]
    run.Evaluation(requests(Path(folder))).run()


@pytest.fixture(scope="module")
def started() -> Any:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctxext.measure.run", "ctxext.measure.session", "transformers"])

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
    """Killed while it starts, and at any moment of the next two or three cells; the later runs
    may find all cells done, and end before they are killed."""
    folder, rng, ends = tmp_path / "out", random.Random(0), []
    for _ in range(KILLS):
        process, before = started(folder), len(list(folder.glob("*.json")))
        if more := rng.randrange(3):
            while process.is_alive() and len(list(folder.glob("*.json"))) < before + more:
                time.sleep(0.005)
        process.join(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        ends.append(process.exitcode)
        assert Store(folder).read_all()[1] == []
    assert set(ends[:5]) == {-signal.SIGKILL}
    assert set(ends) <= {-signal.SIGKILL, 0}
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


def command(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    requests(folder)
    program = [sys.executable, "-m", "ctxext", "eval", "--grid", str(folder.with_suffix(".yaml"))]
    options = ["--out", str(folder), "--device", "cpu", "--json", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*program, *options], env=env, **pipes)


def busy(parent: int) -> list[int]:
    """The processes of a local Ray that have a cell."""
    import psutil

    family = psutil.Process(parent).children(recursive=True)
    return [child.pid for child in family if child.cmdline()[:1] == ["ray::_work"]]


def test_a_local_ray_that_loses_a_worker_ends_with_the_same_records(
    whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    folder = tmp_path / "out"
    with command(folder, "--launcher", "ray") as process:
        while len(list(folder.glob("*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        (victim, *_) = busy(process.pid)
        os.kill(victim, signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert len(out.splitlines()) == CELLS
    assert b"Traceback" not in err
    assert records(folder) == records(whole)
    assert answers(folder) == answers(whole)


class LostWorkers:
    """A Ray all of whose tasks end with an error."""

    def __init__(self, error: Exception) -> None:
        import ray

        self.exceptions, self._error = ray.exceptions, error

    def remote(self, **_: Any) -> Any:
        return lambda _: self

    def options(self, **options: Any) -> Any:
        assert options["memory"] == 2**20  # all that there is
        return SimpleNamespace(remote=lambda *given: object())

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": {"memory": 2.0**20}}]

    def put(self, value: Any) -> Any:
        return value

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return refs[:1], refs[1:]

    def get(self, _: Any) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("lost", "status", "words"),
    [
        ("WorkerCrashedError", "error", "the worker was lost 4 times"),
        ("OutOfMemoryError", "oom", "want of memory, 4 times"),
    ],
)
def test_cells_whose_worker_is_lost_again_and_again_fail(
    lost: str, status: str, words: str, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ctxext.measure import launch, run

    error = getattr(ray.exceptions, lost)
    fake = LostWorkers(error("gone") if lost == "OutOfMemoryError" else error())
    work = run.Evaluation(requests(tmp_path / "out"))
    work.launcher = lambda runs: launch._Jobs(fake, local=True).work_off(runs)
    found = work.run()
    assert len(found) == CELLS
    assert {(record["status"], words in record["reason"]) for record in found} == {(status, True)}
    assert all(problem_with(record) is None for record in found)
    assert len(records(tmp_path / "out")) == CELLS


def test_a_worker_keeps_models_with_the_same_files_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctxext.measure.launch import _work
    from ctxext.models.aliases import TINY
    from ctxext.request import cells as plans

    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, "copy")
    Store(tmp_path / "out").prepare()
    for name in ("tiny", "copy"):
        base = requests(tmp_path / "out")[0]
        request = replace(base, source=replace(base.source, name=name))
        (record,) = _work(plans.make(request), [0], None, str(tmp_path)).records
        assert record["model"] == name


def test_an_interrupt_shows_what_the_workers_have_finished(whole: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ctxext.measure import launch, run

    folder, fake = tmp_path / "out", LostWorkers(ray.exceptions.WorkerCrashedError())

    def wait(refs: list[Any], timeout: float) -> Any:
        for path in list(whole.glob("*.json"))[:7]:
            shutil.copy(path, folder)
        raise KeyboardInterrupt

    fake.wait = wait  # type: ignore[method-assign]
    fake.cancel = lambda ref, force: None  # type: ignore[attr-defined]
    work = run.Evaluation(requests(folder))
    work.launcher = lambda runs: launch._Jobs(fake, local=True).work_off(runs)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert len(work.records) == 7


@pytest.mark.parametrize("text", ["", "rai", "ray:", "slurm", "ray :x"])
def test_other_launchers_are_refused(text: str) -> None:
    from ctxext.measure.launch import parse_launcher

    with pytest.raises(UsageError, match="valid: ray, ray:ADDRESS"):
        parse_launcher(text)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with command(tmp_path / "out", "--launcher", "ray:127.0.0.1:1") as process:
        out, err = process.communicate()
    assert process.returncode == 2
    assert out == b""
    assert b"cannot reach Ray at 127.0.0.1:1" in err.splitlines()[-1]
    assert b"Traceback" not in err


def test_a_seed_means_nothing_to_what_draws_nothing(tmp_path: Path) -> None:
    from ctxext.request import cells as plan

    first, second = (
        plan.make(dataclasses.replace(one, seeds=seeds))
        for one in requests(tmp_path / "out")
        for seeds in ((0,), (5, 0))
    )
    keys = [
        {plan.key(cell) for cell in plan.cells if cell.task.draws == draws}
        for plan in (first, second)
        for draws in (False, True)
    ]
    assert keys[0] == keys[2]
    assert keys[1] < keys[3]


def test_a_run_that_is_told_to_end_prints_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with command(folder) as process:
        while len(list(folder.glob("*.json"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        out, err = process.communicate()
    assert process.returncode == 130
    assert b"interrupted: finished cells are kept" in err.splitlines()[-1]
    assert 3 <= len(out.splitlines()) == len(list(folder.glob("*.json"))) < CELLS
    assert not (folder / ".claims").exists()


def test_an_interruption_while_a_cell_is_claimed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come behind the lock's own taking, and on the way to letting go."""
    filelock = pytest.importorskip("filelock")
    claims, acquire, unlink = Claims(tmp_path), filelock.FileLock.acquire, os.unlink

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        acquire(self, *args, **kwargs)
        if "store" not in self.lock_file:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claims.claim("a" * 64)

    def stopped(path: str) -> None:
        unlink(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stopped)
        with pytest.raises(KeyboardInterrupt):
            claims.release_all()
    claims.release_all()
    assert list(tmp_path.iterdir()) == []
