"""The record of one cell: the fields of its JSON object, with their types and ranges.

One model, method, task and length, and what was measured: scores, or under the task `bench`
seconds and bytes, with their ratios to the unpatched model. Lengths and positions are in tokens,
losses in nats per token, accuracies from 0 to 1, times in seconds. A record stays the object that
was read, byte for byte, with what later versions put into it; what earlier versions did not write
is left out of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from msgspec import Meta

if TYPE_CHECKING:
    Failed = Any  # who reads what was measured has looked at the status
else:
    Failed = None  # what a cell that failed has in place of what was measured

SHARES = ("accuracy", "passkey", "kv")  # metrics from 0 to 1
_OTHERS = "lm-eval:"  # how tasks begin whose numbers are another library's, on scales of its own
BENCH = "bench"  # the task of records that have speed and memory in place of scores
Timed = Literal["prefill_seconds", "decode_seconds_per_token"]
Measure = Timed | Literal["peak_memory_bytes"]
TIMED: tuple[Timed, Timed] = ("prefill_seconds", "decode_seconds_per_token")
MEASURES: tuple[Measure, Measure, Measure] = (*TIMED, "peak_memory_bytes")
SPENT = ("prefill_seconds", "prefill_tokens", "decode_seconds", "decode_tokens")  # by forwards
RATIO: tuple[Literal["median"], Literal["low"], Literal["high"]] = ("median", "low", "high")

_MOST, _LARGEST = 2**63 - 1, sys.float_info.max
Text = Annotated[str, Meta(min_length=1)]
Whole = Annotated[int, Meta(ge=0, le=_MOST)]
Count = Annotated[int, Meta(ge=1, le=_MOST)]
Number = (
    Annotated[int, Meta(ge=-_MOST, le=_MOST)] | Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
)
Size = Whole | Annotated[float, Meta(ge=0, le=_LARGEST)]
Positive = Count | Annotated[float, Meta(gt=0, le=_LARGEST)]
Share = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]
Loss = Annotated[int, Meta(ge=0, le=10**9)] | Annotated[float, Meta(ge=0, le=1e9)]
Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{12,}(?![\s\S])")]


class Bucket(TypedDict):
    """Means over the n tokens at positions from start up to stop; None where there are none."""

    start: Whole
    stop: Whole
    n: Whole
    nll: Loss | None
    acc: Share | None


class ByWindow(TypedDict):
    """Scored tokens, the sum of their losses and how many were first, of each window."""

    n: list[Whole]
    nll: list[Size]
    hits: list[Whole]


class BySample(TypedDict):
    """What tells the prompts from others, and each one's score."""

    prompts: Text
    scores: list[Number]


class _Part(TypedDict):
    name: Text
    value: Number
    n: Whole


class Part(_Part, total=False):
    """The number over a part of the samples; one of a depth has that too, in percent."""

    depth: Size


class _Data(TypedDict):
    name: Text
    sha256: Text
    tokens: Whole


class Data(_Data, total=False):
    """What was read: all its tokens, or at most so many; 0 for what cuts no windows."""

    at_most: Whole | None


class Spread(TypedDict):
    """A median ratio, with both ends of its 95% interval or neither."""

    median: Positive
    low: Positive | None
    high: Positive | None


class Ratio(TypedDict):
    """Of each measure, to the unpatched model in the same run."""

    prefill_seconds: Spread | None
    decode_seconds_per_token: Spread | None
    peak_memory_bytes: Spread | None


Pair = Annotated[list[Positive], Meta(min_length=1, max_length=2)]


class Pairs(TypedDict):
    """The seconds of each pair of runs, the unpatched model's first; of its own record one each."""

    prefill_seconds: list[Pair]
    decode_seconds_per_token: list[Pair]


