"""What became of a cell: the fields of its record that were measured, or why there are none."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctxext.errors import CtxextError
from ctxext.measure.failure import Failure
from ctxext.request.cells import Cell
from ctxext.system.digests import sha256_of_text
from ctxext.tasks.base import HarnessTask, Row, SampleTask, Score, Task, TokenScores, TokenTask

if TYPE_CHECKING:
    from ctxext.engine.patch import Handle

CLOSE = 1e-4  # two best logits this near may change places with the batch or the machine
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("value", "stderr", "seconds", "tokens_per_second", "peak_memory_bytes")),
    "n": 0,
    "windows": 0,
    "buckets": [],
}


@dataclass
class Measured:
    """What became of a cell.

    Attributes:
        fields: those of its record that were measured, or its status and reason.
        handle: the patch that was on, if it came to that.
        trace: the traceback of what failed.
        refused: whether it failed because what was asked for cannot be done.
    """

    cell: Cell
    fields: dict[str, Any]
    handle: Handle | None = None
    trace: str | None = None
    refused: bool = False

    @classmethod
    def failed(
        cls, cell: Cell, why: Failure, cost: dict[str, Any] | None = None, handle: Any = None
    ) -> Measured:
        """A cell without a number, and what it cost."""
        fields = {**_NOTHING, **(cost or {}), **why.fields}
        return cls(cell, fields, handle, why.trace, why.refused)


def of_tokens(task: TokenTask, scores: TokenScores) -> dict[str, Any]:
    """The fields of a task over tokens; CtxextError where the loss is not finite."""
    if not math.isfinite(scores.nll.sum()):
        raise CtxextError("the loss is not finite")
    score = task.summarise(scores)
    return {
        "value": score.value,
        "stderr": score.stderr,
        "n": scores.n,
        "windows": scores.windows,
        "higher_is_better": task.higher_is_better,
        "buckets": scores.buckets(),
        "by_window": scores.by_window(),
    }


def of_rows(task: SampleTask, rows: Sequence[Row]) -> dict[str, Any]:
    """The fields of a task whose samples are answered."""
    score, prompts = task.score(rows), [row["prompt"] for row in rows]
    truncated = [bool(row["truncated"]) for row in rows if "truncated" in row]
    chat = [bool(row["chat"]) for row in rows if "chat" in row]
    thinking = [bool(row["thinking"]) for row in rows if "thinking" in row]
    return {
        **_of_score(task, score),
        "by_sample": _by_sample(prompts, _alone(task, rows), score.value),
        "perfect_score": task.perfect_score,
        "n": len(rows),
        "windows": len(rows),
        "buckets": [],
        "truncated": sum(truncated) if truncated else None,
        "chat": all(chat) if chat else None,
        "thinking": any(thinking) if thinking else None,
        "close_calls": sum(row["margin"] <= CLOSE for row in rows),
    }


def of_harness(task: HarnessTask, found: Sequence[tuple[Score, int]]) -> dict[str, Any]:
    """The fields of a task that another library ran."""
    score, count = found[0]
    prompts, scores = zip(*score.samples, strict=True) if score.samples else ((), ())
    return {
        **_of_score(task, score),
        "by_sample": _by_sample(prompts, scores, score.value) if len(scores) == count else None,
        "n": count,
        "windows": count,
        "buckets": [],
    }


def _alone(task: SampleTask, rows: Sequence[Row]) -> list[float]:
    """The score of each sample; [] where the task has none for one alone."""
    with contextlib.suppress(Exception):
        return [task.score([row]).value for row in rows]
    return []


def _by_sample(
    prompts: Sequence[str], scores: Sequence[float], value: float
) -> dict[str, Any] | None:
    """What tells these prompts in their order from others, and their scores; None where the value
    is not the mean of these."""
    if not scores or not math.isclose(statistics.fmean(scores), value, rel_tol=1e-9, abs_tol=1e-9):
        return None
    digest = sha256_of_text(" ".join(prompts))[:16]
    return {"prompts": digest, "scores": [int(x) if float(x).is_integer() else x for x in scores]}


def _of_score(task: Task, score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "stderr": score.stderr,
        "higher_is_better": task.higher_is_better,
        "parts": [dict(part) for part in score.parts],
        "also": dict(score.also),
    }
