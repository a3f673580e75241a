"""What a score is: a number, its standard error, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]  # one answer: name, pred, answers, all_classes, length, …


class Score(NamedTuple):
    """A task's number.

    Attributes:
        value: on the metric's own scale.
        stderr: over windows or samples; None where there is one.
        parts: the same number over parts of the samples, {"name", "value", "n"} each.
        also: other numbers by name, such as a second definition of the metric.
        samples: where another library has made the samples, what tells the prompt of each from
            others, and its score, of which the value is the mean.
    """

    value: float
    stderr: float | None
    parts: Sequence[Mapping[str, Any]] = ()
    also: Mapping[str, float] = {}
    samples: Sequence[tuple[str, float]] = ()


def mean_score(values: Sequence[float], scale: float = 1.0) -> tuple[float, float | None]:
    """The mean over samples times `scale`, and its standard error; None for a single one."""
    count = len(values)
    mean = sum(values) / count
    value = scale * sum(values) / count  # in this order, as benchmarks round ties of it
    if count < 2:
        return value, None
    variance = sum((x - mean) ** 2 for x in values) / (count - 1)
    return value, (variance / count) ** 0.5 * scale
