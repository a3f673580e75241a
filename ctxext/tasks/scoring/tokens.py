"""What a model says of the tokens of windows, and the means of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKETS = 16  # parts of the length that have means of their own
BLOCKS = 1024  # windows of which a record keeps the sums, one by one


class TokenScores(NamedTuple):
    """What a model said of the tokens that are scored, window by window.

    Attributes:
        length: tokens of a window.
        window: which window each token is in, from 0 [n].
        position: its position there, from 1 [n].
        nll: −ln p of it, in nats, float64 [n].
        hit: whether it was the model's first choice [n].
        cut: the windows that were cut, where the last of them may have no scored token.
    """

    length: int
    window: NDArray[np.int64]
    position: NDArray[np.int64]
    nll: NDArray[np.float64]
    hit: NDArray[np.bool_]
    cut: int | None = None

    @property
    def n(self) -> int:
        """The tokens that are scored."""
        return len(self.nll)

    @property
    def windows(self) -> int:
        """The windows that they are in."""
        return int(self.window.max()) + 1 if self.cut is None else self.cut

    def of(self, some: NDArray[np.bool_]) -> TokenScores:
        """The scores of some of the tokens [n], in as many windows."""
        window, position = self.window[some], self.position[some]
        nll, hit, windows = self.nll[some], self.hit[some], self.windows
        return TokenScores(self.length, window, position, nll, hit, windows)

    def mean_nll(self) -> tuple[float, float | None]:
        """Mean loss over tokens, in nats, and its standard error over windows."""
        return self._mean(self.nll)

    def accuracy(self) -> tuple[float, float | None]:
        """The share of hits over tokens, and its standard error over windows."""
        return self._mean(self.hit)

    def _mean(self, values: NDArray[Any]) -> tuple[float, float | None]:
        """The mean over tokens, and its standard error over windows.

        A window weighs as many tokens as are scored in it: the error is that of a ratio of sums,
        which for equal weights is the usual one.
        """
        import numpy as np

        windows = self.windows
        weights = np.bincount(self.window, minlength=windows)
        sums = np.bincount(self.window, values, windows)
        mean, count = float(sums.sum() / weights.sum()), len(weights)
        if count < 2:
            return mean, None
        residuals = sums - mean * weights
        error = float((residuals**2).sum() * count / (count - 1)) ** 0.5 / float(weights.sum())
        return mean, error

    def by_window(self) -> dict[str, list[float]]:
        """Window by window the scored tokens `n`, the sum of their losses `nll` and their `hits`.

        Of more than BLOCKS windows, neighbours are added up until there are so many.
        """
        import numpy as np

        count = min(self.windows, BLOCKS)
        block = self.window * count // self.windows
        sums = {"nll": self.nll, "hits": self.hit}
        found = {name: np.bincount(block, values, count) for name, values in sums.items()}
        hits, n = found["hits"].astype(int).tolist(), np.bincount(block, minlength=count).tolist()
        return {"n": n, "nll": found["nll"].tolist(), "hits": hits}

    def buckets(self) -> list[dict[str, float | int | None]]:
        """Means over 16 equal parts of the length, by the scored token's position."""
        edges = [i * self.length // BUCKETS for i in range(BUCKETS + 1)]
        return [self._bucket(a, b) for a, b in itertools.pairwise(edges)]

    def _bucket(self, start: int, stop: int) -> dict[str, float | int | None]:
        here = (self.position >= start) & (self.position < stop)
        nll, hit = self.nll[here], self.hit[here]
        means = (float(nll.mean()), float(hit.mean())) if nll.size else (None, None)
        return {"start": start, "stop": stop, "nll": means[0], "acc": means[1], "n": int(nll.size)}
