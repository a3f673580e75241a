"""The record of one cell, and the folder that keeps one JSON file for each."""

from ctxext.results.files import State, check_writable, seen, write_atomically
from ctxext.results.frame import load
from ctxext.results.intervals import Interval, interval
from ctxext.results.metrics import higher_is_better
from ctxext.results.names import printable, safe_name, told_apart
from ctxext.results.paired import Difference, difference
from ctxext.results.record import (
    BENCH,
    MEASURES,
    RATIO,
    SHARES,
    SPENT,
    Record,
    digest,
    is_share,
    over_windows,
    problem_with,
    sealed,
)
from ctxext.results.store import Store

__all__ = [
    "BENCH",
    "MEASURES",
    "RATIO",
    "SHARES",
    "SPENT",
    "Difference",
    "Interval",
    "Record",
    "State",
    "Store",
    "check_writable",
    "difference",
    "digest",
    "higher_is_better",
    "interval",
    "is_share",
    "load",
    "over_windows",
    "printable",
    "problem_with",
    "safe_name",
    "sealed",
    "seen",
    "told_apart",
    "write_atomically",
]
