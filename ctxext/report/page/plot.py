"""Line plots as the page draws them: places in percent of the area, ticks, and what dots say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ctxext.notation import format_length
from ctxext.records import Record
from ctxext.report.figure import Figure, Line
from ctxext.report.groups import method_order
from ctxext.report.plots import look
from ctxext.system.names import printable

MARKERS = {  # name → path around (0, 0), in pixels; in the order of plots.look
    "dot": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.6-3.6h7.2v7.2h-7.2z",
    "up": "M0-4.8L4.6 3.6H-4.6z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "down": "M0 4.8L4.6-3.6H-4.6z",
    "plus": "M-1.7-4.8h3.4v3.1h3.1v3.4h-3.1v3.1h-3.4v-3.1h-3.1v-3.4h3.1z",
    "cross": "M-4.6-2.2l2.4-2.4l2.2 2.2l2.2-2.2l2.4 2.4l-2.2 2.2l2.2 2.2l-2.4 2.4l-2.2-2.2"
    "l-2.2 2.2l-2.4-2.4l2.2-2.2z",
}
_MARKERS = dict(zip((".", "o", "s", "^", "D", "v", "P", "X"), MARKERS, strict=True))
_DASHES = {"-": "", "--": "7 4", "-.": "8 3 2 3"}
_FINE = "3 2"
_LONGEST = 120  # characters of a name
_LONG = 600  # and of a note
_APART = 11  # percent of the area between ticks of x

Scale = Callable[[float], float]


class Look(NamedTuple):
    """How a method is drawn, in all plots of the page."""

    ink: str
    marker: str
    dashes: str
    baseline: bool
    hollow: bool


def looks(records: Iterable[Record], order: Sequence[str] = ()) -> dict[str, Look]:
    """By method as it was asked for: what the pictures' methods look like, in the same order."""
    made = {}
    for number, method in enumerate(m for m in method_order(records, order) if m != "rope"):
        made[method] = _look(look(number, method))
    return {"rope": _look(look(0, "rope")), **made}


def _look(style: dict[str, Any]) -> Look:
    plain = style["color"] == "black"
    ink = "var(--text)" if plain else style["color"]
    dashes = _DASHES.get(style.get("linestyle", "-"), _FINE)
    hollow = style.get("fillstyle") == "none"
    return Look(ink, _MARKERS[style["marker"]], dashes, plain, hollow)


def short(text: str, longest: int = _LONGEST) -> str:
    """Printable; the middle of a very long text is left out."""
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 33]} … {text[-30:]}"


def of_lines(figure: Figure, looks: dict[str, Look]) -> dict[str, Any]:
    """What the template needs of a figure."""
    across = _scale(figure.x_range, figure.log_x)
    down = _scale(figure.y_range[::-1], figure.log_y)
    y_ticks = _ticks(figure.y_range, figure.log_y)
    return {
        "kind": "plot",
        "title": short(figure.title),
        "about": figure.about,
        "x": figure.x,
        "y": figure.y,
        "x_ticks": [(_percent(across(tick)), text) for tick, text in _x_ticks(figure, across)],
        "y_ticks": [(_percent(down(tick)), f"{tick:.6g}") for tick in y_ticks],
        "grid": "".join(f"M0 {_number(down(tick))}H100" for tick in y_ticks),
        "mark": _mark(figure.mark, across),
        "scatter": all(len(line.points) == 1 for line in figure.lines),
        "lines": [_line(line, looks[line.method], across, down) for line in figure.lines],
        "notes": [short(note, _LONG) for note in figure.notes],
    }


def _scale(ends: tuple[float, float], log: bool) -> Scale:
    """From a value to percent of the way from the first end to the second."""
    on = math.log if log else float
    start, stop = map(on, ends)
    return lambda value: 100 * (on(value) - start) / (stop - start)


def _line(line: Line, look: Look, across: Scale, down: Scale) -> dict[str, Any]:
    """The path and error bars in units of 1/100 of the area, and the dots that are in view."""
    places = [(across(p.x), down(p.y)) for p in line.points]
    path = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in places)
    bars = []
    for (x, _), p in zip(places, line.points, strict=True):
        if p.bar:
            low, high = (_bar(down, end) for end in p.bar)
            bars.append(f"M{_number(x)} {_number(low)}V{_number(high)}")
    dots = [
        {"x": _percent(x), "y": _percent(y), "text": p.label}
        for (x, y), p in zip(places, line.points, strict=True)
        if 0 <= x <= 100 and 0 <= y <= 100
    ]
    name = short(line.method)
    return {"method": name, "look": look, "path": path, "bars": "".join(bars), "dots": dots}


def _bar(down: Scale, value: float) -> float:
    """Where a bar ends; below all that a logarithm has, at the bottom."""
    try:
        return down(value)
    except ValueError:
        return 100.0


def _mark(length: int | None, across: Scale) -> dict[str, str] | None:
    """The trained length, as a line with words above it."""
    if length is None:
        return None
    place = across(length)
    return {
        "place": _percent(place),
        "path": f"M{_number(place)} 0V100",
        "text": f"trained length {format_length(length)}",
        "side": " left" if place > 50 else "",
    }


def _x_ticks(figure: Figure, across: Scale) -> list[tuple[float, str]]:
    """In tokens the lengths themselves or quarters of the window, as far as there is room."""
    if not figure.x_tokens:
        return [(tick, f"{tick:.6g}") for tick in _ticks(figure.x_range, figure.log_x)]
    if figure.log_x:
        places = sorted({p.x for line in figure.lines for p in line.points}, reverse=True)
    else:
        length = int(figure.x_range[1])
        places = sorted({length * part // 4 for part in range(5)}, reverse=True)
    kept: list[float] = []
    for place in places:
        if not kept or across(kept[-1]) - across(place) >= _APART:
            kept.append(place)
    return [(place, format_length(int(place))) for place in reversed(kept)]


def _ticks(ends: tuple[float, float], log: bool) -> list[float]:
    """About six round values between the ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = ends
    if log and high > 3 * low:
        subs = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
        places = LogLocator(subs=subs, numticks=8).tick_values(low, high)
    else:
        places = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in places if low <= tick <= high]


def _number(value: float) -> str:
    """Two decimals, within what browsers draw."""
    return f"{min(max(value, -1e5), 1e5):.2f}".removesuffix(".00")


def _percent(value: float) -> str:
    return f"{_number(value)}%"
