"""What the line plots show, apart from how they are drawn: the same for pictures and the page.

Titles and words are safe to print on one line; the names of methods are as they were recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ctxext.notation import format_length
from ctxext.records import BENCH, Record, higher_is_better, interval, is_share
from ctxext.records.record import Timed
from ctxext.report.cost import believable, time_ratio
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
_ROOM, _ROOM_FOR_ROPE = 3.0, 1.5  # nats per token above the lowest loss that are in view
_NEARLY = 0.1  # of the range in view, so much more is shown rather than cut
_NEAR = 8  # T is marked where it is at most so many times beyond the lengths
_LARGEST = 1e300  # no plot shows more
_PREFILL: Timed = "prefill_seconds"
_LOSS = "loss"  # by position, in nats per token; no metric of a record


class Point(NamedTuple):
    """A value with both ends of its error bar, in the units of the axes; `label` says it in words.

    The bar is a standard error to both sides, or a 95% interval; None where there is none.
    """

    x: float
    y: float
    bar: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A method as it was asked for, and its points from left to right."""

    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Figure:
    """A plot with a line for each method; where each has one point, a scatter.

    `name` is a safe file name without an ending, `place` a model and its data. Where `x_tokens`, x
    is in tokens, and `mark` the trained length if it is near them. What `y_range` leaves out of
    view is told in `notes`.
    """

    name: str
    place: str
    subject: str
    about: str
    x: str
    y: str
    lines: tuple[Line, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_tokens: bool = True
    log_x: bool = False
    log_y: bool = False
    mark: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """No other figure of the same records has it."""
        return f"{self.place}: {self.subject}"


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
    costs, measured = _cost(at, bench)
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


def _cost(at: dict[str, Record], bench: list[Record]) -> tuple[dict[str, float], str]:
    """Each method's time over that of rope, and what time that is.

    Of prefill, from bench records of one machine and setting, unless the scores' own seconds,
    which are compared on one device only, tell of more methods.
    """
    settings: dict[tuple[str, ...], dict[str, float]] = {}
    for record in sorted(bench, key=lambda r: (r["created"], r["key"])):
        ratio = record["ratio"][_PREFILL] if record["ratio"] else None
        for method, scored in at.items():
            if ratio and _same(scored, record) and believable(ratio["median"]):
                setting = record["device"], str(record["batch_size"]), str(record["seed"])
                settings.setdefault(setting, {})[method] = ratio["median"]
    best = max(sorted(settings), key=lambda s: len(settings[s]), default=None)
    timed = settings[best] if best else {}
    own = {m: ratio for m, r in at.items() if (ratio := time_ratio(r, at.get("rope")))}
    if best and len(timed) >= max(2, len(own)):
        return timed, f"prefill time over that of rope, from bench records on {best[0]}"
    windows = any(record["buckets"] for record in at.values())
    return own, f"{'evaluation' if windows else 'prefill'} time over that of rope"


def _same(scored: Record, timed: Record) -> bool:
    """Whether a bench record is of the model, method, length and path that was scored."""
    ours, theirs = (
        (r["model"], r["method"], r["length"], r["dtype"], r["attention"]) for r in (scored, timed)
    )
    weights = {r["model_sha256"] for r in (scored, timed)} - {None}
    return ours == theirs and len(weights) <= 1


# Words and what is in view.


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


def _bar(point: Point, log: bool) -> list[float]:
    """Both ends of a point's error bar, or their logarithms; at most to e times and one e-th."""
    ends = point.bar or (point.y, point.y)
    if not log:
        return list(ends)
    return [math.log(min(max(y, point.y / math.e), point.y * math.e)) for y in ends]


def view(
    lines: Sequence[Line], metric: str = _LOSS, room: float = _ROOM, share: bool = False
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """The range of y that keeps the methods apart, and a note on each line that leaves it.

    A loss may explode, or a perplexity, which is treated as its logarithm; these are cut where they
    are `room` nats per token above the lowest, or a little more where that brings them into view.
    """
    log, cut = metric == "perplexity", metric in (_LOSS, "perplexity")
    nats = {x.method: [math.log(p.y) if log else p.y for p in x.points] for x in lines}
    low = min(map(min, nats.values()))
    seen, ends = [], []
    for line in lines:
        most = min(room, _ROOM_FOR_ROPE) if line.method == "rope" and not log else room
        for point, value in zip(line.points, nats[line.method], strict=True):
            if not cut or value <= low + most:
                seen.append(value)
                ends += _bar(point, log)
    low, high = min([*seen, *ends]), max([*seen, *ends])
    nearly = high + _NEARLY * (high - low)
    high = max([high, *(x for values in nats.values() for x in values if x <= nearly)])
    least = 1.0 if share else 0.01 if cut else 0.02 * max(abs(low), abs(high)) or 1.0
    margin = max(0.05 * (high - low), least)
    low, high = low - margin, high + margin
    beyond = {method: max(values) for method, values in nats.items() if max(values) > high}
    if log:
        low, high = math.exp(low), math.exp(high)
        beyond = {method: math.exp(value) for method, value in beyond.items()}
    if share:
        low, high = max(low, -2.0), min(high, 102.0)
    unit = "" if log else " nats per token"
    far = [f"{m} up to {y:{'.4g' if log or y >= 1e4 else '.2f'}}" for m, y in beyond.items()]
    note = printable(f"out of view: {', '.join(far)}{unit}")
    return (low, high), (note,) if far else ()
