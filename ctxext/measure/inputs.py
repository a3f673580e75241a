"""What the cells of a plan read: windows of tokens, and prompts, one cell's at a time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ctxext.errors import ENDS_RUN, UsageError
from ctxext.measure import tokens as reading
from ctxext.measure.failure import Failure, Refusals
from ctxext.measure.loaded import Loaded
from ctxext.request.cells import Cell, Plan
from ctxext.tasks.base import Sample, SampleTask, TokenTask
from ctxext.tasks.windows import Windows


class Inputs:
    """The tokenizer, and what it makes of the data of some cells; no weights are read.

    Args:
        loaded: what was loaded before.

    Attributes:
        cells: those of which it has what they read.
        refusals: why others cannot be measured: the data is too short for a window, or a prompt
            does not fit into the length.
        data_tokens: tokens of the text that windows are cut from.

    Raises:
        UsageError: the tokenizer cannot be had.
    """

    def __init__(self, plan: Plan, cells: Sequence[Cell], loaded: Loaded) -> None:
        self._plan, self.data_tokens, self.refusals = plan, 0, Refusals()
        self.tokenizer: Any = loaded.tokenizer(plan.source, plan.identity.sha256)
        self._windows: dict[tuple[Any, ...], Windows] = {}
        self._made: tuple[tuple[Any, ...], list[Sample] | Failure] | None = None
        self._sizes: dict[tuple[Any, ...], Sequence[int] | None] = {}
        self._cut([cell for cell in cells if isinstance(cell.task, TokenTask)], loaded)
        self._check([cell for cell in cells if isinstance(cell.task, SampleTask)])
        self.cells = [cell for cell in cells if self.refusals.of(place(cell)) is None]

    def windows(self, cell: Cell) -> Windows:
        """What a token task's cell reads; the same object for cells that read the same."""
        return self._windows[place(cell)]

    def lacks(self, cell: Cell) -> bool:
        """Whether the cell's prompts are still to be made."""
        held = self._made is not None and self._made[0] == place(cell)
        return place(cell) in self._sizes and not held

    def samples(self, cell: Cell) -> list[Sample] | Failure:
        """The prompts of a sample task's cell, or why there are none.

        They are made when they are asked for, and kept until others are.
        """
        if self._made is None or self._made[0] != place(cell):
            self._made = None  # before the others are made
            self._made = place(cell), self._prompts(cell)
        return self._made[1]

    def sizes(self, cell: Cell) -> Sequence[int] | None:
        """About how many tokens each prompt of a sample task's cell has, where that is known."""
        return self._sizes.get(place(cell))

    def first(self, cell: Cell, count: int) -> list[Sample]:
        """So many of the first prompts of a sample task's cell; errors as for its task's."""
        return self._drawn(cell, count)

    def shared(self, cell: Cell) -> tuple[object, ...]:
        """What cells that share a forward have in common."""
        read = id(self.windows(cell)) if isinstance(cell.task, TokenTask) else self._plan.key(cell)
        return str(cell.requested), cell.length, read

    def tokens(self, cell: Cell) -> int:
        """The tokens that the cell reads, about where its prompts are not made yet; 0 where that
        is not known, or it is refused."""
        if windows := self._windows.get(place(cell)):
            return windows.tokens
        where, made = self._made or (None, [])
        if where == place(cell) and not isinstance(made, Failure):
            return prompt_tokens(made)
        return sum(self.sizes(cell) or ())

    def _cut(self, cells: Sequence[Cell], loaded: Loaded) -> None:
        """The windows of the tasks over tokens, which read the same text."""
        if not cells:
            return
        request, text = self._plan.request, cells[0].data
        with self.refusals.guard(*map(place, cells)):
            ids = loaded.ids(text, self.tokenizer, request.text_tokens)  # type: ignore[arg-type]
            start, self.data_tokens = reading.start_token(self.tokenizer), len(ids)
        for cell in cells:
            if not isinstance(cell.task, TokenTask) or self._is_known(cell):
                continue
            with self.refusals.guard(place(cell)):
                try:
                    found = cell.task.windows(
                        ids, cell.length, start, request.limit, self._plan.identity.trained
                    )
                except UsageError as error:
                    raise UsageError(f"data {text.name!r}: {error}") from None
                self._windows[place(cell)] = self._once(found)

    def _is_known(self, cell: Cell) -> bool:
        """Whether it is settled what the cell reads, or that it cannot."""
        known = place(cell) in self._windows or place(cell) in self._sizes
        return known or self.refusals.of(place(cell)) is not None

    def _once(self, windows: Windows) -> Windows:
        """The windows, or the same ones that another task has."""
        for other in self._windows.values():
            if windows.same(other):
                return other
        return windows

    def _check(self, cells: Sequence[Cell]) -> None:
        """Refuse cells whose prompts do not fit; the sizes of the others'."""
        for cell in cells:
            if isinstance(cell.task, SampleTask) and not self._is_known(cell):
                with self.refusals.guard(place(cell)):
                    cell.task.check(self.tokenizer, cell.length, cell.data, cell.seed)
                    limit = self._plan.request.limit
                    self._sizes[place(cell)] = cell.task.sizes(cell.length, cell.data, limit)

    def _prompts(self, cell: Cell) -> list[Sample] | Failure:
        try:
            return self._drawn(cell, self._plan.request.limit)
        except ENDS_RUN:
            raise
        except BaseException as error:  # a tokenizer's core may panic
            return Failure.of(error)

    def _drawn(self, cell: Cell, limit: int | None) -> list[Sample]:
        """UsageError where a prompt does not fit into its length with its answer."""
        task: Any = cell.task
        most = task.generates
        samples = task.prompts(self.tokenizer, cell.length, cell.data, cell.seed, limit)
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
        return [replace(sample, ids=array("i", sample.ids)) for sample in samples]


def prompt_tokens(samples: Sequence[Sample]) -> int:
    """The tokens of all prompts."""
    return sum(len(sample.ids) for sample in samples)


def place(cell: Cell) -> tuple[Any, ...]:
    """What tells the windows or samples of a cell from others."""
    return str(cell.task), cell.length, cell.seed
