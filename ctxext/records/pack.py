"""The packed records of a folder: one file with a line for each, to be committed with a study.

Files of cells supersede its lines, by name. It is only ever replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ctxext.records.files import PACK, name_of, pack_of, read_pack
from ctxext.records.record import Record
from ctxext.system.files import State, seen, write_atomically


@dataclass(frozen=True)
class Pack:
    """What a packed file holds.

    Attributes:
        records: by the name that each one's file has.
        problems: a line about each of its lines that is no sound record, or about the file.
        unread: whether there is one that cannot be read.
    """

    records: dict[str, Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: bool = False

    @cached_property
    def by_key(self) -> dict[str, list[Record]]:
        """The records of each request."""
        found: dict[str, list[Record]] = {}
        for record in self.records.values():
            found.setdefault(record["key"], []).append(record)
        return found


class Packed:
    """The packed file of a folder, read again where it was changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PACK
        self._seen: tuple[State, Pack] | None = None

    def read(self) -> Pack:
        """What is in it; nothing where it is not there."""
        try:
            state, settled = seen(self.path)
            if self._seen is not None and self._seen[0] == state:
                return self._seen[1]
            pack = self._read()
        except FileNotFoundError:
            return Pack()
        except OSError as error:
            problem = f"{PACK}: cannot be read ({error.strerror or error})"
            return Pack(problems=[problem], unread=True)
        self._seen = (state, pack) if settled else None
        return pack

    def _read(self) -> Pack:
        pack = Pack()
        for number, (record, problem) in read_pack(self.path):
            if record is None:
                pack.problems.append(f"{PACK}, line {number}: {problem}")
            else:
                name = name_of(record)
                pack.records[name] = max(pack.records.get(name, record), record, key=_rank)
        return pack

    def write(self, records: Mapping[str, Record]) -> None:
        """Hold these alone; OutputError where that cannot be written."""
        content = pack_of(records)
        there = self.path.read_bytes() if self.path.is_file() else b""
        if there != content:
            write_atomically(self.path, content, ".record-")


def merged(packed: Mapping[str, Record], files: Mapping[str, Record]) -> dict[str, Record]:
    """Both by name: a file counts, but for one of a cell that failed and was finished before."""
    lost = {n for n in files if n in packed and _rank(files[n])[0] < _rank(packed[n])[0]}
    return {**packed, **{name: files[name] for name in files if name not in lost}}


def _rank(record: Record) -> tuple[bool, str]:
    """Of two lines of one cell the finished one counts, then the newer one."""
    return record["status"] == "ok", record["created"]
