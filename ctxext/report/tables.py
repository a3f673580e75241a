"""Comparison tables, from records alone: methods down, lengths across, and the tax.

Perplexities and the scores of benchmarks are shown as they are, shares in percent. The *tax* is
what a method costs inside the trained length T: its mean over the positions below T minus that of
the unpatched model (`rope`) over the same tokens, in nats per token or in percentage points.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ctxext.registry import format_length
from ctxext.report.groups import (
    Cells,
    Column,
    Group,
    describe,
    grouped,
    method_order,
    newest,
)
from ctxext.results import SHARES, Record, printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NO_VALUE = "–"
CSV = (
    *("model", "task", "metric", "data", "method", "length", "value", "stderr", "status", "tax"),
    *("windows", "dtype", "seed"),
)
_MARKDOWN = {ord(c): f"\\{c}" for c in "`*_[]~$"} | {ord(c): f"&#{ord(c)};" for c in "&<>|\\"}


class _Tax(NamedTuple):
    bucket: str
    unit: str
    scale: float
    digits: int
    words: str


_TAX = {
    "perplexity": _Tax("nll", "nat", 1, 3, "mean loss, in nats per token (above 0 is worse),"),
    "accuracy": _Tax("acc", "pt", 100, 2, "accuracy, in percentage points (below 0 is worse),"),
}


@dataclass(frozen=True)
class Cell:
    """One result on the scale of its record; `status` is ok, oom, error or missing."""

    value: float | None = None
    stderr: float | None = None
    status: str = "missing"
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A method as it was asked for; `tax` in nats per token or percentage points."""

    method: str
    cells: tuple[Cell, ...]
    tax: float | None


