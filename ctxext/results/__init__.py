"""The record of one cell, and the folder that keeps one JSON file for each."""

from ctxext.results.files import check_writable, write_atomically
from ctxext.results.names import printable, safe_name, told_apart
from ctxext.results.paired import Difference, difference
from ctxext.results.record import (
    BENCH,
    MEASURES,
    RATIO,
    SHARES,
    Record,
    digest,
    problem_with,
    sealed,
)
from ctxext.results.store import Store

__all__ = [
    "BENCH",
    "MEASURES",
    "RATIO",
    "SHARES",
    "Difference",
    "Record",
    "Store",
    "check_writable",
    "difference",
    "digest",
    "printable",
    "problem_with",
    "safe_name",
    "sealed",
    "told_apart",
    "write_atomically",
]
