"""Reports from record files alone: tables (Markdown, CSV, terminal) and loss by position.

Scores come first; the speed and memory that bench records carry have tables of their own.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctxext.errors import UsageError
from ctxext.report import groups, speed, tables
from ctxext.results import Record, safe_name, write_atomically

if TYPE_CHECKING:
    from rich.table import Table as RichTable

FORMATS = ("md", "csv")
_SAME_LOSSES = ("ppl", "acc")  # tasks over the same tokens, which one plot is enough for


def render(records: Iterable[Record], format: str = "md", order: Sequence[str] = ()) -> str:
    """All tables as Markdown ("md") or as one CSV ("csv"); methods in `order`.

    Where there are bench records the CSV has more columns: a path, a device and a ratio.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown report format {format!r}; valid: {', '.join(FORMATS)}")
    records = list(records)
    scores, speeds = tables.build(records, order), speed.build(records, order)
    if format == "csv":
        rows = itertools.chain(tables.csv_rows(scores), speed.csv_rows(speeds))
        return tables.write_csv(tables.CSV + (speed.CSV if speeds else ()), rows)
    texts = (*map(tables.to_markdown, scores), *map(speed.to_markdown, speeds))
    return "\n".join(texts) or "No records.\n"


def to_rich(
    records: Iterable[Record], order: Sequence[str] = (), width: int | None = None
) -> list[RichTable]:
    """All tables for a terminal of `width` characters; they may be wider, so do not crop them."""
    records = list(records)
    scores, speeds = tables.build(records, order), speed.build(records, order)
    return [
        *(tables.to_rich(table, width) for table in scores),
        *(speed.to_rich(table, width) for table in speeds),
    ]


def write_files(folder: str | Path, records: Iterable[Record]) -> list[Path]:
    """Write `tables.md`, and for each group `loss-by-position--MODEL--DATA.png` or, where there
    are results by depth, `depth--MODEL--TASK--DATA.png`; their paths.

    Where several groups have the same model and data, the name goes on with what tells them
    apart, such as the task or the dtype.
    """
    from ctxext.report import heatmaps, plots

    folder, records = Path(folder), list(records)
    written = [folder / "tables.md"]
    write_atomically(written[0], render(records, "md").encode("utf-8", "replace"))
    losses = [record for record in records if record["task"] in _SAME_LOSSES]
    others = [record for record in records if record["task"] not in _SAME_LOSSES]
    drawn = [
        *((plots.loss_by_position, some) for some in _figures(losses, ("task", "metric")).items()),
        *((plots.loss_by_position, some) for some in _figures(others).items()),
        *((heatmaps.by_depth, some) for some in _figures(others, start="depth").items()),
    ]
    for draw, (name, members) in drawn:
        path = folder / name
        if draw(members, path):
            written.append(path)
    return written


def _figures(
    records: Iterable[Record], ignore: Sequence[str] = (), start: str = "loss-by-position"
) -> dict[str, list[Record]]:
    """File name → records of one group, which may differ in the fields in `ignore`."""
    drawn = groups.grouped(records, ignore=ignore)
    names: dict[str, list[Record]] = {}
    taken = set()
    for group, members in drawn.items():
        always = ("model", "data") if ignore else ("model", "task", "data")
        parts = groups.describe(group, drawn, always)
        name = "--".join([start, *(safe_name(part, 40) for part in parts)])
        if name.casefold() in taken:
            name += f"--{hashlib.sha256(repr(group).encode('utf-8', 'replace')).hexdigest()[:8]}"
        taken.add(name.casefold())
        names[f"{name}.png"] = members
    return names
