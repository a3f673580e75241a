"""Cells as Ray tasks: on a cluster, or on a Ray that is started on this machine.

A task has the cells of one method and length, which may share a forward, and keeps its records in
the same folder, which all workers must see; models and data are found there by the same names.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ctxext.errors import CtxextError, UsageError, short
from ctxext.measure.costs import estimates
from ctxext.measure.loaded import Loaded
from ctxext.measure.monitor import Monitor
from ctxext.measure.results import Held, Results
from ctxext.measure.run import Run
from ctxext.measure.workers import Workers
from ctxext.records import Record, Store
from ctxext.request.cells import Plan

RETRIES = 3  # of cells whose worker was lost
_OBJECTS = 256 << 20  # bytes that a local Ray keeps for what tasks share: texts
_REACH = 10  # seconds for a cluster to answer
_PATIENCE = 0.5  # seconds in which an interrupt is heard at the latest


def parse_launcher(text: str) -> Ray:
    """The launcher from `ray` or `ray:ADDRESS`; UsageError for another."""
    name, colon, address = text.strip().partition(":")
    if name != "ray" or (colon and not address):
        raise UsageError(
            f"unknown launcher {text!r}: valid: ray, ray:ADDRESS (accelerate launch is put before "
            "the command)"
        )
    return Ray(address or None)


class _Outcome(NamedTuple):
    """What a task gives back."""

    records: list[Record]
    held: list[Held]
    notes: list[str]


@dataclass(frozen=True)
class Ray:
    """Works off runs as Ray tasks, each on a GPU of its own where the model is on one, else where
    there is the memory that it is estimated to take.

    Attributes:
        address: of a cluster, as `ray.init` takes it; None starts a Ray on this machine, with as
            many workers as its cores allow at torch's threads in each, and at least two.
    """

    address: str | None = None

    def __call__(self, runs: Sequence[Run]) -> None:
        """Make or find the records of all runs.

        Raises:
            UsageError: Ray is not installed, there is no cluster at the address, or what is
                asked for cannot be done.
        """
        with _connected(self.address) as ray:
            for run in runs:
                self._check(ray, run.plan)
            _Jobs(ray, self.address is None).work_off(runs)

    def _check(self, ray: Any, plan: Plan) -> None:
        gpus = ray.cluster_resources().get("GPU", 0)
        if gpus and plan.request.source.device == "auto" and plan.source.device == "cpu":
            raise UsageError(
                "the cluster has GPUs and this machine has none, so --device auto is cpu: run the "
                "command on a node with a GPU, or give --device cpu"
            )
        if not plan.source.device.startswith("cpu") and not gpus:
            raise UsageError(
                f"Ray counts no GPU here, so that nothing keeps its workers from sharing "
                f"{plan.source.device}: give --device cpu, or leave out --launcher"
            )


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The ray package, connected."""
    try:
        import ray
    except ImportError:
        raise UsageError("--launcher ray needs Ray: pip install 'ctxext[ray]'") from None
    import logging

    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        local = {"num_cpus": _workers(), "object_store_memory": _OBJECTS}
        options |= {**local, "include_dashboard": False}
    with contextlib.redirect_stdout(sys.stderr):  # which has no room for what Ray says
        try:
            _knock(address)
            ray.init(address, **options)
        except (Exception, SystemExit) as error:
            why = short(error)
            raise UsageError(f"cannot reach Ray at {address or 'this machine'}: {why}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """An OSError where nothing listens at `host:port`, which Ray would take minutes to find."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_REACH).close()


def _workers() -> int:
    """How many cells a local Ray computes at once."""
    import torch

    return max(2, (os.cpu_count() or 1) // torch.get_num_threads())


class _Jobs:
    """The tasks of an evaluation, and whose cells they have."""

    def __init__(self, ray: Any, local: bool) -> None:
        import torch

        self._ray = ray
        self._threads = torch.get_num_threads() if local else None
        self._task = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_work)
        self._left: dict[Any, tuple[Run, list[int]]] = {}

    def work_off(self, runs: Sequence[Run]) -> None:
        try:
            for run in runs:
                self._submit(run)
            while self._left:
                done, _ = self._ray.wait(list(self._left), timeout=_PATIENCE)
                for ref in done:
                    self._collect(ref, *self._left.pop(ref))
        except KeyboardInterrupt:
            for run, numbers in self._left.values():
                run.salvage([run.plan.cells[n] for n in numbers])
            raise
        finally:
            for ref in self._left:
                self._ray.cancel(ref, force=True)

    def _submit(self, run: Run) -> None:
        """A task for each group that has a cell to compute; what is found is reported at once."""
        plan = self._ray.put(run.plan)
        number = {id(cell): n for n, cell in enumerate(run.plan.cells)}
        gpus = self._gpus(run.plan)
        memory = {} if gpus else self._memory(run)
        for cells in run.groups():
            if not run.found.missing(cells):
                run.finish([cells])
                continue
            numbers = [number[id(cell)] for cell in cells]
            most = max(memory.get(run.plan.key(cell), 0) for cell in cells)
            ref = self._task.options(num_cpus=1, num_gpus=gpus, memory=most or None).remote(
                plan, numbers, self._threads, os.getcwd()
            )
            self._left[ref] = (run, numbers)

    def _gpus(self, plan: Plan) -> int:
        """How many GPUs a task has: one, or all of a node where the model is spread over them."""
        if plan.source.device.startswith("cpu"):
            return 0
        if plan.source.device_map is None:
            return 1
        return max(int(node["Resources"].get("GPU", 0)) for node in self._ray.nodes())

    def _memory(self, run: Run) -> dict[str, int]:
        """The bytes that each cell's process will take, by key, where some node has as many."""
        results, before = run.results, run.found.before
        found = estimates(run.plan, before, results.store, results.note, run.loaded)
        most = max(int(node["Resources"].get("memory", 0)) for node in self._ray.nodes())
        return {one.key: min(one.memory or 0, most) for one in found}

    def _collect(self, ref: Any, run: Run, numbers: list[int]) -> None:
        cells = [run.plan.cells[n] for n in numbers]
        try:
            outcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CtxextError):
                raise error.cause from None
            run.fail(cells, "error", short(error.cause), str(error))
        except self._ray.exceptions.OutOfMemoryError:
            run.fail(cells, "oom", f"Ray ended the worker for want of memory, {1 + RETRIES} times")
        except self._ray.exceptions.RayError as error:
            name = type(error).__name__
            run.fail(cells, "error", f"the worker was lost {1 + RETRIES} times ({name})")
        else:
            for note in outcome.notes:
                run.results.note(note)
            run.results.accept(outcome.records, run.found.old, outcome.held)


_kept: dict[str, Run] = {}  # the plan that this worker is at
_loaded = Loaded()  # … and its model, which the next plan may have too


def _work(plan: Plan, numbers: list[int], threads: int | None, folder: str) -> _Outcome:
    """The records of some cells of a plan, in a worker, which keeps the model for the next."""
    import torch

    with contextlib.suppress(OSError):
        os.chdir(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    name = f"{plan.request.source} {' '.join(plan.keys)}"
    force = plan.request.force
    if name not in _kept:
        _kept.clear()
        results = Results(Store(plan.request.out), Monitor(), [], force)
        _kept[name] = Run(plan, Workers(), results, _loaded)
    run, notes = _kept[name], list[str]()
    results = Results(run.results.store, Monitor(note=notes.append), [], force)
    run.go_on(results)
    run.finish([[plan.cells[n] for n in numbers]])
    return _Outcome(results.records, results.held, notes)
