"""Distance attention in one Triton kernel, forward only: no score leaves the chip.

A block of queries visits, for each part, just the tiles of keys that the part shows it: far tiles
take the far product alone, near tiles the near product alone, and only what crosses a boundary is
visited by both. Tiles that a whole block sees are not masked.

Dimensions: b batch, h query heads, g key heads, n queries, m keys, d head dimension of queries and
keys, v of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctxext.errors import UnsupportedModelError
from ctxext.patches.base import Part, as_held

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = range(32, 257)
MOST_PARTS = 3
OLDEST = (8, 0)  # the compute capability of an A100: Triton has no tensor cores before it
SHARED = 227 * 2**10  # bytes of shared memory that a block may take on an H100
CACHE = 2**25  # bytes of keys and values that heads run side by side may need: half an H100's L2


class _Heads(NamedTuple):
    at: Tensor  # [b, h or g, l, d]
    batch: int  # its strides; that of d is 1
    head: int
    row: int


class _Turned(NamedTuple):
    query: _Heads
    key: _Heads  # of the slots that any query sees in this part, the last of them m − 1 − start


class _Tiling(NamedTuple):
    rows: int  # queries in a block
    slots: int  # keys in a tile
    warps: int
    stages: int  # tiles of keys and values that are loaded ahead


def why_not(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps the kernel from such tensors, in a few words; None where it runs."""
    if triton is None:
        return "triton is not installed (pip install 'ctxext[triton]')"
    interpreted = not isinstance(_forward, triton.JITFunction)
    if device_type != "cuda" and not (interpreted and device_type == "cpu"):
        return "it needs a CUDA device"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST:
        return "a GPU of compute capability below {}.{} is not served".format(*OLDEST)
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} is not served"
    if interpreted and dtype == torch.bfloat16:
        return "bfloat16 is not served by Triton's interpreter"
    if head_dim not in HEAD_DIMS:
        return f"a head dimension of {head_dim} is not in {HEAD_DIMS[0]} … {HEAD_DIMS[-1]}"
    return None


