"""What the numbers of a metric mean: which of two is better, and the most that they can be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ctxext.records.record import SHARES, Record, is_others


class Metric(NamedTuple):
    """What records say of their metric.

    Attributes:
        higher_is_better: whether more is better.
        perfect_score: what a wholly right answer scores, where scores are from 0 to it.
    """

    higher_is_better: bool
    perfect_score: float | None = None


_BENCHMARKS = (  # RULER's and LongBench's
    *("string_match_all", "string_match_part", "qa_f1_score", "qa_f1_zh_score", "rouge_score"),
    *("rouge_zh_score", "classification_score", "count_score", "retrieval_score"),
    *("retrieval_zh_score", "code_sim_score"),
)

#: Of records that do not say it themselves: older ones, and those of other libraries.
KNOWN = {
    **dict.fromkeys(SHARES, Metric(True, 1.0)),
    **dict.fromkeys(_BENCHMARKS, Metric(True, 100.0)),
    **dict.fromkeys(("acc", "acc_norm", "exact_match"), Metric(True, 1.0)),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), Metric(False)),
    "bits_per_byte": Metric(False),
}


def higher_is_better(records: Iterable[Record]) -> bool | None:
    """Whether more is better, for records of one metric; None where none of them says so or is
    of a known metric, or they do not agree."""
    said = {_higher(record) for record in records} - {None}
    return said.pop() if len(said) == 1 else None


def perfect_score(record: Record) -> float | None:
    """What a wholly right answer scores, where scores are from 0 to it; None where it is not known
    whether they are: another library may score from 0 to 1 what a benchmark scores to 100."""
    known = KNOWN.get(record["metric"])
    said: float | None = record.get("perfect_score")
    if said is not None or known is None or not is_others(record["task"]):
        return known.perfect_score if said is None and known else said
    kept = record.get("by_sample")
    beyond = any(score > 1 for score in kept["scores"]) if kept else False
    return 1.0 if known.perfect_score == 1 and not beyond else None


def _higher(record: Record) -> bool | None:
    known = KNOWN.get(record["metric"])
    said: bool | None = record.get("higher_is_better")
    return known.higher_is_better if said is None and known else said
