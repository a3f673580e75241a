"""The record of one cell, and the folder that keeps one JSON file for each."""

from ctxext.results.files import State, check_writable, seen, write_atomically
from ctxext.results.names import printable, safe_name
from ctxext.results.paired import Difference, difference
from ctxext.results.record import (
    BENCH,
    MEASURES,
    RATIO,
    SHARES,
    SPENT,
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
    "SPENT",
    "Difference",
    "Record",
    "State",
    "Store",
    "check_writable",
    "difference",
    "digest",
    "printable",
    "problem_with",
    "safe_name",
    "sealed",
    "seen",
    "write_atomically",
]
