"""Locks of a folder that any number of processes share.

Who computes a cell holds a lock on its key in `.claims/`, which ends with its process, however that
ends; what changes the folder happens under one more lock there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ctxext.errors import OutputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

CLAIMS = ".claims"
_TRIES = 100  # for the lock


class Claims:
    """What this process holds in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, BaseFileLock] = {}

    def claim(self, key: str) -> bool:
        """Whether this process now is the one that computes the cell, until `release`."""
        from filelock import FileLock, Timeout

        if key in self._held:
            return True
        with self.locked():
            lock = FileLock(self._folder / CLAIMS / f"{key[:24]}.lock", blocking=False)
            self._held[key] = lock  # before it is locked: an interruption may come at any time
            try:
                lock.acquire()
            except Timeout:
                del self._held[key]
                return False
            except OSError as error:
                del self._held[key]
                raise OutputError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
        return True

    def release(self, key: str) -> None:
        """Let go of the cell's claim."""
        if lock := self._held.get(key):
            with self.locked():
                if lock.is_locked:
                    with contextlib.suppress(OSError):
                        os.unlink(lock.lock_file)  # nobody waits for it: who wants it tries again
                    lock.release()
                self._held.pop(key, None)

    def release_all(self) -> None:
        """Let go of every claim, also where an interruption has kept that from ending."""
        for key in list(self._held):
            self.release(key)
        if (self._folder / CLAIMS).is_dir():
            with self.locked():
                pass

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder to ourselves, for a moment."""
        lock = self._lock()
        try:
            yield
        finally:
            if not self._held:
                self._tidy(lock.lock_file)
            lock.release()

    def _lock(self) -> BaseFileLock:
        from filelock import FileLock

        place = self._folder / CLAIMS
        for left in reversed(range(_TRIES)):
            try:
                place.mkdir(exist_ok=True)
                lock = FileLock(place / "store.lock")
                lock.acquire()
            except (FileNotFoundError, FileExistsError) as error:  # another process tidies up
                if not left or not self._folder.is_dir():
                    raise OutputError(f"cannot lock {self._folder}: {error}") from error
            except (OSError, NotImplementedError) as error:
                raise OutputError(f"cannot lock {self._folder}: {error}") from error
            else:
                return lock
        raise AssertionError

    def _tidy(self, lock: str) -> None:
        """Leave no trace of claims where there are none; who waits for the lock makes it anew."""
        place = self._folder / CLAIMS
        with contextlib.suppress(OSError):
            if os.listdir(place) == [os.path.basename(lock)]:
                os.unlink(lock)
                os.rmdir(place)
