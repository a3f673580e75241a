"""What became of a cell → its record."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ctxext.measure.machine import device_name, versions
from ctxext.measure.outcome import Measured
from ctxext.records import Record, sealed
from ctxext.records.record import Data
from ctxext.request import cells as plans
from ctxext.request.cells import Cell, Plan
from ctxext.system.names import encodable

if TYPE_CHECKING:
    from ctxext.measure.session import Session


class Name(NamedTuple):
    """What tells the records of one evaluation apart."""

    key: str
    model: str
    requested: str
    task: str
    data: str

    @classmethod
    def of(cls, plan: Plan, cell: Cell) -> Name:
        """What the record of a cell is called."""
        names = (plan.request.source.name, str(cell.requested), str(cell.asked), cell.data.name)
        model, method, task, data = map(encodable, names)
        return cls(plan.key(cell), model, method, task, data)

    @classmethod
    def on(cls, record: Record) -> Name:
        """What a record is called."""
        key, model, requested = record["key"], record["model"], record["requested"]
        return cls(key, model, requested, record["task"], record["data"]["name"])

    def put_on(self, record: Record) -> Record:
        """The record of the same cell by this name."""
        data: Data = {**record["data"], "name": self.data}
        named: Record = {**record, "model": self.model, "requested": self.requested}
        named = {**named, "task": self.task, "data": data}
        return sealed(named) if named != record else record


def made(done: Measured, plan: Plan, session: Session | None, processes: int) -> dict[str, Any]:
    """The fields of the record of a cell, measured in a session or not at all."""
    cell, handle = done.cell, done.handle
    name = Name.of(plan, cell)
    dtype = str(session.model.dtype).removeprefix("torch.") if session else plan.source.dtype
    return {
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
        "processes": processes,
        "versions": versions(*cell.task.libraries, *_quantizers(plan.source.load_in)),
        "created": _now(),
        "key": name.key,
    }


def _quantizers(load_in: str | None) -> Sequence[str]:
    return () if load_in is None else ("bitsandbytes",)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
