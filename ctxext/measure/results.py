"""The records of an evaluation, as they come: told, and kept in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ctxext.measure.monitor import Monitor
from ctxext.records import Record, Store, sealed


class Held(NamedTuple):
    """The record of a cell that was refused, which is kept once another cell has its own.

    Attributes:
        trace: what its log shall say.
        new: whether it was not found at the beginning.
    """

    record: Record
    trace: str
    new: bool


class Results:
    """Where the records of all plans come together.

    Attributes:
        records: those that have been told, in turn.
        held: what was refused as long as no cell has a record: where it stays so, nothing that
            was asked for can be done, and nothing shall have been written.
    """

    def __init__(self, store: Store, monitor: Monitor, records: list[Record], force: bool) -> None:
        self.store, self.monitor, self.records = store, monitor, records
        self.held: list[Held] = []
        self._force = force
        self._told: set[str] = set()

    def note(self, line: str) -> None:
        """Tell the user a line, once."""
        if line not in self._told:
            self._told.add(line)
            self.monitor.note(line)

    def emit(self, record: Record, new: bool) -> None:
        """Keep a record and report it, and then what was held back."""
        self._keep(record)
        self._report(record, new)
        self._let_go()

    def hold(self, held: Sequence[Held]) -> None:
        """Keep back what was refused until a cell has a record."""
        self.held.extend(held)
        if self.records:
            self._let_go()

    def accept(self, records: Sequence[Record], old: frozenset[str], held: Sequence[Held]) -> None:
        """Report records that another process has made and kept, and keep what it has not."""
        for record in records:
            self._report(record, record["key"] not in old)
        self.hold(held)

    def _keep(self, record: Record) -> None:
        """Write a record; under --force a failure takes the place of what was there."""
        if record["status"] != "ok" and self._force:
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
