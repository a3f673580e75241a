"""Loss by position in the window: where along the context each method begins to fail."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.registry import format_length
from ctxext.report.groups import Column, method_order, newest
from ctxext.results import Record, printable, write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart; black is kept for `rope`.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.", (0, (2, 1)))
_ROOM, _ROOM_FOR_ROPE = 3.0, 1.5  # nats per token above the lowest loss that are in view
_METADATA = {".png": {"Software": "ctxext"}, ".svg": {"Creator": "ctxext", "Date": None}}


def loss_by_position(records: Iterable[Record], path: str | Path) -> bool:
    """Draw the records of one group to a .png or .svg; False if none of them has buckets.

    One line for each method at the longest length that all of them finished: the mean loss
    (nats per token) at the centres of the buckets (tokens). The same records give the same bytes.
    """
    column, lines = _lines(list(records))
    if not lines:
        return False
    save(Path(path), lambda: _figure(column, lines))
    return True


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


def _lines(records: list[Record]) -> tuple[Column, dict[str, Record]]:
    """The longest length at which the most methods have buckets, and their records there."""
    cells = newest(r for r in records if r["status"] == "ok" and any(b["n"] for b in r["buckets"]))
    columns = [column for _, column in cells]
    column = max(columns, key=lambda c: (columns.count(c), c), default=Column(0, 0))
    methods = [method for method in method_order(records) if (method, column) in cells]
    return column, {method: cells[method, column] for method in methods}


def _figure(column: Column, lines: dict[str, Record]) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, 4.5)).add_subplot()
    curves: dict[str, list[float]] = {}
    drawn = []
    for method, record in lines.items():
        buckets = [bucket for bucket in record["buckets"] if bucket["n"]]
        centres = [(bucket["start"] + bucket["stop"]) / 2 for bucket in buckets]
        style = look(len(curves.keys() - {"rope"}), method)
        curves[method] = [bucket["nll"] for bucket in buckets]
        drawn += axes.plot(centres, curves[method], **style)
    beyond = _limit(axes, curves)
    _label(axes, next(iter(lines.values())), column, beyond)
    legend = axes.legend(
        drawn,
        ["-"] * len(lines),
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        handlelength=4,
        labelspacing=0.9,
    )
    for text, method in zip(legend.get_texts(), lines, strict=True):
        set_text(text, wrapped(method, 36))
    return axes.figure


def look(number: int, method: str) -> dict[str, Any]:
    """Colour, marker and dashes of the `number`-th method besides `rope`."""
    if method == "rope":
        return {"color": "black", "linewidth": 2.4, "marker": ".", "markersize": 8, "zorder": 3}
    look = {"color": _COLOURS, "marker": _MARKERS, "linestyle": _STYLES}
    return {key: options[number % len(options)] for key, options in look.items()} | {
        "linewidth": 1.7,
        "markersize": 5,
    }


def _limit(axes: Any, curves: dict[str, list[float]]) -> list[str]:
    """Keep the methods apart where one explodes; a note on each line that leaves the view."""
    low = min(map(min, curves.values()))
    seen = [
        loss
        for method, curve in curves.items()
        for loss in curve
        if loss <= low + (_ROOM_FOR_ROPE if method == "rope" else _ROOM)
    ]
    margin = max(0.05 * (max(seen) - low), 0.01)
    top = max(seen) + margin
    axes.set_ylim(low - margin, top)
    beyond = [(method, max(curve)) for method, curve in curves.items() if max(curve) > top]
    return [f"{method} leaves the view: up to {loss:.2f} nats per token" for method, loss in beyond]


def _label(axes: Any, record: Record, column: Column, notes: list[str]) -> None:
    """Title, axes, the trained length T, and what is out of view."""
    windows = f"{column.windows} window{'s' if column.windows > 1 else ''}"
    about = f"{windows} of {column.length} tokens, {record['dtype']}"
    heading = wrapped(f"{record['model']} on {record['data']['name']}: loss by position", 70)
    set_text(
        axes.set_title("", fontsize=12, pad=24, loc="left"), f"{heading}\n{wrapped(about, 90)}"
    )
    lines = ["position in the window (tokens)", *(wrapped(note, 90) for note in notes)]
    set_text(axes.set_xlabel(""), "\n".join(lines))
    axes.set_ylabel("mean loss (nats per token)")
    axes.set_xlim(0, column.length)
    ticks = sorted({column.length * part // 4 for part in range(5)})
    axes.set_xticks(ticks, [format_length(tick) for tick in ticks])
    axes.grid(color="0.9", linewidth=0.8)
    trained = record["trained_length"]
    if trained <= column.length:
        axes.axvline(trained, color="0.35", linestyle=(0, (4, 3)), linewidth=1.2)
        name = f"trained length {format_length(trained)}"
        side = "left" if trained < column.length / 2 else "right"
        where = {"xycoords": ("data", "axes fraction"), "ha": side, "color": "0.25"}
        axes.annotate(name, (trained, 1.015), **where)


def wrapped(text: str, width: int) -> str:
    """Broken into lines of `width` characters; the middle of a very long text is left out."""
    text = printable(text)
    text = text if len(text) <= 4 * width else f"{text[: 3 * width]} … {text[-width:]}"
    return "\n".join(textwrap.wrap(text, width)) or "?"


def set_text(artist: Any, text: str) -> None:
    """The text as it is: a dollar sign begins no formula."""
    artist.set_parse_math(False)
    artist.set_text(text)
