"""Comma-separated values that a spreadsheet opens: no text of them is a formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ctxext.records import Record


def write_csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Rows under the column names; what a row lacks is empty."""
    from pandas import DataFrame

    cells = [[_inert(row.get(name)) for name in names] for row in rows]
    frame = DataFrame(cells, columns=list(names), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def _inert(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    formula = isinstance(value, str) and value[:1] in tuple("=+-@")
    return f"'{value}" if formula else value


def versions_text(record: Record) -> str:
    """`ctxext 0.1.0, torch 2.13.0, …`."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())
