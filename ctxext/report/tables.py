"""Comparison tables, from records alone: methods down, lengths across, and the tax.

Perplexities and the scores of benchmarks are shown as they are, shares in percent. The *tax* is
what a method costs inside the trained length T: its mean over the positions below T minus that of
the unpatched model (`rope`) over the same tokens, in nats per token or in percentage points. A
*difference* (Δ) is a value minus that of `rope` over the same windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ctxext.notation import format_length
from ctxext.records import (
    Difference,
    Interval,
    Record,
    difference,
    higher_is_better,
    interval,
    over_windows,
)
from ctxext.report import latex
from ctxext.report.cost import NO_COST, Cost, bytes_text, cost_of, short
from ctxext.report.groups import (
    Cells,
    Column,
    Group,
    alike,
    count_text,
    grouped,
    method_order,
    mixed,
    newest,
    titled,
)
from ctxext.report.labels import short_methods, told
from ctxext.system.names import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NO_VALUE, WINDOWS, ROUNDED = "–", "windows", "≈"
CSV = (
    *("model", "task", "metric", "data", "method", "length", "value", "stderr", "low", "high"),
    *("status", "tax", "windows", "dtype", "seed"),
    *("difference", "difference_stderr", "difference_low", "difference_high"),
    *("device", "attention", "versions"),
    *("tokens_per_second", "speed_ratio", "peak_memory_bytes", "memory_ratio"),
    *("prefill_tokens_per_second", "prefill_ratio", "decode_tokens_per_second", "decode_ratio"),
)
_COSTS = {
    "speed": "tokens/s",
    "prefill": "prefill tokens/s",
    "decode": "decode tokens/s",
    "memory": "peak memory",
}
_MARKDOWN = {ord(c): f"\\{c}" for c in "`*_[]~$"} | {ord(c): f"&#{ord(c)};" for c in "&<>|\\"}


Mean = Literal["nll", "acc"]  # of a bucket


class _Tax(NamedTuple):
    bucket: Mean
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
    """One result on the scale of its record; `status` is ok, oom, error or missing.

    `interval` is the 95% interval of a number over samples. `difference` is to rope over the same
    windows or samples, None for rope itself, and only `exact` where both were measured alike;
    `cost` is of this result, and `record` what it was made from.
    """

    value: float | None = None
    stderr: float | None = None
    status: str = "missing"
    best: bool = False
    difference: Difference | None = None
    cost: Cost = NO_COST
    interval: Interval | None = None
    exact: bool = True
    record: Record | None = None


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
    costed: int  # the column whose speed and memory are shown
    unit: str  # what values are over: windows or samples

    @property
    def tax(self) -> _Tax | None:
        """In what the tax is told; None where there is none."""
        return _TAX.get(self.group.metric) if self.unit == WINDOWS else None

    def header(self, differences: bool = True) -> list[str]:
        """`method`, each length (with its windows where they differ within a length), the
        differences at these lengths, and the tax, speed and memory where there are any."""
        lengths, of = [column.length for column in self.columns], self.unit
        labels = [
            format_length(length) + (f" ({windows} {of})" if lengths.count(length) > 1 else "")
            for length, windows in self.columns
        ]
        tax = self.tax
        apart = [f"Δ {labels[number]}" for number in self.compared() if differences]
        costs = [_COSTS[name] for name in self.costs()]
        return ["method", *labels, *apart, *([f"tax ({tax.unit})"] if tax else []), *costs]

    def compared(self) -> list[int]:
        """The columns in which some method differs from rope."""
        some = {c for _, c, cell in self.cells() if cell.difference is not None}
        return [number for number, column in enumerate(self.columns) if column in some]

    def costs(self) -> list[str]:
        """Of `_COSTS` those that were measured at the longest length."""
        shown = [row.cells[self.costed].cost for row in self.rows if self.columns]
        return [name for name in _COSTS if any(getattr(c, name) is not None for c in shown)]

    def cells(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Every cell with its row and column, row by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell

    def cell_text(self, cell: Cell) -> str:
        """`5.432 ± 0.021` or `95.5 [91.9, 97.5]`, the status of a failed cell, or a dash."""
        if cell.value is None:
            return NO_VALUE if cell.status == "missing" else cell.status
        return self.number_text(cell) + self._error(cell, cell.stderr, cell.interval)

    def number_text(self, cell: Cell) -> str:
        """The value alone of a finished cell."""
        scale, form = self._scale(cell)
        return f"{(cell.value or 0.0) * scale:{form}}"

    def difference_text(self, cell: Cell) -> str:
        """`+0.123 ± 0.004` or `+4.5 [+1.2, +8.1]`, in the digits of the value, or a dash;
        behind a sign where rounding is part of it."""
        if cell.difference is None:
            return NO_VALUE
        scale, form = self._scale(cell)
        value, error, interval = cell.difference
        text = ("" if cell.exact else ROUNDED) + _signed(f"{value * scale:+{form}}")
        return text + self._error(cell, error, interval, "+")

    def _error(
        self, cell: Cell, stderr: float | None, interval: Interval | None, sign: str = ""
    ) -> str:
        """What stands behind a number: its interval, or its standard error where that has a digit
        to show."""
        scale, form = self._scale(cell)
        if interval is not None:
            low, high = (_signed(f"{end * scale:{sign}.1f}") for end in interval)
            return f" [{low}, {high}]"
        shown = f"{(stderr or 0.0) * scale:{form}}"
        return f" ± {shown}" if shown.strip("0.") else ""

    def _scale(self, cell: Cell) -> tuple[int, str]:
        """What a cell's numbers are multiplied by, and how many digits they have."""
        scale = 100 if self.group.is_share else 1
        value, error = (abs(x or 0) * scale for x in (cell.value, cell.stderr))
        digits = next((d for d in (3, 2, 1) if value < 10 ** (4 - d)), 0)
        form = f".{2 if scale == 100 else digits}f"
        form = ".1f" if cell.interval and scale == 100 else form
        return scale, form if max(value, error) < 1e6 else ".3g"

    def cost_texts(self, row: Row) -> list[tuple[str, str]]:
        """The costs of a row, each with its ratio to rope, `×1.02`, or ""."""
        cost, texts = row.cells[self.costed].cost if self.columns else NO_COST, []
        for name in self.costs():
            show = bytes_text if name == "memory" else short
            value, ratio = getattr(cost, name), getattr(cost, f"{name}_ratio")
            told = f"×{ratio:.2f}" if ratio and row.method != "rope" else ""
            texts.append((NO_VALUE if value is None else show(value), told))
        return texts

    def tax_texts(self, row: Row) -> list[str]:
        """The tax in a list, which is empty where the metric has none."""
        tax = self.tax
        if tax is None:
            return []
        if row.tax is None:
            return [NO_VALUE]
        return [_signed(f"{row.tax:+.{tax.digits}f}")]


