"""The questions of LongBench: rows of .jsonl, also .jsonl.gz, from a folder, a file, an archive or
the Hub.

A row has `context`, `input` (or `question`), `answers`, and most have `all_classes`, `length`
(characters of Chinese, words of English), `dataset` and `_id`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError, short
from ctxext.tasks.data.files import decode, decompressed, json_lines, listed, suffix
from ctxext.tasks.scoring.base import Row

HUB = "zai-org/LongBench"
ARCHIVE = "data.zip"
_FETCH = f"hf download {HUB} {ARCHIVE} --repo-type dataset --local-dir ."
_TAKES = f"LongBench's own folder of .jsonl files, one such file, or its {ARCHIVE}"


@dataclass(frozen=True)
class Questions:
    """The rows of one task, checked.

    Attributes:
        name: as the user named them.
        sha256: of the bytes they were read from.
        rows: context, input, answers, all_classes, length and, where there is one, _id.
    """

    name: str
    sha256: str
    rows: Sequence[Row]

    def names(self) -> list[str]:
        """What tells one row from the next: its _id where all have one of their own."""
        own = [row.get("_id") for row in self.rows]
        if all(isinstance(name, str) and name for name in own) and len(set(own)) == len(own):
            return [str(name) for name in own]
        return [f"{index:05d}" for index in range(len(own))]


def read_questions(
    data: str | None, task: str, files: Sequence[str], others: Sequence[str]
) -> Questions:
    """The questions of `task`.

    Args:
        data: a folder or an archive with one of `files`, the first that is there; a .jsonl file;
            or None for the official archive from the Hub.
        others: all tasks, to tell another task's file.

    Raises:
        UsageError: they cannot be had, or a row is broken: names the file, the line and why.
    """
    path = _archive(task) if data is None else Path(data)
    raw, where = _find(path, files)
    lines = json_lines(decode(raw, where), where)
    rows = [_row(line, place, task, others) for place, line in lines]
    if not rows:
        raise UsageError(f"{where} is empty: there is no row in it")
    return Questions(data or HUB, hashlib.sha256(raw).hexdigest(), tuple(rows))


def _archive(task: str) -> Path:
    """The official archive, downloaded if it is not in the cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, ARCHIVE, repo_type="dataset"))
    except Exception as error:
        text = short(error, 200)
        raise UsageError(
            f"the questions of {task} could not be had from the Hub: where there is a network, "
            f"`{_FETCH}`, and give `--data {ARCHIVE}`; --data takes {_TAKES} ({text})"
        ) from error


def _find(path: Path, files: Sequence[str]) -> tuple[bytes, str]:
    """The bytes of the first of `files` that is there, and what to call them in a message."""
    try:
        if path.is_dir():
            path = path / _choose(files, [file.name for file in path.iterdir()], path)
        elif suffix(path.name) == ".zip":
            return _member(path, files)
        return decompressed(path.read_bytes()), f"data {str(path)!r}"
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"data {str(path)!r} cannot be read: {reason}: give {_TAKES}") from None


def _member(path: Path, files: Sequence[str]) -> tuple[bytes, str]:
    with zipfile.ZipFile(path) as archive:
        there = {Path(name).name: name for name in archive.namelist()}
        chosen = _choose(files, list(there), path)
        return decompressed(archive.read(there[chosen])), f"data {str(path)!r}, {chosen}"


def _choose(files: Sequence[str], there: Sequence[str], path: Path) -> str:
    """The first of the files that is there, compressed or not."""
    lines = {name.lower().removesuffix(".gz"): name for name in sorted(there, reverse=True)}
    lines = {plain: name for plain, name in lines.items() if suffix(plain) == ".jsonl"}
    for file in files:
        if file in lines:
            return lines[file]
    found = listed(sorted(lines.values())) if lines else ""
    raise UsageError(
        f"data {str(path)!r} has no {' or '.join(files)}: "
        + (f"there are {found}" if found else f"there is no .jsonl file in it: give {_TAKES}")
    )


def _row(row: Any, where: str, task: str, others: Sequence[str]) -> Row:
    """The columns that are used, checked; `input` for the question by either name."""
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not a JSON object")
    if "answer_prefix" in row:
        raise UsageError(
            f"{where}: the prompt is already written into 'context' and 'question' (it has an "
            f"'answer_prefix'): give {_TAKES}"
        )
    of = str(row.get("dataset")).removesuffix("_e")
    if of != task and of in others:
        raise UsageError(f"{where}: a row of {of}, not of {task}: give the file of {task}")
    question = "input" if "input" in row or "question" not in row else "question"
    kept = {
        "context": _text(row, "context", where),
        "input": _text(row, question, where),
        "answers": _texts(row, "answers", where),
        "all_classes": _texts(row, "all_classes", where) if row.get("all_classes") else None,
        "length": _count(row, "length", where),
    }
    if "_id" in row:
        kept["_id"] = row["_id"]
    try:
        json.dumps(kept, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise UsageError(f"{where}: half a surrogate pair: not text") from None
    return kept


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise _wrong(row, column, "a string", where)
    return value


def _texts(row: dict[str, Any], column: str, where: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(row, column, "a list of strings", where)
    return value


def _count(row: dict[str, Any], column: str, where: str) -> int | None:
    value = row.get(column)
    if value is not None and (type(value) is not int or value < 0):
        raise _wrong(row, column, "a whole number", where)
    return value


def _wrong(row: dict[str, Any], column: str, need: str, where: str) -> UsageError:
    """What is wrong with a column, and which columns there are."""
    if column in row:
        return UsageError(f"{where}: {column!r} is not {need}; columns: {_columns(row)}")
    also = " (or 'question')" if column == "input" else ""
    return UsageError(f"{where}: no {column!r}{also}, {need}; columns: {_columns(row)}")


def _columns(row: dict[str, Any]) -> str:
    names = [repr(name)[:40] for name in list(row)[:20]]
    return ", ".join(names) + (", …" if len(row) > 20 else "") if names else "none"
