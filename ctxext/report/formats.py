"""Comparison tables written out: for the terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from ctxext.records import Record
from ctxext.report import latex, markdown
from ctxext.report.spreadsheet import versions_text, write_csv
from ctxext.report.tables import Table
from ctxext.system.names import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable


CSV = (
    *("model", "task", "metric", "data", "method", "length", "value", "stderr", "low", "high"),
    *("status", "tax", "windows", "dtype", "seed"),
    *("difference", "difference_stderr", "difference_low", "difference_high"),
    *("device", "attention", "versions"),
    *("tokens_per_second", "speed_ratio", "peak_memory_bytes", "memory_ratio"),
    *("prefill_tokens_per_second", "prefill_ratio", "decode_tokens_per_second", "decode_ratio"),
)


def to_rich(table: Table, width: int | None = None) -> RichTable:
    """For the terminal; the best of a column is green and has a `*`.

    Cells are broken at their ± or [ to fit into `width` characters, but no name and no number is:
    a table may be wider than the console, so print it with `crop=False`.
    """
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    starred = any(cell.best for _, _, cell in table.cells())
    caption = table.caption + (" * is the best of its column." if starred else "")
    caption = caption.replace(" Δ is the difference", " Below a value: the difference")
    rich = RichTable(title=Text(printable(table.title)), caption=Text(printable(caption)))
    lines = [[Text(label) for label in table.header(differences=False)]]
    for row in table.rows:
        cells = [Text(_narrow(table.cell_text(cell))) for cell in row.cells]
        for text, cell in zip(cells, row.cells, strict=True):
            text.append("*" if cell.best else " " * starred)
            text.stylize("bold green" if cell.best else "")
            if cell.difference is not None:
                apart = _narrow(table.difference_text(cell))
                text.append(f"\n{apart}{' ' * starred}", "dim")
        costs = [
            Text.assemble(value, (f"\n{ratio}", "dim")) if ratio else Text(value)
            for value, ratio in table.cost_texts(row)
        ]
        taxes = map(Text, table.tax_texts(row))
        lines.append([Text(printable(row.method)), *cells, *taxes, *costs])
    whole = least = 1
    for number, column in enumerate(zip(*lines, strict=True)):
        longest = max(cell_len(part) for text in column for part in text.plain.split("\n"))
        word = longest if number == 0 else max(len(w) for t in column for w in t.plain.split())
        side: Literal["right", "left"] = "right" if number else "left"
        rich.add_column(column[0], justify=side, min_width=word, no_wrap=number == 0)
        whole, least = whole + longest + 3, least + word + 3
    rich.width = max(least, min(whole, width or whole))
    for line in lines[1:]:
        rich.add_row(*line)
    return rich


def _narrow(text: str) -> str:
    """With one place to break at, before the error."""
    return text.replace("± ", "±").replace(", ", ",")


def to_markdown(table: Table) -> str:
    """A GitHub table under a heading; the best of a column in bold."""
    rows = [
        [markdown.escape(method), *(f"**{text}**" if best else text for text, best in cells)]
        for (method, _), *cells in _texts(table)
    ]
    return markdown.table(table.title, table.caption, table.header(), rows)


def to_latex(table: Table) -> str:
    """A booktabs table; the best of a column in bold."""
    return latex.table(table.title, table.caption, table.header(), list(_texts(table)))


def _texts(table: Table) -> Iterator[list[tuple[str, bool]]]:
    """The cells of each row under the header, and whether each is the best of its column."""
    for row in table.rows:
        cells = [(table.cell_text(cell), cell.best) for cell in row.cells]
        apart = [table.difference_text(row.cells[number]) for number in table.compared()]
        costs = [f"{value} ({ratio})" if ratio else value for value, ratio in table.cost_texts(row)]
        plain = [*apart, *table.tax_texts(row), *costs]
        yield [(row.method, False), *cells, *((text, False) for text in plain)]


def to_csv(tables: Iterable[Table]) -> str:
    """One line for each cell, its value and stderr on the scale of the record (accuracy 0 to 1)."""
    return write_csv(CSV, csv_rows(tables))


def csv_rows(tables: Iterable[Table]) -> Iterator[dict[str, Any]]:
    """The lines of a CSV, by column name."""
    for table in tables:
        g = table.group
        for row, column, cell in table.cells():
            if cell.status != "missing":
                head = map(printable, (g.model, g.task, g.metric, g.data, row.method))
                ends = cell.interval or (None, None)
                result = (column.length, cell.value, cell.stderr, *ends, cell.status, row.tax)
                value, stderr, interval = cell.difference or (None, None, None)
                apart = (value, stderr, *(interval or (None, None)))
                rest = (column.windows or None, printable(g.dtype), g.seed, *apart)
                place = _measured_by(cell.record)
                yield dict(zip(CSV, (*head, *result, *rest, *place, *cell.cost), strict=True))


def _measured_by(record: Record | None) -> list[str | None]:
    """Device, attention path and versions of a finished record."""
    if record is None:
        return [None] * 3
    return [
        printable(text) for text in (record["device"], record["attention"], versions_text(record))
    ]
