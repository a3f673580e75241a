"""What a front end wants to know of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from ctxext.records import Record


class Step(NamedTuple):
    """A cell that is computed from now on.

    Attributes:
        what: method, length and task, in a line.
        tokens: that it reads; 0 where that is not known.
        kind: cells of one kind take time by their costs.
        cost: what it takes beside others of its kind, in any unit; NaN where that is not known.
        left: what the cells after it take together, by kind.
    """

    what: str
    tokens: int = 0
    kind: str = ""
    cost: float = 0.0
    left: Mapping[str, float] = {}


@dataclass
class Monitor:
    """Functions that a run calls; every one may be left as it is.

    Attributes:
        plan: told how many cells there are, and how many of them are there already.
        begin: told the cell that is computed from now on.
        advance: told tokens of it that have been read.
        done: told the record of a cell that was not there at the beginning, or None where such a
            cell has none.
        note: told what else a user should know, in a line.
        outside: a context in which something else may draw on the terminal.
    """

    plan: Callable[[int, int], None] = lambda cells, found: None
    begin: Callable[[Step], None] = lambda step: None
    advance: Callable[[int], None] = lambda tokens: None
    done: Callable[[Record | None], None] = lambda record: None
    note: Callable[[str], None] = lambda line: None
    outside: Callable[[], AbstractContextManager[None]] = nullcontext
