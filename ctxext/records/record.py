"""The record of one cell: its fields, what makes it sound, and the seal that shows later edits.

A record is a flat JSON object: one model, method, task and length, and what was measured:
scores, or under the task `bench` seconds and bytes, with their ratios to the unpatched model.
Lengths and positions are in tokens, losses in nats per token, accuracies from 0 to 1, times
in seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]

SHARES = ("accuracy", "passkey", "kv")  # metrics from 0 to 1
_OTHERS = "lm-eval:"  # how tasks begin whose numbers are another library's, on scales of its own
BENCH = "bench"  # the task of records that have speed and memory in place of scores
MEASURES = ("prefill_seconds", "decode_seconds_per_token", "peak_memory_bytes")
SPENT = ("prefill_seconds", "prefill_tokens", "decode_seconds", "decode_tokens")  # by forwards
RATIO = ("median", "low", "high")


def problem_with(record: object) -> str | None:
    """What makes this no record, in a few words, or None if it is sound."""
    if not isinstance(record, dict):
        return "not a JSON object"
    ok, bench = record.get("status") == "ok", record.get("task") == BENCH
    for field, check in {**_CHECKS, **(_BENCH_CHECKS if bench else {})}.items():
        if field not in record:
            return f"the field {field!r} is missing"
        unmeasured = not ok and field in _MEASURED and record[field] is None
        if not (unmeasured or check(record[field])):
            return f"the field {field!r} cannot be {str(record[field])[:60]!r}"
    if ok and bench and record[record["metric"]] is None:
        return f"the field {record['metric']!r} cannot be None"
    if ok and not _in_range(record):
        return f"the value of {record['metric']} cannot be {record['value']}"
    resolved = record.get("task_resolved")
    if not (resolved is None or _text(resolved)):
        return f"the field 'task_resolved' cannot be {str(resolved)[:60]!r}"
    own, source = record.get("own_scaling"), record.get("trained_from")
    if own not in (None, "keep", "replace"):
        return f"the field 'own_scaling' cannot be {str(own)[:60]!r}"
    if not (source is None or _text(source)):
        return f"the field 'trained_from' cannot be {str(source)[:60]!r}"
    higher = record.get("higher_is_better")
    if not (higher is None or isinstance(higher, bool)):
        return f"the field 'higher_is_better' cannot be {str(higher)[:60]!r}"
    perfect = record.get("perfect_score")
    if not (perfect is None or _number(perfect)):
        return f"the field 'perfect_score' cannot be {str(perfect)[:60]!r}"
    for field, check in _IF_THERE.items():
        if not (record.get(field) is None or check(record[field])):
            return f"the field {field!r} cannot be {str(record[field])[:60]!r}"
    of = record.get("version_of") or {}
    if not isinstance(of, dict) or not all(_whole(version, low=1) for version in of.values()):
        return f"the field 'version_of' cannot be {str(of)[:60]!r}"
    parts = record.get("parts") or []
    if not isinstance(parts, list) or not all(map(_part, parts)):
        return "its parts are not a name, a value and a number each"
    if not _by_window(record.get("by_window"), record["n"]):
        return "its by_window is not as many n as nll and hits, or not of all n tokens"
    if not _by_sample(record.get("by_sample"), record["n"]):
        return "its by_sample is not prompts and as many finite scores as there are samples"
    return _problem_with_buckets(record["buckets"] or [], record["length"])


def is_share(metric: str, task: str) -> bool:
    """Whether a task's metric is one from 0 to 1, which reports show in percent."""
    return metric in SHARES and not is_others(task)


def is_others(task: str) -> bool:
    """Whether a task's numbers are another library's, of which a metric's name tells no scale."""
    return task.startswith(_OTHERS)


def over_windows(record: Record) -> bool:
    """Whether its number is over windows of a text, and not over samples."""
    return bool(record.get("buckets") or record.get("by_window"))


def _problem_with_buckets(buckets: list[Any], length: int) -> str | None:
    """Buckets are in order, within the length, and have means exactly where they have tokens."""
    end = 0
    for number, bucket in enumerate(buckets):
        ends = ("start", "stop", "n")
        if not isinstance(bucket, dict) or not all(_whole(bucket.get(field)) for field in ends):
            return f"bucket {number} lacks a whole start, stop or n"
        ordered = end <= bucket["start"] <= bucket["stop"] - bool(bucket["n"])
        if not (ordered and bucket["stop"] <= length):
            return f"bucket {number} is out of order or reaches beyond the length"
        end, means = bucket["stop"], ((bucket.get("nll", ""), 1e9), (bucket.get("acc", ""), 1))
        if not all(_size(x) and x <= high if bucket["n"] else x is None for x, high in means):
            return f"bucket {number} has a wrong nll or acc for n={bucket['n']}"
    return None


def sealed(record: Record) -> Record:
    """The record with null for what is not finite, and a digest that shows later edits."""
    clean: Record = _finite(record)
    return {**clean, "digest": digest(clean)}


