"""Which cells have records: one look at the store for all plans, and what comes to it since."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctxext.measure.workers import Workers
from ctxext.records import Record, Store, sealed
from ctxext.request.cells import Cell, Plan


class Look:
    """What a store has for the cells of plans, under their keys and those of older versions.

    Attributes:
        records: the record of each key, or None.
    """

    def __init__(self, plans: Sequence[Plan], store: Store) -> None:
        older = {plan.key(cell): plan.older_keys(cell) for plan in plans for cell in plan.cells}
        self._older = {key: names for key, names in older.items() if names}
        keys = (key for plan in plans for key in plan.keys)
        self.records = store.get_all([*keys, *itertools.chain(*self._older.values())])

    def outdated(self) -> Iterator[str]:
        """What was measured by older versions alone, in lines: its records are not taken."""
        counts = Counter[str]()
        for key, names in self._older.items():
            done = [said for name, said in names.items() if _finished(self.records[name])]
            if done and not _finished(self.records[key]):
                counts[done[-1]] += 1
        for said, count in counts.items():
            yield f"records that are not taken, of {said}: {count}"


def _finished(record: Record | None) -> bool:
    return record is not None and record["status"] == "ok"


class Found:
    """The records of a plan's cells: those from before, those made since, and claims to the others.

    Attributes:
        records: by key; of a cell that failed before there is none, for it is tried again.
        old: the keys of those that were there at the beginning.
    """

    def __init__(
        self, plan: Plan, store: Store, workers: Workers, look: Look | None = None
    ) -> None:
        self._plan, self._store, self._workers = plan, store, workers
        seen = look.records if look else store.get_all(plan.keys) if workers.first else {}
        self.before = workers.gather({key: seen.get(key) for key in plan.keys})[0]
        self.records: dict[str, Record] = {
            key: record
            for key, record in self.before.items()
            if record and record["status"] == "ok" and not plan.request.force
        }
        self.old = frozenset(self.records)

    def of(self, cell: Cell) -> Record | None:
        """The record of a cell."""
        return self.records.get(self._plan.key(cell))

    def add(self, fields: Mapping[str, Any]) -> Record:
        """Take the record of a cell that was made."""
        record = self.records[fields["key"]] = sealed(fields)
        return record

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that have no record yet."""
        return [cell for cell in cells if self.of(cell) is None]

    def claim(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that this process now has to compute, each key once.

        What another process has finished since the beginning is found, and not made again.
        """
        new: dict[str, Record | None] = {}
        for key in (self._plan.key(cell) for cell in cells if self._workers.first):
            if key not in self.records and key not in new and self._store.claim(key):
                new[key] = self._newer(key)
        new = self._workers.gather(new)[0]
        self.records |= {key: record for key, record in new.items() if record is not None}
        by_key = dict[str, Cell]()
        for cell in cells:
            by_key.setdefault(self._plan.key(cell), cell)
        return [cell for key, cell in by_key.items() if key in new and new[key] is None]

    def look_again(self, cells: Sequence[Cell]) -> None:
        """Find what other processes have finished since the beginning."""
        for key in map(self._plan.key, cells):
            if (record := self._newer(key)) is not None:
                self.records[key] = record

    def release(self, cell: Cell) -> None:
        """Let go of the claim to a cell."""
        self._store.release(self._plan.key(cell))

    def _newer(self, key: str) -> Record | None:
        record = self._store.get(key)
        return record if record != self.before[key] else None
