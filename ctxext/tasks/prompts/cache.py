"""Finished prompts on disk, so that a rerun or another method finds them made."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.models.prompting import Prompter
from ctxext.system import caches
from ctxext.system.digests import sha256_of_json
from ctxext.system.names import safe_name

_PROBE = "One of the special magic numbers"


class Entry(NamedTuple):
    """A finished prompt: its token ids, its answers, and its depth where it has one."""

    ids: array[int]
    answers: list[str]
    depth: float | None


def cache_path(task: str, length: int, key: Sequence[Any]) -> Path | None:
    """The file of the prompts that `key` describes; None where there is no place for it."""
    digest = sha256_of_json([task, length, *key])
    folder = caches.folder("ruler")
    return folder and folder / f"{safe_name(task)}-{length}-{digest[:24]}.jsonl"


def prompter_sha256(prompter: Prompter) -> str:
    """The hash of what a tokenizer and, where it is used, its chat template make of text."""
    tokenizer = prompter.tokenizer
    core = getattr(tokenizer, "backend_tokenizer", None)
    said = core.to_str() if core is not None else sorted(tokenizer.get_vocab().items())
    template = [str(tokenizer.chat_template)] if prompter.chat else []
    ids = prompter.ids(_PROBE)
    return sha256_of_json([type(tokenizer).__name__, said, ids, *template])


def load(path: Path | None, count: int) -> list[Entry] | None:
    """The `count` prompts of the file; None where it is missing or not as it was written."""
    body = caches.load(path)
    if body is None:
        return None
    try:
        entries = [_entry(*json.loads(line)) for line in body.splitlines()]
    except (ValueError, TypeError, OverflowError):
        return None
    return entries if len(entries) == count else None


def save(path: Path | None, entries: Sequence[Entry]) -> None:
    """Keep the prompts; where that cannot be done they are made again next time."""
    caches.save(path, b"".join(map(_line, entries)))


def _entry(ids: list[int], answers: list[str], depth: float | None) -> Entry:
    return Entry(array("i", ids), answers, depth)


def _line(entry: Entry) -> bytes:
    said = [entry.ids.tolist(), entry.answers, entry.depth]
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"
