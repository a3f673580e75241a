"""One model, loaded once, and what is measured with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.engine.patch import Handle, patched
from ctxext.errors import CtxextError
from ctxext.machine import Meter, failure
from ctxext.measure import tokens as reading
from ctxext.measure.answers import Limits, answers, row_of, share
from ctxext.measure.inputs import Inputs, prompt_tokens
from ctxext.measure.predictions import Predictions
from ctxext.measure.workers import Workers
from ctxext.models import loading
from ctxext.monitor import Monitor
from ctxext.plan import Cell, Plan
from ctxext.results import safe_name
from ctxext.tasks.base import (
    HarnessTask,
    Row,
    Sample,
    SampleTask,
    Score,
    TokenScores,
    TokenTask,
    Windows,
)

CLOSE = 1e-4  # two best logits this near may change places with the batch or the machine
_NOTHING: dict[str, Any] = {"value": None, "stderr": None, "n": 0, "windows": 0, "buckets": []}


@dataclass
class Measured:
    """What became of a cell.

    Attributes:
        fields: those of its record that were measured, or its status and reason.
        handle: the patch that was on, if it came to that.
        trace: the traceback of what failed.
    """

    cell: Cell
    fields: dict[str, Any]
    handle: Handle | None
    trace: str | None = None


class _Failure(NamedTuple):
    """Why there is nothing: status and reason, which every process can be told."""

    fields: dict[str, Any]


class Session:
    """The model, and what the new cells of a plan read.

    Raises:
        UsageError: something asked for cannot be done; nothing has been measured then.
    """

    def __init__(self, plan: Plan, inputs: Inputs, workers: Workers, monitor: Monitor) -> None:
        self._plan, self._inputs, self._workers, self._monitor = plan, inputs, workers, monitor
        self._request, self._tokenizer = plan.request, inputs.tokenizer
        for cell in inputs.cells:
            if isinstance(cell.task, HarnessTask):
                cell.task.check(self._request.limit)
        self.model = loading.load_model(plan.source, monitor.note)
        self._try_patches()

    def data_tokens_of(self, cell: Cell) -> int:
        """The tokens of the data that windows are cut from; 0 for tasks that cut none."""
        return self._inputs.data_tokens if isinstance(cell.task, TokenTask) else 0

    def measure(self, cells: Sequence[Cell]) -> Iterator[Measured]:
        """The cells of one method and length; those that read the same windows share a forward."""
        scored: dict[int, tuple[Any, dict[str, Any], Handle | None]] = {}
        for cell in cells:
            if isinstance(cell.task, TokenTask):
                windows = self._inputs.windows(cell)
                if id(windows) not in scored:
                    scored[id(windows)] = self._score(cell, windows)
                found, cost, handle = scored[id(windows)]
                yield self._settle(cell, found, cost, handle, _of_tokens)
            elif isinstance(cell.task, SampleTask):
                yield self._answer(cell, cell.task)
            elif isinstance(cell.task, HarnessTask):
                yield self._harness(cell, cell.task)

    def _try_patches(self) -> None:
        """Put each method on once, so that what it refuses is said before anything is measured."""
        request, paths = self._request, dict[str, None]()
        for length, spec in itertools.product(request.lengths, request.methods):
            with patched(self.model, spec, length, **self._patch_options()) as handle:
                for line in handle.notes:
                    self._monitor.note(f"{spec} at {length}: {line}")
                if spec.distance:
                    paths[str(handle.choice)] = None
        for path in paths:
            self._monitor.note(f"attention path: {path}")

    def _patch_options(self) -> dict[str, Any]:
        return {"train_len": self._request.source.train_len, "attn": self._request.source.attn}

    def _run(
        self, cell: Cell, work: Callable[[], Any]
    ) -> tuple[list[Any] | _Failure, dict[str, Any], Handle | None]:
        """What the work gives in every process on the patched model, or the failure of one."""
        meter, handle, outcome = Meter(str(self.model.device)), None, None
        options = self._patch_options()
        try:
            with patched(self.model, cell.method, cell.length, **options) as handle:
                outcome = work()
        except Exception as error:
            outcome = _Failure(failure(error))
        cost: dict[str, Any] = {"tokens_per_second": None, **meter.read()}
        everyone = self._workers.gather((outcome, cost["peak_memory_bytes"]))
        peaks = [peak for _, peak in everyone if peak is not None]
        cost["peak_memory_bytes"] = max(peaks, default=None)
        failed = next((one for one, _ in everyone if isinstance(one, _Failure)), None)
        return failed or [one for one, _ in everyone], cost, handle

    def _settle(
        self,
        cell: Cell,
        found: Any,
        cost: dict[str, Any],
        handle: Handle | None,
        summarise: Callable[[Any, Any], dict[str, Any]],
    ) -> Measured:
        """The fields of a cell's record: numbers and `ok`, or none and the reason."""
        if isinstance(found, _Failure):
            return Measured(cell, {**cost, **_NOTHING, **found.fields}, handle)
        try:
            fields = {"status": "ok", "reason": None, **summarise(cell.task, found)}
        except Exception as error:
            fields = {**_NOTHING, **failure(error)}
        return Measured(cell, {**cost, **fields}, handle)

    def _score(
        self, cell: Cell, windows: Windows
    ) -> tuple[TokenScores | _Failure, dict[str, Any], Handle | None]:
        """What the model says of the windows, each process reading its share."""
        mine = windows.share(self._workers.rank, self._workers.count)
        batch, advance = self._request.batch(cell.length), self._monitor.advance
        shares, cost, handle = self._run(
            cell, lambda: reading.score(self.model, mine, batch, advance)
        )
        if isinstance(shares, _Failure):
            return shares, cost, handle
        cost["tokens_per_second"] = windows.tokens / cost["seconds"]
        return _woven(shares), cost, handle

    def _answer(self, cell: Cell, task: SampleTask) -> Measured:
        """The answers to the samples, each process giving its share of those that are missing."""
        samples, workers = self._inputs.samples(cell), self._workers
        advance = self._monitor.advance
        key, path = self._plan.key(cell)[:12], self._predictions(cell)
        limits = Limits(task.generates, task.at_least, tuple(task.stops(self._tokenizer)))
        kept = Predictions(path, key)
        if self._request.force and workers.first:
            kept.discard_parts()
        fresh = self._request.force or not workers.first
        earlier = workers.gather({} if fresh else kept.found(samples))[0]
        left = [sample for sample in samples if sample.name not in earlier]
        advance((prompt_tokens(samples) - prompt_tokens(left)) // workers.count)
        batch = self._request.batch(cell.length)

        def work() -> list[Row]:
            mine, rows = share(left, workers.rank, workers.count), []
            for row in answers(self.model, self._tokenizer, mine, limits, batch, advance):
                kept.add(row)
                rows.append(row)
            return rows

        with kept:
            found, cost, handle = self._run(cell, work)
        if isinstance(found, _Failure):
            return self._settle(cell, found, cost, handle, _of_rows)
        rows = {**earlier, **{row["name"]: row for some in found for row in some}}
        ordered = [_current(rows[sample.name], sample) for sample in samples]
        seconds = sum(row["seconds"] for row in ordered) / workers.count
        cost |= {"seconds": seconds, "tokens_per_second": prompt_tokens(samples) / seconds}
        cost["predictions"] = path.relative_to(self._request.out).as_posix()
        if workers.first:
            kept.finish(ordered)
        return self._settle(cell, ordered, cost, handle, _of_rows)

    def _harness(self, cell: Cell, task: HarnessTask) -> Measured:
        """What another library makes of the cell, its answers kept in a file of the cell's own."""
        request, path = self._request, self._predictions(cell)
        cache = path.with_name(f"{path.stem}-{self._plan.key(cell)[:12]}.cache")
        if request.force:
            cache.unlink(missing_ok=True)
        found, cost, handle = self._run(
            cell,
            lambda: task.evaluate(
                self.model,
                self._tokenizer,
                cell.length,
                request.batch(cell.length),
                request.limit,
                cell.seed,
                cache,
            ),
        )
        return self._settle(cell, found, cost, handle, _of_harness)

    def _predictions(self, cell: Cell) -> Path:
        """Where a cell's answers are: one folder for the tasks of a benchmark, a file for each.

        The file has the task's bare name, by which `ctxext score` knows it; its other parameters
        are in the folder's.
        """
        name, _, label = str(cell.asked).partition(":")
        if cell.task.positional:
            label, _, more = label.partition(",")
            name = f"{name}:{more}" if more else name
        else:
            label = str(cell.asked)
        model, method = safe_name(self._request.source.name, 48), safe_name(str(cell.requested))
        about = (
            f"{model}--{method}--{safe_name(name)}--{cell.length}--{self._plan.shared_key(cell)}"
        )
        return self._request.out / "predictions" / about / f"{safe_name(label)}.jsonl"


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


def _of_score(score: Score) -> dict[str, Any]:
    parts = [dict(part) for part in score.parts]
    return {"value": score.value, "stderr": score.stderr, "parts": parts, "also": dict(score.also)}


def _of_tokens(task: TokenTask, scores: TokenScores) -> dict[str, Any]:
    if not math.isfinite(scores.nll.sum()):
        raise CtxextError("the loss is not finite")
    score, buckets = task.summarise(scores), scores.buckets()
    return {
        "value": score.value,
        "stderr": score.stderr,
        "n": scores.n,
        "windows": scores.windows,
        "buckets": buckets,
    }


def _of_rows(task: SampleTask, rows: Sequence[Row]) -> dict[str, Any]:
    truncated = [bool(row["truncated"]) for row in rows if "truncated" in row]
    chat = [bool(row["chat"]) for row in rows if "chat" in row]
    return {
        **_of_score(task.score(rows)),
        "n": len(rows),
        "windows": len(rows),
        "buckets": [],
        "truncated": sum(truncated) if truncated else None,
        "chat": all(chat) if chat else None,
        "close_calls": sum(row["margin"] <= CLOSE for row in rows),
    }


def _of_harness(task: HarnessTask, found: Sequence[tuple[Score, int]]) -> dict[str, Any]:
    score, count = found[0]
    return {**_of_score(score), "n": count, "windows": count, "buckets": []}
