"""One HTML page with everything that records show: it needs no network and no other file.

Tables are sorted by a click on a header, plots tell the values under the pointer. Without scripts
both can still be read. The template escapes every text, and the page itself forbids its browser
to load anything and to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ctxext.records import Record
from ctxext.report import effective, speed, tables
from ctxext.report.heatmaps import heatmaps
from ctxext.report.page import depth, plot, sheet
from ctxext.report.series import figures

_HERE = Path(__file__).parent


def render(records: Iterable[Record], order: Sequence[str] = ()) -> str:
    """The page in ASCII, so that no encoding spoils it; methods in `order`.

    The same records give the same text.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    script = _ours("page.js")
    text = environment.get_template("page.html").render(
        title="ctxext report",
        parts=_parts(list(records), order),
        markers=plot.MARKERS,
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        style=Markup(_ours("page.css")),
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _parts(records: list[Record], order: Sequence[str]) -> list[dict[str, Any]]:
    """What the page shows, from top to bottom."""
    looks = plot.looks(records, order)
    return [
        *map(sheet.of_scores, tables.build(records, order)),
        *(plot.of_lines(figure, looks) for figure in figures(records, order)),
        *map(depth.of_maps, heatmaps(records, order)),
        *map(sheet.of_words, effective.sheets(records, order)),
        *map(sheet.of_speed, speed.build(records, order)),
    ]


def _ours(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
