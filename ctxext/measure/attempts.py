"""What is tried before a cell is given up for lack of memory: smaller batches, then parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ctxext.measure.growing import GrowingLayer, new_cache

CHUNKS = (4096, 1024, 256)  # tokens


class Attempt(NamedTuple):
    """How much is read at once.

    Attributes:
        batch: windows or prompts.
        chunk: tokens of one, through a cache; None for all.
    """

    batch: int
    chunk: int | None = None

    def __str__(self) -> str:
        """In words."""
        return f"batch {self.batch}" if self.chunk is None else f"chunks of {self.chunk} tokens"


def attempts(batches: Sequence[int], length: int = 0) -> list[Attempt]:
    """Whole windows in batches of these sizes, then one window in chunks shorter than `length`."""
    whole = [Attempt(batch) for batch in batches]
    return whole + [Attempt(1, chunk) for chunk in CHUNKS if chunk < length]


def halves(batch: int, rows: int) -> list[int]:
    """The batch, and its halves down to 1 where there are more rows than that."""
    sizes, size = [batch], min(batch, rows)
    while size > 1:
        size //= 2
        sizes.append(size)
    return sizes


def reads_in_parts(model: Any) -> bool:
    """Whether the parts of a window, read one after another, give what the whole gives at once.

    That takes a cache that keeps every key by itself, so that it can be cut back too. Rotary
    frequencies that go by how much is read must be pinned.
    """
    layers = getattr(new_cache(model), "layers", None)
    plain = layers is not None and all(type(layer) is GrowingLayer for layer in layers)
    return plain and not getattr(model, "_is_stateful", False)
