"""Cells → records: what is on disk drops out, the rest is measured, each record is kept."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctxext import plan as plans
from ctxext.machine import device_name, versions
from ctxext.measure.workers import Workers
from ctxext.monitor import Monitor
from ctxext.plan import Cell
from ctxext.request import Request
from ctxext.results import Record, Store, sealed
from ctxext.tasks.base import TokenTask

if TYPE_CHECKING:
    from ctxext.measure.session import Measured, Session


@dataclass
class Evaluation:
    """An evaluation in progress; `records` grows as cells are done, in the order of cells.

    Under `accelerate launch` every process runs the same evaluation: windows and samples are
    split among them, and the first alone has records.
    """

    request: Request
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)

    def run(self) -> list[Record]:
        """Make or find every cell's record.

        Raises:
            UsageError: something asked for cannot be done; no cell has been computed then.
        """
        workers = Workers(self.request.source.device)
        plans.check_workers(self.request, workers.count)
        request = self.request.on(workers.device(self.request.source.device))
        store = Store(request.out)
        if workers.first:
            store.check_writable()
        self.plan = plans.make(request)
        if request.data is not None:
            for task in (task for task in request.tasks if not task.uses_data):
                self.monitor.note(f"{task} does not use --data {request.data}")
        if request.tokens is not None:
            for task in (task for task in request.tasks if not isinstance(task, TokenTask)):
                self.monitor.note(f"{task} does not use --tokens {request.tokens}")
        kept = {k: None if request.force else store.get(k) for k in self.plan.keys}
        found: dict[str, Record | None] = workers.gather(kept)[0]
        session = self._session(found, workers)
        for cells in self._groups():
            new = [cell for cell in cells if found[self.plan.key(cell)] is None]
            measured = session.measure(new) if session is not None else iter(())
            for cell in cells:
                if session is not None and cell in new:
                    found[self.plan.key(cell)] = self._record(next(measured), session)
                if workers.first:
                    self._emit(store, cell, found[self.plan.key(cell)])
        return self.records

    def _session(self, found: dict[str, Record | None], workers: Workers) -> Session | None:
        """What measures the cells that are new, if any is."""
        new = [cell for cell in self.plan.cells if found[self.plan.key(cell)] is None]
        if not new:
            return None
        from ctxext.measure.session import Session

        return Session(self.plan, new, workers, self.monitor)

    def _groups(self) -> Iterator[list[Cell]]:
        """Cells by method and length: these share a forward where they can."""
        groups = itertools.groupby(self.plan.cells, key=lambda cell: (cell.requested, cell.length))
        return (list(cells) for _, cells in groups)

    def _emit(self, store: Store, cell: Cell, record: Record | None) -> None:
        """Report a cell's record, and keep it under the names of this request.

        A failure never takes the place of a finished record.
        """
        names = {"model": self.request.source.name, "requested": str(cell.requested)}
        names["task"] = str(cell.asked)
        assert record is not None
        data = {**record["data"], "name": cell.data.name}
        record = sealed({**record, **names, "data": data})
        self.records.append(record)
        if record["status"] == "ok" or store.get(record["key"]) is None:
            store.write(record)
        self.monitor.done(record)

    def _record(self, done: Measured, session: Session) -> Record:
        cell, handle, model, plan = done.cell, done.handle, session.model, self.plan
        return {
            "model": self.request.source.name,
            "requested": str(cell.requested),
            "method": cell.method.full(),
            "task": str(cell.asked),
            "task_resolved": str(cell.task),
            "metric": cell.task.metric,
            "length": cell.length,
            "trained_length": plan.identity.trained,
            **done.fields,
            "seed": self.request.seed,
            "limit": self.request.limit,
            "data": {
                "name": cell.data.name,
                "sha256": cell.data.sha256,
                "tokens": session.data_tokens_of(cell),
            },
            "model_sha256": plan.identity.sha256,
            "revision": self.request.source.revision,
            "dtype": plan.source.load_in or str(model.dtype).removeprefix("torch."),
            "device": device_name(model.device),
            "attention": handle.attention if handle else plan.attention(cell.method),
            "attention_reasons": handle.choice.reasons if handle else (),
            "notes": handle.notes if handle else [],
            "batch_size": self.request.batch(cell.length),
            "processes": session.processes,
            "versions": versions(),
            "created": _now(),
            "key": plan.key(cell),
        }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
