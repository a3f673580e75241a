"""How token tasks cut a text's tokens into windows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ctxext.errors import UsageError
from ctxext.text import counted


@dataclass(frozen=True, eq=False)
class Windows:
    """What a token task reads of a text; the windows themselves are made when they are read.

    Attributes:
        text: token ids [tokens].
        begins: where each window begins in the text [windows].
        first: the first position of each window that is scored, 1 or more [windows]; all from
            there on are.
        length: tokens of a window.
        start: what opens each window and counts, the tokenizer's own BOS, where it adds one.
        passage: the tokens after which a window says its beginning again; None for never.
    """

    text: Tensor
    begins: Tensor
    first: Tensor
    length: int
    start: int | None = None
    passage: int | None = None

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def tokens(self) -> int:
        """The tokens of all windows."""
        return len(self) * self.length

    def ids(self, some: slice = slice(None)) -> Tensor:
        """The token ids [some windows, length]."""
        places = torch.arange(self.length - (self.start is not None))
        if self.passage is not None:
            places %= self.passage
        ids = self.text[self.begins[some, None] + places]
        if self.start is None:
            return ids
        return torch.nn.functional.pad(ids, (1, 0), value=self.start)

    def scored(self, some: slice = slice(None)) -> Tensor:
        """Which positions from 1 on count [some windows, length − 1]."""
        return torch.arange(1, self.length) >= self.first[some, None]

    def share(self, rank: int, count: int) -> Windows:
        """Those that one process of `count` reads."""
        return self.pick(slice(rank, None, count))

    def pick(self, some: slice | list[int]) -> Windows:
        """Some of them."""
        return dataclasses.replace(self, begins=self.begins[some], first=self.first[some])

    def same(self, other: Windows) -> bool:
        """Whether these are the same tokens, scored at the same places."""
        kinds = [(w.length, w.start, w.passage) for w in (self, other)]
        return (
            kinds[0] == kinds[1]
            and self.text is other.text
            and self.begins.equal(other.begins)
            and self.first.equal(other.first)
        )


def cut(
    ids: Tensor, length: int, start: int | None, limit: int | None, passage: int | None = None
) -> Windows:
    """Consecutive windows that do not overlap, every token but the first scored.

    Args:
        passage: the tokens after which each says its own beginning again.
    """
    payload = length - (start is not None)
    count = _count(ids, payload, limit, length)
    begins = torch.arange(count) * payload
    passage = None if passage is None or passage >= payload else passage
    return Windows(ids, begins, torch.ones_like(begins), length, start, passage)


def tails(
    ids: Tensor, length: int, start: int | None, limit: int | None, span: int, tail: int
) -> Windows:
    """The last `length` tokens of each consecutive span, the last `tail` − 1 of them scored.

    The ends, and so the scored tokens, are the same for every length up to `span`; all in tokens.
    """
    step = span - (start is not None)
    begins = torch.arange(_count(ids, step, limit, span)) * step + span - length
    return Windows(ids, begins, torch.full_like(begins, length - tail + 1), length, start)


def slide(ids: Tensor, length: int, start: int | None, limit: int | None, stride: int) -> Windows:
    """Windows `stride` tokens apart: each token is scored once, by the first that it is in.

    The first window scores all but its first token, each other one the tokens that no window
    before it held. The last one ends with the text.
    """
    opening = int(start is not None)
    payload = length - opening
    _count(ids, payload, None, length)
    last = len(ids) - payload
    begins = torch.arange(0, last + stride, stride).clamp(max=last)[:limit]
    ends = torch.cat((torch.tensor([1 - opening]), begins[:-1] + payload))
    return Windows(ids, begins, ends - begins + opening, length, start)


def _count(ids: Tensor, payload: int, limit: int | None, length: int) -> int:
    """How many windows there are; UsageError for none."""
    count = min(len(ids) // payload, limit or len(ids)) if payload else 0
    if count == 0:
        raise UsageError(
            f"the data has {counted(len(ids), 'token')}, fewer than one window of {length}: "
            "give longer data or a smaller --len"
        )
    return count
