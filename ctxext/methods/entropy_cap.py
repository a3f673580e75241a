"""Attention whose entropy stays what it is over as many keys as training saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.errors import UsageError
from ctxext.methods import register
from ctxext.methods.base import AttentionRule, Range, Span, require
from ctxext.notation import Count

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 40  # at most; Newton's take about five
LOWEST = -1e37  # in place of what is not seen
FAR = 1e4  # nats below the largest logit, where no weight is left


@register("entropy-cap")
@dataclass(frozen=True)
class EntropyCap(AttentionRule):
    """Entropy cap: each query as much sharper as undoes what keys beyond T add to its entropy.

    Formula: query × γ; γ = 1 where H(1) ≤ H*, else H(γ) = H*, at most `most`; H(γ) is the entropy
    of softmax(γ · logits) over all n keys of a query, H* that of its own logits over the first
    `sinks` and the last T − sinks of them

    Source: the entropy argument of kexue.fm 8823, taken for each query by itself instead of in the
    mean

    Parameters: sinks (first keys that are always among the T; default 4), most (the largest γ, at
    least 1; default 2)

    Inside T: exactly the identity.

    Beyond T: no query's attention spreads further than over T keys, but for those that would need
    a γ above `most`.
    """

    sinks: Count = 4
    most: float = 2.0

    def __post_init__(self) -> None:
        require(self.most >= 1, "most", self.most, "at least 1")

    def resolve(self, span: Span) -> EntropyCap:
        """As it is; UsageError where the sinks leave no room for the last keys."""
        if self.sinks >= span.trained:
            raise UsageError(f"sinks {self.sinks} is not below T, {span.trained}: give fewer")
        return self

    def search(self, span: Span) -> dict[str, Range] | None:
        """γ up to 8; not searched where T is no more than the sinks."""
        return {"most": Range(1, 8)} if self.sinks < span.trained else None

    def sharper(self, scores: Tensor, place: Tensor, trained: int) -> Tensor:
        """γ by Newton's method within a bracket: dH/dγ = −γ·(variance of the logits)."""
        count = place.amax(-1, keepdim=True)
        seen = place > 0
        near = seen & ((place <= self.sinks) | (place > count - (trained - self.sinks)))
        goal = _spread(_below_top(scores, near), 1.0)[0]
        logits = _below_top(scores, seen)
        gamma = goal.new_ones(goal.shape)
        over = _spread(logits, gamma)[0] > goal
        if bool(over.any()):
            gamma[over] = self._solved(logits[over[..., 0]], goal[over][:, None])[:, 0]
        return gamma

    def _solved(self, logits: Tensor, goal: Tensor) -> Tensor:
        """γ of rows [r, m] whose entropy is above the goal [r, 1] at γ = 1: [r, 1]."""
        low = goal.new_ones(goal.shape)
        gamma, high = low.clone(), low * self.most
        left = (_spread(logits, high)[0] < goal)[:, 0]
        gamma[~left] = self.most
        logits, goal, low, high = logits[left], goal[left], low[left], high[left]
        found, close = gamma[left], 64 * _step(goal)
        for _ in range(STEPS):
            entropy, variance = _spread(logits, found)
            over = entropy > goal
            low, high = found.where(over, low), high.where(over, found)
            if bool((((entropy - goal).abs() <= close * (1 + goal)) | (high - low <= close)).all()):
                break
            step = found + (entropy - goal) / (found * variance).clamp(min=1e-30)
            found = step.where((step > low) & (step < high), (low + high) / 2)
        gamma[left] = found
        return gamma


def _below_top(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores less the largest that is seen [..., m], at least FAR below it where one is not."""
    some = scores.masked_fill(~seen, LOWEST)
    return some.sub_(some.amax(-1, keepdim=True)).clamp_(min=-FAR)


def _spread(logits: Tensor, gamma: Tensor | float) -> tuple[Tensor, Tensor]:
    """The entropy in nats of softmax(γ · logits), and the variance of the logits [..., 1]."""
    weights = (logits * gamma).exp_()
    total = weights.sum(-1, keepdim=True)
    weights.mul_(logits)
    mean = weights.sum(-1, keepdim=True) / total
    square = weights.mul_(logits).sum(-1, keepdim=True) / total
    return total.log() - gamma * mean, square - mean.square()


def _step(like: Tensor) -> float:
    """The step from 1 to the next number of a dtype."""
    one = like.new_ones(())
    return float(one.nextafter(one * 2) - one)
