"""Finished prompts on disk, so that a rerun or another method finds them made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import CtxextError
from ctxext.results import safe_name, write_atomically
from ctxext.synthetic.fit import encode

_LEFT_ALONE = ContextVar("left alone", default=False)
_PROBE = "One of the special magic numbers"


class Entry(NamedTuple):
    """A finished prompt: its token ids, its answers, and its depth where it has one."""

    ids: list[int]
    answers: list[str]
    depth: float | None


def cache_folder() -> Path:
    """`$CTXEXT_CACHE/ruler`, or that under the platform's folder for caches.

    Raises:
        RuntimeError: there is no home folder.
    """
    named = os.environ.get("CTXEXT_CACHE")
    if named:
        return Path(named) / "ruler"
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ctxext" / "ruler"


def cache_path(task: str, length: int, key: Sequence[Any]) -> Path | None:
    """The file of the prompts that `key` describes; None where there is no place for it."""
    digest = hashlib.sha256(json.dumps([task, length, *key]).encode()).hexdigest()
    try:
        return cache_folder() / f"{safe_name(task)}-{length}-{digest[:24]}.jsonl"
    except RuntimeError:
        return None


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of what a tokenizer makes of text."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    said = core.to_str() if core is not None else sorted(tokenizer.get_vocab().items())
    text = json.dumps([type(tokenizer).__name__, said, encode(tokenizer, _PROBE)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def load(path: Path | None, count: int) -> list[Entry] | None:
    """The `count` prompts of the file; None where it is missing or not as it was written."""
    if path is None:
        return None
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head != _head(body):
            return None
        entries = [Entry(*json.loads(line)) for line in body.splitlines()]
    except (OSError, ValueError, TypeError):
        return None
    return entries if len(entries) == count else None


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Nothing is kept in the block."""
    token = _LEFT_ALONE.set(True)
    try:
        yield
    finally:
        _LEFT_ALONE.reset(token)


def save(path: Path | None, entries: Sequence[Entry]) -> None:
    """Keep the prompts; where that cannot be done they are made again next time."""
    if path is None or _LEFT_ALONE.get():
        return
    body = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _head(body) + b"\n" + body)
    except (OSError, ValueError, CtxextError):
        return


def _head(body: bytes) -> bytes:
    """The first line of a file: the hash of the others."""
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode()
