"""Records as a pandas DataFrame."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError
from ctxext.records.intervals import interval
from ctxext.records.metrics import higher_is_better, perfect_score
from ctxext.records.record import MEASURES, RATIO, Record
from ctxext.records.store import Store

if TYPE_CHECKING:
    from pandas import DataFrame

_TEXT, _WHOLE, _NUMBER, _TRUTH = "string", "Int64", "Float64", "boolean"
_RATIOS = [f"{measure}_ratio{end}" for measure in MEASURES for end in ("", "_low", "_high")]
_FIELDS: dict[str, str] = {  # of a record
    **dict.fromkeys(("model", "requested", "method", "task", "task_resolved", "metric"), _TEXT),
    **dict.fromkeys(("length", "trained_length"), _WHOLE),
    **dict.fromkeys(("status", "reason"), _TEXT),
    **dict.fromkeys(("value", "stderr"), _NUMBER),
    **dict.fromkeys(("n", "windows", "seed", "limit", "batch_size"), _WHOLE),
    **dict.fromkeys(("seconds", "tokens_per_second"), _NUMBER),
    "peak_memory_bytes": _WHOLE,
    **dict.fromkeys(MEASURES[:2], _NUMBER),
    **dict.fromkeys(("dtype", "device", "attention", "own_scaling", "model_sha256"), _TEXT),
    **dict.fromkeys(("created", "key"), _TEXT),
}
_MADE = {  # of several, or of what is in one
    **dict.fromkeys(("low", "high"), _NUMBER),
    "higher_is_better": _TRUTH,
    "perfect_score": _NUMBER,
    **dict.fromkeys(_RATIOS, _NUMBER),
    **dict.fromkeys(("data_name", "data_sha256"), _TEXT),
    "data_tokens": _WHOLE,
}
_LISTS = ("buckets", "parts", "by_window", "by_sample", "notes")


def load(folder: str | Path) -> DataFrame:
    """The sound records of a folder, a row each, in the order of their file names.

    Columns of pandas' nullable types have the fields of a record under their names: `requested` is
    the method as it was asked for and `method` with all parameters, lengths are in tokens, times in
    seconds, and `created` is a time in UTC, NaT where it is none. Besides there are

    - `low` and `high`, the 95% interval of a share over samples (`ctxext.records.interval`);
    - `higher_is_better` and `perfect_score`, also of older records, where the metric is known;
    - `data_name`, `data_sha256`, `data_tokens`; `version_torch` and so on, of what it ran on;
    - of bench records `prefill_seconds_ratio` and so on, with `_low` and `_high`;
    - `buckets`, `parts`, `by_window`, `by_sample` and `notes` as Python's own lists and
      dictionaries, None where a record has none.

    A file that is no sound record is left out with a warning.

    Raises:
        UsageError: there is no such folder, or it cannot be read.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"no folder {str(folder)!r}: give one that ctxext wrote records to")
    records, problems = Store(folder).read_all()
    for problem in problems:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    return to_frame(records)


def to_frame(records: Sequence[Record]) -> DataFrame:
    """Records in their order, a row each, with the columns of `load`."""
    import pandas

    names = sorted({name for record in records for name in record["versions"]})
    types = {**_FIELDS, **_MADE, **dict.fromkeys((f"version_{name}" for name in names), _TEXT)}
    rows = [_row(record) for record in records]
    columns = {
        name: pandas.array([row.get(name) for row in rows], dtype=kind)  # type: ignore[call-overload]
        for name, kind in types.items()
    }
    lists = {name: pandas.Series([row[name] for row in rows], dtype=object) for name in _LISTS}
    frame = pandas.DataFrame({**columns, **lists})
    made = frame["created"]
    frame["created"] = pandas.to_datetime(made, utc=True, format="ISO8601", errors="coerce")
    return frame


def _row(record: Record) -> dict[str, Any]:
    """Its columns."""
    ends = interval(record) if record["status"] == "ok" else None
    row = {name: record.get(name) for name in (*_FIELDS, *_LISTS)}
    row |= {"low": ends and ends.low, "high": ends and ends.high}
    row |= {"higher_is_better": higher_is_better([record]), "perfect_score": perfect_score(record)}
    row |= {f"data_{name}": record["data"].get(name) for name in ("name", "sha256", "tokens")}
    row |= {f"version_{name}": str(version) for name, version in record["versions"].items()}
    for measure in MEASURES:
        ratio = record.get("ratio")
        spread = ratio[measure] if ratio else None
        found = (spread[name] if spread else None for name in RATIO)
        row |= zip((f"{measure}_ratio{end}" for end in ("", "_low", "_high")), found, strict=True)
    return row