def why_not_parts(parts: tuple[Part, ...]) -> str | None:
    """What keeps the kernel from a method's parts, in a few words; None where it serves them."""
    if not parts:
        return None
    if len(parts) > MOST_PARTS:
        return f"{len(parts)} parts are more than {MOST_PARTS}"
    if any(part.unit > 1 or part.first is not None for part in parts):
        return "chunks and first keys are not served"
    if [part.start for part in parts] != [0, *(part.stop for part in parts[:-1])]:
        return "parts that are not next to each other are not served"
    return None if parts[-1].stop is None else "keys that no part shows are not served"


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
    scaling: float,
    first: Tensor | None = None,
) -> Tensor:
    """Equal to `chunked_attention`, argument for argument, but for a mask and dropout.

    Keys of parts whose `key` is `as_held` are taken as they are, unturned.

    Args:
        query: [b, h, n, d]; the queries are the last n of the m slots.
        key, value: [b, g, m, d] and [b, g, m, v], with h a multiple of g.
        parts: one to three, nearest first; they cover every δ ≥ 0 once (`why_not_parts`).
        turn: `turn(x [b, *, l, d], positions [l])` rotates each x by its position (tokens;
            float64, on the CPU).
        scaling: what scores are multiplied by, above 0.
        first: integers [b], the slot of each row's first token, as left padding has it: slots
            before it are neither read nor seen, and queries there give 0. None: all are tokens.

    Returns:
        [b, h, n, v], in the dtype of `query`; `.transpose(1, 2)` of it is contiguous.

    Raises:
        UnsupportedModelError: the kernel does not serve these tensors, or a gradient is wanted.
    """
    _require_served(query, key, value, parts, scaling)
    (b, h, n, d), (g, m), v = query.shape, key.shape[1:3], value.shape[3]
    turned, ends = _turn_parts(query, key, parts, turn)
    values = _heads(value)
    output = _heads(query.new_empty(b, n, h, v).transpose(1, 2))
    width, value_width = triton.next_power_of_2(d), triton.next_power_of_2(v)
    tiling = _tiling(max(width, value_width), query.element_size(), n, _shared(query.device))
    side_by_side = max(1, CACHE // (m * (len(turned) * d + v) * query.element_size()))
    tensors = (values, output, *(x for part in turned for x in part))
    aligned = all(stride % 8 == 0 for x in tensors for stride in x[1:])
    with torch.cuda.device_of(query):
        _forward[(triton.cdiv(n, tiling.rows) * b * h,)](
            turned,
            ends,
            values,
            output,
            None if first is None else first.to(query.device, torch.int32).contiguous(),
            scaling * math.log2(math.e),
            n,
            m,
            h,
            h // g,
            b * h,
            min(b * h, side_by_side * (h // g)),
            PARTS=len(turned),
            D=d,
            V=v,
            WIDTH=width,
            VALUE_WIDTH=value_width,
            ROWS=tiling.rows,
            SLOTS=tiling.slots,
            ALIGNED=8 if aligned else 1,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
            enable_fp_fusion=True,
        )
    return output.at


def _require_served(
    query: Tensor, key: Tensor, value: Tensor, parts: tuple[Part, ...], scaling: float
) -> None:
    """UnsupportedModelError unless the kernel can take these."""
    kind, dtype = query.device.type, query.dtype
    reason = why_not(kind, dtype, query.shape[3]) or why_not(kind, dtype, value.shape[3])
    if reason is None and not key.dtype == value.dtype == dtype:
        reason = f"its dtypes differ: {dtype}, {key.dtype} and {value.dtype}"
    reason = reason or why_not_parts(parts)
    if reason is None and not scaling > 0:
        reason = f"a scaling of {scaling} is not above 0"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        reason = reason or "it has no gradient: use torch.no_grad() or another path"
    if reason is not None:
        raise UnsupportedModelError(f"the fused kernel cannot take this attention: {reason}")


def _turn_parts(
    query: Tensor,
    key: Tensor,
    parts: tuple[Part, ...],
    turn: Callable[[Tensor, Tensor], Tensor],
) -> tuple[tuple[_Turned, ...], tuple[int, ...]]:
    """The parts in which any key is seen, turned, and where all but the last of them end."""
    n, m = query.shape[2], key.shape[2]
    position = torch.arange(m, dtype=torch.float64)
    turned, stops = [], []
    for part in parts:
        stop = m if part.stop is None else part.stop
        here = slice(max(0, m - n - stop + 1), m - part.start)
        if here.start >= here.stop:
            continue
        keys = key[:, :, here]
        if part.key is not as_held:
            keys = turn(keys, part.key(position[here]))
        queries = turn(query, part.query(position[m - n :]))
        turned.append(_Turned(_heads(queries), _heads(keys)))
        stops.append(stop)
    return tuple(turned), tuple(stops[:-1])


def _heads(x: Tensor) -> _Heads:
    """x [b, h, l, d] and its strides, with a contiguous last dimension."""
    x = x if x.stride(3) == 1 else x.contiguous()
    return _Heads(x, *x.stride()[:3])


def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a block may take; CUDA keeps 1 KiB of a multiprocessor's."""
    if device.type != "cuda":
        return SHARED
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor - 2**10


def _tiling(width: int, itemsize: int, n: int, shared: int) -> _Tiling:
    """Blocks for heads of `width` (a power of 2), by arithmetic and not by measurement.

    Shared memory holds a block's queries and `stages` tiles of keys and values. Registers hold its
    sums and scores in float32, at most 128·(256 + 32) numbers on 256 threads: 144 of the 255 that
    each has. In float32, products are taken without tensor cores, with operands in registers too,
    so the blocks are smaller. Compiled for an H100, blocks of 128 rows spill no register.
    """
    rows, warps, stages = 128, 8, 3
    slots = min(128, 8192 // width)
    if itemsize == 4:
        rows, slots, warps, stages = (32 if width <= 64 else 16), max(16, 2048 // width), 4, 2
    if n <= rows // 2:
        rows, warps = max(16, triton.next_power_of_2(n)), 4
    room = shared // (width * itemsize) - rows
    stages = min(stages, room // (2 * slots))
    return _Tiling(rows, slots, warps, stages)


def _jit(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator for Triton functions, not compiled anew for each kind of number in `varying`."""
    if triton is None:
        return lambda function: function
    return lambda function: triton.jit(function, do_not_specialize=varying)


@_jit("n", "m", "all_heads", "at_once")
def _forward(
    parts: tl.tuple,
    ends: tl.tuple,
    value: tl.tuple,
    output: tl.tuple,
    first: tl.tensor,
    scale: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    heads: tl.tensor,
    sharing: tl.tensor,
    all_heads: tl.tensor,
    at_once: tl.tensor,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """Attention of one block of queries of one head.

    Programs run in order: the longest blocks first, over as many heads as the cache has room for.
    """
    blocks = tl.cdiv(n, ROWS)
    group = tl.program_id(0) // (at_once * blocks)
    turn = tl.program_id(0) % (at_once * blocks)
    abreast = tl.minimum(at_once, all_heads - group * at_once)
    row = (blocks - 1 - turn // abreast) * ROWS
    place = group * at_once + turn % abreast
    batch = (place // heads).to(tl.int64)
    head = (place % heads).to(tl.int64)

    begin = 0
    if first is not None:
        begin = tl.load(first + batch)
    oldest = m - n + row
    newest = tl.minimum(oldest + ROWS, m) - 1
    rows = row + tl.arange(0, ROWS)
    here = (rows < n)[:, None]
    columns = tl.arange(0, WIDTH)
    value_columns = tl.arange(0, VALUE_WIDTH)
    slots = tl.arange(0, SLOTS)
    values = _at(value, batch, head // sharing, slots, value_columns, ALIGNED)
    value_row = _stride(value.row, ALIGNED)

    sums = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    peak = tl.full((ROWS,), -3e38, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    start = 0
    for i in tl.static_range(PARTS):
        stop = m
        if i < PARTS - 1:
            stop = ends[i]
        query, key = parts[i].query, parts[i].key
        at = _at(query, batch, head, rows, columns, ALIGNED)
        q = tl.load(at, mask=here & (columns < D)[None, :], other=0.0)
        shift = tl.maximum(0, m - n - stop + 1)
        keys = _at(key, batch, head // sharing, slots - shift, columns, ALIGNED)
        key_row = _stride(key.row, ALIGNED)
        low = tl.maximum(begin, oldest - stop + 1)
        high = newest - start + 1
        inner = low + tl.cdiv(tl.maximum(0, newest - stop + 1 - low), SLOTS) * SLOTS
        outer = inner + tl.maximum(0, oldest - start + 1 - inner) // SLOTS * SLOTS
        tile = (q, keys, key_row, values, value_row)
        seen = (m - n + rows, start, stop, high)
        state = (sums, peak, mass)
        if i < PARTS - 1:
            state = _visit(state, tile, seen, low, inner, scale, D, V, SLOTS, True)
        state = _visit(state, tile, seen, inner, outer, scale, D, V, SLOTS, False)
        state = _visit(state, tile, seen, outer, high, scale, D, V, SLOTS, True)
        sums, peak, mass = state
        start = stop
    mean = sums / tl.where(mass == 0, 1.0, mass)[:, None]
    at = _at(output, batch, head, rows, value_columns, ALIGNED)
    tl.store(at, mean.to(output.at.dtype.element_ty), mask=here & (value_columns < V)[None, :])


@_jit()
def _visit(
    state: tl.tuple,
    tile: tl.tuple,
    seen: tl.tuple,
    since: tl.tensor,
    until: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    V: tl.constexpr,
    SLOTS: tl.constexpr,
    EDGE: tl.constexpr,
) -> tl.tuple:
    """The online softmax `state` after the tiles that begin at slots since, since + SLOTS, ….

    EDGE: not every query of the block sees every key of these tiles.
    """
    sums, peak, mass = state
    q, keys, key_row, values, value_row = tile
    places, start, stop, high = seen
    for begin in range(since, until, SLOTS):
        slots = begin + tl.arange(0, SLOTS)
        k = _load(keys + begin * key_row, slots < high, D, EDGE)
        v = _load(values + begin * value_row, slots < high, V, EDGE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if EDGE:
            delta = places[:, None] - slots[None, :]
            scores = tl.where((delta >= start) & (delta < stop), scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - top[:, None])
        fade = tl.exp2(peak - top)
        mass = mass * fade + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
        peak = top
    return sums, peak, mass


@_jit()
def _load(at: tl.tensor, held: tl.tensor, COLUMNS: tl.constexpr, EDGE: tl.constexpr) -> tl.tensor:
    """What pointers `at` [slots, width] show; 0 past COLUMNS and, at an EDGE, where not `held`."""
    columns = tl.arange(0, at.shape[1]) < COLUMNS
    if EDGE:
        x = tl.load(at, mask=held[:, None] & columns[None, :], other=0.0)
    elif at.shape[1] > COLUMNS:
        x = tl.load(at, mask=columns[None, :], other=0.0)
    else:
        x = tl.load(at)
    return x


@_jit()
def _at(
    x: tl.tuple,
    batch: tl.tensor,
    head: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Pointers [rows, columns] into one head of x."""
    corner = x.at + batch * _stride(x.batch, ALIGNED) + head * _stride(x.head, ALIGNED)
    return corner + rows.to(tl.int64)[:, None] * _stride(x.row, ALIGNED) + columns[None, :]


@_jit()
def _stride(x: tl.tensor, ALIGNED: tl.constexpr) -> tl.tensor:
    """x as an int64 that the compiler knows to be a multiple of ALIGNED."""
    return tl.cast(x, tl.int64) // ALIGNED * ALIGNED
