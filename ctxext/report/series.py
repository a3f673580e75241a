"""The line plots that records give: loss by position, metrics by length, quality against cost.

Titles and words are safe to print on one line; the names of methods are as they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ctxext.notation import format_length
from ctxext.records import BENCH, Record, higher_is_better, interval, is_share
from ctxext.report.cost import times_over_rope
from ctxext.report.figure import Figure, Line, Point, view
from ctxext.report.groups import (
    Cells,
    Column,
    Group,
    bracketed,
    count_text,
    describe,
    file_name,
    grouped,
    method_order,
    mixed,
    newest,
    titled,
)
from ctxext.report.tables import unit_of
from ctxext.system.names import printable

_SAME_LOSSES = ("ppl", "acc")  # tasks over the same tokens, which one plot is enough for
_STARTS = ("loss-by-position", "cost", "depth")  # of file names; a metric of that name gives way
_NEAR = 8  # T is marked where it is at most so many times beyond the lengths
_LARGEST = 1e300  # no plot shows more


class _Named(NamedTuple):
    """A free file name, model and data in short, and what else tells a group from others."""

    file: str
    place: str
    apart: list[str]


def figures(records: Iterable[Record], order: Sequence[str] = ()) -> list[Figure]:
    """All line plots of the records, in a fixed order; methods in that of `order`.

    Loss by position; each metric by length, where there are two lengths; and each metric against
    cost at the longest length that most methods finished, where two methods have a cost.
    """
    records = list(records)
    losses = [record for record in records if record["task"] in _SAME_LOSSES]
    others = [record for record in records if record["task"] not in _SAME_LOSSES]
    timed = [r for r in records if r["task"] == BENCH and r["status"] == "ok"]
    bench = [r for r in timed if r.get("case") is None]  # whole prefills of whole rows
    scores, taken = grouped(records), set[str]()
    made: list[Figure | None] = []
    for groups in (grouped(losses, ignore=("task", "metric")), grouped(others)):
        for group, members in groups.items():
            named = _named(["loss-by-position"], group, groups, groups, taken)
            made.append(_by_position(named, group, members, order))
    for group, members in scores.items():
        start = f"metric-{group.metric}" if group.metric in _STARTS else group.metric
        named = _named([start], group, _of_metric(group, scores), scores, taken)
        made.append(_by_length(named, group, members, order))
    for group, members in scores.items():
        starts = ["cost", group.metric]
        named = _named(starts, group, _of_metric(group, scores), scores, taken)
        made.append(_by_cost(named, group, members, bench, order))
    return [figure for figure in made if figure is not None]


def _of_metric(group: Group, among: Iterable[Group]) -> list[Group]:
    return [other for other in among if other.metric == group.metric]


def _named(
    starts: Sequence[str],
    group: Group,
    among: Iterable[Group],
    all_groups: Iterable[Group],
    taken: set[str],
) -> _Named:
    """What to call the figure of a group `among` those that have figures of its kind."""
    scored = group.metric in starts  # its name tells the task
    plain = group.task in ("", *_SAME_LOSSES) or (scored and group.task == group.metric)
    always = ("model", "data") if plain else ("model", "task", "data")
    apart = [word for word in describe(group, among, always)[len(always) :] if word != group.metric]
    model, data = titled(group, all_groups, ("model", "data"))[:2]
    place = printable(f"{model} on {data}")
    return _Named(file_name(starts, group, among, always, taken), place, apart)


def _common(cells: Cells) -> Column:
    """The length that the most finished records share; of those the longest."""
    columns = [column for (_, column), record in cells.items() if record["status"] == "ok"]
    return max(columns, key=lambda c: (columns.count(c), c), default=Column(0, 0))


# Loss by position.


def _position_lines(
    records: Iterable[Record], order: Sequence[str] = ()
) -> tuple[Column, dict[str, Record]]:
    """The longest length at which the most methods have buckets, and their records there."""
    cells = newest(r for r in records if r["status"] == "ok" and any(b["n"] for b in r["buckets"]))
    column = _common(cells)
    here = {method: record for (method, at), record in cells.items() if at == column}
    return column, {method: here[method] for method in method_order(here.values(), order)}


def _by_position(
    named: _Named, group: Group, records: list[Record], order: Sequence[str]
) -> Figure | None:
    column, members = _position_lines(records, order)
    if not members:
        return None
    record = next(iter(members.values()))
    lines = tuple(Line(method, tuple(_positions(r))) for method, r in members.items())
    y_range, notes = view(lines)
    trained, length = record["trained_length"], column.length
    plain = group.task in ("", *_SAME_LOSSES)
    subject = "loss by position" if plain else f"{group.task}, loss by position"
    return Figure(
        named.file,
        named.place,
        printable(bracketed(subject, named.apart)),
        about=_about([column.windows], length, records, None if trained <= length else trained),
        x="position in the window (tokens)",
        y="mean loss (nats per token)",
        lines=lines,
        x_range=(0, length),
        y_range=y_range,
        mark=trained if trained <= length else None,
        notes=(*notes, *mixed(records, {(m, column): r for m, r in members.items()})),
    )


def _positions(record: Record) -> Iterator[Point]:
    """The mean loss at the centre of each bucket."""
    for bucket in record["buckets"]:
        start, stop, loss = bucket["start"], bucket["stop"], bucket["nll"]
        if loss is not None:
            label = f"{start} to {stop}: {loss:.3f} nats per token"
            yield Point((start + stop) / 2, loss, None, label)


# By length.


def _by_length(
    named: _Named, group: Group, records: list[Record], order: Sequence[str]
) -> Figure | None:
    cells = newest(records)
    columns = _columns(cells)
    methods = method_order(records, order)
    lines = tuple(
        Line(method, points)
        for method in methods
        if (points := tuple(_lengths(cells, method, columns)))
    )
    lengths = sorted({point.x for line in lines for point in line.points})
    if len(lengths) < 2:
        return None
    near = lengths[0] / _NEAR <= group.trained_length <= lengths[-1] * _NEAR
    shown = [*lengths, *([group.trained_length] if near else [])]
    low, high = min(shown), max(shown)
    pad = (high / low) ** 0.04
    y_range, notes = view(lines, group.metric, share=group.is_share)
    return Figure(
        named.file,
        named.place,
        printable(bracketed(f"{_subject(group)} by length", named.apart)),
        about=_about(
            [c.windows for c in columns],
            None,
            records,
            None if near else group.trained_length,
            lines,
        ),
        x="length (tokens)",
        y=_words(group, records),
        lines=lines,
        x_range=(low / pad, high * pad),
        y_range=y_range,
        log_x=True,
        log_y=group.metric == "perplexity",
        mark=group.trained_length if near else None,
        notes=(*notes, *mixed(records, cells)),
    )


def _columns(cells: Cells) -> list[Column]:
    """For each length the windows that the most methods were scored on."""
    columns = [column for (_, column), record in cells.items() if record["status"] == "ok"]
    best: dict[int, Column] = {}
    for column in sorted(set(columns), key=lambda c: (columns.count(c), c)):
        best[column.length] = column
    return sorted(best.values())


def _lengths(cells: Cells, method: str, columns: Iterable[Column]) -> Iterator[Point]:
    for column in columns:
        value = _value(cells.get((method, column)))
        if value is not None:
            label = f"{format_length(column.length)}: {value.label}"
            yield value._replace(x=column.length, label=label)


def _value(record: Record | None) -> Point | None:
    """A finished record's value on the scale of its axis, if a plot can show it."""
    if record is None or record["status"] != "ok":
        return None
    metric, value, error = record["metric"], record["value"], record["stderr"]
    scale = 100 if is_share(metric, record["task"]) else 1
    if abs(value) > _LARGEST or (metric == "perplexity" and value < 1 / _LARGEST):
        return None
    y = value * scale
    digits = ".2f" if scale == 100 else ".4g"
    more = ""
    bar: tuple[float, float] | None = None
    if ends := interval(record):
        bar = ends.times(scale)
        more = " [{:.1f}, {:.1f}]".format(*bar)
    elif error and error <= _LARGEST:
        bar, more = (y - error * scale, y + error * scale), f" ± {error * scale:{digits}}"
    return Point(0, y, bar, f"{y:{digits}}{more}{' %' if scale == 100 else ''}")


