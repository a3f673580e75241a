"""The engine: a model changed at two public seams, its rotary module and its attention function.

patch.py      put a spec on a model, and take it off again, bit for bit
saved.py      a model as it was saved: patched, where it was patched then
probe.py      a few tokens that prove the model is rotated as it is thought to be
seams.py      the registered attention functions, and what they know of their model
forward.py    what is known of the forward pass that is running
stock.py      frequencies as transformers computes them, and the config that says so
runs.py       attention as a list of runs: all rows, one row, a sequence of a packed one
positions.py  those of a run's queries and keys, and what a method's parts make of them
attention.py  what one attention is given, and what an attention path says of itself
turned.py     keys that stay turned from one step of a generation to the next
paths.py      the attention paths, and which one is taken
chunked.py    distance attention by query chunks, memory linear in length
watch.py      what each attention layer scores while a model runs, patched or not
pinned.py     one length for each sequence that the unpatched model reads
carried.py    model classes that are patched whenever they run
reference.py  the same, dense, in a few lines: what every path is tested against
"""

from __future__ import annotations

from ctxext.errors import UsageError
from ctxext.registry import did_you_mean

VERSION = 1  # of how a model is changed, read and answers: where their numbers change it goes up
PATHS = ("flash", "sdpa", "eager")  # attention paths: `auto` takes the first that can run


def check_path(asked: str) -> str:
    """The attention path asked for, or `auto`; UsageError for an unknown one."""
    valid = ("auto", *PATHS)
    if asked not in valid:
        raise UsageError(f"unknown attention path {asked!r}: {did_you_mean(asked, valid)}")
    return asked
