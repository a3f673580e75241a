"""Distance attention as a few plain attentions, merged by their log-sum-exp.

No pair is scored twice but at the corners of the window's blocks, and memory is linear in length.
Each part falls into regions of consecutive queries and keys, and these into calls of a plain
attention operator: where every query sees every key, where as many queries see as many keys
causally, and along a window's far edge blocks of queries: each with the keys that it sees, or, in a
wide window, causally to the near edge and, read backwards, to the far one. With the same views of
its gradients a call serves the backward.

Dimensions: b batch, h query heads, g key heads, n queries, m keys, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctxext.engine.operators import Operator, Pattern
from ctxext.engine.positions import Band, Positions
from ctxext.engine.regions import Region, all_regions
from ctxext.engine.single import single_attention
from ctxext.methods.base import Part

BLOCK = 64  # queries in a block: it scores (window + BLOCK − 1) keys to each
BLOCKS_AT_ONCE = 32  # bounds what the backward holds: the blocks' keys overlap
WIDE = 1024  # a window from which on two causal calls for a block cost less than one under a mask

View = Callable[[Tensor], Tensor]
Bands = tuple[Band, ...]


class Call(NamedTuple):
    """One plain attention. `rows` views what has a row for each query, `keys` what has for keys.

    `rows` takes [b, h, n, ·] to [b', g, n', ·], never two views of one element; `keys` takes
    [b, g, m, ·] to [b', g, m', ·], in which blocks of one row overlap if `blocks`.
    """

    part: int
    rows: View
    keys: View
    pattern: Pattern
    blocks: bool
    fresh: bool  # these rows have had no call yet
    backwards: bool = False  # queries and keys are read from the last to the first

    def read(self, x: Tensor) -> Tensor:
        """Rows or keys [b', g, ·, ·], or what was computed of them, in the order of the call."""
        return x.flip(2) if self.backwards else x


def merged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    operator: Operator,
    at: Positions | None = None,
    turned: Mapping[int, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Equal to `reference.dense_attention`, causal and without dropout, in linear memory.

    It can be differentiated once; a second derivative raises RuntimeError.

    Args:
        query, key, value, turn, scaling: as there; key and value have one head dimension.
        parts: as there; keys of those whose `key` is `as_held` are taken as they are.
        operator: what computes plain attention on this device, in this dtype.
        at: as there; of one row of consecutive keys, but for one query.
        turned: the keys low … high−1 of some parts, by index, that are turned already.
        mask: as there, of one query, for operators with `row_masks`; without gradients.
    """
    n = query.shape[2]
    at = at or Positions.consecutive(n, key.shape[2])
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    bands = at.bands(parts)
    queries, keys = [], []
    for index, (_, low, high, q_at, k_at) in enumerate(bands):
        queries.append(turn(query, q_at) if low < high else query)
        if turned and index in turned:
            keys.append(turned[index])
        else:
            k = key[:, :, low : max(low, high)]
            keys.append(turn(k, k_at) if low < high and k_at is not None else k)
    firsts = [band.low for band in bands]
    scalings = [scaling * band.part.factor for band in bands]
    tensors = (value, *queries, *keys)
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if n == 1 and not operator.windows and not graded:
        return single_attention(operator, bands, at, queries, keys, value, scalings, mask)

    def divide() -> list[Call]:
        regions = _windows if operator.windows else _triangles
        return list(regions(bands, at.offset or 0, query, key))

    what = ("calls", query.shape, key.shape, query.dtype, query.device)
    calls = at.once((parts, operator), what, divide)
    if not graded:
        return _merge(operator, calls, firsts, scalings, *tensors)[0]
    given = (operator, calls, firsts, scalings, *tensors)
    merged: Tensor = _Merge.apply(*given)  # type: ignore[no-untyped-call]
    return merged


def _windows(bands: Bands, offset: int, query: Tensor, key: Tensor) -> Iterator[Call]:
    """One call for each region, for operators that take windows."""
    end, n = offset + key.shape[2], query.shape[2]
    for part, low, high, left, right, lag, window in all_regions(bands, offset, end, n):
        rows = _cut(low - (end - n), high - (end - n))
        begin = offset + bands[part].low
        keys = _cut(left - begin, right - begin)
        yield Call(part, rows, keys, Pattern(lag is not None, None, window), False, part == 0)


def _cut(start: int, stop: int | None) -> View:
    return lambda x: x[:, :, start:stop]


def _triangles(bands: Bands, offset: int, query: Tensor, key: Tensor) -> Iterator[Call]:
    """The calls that cover every pair of every part once, those of the first part first."""
    (b, h, n, _), (g, m) = query.shape, key.shape[1:3]
    end = offset + m
    for region in all_regions(bands, offset, end, n):
        for r in range(h // g):

            def rows(x: Tensor, a: int, z: int, r: int = r) -> Tensor:
                return x[:, r :: h // g, a - (end - n) : z - (end - n)]

            first = offset + bands[region.part].low

            def keys(x: Tensor, a: int, z: int, first: int = first) -> Tensor:
                return x[:, :, a - first : z - first]

            yield from _corners(region, offset, rows, keys, b, query)


def _corners(
    region: Region,
    begin: int,
    rows: Callable[..., Tensor],
    keys: Callable[..., Tensor],
    b: int,
    like: Tensor,
) -> Iterator[Call]:
    """A region as a triangle, a rectangle beside it, and blocks along its window's far edge."""
    index, low, high, left, right, lag, window = region
    fresh = index == 0
    if lag is None:
        here = partial(rows, a=low, z=high)
        yield Call(index, here, partial(keys, a=left, z=right), Pattern(), False, fresh)
        return
    whole = high if window is None else min(high, max(low, begin + lag + window))
    if low < whole:  # queries that see every key from `left` on
        here, seen = partial(rows, a=low, z=whole), partial(keys, a=low - lag, z=whole - lag)
        yield Call(index, here, seen, Pattern(causal=True), False, fresh)
    if left < low - lag and low < whole:
        yield Call(index, here, partial(keys, a=left, z=low - lag), Pattern(), False, False)
    if whole < high and window is not None:
        if window < WIDE:
            yield from _blocks(index, lag, window, rows, keys, whole, high, b, like)
        else:
            yield from _wide_blocks(index, lag, window, rows, keys, whole, high, b)


def _wide_blocks(
    index: int,
    lag: int,
    window: int,
    rows: Callable[..., Tensor],
    keys: Callable[..., Tensor],
    low: int,
    high: int,
    b: int,
) -> Iterator[Call]:
    """As `_blocks`: the last window − 1 keys of a block's first query, in front of the block's own.

    A block's queries see of the former ever fewer, which is causal when both are read backwards.
    """
    start, far = low, lag + window - 1
    while start < high:
        size = min(window - 1, high - start)
        stop = start + (high - start) // size * size
        for i in range(b):

            def blocks(x: Tensor, i: int = i, n: int = size) -> Tensor:
                out: Tensor = x[i].unflatten(1, (-1, n))
                return out.transpose(0, 1)

            def here(x: Tensor, a: int = start, z: int = stop, blocks: View = blocks) -> Tensor:
                return blocks(rows(x, a, z))

            def own(x: Tensor, a: int = start, z: int = stop, blocks: View = blocks) -> Tensor:
                return blocks(keys(x, a - lag, z - lag))

            def old(x: Tensor, a: int = start, z: int = stop, blocks: View = blocks) -> Tensor:
                return blocks(keys(x, a - far, z - far))

            def middle(x: Tensor, i: int = i, a: int = start, n: int = size) -> Tensor:
                return keys(x, a + n - far, a - lag)[i : i + 1]

            causal = Pattern(causal=True)
            yield Call(index, here, own, causal, False, index == 0)
            if size < window - 1:
                yield Call(index, here, middle, Pattern(), False, False)
            yield Call(index, here, old, causal, False, False, backwards=True)
        start = stop


def _blocks(
    index: int,
    lag: int,
    window: int,
    rows: Callable[..., Tensor],
    keys: Callable[..., Tensor],
    low: int,
    high: int,
    b: int,
    like: Tensor,
) -> Iterator[Call]:
    """Calls for the queries low … high−1, all of which see as many keys as the window holds."""
    start = low
    while start < high:
        size = min(BLOCK, high - start)
        count = min((high - start) // size, BLOCKS_AT_ONCE)
        stop, width = start + count * size, window + size - 1
        mask = _band(size, window, like)
        for i in range(b):

            def here(x: Tensor, i: int = i, a: int = start, z: int = stop, n: int = size) -> Tensor:
                blocks: Tensor = rows(x, a, z)[i].unflatten(1, (-1, n))
                return blocks.transpose(0, 1)

            def seen(
                x: Tensor, i: int = i, a: int = start, z: int = stop, n: int = size, w: int = width
            ) -> Tensor:
                some = keys(x, a - lag - window + 1, z - lag)[i]
                return some.unfold(1, w, n).permute(1, 0, 3, 2)

            yield Call(index, here, seen, Pattern(mask=mask), True, index == 0)
        start = stop


def _band(size: int, window: int, like: Tensor) -> Tensor | None:
    """What hides from `size` queries all but the `window` keys that each sees; None if nothing."""
    if size == 1:
        return None
    ahead = torch.arange(window + size - 1, device=like.device)
    ahead = ahead - torch.arange(size, device=like.device)[:, None]
    hidden = (ahead < 0) | (ahead >= window)
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)


def _merge(
    operator: Operator,
    calls: list[Call],
    firsts: list[int],
    scalings: list[float],
    value: Tensor,
    *turned: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the calls together."""
    queries, keys = turned[: len(firsts)], turned[len(firsts) :]
    b, h, n, d = queries[0].shape
    wide = torch.promote_types(value.dtype, torch.float32)
    out = value.new_empty(b, n, h, d, dtype=wide).transpose(1, 2)
    lse = value.new_empty(b, h, n, 1, dtype=wide)
    for call in calls:
        q, k = call.rows(queries[call.part]), call.keys(keys[call.part])
        v = call.keys(value[:, :, firsts[call.part] :])
        q, k, v = (call.read(x) for x in (q, k, v))
        new, its = operator.forward(q, k, v, scalings[call.part], call.pattern)
        new, its = call.read(new), call.read(its[..., None])
        o, s = call.rows(out), call.rows(lse)
        if call.fresh:
            o.copy_(new)
            s.copy_(its)
        else:
            o.lerp_(new.to(wide), torch.sigmoid(its - s))
            torch.logaddexp(s, its, out=s)
    return out.to(value.dtype), lse


class _Merge(torch.autograd.Function):
    """out = Σ over calls of each one's output, weighted by its share of the sum of weights."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        calls: list[Call],
        firsts: list[int],
        scalings: list[float],
        value: Tensor,
        *turned: Tensor,
    ) -> Tensor:
        out, lse = _merge(operator, calls, firsts, scalings, value, *turned)
        ctx.operator, ctx.calls, ctx.firsts, ctx.scalings = operator, calls, firsts, scalings
        ctx.save_for_backward(value, out, lse, *turned)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, out, lse, *turned = ctx.saved_tensors
        count = len(ctx.firsts)
        wide = lse.dtype
        gradients = [torch.zeros_like(x, dtype=wide) for x in (value, *turned)]
        for call in ctx.calls:
            p, first = call.part, ctx.firsts[call.part]
            rows = [call.rows(x) for x in (grad, turned[p], out, lse)]
            k, v = call.keys(turned[count + p]), call.keys(value[:, :, first:])
            do, q, o, its, k, v = (call.read(x) for x in (*rows, k, v))
            found = ctx.operator.backward(
                do, q, k, v, o, its[..., 0], ctx.scalings[p], call.pattern
            )
            new = [call.read(x) for x in found]
            call.rows(gradients[1 + p]).add_(new[0])
            _add(call, gradients[1 + count + p], new[1])
            _add(call, gradients[0][:, :, first:], new[2])
        given = (value, *turned)
        return (None,) * 4 + tuple(g.to(x.dtype) for g, x in zip(gradients, given, strict=True))


def _add(call: Call, total: Tensor, new: Tensor) -> None:
    """Add the gradient of a call's keys or values to the whole; blocks of them overlap."""
    target = call.keys(total)
    if not call.blocks:
        target.add_(new)
        return
    for own, more in zip(target, new, strict=True):
        own.add_(more)
