"""lm_eval's file of answers, checked before it is trusted.

lm_eval keeps every batch's answers in an SQLite file of pickles, by a hash of the request alone:
a file serves one model, method, length and data. A process that is killed leaves what it had.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any


class _Plain(pickle.Unpickler):
    """Loads numbers, strings and tuples, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no answer")


def mend(cache: Path, note: Callable[[str], None]) -> None:
    """Remove the file where lm_eval could not read it, or should not; say so in a line."""
    if not cache.exists():
        return
    try:
        _check(cache)
    except Exception as error:
        note(f"answers kept in {cache} cannot be used ({error}): removed, they are made anew")
        for path in (cache, cache.with_name(f"{cache.name}-journal")):
            path.unlink(missing_ok=True)


def _check(cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as file:
        found = file.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise ValueError(" ".join(found.split()))
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
        if "unnamed" not in tables:
            return
        for key, value in file.execute("SELECT key, value FROM unnamed"):
            answer = _Plain(io.BytesIO(value)).load()
            pair = isinstance(answer, tuple) and len(answer) == 2
            if not isinstance(key, str) or not (pair or isinstance(answer, (float, str))):
                raise ValueError(f"{type(answer).__name__} is no answer")
