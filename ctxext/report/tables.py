"""Comparison tables, from records alone: methods down, lengths across, and the tax.

Perplexities and the scores of benchmarks are shown as they are, shares in percent. A *difference*
(Δ) is a value minus that of `rope` over the same windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
from ctxext.report.tax import TAXES, Tax, mean_inside, taxes_at

NO_VALUE, WINDOWS, ROUNDED = "–", "windows", "≈"
_COSTS = {
    "speed": "tokens/s",
    "prefill": "prefill tokens/s",
    "decode": "decode tokens/s",
    "memory": "peak memory",
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
    def tax(self) -> Tax | None:
        """In what the tax is told; None where there is none."""
        return TAXES.get(self.group.metric) if self.unit == WINDOWS else None

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
    windows = any(map(over_windows, done)) if done else some[0]["metric"] in TAXES
    return WINDOWS if windows else "samples"


def build(records: Iterable[Record], order: Sequence[str] = ()) -> list[Table]:
    """One table for each model, task, metric and data; `order` is that of the methods."""
    groups = grouped(records)
    return [_table(group, groups, order) for group in groups]


def _table(group: Group, groups: dict[Group, list[Record]], order: Sequence[str]) -> Table:
    cells, unit = newest(groups[group]), unit_of(groups[group])
    columns = sorted({column for _, column in cells})
    places = reversed(columns) if unit == WINDOWS else ()
    taxed = next((c for c in places if taxes_at(cells, c, group.metric)), None)
    taxes = taxes_at(cells, taxed, group.metric) if taxed else {}
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
        stop = mean_inside(rope, rope["trained_length"], table.tax.bucket)[1][-1][1]
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
