"""The folder that keeps one JSON file for each record, shared by any number of processes.

A file is written whole or not at all. One that is not sound is never used and never deleted: it
is moved to `set-aside/`. Files may be packed into one, whose lines count as the files did.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ctxext.errors import CtxextError, OutputError, UsageError
from ctxext.records.claims import Claims
from ctxext.records.files import name_of, read_file, text_of
from ctxext.records.pack import Packed, merged
from ctxext.records.record import Record
from ctxext.records.seal import sealed
from ctxext.records.sound import problem_with
from ctxext.system.files import State, check_writable, seen, write_atomically
from ctxext.system.names import printable

SET_ASIDE, LOGS = "set-aside", "logs"
_OURS = re.compile(r".+--[0-9a-f]{12}\.json")
_ENDING = len("--0123456789ab.json")
_UNFINISHED = ".record-"


class Store:
    """The record files of one folder, named `model--method--task--length--key.json`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._claims, self._packed = Claims(self.folder), Packed(self.folder)
        self._held: dict[Path, tuple[State, Record]] = {}

    def prepare(self, keys: Iterable[str] = ()) -> list[str]:
        """Create the folder if need be and set aside what is not sound; a line about each such,
        and about each line of a packed file that is not.

        Args:
            keys: requests whose records are held, so that `get` and `write` need not read them.

        Raises:
            UsageError: records cannot be written there.
        """
        check_writable(self.folder)
        try:
            with self._claims.locked():
                for left in self.folder.glob(f"{_UNFINISHED}*.tmp"):  # by a process that was killed
                    left.unlink()
                endings = {_ending(key) for key in keys}
                ours = [path for path in self._files() if _OURS.fullmatch(path.name)]
                unsound = ((path, self._load(path, endings)) for path in ours)
                aside = [self._set_aside(path, why) for path, (_, why) in unsound if why]
                return [*aside, *map(printable, self._packed.read().problems)]
        except (OSError, CtxextError) as error:
            raise UsageError(
                f"cannot keep records in {self.folder}: {error}: give another --out"
            ) from error

    def path(self, record: Mapping[str, Any]) -> Path:
        """Where the record lives, unless it is packed."""
        return self.folder / name_of(record)

    def get(self, key: str) -> Record | None:
        """The record of this request that is there and sound: a finished one, or a failed one."""
        return self.get_all([key])[key]

    def get_all(self, keys: Iterable[str]) -> dict[str, Record | None]:
        """What `get` finds for each request; the folder is listed once."""
        keys = list(keys)
        places: dict[str, list[Path]] = {_ending(key): [] for key in keys}
        for path in self._files():
            if (ending := path.name[-_ENDING:]) in places:
                places[ending].append(path)
        return {key: self._best(key, places[_ending(key)]) for key in keys}

    def _best(self, key: str, paths: Iterable[Path]) -> Record | None:
        failed = None
        for record in itertools.chain(self._in_files(paths), self._in_pack(key)):
            if record["key"] == key:
                if record["status"] == "ok":
                    return record
                failed = failed or record
        return failed

    def _in_files(self, paths: Iterable[Path]) -> Iterator[Record]:
        found = (self._load(path)[0] for path in paths)
        return (record for record in found if record is not None)

    def _in_pack(self, key: str) -> list[Record]:
        return self._packed.read().by_key.get(key, [])

    def finished(self, key: str) -> Record | None:
        """The finished (`ok`) record of this request, if it is there and sound."""
        record = self.get(key)
        return record if record is not None and record["status"] == "ok" else None

    def claim(self, key: str) -> bool:
        """Whether this process now is the one that computes the cell, until `release`."""
        return self._claims.claim(key)

    def release(self, key: str) -> None:
        """Let go of the cell's claim."""
        self._claims.release(key)

    def release_all(self) -> None:
        """Let go of every claim."""
        self._claims.release_all()

    def write(self, record: Mapping[str, Any]) -> Path:
        """Keep the record, sealed; the value of an `ok` one must be finite.

        A file in its place that is not sound is set aside; a failure never takes the place of a
        finished record, which `withdraw` sets aside, nor does the same cell that was asked for by
        another name.

        Raises:
            CtxextError: the record is not sound.
            OutputError: the file cannot be written.
        """
        path = self.path(record)
        known = path in self._held or path.name in self._packed.read().records
        if known and self._at(path)[0] == record:
            return path  # exactly this is there
        clean = sealed(record)
        if problem := problem_with(clean):
            raise CtxextError(f"this record cannot be kept: {problem}")
        path = self.path(clean)
        with self._claims.locked():
            if clean["status"] != "ok" and self.finished(clean["key"]) is not None:
                return path
            there, problem = self._at(path)
            if there is not None and there["key"] != clean["key"]:
                problem = "it is the record of another cell, renamed by hand"
            if problem:
                self._set_aside(path, problem)
            if there is None or _measured(there) != _measured(clean):
                write_atomically(path, text_of(clean), _UNFINISHED)
        return path

    def withdraw(self, key: str) -> list[str]:
        """Set the finished records of a request aside, whose cell failed when it was done again;
        a line about each.

        Raises:
            OutputError: one cannot be moved.
        """
        with self._claims.locked():
            packed = {self.path(one): one for one in self._in_pack(key) if one["status"] == "ok"}
            for path, record in packed.items():
                if not os.path.lexists(path):
                    write_atomically(path, text_of(record), _UNFINISHED)
            if packed:
                self._repack(but={path.name for path in packed})
            ours = [path for path in self._files() if path.name.endswith(_ending(key))]
            found = [(path, record) for path in ours for record in self._in_files([path])]
            done = [p for p, one in found if one["key"] == key and one["status"] == "ok"]
            return [self._set_aside(path, "done again, it failed") for path in done]

    def log(self, record: Mapping[str, Any], trace: str) -> str:
        """Add a failed cell's traceback to its log; where that is, from the folder on."""
        path = (self.folder / LOGS / name_of(record)).with_suffix(".log")
        try:
            path.parent.mkdir(exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{record['created']}\n{trace.rstrip()}\n\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return path.relative_to(self.folder).as_posix()

    def read_all(self) -> tuple[list[Record], list[str]]:
        """All sound records in the order of their files' names, and a line about each other file,
        or line of the packed one."""
        found = {path.name: self._load(path) for path in self._files()}
        pack = self._packed.read()  # last, for what was a file a moment ago
        files = {name: record for name, (record, _) in found.items() if record is not None}
        gone = {n for n in found if n in pack.records and not os.path.lexists(self.folder / n)}
        lost = {n: why for n, (one, why) in found.items() if one is None and n not in gone}
        problems = [*(f"{name}: {why}" for name, why in lost.items()), *pack.problems]
        records = merged(pack.records, files)
        return [records[name] for name in sorted(records)], list(map(printable, problems))

    def pack(self) -> list[str]:
        """Fold the files of sound records into one, `records.jsonl`, and let go of them; a line
        about what of it is no sound record, and was set aside.

        What is packed already changes nothing, and a file that another program changes meanwhile
        stays. Where this is interrupted, every record is still in one place or in both.

        Raises:
            OutputError: something cannot be written.
        """
        with self._claims.locked():
            files = dict(self._to_pack())
            told = self._repack({path.name: record for path, (_, record) in files.items()})
            try:
                for path, (state, _) in files.items():
                    if seen(path)[0] == state:
                        path.unlink()
            except OSError as error:
                raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
        return told

    def _to_pack(self) -> Iterator[tuple[Path, tuple[State, Record]]]:
        """The files of sound records under their own names."""
        for path in self._files():
            with contextlib.suppress(OSError):
                state = seen(path)[0]
                record = None if path.is_symlink() else self._load(path)[0]
                if record is not None and path.name == name_of(record):
                    yield path, (state, record)

    def _repack(self, more: Mapping[str, Record] = {}, but: Collection[str] = ()) -> list[str]:
        """Write the packed file anew, with more records or without some; a line where its old one
        is set aside for what was no sound record in it."""
        pack = self._packed.read()
        if pack.unread:
            raise OutputError(f"cannot pack records in {self.folder}: {pack.problems[0]}")
        told = []
        if pack.problems:
            problem = f"{len(pack.problems)} of its lines are no sound records"
            told.append(self._set_aside(self._packed.path, problem, copy=True))
        records = merged(pack.records, more)
        self._packed.write({name: records[name] for name in records if name not in but})
        return told

    def _at(self, path: Path) -> tuple[Record | None, str | None]:
        """What is at the path of a record: that of its file, or of its line in the packed file."""
        if os.path.lexists(path):
            return self._load(path)
        return self._packed.read().records.get(path.name), None

    def _load(self, path: Path, endings: Collection[str] = ()) -> tuple[Record | None, str | None]:
        """The record in a file, or None and what is wrong with the file.

        Args:
            endings: what is in files whose names end so is held.
        """
        try:
            state, settled = seen(path)
            if path in self._held and self._held[path][0] == state:
                return self._held[path][1], None
            record, problem = read_file(path, state.size)
        except (OSError, ValueError) as error:
            return None, f"cannot be read as JSON ({error})"
        if record is not None and settled and path.name[-_ENDING:] in endings:
            self._held[path] = state, record
        return record, problem

    def _set_aside(self, path: Path, problem: str, copy: bool = False) -> str:
        """Move a file out of the way, under a name that is free, or a copy of it; a line that says
        so."""
        folder = self.folder / SET_ASIDE
        names = (f"{path.stem}{(n and f'-{n}') or ''}{path.suffix}" for n in itertools.count())
        place = next(folder / name for name in names if not os.path.lexists(folder / name))
        try:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, place) if copy else os.rename(path, place)
        except OSError as error:
            why = error.strerror or error
            raise OutputError(f"cannot set aside {path} in {folder}: {why}") from error
        return printable(f"{path.name}: {problem}: set aside as {SET_ASIDE}/{place.name}")

    def _files(self) -> list[Path]:
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(".json"))
            return [self.folder / name for name in names]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the folder {self.folder}: {error}") from error


def _ending(key: str) -> str:
    """How the names of a key's files end."""
    return f"--{key[:12]}.json"


def _measured(record: Record) -> dict[str, Any]:
    """The record without what the cell was called."""
    data = {**record["data"], "name": None}
    return {**record, **dict.fromkeys(("model", "requested", "task", "digest")), "data": data}