def digest(record: Record) -> str:
    """The SHA-256 of everything else in the record."""
    rest = {field: value for field, value in record.items() if field != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    """A copy in which every NaN and infinity is None, and no text has half a surrogate pair."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _whole(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


def _size(value: object) -> bool:
    """A finite number from 0 on."""
    return _whole(value) or (isinstance(value, float) and 0 <= value < math.inf)


def _finite_number(value: object) -> bool:
    return _size(value) or (isinstance(value, (int, float)) and _size(-value))


def _in_range(record: Record) -> bool:
    """Whether a metric of ours can have the value; another library's may have any."""
    metric, value = record["metric"], record["value"]
    if is_share(metric, record["task"]):
        return bool(0 <= value <= 1)
    return bool(value > 0 if metric == "perplexity" else value >= 0 or metric not in MEASURES)


def _number(value: object) -> bool:
    """A finite number above 0."""
    return _size(value) and value != 0


def _ratio(value: object) -> bool:
    """A median ratio of each measure, with both ends of its interval or neither."""
    return isinstance(value, dict) and all(_spread(value.get(name, "")) for name in MEASURES)


def _spread(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    low, high = value.get("low"), value.get("high")
    if not _number(value.get("median")) or (low is None) != (high is None):
        return False
    return low is None or (_number(low) and _number(high) and low <= value["median"] <= high)


def _pairs(value: object) -> bool:
    """The seconds of each pair, by measure."""
    if not isinstance(value, dict):
        return False
    some = [value.get(name) for name in MEASURES[:2]]
    return all(isinstance(pairs, list) and all(map(_pair, pairs)) for pairs in some)


def _pair(value: object) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and all(map(_number, value))


def _part(value: object) -> bool:
    """The number over a part of the samples; one of a depth has that too."""
    if not isinstance(value, dict) or not _text(value.get("name")) or not _whole(value.get("n")):
        return False
    return _finite_number(value.get("value")) and _size(value.get("depth", 0))


def _by_window(value: object, total: object) -> bool:
    """Nothing, or three lists of one length: tokens, losses and hits of each window."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    lists = [x for x in map(value.get, ("n", "nll", "hits")) if isinstance(x, list)]
    if len(lists) < 3 or len({len(x) for x in lists}) > 1:
        return False
    rows = list(zip(*lists, strict=True))
    sizes = all(_whole(n) and _size(nll) and _whole(hits) and hits <= n for n, nll, hits in rows)
    return sizes and sum(n for n, _, _ in rows) == total != 0


def _by_sample(value: object, total: object) -> bool:
    """Nothing, or what tells the prompts from others and a score for each."""
    if value is None:
        return True
    if not isinstance(value, dict) or not _text(value.get("prompts")):
        return False
    scores = value.get("scores")
    return isinstance(scores, list) and len(scores) == total and all(map(_finite_number, scores))


def _data(value: object) -> bool:
    if not isinstance(value, dict) or not _whole(value.get("tokens")):
        return False
    limited = value.get("at_most") is None or _whole(value["at_most"])
    return limited and _text(value.get("name")) and _text(value.get("sha256"))


# What is null only where the cell failed.
_MEASURED = ("value", "n", "windows", "seconds", "buckets", *MEASURES[:2], "ratio", "pairs")
_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "requested", "method", "task", "metric", "created"), _text),
    **dict.fromkeys(("dtype", "device", "attention"), _text),
    **dict.fromkeys(("length", "trained_length"), lambda value: _whole(value, low=1)),
    **dict.fromkeys(("n", "windows", "seed"), _whole),
    "value": _finite_number,
    "seconds": _size,
    **dict.fromkeys(
        ("stderr", "tokens_per_second", "peak_memory_bytes"),
        lambda value: value is None or _size(value),
    ),
    **dict.fromkeys(("reason", "model_sha256"), lambda value: value is None or _text(value)),
    "status": lambda value: value in ("ok", "oom", "error"),
    "buckets": lambda value: isinstance(value, list),
    "data": _data,
    "versions": lambda value: isinstance(value, dict),
    "key": lambda value: _text(value) and re.fullmatch("[0-9a-f]{12,}", value) is not None,
}
_IF_THERE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*SPENT, *MEASURES), _size),
    **dict.fromkeys(("limit", "batch_size", "processes", "prefill_chunk"), _whole),
    "ratio": _ratio,
    "case": _text,
    "patch_seconds": _size,
}
_BENCH_CHECKS: dict[str, Callable[[Any], bool]] = {
    "metric": lambda value: value in MEASURES[:2],
    "value": _number,
    **dict.fromkeys(MEASURES[:2], lambda value: value is None or _number(value)),
    "ratio": _ratio,
    "pairs": _pairs,
    "baseline_attention": _text,
    "random_weights": lambda value: isinstance(value, bool),
    **dict.fromkeys(("batch_size", "decode_tokens", "threads"), lambda value: _whole(value, low=1)),
    "peak_resident_bytes": lambda value: value is None or _size(value),
    "notes": lambda value: isinstance(value, list) and all(map(_text, value)),
}
