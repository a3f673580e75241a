"""Distance attention by query chunks: memory is linear in length, and few pairs are scored twice.

Each part's keys for a chunk of queries are taken as one slice (`Positions.span`); the parts' scores
stand side by side and share one softmax.

Dimensions: b batch, g key heads, r queries heads per key head, n queries, m keys, c queries in a
chunk, d head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from ctxext.engine.positions import Positions
from ctxext.methods.base import Part

SCORES_AT_ONCE = 2**22  # scores held for a chunk: 16 MiB of float32, which a CPU cache still holds
LONGEST_CHUNK = 128  # a longer one scores more pairs outside the window than it saves in calls


class _Turned(NamedTuple):
    part: Part
    query: Tensor  # [b·g, r, n, d]
    key: Tensor  # [b, g, high - low, d]
    low: int  # which key key[:, :, 0] is


class _Scores(NamedTuple):
    low: int
    high: int
    scores: Tensor  # of keys low … high−1 [b·g, r·c, high - low]


class _Chunks:
    """What is scored: queries and keys of every part, and which of them see each other."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        parts: tuple[Part, ...],
        turn: Callable[[Tensor, Tensor], Tensor],
        scaling: float,
        mask: Tensor | None,
        softcap: float | None,
        at: Positions | None,
        wide: torch.dtype,
        turned: Mapping[int, Tensor] | None = None,
    ) -> None:
        (b, h, n, d), (g, m) = query.shape, key.shape[1:3]
        self.at = at or Positions.consecutive(n, m)
        self.shape, self.scaling, self.softcap = (b, g, h // g), scaling, softcap
        self.mask, self.wide, self.none = mask, wide, query.new_empty(1, 1, 1, dtype=wide)
        self.turned = []
        for index, (part, low, high, q_at, k_at) in enumerate(self.at.bands(parts)):
            if high <= low:
                continue
            if turned and index in turned:
                k = turned[index]
            else:
                k = key if (low, high) == (0, m) else key[:, :, low:high]
                k = k if k_at is None else turn(k, k_at)
            q = turn(query, q_at).to(wide).reshape(b * g, h // g, n, d)
            self.turned.append(_Turned(part, q, k, low))
        size = min(LONGEST_CHUNK, max(16, SCORES_AT_ONCE // (b * h * m)))
        self.bounds = [(start, min(start + size, n)) for start in range(0, n, size)]

    def score(self, start: int, stop: int) -> list[_Scores]:
        """Each part's scores of queries start … stop−1, where it has keys; in their order.

        Numbers of 16 bits are multiplied as float32, which holds their products exactly.
        """
        found, whole = [], len(self.bounds) == 1
        for part, q, k, first in self.turned:
            low, high = first, first + k.shape[2]
            if not whole:
                span = self.at.span(part, start, stop)
                low, high = max(low, span[0]), min(high, span[1])
                if high <= low:
                    continue
                q, k = q[:, :, start:stop], k[:, :, low - first : high - first]
            q, k = q.flatten(1, 2), k.flatten(0, 1).to(self.wide)
            scale = self.scaling * part.factor
            s = torch.baddbmm(self.none, q, k.mT, beta=0, alpha=scale)
            if self.softcap is not None:
                s = self.softcap * torch.tanh(s / self.softcap)

            hidden = functools.partial(self._hidden, part, start, stop, low, high, s.device)
            # of one chunk it is small enough to be kept for the next layer
            hides = self.at.once((part, self.mask), s.device, hidden) if whole else hidden()
            if hides is not None:
                edge = hides[0] - low
                by_row = s.view(*self.shape, stop - start, high - low)[..., edge:]
                by_row.masked_fill_(hides[1], torch.finfo(s.dtype).min)
            found.append(_Scores(low, high, s))
        return sorted(found, key=lambda each: each.low)

    def _hidden(
        self, part: Part, start: int, stop: int, low: int, high: int, device: torch.device
    ) -> tuple[int, Tensor] | None:
        """Of keys low … high−1 those that queries start … stop−1 do not see, from some key on
        [b or 1, 1, 1, c, ·]; None where they see all."""
        edge = low
        if self.mask is None and self.at.offset is not None:
            if stop - start == 1:  # which sees the whole span
                return None
            if part.stop is None:  # all see every key that the first of them sees
                edge = max(low, self.at.span(part, start, start + 1)[1])
        seen = self.at.held(part, start, stop, edge, high).to(device)[:, None, None]
        if self.mask is not None:
            rows = slice(start, stop) if self.mask.shape[2] > 1 else slice(None)
            seen = seen & self.mask[:, :, None, rows, edge:high]
        return edge, ~seen

    def of_sinks(self, sinks: Tensor | None, like: Tensor) -> list[Tensor]:
        """The scores of attention sinks [h] beside `like`, if there are any."""
        if sinks is None:
            return []
        b, g, r = self.shape
        scores = sinks.to(like.dtype).view(g, r, 1).expand(b, -1, -1, like.shape[1] // r)
        return [scores.reshape(b * g, -1, 1)]


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    at: Positions | None = None,
    turned: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Equal to `reference.dense_attention`, argument for argument, in linear memory.

    Keys of parts whose `key` is `as_held` are taken as they are, unturned.

    Args:
        mask: [b or 1, 1, n or 1, m].
        turned: the keys low … high−1 of some parts, by index, that are turned already.
    """
    b, h = query.shape[:2]
    wide = torch.promote_types(value.dtype, torch.float32)
    chunks = _Chunks(query, key, parts, turn, scaling, mask, softcap, at, wide, turned)
    outputs = []
    for start, stop in chunks.bounds:
        scored = chunks.score(start, stop)
        scores = [each.scores for each in scored]
        scores += chunks.of_sinks(sinks, scores[0])
        weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, -1), -1)
        weights = drop(weights, dropout) if dropout else weights
        outputs.append(_weighed(scored, weights, value, wide).view(b, h, stop - start, -1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _weighed(scored: list[_Scores], weights: Tensor, value: Tensor, wide: torch.dtype) -> Tensor:
    """The sum of values [b·g, r·c, d]; slices of keys that adjoin are taken as one."""
    spans: list[list[int]] = []
    for low, high, _ in scored:
        if spans and spans[-1][1] == low:
            spans[-1][1] = high
        else:
            spans.append([low, high])
    output, done = None, 0
    for low, high in spans:
        some = value if (low, high) == (0, value.shape[2]) else value[:, :, low:high]
        w = weights[..., done : done + high - low] if weights.shape[2] > high - low else weights
        new = w @ some.flatten(0, 1).to(wide)
        output, done = new if output is None else output + new, done + high - low
    assert output is not None
    return output.to(value.dtype)


def chunked_entropy(
    query: Tensor,
    key: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    at: Positions | None = None,
) -> tuple[Tensor, Tensor]:
    """The entropy of each query's attention weights, in nats [b, h, n], in linear memory; and how
    many keys it sees [b, n].

    Arguments as for `chunked_attention`. An attention sink counts as one key more. float64 where
    queries are, else float32.
    """
    b, h = query.shape[:2]
    wide = torch.promote_types(query.dtype, torch.float32)
    chunks = _Chunks(query, key, parts, turn, scaling, mask, softcap, at, wide)
    entropies, keys = [], []
    for start, stop in chunks.bounds:
        scored = chunks.score(start, stop)
        scores = torch.cat(
            [*(each.scores for each in scored), *chunks.of_sinks(sinks, scored[0].scores)], -1
        )
        logs = torch.log_softmax(scores, -1)
        entropies.append(-(logs.exp() * logs).sum(-1).view(b, h, stop - start))
        first = scores.view(*chunks.shape, stop - start, -1)[:, 0, 0]
        keys.append((first > torch.finfo(wide).min).sum(-1))
    return torch.cat(entropies, 2), torch.cat(keys, 1)
