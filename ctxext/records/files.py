"""A record as a file of its own, and as a line of one that holds many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ctxext.records.record import Record
from ctxext.records.seal import digest
from ctxext.records.sound import problem_with
from ctxext.system.names import safe_name

PACK = "records.jsonl"
_MAX_BYTES = 16 << 20  # of a record, which takes a few kilobytes


class Found(NamedTuple):
    """What a text holds: a record, or None and what is wrong with it."""

    record: Record | None
    problem: str | None = None


def name_of(record: Mapping[str, Any]) -> str:
    """The file of a record: a name a person can read, and 12 hex digits of the key."""
    model, method = safe_name(record["model"], 48), safe_name(record["requested"])
    task, length = safe_name(record["task"], 24), record["length"]
    return f"{model}--{method}--{task}--{length}--{record['key'][:12]}.json"


def text_of(record: Record) -> bytes:
    """What the file of a record has."""
    return _bytes(record, 1)


def pack_of(records: Mapping[str, Record]) -> bytes:
    """What the packed file of records has: a line each, in the order of their files' names."""
    return b"".join(_bytes(records[name], None) for name in sorted(records))


def read_file(path: Path, size: int) -> Found:
    """The record in a file of so many bytes; OSError where it cannot be read."""
    if size > _MAX_BYTES or not path.is_file():
        return Found(None, "not a file, or too large for a record")
    return parse(path.read_bytes())


def read_pack(path: Path) -> Iterator[tuple[int, Found]]:
    """What each line of a packed file holds that is not empty, with its number from 1 on; OSError
    where it cannot be read."""
    if not path.is_file():
        raise OSError("not a file")
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(_MAX_BYTES + 1):
            number += 1
            if len(raw) > _MAX_BYTES:
                yield number, Found(None, "too long for a record")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_MAX_BYTES)
            elif raw.strip():
                yield number, parse(raw)


def parse(raw: bytes) -> Found:
    """The record in a JSON text."""
    try:
        record = _DECODER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            json.dumps(record, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except (ValueError, RecursionError) as error:
        return Found(None, f"cannot be read as JSON ({error})")
    problem = problem_with(record)
    if problem is None and record.get("digest") != digest(record):
        problem = "its digest is wrong: it was edited by hand"
    return Found(None, problem) if problem else Found(record)


def _bytes(record: Record, indent: int | None) -> bytes:
    text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
