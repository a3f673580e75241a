"""Files → text and rows: compression, encodings and line ends, JSON Lines, JSON and Parquet."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ctxext.errors import UsageError, short

_BUFFER = 2**20  # bytes of a column that are read at once, with none beyond what is asked for
GZIP = b"\x1f\x8b"
_MARKS = {  # the longer marks first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def suffix(name: str) -> str:
    """The ending that tells what is in a file: in lower case, that before `.gz`."""
    return "." + name.lower().removesuffix(".gz").rpartition(".")[2]


def read_bytes(path: str | Path, where: str) -> bytes:
    """What is in a file, decompressed where it is gzip, whatever its name.

    Raises:
        UsageError: it cannot be read, or is cut off or broken.
    """
    try:
        return decompressed(Path(path).read_bytes())
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{where} cannot be read: {reason}") from None


def decompressed(raw: bytes) -> bytes:
    """The bytes, or what they hold where they are gzip."""
    return gzip.decompress(raw) if raw.startswith(GZIP) else raw


def decode(raw: bytes, where: str) -> str:
    """The text as Python's text files give it: without a byte order mark, every line end as `\\n`.

    Raises:
        UsageError: it is not UTF-8, nor what its byte order mark says.
    """
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        kind = encoding.removesuffix("-sig").upper()
        raise UsageError(f"{where}, line {line}: not {kind} text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """What stands in each line that is not blank, with how to call the line in a message.

    Raises:
        UsageError: a line is not JSON.
    """
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            place = f"{where}, line {number}"
            yield place, _parsed(line, place)


def json_rows(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """What a .json file lists: the items of its list, or else the objects of its lines.

    Raises:
        UsageError: it is neither.
    """
    if not text.lstrip().startswith("["):
        yield from json_lines(text, where)
        return
    for number, row in enumerate(_parsed(text, where), 1):
        yield f"{where}, item {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: not JSON") from None


def parquet_column(file: str | IO[bytes], column: str, where: str) -> Iterator[Any]:
    """The values of a column of a Parquet file, read a part at a time.

    Raises:
        UsageError: there is no such column, or the file is broken.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as parquet:
            names = parquet.schema_arrow.names
            if column not in names:
                raise UsageError(f"{where} has no column {column!r}: valid: {listed(names)}")
            for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
                yield from batch.column(column).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        why = getattr(error, "strerror", None) or short(error, 200)
        raise UsageError(f"{where} cannot be read: {why}") from None


def listed(names: Any) -> str:
    """Names for a message, the first forty of them."""
    some = [str(name)[:60] for name in names]
    return ", ".join(some[:40]) + (", …" if len(some) > 40 else "") if some else "none"
