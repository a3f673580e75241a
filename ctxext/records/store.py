"""The folder that keeps one JSON file for each record, shared by any number of processes.

A file is written whole or not at all. One that is not sound is never used and never deleted: it
is moved to `set-aside/`. Who computes a cell holds a lock on its key in `.claims/`, which ends
with its process, however that ends; what changes the folder happens under one more lock there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ctxext.errors import CtxextError, OutputError, UsageError
from ctxext.records.record import Record
from ctxext.records.seal import digest, sealed
from ctxext.records.sound import problem_with
from ctxext.system.files import State, check_writable, seen, write_atomically
from ctxext.system.names import printable, safe_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

CLAIMS, SET_ASIDE, LOGS = ".claims", "set-aside", "logs"
_MAX_FILE_BYTES = 16 << 20  # a record takes a few kilobytes
_OURS = re.compile(r".+--[0-9a-f]{12}\.json")
_ENDING = len("--0123456789ab.json")
_TRIES = 100  # for the lock
_UNFINISHED = ".record-"


class Store:
    """The record files of one folder, named `model--method--task--length--key.json`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._claims: dict[str, BaseFileLock] = {}
        self._held: dict[Path, tuple[State, Record]] = {}

    def prepare(self, keys: Iterable[str] = ()) -> list[str]:
        """Create the folder if need be and set aside what is not sound; a line about each such.

        Args:
            keys: requests whose records are held, so that `get` and `write` need not read them.

        Raises:
            UsageError: records cannot be written there.
        """
        check_writable(self.folder)
        try:
            with self._locked():
                for left in self.folder.glob(f"{_UNFINISHED}*.tmp"):  # by a process that was killed
                    left.unlink()
                endings = {_ending(key) for key in keys}
                ours = [path for path in self._files() if _OURS.fullmatch(path.name)]
                unsound = ((path, self._load(path, endings)) for path in ours)
                return [self._set_aside(path, why) for path, (_, why) in unsound if why]
        except (OSError, CtxextError) as error:
            raise UsageError(
                f"cannot keep records in {self.folder}: {error}: give another --out"
            ) from error

    def path(self, record: Mapping[str, Any]) -> Path:
        """Where the record lives: a name a person can read, and 12 hex digits of the key."""
        return self.folder / f"{_stem(record)}.json"

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
        for path in paths:
            record, _ = self._load(path)
            if record is not None and record["key"] == key:
                if record["status"] == "ok":
                    return record
                failed = record
        return failed

    def finished(self, key: str) -> Record | None:
        """The finished (`ok`) record of this request, if it is there and sound."""
        record = self.get(key)
        return record if record is not None and record["status"] == "ok" else None

    def claim(self, key: str) -> bool:
        """Whether this process now is the one that computes the cell, until `release`."""
        from filelock import FileLock, Timeout

        if key in self._claims:
            return True
        with self._locked():
            lock = FileLock(self.folder / CLAIMS / f"{key[:24]}.lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                return False
            except OSError as error:
                raise OutputError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
        self._claims[key] = lock
        return True

    def release(self, key: str) -> None:
        """Let go of the cell's claim."""
        if lock := self._claims.pop(key, None):
            with self._locked(), contextlib.suppress(OSError):
                os.unlink(lock.lock_file)  # nobody waits for it: who wants it tries again
            lock.release()

    def release_all(self) -> None:
        """Let go of every claim."""
        for key in list(self._claims):
            self.release(key)

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
        if path in self._held and self._load(path)[0] == record:  # exactly this is there
            return path
        clean = sealed(record)
        if problem := problem_with(clean):
            raise CtxextError(f"this record cannot be kept: {problem}")
        path = self.path(clean)
        text = json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False)
        with self._locked():
            if clean["status"] != "ok" and self.finished(clean["key"]) is not None:
                return path
            there, problem = self._load(path) if os.path.lexists(path) else (None, None)
            if there is not None and there["key"] != clean["key"]:
                problem = "it is the record of another cell, renamed by hand"
            if problem:
                self._set_aside(path, problem)
            if there is None or _measured(there) != _measured(clean):
                write_atomically(path, text.encode("utf-8", "replace") + b"\n", _UNFINISHED)
        return path

    def withdraw(self, key: str) -> list[str]:
        """Set the finished records of a request aside, whose cell failed when it was done again;
        a line about each.

        Raises:
            OutputError: one cannot be moved.
        """
        ours = [path for path in self._files() if path.name.endswith(_ending(key))]
        with self._locked():
            found = [(path, self._best(key, [path])) for path in ours]
            done = [path for path, record in found if record and record["status"] == "ok"]
            return [self._set_aside(path, "done again, it failed") for path in done]

    def log(self, record: Mapping[str, Any], trace: str) -> str:
        """Add a failed cell's traceback to its log; where that is, from the folder on."""
        path = self.folder / LOGS / f"{_stem(record)}.log"
        try:
            path.parent.mkdir(exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{record['created']}\n{trace.rstrip()}\n\n")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        return path.relative_to(self.folder).as_posix()

    def read_all(self) -> tuple[list[Record], list[str]]:
        """All sound records in the order of their file names, and a line about each other file."""
        records, problems = [], []
        for path in self._files():
            record, problem = self._load(path)
            if record is None:
                problems.append(printable(f"{path.name}: {problem}"))
            else:
                records.append(record)
        return records, problems

    def _load(self, path: Path, endings: Collection[str] = ()) -> tuple[Record | None, str | None]:
        """The record in a file, or None and what is wrong with the file.

        Args:
            endings: what is in files whose names end so is held.
        """
        try:
            state, settled = seen(path)
            if path in self._held and self._held[path][0] == state:
                return self._held[path][1], None
            record, problem = _read(path, state)
        except (OSError, ValueError, RecursionError) as error:
            return None, f"cannot be read as JSON ({error})"
        if record is not None and settled and path.name[-_ENDING:] in endings:
            self._held[path] = state, record
        return record, problem

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder to ourselves, for a moment."""
        lock = self._lock()
        try:
            yield
        finally:
            if not self._claims:
                self._tidy(lock.lock_file)
            lock.release()

    def _lock(self) -> BaseFileLock:
        from filelock import FileLock

        place = self.folder / CLAIMS
        for left in reversed(range(_TRIES)):
            try:
                place.mkdir(exist_ok=True)
                lock = FileLock(place / "store.lock")
                lock.acquire()
            except (FileNotFoundError, FileExistsError) as error:  # another process tidies up
                if not left or not self.folder.is_dir():
                    raise OutputError(f"cannot lock {self.folder}: {error}") from error
            except (OSError, NotImplementedError) as error:
                raise OutputError(f"cannot lock {self.folder}: {error}") from error
            else:
                return lock
        raise AssertionError

    def _tidy(self, lock: str) -> None:
        """Leave no trace of claims where there are none; who waits for the lock makes it anew."""
        place = self.folder / CLAIMS
        with contextlib.suppress(OSError):
            if os.listdir(place) == [os.path.basename(lock)]:
                os.unlink(lock)
                os.rmdir(place)

    def _set_aside(self, path: Path, problem: str) -> str:
        """Move a file out of the way, under a name that is free; a line that says so."""
        folder = self.folder / SET_ASIDE
        names = (f"{path.stem}{(n and f'-{n}') or ''}.json" for n in itertools.count())
        place = next(folder / name for name in names if not os.path.lexists(folder / name))
        try:
            folder.mkdir(exist_ok=True)
            os.rename(path, place)
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


def _stem(record: Mapping[str, Any]) -> str:
    model, method = safe_name(record["model"], 48), safe_name(record["requested"])
    task, length = safe_name(record["task"], 24), record["length"]
    return f"{model}--{method}--{task}--{length}--{record['key'][:12]}"


def _measured(record: Record) -> dict[str, Any]:
    """The record without what the cell was called."""
    data = {**record["data"], "name": None}
    return {**record, **dict.fromkeys(("model", "requested", "task", "digest")), "data": data}


def _read(path: Path, state: State) -> tuple[Record | None, str | None]:
    if state.size > _MAX_FILE_BYTES or not path.is_file():
        return None, "not a file, or too large for a record"
    raw = path.read_bytes()
    record = _DECODER.decode(raw.decode("utf-8"))
    if b"\\u" in raw:
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    problem = problem_with(record)
    if problem is None and record.get("digest") != digest(record):
        problem = "its digest is wrong: it was edited by hand"
    return (None, problem) if problem else (record, None)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
