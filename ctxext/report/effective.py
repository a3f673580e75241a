"""Effective lengths, from records alone: how far a method keeps what it has at its base length.

Two rules are told. NoLiMa's (arXiv 2502.05167): the longest length up to which each measured one
has at least 85% of what the base length has, here the shortest measured one. RULER's (arXiv
2404.06654): the longest up to which each has at least 85.6 of 100, which Llama-2-7B has at 4k; it
is told of scores over samples, and not of shares of a text's tokens, which no model has so high.
Both need a metric from 0 to a perfect score, of which more is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ctxext.notation import format_length
from ctxext.records import Interval, Record, interval, over_windows
from ctxext.records.intervals import apart
from ctxext.records.metrics import perfect_score
from ctxext.report.groups import Cells, Column, grouped, method_order, newest, titled
from ctxext.report.sheets import Item, Sheet
from ctxext.system.names import printable

KEPT = 0.85  # of the base length's value
ENOUGH = 0.856  # of a perfect score
_Z = 1.959964  # of a 95% interval of a number with a standard error

_RULER = f", or has {100 * ENOUGH:g} of 100 (RULER's threshold)"
_CAPTION = (
    f"Tokens up to which every measured length keeps {100 * KEPT:g}% of the value at the shortest "
    "one (NoLiMa's rule){}; – where not even the shortest one has. In brackets what the 95% "
    "intervals of the values leave open; ≥ stands before the longest measured length, beyond which "
    "nothing is known."
)


class Reach(NamedTuple):
    """A length in tokens, 0 for none, and between which it is by the values' intervals.

    Attributes:
        longest: the longest measured length, where nothing is known beyond.
    """

    value: int
    low: int
    high: int
    longest: int

    def __str__(self) -> str:
        """`8k`, `≥16k`, `8k [4k, ≥16k]` or a dash."""
        text = self._said(self.value)
        if self.low != self.high:
            text += f" [{self._said(self.low)}, {self._said(self.high)}]"
        return text

    def _said(self, length: int) -> str:
        if not length:
            return "–"
        return f"{'≥' if length == self.longest else ''}{format_length(length)}"


class Row(NamedTuple):
    """A method as it was asked for; `kept` by NoLiMa's rule, `enough` by RULER's."""

    method: str
    base: int
    kept: Reach
    enough: Reach


HEADER = ("method", "base length", f"{100 * KEPT:g}% of it kept", f"{100 * ENOUGH:g} of 100")


def sheets(records: Iterable[Record], order: Sequence[str] = ()) -> list[Sheet]:
    """A table for each model, task and data with scores at two lengths, methods in `order`."""
    groups = grouped(records)
    found = []
    for group, members in groups.items():
        if some := rows(members, order):
            words = titled(group, groups, ("model", "task", "data"))
            title = printable(" · ".join(["Effective length", *words]))
            columns = len(HEADER) - any(map(over_windows, members))
            caption = _CAPTION.format(_RULER if columns == len(HEADER) else "")
            items = tuple(_items(row)[:columns] for row in some)
            found.append(Sheet(title, caption, HEADER[:columns], items))
    return found


def rows(records: Iterable[Record], order: Sequence[str] = ()) -> list[Row]:
    """The methods of one group of records that have scores at two lengths."""
    records = list(records)
    cells = newest(record for record in records if record["status"] == "ok")
    methods = method_order(records, order)
    found = (_row(method, _lengths(cells, method)) for method in methods)
    return [row for row in found if row is not None]


def _items(row: Row) -> tuple[Item, ...]:
    base = Item(format_length(row.base), row.base)
    reached = (Item(str(reach), reach.value) for reach in (row.kept, row.enough))
    return (Item(row.method), base, *reached)


class _Value(NamedTuple):
    """A value from 0 to 1, and its 95% interval."""

    value: float
    ends: Interval


def _lengths(cells: Cells, method: str) -> dict[int, _Value]:
    """The values at each length, ascending; where there are several, of the most samples."""
    columns: dict[int, Column] = {}
    for column in sorted(column for name, column in cells if name == method):
        columns[column.length] = column
    some = ((n, _value(cells[method, column])) for n, column in columns.items())
    return {length: value for length, value in some if value is not None}


def _value(record: Record) -> _Value | None:
    """None where the metric has no perfect score."""
    most = perfect_score(record)
    if most is None or not 0 <= record["value"] <= most:
        return None
    value, ends = record["value"] / most, interval(record)
    if ends is not None:
        return _Value(value, ends.times(1 / most))
    reach = _Z * (record["stderr"] or 0.0) / most
    return _Value(value, Interval(max(0.0, value - reach), min(1.0, value + reach)))


def _row(method: str, values: dict[int, _Value]) -> Row | None:
    if len(values) < 2:
        return None
    base, first = next(iter(values.items()))
    least = KEPT * first.value

    def kept(one: _Value) -> Interval:
        """How much more it is than what must be kept."""
        return apart(one.value, least, one.ends, first.ends.times(KEPT))

    def enough(one: _Value) -> Interval:
        return Interval(one.ends.low - ENOUGH, one.ends.high - ENOUGH)

    longest = max(values)
    by_base = _reach(values, lambda one: one.value - least, kept, longest, base)
    by_score = _reach(values, lambda one: one.value - ENOUGH, enough, longest)
    return Row(method, base, by_base, by_score)


def _reach(
    values: dict[int, _Value],
    above: Callable[[_Value], float],
    ends: Callable[[_Value], Interval],
    longest: int,
    base: int | None = None,
) -> Reach:
    """How far the values are above a threshold; the `base` is by definition."""

    def up_to(holds: Callable[[_Value], bool]) -> int:
        reached = 0
        for length, value in values.items():
            if length != base and not holds(value):
                break
            reached = length
        return reached

    return Reach(
        up_to(lambda one: above(one) >= 0),
        up_to(lambda one: ends(one).low >= 0),
        up_to(lambda one: ends(one).high >= 0),
        longest,
    )
