"""What the cells of a plan read: windows of tokens, and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxext.errors import UsageError
from ctxext.measure import tokens as reading
from ctxext.models import loading
from ctxext.plan import Cell, Plan
from ctxext.tasks.base import Sample, SampleTask, TokenTask, Windows


class Inputs:
    """The tokenizer, and what it makes of the data of some cells; no weights are read.

    Attributes:
        cells: those of which it has what they read.
        data_tokens: tokens of the text that windows are cut from.

    Raises:
        UsageError: the data is too short for a window, or a prompt does not fit into its length.
    """

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self._plan, self.cells, self.data_tokens = plan, cells, 0
        self.tokenizer: Any = loading.load_tokenizer(plan.source)
        self._windows: dict[tuple[str, int, int], Windows] = {}
        self._samples: dict[tuple[str, int, int], list[Sample]] = {}
        self._cut([cell for cell in cells if isinstance(cell.task, TokenTask)])
        self._draw([cell for cell in cells if isinstance(cell.task, SampleTask)])

    def windows(self, cell: Cell) -> Windows:
        """What a token task's cell reads; the same object for cells that read the same."""
        return self._windows[_place(cell)]

    def samples(self, cell: Cell) -> list[Sample]:
        """The prompts of a sample task's cell."""
        return self._samples[_place(cell)]

    def shared(self, cell: Cell) -> tuple[object, ...]:
        """What cells that share a forward have in common."""
        read = id(self.windows(cell)) if isinstance(cell.task, TokenTask) else self._plan.key(cell)
        return str(cell.requested), cell.length, read

    def tokens(self, cell: Cell) -> int:
        """The tokens that the cell reads; 0 where another library draws them."""
        if isinstance(cell.task, TokenTask):
            return self.windows(cell).tokens
        return prompt_tokens(self.samples(cell)) if isinstance(cell.task, SampleTask) else 0

    def _cut(self, cells: Sequence[Cell]) -> None:
        """The windows of the tasks over tokens, which read the same text."""
        if not cells:
            return
        request, text = self._plan.request, cells[0].data
        ids = reading.tokenise(text, self.tokenizer, request.tokens)  # type: ignore[arg-type]
        start, self.data_tokens = reading.start_token(self.tokenizer), len(ids)
        for cell in cells:
            if isinstance(cell.task, TokenTask) and _place(cell) not in self._windows:
                try:
                    found = cell.task.windows(
                        ids, cell.length, start, request.limit, self._plan.identity.trained
                    )
                except UsageError as error:
                    raise UsageError(f"data {text.name!r}: {error}") from None
                self._windows[_place(cell)] = self._once(found)

    def _once(self, windows: Windows) -> Windows:
        """The windows, or the same ones that another task has."""
        for other in self._windows.values():
            if windows.same(other):
                return other
        return windows

    def _draw(self, cells: Sequence[Cell]) -> None:
        """The prompts; UsageError where one does not fit into its length with its answer."""
        for cell in cells:
            if _place(cell) in self._samples or not isinstance(cell.task, SampleTask):
                continue
            limit, most = self._plan.request.limit, cell.task.generates
            samples = cell.task.prompts(self.tokenizer, cell.length, cell.data, cell.seed, limit)
            if not samples:
                raise UsageError(f"{cell.asked}: no samples in data {cell.data.name!r}")
            if len({sample.name for sample in samples}) < len(samples):
                raise UsageError(f"{cell.asked}: two of its samples have the same name")
            longest = max(samples, key=lambda sample: len(sample.ids))
            if len(longest.ids) + most > cell.length:
                raise UsageError(
                    f"{cell.asked}, sample {longest.name}: its prompt of {len(longest.ids)} tokens "
                    f"and its answer of {most} are longer than --len {cell.length}: give at least "
                    f"{len(longest.ids) + most}"
                )
            self._samples[_place(cell)] = samples


def prompt_tokens(samples: Sequence[Sample]) -> int:
    """The tokens of all prompts."""
    return sum(len(sample.ids) for sample in samples)


def _place(cell: Cell) -> tuple[str, int, int]:
    """What tells the windows or samples of a cell from others."""
    return str(cell.task), cell.length, cell.seed
