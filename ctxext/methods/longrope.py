"""LongRoPE's two lists of factors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from dataclasses import dataclass

from ctxext.errors import UsageError
from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require
from ctxext.methods.files import numbers, parse_json, read_bytes

LISTS = ("short_factor", "long_factor")
LABELS = {"type", "rope_type"}  # which a config's own rope scaling has beside the lists
LEAST, MOST = 0.1, 1e6  # published factors are 0.99 to 65
WRITTEN = "longrope:factors=@FILE.json"
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
        marked = self.factors
        if not MARKED.fullmatch(marked):
            marked += f"#{_digest(read_bytes(marked[1:], WRITTEN))}"
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
    content = read_bytes(name, WRITTEN)
    if _digest(content) != digest:
        raise UsageError(
            f"{name!r} is not the file that it was: its digest is {_digest(content)}, not "
            f"{digest}; leave out #{digest} to take it as it is"
        )
    found = parse_json(content, name, " and ".join(LISTS))
    if not isinstance(found, dict) or found.keys() - LABELS != set(LISTS):
        raise UsageError(f"{name!r} must hold an object with {' and '.join(LISTS)}, and no more")
    return {key: numbers(found[key], key, name, LEAST, MOST) for key in LISTS}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
