"""Line plots as pictures, and what all pictures share: looks, text as it is, same bytes."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.notation import format_length
from ctxext.report.figure import Figure, Line
from ctxext.system.files import write_atomically
from ctxext.system.names import printable

# Okabe and Ito's colours, which colour-blind readers can tell apart; black is kept for `rope`.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", (0, (2, 1)))
_METADATA = {".png": {"Software": "ctxext"}, ".svg": {"Creator": "ctxext", "Date": None}}
SUFFIXES = tuple(_METADATA)
_LINES = 50  # of a legend in one column
_APART = 0.06  # of a logarithmic axis, at least, from tick to tick
_FEW, _DECADES = 4, 1e5  # ranges of a logarithmic axis: few ticks below, decades above


def save(path: Path, draw: Callable[[], Any]) -> None:
    """Write what `draw` makes, a matplotlib figure, to a .png or .svg; same figure, same bytes."""
    if path.suffix not in _METADATA:
        raise UsageError(f"cannot draw {path.name!r}: the name must end in .png or .svg")
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "ctxext"
        look = {"dpi": 150, "bbox_inches": "tight", "metadata": _METADATA[path.suffix]}
        draw().savefig(out, format=path.suffix[1:], **look)
    write_atomically(path, out.getvalue())


def draw(figure: Figure) -> Any:
    """The matplotlib figure: a line for each method, or a mark where each has one point."""
    from matplotlib.figure import Figure as Canvas

    names = [wrapped(line.method, 36) for line in figure.lines]
    rows = sum(1.45 + name.count("\n") for name in names)
    columns = 1 + int(rows > _LINES)
    height = min(max(4.5, 0.175 * rows / columns), 9.0)
    axes = Canvas(figsize=(8, height)).add_subplot()
    _limit(axes, figure)
    drawn = _lines(axes, figure.lines)
    _ticks(axes, figure)
    _label(axes, figure)
    legend = axes.legend(
        drawn,
        ["-"] * len(drawn),
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        handlelength=4,
        labelspacing=0.7,
        ncols=columns,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        set_text(text, name)
    return axes.figure


def _lines(axes: Any, lines: Sequence[Line]) -> list[Any]:
    """The lines, with error bars where there are any."""
    drawn = []
    number = 0
    for line in lines:
        style = look(number, line.method)
        if line.method == "rope":  # wider and beneath, so that what lies on it can be seen
            style |= {"linewidth": 3.4, "zorder": 1.9}
        number += line.method != "rope"
        if all(len(other.points) == 1 for other in lines):
            style |= {"linestyle": "none", "markersize": 14 if line.method == "rope" else 8}
        x, y = [p.x for p in line.points], [p.y for p in line.points]
        drawn += axes.plot(x, y, **style)
        with_bar = [(p.x, p.y, p.y - p.bar[0], p.bar[1] - p.y) for p in line.points if p.bar]
        if with_bar:
            x, y, *errors = map(list, zip(*with_bar, strict=True))
            bars = {"ecolor": style["color"], "elinewidth": 1, "capsize": 2.5}
            axes.errorbar(x, y, errors, fmt="none", **bars)
    return drawn


def look(number: int, method: str) -> dict[str, Any]:
    """Colour, marker and dashes of the `number`-th method besides `rope`."""
    if method == "rope":
        return {"color": "black", "linewidth": 2.4, "marker": ".", "markersize": 8, "zorder": 3}
    colours = len(_COLOURS)
    return {
        "color": _COLOURS[number % colours],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _STYLES[(number + number // colours) % len(_STYLES)],
        "fillstyle": ("full", "none")[number // (colours * len(_MARKERS)) % 2],
        "linewidth": 1.7,
        "markersize": 5,
    }


def _limit(axes: Any, figure: Figure) -> None:
    if figure.log_x:
        axes.set_xscale("log", base=2)
    if figure.log_y:
        axes.set_yscale("log")
    axes.set_xlim(figure.x_range)
    axes.set_ylim(figure.y_range)


def _ticks(axes: Any, figure: Figure) -> None:
    """Lengths at their places, as many as have room; plain numbers on a logarithmic y axis."""
    from matplotlib import ticker

    if figure.log_x:
        low, high = figure.x_range
        ticks: list[int] = []
        for length in sorted({int(point.x) for line in figure.lines for point in line.points}):
            if not ticks or length / ticks[-1] > (high / low) ** _APART:
                ticks.append(length)
        axes.set_xticks(ticks, [format_length(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    elif figure.x_tokens:
        ticks = sorted({int(figure.x_range[1]) * part // 4 for part in range(5)})
        axes.set_xticks(ticks, [format_length(tick) for tick in ticks])
    if figure.log_y:
        low, high = figure.y_range
        few = high / low < _FEW
        if high / low < _DECADES:
            axes.yaxis.set_major_locator(
                ticker.MaxNLocator(6) if few else ticker.LogLocator(subs=(1, 2, 3, 5))
            )
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:.6g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _label(axes: Any, figure: Figure) -> None:
    """Title, axes, the trained length T, and what is out of view."""
    about = wrapped(figure.about, 100)
    line = {"xycoords": "axes fraction", "textcoords": "offset points"}
    above = 6 if figure.mark is None else 21
    said = axes.annotate("", (0, 1), (0, above), color="0.3", fontsize=9.5, **line)
    set_text(said, about)
    pad = above + 3 + 13 * (1 + about.count("\n"))
    set_text(axes.set_title("", fontsize=12, pad=pad, loc="left"), wrapped(figure.title, 70))
    lines = [figure.x, *(wrapped(note, 90) for note in figure.notes)]
    set_text(axes.set_xlabel(""), "\n".join(lines))
    set_text(axes.set_ylabel(""), wrapped(figure.y, 50))
    if figure.mark is not None:
        axes.axvline(figure.mark, color="0.35", linestyle=(0, (4, 3)), linewidth=1.2)
        where = axes.transAxes.inverted().transform(axes.transData.transform((figure.mark, 1)))[0]
        side = "left" if where < 0.5 else "right"
        text = f"trained length {format_length(figure.mark)}"
        spot = {"xycoords": ("data", "axes fraction"), "ha": side, "color": "0.25"}
        axes.annotate(text, (figure.mark, 1.015), **spot)


def wrapped(text: str, width: int) -> str:
    """Broken into lines of `width` characters; the middle of a very long text is left out."""
    text = printable(text)
    text = text if len(text) <= 4 * width else f"{text[: 3 * width]} … {text[-width:]}"
    return "\n".join(textwrap.wrap(text, width)) or "?"


def set_text(artist: Any, text: str) -> None:
    """The text as it is: a dollar sign begins no formula."""
    artist.set_parse_math(False)
    artist.set_text(text)
