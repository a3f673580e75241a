"""Finished prompts on disk, so that a rerun or another method finds them made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctxext import caches
from ctxext.results import safe_name
from ctxext.synthetic.fit import encode

_PROBE = "One of the special magic numbers"


class Entry(NamedTuple):
    """A finished prompt: its token ids, its answers, and its depth where it has one."""

    ids: list[int]
    answers: list[str]
    depth: float | None


def cache_path(task: str, length: int, key: Sequence[Any]) -> Path | None:
    """The file of the prompts that `key` describes; None where there is no place for it."""
    digest = hashlib.sha256(json.dumps([task, length, *key]).encode()).hexdigest()
    folder = caches.folder("ruler")
    return folder and folder / f"{safe_name(task)}-{length}-{digest[:24]}.jsonl"


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of what a tokenizer makes of text."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    said = core.to_str() if core is not None else sorted(tokenizer.get_vocab().items())
    text = json.dumps([type(tokenizer).__name__, said, encode(tokenizer, _PROBE)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def load(path: Path | None, count: int) -> list[Entry] | None:
    """The `count` prompts of the file; None where it is missing or not as it was written."""
    body = caches.load(path)
    if body is None:
        return None
    try:
        entries = [Entry(*json.loads(line)) for line in body.splitlines()]
    except (ValueError, TypeError):
        return None
    return entries if len(entries) == count else None


def save(path: Path | None, entries: Sequence[Entry]) -> None:
    """Keep the prompts; where that cannot be done they are made again next time."""
    lines = (json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
    caches.save(path, b"".join(lines))
