"""Cells → records: what is on disk drops out, the rest is measured, each record is kept."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ctxext.errors import ENDS_RUN, UsageError
from ctxext.measure.inputs import place
from ctxext.measure.loaded import Loaded
from ctxext.measure.machine import device_name, versions
from ctxext.measure.monitor import Monitor, Step
from ctxext.measure.outcome import Failure, Measured
from ctxext.measure.workers import Workers
from ctxext.models.hashes import keep
from ctxext.notation import format_length
from ctxext.records import Record, Store, sealed
from ctxext.request import cells as plans
from ctxext.request.cells import Cell, Plan
from ctxext.request.evaluation import EvaluationRequest
from ctxext.tasks.base import SampleTask, TokenTask
from ctxext.text import format_seconds

if TYPE_CHECKING:
    from ctxext.measure.costs import Estimate
    from ctxext.measure.inputs import Inputs
    from ctxext.measure.session import Session

_LONG = 5.0  # seconds of making prompts, after which a line tells of it
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

        store, note = Store(self.requests[0].out), self.monitor.note
        made = self.plans(Workers(self.requests[0].source.device))
        with caches.left_alone():
            found = [one for plan in made for one in estimates(plan, store, note, self.loaded)]
        reasons = [one.reason for one in found if one.reason is not None]
        if len(reasons) == len(found):
            _refuse([*self.refused, *reasons])
        for line in dict.fromkeys([*self.refused, *reasons]):
            note(f"refused: {line}")
        for line in (*dict.fromkeys(plan.trained_line for plan in made), *outdated(made, store)):
            note(line)
        return found

    def run(self) -> list[Record]:
        """Make or find every cell's record.

        Raises:
            UsageError: nothing that is asked for can be done; nothing is written then.
        """
        workers = Workers(self.requests[0].source.device)
        made, store = self.plans(workers), Store(self.requests[0].out)
        if workers.first:
            keep()
            for line in store.prepare(key for plan in made for key in plan.keys):
                self.monitor.note(f"not trusted: {line}")
        for line in dict.fromkeys(line for r in self.requests for line in _unused(r)):
            self.monitor.note(line)
        held: list[Held] = []
        runs = [
            Run(plan, store, workers, self.monitor, self.records, held, self.loaded)
            for plan in made
        ]
        for run in runs if self.launcher is None else ():
            run.prepare()
        counts = [run.count() for run in runs]
        if workers.first:
            for line in outdated(made, store):
                self.monitor.note(line)
        self.monitor.plan(*(sum(column) for column in zip(*counts, strict=True)))
        if self.launcher is not None:
            self.launcher(runs)
        else:
            for n, run in enumerate(runs):
                run.after = runs[n + 1 :]
                run.finish(run.portions())
                run.close()
        if reasons := workers.gather([one.record["reason"] for one in held])[0]:
            _refuse([*self.refused, *reasons])
        order = {name: n for n, name in enumerate(itertools.chain(*(r.names() for r in runs)))}
        self.records.sort(key=lambda record: order[_name(record)])
        return self.records


def outdated(made: Iterable[Plan], store: Store) -> Iterator[str]:
    """What was measured by older versions alone, in lines: its records are not taken."""
    counts = Counter[str]()
    for plan in made:
        some = {plan.key(cell): old for cell in plan.cells if (old := plan.older_keys(cell))}
        if not some:
            continue
        found, older = store.get_all(some), store.get_all(itertools.chain(*some.values()))
        for key, names in some.items():
            done = [said for name, said in names.items() if _finished(older[name])]
            if done and not _finished(found[key]):
                counts[done[-1]] += 1
    for said, count in counts.items():
        yield f"records that are not taken, of {said}: {count}"


def _finished(record: Record | None) -> bool:
    return record is not None and record["status"] == "ok"


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


class Held(NamedTuple):
    """The record of a cell that was refused, which is kept once another cell has its own.

    Attributes:
        trace: what its log shall say.
        new: whether it was not found at the beginning.
    """

    record: Record
    trace: str
    new: bool


@dataclass(eq=False)
class Run:
    """One plan being worked off, beside other processes that may share the store.

    Attributes:
        held: what was refused as long as no cell has a record: where it stays so, nothing that
            was asked for can be done, and nothing shall have been written.
        loaded: what the plans before this one have loaded.
        after: the runs that come next, whose cells are left too.
    """

    plan: Plan
    store: Store
    workers: Workers
    monitor: Monitor
    records: list[Record]
    held: list[Held]
    loaded: Loaded = field(default_factory=Loaded)
    after: Sequence[Run] = ()

    def __post_init__(self) -> None:
        before = self.store.get_all(self.plan.keys)
        self._before: dict[str, Record | None] = self.workers.gather(before)[0]
        self._found = {
            key: record
            for key, record in self._before.items()
            if record and record["status"] == "ok" and not self.plan.request.force
        }
        self._old = frozenset(self._found)
        self._inputs: Inputs | None = None
        self._costs: dict[str, tuple[str, float]] = {}
        self._session: Session | None = None
        self._broken: Failure | None = None
        self._read = False
        self._refused = dict[str, str]()  # what the logs of refused cells shall say, by key
        self._told: set[str] = set()

    def names(self) -> Iterator[_Name]:
        """What the records of the plan are called, in the order of its cells."""
        return (self._name(cell) for cell in self.plan.cells)

    def count(self) -> tuple[int, int]:
        """How many cells there are, and how many of them were found at the beginning."""
        return len(self.plan.cells), sum(self.plan.key(c) in self._old for c in self.plan.cells)

    def prepare(self) -> None:
        """Read the data of all cells that are not found, so that their costs are known; prompts
        are made when their cell is computed."""
        new = [c for c in self.plan.cells if not c.refusal and self.plan.key(c) not in self._found]
        if new:
            from ctxext.measure.costs import relative_costs
            from ctxext.measure.inputs import Inputs

            with self._breaking():
                self._inputs = Inputs(self.plan, new, self.loaded)
            if self._inputs is not None:
                with contextlib.suppress(Exception):  # then nothing tells how long it will take
                    self._costs = relative_costs(self.plan, self._inputs)

    def finish(self, waiting: list[list[Cell]]) -> None:
        """Make or find the records of groups, waiting for those that other processes compute."""
        try:
            while waiting:
                busy = [rest for cells in waiting if (rest := self._visit(cells))]
                if len(busy) == len(waiting) and sum(map(len, busy)) == sum(map(len, waiting)):
                    if self.workers.first:
                        self.note("waiting for cells that another process computes")
                    time.sleep(_PATIENCE)
                waiting = busy
        finally:
            self.store.release_all()

    def close(self) -> None:
        """Let go of the model, and of what it reads."""
        self._session = self._inputs = None

    def fail(self, cells: list[Cell], status: str, reason: str, trace: str | None = None) -> None:
        """The records of cells whose process was lost, but for those that it had finished."""
        why = Failure({"status": status, "reason": reason}, trace or "")
        for cell in self.salvage(cells):
            self._found[self.plan.key(cell)] = record = self._record(Measured.failed(cell, why))
            self._emit(cell, record)

    def salvage(self, cells: list[Cell]) -> list[Cell]:
        """Report those of the cells that another process has finished since the beginning; the
        others."""
        left = []
        for cell in cells:
            key = self.plan.key(cell)
            record = self.store.get(key)
            if record is not None and record != self._before[key]:
                self._found[key] = record
            if key in self._found:
                self._emit(cell, self._found[key])
            else:
                left.append(cell)
        return left

    def note(self, line: str) -> None:
        """Tell the user a line, once."""
        if line not in self._told:
            self._told.add(line)
            self.monitor.note(line)

    def accept(self, records: Sequence[Record], held: Sequence[Held]) -> None:
        """Report records that another process has made and kept, and keep what it has not."""
        for record in records:
            self._report(record, record["key"] not in self._old)
        self.held.extend(held)
        if self.records:
            self._let_go()

    def missing(self, cells: Sequence[Cell]) -> bool:
        """Whether one of the cells has no record yet."""
        return any(self.plan.key(cell) not in self._found for cell in cells)

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
        mine = self._claim(cells)
        measured = self._measure(mine)
        left = []
        for cell in cells:
            key = self.plan.key(cell)
            if cell in mine:
                if self._refusal(cell) is None:
                    self._begin(cell, key)
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
        by_key = dict[str, Cell]()
        for cell in cells:
            by_key.setdefault(self.plan.key(cell), cell)
        return [cell for key, cell in by_key.items() if key in missing]

    def _measure(self, cells: list[Cell]) -> Iterator[Measured]:
        if cells and not self._read:
            self._agree()
        whys = [(cell, self._refusal(cell)) for cell in cells]
        measured = self._measure_fit([cell for cell, why in whys if why is None])
        return (Measured.failed(cell, why) if why else next(measured) for cell, why in whys)

    def _agree(self) -> None:
        """Have what the cells read, and let every process refuse what one of them does."""
        if self._inputs is None and self._broken is None:
            self.prepare()
        self._broken = next(filter(None, self.workers.gather(self._broken)), None)
        if self._inputs is not None and self._broken is None:
            self._inputs.refusals.agree(self.workers)
        self._read = True

    def _refusal(self, cell: Cell) -> Failure | None:
        """Why a cell cannot be measured, as far as that is known."""
        if cell.refusal is not None:
            return Failure.refusal(cell.refusal)
        if self._broken is not None:
            return self._broken
        if self._session is not None:
            return self._session.refusal(cell)
        return self._inputs.refusals.of(place(cell)) if self._inputs else None

    def _measure_fit(self, cells: list[Cell]) -> Iterator[Measured]:
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

        session = None
        if self._inputs is not None and self._broken is None:
            self.monitor.begin(Step(f"loading {self.plan.source.name}", left=self._left()))
            with self._breaking():
                session = Session(self.plan, self._inputs, self.workers, self.monitor, self.loaded)
        self._broken = next(filter(None, self.workers.gather(self._broken)), None)
        if session is not None and self._broken is None:
            session.agree()
            self._session = session

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """What fails in the block becomes the failure of each cell."""
        try:
            yield
        except ENDS_RUN:
            raise
        except BaseException as error:
            self._broken = Failure.of(error)

    def _begin(self, cell: Cell, key: str) -> None:
        """Tell of a cell that is computed from now on, and of what is left after it."""
        where = f"{format_length(cell.length)} {cell.asked}"
        kind, cost = self._costs.get(key, ("", math.nan))
        if self._session is not None and self._inputs and self._inputs.lacks(cell):
            start = time.monotonic()
            self.monitor.begin(Step(f"making the prompts of {where}", left=self._left()))
            self._inputs.samples(cell)
            if (took := time.monotonic() - start) > _LONG:
                self.monitor.note(f"made the prompts of {where} ({format_seconds(took)})")
        tokens = self._inputs.tokens(cell) // self.workers.count if self._inputs else 0
        what = f"{cell.requested} {where}"
        self.monitor.begin(Step(what, tokens, kind, cost, self._left(key)))

    def _left(self, but: str = "") -> dict[str, float]:
        """What the cells take together that are neither found nor this one, by kind."""
        left = dict[str, float]()
        for run in (self, *self.after):
            for key, (kind, cost) in run._costs.items():
                if key not in run._found and (run, key) != (self, but):
                    left[kind] = left.get(kind, 0.0) + cost
        return left

    def _name(self, cell: Cell) -> _Name:
        model, method = self.plan.request.source.name, str(cell.requested)
        return _Name(self.plan.key(cell), model, method, str(cell.asked), cell.data.name)

    def _emit(self, cell: Cell, record: Record) -> None:
        """Report a cell's record, and keep it under the names of this request."""
        name = self._name(cell)
        data = {**record["data"], "name": name.data}
        names = {"model": name.model, "requested": name.requested, "task": name.task}
        named, new = {**record, **names, "data": data}, name.key not in self._old
        if name.key in self._refused:
            self.held.append(Held(named, self._refused[name.key], new))
            if self.records:
                self._let_go()
        else:
            self.note(self.plan.trained_line)
            record = sealed(named) if new or named != record else record
            self._keep(record)
            self._report(record, new)
            self._let_go()

    def _keep(self, record: Record) -> None:
        """Write a record; under --force a failure takes the place of what was there."""
        if record["status"] != "ok" and self.plan.request.force:
            for line in self.store.withdraw(record["key"]):
                self.note(line)
        self.store.write(record)

    def _report(self, record: Record, new: bool) -> None:
        self.records.append(record)
        if new:
            self.monitor.done(record)

    def _let_go(self) -> None:
        """Keep the records of what was refused: something has been done."""
        while self.held:
            record, trace, new = self.held.pop(0)
            record = sealed({**record, "log": self.store.log(record, trace)})
            self._keep(record)
            self._report(record, new)

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
            **plan.identity.facts(plan.source),
            "batch_size": plan.request.batch(cell.length),
            "prefill_chunk": None,
            **done.fields,
            "seed": cell.seed,
            "limit": plan.request.limit,
            "data": {
                "name": name.data,
                "sha256": cell.data.sha256,
                "tokens": session.data_tokens_of(cell) if session else 0,
                "at_most": plan.request.tokens,
                **getattr(cell.data, "facts", {}),
            },
            "model_sha256": plan.identity.sha256,
            "revision": plan.request.source.revision,
            "dtype": plan.source.load_in or dtype,
            "device": device_name(session.model.device) if session else plan.source.device,
            "attention": handle.attention if handle else plan.attention(cell.method),
            "attention_reasons": handle.choice.reasons if handle else (),
            "notes": handle.notes if handle else [],
            "version_of": plans.versions(cell),
            "processes": self.workers.count,
            "versions": versions(*cell.task.libraries, *_quantizers(plan.source.load_in)),
            "created": _now(),
            "key": name.key,
        }
        log = None
        if done.refused:
            self._refused[name.key] = done.trace or ""
        elif done.trace and self.workers.first:
            log = self.store.log(record, done.trace)
        return {**record, "log": log}


def _quantizers(load_in: str | None) -> Sequence[str]:
    return () if load_in is None else ("bitsandbytes",)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
