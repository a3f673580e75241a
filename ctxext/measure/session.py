"""One model, loaded once, and what is measured with it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxext.engine.patch import Handle, patched
from ctxext.errors import ENDS_RUN, CtxextError, OutputError
from ctxext.measure import helped, predictions
from ctxext.measure import tokens as reading
from ctxext.measure.answers import Limits, answers, row_of, share
from ctxext.measure.attempts import Attempt, attempts, halves, reads_in_parts
from ctxext.measure.failure import Failure
from ctxext.measure.forwards import Forwards, Spent
from ctxext.measure.inputs import Inputs, place, prompt_tokens
from ctxext.measure.loaded import Loaded
from ctxext.measure.monitor import Monitor
from ctxext.measure.outcome import Measured, of_harness, of_rows, of_tokens
from ctxext.measure.tries import Tries
from ctxext.measure.workers import Workers
from ctxext.request.cells import Cell, Plan
from ctxext.tasks.base import (
    HarnessTask,
    Helped,
    Row,
    Sample,
    SampleTask,
    Score,
    TokenScores,
    TokenTask,
)
from ctxext.tasks.windows import Windows


class Session:
    """The model, and what the new cells of a plan read.

    Args:
        loaded: what sessions before this one have loaded.

    Raises:
        UsageError: the model cannot be had.
    """

    def __init__(
        self, plan: Plan, inputs: Inputs, workers: Workers, monitor: Monitor, loaded: Loaded
    ) -> None:
        self._plan, self._inputs, self._workers, self.monitor = plan, inputs, workers, monitor
        self._request, self._tokenizer = plan.request, inputs.tokenizer
        self._refusals, self._loaded = inputs.refusals, loaded
        self._helped = dict[tuple[Windows, Helped], NDArray[np.bool_] | Failure]()
        for cell in inputs.cells:
            if isinstance(cell.task, HarnessTask):
                with self._refusals.guard(place(cell)):
                    cell.task.check(self._request.limit)
        with monitor.outside():
            self.model = loaded.model(plan.source, plan.identity.sha256, monitor.note)
        self._in_parts = reads_in_parts(self.model)
        source = self._request.source
        self._tries = Tries(self.model, source, workers, lambda line: self.monitor.note(line))
        self._try_patches(inputs.cells)

    def agree(self) -> None:
        """Let every process refuse what one of them does; all must come here."""
        self._refusals.agree(self._workers)

    def data_tokens_of(self, cell: Cell) -> int:
        """The tokens of the data that windows are cut from; 0 for tasks that cut none."""
        if not isinstance(cell.task, TokenTask):
            return 0
        most, limit = self._inputs.data_tokens, self._request.limit
        needs = None if limit is None else cell.task.reads(cell.length, limit)
        return most if needs is None else min(most, needs)

    def measure(self, cells: Sequence[Cell]) -> Iterator[Measured]:
        """The cells of one method and length; those that read the same windows share a forward."""
        scored: dict[int, tuple[Any, dict[str, Any], Handle | None]] = {}
        for cell in cells:
            if (refusal := self.refusal(cell)) is not None:
                yield Measured.failed(cell, refusal)
                continue
            if isinstance(cell.task, TokenTask):
                windows = self._inputs.windows(cell)
                if id(windows) not in scored:
                    scored[id(windows)] = self._score(cell, windows)
                found, cost, handle = scored[id(windows)]
                if (rule := cell.task.helped) and not isinstance(found, Failure):
                    found = self._of_helped(windows, rule, found)
                yield self._settle(cell, found, cost, handle, of_tokens)
            elif isinstance(cell.task, SampleTask):
                yield self._answer(cell, cell.task)
            elif isinstance(cell.task, HarnessTask):
                yield self._harness(cell, cell.task)

    def refusal(self, cell: Cell) -> Failure | None:
        """Why a cell cannot be measured."""
        return self._refusals.of(place(cell), _state(cell))

    def _try_patches(self, new: Sequence[Cell]) -> None:
        """Put each method on once, so that what it refuses is said before anything is measured."""
        states, paths = dict[tuple[Any, ...], Cell](), dict[str, None]()
        for cell in new:
            states.setdefault(_state(cell), cell)
        for cell in states.values():
            spec, length = cell.method, cell.length
            with (
                self._refusals.guard(_state(cell)),
                patched(self.model, spec, length, **self._tries.options) as handle,
            ):
                for line in handle.notes:
                    self.monitor.note(f"{cell.requested} at {length}: {line}")
                if spec.distance:
                    paths[str(handle.choice)] = None
        for path in paths:
            self.monitor.note(f"attention path: {path}")

    def _settle(
        self,
        cell: Cell,
        found: Any,
        cost: dict[str, Any],
        handle: Handle | None,
        summarise: Callable[[Any, Any], dict[str, Any]],
    ) -> Measured:
        """The fields of a cell's record: numbers and `ok`, or none and the reason."""
        if not isinstance(found, Failure):
            try:
                fields = {"status": "ok", "reason": None, **summarise(cell.task, found)}
                return Measured(cell, {**cost, **fields}, handle)
            except ENDS_RUN:
                raise
            except BaseException as error:
                found = Failure.of(error)
        return Measured.failed(cell, found, cost, handle)

    def _score(
        self, cell: Cell, windows: Windows
    ) -> tuple[TokenScores | Failure, dict[str, Any], Handle | None]:
        """What the model says of the windows, each process reading its share."""
        mine = windows.share(self._workers.rank, self._workers.count)
        sizes = halves(self._request.batch(cell.length), self._most(windows))
        tries = attempts(sizes, cell.length if self._in_parts else 0)
        told = 0

        def work(attempt: Attempt) -> TokenScores:
            read = 0

            def advance(tokens: int) -> None:  # what is read again has been told
                nonlocal told, read
                read += tokens
                self.monitor.advance(max(0, read - told))
                told = max(told, read)

            return reading.score(self.model, mine, attempt.batch, advance, attempt.chunk)

        shares, cost, handle = self._tries.run(cell, tries, work)
        if isinstance(shares, Failure):
            return shares, cost, handle
        cost["tokens_per_second"] = windows.tokens / cost["seconds"]
        return _woven(shares), cost, handle

    def _of_helped(
        self, windows: Windows, rule: Helped, scores: TokenScores
    ) -> TokenScores | Failure:
        """The scores of the tokens that a long context helps, by what the evaluator says once for
        all methods."""
        if (windows, rule) not in self._helped:
            self._helped[windows, rule] = self._find_helped(windows, rule)
        mask = self._helped[windows, rule]
        if isinstance(mask, Failure):
            return mask
        found = scores.of(mask[scores.window, scores.position])
        if not found.n:
            return Failure.of(
                CtxextError(
                    f"a context longer than {rule.short} tokens helps none of the {scores.n} "
                    f"tokens: give more data, or a smaller short or alpha, or a larger beta"
                )
            )
        return found

    def _find_helped(self, windows: Windows, rule: Helped) -> NDArray[np.bool_] | Failure:
        """Which tokens count [windows, length], each process reading its share."""
        workers = self._workers
        found: NDArray[np.bool_] | Failure
        try:
            found = self._helped_of(windows.share(workers.rank, workers.count), rule)
        except ENDS_RUN:
            raise
        except BaseException as error:  # a tokenizer's core may panic
            found = Failure.of(error)
        everyone = workers.gather(found)
        if failure := next((one for one in everyone if isinstance(one, Failure)), None):
            return failure
        mask = np.zeros((len(windows), windows.length), dtype=bool)
        for rank, some in enumerate(everyone):
            mask[rank :: workers.count] = some
        return mask

    def _helped_of(self, windows: Windows, rule: Helped) -> NDArray[np.bool_]:
        """Which tokens count [windows, length], of windows that no session has asked for before by
        what the evaluator says now."""
        source, sha256 = self._plan.source, self._plan.identity.sha256
        known = self._loaded.helped
        digests = (hashlib.sha256(ids.numpy().tobytes()).digest() for ids in windows.ids())
        keys = [(source, sha256, rule, digest) for digest in digests]
        if left := [place for place, key in enumerate(keys) if key not in known]:
            who = rule.evaluator or "the model itself"
            self.monitor.note(
                f"{who} reads the windows, to find the tokens that a long context helps"
            )
            some, batch = windows.pick(left), self._request.batch
            if rule.evaluator is None:
                trained = self._plan.identity.trained
                own = helped.Evaluator(self.model, self._tokenizer, trained)
                found = helped.own(own, some, rule, batch)
            else:
                with self.monitor.outside():
                    other = helped.load(rule.evaluator, source)
                found = helped.others(other, self._tokenizer, some, rule, batch)
            known.update(zip((keys[place] for place in left), found, strict=True))
        return (
            np.stack([known[key] for key in keys]) if keys else np.zeros((0, windows.length), bool)
        )

    def _most(self, some: Sequence[Any] | Windows) -> int:
        """The most windows or samples that one process has."""
        return -(-len(some) // self._workers.count)

    def _answer(self, cell: Cell, task: SampleTask) -> Measured:
        """The answers to the samples, each process giving its share of those that are missing."""
        samples, workers = self._samples(cell), self._workers
        if isinstance(samples, Failure):
            return Measured.failed(cell, samples)
        advance = self.monitor.advance
        key, path = self._plan.key(cell)[:12], predictions.path_of(self._plan, cell)
        kept = predictions.Predictions(path, key)
        if self._request.force and workers.first:
            kept.discard_parts()
        fresh = self._request.force or not workers.first
        earlier = workers.gather({} if fresh else kept.found(samples))[0]
        left = [sample for sample in samples if sample.name not in earlier]
        advance((prompt_tokens(samples) - prompt_tokens(left)) // workers.count)
        mine, rows = share(left, workers.rank, workers.count), dict[str, Row]()
        batch = self._request.batch(cell.length)
        sizes = [batch, 1] if min(batch, self._most(left)) > 1 else [batch]
        tries, spent = attempts(sizes, cell.length if self._in_parts else 0), Spent()

        def work(attempt: Attempt) -> dict[str, Row]:
            limits = Limits(task.generates, task.at_least, tuple(task.stops(self._tokenizer)))
            missing = [sample for sample in mine if sample.name not in rows]
            with Forwards(self.model, spent):
                for row in answers(
                    *(self.model, self._tokenizer, missing, limits),
                    *(attempt.batch, advance, attempt.chunk),
                ):
                    kept.add(row)
                    rows[row["name"]] = row
            return rows

        with kept:
            found, cost, handle = self._tries.run(cell, tries, work)
        cost |= Spent.together(workers.gather(spent)).record()
        if isinstance(found, Failure):
            return self._settle(cell, found, cost, handle, of_rows)
        for some in found:
            earlier.update(some)
        ordered = [_current(earlier[sample.name], sample) for sample in samples]
        seconds = sum(row["seconds"] for row in ordered) / workers.count
        cost |= {"seconds": seconds, "tokens_per_second": prompt_tokens(samples) / seconds}
        cost["predictions"] = path.relative_to(self._request.out).as_posix()
        if workers.first:
            kept.finish(ordered)
        return self._settle(cell, ordered, cost, handle, of_rows)

    def _samples(self, cell: Cell) -> list[Sample] | Failure:
        """The prompts; or why one of the processes could not make them."""
        made = self._inputs.samples(cell)
        said = self._workers.gather(made if isinstance(made, Failure) else None)
        return next(filter(None, said), made)

    def _harness(self, cell: Cell, task: HarnessTask) -> Measured:
        """What another library makes of the cell, its answers kept in a file of the cell's own."""
        request, path = self._request, predictions.path_of(self._plan, cell)
        cache = path.with_name(f"{path.stem}-{self._plan.key(cell)[:12]}.cache")
        if request.force:
            cache.unlink(missing_ok=True)
        batch, spent = request.batch(cell.length), Spent()

        def work(attempt: Attempt) -> tuple[Score, int]:
            limit, seed, size = request.limit, cell.seed, attempt.batch
            model, tokenizer, length = self.model, self._tokenizer, cell.length
            try:
                with Forwards(model, spent):
                    return task.evaluate(model, tokenizer, length, size, limit, seed, cache)
            except sqlite3.Error as error:
                raise OutputError(f"cannot write {cache}: {error}") from error

        found, cost, handle = self._tries.run(cell, attempts(halves(batch, batch)), work)
        cost |= spent.record()
        return self._settle(cell, found, cost, handle, of_harness)


def _state(cell: Cell) -> tuple[Any, ...]:
    """What tells the patch of a cell from others."""
    return cell.method.full(), cell.length


def _woven(shares: Sequence[TokenScores]) -> TokenScores:
    """The scores of all windows, in their order, from those of every process."""
    numbered = [scores.window * len(shares) + rank for rank, scores in enumerate(shares)]
    window = np.concatenate(numbered)
    order = np.argsort(window, kind="stable")
    return TokenScores(
        shares[0].length,
        window[order],
        np.concatenate([scores.position for scores in shares])[order],
        np.concatenate([scores.nll for scores in shares])[order],
        np.concatenate([scores.hit for scores in shares])[order],
    )


def _current(row: Row, sample: Sample) -> Row:
    """The row with what the sample says today; only the answer is what was kept."""
    return row_of(sample, row["pred"], row["margin"], row["seconds"])
