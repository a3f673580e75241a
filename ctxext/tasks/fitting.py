"""Prompts of a given size: how much filler fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """The prompt's token ids, with what the tokenizer itself adds."""
    return list(tokenizer(text, verbose=False).input_ids)


def largest(count: Callable[[int], int], budget: int, most: int, guess: float) -> int | None:
    """The largest size up to `most` whose count is within the budget; None if size 0 is not.

    Interpolates by what a unit counts, and halves the range where that does not converge; the
    count must not fall as the size grows, but by a little. It stops within a thousandth of the
    budget.

    Args:
        guess: about what one unit of size counts.
    """
    base = count(0)
    if base > budget:
        return None
    low, high, at = 0, most, base  # `at` is the count of `low`
    for attempt in range(64):
        if low >= high or budget - at < budget // 1000:
            break
        step = int((budget - at) / guess) if attempt < 8 else (high - low + 1) // 2
        size = min(high, low + max(1, step))
        found = count(size)
        if found <= budget:
            guess = max((found - base) / size, 1e-3) if attempt < 8 else guess
            low, at = size, found
        else:
            guess = max((found - base) / size, 1e-3)
            high = size - 1
    return low
