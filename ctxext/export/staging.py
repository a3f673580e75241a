"""A folder that appears complete or not at all.

It is filled in a hidden box beside its place and moved there at the end. The box holds

    lock        a file that its process keeps locked, so that a box whose process was killed
                is known, and removed by the next export beside it
    new/        what becomes the folder
    former/     under its own name, the folder that --force replaces, until the new one stands
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ctxext.errors import UsageError, short

_LOG = logging.getLogger("ctxext")

if sys.platform != "win32":
    import fcntl

PREFIX = ".ctxext-"
LOCK, NEW, FORMER = "lock", "new", "former"

Identity = tuple[int, int]  # device and inode: the same for every path to a folder


@contextlib.contextmanager
def staged(source: Path, out: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder to fill; at a clean exit it is `out`, at any exception nothing is left.

    Args:
        source: the model folder, in which, and around which, nothing may be written.
        out: a folder that is not there, or empty; its parents are made.
        force: whether a folder that holds something is replaced as a whole. The former one is
            deleted once the new one stands, and is back in its place if that fails.

    Raises:
        UsageError: `out` does not do, or cannot be written; the disk is full; another process put
            a folder there in the meantime.
    """
    try:
        target = Path(os.path.realpath(out))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {str(out)!r}: {error}") from error
    try:
        standing = _check(source, out, target, force)
        near = next(parent for parent in target.parents if parent.exists())
        _sweep(near)
        with _box(near) as box:
            (box / NEW).mkdir()
            yield box / NEW
            _place(box, out, target, standing)
    except OSError as error:
        raise UsageError(f"cannot write {str(out)!r}: {_why(error)}") from error


def _why(error: OSError) -> str:
    text = short(error.strerror or error)
    apart = error.filename and not error.filename2 and PREFIX not in str(error.filename)
    return f"{text} ({str(error.filename)!r})" if apart else text


def _identity(path: Path) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _line(path: Path) -> set[Identity]:
    """A path and the folders around it, as far as they are there."""
    return {_identity(p) for p in (path, *path.parents) if os.path.exists(p)}


def _check(source: Path, out: Path, target: Path, force: bool) -> Identity | None:
    """Whether `out` may be written; the folder to replace, None where there is none."""
    if not source.is_dir():
        raise UsageError(f"no model folder {str(source)!r}: give one that holds config.json")
    if _identity(source) in _line(target):
        raise UsageError(f"{str(out)!r} lies in the model folder {str(source)!r}: give another")
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if not target.is_dir():
        raise UsageError(f"{str(out)!r} exists already and is no folder: give another name")
    full = any(target.iterdir())
    if full and not force:
        raise UsageError(
            f"{str(out)!r} exists already: give --force to replace it, or a new or an empty folder"
        )
    if reason := _untouchable(source, target, full):
        raise UsageError(f"{str(out)!r} {reason}, which is not replaced: give another folder")
    return (status.st_dev, status.st_ino) if full else None


def _untouchable(source: Path, target: Path, full: bool) -> str:
    """Why a folder that is there must stay, empty where it need not."""
    if os.path.ismount(target):
        return "is a file system of its own"
    kept: dict[str, str | Path] = {
        "the home directory": os.path.expanduser("~"),
        "the model folder": source,
    }
    with contextlib.suppress(FileNotFoundError):
        kept["the current directory"] = os.getcwd()
    for what, folder in kept.items():
        if _identity(target) in _line(Path(os.path.realpath(folder))):
            return f"is or holds {what}"
    for parent, folders, files in os.walk(target) if full else ():
        names = {*folders, *files}
        if ".git" in names or {"HEAD", "objects", "refs"} <= names:
            return "holds a git repository"
        if mounts := [f for f in folders if os.path.ismount(os.path.join(parent, f))]:
            return f"holds {mounts[0]!r}, a file system of its own"
    return ""


@contextlib.contextmanager
def _box(near: Path) -> Iterator[Path]:
    box = Path(tempfile.mkdtemp(prefix=PREFIX, dir=near))
    lock = None
    try:
        lock = _lock(box)
        yield box
    finally:
        _clear(box)
        if lock is not None:
            os.close(lock)


def _lock(box: Path) -> int:
    """The open file that holds the lock; it has its name only once it is locked.

    On a file system without locks it never has it, so that the box stays as it is.
    """
    lock = os.open(box / f"{LOCK}.new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.write(lock, _machine())
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(box / f"{LOCK}.new", box / LOCK)
    return lock


def _machine() -> bytes:
    """Locks of a network's file system may not be seen from its other machines."""
    return platform.node().encode()[:200]


def _place(box: Path, out: Path, target: Path, standing: Identity | None) -> None:
    meantime = UsageError(f"{str(out)!r} was changed by another process meanwhile: give another")
    made = _make(target.parent)
    try:
        if standing is not None:
            (box / FORMER).mkdir()
            former = box / FORMER / target.name
            try:
                os.rename(target, former)
            except FileNotFoundError:
                raise meantime from None
            if _identity(former) != standing:
                raise meantime
        try:
            os.rename(box / NEW, target)
        except OSError as error:
            if os.path.lexists(target):
                raise meantime from error
            raise
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another process may have put something there
                folder.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and those around it; the ones that were not there, outermost first."""
    made = []
    for parent in reversed((folder, *folder.parents)):
        try:
            if not parent.is_dir():
                parent.mkdir()
                made.append(parent)
        except FileExistsError:
            continue
    return made


def _sweep(near: Path) -> None:
    """Remove the boxes that killed processes of this user and machine left in a folder."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        for entry in os.scandir(near):
            with contextlib.suppress(OSError):
                if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                    _remove_abandoned(Path(entry.path))


def _remove_abandoned(box: Path) -> None:
    """OSError where the box is in use, or not known to be abandoned."""
    if sys.platform == "win32" or box.stat().st_uid != os.getuid():
        return
    lock = os.open(box / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(lock, 200) == _machine():
            _clear(box)
    finally:
        os.close(lock)


def _clear(box: Path) -> None:
    """Remove a box; a former folder in it first goes back, if its place is free."""
    try:
        for former in sorted((box / FORMER).glob("*")):
            if not os.path.lexists(box.parent / former.name):
                os.rename(former, box.parent / former.name)
        for parent, folders, _ in os.walk(box):
            for name in folders:
                if not os.path.islink(path := os.path.join(parent, name)):
                    os.chmod(path, 0o700)  # a folder that is read-only cannot be emptied
        shutil.rmtree(box)
    except OSError as error:
        _LOG.warning("could not remove %r: %s", str(box), _why(error))
