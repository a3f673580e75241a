"""Work on the patched model, again with less at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.engine.patch import Handle, patched
from ctxext.errors import ENDS_RUN, OutputError
from ctxext.measure.attempts import Attempt
from ctxext.measure.failure import Failure
from ctxext.measure.memory import release
from ctxext.measure.meter import Meter
from ctxext.measure.workers import Workers
from ctxext.models.loading import Source
from ctxext.request.cells import Cell
from ctxext.tasks.base import TokenTask


class Tries:
    """Runs what cells need of a model, in all processes alike.

    Args:
        note: told, in a line, of what is tried again.

    Attributes:
        options: how the model is patched, whatever the method.
    """

    def __init__(
        self, model: Any, source: Source, workers: Workers, note: Callable[[str], None]
    ) -> None:
        self._model, self._workers, self._note = model, workers, note
        self.options: dict[str, Any] = {
            "train_len": source.train_len,
            "own_scaling": source.own_scaling,
            "attn": source.attn,
        }

    def run(
        self, cell: Cell, tries: Sequence[Attempt], work: Callable[[Attempt], Any]
    ) -> tuple[list[Any] | Failure, dict[str, Any], Handle | None]:
        """What the work gives in every process on the patched model, or the failure of one.

        Where memory runs out in any process, all go on to the next attempt.
        """
        for tried, attempt in enumerate(tries, 1):
            found, cost, handle = self._try(cell, attempt, work)
            cost |= {"batch_size": attempt.batch, "prefill_chunk": attempt.chunk}
            if not (isinstance(found, Failure) and found.short_of_memory):
                return found, cost, handle
            release()
            if tried < len(tries):
                self._note(
                    f"{cell.requested} at {cell.length}, {cell.asked} ran out of memory with "
                    f"{attempt}: again with {tries[tried]}"
                )
        assert isinstance(found, Failure)
        return found.after(list(map(str, tries))), cost, handle

    def _try(
        self, cell: Cell, attempt: Attempt, work: Callable[[Attempt], Any]
    ) -> tuple[list[Any] | Failure, dict[str, Any], Handle | None]:
        """One attempt of `run`; OutputError where one process cannot keep what it has found."""
        meter, handle, outcome = Meter(str(self._model.device)), None, None
        options = self.options
        try:
            with patched(self._model, cell.method, cell.length, **options) as handle:
                if not _by_sequence(cell):
                    outcome = work(attempt)
            if _by_sequence(cell):
                outcome = work(attempt)
        except OutputError as error:
            outcome = OutputError(str(error))
        except ENDS_RUN:
            raise
        except BaseException as error:  # a tokenizer's core may panic
            outcome = Failure.of(error)
        cost: dict[str, Any] = {"tokens_per_second": None, **meter.read()}
        everyone = self._workers.gather((outcome, cost["peak_memory_bytes"]))
        peaks = [peak for _, peak in everyone if peak is not None]
        cost["peak_memory_bytes"] = max(peaks, default=None)
        outcomes = [one for one, _ in everyone]
        for lost in (one for one in outcomes if isinstance(one, OutputError)):
            raise lost
        failures = [one for one in outcomes if isinstance(one, Failure)]
        failures.sort(key=lambda one: one.short_of_memory)  # what less memory would not help first
        return (failures[0] if failures else outcomes), cost, handle


def _by_sequence(cell: Cell) -> bool:
    """Whether each of its sequences has a length of its own, by which the unpatched model reads
    it; else L is that of all."""
    return cell.method.unpatched and not isinstance(cell.task, TokenTask)
