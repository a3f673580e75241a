"""A benchmark's scores by length as one picture of small plots: the mean, and each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ctxext.notation import format_length
from ctxext.report.aggregate import Headline, Score
from ctxext.report.plots import look, set_text, wrapped

_ACROSS = 4


def draw(
    headline: Headline, width: float | None = None, labels: Mapping[str, str] | None = None
) -> Any:
    """The matplotlib figure; all plots have the same axes, and a line for each method.

    Args:
        width: inches of a picture for a paper: in small type, and without a title.
        labels: what the legend calls the methods.
    """
    from matplotlib.figure import Figure as Canvas

    panels: list[tuple[str, Callable[[str, int], Score | None]]] = [
        (f"mean of {len(headline.tasks)}", headline.mean),
        *((task, _of(headline, task)) for task in headline.tasks),
    ]
    across = min(max(1, round(width / 1.5)) if width else _ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    size = (2.6 * across + 0.4, 2.2 * down + 1.2)
    size = (width, 0.85 * width / across * down + 0.6) if width else size
    canvas = Canvas(figsize=size, layout="constrained")
    grid = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    spots, drawn = list(grid.flat), dict[str, Any]()
    for axes, (title, score) in zip(spots, panels, strict=False):
        _fill(axes, headline, score, drawn)
        set_text(axes.set_title("", fontsize=7 if width else 9), wrapped(title, 28))
    for axes in spots[len(panels) :]:
        axes.set_axis_off()
    if not width:
        set_text(canvas.suptitle("", fontsize=11), wrapped(headline.title, 26 * across))
    columns = min(4, max(1, round(width / 1.6))) if width else 4
    legend = canvas.legend(
        drawn.values(), ["-"] * len(drawn), loc="outside lower center", ncols=columns
    )
    for text, name in zip(legend.get_texts(), drawn, strict=True):
        set_text(text, wrapped((labels or {}).get(name, name), 36))
    return canvas


def _of(headline: Headline, task: str) -> Callable[[str, int], Score | None]:
    return lambda method, length: headline.of(method, length, task)


def _fill(
    axes: Any,
    headline: Headline,
    score: Callable[[str, int], Score | None],
    drawn: dict[str, Any],
) -> None:
    """Draw the lines, with error bars, and T where it is among the lengths."""
    lengths = headline.lengths
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [format_length(length) for length in lengths], fontsize="small")
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if lengths[0] <= headline.trained <= lengths[-1]:
        axes.axvline(headline.trained, color="0.35", linestyle=(0, (4, 3)), linewidth=1)
    number = 0
    for method in headline.methods:
        style = look(number, method)
        number += method != "rope"
        some = [(n, one) for n in lengths if (one := score(method, n)) is not None]
        if not some:
            continue
        places, values = [n for n, _ in some], [one.value for _, one in some]
        [line] = axes.plot(places, values, **style)
        drawn.setdefault(method, line)
        errors = [one.error or 0.0 for _, one in some]
        bars = {"ecolor": style["color"], "elinewidth": 1, "capsize": 2}
        axes.errorbar(places, values, errors, fmt="none", **bars)
