"""Answers on disk: one line for each sample, kept as it comes and found again by a rerun.

While a cell runs, each process appends to a file of its own; once all samples have their answers
these become one file in the order of the samples, in the form of LongBench's predictions.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ctxext.errors import OutputError
from ctxext.request.cells import Cell, Plan
from ctxext.system.files import write_atomically
from ctxext.system.names import safe_name, told_apart
from ctxext.tasks.base import Row, Sample

NAMED = 96  # characters of a folder's name before its key: Windows takes paths of 259


def path_of(plan: Plan, cell: Cell) -> Path:
    """Where a cell's answers are: one folder for the tasks of a benchmark, a file for each.

    The file has the task's bare name, by which `ctxext score` knows it; its other parameters
    are in the folder's.
    """
    name, _, label = str(cell.asked).partition(":")
    if cell.task.positional:
        label, _, more = label.partition(",")
        name = f"{name}:{more}" if more else name
    else:
        label = str(cell.asked)
    model, method = safe_name(plan.request.source.name, 48), safe_name(str(cell.requested))
    names = f"{model}--{method}--{safe_name(name)}"[:NAMED].rstrip("-.")
    about = f"{names}--{cell.length}--{plan.shared_key(cell)}"
    return plan.request.out / "predictions" / about / f"{told_apart(label)}.jsonl"


class Predictions:
    """The answers of one cell, in `folder/TASK.jsonl`.

    Args:
        key: what the cell's numbers depend on; rows of another key are not its own.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self._file: IO[bytes] | None = None
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._part = path.with_name(f".{path.stem}.{token}.part")

    def __enter__(self) -> Predictions:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def found(self, samples: Iterable[Sample]) -> dict[str, Row]:
        """The rows that earlier runs have left of these samples, by name.

        A line that was cut off, is no row, or answers another prompt, counts as not there.
        """
        wanted, rows = {sample.name: sample.digest for sample in samples}, dict[str, Row]()
        for path in (self.path, *self._parts()):
            for row in _read(path):
                ours = row.get("cell") == self._key and row.get("prompt") == wanted.get(row["name"])
                if ours and row["name"] in wanted:
                    rows.setdefault(row["name"], row)
        return rows

    def add(self, row: Row) -> None:
        """Keep one more row; it is on disk when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        left = memoryview(_line({**row, "cell": self._key}))
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._part, "ab", buffering=0)  # noqa: SIM115
            while left:  # a disk that is almost full takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OutputError(f"cannot write {self._part}: {error.strerror or error}") from error

    def finish(self, rows: Sequence[Row]) -> None:
        """All rows in one file, in place of the parts; another cell's file is moved to `older/`.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        write_atomically(self.path, b"".join(_line({**row, "cell": self._key}) for row in rows))
        self.discard_parts()

    def _make_room(self) -> None:
        """The same task on other data may have been here before."""
        keys = {str(row.get("cell")) for row in _read(self.path)} - {self._key}
        if keys:
            older = self.path.with_name("older") / safe_name(min(keys)) / self.path.name
            older.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, older)

    def discard_parts(self) -> None:
        """Forget what unfinished runs have left."""
        for path in self._parts():
            with contextlib.suppress(OSError):
                path.unlink()

    def _parts(self) -> list[Path]:
        ours = f".{self.path.stem}."
        with contextlib.suppress(OSError):
            files = sorted(self.path.parent.iterdir())
            return [p for p in files if p.name.startswith(ours) and p.suffix == ".part"]
        return []


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _read(path: Path) -> Iterable[Row]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        row: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict) and _is_row(row):
            yield row


def _is_row(row: dict[str, Any]) -> bool:
    texts = all(isinstance(row.get(field), str) for field in ("name", "pred"))
    margin, seconds = row.get("margin"), row.get("seconds")
    answered = isinstance(margin, float) and margin >= 0
    return texts and answered and isinstance(seconds, float) and 0 < seconds < math.inf
