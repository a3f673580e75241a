"""Progress on stderr: two lines that change on a terminal, a line per cell elsewhere, in Jupyter
too."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ctxext.measure.monitor import Monitor, Step
from ctxext.notation import format_length
from ctxext.records import BENCH
from ctxext.system.names import printable
from ctxext.text import counted, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from ctxext.records import Record

HEARTBEAT = 60.0  # seconds between two lines about one cell
REDRAWN = 4  # times a second
ECHO = 3  # columns where a terminal may echo ^C without a new line
KERNEL = "JPY_PARENT_PID"  # set in a Jupyter kernel, whose `!command` has a terminal of one line
WIDE = 96  # columns from which bars are longer


class Course:
    """How far a run is, and how long the rest takes by what was measured in it.

    Attributes:
        cells: how many there are; `over` of them are done or were there, `failed` of them failed.
        step: what is going on; `read` tokens of it are read.
    """

    def __init__(self) -> None:
        self.cells = self.over = self.failed = self.read = 0
        self.step = Step("")
        self._start = self._begun = time.monotonic()
        self._seconds, self._costs = dict[str, float](), dict[str, float]()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float | None:
        """Tokens a second of the cell, so far."""
        return self.read / self._running if self.read and self._running > 0 else None

    @property
    def share(self) -> float:
        """The share of the cell's tokens that are read; 0 where these are not known."""
        return min(1.0, self.read / self.step.tokens) if self.step.tokens else 0.0

    @property
    def _running(self) -> float:
        return time.monotonic() - self._begun

    def begin(self, step: Step) -> None:
        """A cell begins."""
        self.step, self.read, self._begun = step, 0, time.monotonic()

    def end(self) -> None:
        """The cell has ended."""
        if self.step.cost > 0:
            self._seconds = _plus(self._seconds, self.step.kind, self._running)
            self._costs = _plus(self._costs, self.step.kind, self.step.cost)
        self.begin(Step("", left=self.step.left))

    def eta(self) -> float | None:
        """Seconds to the end of the last cell; None where nothing tells.

        Each kind of cells goes at its own pace, what is read of the present cell included; those
        of which none was measured yet go at the mean pace.
        """
        seconds, costs, left, step = self._seconds, self._costs, dict(self.step.left), self.step
        if step.cost != 0:
            seconds = _plus(seconds, step.kind, self._running if self.share else 0.0)
            costs = _plus(costs, step.kind, self.share * step.cost)
            left = _plus(left, step.kind, (1 - self.share) * step.cost)
        if not any(cost > 0 for cost in costs.values()):
            return None
        if not any(left.values()):
            return 0.0
        mean = sum(seconds.values()) / sum(costs.values())
        paces = {kind: seconds[kind] / cost for kind, cost in costs.items() if cost}
        whole = sum(cost * paces.get(kind, mean) for kind, cost in left.items() if cost)
        return None if math.isnan(whole) else whole


def _plus(counts: dict[str, float], kind: str, more: float) -> dict[str, float]:
    return {**counts, kind: counts.get(kind, 0.0) + more}


class Progress:
    """A context in which a run's monitor shows what goes on.

    Args:
        silent: show nothing, as in all but one of several processes.
        unit: what is counted, one of it.
    """

    def __init__(self, silent: bool = False, unit: str = "cell") -> None:
        self._silent, self._unit = silent, unit
        self._course = Course()
        self._live: Any = None
        self._console: Any = None
        self._said, self._counted = time.monotonic(), False

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._silent and KERNEL not in os.environ:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(stderr=True)
            self._live = Live(
                console=self._console,
                get_renderable=self._drawn,
                refresh_per_second=REDRAWN,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def monitor(self) -> Monitor:
        """The functions that a run calls."""
        if self._silent:
            return Monitor()
        shown = (self._plan, self._begin, self._advance, self._done, self._say)
        return Monitor(*shown, self._outside)

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        """The two lines are taken off the terminal, for what draws on it in the block."""
        if self._live is None:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def _plan(self, cells: int, found: int) -> None:
        self._course.cells, self._course.over = cells, found
        if found == cells:
            self._say(f"{counted(cells, self._unit)}, {'all of them ' * (cells > 1)}found")

    def _begin(self, step: Step) -> None:
        """A cell begins; before the first one, all having been checked, say how many there are."""
        course, first = self._course, step.cost != 0 and not self._counted
        course.begin(step)
        if first:
            self._counted = True
            found = f", {course.over} of them found" if course.over else ""
            self._say(f"{counted(course.cells, self._unit)}{found}")

    def _advance(self, tokens: int) -> None:
        self._course.read += tokens
        if self._live is None and time.monotonic() - self._said >= HEARTBEAT:
            self._say(f"{self._place(1)} {self._course.step.what} {self._inside(self._reading())}")

    def _done(self, record: Record | None) -> None:
        self._course.end()
        self._course.over += 1
        if record is None:
            return
        self._course.failed += record["status"] != "ok"
        path = f" on {record['attention']}" if record["task"] == BENCH else ""
        what = record["metric"] if record["task"] in ("ppl", "acc", BENCH) else record["task"]
        at = f"{record['requested']}{path} {format_length(record['length'])} {what}"
        if record["status"] == "ok":
            line = f"{self._place()} {at} {record['value']:.4f}"
        else:
            line = f"{self._place()} {at} {record['status']}"
        rate = record["tokens_per_second"]
        took = format_seconds(record["seconds"] or 0.0)
        self._say(f"{line} {self._inside(took, f'{rate:,.0f} tokens/s' if rate else '')}")

    def _inside(self, *parts: str) -> str:
        """In parentheses, with the ETA where it does not stand below."""
        return f"({', '.join(filter(None, (*parts, '' if self._live else self._eta())))})"

    def _place(self, more: int = 0) -> str:
        return f"[{self._course.over + more}/{self._course.cells}]"

    def _eta(self) -> str:
        eta = self._course.eta() if self._course.over < self._course.cells else None
        return "" if eta is None else f"ETA {format_seconds(eta)}"

    def _reading(self) -> str:
        """What is read of the cell, and how quickly."""
        course = self._course
        if not course.step.tokens:
            return ""
        rate = f", {course.rate:,.0f}/s" if course.rate else ""
        return f"{course.read:,}/{course.step.tokens:,} tokens{rate}"

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        if self._live is not None:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(line), file=sys.stderr, flush=True)

    def _drawn(self) -> Table:
        """The whole run, and below it the present cell."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        course, width = self._course, self._console.width - ECHO
        wide = width >= WIDE
        failed = f", {course.failed} failed" if course.failed else ""
        times = ", ".join(filter(None, (format_seconds(course.elapsed), self._eta())))
        whole = (course.over + course.share) / max(1, course.cells)
        cells = "starting"
        if course.cells:
            cells = f"{course.over} of {counted(course.cells, self._unit)}{failed}"
        table = Table.grid(padding=(0, 2), expand=True)
        table.width = max(1, width)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(width=24 if wide else 12)
        table.add_column(width=36 if wide else 29, no_wrap=True, overflow="ellipsis")
        rows = ((cells, whole, times), (course.step.what, course.share, self._reading()))
        for left, share, right in rows:
            bar = ProgressBar(total=1.0, completed=share) if right else ""
            table.add_row(Text(printable(left)), bar, Text(right))
        return table