def _signed(text: str) -> str:
    """Without its sign if it is all zeros."""
    return text if text.strip("+-0.") else text.lstrip("+-")


def unit_of(records: Iterable[Record]) -> str:
    """What the values of a group are over: windows or samples."""
    some = list(records)
    done = [record for record in some if record["status"] == "ok"]
    windows = any(map(over_windows, done)) if done else some[0]["metric"] in _TAX
    return WINDOWS if windows else "samples"


def build(records: Iterable[Record], order: Sequence[str] = ()) -> list[Table]:
    """One table for each model, task, metric and data; `order` is that of the methods."""
    groups = grouped(records)
    return [_table(group, groups, order) for group in groups]


def _table(group: Group, groups: dict[Group, list[Record]], order: Sequence[str]) -> Table:
    cells, unit = newest(groups[group]), unit_of(groups[group])
    columns = sorted({column for _, column in cells})
    taxing = unit == WINDOWS and group.metric in _TAX
    taxed = next((c for c in reversed(columns) if taxing and _taxes(cells, c, group.metric)), None)
    taxes = _taxes(cells, taxed, group.metric) if taxed else {}
    rows = []
    for method in method_order(cells.values(), order):
        found = (_cell(cells, method, column) for column in columns)
        rows.append(Row(method, tuple(found), taxes.get(method)))
    words = titled(group, groups, ("model", "task", "metric", "data"))
    if words[1].partition(":")[0] == words[2]:
        del words[2]
    title = " · ".join(words)
    higher = higher_is_better(cells.values())
    finished = [place for place, record in cells.items() if record["status"] == "ok"]
    with_rope = [column for method, column in finished if method == "rope"]
    costed = max(with_rope or [column for _, column in finished], default=columns[-1])
    at = columns.index(costed)
    table = Table(group, title, "", tuple(columns), tuple(rows), costed=at, unit=unit)
    said = [_caption(table, higher, cells["rope", taxed] if taxed else None), *_told(table)]
    said += mixed(groups[group], cells)
    return replace(_marked(table, higher), caption=" ".join(said))


def _told(table: Table) -> Iterator[str]:
    """What the differences, the speed and the memory are, where they are shown."""
    if table.compared():
        found = [cell.difference for _, _, cell in table.cells() if cell.difference]
        percent = ", in percentage points" if table.group.is_share else ""
        told = f"Δ is the difference to rope over the same {table.unit}{percent}"
        known = f"where each of the {table.unit} is recorded"
        if any(one.interval for one in found):
            told += f", with its 95% interval, paired {known}"
        elif any(one.stderr is not None for one in found):
            told += f", with its standard error, paired over {table.unit}, where that is recorded"
        else:
            told += "; its standard error is not recorded"
        if not all(cell.exact for _, _, cell in table.cells()):
            told += (
                f"; {ROUNDED} where the two were not measured alike, so that rounding is part of it"
            )
        yield f"{told}."
    if table.costs():
        *most, last = (_COSTS[name] for name in table.costs())
        names = f"{', '.join(most)} and {last}" if most else last
        length = format_length(table.columns[table.costed].length)
        yield (
            f"{names.capitalize()} {'are' if most else 'is'} of the evaluation at length {length}; "
            "× is over rope on the same device."
        )


