"""Files that are written whole or not at all, and whether one is still what it was."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from ctxext.errors import CtxextError, OutputError, UsageError

COARSEST = 2 * 10**9  # nanoseconds between two ticks of a file system's clock, at most: FAT's


class State(NamedTuple):
    """What tells a file from another, and from what it was: bytes, times in nanoseconds, inode."""

    size: int
    modified: int
    changed: int
    inode: int


def seen(path: Path) -> tuple[State, bool]:
    """The state of a file, and whether every change from now on will alter it.

    A change within the tick of the clock in which the file was last changed would not.

    Raises:
        OSError: there is no such file.
    """
    now, stat = time.time_ns(), path.stat()
    state = State(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return state, max(state.modified, state.changed) < now - COARSEST


def write_atomically(path: Path, content: bytes, start: str = ".") -> None:
    """Put `content` at `path`: the whole of it, or nothing and no trace.

    Args:
        start: how the name of the unfinished file begins, which ends in `.tmp`.

    Raises:
        OutputError: it cannot be written; the message says why.
    """
    temporary = path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def check_writable(folder: Path) -> None:
    """Create the folder if need be; a UsageError if files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(probe := folder / ".probe.tmp", b"")
        probe.unlink(missing_ok=True)
    except (OSError, ValueError, CtxextError) as error:
        raise UsageError(f"cannot write into {folder}: {error}: give another --out") from error
