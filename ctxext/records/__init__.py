"""The record of one cell, and the folder that keeps one JSON file for each."""

from ctxext.records.frame import load, to_frame
from ctxext.records.intervals import Interval, interval
from ctxext.records.metrics import higher_is_better
from ctxext.records.paired import Difference, difference
from ctxext.records.record import (
    BENCH,
    MEASURES,
    RATIO,
    SHARES,
    SPENT,
    Record,
    is_share,
    over_windows,
)
from ctxext.records.seal import digest, sealed
from ctxext.records.sound import problem_with, schema
from ctxext.records.store import Store

__all__ = [
    "BENCH",
    "MEASURES",
    "RATIO",
    "SHARES",
    "SPENT",
    "Difference",
    "Interval",
    "Record",
    "Store",
    "difference",
    "digest",
    "higher_is_better",
    "interval",
    "is_share",
    "load",
    "over_windows",
    "problem_with",
    "schema",
    "sealed",
    "to_frame",
]
