"""What a bench is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctxext.choices import BenchCase
from ctxext.engine import check_path
from ctxext.measure.bench.timed import CASES
from ctxext.methods import Spec
from ctxext.models import loading


@dataclass(frozen=True)
class BenchRequest:
    """A comparison: every method × attention path × length on one model.

    Attributes:
        source: the model, on its own attention path.
        methods: the unpatched `rope` first, then the others as given, none twice.
        lengths: tokens of a prefill, ascending, none twice.
        paths: the attention paths of distance methods, none twice.
        case: what is timed, a name of `CASES`.
        batch_size: sequences read at once.
        pairs: runs of each method, and as many of the unpatched model beside it; at least 2.
        decode_tokens: single tokens that are decoded after each prefill.
        random_weights: build the model from its config, with weights drawn by the seed.
        seed: of the token ids, and of random weights.
    """

    source: loading.Source
    methods: tuple[Spec, ...]
    lengths: tuple[int, ...]
    paths: tuple[str, ...] = ("auto",)
    case: BenchCase = "model"
    batch_size: int = 1
    pairs: int = 15
    decode_tokens: int = 8
    random_weights: bool = False
    seed: int = 0
    out: Path = Path("results")


def parse_paths(texts: list[str]) -> tuple[str, ...]:
    """Attention paths from `auto`, `auto,sdpa`, …, none twice."""
    return tuple(dict.fromkeys(check_path(item) for text in texts for item in text.split(",")))


def check_case(case: BenchCase, batch: int, lengths: tuple[int, ...]) -> BenchCase:
    """What is timed; UsageError where it is not of such rows."""
    for length in lengths:
        CASES[case].check(batch, length)
    return case
