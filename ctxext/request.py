"""What was asked for: every argument parsed, checked and frozen before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctxext import patches, tasks
from ctxext.errors import UsageError
from ctxext.models.loading import Source
from ctxext.patches import Spec
from ctxext.registry import did_you_mean, parse_length
from ctxext.tasks.base import Task

ATTENTION = ("auto", "flash", "triton", "flex", "sdpa", "eager")
BASELINE = "rope"


@dataclass(frozen=True)
class Request:
    """An evaluation: every method × task × length on one model and one text.

    Attributes:
        source: the model; `source.attn` is the attention path asked for, one of ATTENTION.
        methods: the unpatched `rope` first, then the others as given, none twice.
        lengths: in tokens, ascending, none twice.
        limit: at most so many windows; None for all.
        tokens: at most so many tokens of the data; None for all.
        batch_size: windows read at once; None chooses by length.
    """

    source: Source
    methods: tuple[Spec, ...]
    lengths: tuple[int, ...]
    tasks: tuple[Task, ...]
    data: str = "stdlib"
    limit: int | None = None
    tokens: int | None = None
    seed: int = 0
    batch_size: int | None = None
    out: Path = Path("results")
    force: bool = False

    def batch(self, length: int) -> int:
        """Windows read at once at this length: as asked, else about 4096 tokens."""
        return self.batch_size or max(1, 4096 // length)


def parse_lengths(texts: list[str]) -> tuple[int, ...]:
    """Lengths from `4k`, `512,4k`, …, ascending; UsageError where one is malformed or is 1."""
    lengths = {parse_length(item) for text in texts for item in text.split(",")}
    if min(lengths, default=2) < 2:
        raise UsageError("length 1 has no token to score: give at least 2")
    return tuple(sorted(lengths))


def parse_methods(texts: list[str]) -> tuple[Spec, ...]:
    """Specs in the order given, the unpatched model first, none twice."""
    specs = [patches.parse(text) for text in (BASELINE, *texts)]
    return tuple(
        dict.fromkeys(spec for spec in specs if str(spec) == BASELINE or not spec.unpatched)
    )


def parse_tasks(texts: list[str]) -> tuple[Task, ...]:
    """Tasks from `ppl`, `ppl,acc`, …, none twice."""
    return tuple(dict.fromkeys(tasks.parse(item) for text in texts for item in text.split(",")))


def check_attention(attn: str) -> str:
    """The attention path asked for; UsageError for an unknown one."""
    if attn not in ATTENTION:
        raise UsageError(f"unknown attention path {attn!r}: {did_you_mean(attn, ATTENTION)}")
    return attn


def in_range(name: str, value: int | None, least: int = 1) -> int | None:
    """The value; UsageError where it is below `least` or beyond 31 bits."""
    if value is not None and not least <= value < 2**31:
        raise UsageError(f"bad value {value} for {name}: give {least} … {2**31 - 1}")
    return value
