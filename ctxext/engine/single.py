"""Distance attention of one query in each row: a plain attention for each part, merged.

Rows of a padded batch hold a part's keys at different slots. One call for all of them reads every
slot that any row needs, behind a mask; where that is much more, each row has a call of its own.

Dimensions: b batch, h query heads, g key heads, m keys, l of them, d head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ctxext.engine.operators import Operator, Pattern
from ctxext.engine.positions import Band, Positions

CALL = 2**18  # bytes of keys and values that are read in the time that a call costs


class Piece(NamedTuple):
    """Some rows' keys low … high−1 of a part; none if low = high.

    Attributes:
        mask: added to scores [rows or 1, 1, 1, l]; None hides nothing.
        none: rows that it leaves no key [rows or 1, 1, 1].
    """

    part: int
    rows: slice
    low: int
    high: int
    mask: Tensor | None = None
    none: Tensor | None = None


def single_attention(
    operator: Operator,
    bands: tuple[Band, ...],
    at: Positions,
    queries: list[Tensor],
    keys: list[Tensor],
    value: Tensor,
    scalings: list[float],
    mask: Tensor | None,
) -> Tensor:
    """Equal to `reference.dense_attention` of one query in each row, without gradients.

    Args:
        bands: the parts.
        queries, keys: of each part, turned: [b, h, 1, d], and its keys low … high−1 [b, g, l, d].
        value: [b, g, m, d].
        scalings: of each part's scores.
        mask: [b or 1, 1, 1, m], True where seen; for operators with `row_masks`.
    """
    (b, h, _, d), g = queries[0].shape, value.shape[1]
    wide = torch.promote_types(value.dtype, torch.float32)
    least = torch.finfo(wide).min / 4
    queries = [q.reshape(b, g, h // g, d) for q in queries]  # heads are queries of their keys

    def divide() -> list[Piece]:
        some = (index for index, band in enumerate(bands) if band.low < band.high)
        return [piece for index in some for piece in _pieces(index, bands[index], at, value, mask)]

    outs, sums = [], []
    for index, rows, low, high, hides, none in at.once((bands, mask), value.shape, divide):
        q = queries[index][rows]
        if low == high:
            outs.append(torch.zeros_like(q))
            sums.append(q.new_full(q.shape[:3], least, dtype=wide))
            continue
        k = keys[index][rows, :, low - bands[index].low : high - bands[index].low]
        v = value[rows, :, low:high]
        out, its = operator.forward(q, k, v, scalings[index], Pattern(mask=hides))
        outs.append(out)
        sums.append(its if none is None else its.masked_fill(none, least))
    if len(outs) == 1:
        return outs[0].reshape(b, h, 1, d)
    weights = torch.cat(sums).view(-1, b, g, h // g, 1).softmax(0)
    merged = (torch.cat(outs).view(-1, b, g, h // g, d) * weights).sum(0)
    return merged.to(value.dtype).view(b, h, 1, d)


def _pieces(
    index: int, band: Band, at: Positions, value: Tensor, mask: Tensor | None
) -> Iterator[Piece]:
    """One part's keys, of all rows at once or row by row, in the rows' order."""
    b, g, _, d = value.shape
    part, low, high, *_ = band
    if mask is None and at.offset is not None:  # all of them are seen
        yield Piece(index, slice(0, b), low, high)
        return
    seen = at.held(part, 0, 1, low, high)[:, 0]
    seen = (seen if mask is None else seen & mask[:, 0, 0, low:high].cpu()).expand(b, -1)
    count, first = seen.sum(-1), seen.byte().argmax(-1)
    last = high - low - 1 - seen.flip(-1).byte().argmax(-1)
    spans = torch.stack((first, torch.where(count > 0, last + 1, first)), 1).tolist()
    runs = [(*span, len([*rows])) for span, rows in itertools.groupby(spans)]
    spared = int((~seen).sum()) * 2 * g * d * value.element_size()
    consecutive = bool((last - first + 1 == count)[count > 0].all())
    if consecutive and spared >= CALL * (len(runs) - 1):
        row = 0
        for start, stop, rows in runs:
            yield Piece(index, slice(row, row + rows), low + start, low + stop)
            row += rows
        return
    hidden = ~seen[:, None, None].to(value.device)
    mask = torch.zeros_like(hidden, dtype=value.dtype).masked_fill_(hidden, -torch.inf)
    yield Piece(index, slice(0, b), low, high, mask, hidden.all(-1))
