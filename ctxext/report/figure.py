"""What a line plot shows, apart from how it is drawn: its lines, and what of them is in view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ctxext.system.names import printable

_ROOM, _ROOM_FOR_ROPE = 3.0, 1.5  # nats per token above the lowest loss that are in view
_NEARLY = 0.1  # of the range in view, so much more is shown rather than cut


LOSS = "loss"  # by position, in nats per token; no metric of a record


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


def view(
    lines: Sequence[Line], metric: str = LOSS, room: float = _ROOM, share: bool = False
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """The range of y that keeps the methods apart, and a note on each line that leaves it.

    A loss may explode, or a perplexity, which is treated as its logarithm; these are cut where they
    are `room` nats per token above the lowest, or a little more where that brings them into view.
    """
    log, cut = metric == "perplexity", metric in (LOSS, "perplexity")
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


def _bar(point: Point, log: bool) -> list[float]:
    """Both ends of a point's error bar, or their logarithms; at most to e times and one e-th."""
    ends = point.bar or (point.y, point.y)
    if not log:
        return list(ends)
    return [math.log(min(max(y, point.y / math.e), point.y * math.e)) for y in ends]
