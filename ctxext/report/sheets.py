"""Small tables of words, such as effective lengths and means over a benchmark's tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ctxext.report import markdown
from ctxext.report.markdown import escape
from ctxext.report.spreadsheet import write_csv
from ctxext.system.names import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Item(NamedTuple):
    """What a cell says, and the number that it is sorted by."""

    text: str
    value: float | None = None


class Sheet(NamedTuple):
    """A table; the first column of each row names a method."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Item, ...], ...]


def to_markdown(sheet: Sheet) -> str:
    """A GitHub table under a heading."""
    rows = [[escape(item.text) for item in row] for row in sheet.rows]
    return markdown.table(sheet.title, sheet.caption, sheet.header, rows)


CSV = ("table", "method", "column", "text", "value")


def to_csv(found: Iterable[Sheet]) -> str:
    """A line for each cell: its table, method and column, its words, and its number."""
    rows = (
        {
            "table": sheet.title,
            "method": row[0].text,
            "column": name,
            "text": item.text,
            "value": item.value,
        }
        for sheet in found
        for row in sheet.rows
        for name, item in zip(sheet.header[1:], row[1:], strict=True)
    )
    return write_csv(CSV, rows)


def to_rich(sheet: Sheet) -> RichTable:
    """For the terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=Text(printable(sheet.title)), caption=Text(printable(sheet.caption)))
    for number, label in enumerate(sheet.header):
        rich.add_column(Text(label), justify="right" if number else "left", no_wrap=number == 0)
    for row in sheet.rows:
        rich.add_row(*(Text(printable(item.text)) for item in row))
    return rich
