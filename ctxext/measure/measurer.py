"""Measures the cells of one plan: what they read and the model are there once one needs them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ctxext.errors import ENDS_RUN
from ctxext.measure.failure import Failure
from ctxext.measure.inputs import place
from ctxext.measure.loaded import Loaded
from ctxext.measure.monitor import Monitor, Step
from ctxext.measure.outcome import Measured
from ctxext.measure.workers import Workers
from ctxext.notation import format_length
from ctxext.request.cells import Cell, Plan
from ctxext.text import format_seconds

if TYPE_CHECKING:
    from ctxext.measure.inputs import Inputs
    from ctxext.measure.session import Session

Left = Callable[[str], Mapping[str, float]]
_LONG = 5.0  # seconds of making prompts, after which a line tells of it


class Measurer:
    """The inputs and the session of a plan, or what broke them.

    Args:
        loaded: what the plans before this one have loaded.
        left: what all cells take together, by kind, that are neither done nor that of a key.

    Attributes:
        monitor: told what is done.
        costs: of each cell, by key: its kind, and what it takes beside others of that.
        session: the loaded model, if it came to that.
    """

    def __init__(self, plan: Plan, workers: Workers, loaded: Loaded, monitor: Monitor, left: Left):
        self._plan, self._workers, self._loaded = plan, workers, loaded
        self.monitor, self._left = monitor, left
        self._inputs: Inputs | None = None
        self._broken: Failure | None = None
        self._agreed = False
        self.session: Session | None = None
        self.costs: dict[str, tuple[str, float]] = {}

    def prepare(self, new: Sequence[Cell]) -> None:
        """Read the data of cells, so that their costs are known; prompts are made when their cell
        is computed."""
        if new:
            from ctxext.measure.costs import relative_costs
            from ctxext.measure.inputs import Inputs

            with self._breaking():
                self._inputs = Inputs(self._plan, new, self._loaded)
            if self._inputs is not None:
                with contextlib.suppress(Exception):  # then nothing tells how long it will take
                    self.costs = relative_costs(self._plan, self._inputs)

    def agree(self, new: Callable[[], Sequence[Cell]]) -> None:
        """Have what the new cells read, and let every process refuse what one of them does."""
        if self._agreed:
            return
        if self._inputs is None and self._broken is None:
            self.prepare(new())
        self._broken = next(filter(None, self._workers.gather(self._broken)), None)
        if self._inputs is not None and self._broken is None:
            self._inputs.refusals.agree(self._workers)
        self._agreed = True

    def refusal(self, cell: Cell) -> Failure | None:
        """Why a cell cannot be measured, as far as that is known."""
        if cell.refusal is not None:
            return Failure.refusal(cell.refusal)
        if self._broken is not None:
            return self._broken
        if self.session is not None:
            return self.session.refusal(cell)
        return self._inputs.refusals.of(place(cell)) if self._inputs else None

    def measure(self, cells: Sequence[Cell]) -> Iterator[Measured]:
        """What becomes of each cell, one after another."""
        whys = [(cell, self.refusal(cell)) for cell in cells]
        measured = self._measure_fit([cell for cell, why in whys if why is None])
        return (Measured.failed(cell, why) if why else next(measured) for cell, why in whys)

    def _measure_fit(self, cells: list[Cell]) -> Iterator[Measured]:
        if not cells:
            return iter(())
        if self.session is None and self._broken is None:
            self._start()
        if self.session is not None:
            self.session.monitor = self.monitor
            return self.session.measure(cells)
        assert self._broken is not None
        return (Measured.failed(cell, self._broken) for cell in cells)

    def _start(self) -> None:
        """The session that measures all cells that are not found yet."""
        from ctxext.measure.session import Session

        session = None
        if self._inputs is not None and self._broken is None:
            self.monitor.begin(Step(f"loading {self._plan.source.name}", left=self._left("")))
            with self._breaking():
                session = Session(
                    self._plan, self._inputs, self._workers, self.monitor, self._loaded
                )
        self._broken = next(filter(None, self._workers.gather(self._broken)), None)
        if session is not None and self._broken is None:
            session.agree()
            self.session = session

    def begin(self, cell: Cell) -> None:
        """Tell of a cell that is computed from now on, and of what is left after it."""
        where = f"{format_length(cell.length)} {cell.asked}"
        key = self._plan.key(cell)
        kind, cost = self.costs.get(key, ("", math.nan))
        if self.session is not None and self._inputs and self._inputs.lacks(cell):
            start = time.monotonic()
            self.monitor.begin(Step(f"making the prompts of {where}", left=self._left("")))
            self._inputs.samples(cell)
            if (took := time.monotonic() - start) > _LONG:
                self.monitor.note(f"made the prompts of {where} ({format_seconds(took)})")
        tokens = self._inputs.tokens(cell) // self._workers.count if self._inputs else 0
        what = f"{cell.requested} {where}"
        self.monitor.begin(Step(what, tokens, kind, cost, self._left(key)))

    def close(self) -> None:
        """Let go of the model, and of what it reads."""
        self.session = self._inputs = None

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """What fails in the block becomes the failure of each cell."""
        try:
            yield
        except ENDS_RUN:
            raise
        except BaseException as error:
            self._broken = Failure.of(error)
