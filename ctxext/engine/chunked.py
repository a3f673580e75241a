"""Distance attention by query chunks: memory is linear in length, and few pairs are scored twice.

Each part's keys for a chunk of queries are taken as one slice (`Part.span`); the parts' scores
stand side by side and share one softmax.

Dimensions: b batch, g key heads, r queries heads per key head, n queries, m keys, c queries in a
chunk, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from ctxext.patches.base import Part, as_held

SCORES_AT_ONCE = 2**22  # scores held for a chunk: 16 MiB of float32, which a CPU cache still holds
LONGEST_CHUNK = 128  # a longer one scores more pairs outside the window than it saves in calls


class _Turned(NamedTuple):
    part: Part
    query: Tensor  # [b, g, r, n, d]
    key: Tensor  # [b, g, last - first, d]
    first: int  # the position of key[:, :, 0]


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
) -> Tensor:
    """Equal to `reference.dense_attention`, argument for argument, in linear memory.

    Keys of parts whose `key` is `as_held` are taken as they are, unturned.
    """
    (b, h, n, _), m = query.shape, key.shape[2]
    turned = _turned(query, key, parts, turn)
    outputs = [
        _attend_chunk(turned, value, scaling, mask, m - n, start, stop, dropout, softcap, sinks)
        for start, stop in _chunks(b * h, n, m)
    ]
    return torch.cat(outputs, 3).view(b, h, n, value.shape[-1])


def chunked_entropy(
    query: Tensor,
    key: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The entropy of each query's attention weights, in nats [b, h, n], in linear memory; and how
    many keys it sees [b, n].

    Arguments as for `chunked_attention`. An attention sink counts as one key more. float64 where
    queries are, else float32.
    """
    (b, h, n, _), m = query.shape, key.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    turned = _turned(query, key, parts, turn)
    entropies, keys = [], []
    for start, stop in _chunks(b * h, n, m):
        found, _ = _score_chunk(turned, wide, scaling, mask, m - n, start, stop, softcap, sinks)
        scores = torch.cat(found, -1)
        logs = torch.log_softmax(scores, -1)
        entropies.append(-(logs.exp() * logs).sum(-1))
        keys.append((scores[:, 0, 0] > torch.finfo(wide).min).sum(-1))
    return torch.cat(entropies, 3).view(b, h, n), torch.cat(keys, 1)


def _turned(
    query: Tensor,
    key: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
) -> list[_Turned]:
    """The parts that have keys, each with its queries and keys rotated."""
    (b, h, n, d), (g, m) = query.shape, key.shape[1:3]
    position = torch.arange(m, dtype=torch.float64)
    turned = []
    for part in parts:
        first, last = part.span(m - n, m - 1)
        if last <= first:
            continue
        keys = key[:, :, first:last]
        if part.key is not as_held:
            keys = turn(keys, part.key(position[first:last]))
        queries = turn(query, part.query(position[m - n :]))
        turned.append(_Turned(part, queries.view(b, g, h // g, n, d), keys, first))
    return turned


def _chunks(heads: int, n: int, m: int) -> list[tuple[int, int]]:
    """The first query of each chunk, and the one after its last; `heads` of all rows."""
    chunk = min(LONGEST_CHUNK, max(16, SCORES_AT_ONCE // (heads * m)))
    return [(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def single_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
) -> Tensor:
    """Equal to `chunked_attention` for one query, n = 1, without a mask."""
    (b, h, _, d), (g, m) = query.shape, key.shape[1:3]
    last, scores = torch.tensor([m - 1.0], dtype=torch.float64), []
    spans = [(part.span(m - 1, m - 1), part) for part in parts]
    seen: list[list[int]] = []  # slots, those that adjoin as one
    for (low, high), part in sorted(spans, key=lambda item: item[0]):
        if low >= high:
            continue
        keys = key[:, :, low:high]
        if part.key is not as_held:
            keys = turn(keys, part.key(torch.arange(low, high, dtype=torch.float64)))
        q = turn(query, part.query(last)) * scaling
        scores.append(q.view(b, g, h // g, d) @ keys.mT)
        if seen and seen[-1][1] == low:
            seen[-1][1] = high
        else:
            seen.append([low, high])
    weights = torch.softmax(torch.cat(scores, -1), -1).split([z - a for a, z in seen], -1)
    some = [w @ value[:, :, a:z] for w, (a, z) in zip(weights, seen, strict=True)]
    return torch.stack(some).sum(0).view(b, h, 1, value.shape[-1])


def _attend_chunk(
    turned: list[_Turned],
    value: Tensor,
    scaling: float,
    mask: Tensor | None,
    offset: int,
    start: int,
    stop: int,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of queries start … stop−1, which stand at offset + start …: [b, g, r, c, d].

    Numbers of 16 bits are multiplied as float32, which holds their products exactly.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    scores, spans = _score_chunk(turned, wide, scaling, mask, offset, start, stop, softcap, sinks)
    b, g, r, c, _ = scores[0].shape
    weights = drop(torch.softmax(torch.cat(scores, -1), -1), dropout)
    output = value.new_zeros(b, g, r * c, value.shape[-1], dtype=wide)
    seen_weights = weights[..., : weights.shape[-1] - (sinks is not None)]
    sizes = [hi - lo for lo, hi in spans]
    for (low, high), w in zip(spans, seen_weights.split(sizes, -1), strict=True):
        output = output + w.reshape(b, g, r * c, high - low) @ value[:, :, low:high].to(wide)
    return output.view(b, g, r, c, -1).to(value.dtype)


def _score_chunk(
    turned: list[_Turned],
    wide: torch.dtype,
    scaling: float,
    mask: Tensor | None,
    offset: int,
    start: int,
    stop: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Each part's scores [b, g, r, c, keys], and the sinks' last; the slots of each part's keys."""
    scores, spans = [], []
    for part, query, key, first in turned:
        low, high = part.span(offset + start, offset + stop - 1)
        low, high = max(first, low), min(first + key.shape[2], high)
        if high <= low:
            continue
        q = query[:, :, :, start:stop].to(wide) * scaling
        k = key[:, :, low - first : high - first].to(wide)
        b, g, r, c, d = q.shape
        s = (q.reshape(b, g, r * c, d) @ k.mT).view(b, g, r, c, high - low)
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        # without a mask or an end, the whole chunk sees every key that its first query sees
        sure = mask is None and part.stop is None
        edge = max(low, part.span(offset + start, offset + start)[1]) if sure else low
        seen = _seen(part, mask, offset, start, stop, edge, high, s.device)
        s[..., edge - low :].masked_fill_(~seen, torch.finfo(s.dtype).min)
        scores.append(s)
        spans.append((low, high))
    if sinks is not None:
        b, g, r, c, _ = scores[0].shape
        scores.append(sinks.to(wide).view(g, r, 1, 1).expand(b, -1, -1, c, 1))
    return scores, spans


def _seen(
    part: Part,
    mask: Tensor | None,
    offset: int,
    start: int,
    stop: int,
    low: int,
    high: int,
    device: torch.device,
) -> Tensor:
    """Which keys low … high−1 queries start … stop−1 see in this part: [b or 1, 1, 1, c, keys]."""
    query = torch.arange(offset + start, offset + stop, device=device)
    seen = part.holds(query[:, None], torch.arange(low, high, device=device))
    return seen if mask is None else seen & mask[:, :, None, start:stop, low:high]
