"""Which angles rotary pairs take at a length, and which of them training never saw.

Pure arithmetic on what methods declare: no weights, no model.

Training on T tokens turned pair i by θ_i·δ for δ = 0 … T−1, points on a circle. An angle counts
as *seen* where it is less than one step θ_i away from one of them, along the circle: θ_i is how
far the pair turns from one token to the next, so between neighbours training left no gap. At the
length L the method turns the pair by θ'_i·e(δ) for the distances δ = 0 … L−1 behind the last
query, where θ' are the frequencies in force and e(δ) is the effective relative position. So plain
RoPE leaves what training saw at δ = T, in those pairs that make no full turn within T + 1 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ctxext.errors import UsageError
from ctxext.methods.base import Part, identity

Floats = Any  # an array of float64

PLAIN: tuple[Part, ...] = (Part(0, None, identity, identity),)
LONGEST = 2**24  # tokens: the arithmetic takes about a second for each million
AT_ONCE = 2**18  # distances held for a pair
COLUMNS = 256  # of a map of angles, at most
SLACK = 1e-6  # of a step, which rounding may cost


def effective(parts: tuple[Part, ...], query: int, delta: Floats) -> Floats:
    """e(δ) in tokens of the keys that stand δ [n] behind the query at position `query`; [n, p]
    where the pairs of some part have their own.

    NaN where no part has the two, so that the key is not seen.
    """
    key = query - torch.as_tensor(delta, dtype=torch.int64)
    at, found = torch.full_like(key, query), torch.full(key.shape, math.nan, dtype=torch.float64)
    for part in parts:
        here = part.holds(at, key)
        new = part.query(at[here].double()) - part.key(key[here].double())
        if new.ndim > found.ndim:
            found = found[:, None].repeat(1, new.shape[1])
        found[here] = new if new.ndim == found.ndim else new[:, None]
    return found.numpy()


def off(theta: float, trained: int, angle: Floats) -> Floats:
    """How far each angle (radians) is from the arc that training went through: 0 … π.

    Args:
        theta: θ_i of the trained model, radians per token.
        trained: T in tokens.
    """
    arc = theta * (trained - 1)
    if arc >= 2 * math.pi:
        return np.zeros_like(angle)
    past = np.mod(angle, 2 * math.pi) - arc
    return np.where(past > 0, np.minimum(past, 2 * math.pi - arc - past), 0.0)


def unseen(theta: float, away: Floats) -> Floats:
    """Whether each angle is one step or more from all that training saw; `away` from `off`."""
    return (away > 0) & (away >= theta * (1 - SLACK))


@dataclass(frozen=True)
class Angles:
    """The pairs of one set of frequencies at a length.

    Attributes:
        length: L in tokens.
        theta: the frequencies in force [p], radians per token.
        outside: how many of a pair's angles training never saw [p].
        seen: how many keys the last query sees, so that each pair has as many angles.
        edges: where the columns of `off` begin, and the last one ends [c + 1], in tokens.
        off: how far a column's angles are from the arc of training, a mean in radians in which
            those that training saw count 0 [p, c]; NaN where no key is seen.
    """

    length: int
    theta: Floats
    outside: Floats
    seen: int
    edges: Floats
    off: Floats

    @property
    def wavelength(self) -> Floats:
        """Tokens in which a pair turns once [p]; infinite where it does not turn."""
        with np.errstate(divide="ignore"):
            return 2 * math.pi / self.theta

    @property
    def share(self) -> float:
        """The share of all pairs' angles that training never saw."""
        return float(self.outside.sum() / max(1, self.seen * len(self.theta)))


def angles(
    trained_theta: Floats,
    trained: int,
    theta: Floats,
    parts: tuple[Part, ...],
    length: int,
    reach: int | None = None,
) -> Angles:
    """The angles at `length` tokens.

    Args:
        trained_theta: θ [p] as training had it, radians per token.
        trained: T in tokens.
        theta: the frequencies in force [p].
        parts: of the distance method, or PLAIN.
        reach: how many distances a layer's window shows the last query; None for all.

    Raises:
        UsageError: the length is beyond LONGEST.
    """
    if length > LONGEST:
        raise UsageError(f"length {length} is too long to explain: give at most {LONGEST}")
    reach = min(length, reach or length)
    edges = np.unique(np.linspace(0, reach, COLUMNS + 1).round().astype(np.int64))
    count, total = np.zeros(len(theta), np.int64), np.zeros((len(theta), len(edges) - 1))
    held = np.zeros(len(edges) - 1, np.int64)
    for start in range(0, reach, AT_ONCE):
        stop = min(start + AT_ONCE, reach)
        at = effective(parts, length - 1, np.arange(start, stop))
        covered = ~np.isnan(at if at.ndim == 1 else at[:, 0])
        column = np.searchsorted(edges, np.arange(start, stop)[covered], "right") - 1
        held += np.bincount(column, minlength=len(held))
        for i, (own, now) in enumerate(zip(trained_theta, theta, strict=True)):
            if own * (trained - 1) >= 2 * math.pi:
                continue
            away = off(own, trained, (at if at.ndim == 1 else at[:, i])[covered] * now)
            never = unseen(own, away)
            count[i] += int(never.sum())
            total[i] += np.bincount(column, away * never, len(held))
    with np.errstate(invalid="ignore"):
        return Angles(length, np.asarray(theta), count, int(held.sum()), edges, total / held)
