"""What makes a record sound: its types, and what its fields say of one another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from ctxext.records.record import (
    BENCH,
    MEASURES,
    Bench,
    Bucket,
    Finished,
    FinishedBench,
    Record,
    Spread,
    is_share,
)

_WHERE = re.compile(r"(.*?)(?: - at `\$\.(.*)`)?", re.DOTALL)


def problem_with(record: Any) -> str | None:
    """What makes this no record, in a few words, or None if it is sound."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for kind in _kinds(record):
        try:
            msgspec.convert(record, kind)
        except (msgspec.ValidationError, RecursionError) as error:
            return _told(record, str(error))
    return next(_disagreements(cast(Record, record)), None)


def schema() -> dict[str, Any]:
    """The JSON schema of a record."""
    kinds = (Record, Finished, Bench, FinishedBench)
    (record, finished, bench, finished_bench), parts = msgspec.json.schema_components(
        kinds, ref_template="#/$defs/{name}"
    )
    ok, timed = {"status": {"const": "ok"}}, {"task": {"const": BENCH}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **record,
        "allOf": [
            {"if": {"properties": ok}, "then": finished},
            {"if": {"properties": timed}, "then": bench},
            {"if": {"properties": {**ok, **timed}}, "then": finished_bench},
        ],
        "$defs": parts,
    }


def _kinds(record: dict[str, Any]) -> Iterator[Any]:
    """The types that a record has to be of."""
    ok, bench = record.get("status") == "ok", record.get("task") == BENCH
    yield Record
    if ok:
        yield Finished
    if bench:
        yield Bench
    if ok and bench:
        yield FinishedBench


def _told(record: dict[str, Any], said: str) -> str:
    """What msgspec says, with the field and its value."""
    matched = _WHERE.fullmatch(said)
    what, where = matched.groups() if matched else (said, None)
    if what.startswith("Object missing required field"):
        name = what.split("`")[1]
        return f"the field {f'{where}.{name}' if where else name!r} is missing"
    if where is None:
        return what
    return f"the field {where!r} cannot be {_at(record, where)}: {what[0].lower()}{what[1:]}"


def _at(record: Any, where: str) -> str:
    """What is at a place as `data.tokens` or `buckets[3].n`, cut short."""
    try:
        for name, number in re.findall(r"(\w+)|\[(\d+)\]", where):
            record = record[name or int(number)]
        return repr(str(record)[:60])
    except (LookupError, TypeError, ValueError):
        return "so"


def _disagreements(record: Record) -> Iterator[str]:
    """Where fields of the right types do not go together, in a few words each."""
    if record["status"] == "ok" and not _in_range(record):
        yield f"the value of {record['metric']} cannot be {record['value']}"
    if (
        record["status"] == "ok"
        and record["task"] == BENCH
        and record.get(record["metric"]) is None
    ):
        yield f"the field {record['metric']!r} cannot be None"
    if (kept := record.get("by_window")) is not None:
        each = list(zip(kept["n"], kept["hits"], strict=False))
        sizes = {len(kept["n"]), len(kept["nll"]), len(kept["hits"])}
        whole = sum(kept["n"]) == record["n"] != 0
        if len(sizes) > 1 or not whole or any(hits > n for n, hits in each):
            yield "its by_window is not as many n as nll and hits, or not of all n tokens"
    if (samples := record.get("by_sample")) and len(samples["scores"]) != record["n"]:
        yield "its by_sample is not prompts and as many finite scores as there are samples"
    ratio = record.get("ratio")
    for spread in (ratio[measure] for measure in MEASURES) if ratio else ():
        if spread is not None and not _ordered(spread):
            yield "its ratio has an end that is missing, or a median that is not between both"
    yield from _misplaced(record["buckets"] or [], record["length"])


def _ordered(spread: Spread) -> bool:
    """Whether it has a median between both its ends, or neither end."""
    low, high = spread["low"], spread["high"]
    if low is None or high is None:
        return low is high
    return low <= spread["median"] <= high


def _in_range(record: Record) -> bool:
    """Whether a metric of ours can have the value; another library's may have any."""
    metric, value = record["metric"], record["value"]
    if value is None:
        return False
    if is_share(metric, record["task"]):
        return 0 <= value <= 1
    return value > 0 if metric == "perplexity" else value >= 0 or metric not in MEASURES


def _misplaced(buckets: list[Bucket], length: int) -> Iterator[str]:
    """Buckets are in order, within the length, and have means exactly where they have tokens."""
    end = 0
    for number, bucket in enumerate(buckets):
        ordered = end <= bucket["start"] <= bucket["stop"] - bool(bucket["n"])
        if not (ordered and bucket["stop"] <= length):
            yield f"bucket {number} is out of order or reaches beyond the length"
        end = bucket["stop"]
        if any((mean is None) != (bucket["n"] == 0) for mean in (bucket["nll"], bucket["acc"])):
            yield f"bucket {number} has a wrong nll or acc for n={bucket['n']}"