def _cell(cells: Cells, method: str, column: Column) -> Cell:
    record, rope = cells.get((method, column)), cells.get(("rope", column))
    if record is None:
        return Cell()
    if record["status"] != "ok":
        return Cell(status=record["status"])
    value, cost = record["value"], cost_of(record, rope)
    compared = method != "rope" and rope is not None and rope["status"] == "ok"
    apart = difference(record, rope) if compared and rope else None
    exact = rope is None or alike(record, rope)
    return Cell(value, record["stderr"], "ok", False, apart, cost, interval(record), exact, record)


def _marked(table: Table, higher: bool | None) -> Table:
    """With the best of each column marked, where it is known whether higher is better."""
    if higher is None:
        return table
    columns = zip(*(row.cells for row in table.rows), strict=True)
    best = [_best(table, column, higher) for column in columns]
    rows = []
    for row in table.rows:
        cells = [
            replace(cell, best=cell.value is not None and table.number_text(cell) == text)
            for cell, text in zip(row.cells, best, strict=True)
        ]
        rows.append(replace(row, cells=tuple(cells)))
    return replace(table, rows=tuple(rows))


def _best(table: Table, column: Sequence[Cell], higher: bool) -> str | None:
    """How the best value of a column reads; None where all values read alike."""
    shown = {cell.value: table.number_text(cell) for cell in column if cell.value is not None}
    return shown[(max if higher else min)(shown)] if len(set(shown.values())) > 1 else None


def _inside(record: Record, trained: int, field: Mean) -> tuple[float, list[tuple[int, int, int]]]:
    """The mean over the buckets that end within the trained length, and those buckets."""
    inside = [b for b in record["buckets"] or [] if b["stop"] <= trained and b["n"]]
    total = sum(b["n"] for b in inside)
    mean = sum((b[field] or 0.0) * b["n"] for b in inside) / total if total else 0.0
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


def _caption(table: Table, higher: bool | None, rope: Record | None) -> str:
    """What the values and their errors are, which are better, and what the tax is."""
    said = ["percent"] if table.group.is_share else []
    said += [] if higher is None else [f"{'higher' if higher else 'lower'} is better"]
    if any(cell.interval for _, _, cell in table.cells()):
        part = "" if table.group.is_share else "; too wide where answers are right in part"
        said.append(f"in brackets the 95% interval over {_count(table)} (Wilson's{part})")
    else:
        said.append(f"± is the standard error over {table.unit}")
    if table.tax is not None and rope is None:
        said.append(
            "no tax: it needs rope and a method beside it, at a length of at most 16 times the "
            "trained one"
        )
    elif table.tax is not None and rope is not None:
        stop = _inside(rope, rope["trained_length"], table.tax.bucket)[1][-1][1]
        said.append(
            f"tax is the change against rope in {table.tax.words} over positions 0 to {stop} "
            f"(trained length {rope['trained_length']}), measured at length "
            f"{format_length(rope['length'])}"
        )
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _count(table: Table) -> str:
    """How many windows or samples the values are over."""
    counts = sorted({column.windows for column in table.columns if column.windows})
    return count_text(counts[0], counts[-1], table.unit)


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


def escape(text: str) -> str:
    """One line in which nothing is Markdown's or HTML's."""
    return printable(text).translate(_MARKDOWN)


def to_markdown(table: Table) -> str:
    """A GitHub table under a heading; the best of a column in bold."""
    header = table.header()
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for (method, _), *cells in _texts(table):
        lines.append([escape(method), *(f"**{t}**" if best else t for t, best in cells)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {escape(table.title)}\n\n{body}\n\n{escape(table.caption)}\n"


def to_latex(table: Table) -> str:
    """A booktabs table with short names of methods; the best of a column in bold."""
    labels = short_methods(row.method for row in table.rows)
    rows = [[(labels[method], bold), *cells] for (method, bold), *cells in _texts(table)]
    caption = " ".join(filter(None, [table.caption, told(labels)]))
    return latex.table(table.title, caption, table.header(), rows)


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


def versions_text(record: Record) -> str:
    """`ctxext 0.1.0, torch 2.13.0, …`."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _inert(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    formula = isinstance(value, str) and value[:1] in tuple("=+-@")
    return f"'{value}" if formula else value


def write_csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Rows under the column names; what a row lacks is empty."""
    from pandas import DataFrame

    cells = [[_inert(row.get(name)) for name in names] for row in rows]
    frame = DataFrame(cells, columns=list(names), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")
