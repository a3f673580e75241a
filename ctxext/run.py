"""Cells → records: what is on disk drops out, the rest is measured, each record is kept."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ctxext import plan as plans
from ctxext.errors import ENDS_RUN, CtxextError
from ctxext.machine import device_name, versions
from ctxext.measure.loaded import Loaded
from ctxext.measure.outcome import Failure, Measured
from ctxext.measure.workers import Workers
from ctxext.monitor import Monitor
from ctxext.plan import Cell, Plan
from ctxext.request import Request
from ctxext.results import Record, Store, sealed
from ctxext.tasks.base import TokenTask

if TYPE_CHECKING:
    from ctxext.measure.session import Session

_PATIENCE = 0.5  # seconds between two looks at cells that another process computes


@dataclass
class Evaluation:
    """An evaluation in progress: requests that share a folder, one after another, or as the
    launcher has them worked off.

    `records` grows as cells are done; in the end it is in the order of the cells. Under
    `accelerate launch` every process runs the same evaluation: windows and samples are split
    among them, and the first alone has records.
    """

    requests: Sequence[Request]
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)
    launcher: Callable[[Sequence[Run]], None] | None = None

    @property
    def methods(self) -> list[str]:
        """The methods as they were asked for, in order."""
        return [str(spec) for request in self.requests for spec in request.methods]

    def plans(self, workers: Workers) -> list[Plan]:
        """What there is to do.

        Raises:
            UsageError: something asked for cannot be done.
        """
        found = []
        for request in self.requests:
            plans.check_workers(request, workers.count)
            device = workers.device(request.source.device)
            found.append(plans.make(request.on(device)))
        return found

    def run(self) -> list[Record]:
        """Make or find every cell's record.

        Raises:
            UsageError: something asked for cannot be done; no cell has been computed then.
        """
        workers = Workers(self.requests[0].source.device)
        made, store = self.plans(workers), Store(self.requests[0].out)
        if workers.first:
            for line in store.prepare():
                self.monitor.note(f"not trusted: {line}")
        for request in self.requests:
            self._say_unused(request)
        alone, loaded = len(made) == 1, Loaded()
        runs = [
            Run(plan, store, workers, self.monitor, self.records, alone, loaded) for plan in made
        ]
        if self.launcher is not None:
            self.launcher(runs)
        else:
            for run in runs:
                run.finish(run.groups())
                run.close()
        order = {name: n for n, name in enumerate(itertools.chain(*(r.names() for r in runs)))}
        self.records.sort(key=lambda record: order[_name(record)])
        return self.records

    def _say_unused(self, request: Request) -> None:
        if request.data is not None:
            for task in (task for task in request.tasks if not task.uses_data):
                self.monitor.note(f"{task} does not use --data {request.data}")
        if request.tokens is not None:
            for task in (task for task in request.tasks if not isinstance(task, TokenTask)):
                self.monitor.note(f"{task} does not use --tokens {request.tokens}")


class _Name(NamedTuple):
    """What tells the records of one evaluation apart."""

    key: str
    model: str
    requested: str
    task: str
    data: str


def _name(record: Record) -> _Name:
    whole = {**record, "data": record["data"]["name"]}
    return _Name(*(whole[field] for field in _Name._fields))


@dataclass
class Run:
    """One plan being worked off, beside other processes that may share the store.

    Attributes:
        alone: there is no other plan: what cannot be done is raised before anything is measured,
            and is not the failure of its cells.
        loaded: what the plans before this one have loaded.
    """

    plan: Plan
    store: Store
    workers: Workers
    monitor: Monitor
    records: list[Record]
    alone: bool
    loaded: Loaded = field(default_factory=Loaded)

    def __post_init__(self) -> None:
        before = {key: self.store.get(key) for key in self.plan.keys}
        self._before: dict[str, Record | None] = self.workers.gather(before)[0]
        self._found = {
            key: record
            for key, record in self._before.items()
            if record and record["status"] == "ok" and not self.plan.request.force
        }
        self._session: Session | None = None
        self._broken: Failure | None = None
        self._told: set[str] = set()

    def names(self) -> Iterator[_Name]:
        """What the records of the plan are called, in the order of its cells."""
        return (self._name(cell) for cell in self.plan.cells)

    def finish(self, waiting: list[list[Cell]]) -> None:
        """Make or find the records of groups, waiting for those that other processes compute."""
        try:
            while waiting:
                busy = [rest for cells in waiting if (rest := self._visit(cells))]
                if len(busy) == len(waiting) and sum(map(len, busy)) == sum(map(len, waiting)):
                    time.sleep(_PATIENCE)
                waiting = busy
        finally:
            self.store.release_all()

    def close(self) -> None:
        """Let go of the model."""
        self._session = None

    def fail(self, cells: list[Cell], status: str, reason: str, trace: str | None = None) -> None:
        """The records of cells whose process was lost, but for those that it had finished."""
        why = Failure({"status": status, "reason": reason}, trace or "")
        for cell in cells:
            key = self.plan.key(cell)
            record = self.store.get(key)
            if record is not None and record != self._before[key]:
                self._found[key] = record
            if key not in self._found:
                self._found[key] = self._record(Measured.failed(cell, why))
            self._emit(cell, self._found[key])

    def note(self, line: str) -> None:
        """Tell the user a line, once."""
        if line not in self._told:
            self._told.add(line)
            self.monitor.note(line)

    def accept(self, records: Sequence[Record]) -> None:
        """Report records that another process has made and kept."""
        self.records.extend(records)
        for record in records:
            self.monitor.done(record)

    def missing(self, cells: Sequence[Cell]) -> bool:
        """Whether one of the cells has no record yet."""
        return any(self.plan.key(cell) not in self._found for cell in cells)

    def groups(self) -> list[list[Cell]]:
        """Cells by method and length: these share a forward where they can."""
        groups = itertools.groupby(self.plan.cells, key=lambda cell: (cell.requested, cell.length))
        return [list(cells) for _, cells in groups]

    def _visit(self, cells: list[Cell]) -> list[Cell]:
        """Compute what nobody else does; the cells that somebody else is at."""
        mine = self._claim(cells)
        measured = self._measure(mine)
        left = []
        for cell in cells:
            key = self.plan.key(cell)
            if cell in mine:
                self._found[key] = self._record(next(measured))
            if key not in self._found:
                left.append(cell)
            elif self.workers.first:
                self._emit(cell, self._found[key])
            self.store.release(key)
        return left

    def _claim(self, cells: list[Cell]) -> list[Cell]:
        """The cells that this process now has to compute, each key once.

        What another process has finished since the beginning is found, and not made again.
        """
        new: dict[str, Record | None] = {}
        for key in (self.plan.key(cell) for cell in cells if self.workers.first):
            if key not in self._found and key not in new and self.store.claim(key):
                record = self.store.get(key)
                new[key] = record if record != self._before[key] else None
        new = self.workers.gather(new)[0]
        self._found |= {key: record for key, record in new.items() if record is not None}
        missing = {key for key, record in new.items() if record is None}
        by_key = {self.plan.key(cell): cell for cell in reversed(cells)}
        return [cell for key, cell in reversed(by_key.items()) if key in missing]

    def _measure(self, cells: list[Cell]) -> Iterator[Measured]:
        if not cells:
            return iter(())
        if self._session is None and self._broken is None:
            self._start()
        if self._session is not None:
            self._session.monitor = self.monitor
            return self._session.measure(cells)
        assert self._broken is not None
        return (Measured.failed(cell, self._broken) for cell in cells)

    def _start(self) -> None:
        """The session that measures all cells that are not found yet."""
        from ctxext.measure.session import Session

        new = [cell for cell in self.plan.cells if self.plan.key(cell) not in self._found]
        session, broken = None, None
        try:
            session = Session(self.plan, new, self.workers, self.monitor, self.loaded, self.alone)
        except ENDS_RUN:
            raise
        except BaseException as error:
            if self.alone and isinstance(error, CtxextError):
                raise
            broken = Failure.of(error)
        self._broken = next(filter(None, self.workers.gather(broken)), None)
        if session is not None and self._broken is None:
            session.agree()
            self._session = session

    def _name(self, cell: Cell) -> _Name:
        model, method = self.plan.request.source.name, str(cell.requested)
        return _Name(self.plan.key(cell), model, method, str(cell.asked), cell.data.name)

    def _emit(self, cell: Cell, record: Record) -> None:
        """Report a cell's record, and keep it under the names of this request."""
        name = self._name(cell)
        data = {**record["data"], "name": name.data}
        names = {"model": name.model, "requested": name.requested, "task": name.task}
        record = sealed({**record, **names, "data": data})
        self.store.write(record)
        self.records.append(record)
        self.monitor.done(record)

    def _record(self, done: Measured) -> Record:
        cell, handle, plan, session = done.cell, done.handle, self.plan, self._session
        name = self._name(cell)
        dtype = str(session.model.dtype).removeprefix("torch.") if session else plan.source.dtype
        record = {
            "model": name.model,
            "requested": name.requested,
            "method": cell.method.full(),
            "task": name.task,
            "task_resolved": str(cell.task),
            "metric": cell.task.metric,
            "length": cell.length,
            "trained_length": plan.identity.trained,
            "batch_size": plan.request.batch(cell.length),
            "prefill_chunk": None,
            **done.fields,
            "seed": cell.seed,
            "limit": plan.request.limit,
            "data": {
                "name": name.data,
                "sha256": cell.data.sha256,
                "tokens": session.data_tokens_of(cell) if session else 0,
            },
            "model_sha256": plan.identity.sha256,
            "revision": plan.request.source.revision,
            "dtype": plan.source.load_in or dtype,
            "device": device_name(session.model.device) if session else plan.source.device,
            "attention": handle.attention if handle else plan.attention(cell.method),
            "attention_reasons": handle.choice.reasons if handle else (),
            "notes": handle.notes if handle else [],
            "processes": self.workers.count,
            "versions": versions(),
            "created": _now(),
            "key": name.key,
        }
        log = self.store.log(record, done.trace) if done.trace and self.workers.first else None
        return {**record, "log": log}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
