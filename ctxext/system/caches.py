"""What is kept between runs and can be made again, in files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from ctxext.errors import CtxextError
from ctxext.system.files import write_atomically

_LEFT_ALONE = ContextVar("left alone", default=False)


def folder(part: str) -> Path | None:
    """`$CTXEXT_CACHE/part`, or that under the platform's folder for caches; None without a home."""
    named = os.environ.get("CTXEXT_CACHE")
    if named:
        return Path(named) / part
    try:
        if sys.platform == "win32":
            root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "ctxext" / part


def load(path: Path | None) -> bytes | None:
    """What `save` has kept; None where it is missing or not as it was written."""
    try:
        head, _, body = path.read_bytes().partition(b"\n") if path else (b"", b"", b"")
    except (OSError, ValueError):
        return None
    return body if head == _head(body) else None


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Nothing is kept in the block."""
    token = _LEFT_ALONE.set(True)
    try:
        yield
    finally:
        _LEFT_ALONE.reset(token)


def save(path: Path | None, body: bytes) -> None:
    """Keep the bytes, whole or not at all; where that cannot be done they are made again."""
    if path is None or _LEFT_ALONE.get():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _head(body) + b"\n" + body)
    except (OSError, ValueError, CtxextError):
        return


def _head(body: bytes) -> bytes:
    """The first line of a file: the hash of the others."""
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode()