@dataclass(frozen=True)
class Table:
    """Methods measured with the same model, task and data."""

    group: Group
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def header(self) -> list[str]:
        """`method`, each length (with its windows where they differ within a length), and the tax
        where the metric has one."""
        lengths, of = [column.length for column in self.columns], of_what(self.group.metric)
        labels = [
            format_length(length) + (f" ({windows} {of})" if lengths.count(length) > 1 else "")
            for length, windows in self.columns
        ]
        tax = _TAX.get(self.group.metric)
        return ["method", *labels, *([f"tax ({tax.unit})"] if tax else [])]

    def cells(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Every cell with its row and column, row by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell

    def cell_text(self, cell: Cell) -> str:
        """`5.432 ± 0.021`, the status of a failed cell, or a dash."""
        if cell.value is None:
            return NO_VALUE if cell.status == "missing" else cell.status
        percent = self.group.metric in SHARES
        numbers = [x * (100 if percent else 1) for x in (cell.value, cell.stderr) if x is not None]
        digits = 2 if percent else next((d for d in (3, 2, 1) if numbers[0] < 10 ** (4 - d)), 0)
        return " ± ".join(f"{x:.{digits}f}" if max(numbers) < 1e6 else f"{x:.3g}" for x in numbers)

    def tax_texts(self, row: Row) -> list[str]:
        """The tax in a list, which is empty where the metric has none."""
        tax = _TAX.get(self.group.metric)
        if tax is None:
            return []
        if row.tax is None:
            return [NO_VALUE]
        text = f"{row.tax:+.{tax.digits}f}"
        return [text if text.strip("+-0.") else text[1:]]


def of_what(metric: str) -> str:
    """What a metric's standard error is over."""
    return "windows" if metric in _TAX else "samples"


def build(records: Iterable[Record], order: Sequence[str] = ()) -> list[Table]:
    """One table for each model, task, metric and data; `order` is that of the methods."""
    groups = grouped(records)
    return [_table(group, groups, order) for group in groups]


def _table(group: Group, groups: dict[Group, list[Record]], order: Sequence[str]) -> Table:
    cells = newest(groups[group])
    columns = sorted({column for _, column in cells})
    best = {column: _best(cells, column, group.metric) for column in columns}
    taxed = next((c for c in reversed(columns) if _taxes(cells, c, group.metric)), None)
    taxes = _taxes(cells, taxed, group.metric) if taxed else {}
    rows = []
    for method in method_order(groups[group], order):
        found = [(cells.get((method, column)), best[column]) for column in columns]
        rows.append(Row(method, tuple(_cell(r, top) for r, top in found), taxes.get(method)))
    words = describe(group, groups, ("model", "task", "metric", "data"))
    if words[1].partition(":")[0] == words[2]:
        del words[2]
    title = " · ".join(words)
    caption = _caption(group.metric, cells["rope", taxed] if taxed else None)
    return Table(group, title, caption, tuple(columns), tuple(rows))


def _cell(record: Record | None, best: float | None) -> Cell:
    if record is None:
        return Cell()
    if record["status"] != "ok":
        return Cell(status=record["status"])
    return Cell(record["value"], record["stderr"], "ok", record["value"] == best)


def _best(cells: Cells, column: Column, metric: str) -> float | None:
    """The best value of a column in which at least two methods have one."""
    values = [r["value"] for (_, c), r in cells.items() if c == column and r["status"] == "ok"]
    if len(values) < 2:
        return None
    return float(min(values) if metric == "perplexity" else max(values))


def _inside(record: Record, trained: int, field: str) -> tuple[float, list[tuple[int, int, int]]]:
    """The mean over the buckets that end within the trained length, and those buckets."""
    inside = [b for b in record["buckets"] or [] if b["stop"] <= trained and b["n"]]
    total = sum(b["n"] for b in inside)
    mean = sum(b[field] * b["n"] for b in inside) / total if total else 0.0
    return mean, [(b["start"], b["stop"], b["n"]) for b in inside]


def _taxes(cells: Cells, column: Column, metric: str) -> dict[str, float]:
    """The tax of each method that has one at this length; empty if only `rope` would."""
    rope, tax = cells.get(("rope", column)), _TAX.get(metric)
    if tax is None or rope is None or rope["status"] != "ok":
        return {}
    base, where = _inside(rope, rope["trained_length"], tax.bucket)
    taxes = {}
    for (method, at), record in cells.items():
        if at == column and record["status"] == "ok":
            mean, tokens = _inside(record, rope["trained_length"], tax.bucket)
            if tokens and tokens == where:
                taxes[method] = (mean - base) * tax.scale
    return taxes if len(taxes) > 1 else {}


def _caption(metric: str, rope: Record | None) -> str:
    percent = "Percent; " if metric in SHARES else ""
    error = f"{percent}± is the standard error over {of_what(metric)}"
    if metric not in _TAX:
        return f"{error}."
    if rope is None:
        return (
            f"{error}; no tax: it needs rope and a method beside it, at a length of at most 16 "
            "times the trained one."
        )
    stop = _inside(rope, rope["trained_length"], _TAX[metric].bucket)[1][-1][1]
    return (
        f"{error}; tax is the change against rope in {_TAX[metric].words} over positions "
        f"0 to {stop} (trained length {rope['trained_length']}), measured at length "
        f"{format_length(rope['length'])}."
    )


def to_rich(table: Table, width: int | None = None) -> RichTable:
    """For the terminal; the best of a column is green and has a `*`.

    Cells are broken at their ± to fit into `width` characters, but no name and no number is:
    a table may be wider than the console, so print it with `crop=False`.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    starred = any(cell.best for _, _, cell in table.cells())
    caption = table.caption + (" * is the best of its column." if starred else "")
    rich = RichTable(title=Text(printable(table.title)), caption=Text(printable(caption)))
    lines = [[Text(label) for label in table.header()]]
    for row in table.rows:
        cells = [Text(table.cell_text(cell).replace("± ", "±")) for cell in row.cells]
        for text, cell in zip(cells, row.cells, strict=True):
            text.append("*" if cell.best else " " * starred)
            text.style = "bold green" if cell.best else ""
        lines.append([Text(printable(row.method)), *cells, *map(Text, table.tax_texts(row))])
    whole = least = 1
    for number, column in enumerate(zip(*lines, strict=True)):
        longest = max(text.cell_len for text in column)
        word = longest if number == 0 else max(len(w) for t in column for w in t.plain.split())
        side: Literal["right", "left"] = "right" if number else "left"
        rich.add_column(column[0], justify=side, min_width=word, no_wrap=number == 0)
        whole, least = whole + longest + 3, least + word + 3
    rich.width = max(least, min(whole, width or whole))
    for line in lines[1:]:
        rich.add_row(*line)
    return rich


def escape(text: str) -> str:
    """One line in which nothing is Markdown's or HTML's."""
    return printable(text).translate(_MARKDOWN)


def to_markdown(table: Table) -> str:
    """A GitHub table under a heading; the best of a column in bold."""
    header = table.header()
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in table.rows:
        texts = [(table.cell_text(cell), cell.best) for cell in row.cells]
        cells = [f"**{text}**" if best else text for text, best in texts]
        lines.append([escape(row.method), *cells, *table.tax_texts(row)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {escape(table.title)}\n\n{body}\n\n{escape(table.caption)}\n"


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
                result = (column.length, cell.value, cell.stderr, cell.status, row.tax)
                rest = (column.windows or None, printable(g.dtype), g.seed)
                yield dict(zip(CSV, (*head, *result, *rest), strict=True))


def write_csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Rows under the column names; what a row lacks is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
