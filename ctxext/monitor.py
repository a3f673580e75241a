"""What a front end wants to know of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctxext.results import Record


@dataclass
class Monitor:
    """Functions that a run calls; every one may be left as it is.

    Attributes:
        plan: told how many method × length are to compute, and the tokens to read.
        begin: told what is measured from now on.
        advance: told tokens that have been read.
        done: told each record, new or found.
        note: told what else a user should know, in a line.
    """

    plan: Callable[[int, int], None] = lambda cells, tokens: None
    begin: Callable[[str], None] = lambda what: None
    advance: Callable[[int], None] = lambda tokens: None
    done: Callable[[Record], None] = lambda record: None
    note: Callable[[str], None] = lambda line: None
