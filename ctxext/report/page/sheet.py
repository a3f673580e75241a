"""Tables as the page shows them: what is read in each cell, and the number that it sorts by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.report import speed, tables
from ctxext.report.sheets import Sheet
from ctxext.system.names import printable


class Head(NamedTuple):
    """A column's name; columns of `words` stand at the left and are sorted as words."""

    text: str
    words: bool = False


class Shown(NamedTuple):
    """A cell: its text, its number if it has one, and best, failed or none as its look."""

    text: str
    value: float | None = None
    look: str = ""


def of_scores(table: tables.Table) -> dict[str, Any]:
    first, *header = table.header()
    rows = [[Shown(printable(row.method)), *_numbers(table, row)] for row in table.rows]
    return {
        "kind": "sheet",
        "title": printable(table.title),
        "caption": printable(table.caption),
        "header": [Head(first, words=True), *map(Head, header)],
        "rows": rows,
        "named": 0,
    }


def _numbers(table: tables.Table, row: tables.Row) -> Iterator[Shown]:
    """The cells of a method, in the order of the header."""
    for cell in row.cells:
        yield Shown(table.cell_text(cell), cell.value, _look(cell))
    for number in table.compared():
        cell = row.cells[number]
        apart = cell.difference and cell.difference.value
        yield Shown(table.difference_text(cell), apart, _blank(apart))
    for text in table.tax_texts(row):
        yield Shown(text, row.tax, _blank(row.tax))
    for name, (text, ratio) in zip(table.costs(), table.cost_texts(row), strict=True):
        value = getattr(row.cells[table.costed].cost, name)
        yield Shown(f"{text} ({ratio})" if ratio else text, value, _blank(value))


def of_words(found: Sheet) -> dict[str, Any]:
    first, *header = found.header
    return {
        "kind": "sheet",
        "title": printable(found.title),
        "caption": printable(found.caption),
        "header": [Head(first, words=True), *map(Head, header)],
        "rows": [[Shown(printable(item.text), item.value) for item in row] for row in found.rows],
        "named": 0,
    }


def of_speed(table: speed.Table) -> dict[str, Any]:
    words = ("method", "attention")
    return {
        "kind": "sheet",
        "title": printable(table.title),
        "caption": printable(table.caption),
        "header": [Head(label, label in words) for label in speed.HEADER],
        "rows": [
            [Shown(text, value, _blank(value)) for text, value in speed.cells(record)]
            for record in table.records
        ],
        "named": speed.HEADER.index("method"),
    }


def _look(cell: tables.Cell) -> str:
    if cell.best:
        return "best"
    return {"ok": "", "missing": "none"}.get(cell.status, "failed")


def _blank(value: float | None) -> str:
    return "none" if value is None else ""
