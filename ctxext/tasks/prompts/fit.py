"""How much haystack fits: prompts that fill a number of tokens and never exceed it."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ctxext.models.prompting import Prompter

_TRIES = 16


class Prompt(NamedTuple):
    """A prompt's text with its right answers.

    Attributes:
        opening: how its answer begins.
        depth: of the one place that answers it, from 0 (the context's start) to 1 (its end).
    """

    text: str
    answers: tuple[str, ...]
    depth: float | None = None
    opening: str = ""


class Maker(Protocol):
    """Makes the prompts of one task at one length; the same for the same arguments."""

    def least(self, index: int) -> int:
        """The fewest units of haystack of sample `index`."""

    def make(self, index: int, units: int) -> Prompt:
        """Sample `index` with so many units of haystack."""


class TooShort(Exception):
    """Not even a prompt with the fewest units fits."""


class Fitted(NamedTuple):
    """A prompt with its token ids."""

    prompt: Prompt
    ids: array[int]


def depth_of(start: int, size: int, total: int) -> float:
    """How deep in a context lies what begins at `start`; 0 at its start and 1 at its end."""
    return start / (total - size) if total > size else 0.0


def stream(task: str, seed: int, index: int) -> random.Random:
    """The random numbers of one sample."""
    return random.Random(f"ruler {task} {seed} {index}")


def least_tokens(maker: Maker, prompter: Prompter, count: int) -> int:
    """The tokens of the longest of `count` prompts with their fewest units."""
    return max(len(_attempt(maker, prompter, i, maker.least(i)).ids) for i in range(count))


def fill(maker: Maker, prompter: Prompter, count: int, budget: int) -> list[Fitted]:
    """The first `count` samples, each of at most `budget` tokens, and within a unit or a thousandth
    of it.

    The first sample's number of units is searched for; the others start from it.

    Raises:
        TooShort: a sample does not fit with its fewest units.
    """

    def first(units: int) -> int:
        return len(_attempt(maker, prompter, 0, units).ids)

    guess, per_unit = largest(first, maker.least(0), budget)
    return [_near(maker, prompter, i, budget, guess, per_unit) for i in range(count)]


def largest(count: Callable[[int], int], least: int, budget: int) -> tuple[int, float]:
    """The largest number of units whose tokens are within the budget, and the tokens per unit.

    `count` gives the tokens of a number of units; it must grow with it, but for a few tokens.

    Raises:
        TooShort: `least` units take more than the budget.
    """
    low, at_low = least, count(least)
    base = at_low
    if base > budget:
        raise TooShort
    high, at_high = low, at_low
    while at_high <= budget and high <= 4 * budget:
        low, at_low = high, at_high
        high = 2 * high + 1
        at_high = count(high)
    if at_high <= budget:
        low = high
    turn = 0
    while high - low > 1:
        share = (budget - at_low) / (at_high - at_low) if turn % 3 < 2 else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = count(middle)
        if found <= budget:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
        turn += 1
    return low, max((at_high - base) / (high - least), 0.25)


def _attempt(maker: Maker, prompter: Prompter, index: int, units: int) -> Fitted:
    prompt = maker.make(index, units)
    return Fitted(prompt, array("i", prompter.ids(prompt.text, prompt.opening)))


def _near(
    maker: Maker, prompter: Prompter, index: int, budget: int, guess: int, per_unit: float
) -> Fitted:
    """One sample within a unit or a thousandth of the budget, from a guess that is about right."""
    least = maker.least(index)
    units, fits, low, at_low, high, at_high = max(least, guess), None, least - 1, 0, 0, 0
    for turn in range(_TRIES):
        fitted = _attempt(maker, prompter, index, units)
        found = len(fitted.ids)
        if found <= budget:
            fits, low, at_low = fitted, units, found
            if budget - found < max(per_unit, budget / 1000):
                return fitted
        else:
            high, at_high = units, found
        if high - low == 1:
            break
        if fits is not None and at_high:
            share = (budget - at_low) / (at_high - at_low) if turn % 3 else 0.5
            units = min(max(low + int(share * (high - low)), low + 1), high - 1)
        elif at_high and turn < _TRIES // 2:
            units = max(units - math.ceil((found - budget) / per_unit), least)
        elif at_high:
            units = (least + units) // 2
        else:
            units += max(1, int((budget - found) / per_unit))
    if fits is None:
        fits = _attempt(maker, prompter, index, least)
        if len(fits.ids) > budget:
            raise TooShort
    return fits
