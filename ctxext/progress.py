"""Progress on stderr: a bar on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ctxext.registry import format_length
from ctxext.results import BENCH

if TYPE_CHECKING:
    from ctxext.monitor import Monitor
    from ctxext.results import Record


class Progress:
    """A context in which an evaluation's monitor shows what goes on.

    Args:
        silent: show nothing, as in all but one of several processes.
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._bar: Any = None
        self._task: Any = None
        self._left = 0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._silent:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def monitor(self) -> Monitor:
        """The functions that an evaluation calls."""
        from ctxext.monitor import Monitor

        if self._silent:
            return Monitor()
        return Monitor(self._plan, self._begin, self._advance, self._done, self._say)

    def _plan(self, groups: int, tokens: int) -> None:
        self._say(f"{groups} method × length to compute, {tokens:,} tokens to read")
        if self._bar is not None:
            self._task = self._bar.add_task("", total=tokens)

    def _begin(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def _advance(self, tokens: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, tokens)

    def _done(self, record: Record) -> None:
        path = f" on {record['attention']}" if record["task"] == BENCH else ""
        what = record["metric"] if record["task"] in ("ppl", "acc", BENCH) else record["task"]
        at = f"{record['requested']}{path} {format_length(record['length'])} {what}"
        if record["status"] == "ok":
            self._say(f"{at} {record['value']:.4f} ({record['seconds']:.1f} s)")
        else:
            self._say(f"{at} {record['status']}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
