"""Reports from record files alone: tables (Markdown, CSV, LaTeX, terminal) and plots.

Scores come first; the speed and memory that bench records carry have tables of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError
from ctxext.records import Record
from ctxext.report import aggregate, effective, formats, sheets, speed, tables
from ctxext.report.groups import chosen as chosen
from ctxext.report.spreadsheet import write_csv
from ctxext.system.digests import sha256_of_text
from ctxext.system.files import write_atomically
from ctxext.system.names import safe_name

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: The file of each format: its name, and what it ends in.
FILES = {
    "md": ("tables", ".md"),
    "csv": ("tables", ".csv"),
    "latex": ("tables", ".tex"),
    "html": ("report", ".html"),
}
FORMATS = tuple(FILES)
_LONGEST = 80  # characters of a file name that are methods


def render(records: Iterable[Record], format: str = "md", order: Sequence[str] = ()) -> str:
    """All tables as Markdown ("md"), one CSV ("csv") or LaTeX ("latex"); methods in `order`.

    "html" is a whole page in ASCII, with the plots and maps as well.
    Where there are bench records the CSV has more columns, for their ratios.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown report format {format!r}; valid: {', '.join(FORMATS)}")
    records = list(records)
    if format == "html":
        from ctxext.report import page

        return page.render(records, order)
    scores, speeds = tables.build(records, order), speed.build(records, order)
    if format == "csv":
        rows = itertools.chain(formats.csv_rows(scores), speed.csv_rows(speeds))
        return write_csv(formats.CSV + (speed.CSV if speeds else ()), rows)
    if format == "latex":
        texts = [*map(formats.to_latex, scores), *map(speed.to_latex, speeds)]
        return "\n".join(["% \\usepackage{booktabs}", *texts])
    texts = [*map(formats.to_markdown, scores)]
    texts += map(sheets.to_markdown, effective.sheets(records, order))
    texts += map(speed.to_markdown, speeds)
    return "\n".join(texts) or "No records.\n"


def to_rich(
    records: Iterable[Record], order: Sequence[str] = (), width: int | None = None
) -> list[RichTable]:
    """All tables for a terminal of `width` characters; they may be wider, so do not crop them."""
    records = list(records)
    scores, speeds = tables.build(records, order), speed.build(records, order)
    return [
        *(formats.to_rich(table, width) for table in scores),
        *map(sheets.to_rich, effective.sheets(records, order)),
        *(speed.to_rich(table, width) for table in speeds),
    ]


def write_files(
    folder: str | Path,
    records: Iterable[Record],
    order: Sequence[str] = (),
    plots: bool = True,
    format: str = "md",
    methods: Sequence[str] = (),
) -> list[Path]:
    """Write `tables.md`, the format's own file where that is another, and with `plots` each plot
    and map by depth as PNG and SVG; the paths.

    Plots are named after what they show, as `loss-by-position--MODEL--DATA` or
    `depth--MODEL--TASK--DATA`. Where several groups have the same model and data, the name goes
    on with what tells them apart, such as the task or the dtype.

    Args:
        methods: those that were chosen, if the records are not all: every name ends in them, so
            that no file takes the place of one that shows all.
    """
    folder, records, ending = Path(folder), list(records), _ending(methods)
    written = []
    for form in dict.fromkeys(("md", format)):
        stem, suffix = FILES[form]
        written.append(folder / f"{stem}{ending}{suffix}")
        write_atomically(written[-1], render(records, form, order).encode("utf-8", "replace"))
    return [*written, *(_draw(folder, records, order, ending) if plots else ())]


def write_headlines(
    folder: str | Path, found: Sequence[aggregate.Headline], format: str = "md", plots: bool = True
) -> list[Path]:
    """Write the tables of a benchmark's means as `BENCHMARK.md`, and as CSV where that is the
    format, and with `plots` each picture of small plots as PNG and SVG; the paths."""
    folder, name = Path(folder), found[0].benchmark
    texts = {".md": render_headlines(found, "md")}
    texts |= {".csv": render_headlines(found, "csv")} if format == "csv" else {}
    written = []
    for suffix, text in texts.items():
        written.append(folder / f"{name}{suffix}")
        write_atomically(written[-1], text.encode("utf-8", "replace"))
    if plots:
        from ctxext.report import multiples
        from ctxext.report.plots import SUFFIXES, save

        for number, headline in enumerate(found, 1):
            stem = name if len(found) == 1 else f"{name}--{number}"
            for suffix in SUFFIXES:
                written.append(folder / f"{stem}{suffix}")
                save(written[-1], partial(multiples.draw, headline))
    return written


def render_headlines(found: Sequence[aggregate.Headline], format: str = "md") -> str:
    """The tables of benchmarks' means as Markdown ("md") or one CSV ("csv").

    Raises:
        UsageError: another format.
    """
    if format not in ("md", "csv"):
        raise UsageError(f"--aggregate has no format {format!r}: give table, md or csv")
    some = [sheet for headline in found for sheet in aggregate.sheets(headline)]
    return sheets.to_csv(some) if format == "csv" else "\n".join(map(sheets.to_markdown, some))


def _ending(methods: Sequence[str]) -> str:
    """What the names of files end in that show these methods alone; "" for all."""
    text = "".join(f"--{safe_name(method, 40)}" for method in dict.fromkeys(methods))
    if len(text) <= _LONGEST:
        return text
    digest = sha256_of_text(repr(methods))
    return f"--{len(methods)}-methods--{digest[:8]}"


def _draw(folder: Path, records: list[Record], order: Sequence[str], ending: str) -> list[Path]:
    from ctxext.report import plots

    written = []
    for name, draw in _drawings(records, order).items():
        for suffix in plots.SUFFIXES:
            written.append(folder / f"{name}{ending}{suffix}")
            plots.save(written[-1], draw)
    return written


def figures(records: Iterable[Record], order: Sequence[str] = ()) -> dict[str, Any]:
    """Each plot and map by depth as a matplotlib figure in the caller's look, by the name that
    `write_files` gives it."""
    return {name: draw() for name, draw in _drawings(list(records), order).items()}


def _drawings(records: list[Record], order: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """What draws each plot and map by depth, by its name."""
    from ctxext.report import heatmaps, plots, series

    lines = {one.name: partial(plots.draw, one) for one in series.figures(records, order)}
    maps = {one.name: partial(heatmaps.draw, one) for one in heatmaps.heatmaps(records, order)}
    return {**lines, **maps}