class _Record(TypedDict):
    model: Text
    requested: Text
    method: Text
    task: Text
    metric: Text
    length: Count
    trained_length: Count
    value: Number | Failed
    stderr: Size | None
    n: Whole | Failed
    windows: Whole | Failed
    status: Literal["ok", "oom", "error"]
    reason: Text | None
    seconds: Size | Failed
    tokens_per_second: Size | None
    peak_memory_bytes: Size | None
    buckets: list[Bucket] | Failed
    seed: Whole
    data: Data
    model_sha256: Text | None
    dtype: Text
    device: Text
    attention: Text
    versions: dict[str, Any]
    created: Text
    key: Key


class Record(_Record, total=False):
    """What every record has, and what some have.

    What a cell measured is None where it failed, else as `Finished` says; a bench record has what
    `Bench` says, too. A field that is not there, as in records of earlier versions, is one that is
    None, but for `processes`, of which there was one then.

    Attributes:
        requested: the method as it was asked for; `method` has all parameters.
        task_resolved: the task with all parameters.
        n: scored tokens, samples, or pairs of runs.
        windows: of the text, or samples.
        by_window: for the error of a difference, as `by_sample` is.
        parts: over depths, or what else a benchmark divides its samples by.
        also: other metrics of the same answers.
        version_of: of what the numbers go by: the engine, the task, the method.
        limit: at most so many windows or samples.
        batch_size: windows or prompts read at once, each in pieces of `prefill_chunk` tokens.
        predictions: where the answers are, as `log` is of a traceback, from the folder on.
        close_calls: answers whose two best logits might change places on another machine.
        case: what a bench times, if it is not whole prefills and the steps after them.
        patch_seconds: that the method takes to be put on.
        digest: the SHA-256 of all else.
    """

    task_resolved: Text | None
    trained_from: Text | None
    own_scaling: Literal["keep", "replace"] | None
    higher_is_better: bool | None
    perfect_score: Positive | None
    by_window: ByWindow | None
    by_sample: BySample | None
    parts: list[Part] | None
    also: dict[str, Any] | None
    truncated: Whole | None
    chat: bool | None
    thinking: bool | None
    close_calls: Whole | None
    limit: Whole | None
    batch_size: Whole | None
    prefill_chunk: Whole | None
    processes: Whole | None
    prefill_seconds: Size | None
    prefill_tokens: Whole | None
    decode_seconds: Size | None
    decode_tokens: Whole | None
    decode_seconds_per_token: Size | None
    ratio: Ratio | Failed
    pairs: Pairs | Failed
    baseline_attention: Text
    case: Text
    patch_seconds: Size | None
    random_weights: bool
    threads: Count
    peak_resident_bytes: Size | None
    revision: Text | None
    attention_reasons: list[Text] | None
    notes: list[Text] | None
    version_of: dict[str, Count] | None
    predictions: Text | None
    log: Text | None
    digest: str


class Finished(TypedDict):
    """What is not None where the cell is done."""

    value: Number
    n: Whole
    windows: Whole
    seconds: Size
    buckets: list[Bucket]


class Bench(TypedDict):
    """What every record of the task `bench` has."""

    metric: Timed
    baseline_attention: Text
    random_weights: bool
    batch_size: Count
    decode_tokens: Count
    threads: Count
    peak_resident_bytes: Size | None
    notes: list[Text]
    prefill_seconds: Positive | None
    decode_seconds_per_token: Positive | None
    ratio: Ratio | Failed
    pairs: Pairs | Failed


class FinishedBench(TypedDict):
    """What is not None where a cell of the task `bench` is done."""

    value: Positive
    prefill_seconds: Positive | None
    decode_seconds_per_token: Positive | None
    ratio: Ratio
    pairs: Pairs


def is_share(metric: str, task: str) -> bool:
    """Whether a task's metric is one from 0 to 1, which reports show in percent."""
    return metric in SHARES and not is_others(task)


def is_others(task: str) -> bool:
    """Whether a task's numbers are another library's, of which a metric's name tells no scale."""
    return task.startswith(_OTHERS)


def over_windows(record: Record) -> bool:
    """Whether its number is over windows of a text, and not over samples."""
    return bool(record.get("buckets") or record.get("by_window"))
