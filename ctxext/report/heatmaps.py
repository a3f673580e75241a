"""Retrieval by length and depth: one map for each method, from the parts of records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ctxext.notation import format_length
from ctxext.records import Record, higher_is_better
from ctxext.records.intervals import wilson
from ctxext.report.groups import (
    bracketed,
    count_text,
    file_name,
    grouped,
    method_order,
    mixed,
    newest,
    titled,
)
from ctxext.report.plots import set_text, wrapped
from ctxext.system.names import printable

_ACROSS = 6  # maps in a row, at most
DARK = 0.47  # numbers are dark from this share on: readable on cividis


@dataclass(frozen=True)
class Heatmap:
    """Method → length in tokens → depth (0 is the beginning of the prompt) → share found.

    `name` is a safe file name without an ending; title and about are safe to print on one line,
    the names of methods are as they were recorded.
    """

    name: str
    title: str
    about: str
    maps: dict[str, dict[int, dict[float, float]]]


def heatmaps(records: Iterable[Record], order: Sequence[str] = ()) -> list[Heatmap]:
    """One for each group of records in which some have parts by depth."""
    groups = grouped(records)
    asked = {group: members[0]["task"] for group, members in groups.items()}
    taken: set[str] = set()
    made = []
    for group, members in groups.items():
        always = ("model", "task", "data")
        name = file_name(["depth"], group, groups, always, taken)
        model, _, data, *apart = titled(group, groups, always)
        if maps := _maps(members, order):
            alike = {g.task for g, task in asked.items() if task == asked[group]}
            task = asked[group] if len(alike) == 1 else group.task
            title = bracketed(f"{model} on {data}: {task} by depth", apart)
            trained = f"trained length {format_length(group.trained_length)}"
            about = ", ".join([trained, group.dtype, *_each(members)])
            about = (
                " ".join([f"{about}.", *told])
                if (told := mixed(members, newest(members)))
                else about
            )
            made.append(Heatmap(name, printable(title), printable(about), maps))
    return made


def _maps(records: list[Record], order: Sequence[str]) -> dict[str, dict[int, dict[float, float]]]:
    records = [r for r in records if r["status"] == "ok" and _shares(r)]
    cells = newest(records)
    maps: dict[str, dict[int, dict[float, float]]] = {m: {} for m in method_order(records, order)}
    for method, column in sorted(cells):
        maps[method][column.length] = _shares(cells[method, column])
    return maps


def _each(records: Iterable[Record]) -> list[str]:
    """How many samples a square is of, and how little few of them say."""
    parts = [part for record in records for part in record.get("parts") or []]
    counts = [part["n"] for part in parts if "depth" in part and part["n"]]
    if not counts:
        return []
    fewest = min(counts)
    low, high = wilson(fewest // 2 / fewest, fewest)
    text = count_text(fewest, max(counts), "samples")
    return [f"{text} a square: 95% intervals up to {100 * (high - low):.0f} points wide"]


def _shares(record: Record) -> dict[float, float]:
    """Depth → share found; none where more of it is worse."""
    parts = record.get("parts") or [] if higher_is_better([record]) is not False else []
    return {part["depth"]: part["value"] for part in parts if "depth" in part}


def draw(heatmap: Heatmap) -> Any:
    """The matplotlib figure: lengths across, depths down, the share found in percent."""
    from matplotlib.figure import Figure

    maps = heatmap.maps
    lengths = sorted({length for shares in maps.values() for length in shares})
    depths = sorted({d for shares in maps.values() for column in shares.values() for d in column})
    down = -(-len(maps) // _ACROSS)
    across = -(-len(maps) // down)
    width = max(2.2, 0.55 * len(lengths) + 1.0)
    titles = [wrapped(method, 24) for method in maps]
    heading = f"{wrapped(heatmap.title, 60)}\n{wrapped(heatmap.about, 80)}"
    height = 0.24 * len(depths) + 1.0 + _more(titles, 0.17)
    size = (width * across + 1.6, height * down + 0.8 + _more([heading], 0.2))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for number, panel in enumerate(panels.flat):
        if number >= len(maps):
            panel.set_axis_off()
            continue
        method = list(maps)[number]
        image = _map(panel, maps[method], lengths, depths)
        set_text(panel.set_title("", fontsize=10), titles[number])
        if number % across == 0:
            panel.set_ylabel("depth")
        if number + across >= len(maps):
            panel.set_xlabel("length (tokens)")
            panel.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=panels, fraction=0.05, pad=0.02, shrink=1 / down)
    bar.set_label("found (%)")
    set_text(figure.suptitle("", x=0.02, ha="left", fontsize=12), heading)
    return figure


def _more(texts: list[str], line: float) -> float:
    """What the longest of the texts takes beyond two lines, in inches."""
    return line * max(0, max(text.count("\n") for text in texts) - 1)


def _map(
    panel: Any, shares: dict[int, dict[float, float]], lengths: list[int], depths: list[float]
) -> Any:
    """One method's map; what was not measured stays blank."""
    percent = [
        [100 * shares.get(length, {}).get(depth, float("nan")) for length in lengths]
        for depth in depths
    ]
    image = panel.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(percent):
        for column, value in enumerate(values):
            if value == value:
                colour = "black" if value >= 100 * DARK else "white"
                spot = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
                panel.text(column, row, f"{value:.0f}", **spot)
    for edge in range(1, len(depths)):
        panel.axhline(edge - 0.5, color="white", linewidth=1)
    for edge in range(1, len(lengths)):
        panel.axvline(edge - 0.5, color="white", linewidth=1)
    panel.set_xticks(range(len(lengths)), [format_length(length) for length in lengths])
    panel.set_yticks(range(len(depths)), [f"{depth:.3g}" for depth in depths], fontsize=8)
    return image