# Quality against cost.


def _by_cost(
    named: _Named,
    group: Group,
    records: list[Record],
    bench: list[Record],
    order: Sequence[str],
) -> Figure | None:
    cells = newest(records)
    column = _common(cells)
    values = {m: y for (m, c), r in cells.items() if c == column and (y := _value(r))}
    at = {method: cells[method, column] for method in values}
    costs, measured = times_over_rope(at, bench)
    methods = method_order(at.values(), order)
    lines = tuple(Line(m, (_priced(values[m], costs[m]),)) for m in methods if m in costs)
    if len(lines) < 2:
        return None
    y_range, notes = view(lines, group.metric, share=group.is_share)
    unknown = [method for method in methods if method not in costs]
    missing = [printable(f"no cost measured of {', '.join(unknown)}")] if unknown else []
    lowest, highest = min(costs.values()), max(costs.values())
    pad = max(0.06 * (highest - lowest), 0.02 * highest)
    subject = f"{_subject(group)} against cost at {format_length(column.length)}"
    return Figure(
        named.file,
        named.place,
        printable(bracketed(subject, named.apart)),
        about=_about([column.windows], column.length, records, group.trained_length, lines),
        x=f"{measured} (1 is rope)",
        y=_words(group, records),
        lines=lines,
        x_range=(max(0.0, lowest - pad), highest + pad),
        y_range=y_range,
        x_tokens=False,
        log_y=group.metric == "perplexity",
        notes=(*notes, *missing, *mixed(records, {(m, column): r for m, r in at.items()})),
    )


def _priced(value: Point, cost: float) -> Point:
    return value._replace(x=cost, label=f"{value.label} at {cost:.3g}× the time of rope")


# Words.


def _words(group: Group, records: Iterable[Record]) -> str:
    higher = higher_is_better(records)
    told = "" if higher is None else f"{'higher' if higher else 'lower'} is better"
    more = ", ".join(filter(None, ("%" if group.is_share else "", told)))
    return printable(group.metric) + (f" ({more})" if more else "")


def _subject(group: Group) -> str:
    known = group.task in (*_SAME_LOSSES, group.metric)
    return group.metric if known else f"{group.task}, {group.metric}"


def _about(
    windows: Sequence[int],
    length: int | None,
    records: Sequence[Record],
    trained: int | None,
    lines: Iterable[Line] = (),
) -> str:
    """How much was measured, the dtype, the trained length if not marked, and what bars are."""
    unit = unit_of(records)
    count = count_text(min(windows), max(windows), unit)
    words = [f"{count} of {length} tokens" if length else count, records[0]["dtype"]]
    words += [f"trained length {format_length(trained)}"] if trained is not None else []
    if any(point.bar for line in lines for point in line.points):
        intervals = any(r["status"] == "ok" and interval(r) for r in records)
        what = "95% interval" if intervals else "± a standard error"
        words.append(f"bars: {what} over {unit}")
    return printable(", ".join(words))
