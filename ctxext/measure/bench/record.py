"""How timings become a record: medians over pairs of runs, and the intervals of their ratios."""

from __future__ import annotations

import datetime
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ctxext import engine
from ctxext.measure.bench.request import BenchRequest
from ctxext.measure.bench.timed import CASES, Case, Timing
from ctxext.measure.machine import device_name, versions
from ctxext.methods import Spec
from ctxext.models import loading
from ctxext.models.identity import Identity
from ctxext.records import BENCH, MEASURES, RATIO, Record, sealed
from ctxext.system.digests import sha256_of_json


class Cell(NamedTuple):
    """A method, as asked for and resolved for its length, on a path that can run."""

    requested: Spec
    method: Spec
    length: int
    path: str
    attention: str


@dataclass
class Side:
    """The model in one state, what its runs and putting it on took, and what ended them."""

    attention: str
    put_on: Callable[[], AbstractContextManager[Any]] = nullcontext
    patches: bool = False
    notes: list[str] = field(default_factory=list)
    reasons: tuple[str, ...] = ()
    runs: list[Timing] = field(default_factory=list)
    patching: list[float] = field(default_factory=list)
    allocated: int | None = None
    resident: int | None = None
    seconds: float = 0.0
    failed: dict[str, str] | None = None  # no exception: it would keep what its frames hold


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A distribution-free 95% interval of the median, from order statistics.

    From the r-th smallest to the r-th largest value, where r is the largest rank for which twice
    P(Bin(n, ½) < r) is at most 0.05: W. R. Thompson, Ann. Math. Stat. 7 (1936), 122; David and
    Nagaraja, Order Statistics (2003), 7.1. None below 6 values, where the extremes are too near.
    """
    n, tail, rank = len(values), 0, 0
    for below in range(n // 2):
        tail += math.comb(n, below)
        if 40 * tail > 2**n:
            break
        rank = below + 1
    ordered = sorted(values)
    return (ordered[rank - 1], ordered[n - rank]) if rank else None


@dataclass(frozen=True)
class Recorder:
    """What all records of a bench share."""

    request: BenchRequest
    source: loading.Source
    identity: Identity
    model: Any

    @property
    def case(self) -> Case:
        """What is timed."""
        return CASES[self.request.case]

    def record(self, cell: Cell, side: Side, ids: Any, base: Side, beside: list[Timing]) -> Record:
        """The record of a side; `beside` are the unpatched model's runs of the same pairs."""
        import torch

        request, case = self.request, self.case
        outcome = _failed(side) if side.failed else _outcome(case, side, base, beside, ids.numel())
        record: dict[str, Any] = {
            "model": request.source.name,
            "requested": str(cell.requested),
            "method": cell.method.full(),
            "task": BENCH,
            "metric": case.metric,
            "length": cell.length,
            "trained_length": self.identity.trained,
            **self.identity.facts(self.source),
            "windows": len(ids),
            **outcome,
            "seconds": side.seconds,
            "stderr": None,
            "buckets": [],
            "seed": request.seed,
            "data": {
                "name": "random tokens",
                "sha256": _hash(ids),
                "tokens": ids.numel(),
            },
            "model_sha256": self.identity.sha256,
            "revision": request.source.revision,
            "random_weights": request.random_weights,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": device_name(self.model.device),
            "threads": torch.get_num_threads(),
            "attention": side.attention,
            "attention_reasons": side.reasons,
            "baseline_attention": base.attention,
            "batch_size": request.batch_size,
            "decode_tokens": request.decode_tokens,
            "notes": side.notes,
            "version_of": {"the engine": engine.VERSION, **cell.method.versions},
            "versions": versions(),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
                timespec="microseconds"
            ),
        }
        if request.case != BenchRequest.case:
            record["case"] = request.case
        if side.patching:
            record["patch_seconds"] = statistics.median(side.patching)
        return sealed({**record, "key": self._key(record)})

    def _key(self, record: dict[str, Any]) -> str:
        """The hash of everything that was asked for, and of the machine."""
        names = (
            *("model_sha256", "random_weights", "trained_length", "method", "task", "length"),
            *("attention", "batch_size", "decode_tokens", "seed", "dtype", "device"),
        )
        parts = {**{name: record[name] for name in names}, "pairs": self.request.pairs}
        parts |= {"own_scaling": record["own_scaling"]} if self.identity.scaled else {}
        parts |= {"case": record["case"]} if "case" in record else {}
        raised = {what: n for what, n in record["version_of"].items() if n > 1}
        parts |= {"versions": raised} if raised else {}
        return sha256_of_json(parts)


def _hash(ids: Any) -> str:
    return hashlib.sha256(b"" if ids.is_meta else ids.cpu().numpy().tobytes()).hexdigest()


def _failed(side: Side) -> dict[str, Any]:
    """No numbers, and the reason."""
    nothing = ("value", "tokens_per_second", *MEASURES, "peak_resident_bytes", "ratio", "pairs")
    return {**dict.fromkeys(nothing), "n": 0, **(side.failed or {})}


def _outcome(
    case: Case, side: Side, base: Side, beside: list[Timing], tokens: int
) -> dict[str, Any]:
    """What was measured: medians over the pairs, and the medians of the pairs' ratios.

    `pairs` are the seconds as measured, [unpatched, patched] each, the unpatched model first in
    the first pair, the third, and so on; its own record has its runs alone and the ratio 1. What
    a case does not time has no pairs.
    """
    prefill, decode, memory = map(str, MEASURES)
    runs = list(zip(beside, side.runs, strict=True))
    pairs = {
        prefill: [[a.prefill, b.prefill] for a, b in runs if a.prefill and b.prefill],
        decode: [[a.decode, b.decode] for a, b in runs if a.decode and b.decode],
    }
    values = {n: statistics.median(b for _, b in pairs[n]) if pairs[n] else None for n in pairs}
    share = side.allocated / base.allocated if side.allocated and base.allocated else None
    ratio = {
        **{n: _spread([b / a for a, b in pairs[n]]) if pairs[n] else None for n in pairs},
        memory: None if share is None else dict.fromkeys(RATIO, share),
    }
    seconds = values[prefill]
    return {
        "value": values[case.metric],
        "n": len(side.runs),
        "status": "ok",
        "reason": None,
        "tokens_per_second": tokens / seconds if seconds else None,
        **values,
        memory: side.allocated,
        "peak_resident_bytes": side.resident,
        "ratio": ratio,
        "pairs": {n: [p[1:] for p in pairs[n]] for n in pairs} if side is base else pairs,
    }


def _spread(ratios: list[float]) -> dict[str, float | None]:
    """The median, and the ends of its 95% interval."""
    low, high = interval(ratios) or (None, None)
    return dict(zip(RATIO, (statistics.median(ratios), low, high), strict=True))
