"""The tax: what a method costs inside the trained length T, from the buckets of records.

It is a method's mean over the positions below T minus that of the unpatched model (`rope`) over
the same tokens, in nats per token or in percentage points.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ctxext.records import Record
from ctxext.report.groups import Cells, Column

Mean = Literal["nll", "acc"]  # of a bucket


class Tax(NamedTuple):
    """What the tax of a metric is taken from, and how it is told."""

    bucket: Mean
    unit: str
    scale: float
    digits: int
    words: str


TAXES = {
    "perplexity": Tax("nll", "nat", 1, 3, "mean loss, in nats per token (above 0 is worse),"),
    "accuracy": Tax("acc", "pt", 100, 2, "accuracy, in percentage points (below 0 is worse),"),
}


def taxes_at(cells: Cells, column: Column, metric: str) -> dict[str, float]:
    """The tax of each method that has one at this length; empty if only `rope` would."""
    rope, tax = cells.get(("rope", column)), TAXES.get(metric)
    if tax is None or rope is None or rope["status"] != "ok":
        return {}
    base, where = mean_inside(rope, rope["trained_length"], tax.bucket)
    taxes = {}
    for (method, at), record in cells.items():
        if at == column and record["status"] == "ok":
            mean, tokens = mean_inside(record, rope["trained_length"], tax.bucket)
            if tokens and tokens == where:
                taxes[method] = (mean - base) * tax.scale
    return taxes if len(taxes) > 1 else {}


def mean_inside(
    record: Record, trained: int, field: Mean
) -> tuple[float, list[tuple[int, int, int]]]:
    """The mean over the buckets that end within the trained length, and those buckets."""
    inside = [b for b in record["buckets"] or [] if b["stop"] <= trained and b["n"]]
    total = sum(b["n"] for b in inside)
    mean = sum((b[field] or 0.0) * b["n"] for b in inside) / total if total else 0.0
    return mean, [(b["start"], b["stop"], b["n"]) for b in inside]
