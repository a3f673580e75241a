"""Speed and memory against the unpatched model.

request.py   what is asked for
timed.py     what is timed: prefills, steps, attention alone
compare.py   the runs, in pairs
record.py    what they come to: medians, ratios and their intervals
"""

from __future__ import annotations

from ctxext.measure.bench.compare import Bench
from ctxext.measure.bench.request import BenchRequest, check_case, parse_paths

__all__ = ["Bench", "BenchRequest", "check_case", "parse_paths"]
