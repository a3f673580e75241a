"""Cells → records: what is on disk drops out, the rest is measured, each record is kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from ctxext.errors import UsageError
from ctxext.measure.failure import Failure
from ctxext.measure.found import Found, Look
from ctxext.measure.loaded import Loaded
from ctxext.measure.measurer import Measurer
from ctxext.measure.monitor import Monitor
from ctxext.measure.outcome import Measured
from ctxext.measure.record import Name, made
from ctxext.measure.results import Held, Results
from ctxext.measure.workers import Workers
from ctxext.models.hashes import keep
from ctxext.records import Record, Store
from ctxext.request import cells as plans
from ctxext.request.cells import Cell, Plan
from ctxext.request.evaluation import EvaluationRequest
from ctxext.tasks.base import SampleTask, TokenTask

if TYPE_CHECKING:
    from ctxext.measure.costs import Estimate

_PATIENCE = 0.5  # seconds between two looks at cells that another process computes


@dataclass
class Evaluation:
    """An evaluation in progress: requests that share a folder, one after another, or as the
    launcher has them worked off.

    `records` grows as cells are done; in the end it is in the order of the cells. `refused` says of
    what models none has been made, for they cannot be had. Under
    `accelerate launch` every process runs the same evaluation: windows and samples are split
    among them, and the first alone has records. `loaded` is what evaluations before it have loaded.
    """

    requests: Sequence[EvaluationRequest]
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    launcher: Callable[[Sequence[Run]], None] | None = None
    loaded: Loaded = field(default_factory=Loaded)

    @property
    def methods(self) -> list[str]:
        """The methods as they were asked for, in order."""
        return [str(spec) for request in self.requests for spec in request.methods]

    def plans(self, workers: Workers) -> list[Plan]:
        """What there is to do.

        Raises:
            UsageError: nothing that is asked for can be done.
        """
        found = []
        for request in self.requests:
            on = request.on(workers.device(request.source.device))
            try:
                found.append(plans.make(on, workers.count))
            except UsageError as error:
                self.refused.append(str(error))
        cells = [cell for plan in found for cell in plan.cells]
        if all(cell.refusal for cell in cells):
            _refuse([*self.refused, *(cell.refusal for cell in cells)])
        return found

    def estimates(self) -> list[Estimate]:
        """What every cell will take; nothing is computed or written.

        Raises:
            UsageError: nothing that is asked for can be done.
        """
        from ctxext.measure.costs import estimates
        from ctxext.system import caches

        store, note, loaded = Store(self.requests[0].out), self.monitor.note, self.loaded
        made = self.plans(Workers(self.requests[0].source.device))
        look = Look(made, store)
        with caches.left_alone():
            found = [one for p in made for one in estimates(p, look.records, store, note, loaded)]
        reasons = [one.reason for one in found if one.reason is not None]
        if len(reasons) == len(found):
            _refuse([*self.refused, *reasons])
        for line in dict.fromkeys([*self.refused, *reasons]):
            note(f"refused: {line}")
        for line in (*dict.fromkeys(plan.trained_line for plan in made), *look.outdated()):
            note(line)
        return found

    def run(self) -> list[Record]:
        """Make or find every cell's record.

        Raises:
            UsageError: nothing that is asked for can be done; nothing is written then.
        """
        workers = Workers(self.requests[0].source.device)
        runs, results = self._begin(workers)
        if self.launcher is not None:
            self.launcher(runs)
        else:
            for n, run in enumerate(runs):
                run.after = runs[n + 1 :]
                run.finish(run.portions())
                run.measurer.close()
        if reasons := workers.gather([one.record["reason"] for one in results.held])[0]:
            _refuse([*self.refused, *reasons])
        order = {name: n for n, name in enumerate(itertools.chain(*(r.names() for r in runs)))}
        self.records.sort(key=lambda record: order[Name.on(record)])
        return self.records

    def _begin(self, workers: Workers) -> tuple[list[Run], Results]:
        """The plans as runs, with what is there already, and where their records come together."""
        made, store = self.plans(workers), Store(self.requests[0].out)
        if workers.first:
            keep()
            for line in store.prepare(key for plan in made for key in plan.keys):
                self.monitor.note(f"not trusted: {line}")
        for line in dict.fromkeys(line for r in self.requests for line in _unused(r)):
            self.monitor.note(line)
        results = Results(store, self.monitor, self.records, self.requests[0].force)
        look = Look(made, store) if workers.first else None
        runs = [Run(plan, workers, results, self.loaded, look) for plan in made]
        for run in runs if self.launcher is None else ():
            run.prepare()
        counts = [run.count() for run in runs]
        for line in look.outdated() if look is not None else ():
            self.monitor.note(line)
        self.monitor.plan(*(sum(column) for column in zip(*counts, strict=True)))
        return runs, results


def _refuse(reasons: Sequence[str | None]) -> NoReturn:
    """UsageError with all that keeps anything from being done."""
    raise UsageError("; ".join(dict.fromkeys(filter(None, reasons))))


def _unused(request: EvaluationRequest) -> Iterator[str]:
    """What is asked for and makes no difference to a task, in lines."""
    for task in request.tasks:
        if request.data is not None and not task.uses_data:
            yield f"{task} does not use --data {request.data}"
        if request.tokens is not None and not isinstance(task, TokenTask):
            yield f"{task} does not use --tokens {request.tokens}"


class Run:
    """One plan being worked off, beside other processes that may share the store.

    Args:
        look: what the store had for it, in the first process.

    Attributes:
        after: the runs that come next, whose cells are left too.
    """

    def __init__(
        self,
        plan: Plan,
        workers: Workers,
        results: Results,
        loaded: Loaded,
        look: Look | None = None,
    ) -> None:
        self.plan, self.workers, self.results, self.loaded = plan, workers, results, loaded
        self.found = Found(plan, results.store, workers, look)
        self.measurer = Measurer(plan, workers, loaded, results.monitor, self._left)
        self.after: Sequence[Run] = ()
        self._refused = dict[str, str]()  # what the logs of refused cells shall say, by key

    def names(self) -> Iterator[Name]:
        """What the records of the plan are called, in the order of its cells."""
        return (Name.of(self.plan, cell) for cell in self.plan.cells)

    def count(self) -> tuple[int, int]:
        """How many cells there are, and how many of them were found at the beginning."""
        cells = self.plan.cells
        return len(cells), sum(self.plan.key(cell) in self.found.old for cell in cells)

    def prepare(self) -> None:
        """Read the data of all cells that are not found."""
        self.measurer.prepare([c for c in self.found.missing(self.plan.cells) if not c.refusal])

    def finish(self, waiting: list[list[Cell]]) -> None:
        """Make or find the records of groups, waiting for those that other processes compute."""
        try:
            while waiting:
                busy = [rest for cells in waiting if (rest := self._visit(cells))]
                if len(busy) == len(waiting) and sum(map(len, busy)) == sum(map(len, waiting)):
                    if self.workers.first:
                        self.results.note("waiting for cells that another process computes")
                    time.sleep(_PATIENCE)
                waiting = busy
        finally:
            self.results.store.release_all()

    def go_on(self, results: Results) -> None:
        """Tell of other cells in other results."""
        self.results, self.measurer.monitor = results, results.monitor

    def fail(self, cells: list[Cell], status: str, reason: str, trace: str | None = None) -> None:
        """The records of cells whose process was lost, but for those that it had finished."""
        why = Failure({"status": status, "reason": reason}, trace or "")
        for cell in self.salvage(cells):
            self._emit(cell, self._record(Measured.failed(cell, why)))

    def salvage(self, cells: list[Cell]) -> list[Cell]:
        """Report those of the cells that another process has finished since the beginning; the
        others."""
        self.found.look_again(cells)
        for cell in cells:
            if (record := self.found.of(cell)) is not None:
                self._emit(cell, record)
        return self.found.missing(cells)

    def groups(self) -> list[list[Cell]]:
        """Cells by method and length: these share a forward where they can."""
        groups = itertools.groupby(self.plan.cells, key=lambda cell: (cell.requested, cell.length))
        return [list(cells) for _, cells in groups]

    def portions(self) -> list[list[Cell]]:
        """The groups, but that what reads prompts is a portion by itself; those that read the same
        prompts, of which there may be gigabytes, follow one another.
        """
        apart = [cell for cell in self.plan.cells if isinstance(cell.task, SampleTask)]
        others = [
            [cell for cell in cells if not isinstance(cell.task, SampleTask)]
            for cells in self.groups()
        ]
        places = dict.fromkeys((str(cell.task), cell.length, cell.seed) for cell in apart)
        order = {place: n for n, place in enumerate(places)}
        apart.sort(key=lambda cell: order[str(cell.task), cell.length, cell.seed])
        return [*filter(None, others), *([cell] for cell in apart)]

    def _visit(self, cells: list[Cell]) -> list[Cell]:
        """Compute what nobody else does; the cells that somebody else is at."""
        mine = self.found.claim(cells)
        if mine:
            self.measurer.agree(
                lambda: [c for c in self.found.missing(self.plan.cells) if not c.refusal]
            )
        measured = self.measurer.measure(mine)
        for cell in cells:
            if cell in mine:
                if self.measurer.refusal(cell) is None:
                    self.measurer.begin(cell)
                self._record(next(measured))
            record = self.found.of(cell)
            if record is not None and self.workers.first:
                self._emit(cell, record)
            self.found.release(cell)
        return self.found.missing(cells)

    def _left(self, but: str = "") -> Mapping[str, float]:
        """What the cells take together that are neither found nor this one, by kind."""
        left = dict[str, float]()
        for run in (self, *self.after):
            for key, (kind, cost) in run.measurer.costs.items():
                if key not in run.found.records and (run, key) != (self, but):
                    left[kind] = left.get(kind, 0.0) + cost
        return left

    def _emit(self, cell: Cell, record: Record) -> None:
        """Report a cell's record, and keep it under the names of this request."""
        name = Name.of(self.plan, cell)
        named, new = name.put_on(record), name.key not in self.found.old
        if name.key in self._refused:
            self.results.hold([Held(named, self._refused[name.key], new)])
        else:
            self.results.note(self.plan.trained_line)
            self.results.emit(named, new)

    def _record(self, done: Measured) -> Record:
        """The record of what was measured, which counts as found from now on."""
        fields, log = made(done, self.plan, self.measurer.session, self.workers.count), None
        if done.refused:
            self._refused[fields["key"]] = done.trace or ""
        elif done.trace and self.workers.first:
            log = self.results.store.log(fields, done.trace)
        return self.found.add({**fields, "log": log})
