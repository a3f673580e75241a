"""Estimates as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ctxext.measure.costs.cells import Estimate
from ctxext.notation import format_length
from ctxext.system.names import printable
from ctxext.text import counted, format_seconds

UNKNOWN = "–"


def to_rich(found: Sequence[Estimate]) -> list[Any]:
    """A table for each model and text."""
    places = dict.fromkeys((one.model, one.cell.data.name) for one in found)
    return [_table(place, found) for place in places]


def _table(place: tuple[str, str], found: Sequence[Estimate]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(" · ".join(place))), title_justify="left")
    for name in ("method", "len", "task", "seed"):
        table.add_column(name, overflow="fold", justify="right" if name == "len" else "left")
    table.add_column("record")
    for name in ("tokens", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        if (one.model, one.cell.data.name) == place:
            table.add_row(*(Text(text) for text in _row(one)))
    return table


def _row(one: Estimate) -> list[str]:
    cell = one.cell
    asked = [str(cell.requested), format_length(cell.length), str(cell.asked), str(cell.seed)]
    tokens = UNKNOWN if one.tokens is None else f"{one.tokens:,}"
    time = UNKNOWN if one.seconds is None else _range(one.seconds, one.most)
    memory = UNKNOWN if one.memory is None else size(one.memory)
    if one.shared:
        tokens = time = "shared"
    return [*asked, one.state, tokens, time, memory]


def totals(found: Sequence[Estimate]) -> str:
    """How many cells there are, and what those that are not found yet take together."""
    states = Counter(one.state for one in found)
    said = ", ".join(f"{count} {state}" for state, count in states.items())
    left = [one for one in found if one.state not in ("found", "refused")]
    unknown = sum(one.seconds is None for one in left)
    seconds, most = (sum(getattr(one, end) or 0.0 for one in left) for end in ("seconds", "most"))
    peak = max((one.memory or 0 for one in left), default=0)
    cells = counted(len(found), "cell")
    line = f"{cells}: {said}; about {_range(seconds, most)}"
    if unknown:
        line += f" and {counted(unknown, 'cell')} of unknown time"
    return f"{line}; up to {size(peak)} at once" if peak else line


def _range(least: float, most: float | None) -> str:
    """`19 s`, or `19 s to 25 s` where what was measured differs."""
    ends = dict.fromkeys(format_seconds(x) for x in (least, least if most is None else most))
    return " to ".join(ends)


def size(count: float) -> str:
    """Bytes in MiB, or from one on in GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
