"""The contract of a task: token scores in, one number and its standard error out."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKETS = 16


class TokenScores(NamedTuple):
    """What a model said of each token of each window; position 0 of a window is not scored.

    nll [windows, length−1]: −ln p of the token, in nats, float64.
    hit [windows, length−1]: whether the token was the model's first choice.
    """

    nll: NDArray[np.float64]
    hit: NDArray[np.bool_]

    def buckets(self) -> list[dict[str, float | int | None]]:
        """Means over 16 equal parts of the length, by the scored token's position."""
        length = self.nll.shape[1] + 1
        edges = [i * length // BUCKETS for i in range(BUCKETS + 1)]
        return [self._bucket(a, b) for a, b in itertools.pairwise(edges)]

    def _bucket(self, start: int, stop: int) -> dict[str, float | int | None]:
        columns = slice(max(start, 1) - 1, max(stop, 1) - 1)
        nll, hit = self.nll[:, columns], self.hit[:, columns]
        means = (float(nll.mean()), float(hit.mean())) if nll.size else (None, None)
        return {"start": start, "stop": stop, "nll": means[0], "acc": means[1], "n": int(nll.size)}


class Summary(NamedTuple):
    """A task's number and its standard error over windows (None for a single window)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Task:
    """One task; a change of what it measures changes its `version`."""

    name: ClassVar[str]
    metric: ClassVar[str]
    version: ClassVar[int] = 1

    def summarise(self, scores: TokenScores) -> Summary:
        """The number, from the scores of all windows."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The spec that parses back to this task."""
        return self.name

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Name, metric and the docstring as one line."""
        text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
        return {"name": cls.name, "metric": cls.metric, "summary": text}


def standard_error(means: NDArray[np.float64]) -> float | None:
    """The standard error of the mean of equally long windows; None for a single one."""
    return float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else None
