"""What was explained, as tables for a terminal and in Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctxext.advise.explain.study import Run, Study
from ctxext.notation import format_length
from ctxext.report import markdown
from ctxext.report.tables import NO_VALUE
from ctxext.system.names import printable
from ctxext.text import counted

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Sheet:
    """A table of texts; the first column of each row names it."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


def sheets(study: Study) -> list[Sheet]:
    """For each kind of layers that methods change its angles and distances; then the entropy."""
    found = []
    for number, kind in enumerate(study.kinds):
        if not kind.alone:
            found += [_angles(study, number), _distances(study, number)]
    if study.run is not None:
        found.append(_entropy(study, study.run))
    return found


def heading(study: Study, kind: int | None = None) -> str:
    """Model, length and, where there are several, the kind of layers."""
    at = f"{study.request.source.name} at {format_length(study.request.length)}"
    if kind is None or len(study.kinds) == 1:
        return at
    return f"{at}, {counted(study.kinds[kind].layers, f'{study.kinds[kind].name} layer')}"


def left_alone(study: Study) -> list[str]:
    """A line for each kind of layers that no method changes."""
    return [
        f"{counted(kind.layers, f'{kind.name} layer')} with a window of {kind.window} tokens, no "
        f"longer than the trained length {study.trained}: methods leave these as they are"
        for kind in study.kinds
        if kind.alone
    ]


def _methods(study: Study) -> list[str]:
    return [str(one.requested) for one in study.explained]


def _angles(study: Study, number: int) -> Sheet:
    """Pairs down, methods across."""
    blocks = [one.blocks[number] for one in study.explained]
    kind = blocks[0].kind
    plain = 2 * math.pi / np.where(kind.trained_theta > 0, kind.trained_theta, np.nan)
    rows = []
    for i, wavelength in enumerate(plain):
        cells = [
            f"{amount(b.angles.wavelength[i])} · {percent(b.angles.outside[i], b.angles.seen)}"
            for b in blocks
        ]
        rows.append([str(i), amount(wavelength), amount(study.trained / wavelength), *cells])
    shares = [percent(b.angles.outside.sum(), b.angles.seen * len(rows)) for b in blocks]
    rows.append(["all", "", "", *shares])
    rows.append(["keys seen", "", "", *(str(b.angles.seen) for b in blocks)])
    caption = (
        "Under each method: the wavelength in tokens · the share of the pair's angles, at the keys "
        "that the last query sees, that lie outside what training saw: one step of the pair or "
        f"more from every angle that it took at distances 0 to {study.trained - 1}; the trained "
        f"length is from {study.why}."
    )
    header = ["pair", "trained wavelength", f"turns in {study.trained}", *_methods(study)]
    return Sheet(f"{heading(study, number)}: angles by rotary pair", caption, header, rows)


def _distances(study: Study, number: int) -> Sheet:
    """True distances down, methods across."""
    distances = study.distances(number)
    effects = [one.blocks[number].effective(np.array(distances)) for one in study.explained]
    rows = [
        [str(d), *(_range(effect[:, row]) for effect in effects)] for row, d in enumerate(distances)
    ]
    caption = (
        "Tokens that a key stands behind the last query, and its effective relative position: "
        "where frequencies change, of the pair that is stretched most … least."
    )
    title = f"{heading(study, number)}: effective relative position by distance"
    return Sheet(title, caption, ["distance", *_methods(study)], rows)


def _range(effect: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    if np.isnan(effect).any():
        return NO_VALUE
    least, most = amount(effect[0]), amount(effect[-1])
    return least if least == most else f"{least} … {most}"


def _entropy(study: Study, run: Run) -> Sheet:
    """Methods down, bands of positions across; then each layer of each method."""
    far = run.entropies[0].far(study.trained)
    rows = [["spread evenly", *_by_band(study, run.entropies[0].ceiling[far].mean(0))]]
    for method, entropy in zip(_methods(study), run.entropies, strict=True):
        rows.append([method, *_by_band(study, entropy.nats[far].mean(0))])
    for method, entropy in zip(_methods(study), run.entropies, strict=True):
        for layer, nats in enumerate(entropy.nats if len(far) > 1 else []):
            rows.append([f"{method}, layer {layer}", *_by_band(study, nats)])
    left = f" ({int((~far).sum())} that see no further than T left out)" if not far.all() else ""
    caption = (
        f"Nats, a mean over heads, {counted(int(far.sum()), 'layer')}{left} and {run.about} of "
        f"{study.request.data}, {run.dtype}; then layer by layer. Spread evenly: ln of the keys "
        "that rope sees, the most there can be."
    )
    bands = [f"{format_length(a)}–{format_length(z)}" for a, z in study.bands()]
    title = f"{heading(study)}: entropy of attention by position"
    return Sheet(title, caption, ["method", *bands], rows)


def _by_band(study: Study, nats: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    return [f"{nats[a:z].mean():.3f}" for a, z in study.bands()]


def amount(value: float) -> str:
    """A number of tokens, or of turns: three digits, or all before the point."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else NO_VALUE
    if value >= 1e7:
        return f"{value:.3g}"
    digits = next((d for d, limit in ((0, 100), (1, 10), (2, 1)) if abs(value) >= limit), 3)
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(part: float, whole: float) -> str:
    """A share; what is not nothing does not look like nothing."""
    share = 100 * part / max(1, whole)
    return "0%" if not part else "<0.1%" if share < 0.1 else f"{share:.1f}%"


def to_rich(sheet: Sheet) -> RichTable:
    """For a terminal; no cell is broken, so print it with `crop=False`."""
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(printable(sheet.title)), caption=Text(printable(sheet.caption)))
    widths = [max(cell_len(t) for t in c) for c in zip(sheet.header, *sheet.rows, strict=True)]
    for number, label in enumerate(sheet.header):
        side: Literal["left", "right"] = "right" if number else "left"
        options: dict[str, Any] = {"min_width": widths[number], "no_wrap": True}
        table.add_column(Text(printable(label)), justify=side, **options)
    table.width = max(72, sum(widths) + 3 * len(widths) + 1)  # for the caption
    for row in sheet.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def to_markdown(sheet: Sheet) -> str:
    """A GitHub table under a heading."""
    header, *rows = [[*map(markdown.escape, line)] for line in (sheet.header, *sheet.rows)]
    return markdown.table(sheet.title, sheet.caption, header, rows)
