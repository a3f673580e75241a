"""Pictures for a paper: exactly as wide as a column, in small type, without titles. What a plot
says of itself goes into the caption of a LaTeX figure, which is written beside the picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ctxext.errors import UsageError
from ctxext.notation import format_length
from ctxext.report import heatmaps, multiples
from ctxext.report.aggregate import Headline
from ctxext.report.figure import Figure
from ctxext.report.heatmaps import PAGE, Heatmap
from ctxext.report.labels import short_methods, told
from ctxext.report.plots import fit, looks, put_lines, set_text, wrapped

_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
_LEAST, _MOST = 1.0, 40.0  # inches
_PANEL = 1.9  # inches of a small plot, about
_FLAT = 0.8  # of its width is the height of a plot
_LINE, _HANDLE, _LETTER = 0.16, 0.5, 0.06  # inches of a legend's line, and across it
_THIN = 0.6  # of the usual lines and marks
_STYLE = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 6),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
}


class Picture(NamedTuple):
    """A picture: its file name without an ending, its caption, and what draws it."""

    name: str
    caption: str
    draw: Callable[[], Any]


def parse_width(text: str) -> float:
    """Inches of a width such as `3.3in`, `8.4cm`, `84mm` or `240pt`.

    Raises:
        UsageError: it is none, or not from 1 to 40 inches.
    """
    found = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{0,6})?)\s*(in|cm|mm|pt)\s*", text)
    inches = float(found[1]) * _INCHES[found[2]] if found else math.nan
    if not _LEAST <= inches <= _MOST:
        raise UsageError(
            f"bad value {text!r} for --width: give 1in to 40in, as in 3.3in, 84mm, 8.4cm or 240pt"
        )
    return inches


def pictures(figures: Sequence[Figure], maps: Sequence[Heatmap], width: float) -> list[Picture]:
    """Each plot and each map, and before them all plots by position and length as small multiples.

    Args:
        width: of each picture, in inches.
    """
    labels = short_methods(line.method for figure in figures for line in figure.lines)
    styles = looks(labels)
    made = []
    pages = list(_pages([figure for figure in figures if figure.x_tokens], width))
    for number, some in enumerate(pages, 1):
        name = "overview" if len(pages) == 1 else f"overview-{number}"
        made.append(
            Picture(name, _caption(some, labels), partial(_draw, some, width, labels, styles))
        )
    for figure in figures:
        said = _caption([figure], labels)
        made.append(Picture(figure.name, said, partial(_draw, [figure], width, labels, styles)))
    for one in maps:
        said = f"{one.title}. {one.about}. {told(short_methods(one.maps))}".strip()
        made.append(Picture(one.name, said, partial(_map, one, width)))
    return made


def headline(name: str, found: Headline, width: float) -> Picture:
    """A benchmark's small plots."""
    labels = short_methods(found.methods)
    said = f"{found.title}, 0 to 100, higher is better. {told(labels)}".strip()
    return Picture(name, said, partial(_multiples, found, width, labels))


def _pages(figures: Sequence[Figure], width: float) -> Iterator[Sequence[Figure]]:
    """As many plots as a page holds; none where there is only one."""
    across = _across(len(figures), width)
    most = across * max(1, int(PAGE / (_FLAT * width / across)))
    for start in range(0, len(figures) if len(figures) > 1 else 0, most):
        yield figures[start : start + most]


def _across(count: int, width: float) -> int:
    return min(count, max(1, round(width / _PANEL))) or 1


def _caption(figures: Sequence[Figure], labels: Mapping[str, str]) -> str:
    """What the plots show, how much was measured, and what is out of view."""
    places = {figure.place for figure in figures}
    one = len(places) == 1 and len(figures) > 1
    said = [f"{figures[0].place}."] if one else []
    for figure in figures:
        about = [f"{figure.y}, {figure.about}"]
        about += (
            [] if figure.mark is None else [f"dashed: trained length {format_length(figure.mark)}"]
        )
        subject = figure.subject[:1].upper() + figure.subject[1:] if one else figure.title
        said.append(f"{subject}: {'; '.join((*about, *figure.notes)).rstrip('.')}.")
    shown = {line.method: labels[line.method] for figure in figures for line in figure.lines}
    return " ".join(filter(None, [*said, told(shown)]))


def _draw(
    figures: Sequence[Figure],
    width: float,
    labels: Mapping[str, str],
    styles: Mapping[str, dict[str, Any]],
) -> Any:
    """The matplotlib figure: plots side by side, and one legend below them."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    across = _across(len(figures), width)
    down = math.ceil(len(figures) / across)
    shown = {line.method: labels[line.method] for figure in figures for line in figure.lines}
    names = [wrapped(label, 40) for label in shown.values()]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = min(len(names), max(1, int(width / (_HANDLE + _LETTER * longest))))
    lines = math.ceil(sum(name.count("\n") + 1 for name in names) / columns)
    height = down * _FLAT * width / across + _LINE * (lines + 1)
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        spots = list(canvas.subplots(down, across, squeeze=False).flat)
        drawn: dict[str, Any] = {}
        for axes, figure in zip(spots, figures, strict=False):
            fit(axes, figure)
            put = put_lines(axes, figure.lines, styles, _THIN)
            drawn |= dict(zip((line.method for line in figure.lines), put, strict=True))
            _name(axes, figure, figures, width / across)
        for axes in spots[len(figures) :]:
            axes.set_axis_off()
        handles = [drawn[method] for method in shown]
        legend = canvas.legend(
            handles, ["-"] * len(handles), loc="outside lower center", ncols=columns, frameon=False
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            set_text(text, name)
    return canvas


def _name(axes: Any, figure: Figure, among: Sequence[Figure], wide: float) -> None:
    """Name the axes and the trained length, in a place so many inches wide; of several plots name
    what each shows, and leave the unit to the caption."""
    letters = int(0.75 * wide / _LETTER)
    set_text(axes.set_xlabel(""), wrapped(figure.x, letters))
    if len(among) == 1:
        set_text(axes.set_ylabel(""), wrapped(figure.y, letters))
    if figure.mark is not None:
        axes.axvline(figure.mark, color="0.35", linestyle=(0, (4, 3)), linewidth=0.7)
    if len(among) > 1:
        one = len({other.place for other in among}) == 1
        set_text(axes.set_title(""), wrapped(figure.subject if one else figure.title, letters))


def _map(one: Heatmap, width: float) -> Any:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return heatmaps.draw(one, width)


def _multiples(found: Headline, width: float, labels: Mapping[str, str]) -> Any:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return multiples.draw(found, width, labels)
