"""LongRoPE's two lists of factors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError, short
from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require

LISTS = ("short_factor", "long_factor")
LABELS = {"type", "rope_type"}  # which a config's own rope scaling has beside the lists
LEAST, MOST = 0.1, 1e6  # published factors are 0.99 to 65
LARGEST = 2**20  # bytes of a file
MARKED = re.compile(r"@(.+)#([0-9a-f]{12})")  # a file whose content is known


@register("longrope")
@dataclass(frozen=True)
class LongRoPE(Frequency):
    """LongRoPE: a factor for each pair that was searched for, one list up to T and one beyond.

    Formula: λ_i = short_factor_i where s is at most T, else long_factor_i; logits × attention²

    Source: LongRoPE, arXiv 2402.13753; equal to transformers' `longrope`

    Parameters: factors (@FILE.json, an object with short_factor and long_factor, lists of d/2
    numbers; no default; a resolved spec has the file's digest after #), sequence (s, tokens; by it
    the list is chosen once for a sequence; default L), attention (default √(1 + ln(s/T)/ln T),
    1 up to T)

    Inside T: short_factor, which is near 1.

    Beyond T: as far as long_factor was searched for; with lists of another model, no promise.
    """

    reads_file = True

    factors: str | None = None
    sequence: int | None = None
    attention: float | None = None

    def __post_init__(self) -> None:
        need = "@ and the name of a JSON file"
        given = self.factors is None or (self.factors[:1] == "@" and len(self.factors) > 1)
        require(given, "factors", repr(self.factors), need)
        plain = self.factors is None or self.factors.isprintable()
        require(plain, "factors", repr(self.factors), "a name of printable characters")
        some = self.sequence is None or self.sequence >= 1
        require(some, "sequence", self.sequence, "at least 1")
        sharp = self.attention is None or LEAST <= self.attention <= MOST
        require(sharp, "attention", self.attention, f"{LEAST:g} … {MOST:g}")

    def resolve(self, span: Span) -> LongRoPE:
        """The file's digest, s = L, and the paper's attention factor by default."""
        if self.factors is None:
            raise UsageError("longrope has no default factors: give factors=@FILE.json")
        s = self.sequence or span.need_length("sequence")
        stretch = max(1.0, s / span.trained)
        attention = self.attention
        if attention is None:
            attention = math.sqrt(1 + math.log(stretch) / math.log(max(2, span.trained)))
        known = MARKED.fullmatch(self.factors) is not None
        marked = self.factors if known else f"{self.factors}#{_digest(_bytes(self.factors[1:]))}"
        _lists(marked)
        return dataclasses.replace(self, factors=marked, sequence=s, attention=attention)

    def search(self, span: Span) -> dict[str, Range] | None:
        """Its lists are its user's to give; with them there is nothing left to search for."""
        return None if self.factors is None else {}

    def extension(self, trained: int) -> float:
        """s/T, at least 1: the lists are chosen for s tokens."""
        return max(1.0, (self.sequence or 0) / trained)

    def scales(self, rotary: Rotary) -> list[float]:
        """The list's λ_i; UsageError where it is not d/2 long."""
        if self.factors is None or self.sequence is None or not MARKED.fullmatch(self.factors):
            raise UsageError("longrope has no lists yet: resolve it first")
        used = LISTS[self.sequence > rotary.trained]
        found = list(_lists(self.factors)[used])
        if len(found) != len(rotary.theta):
            raise UsageError(
                f"{used} of {self.factors} has {len(found)} numbers, and the model "
                f"{len(rotary.theta)} pairs: give lists made for this model"
            )
        return found

    def attention_factor(self) -> float:
        """√(1 + ln(s/T)/ln T), or as given."""
        if self.attention is None:
            raise UsageError("longrope has no attention factor yet: resolve it first")
        return self.attention


@functools.cache
def _lists(marked: str) -> dict[str, tuple[float, ...]]:
    """Both lists of `@FILE#DIGEST`, read once."""
    match = MARKED.fullmatch(marked)
    assert match is not None
    name, digest = match.groups()
    content = _bytes(name)
    if _digest(content) != digest:
        raise UsageError(
            f"{name!r} is not the file that it was: its digest is {_digest(content)}, not "
            f"{digest}; leave out #{digest} to take it as it is"
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = short(error, 100)
        raise UsageError(f"{name!r} is not JSON ({why}): give {' and '.join(LISTS)}") from None
    if not isinstance(found, dict) or found.keys() - LABELS != set(LISTS):
        raise UsageError(f"{name!r} must hold an object with {' and '.join(LISTS)}, and no more")
    return {key: _list(found[key], key, name) for key in LISTS}


def _list(value: Any, key: str, name: str) -> tuple[float, ...]:
    """The list as numbers; UsageError for anything else."""
    if not isinstance(value, list):
        raise UsageError(f"{key} of {name!r} must be a list of numbers")
    for i, x in enumerate(value):
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not LEAST <= x <= MOST:
            raise UsageError(
                f"{key}[{i}] of {name!r} is {str(x)[:40]!r}: give numbers of {LEAST:g} … {MOST:g}"
            )
    return tuple(map(float, value))


def _bytes(name: str) -> bytes:
    """A file's content; UsageError where it cannot be had, or is larger than any list."""
    try:
        if not Path(name).is_file():
            raise UsageError(f"there is no file {name!r}: give longrope:factors=@FILE.json")
        with Path(name).open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{name!r} cannot be read ({why}): give another file") from None
    if len(content) > LARGEST:
        raise UsageError(f"{name!r} has more than {LARGEST} bytes: give a file of two lists")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
