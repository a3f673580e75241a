"""Speed and memory of methods against the unpatched model, in one process.

Each method, path and length is run in pairs: the unpatched model and the patched one directly
after one another, which goes first changing from pair to pair, so that a machine that slows down
or warms up meets both alike. What is reported is the median of the pairs' ratios.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import inspect
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ctxext import engine
from ctxext.engine import check_path
from ctxext.errors import CtxextError, UsageError, short
from ctxext.measure.costs import Shape
from ctxext.measure.failure import failure
from ctxext.measure.machine import device_name, versions
from ctxext.measure.memory import allocated_peak, release, reset_resident_peak, resident_peak
from ctxext.measure.meter import clock
from ctxext.measure.monitor import Monitor, Step
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models import loading
from ctxext.models.calls import cache_name
from ctxext.models.hashes import keep
from ctxext.records import BENCH, MEASURES, RATIO, Record, Store, sealed
from ctxext.registry import format_length
from ctxext.request.request import BASELINE
from ctxext.system.digests import sha256_of_json

UNTIMED = 2  # runs before the pairs: one for peak memory, one to warm up


@dataclass(frozen=True)
class Request:
    """A comparison: every method × attention path × length on one model.

    Attributes:
        source: the model, on its own attention path.
        methods: the unpatched `rope` first, then the others as given, none twice.
        lengths: tokens of a prefill, ascending, none twice.
        paths: the attention paths of distance methods, none twice.
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
    batch_size: int = 1
    pairs: int = 15
    decode_tokens: int = 8
    random_weights: bool = False
    seed: int = 0
    out: Path = Path("results")


def parse_paths(texts: list[str]) -> tuple[str, ...]:
    """Attention paths from `auto`, `auto,sdpa`, …, none twice."""
    return tuple(dict.fromkeys(check_path(item) for text in texts for item in text.split(",")))


class Timing(NamedTuple):
    """Seconds of one run: its prefill, and the median of its decoding steps."""

    prefill: float
    decode: float


def measure(model: Any, ids: Any, decode_tokens: int) -> Timing:
    """One prefill, and greedy steps of one token that go on from its cache.

    Args:
        model: a causal language model, patched or not, in evaluation mode.
        ids: token ids [batch, length] on the model's device.
        decode_tokens: how many steps, at least 1.
    """
    import torch

    step = _Step(model, ids)
    with torch.no_grad():
        prefill, *rest = [clock(model.device, step) for _ in range(1 + decode_tokens)]
    return Timing(prefill, statistics.median(rest))


class _Step:
    """The next forward of a greedy generation: of the ids first, then of a token at a time."""

    def __init__(self, model: Any, ids: Any) -> None:
        takes = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options = {"use_cache": True, **({"logits_to_keep": 1} if takes else {})}
        self._model, self._ids, self._cache = model, ids, None
        self._name = cache_name(model)

    def __call__(self) -> None:
        out = self._model(input_ids=self._ids, **{self._name: self._cache}, **self._options)
        if out.get(self._name) is None:
            raise CtxextError(f"{type(self._model).__name__} returns no cache to decode with")
        self._ids, self._cache = out.logits[:, -1:].argmax(-1), out[self._name]


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


def random_model(source: loading.Source, seed: int) -> Any:
    """The model of a config alone, in evaluation mode: random weights are as fast as trained ones.

    Raises:
        UsageError: no such model, or no causal language model can be built from its config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = loading.load_config(source)
    source = loading.settle(source, config)
    device = torch.device(source.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=source.dtype,
                attn_implementation=source.attn,
                trust_remote_code=source.trust_remote_code,
            )
        except Exception as error:
            text = short(error)
            raise UsageError(
                f"model {source.name!r} cannot be built from its config: {text}"
            ) from error
    return model.eval()


class Cell(NamedTuple):
    """A method, as asked for and resolved for its length, on a path that can run."""

    requested: Spec
    method: Spec
    length: int
    path: str
    attention: str


@dataclass
class Side:
    """The model in one state, what its runs took, and what ended them."""

    attention: str
    put_on: Callable[[], AbstractContextManager[Any]] = nullcontext
    notes: list[str] = field(default_factory=list)
    reasons: tuple[str, ...] = ()
    runs: list[Timing] = field(default_factory=list)
    allocated: int | None = None
    resident: int | None = None
    seconds: float = 0.0
    failed: dict[str, str] | None = None  # no exception: it would keep what its frames hold


@dataclass
class Bench:
    """A comparison in progress; `records` grows as cells are done."""

    request: Request
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """The methods as they were asked for, in order."""
        return [str(spec) for spec in self.request.methods]

    def run(self) -> list[Record]:
        """Measure every cell; nothing is taken from disk.

        Raises:
            UsageError: the model cannot be had, a path cannot run here, or no method can be
                compared; nothing has been measured then.
        """
        import torch

        from ctxext.engine.paths import choose
        from ctxext.models.layout import head_dim

        request = self.request
        self.store = Store(request.out)
        for line in self.store.prepare():
            self.monitor.note(line)
        config = loading.load_config(request.source)
        self.source = loading.settle(request.source, config)
        self.identity = loading.identify(self.source, config)
        keep()
        for path in request.paths:
            choose(path, self.source.device, getattr(torch, self.source.dtype), head_dim(config))
        if request.random_weights:
            self.model = random_model(self.source, request.seed)
        else:
            with self.monitor.outside():
                self.model = loading.load_model(self.source, self.monitor.note)
        self._unfit: dict[Cell, str] = {}
        cells = {length: self._cells(length) for length in request.lengths}
        if self._unfit and all(cell in self._unfit for some in cells.values() for cell in some):
            raise UsageError("; ".join(dict.fromkeys(self._unfit.values())))
        self._plan(cells)
        self.monitor.note(loading.tell_trained(self.source, config))
        gc.freeze()  # what is there by now stays, so that looking for garbage is quick
        try:
            for length in request.lengths:
                self._compare(length, cells[length])
        finally:
            gc.unfreeze()
        return self.records

    def _resolve(self, spec: Spec, length: int) -> Spec:
        """The spec with all parameters; as it is, where that cannot be."""
        with suppress(UsageError):
            return spec.resolve(Span(self.identity.trained, length))
        return spec

    def _patched(self, spec: Spec, length: int, path: str) -> AbstractContextManager[Any]:
        from ctxext.engine.patch import patched

        source = self.request.source
        options = {"train_len": source.train_len, "own_scaling": source.own_scaling}
        return patched(self.model, spec, length, attn=path, **options)

    def _cells(self, length: int) -> list[Cell]:
        """The methods beside `rope` on each path; paths that come to the same are one cell."""
        cells: dict[tuple[str, str], Cell] = {}
        for spec, path in itertools.product(self.request.methods, self.request.paths):
            if str(spec) == BASELINE:
                continue
            try:
                with self._patched(spec, length, path) as handle:
                    cell, notes = (
                        Cell(spec, handle.spec, length, path, handle.attention),
                        handle.notes,
                    )
            except Exception as error:  # it will fail there again, as a cell
                cell, notes = Cell(spec, self._resolve(spec, length), length, path, path), []
                if isinstance(error, UsageError):
                    self._unfit[cell] = str(error)
            first = cells.setdefault((cell.method.full(), cell.attention), cell)
            if first is cell:
                for line in notes:
                    self.monitor.note(f"{spec} at {length}: {line}")
            elif str(first.requested) != str(spec):
                self.monitor.note(f"{spec} at {length} is {first.requested}: measured once")
        return list(cells.values())

    def _plan(self, cells: dict[int, list[Cell]]) -> None:
        """Tell the monitor how many cells there are; what they take together."""
        self.monitor.plan(sum(len(some) + 1 for some in cells.values()), 0)
        self._shape, pairs = Shape.guessed(self.model), self.request.pairs
        self._left = 0.0
        for length, some in cells.items():
            runs = UNTIMED + (UNTIMED + 2 * pairs) * len(some) + (0 if some else pairs)
            self._left += runs * self._shape.read(length)

    def _begin(self, what: str, length: int, runs: int) -> None:
        """Tell the monitor what runs from now on."""
        tokens, cost = runs * self.request.batch_size * length, runs * self._shape.read(length)
        self._left = max(0.0, self._left - cost)
        what = f"{what} at {format_length(length)}"
        self.monitor.begin(Step(what, tokens, "", float(cost), {"": self._left}))

    def _compare(self, length: int, cells: list[Cell]) -> None:
        """The records of one length: the unpatched model's is of all its runs beside the others."""
        ids, base = self._draw(length)
        first = len(self.records)
        try:
            for cell in cells:
                self._emit(self._against(base, cell, ids))
            if not base.runs:
                self._alone(base, ids)
        except KeyboardInterrupt:
            if base.runs and len(self.records) > first:
                self._emit(self._baseline(base, ids), first)
            raise
        self._emit(self._baseline(base, ids), first)

    def _draw(self, length: int) -> tuple[Any, Side]:
        """Random token ids [batch, length] on the model's device, and the unpatched model's side.

        Where there is no room for them, ids without numbers and a side that failed.
        """
        import torch

        generator = torch.Generator().manual_seed(self.request.seed)
        shape = (self.request.batch_size, length)
        try:
            vocabulary = self.model.get_input_embeddings().weight.shape[0]
            ids = torch.randint(vocabulary, shape, generator=generator).to(self.model.device)
        except Exception as error:
            return torch.empty(shape, device="meta"), Side(self.source.attn, failed=failure(error))
        return ids, self._unpatched(ids)

    def _unpatched(self, ids: Any) -> Side:
        """The unpatched model, warmed up, on its quickest path, which stays on."""
        self._begin(BASELINE, ids.shape[1], UNTIMED)
        from ctxext.engine.pinned import pinned

        length = ids.shape[1]
        side = Side(self.source.attn, lambda: pinned(self.model, length))
        start = time.perf_counter()
        try:
            side.attention = self._quickest(ids)
            self._warm_up(side, ids)
        except Exception as error:
            side.failed = failure(error)
        side.seconds = time.perf_counter() - start
        return side

    def _quickest(self, ids: Any) -> str:
        """Put the model on the quicker of its own path and flash_attention_2; that path's name."""
        from transformers.utils import is_flash_attn_2_available

        own, fast = self.source.attn, "flash_attention_2"
        half = self.source.dtype in ("bfloat16", "float16")
        if self.model.device.type != "cuda" or not half or not is_flash_attn_2_available():
            return own
        seconds = {}
        for path in (own, fast):
            with suppress(Exception):  # a family without that path
                self.model.set_attn_implementation(path)
                taken = str(self.model.config._attn_implementation)  # not all families obey
                seconds[taken] = min(self._measure(ids).prefill for _ in range(2))
        best = min(seconds, key=seconds.__getitem__, default=own)
        self.model.set_attn_implementation(best)
        return best

    def _against(self, base: Side, cell: Cell, ids: Any) -> Record:
        """Run the pairs of one cell; its record, which is that of a failure if it came to one."""
        runs = UNTIMED + 2 * self.request.pairs
        self._begin(f"{cell.requested} on {cell.attention}", cell.length, runs)
        side = Side(cell.attention, lambda: self._patched(cell.requested, cell.length, cell.path))
        start, first = time.perf_counter(), len(base.runs)
        if base.failed is not None:
            reason = f"the unpatched model failed: {base.failed['reason']}"
            side.failed = {**base.failed, "reason": reason}
            return self._record(cell, side, ids, base, [])
        try:
            with side.put_on() as handle:
                side.attention, side.notes = handle.attention, handle.notes
                side.reasons = handle.choice.reasons
            self._warm_up(side, ids)
            for number in range(self.request.pairs):
                for one in (base, side) if number % 2 == 0 else (side, base):
                    self._run(one, ids)
        except Exception as error:
            side.failed = failure(error)
        side.seconds = time.perf_counter() - start
        return self._record(cell, side, ids, base, base.runs[first:])

    def _alone(self, base: Side, ids: Any) -> None:
        """The unpatched model where there is nothing that it could be compared with."""
        self._begin(BASELINE, ids.shape[1], self.request.pairs)
        try:
            for _ in range(0 if base.failed else self.request.pairs):
                self._run(base, ids)
        except Exception as error:
            base.failed = failure(error)

    def _baseline(self, base: Side, ids: Any) -> Record:
        rope, length = self.request.methods[0], ids.shape[1]
        cell = Cell(rope, self._resolve(rope, length), length, "auto", base.attention)
        return self._record(cell, base, ids, base, base.runs)

    def _measure(self, ids: Any) -> Timing:
        return measure(self.model, ids, self.request.decode_tokens)

    def _warm_up(self, side: Side, ids: Any) -> None:
        """Two runs that are not timed: for the peak of a prefill, and for the resident peak."""
        import torch

        def prefill() -> None:
            with side.put_on(), torch.no_grad():
                _Step(self.model, ids)()

        release()
        side.allocated = allocated_peak(self.model, prefill)
        release()
        reset_resident_peak()
        with side.put_on():
            self._measure(ids)
        side.resident = resident_peak() if self.model.device.type == "cpu" else None
        self.monitor.advance(UNTIMED * ids.numel())

    def _run(self, side: Side, ids: Any) -> None:
        gc.collect()
        start = time.perf_counter()
        with side.put_on():
            side.runs.append(self._measure(ids))
        side.seconds += time.perf_counter() - start
        self.monitor.advance(ids.numel())

    def _emit(self, record: Record, place: int | None = None) -> None:
        """Keep a cell's record."""
        self.records.insert(len(self.records) if place is None else place, record)
        self.store.write(record)
        self.monitor.done(record)

    def _record(self, cell: Cell, side: Side, ids: Any, base: Side, beside: list[Timing]) -> Record:
        """The record of a side; `beside` are the unpatched model's runs of the same pairs."""
        import torch

        request = self.request
        outcome = _failed(side) if side.failed else _outcome(side, base, beside, ids.numel())
        record = {
            "model": request.source.name,
            "requested": str(cell.requested),
            "method": cell.method.full(),
            "task": BENCH,
            "metric": "prefill_seconds",
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
        return sealed({**record, "key": self._key(record)})

    def _key(self, record: dict[str, Any]) -> str:
        """The hash of everything that was asked for, and of the machine."""
        names = (
            *("model_sha256", "random_weights", "trained_length", "method", "task", "length"),
            *("attention", "batch_size", "decode_tokens", "seed", "dtype", "device"),
        )
        parts = {**{name: record[name] for name in names}, "pairs": self.request.pairs}
        parts |= {"own_scaling": record["own_scaling"]} if self.identity.scaled else {}
        raised = {what: n for what, n in record["version_of"].items() if n > 1}
        parts |= {"versions": raised} if raised else {}
        return sha256_of_json(parts)


def _hash(ids: Any) -> str:
    return hashlib.sha256(b"" if ids.is_meta else ids.cpu().numpy().tobytes()).hexdigest()


def _failed(side: Side) -> dict[str, Any]:
    """No numbers, and the reason."""
    nothing = ("value", "tokens_per_second", *MEASURES, "peak_resident_bytes", "ratio", "pairs")
    return {**dict.fromkeys(nothing), "n": 0, **(side.failed or {})}


def _outcome(side: Side, base: Side, beside: list[Timing], tokens: int) -> dict[str, Any]:
    """What was measured: medians over the pairs, and the medians of the pairs' ratios.

    `pairs` are the seconds as measured, [unpatched, patched] each, the unpatched model first in
    the first pair, the third, and so on; its own record has its runs alone and the ratio 1.
    """
    prefill, decode, memory = map(str, MEASURES)
    pairs = {
        prefill: [[a.prefill, b.prefill] for a, b in zip(beside, side.runs, strict=True)],
        decode: [[a.decode, b.decode] for a, b in zip(beside, side.runs, strict=True)],
    }
    values = {name: statistics.median(b for _, b in pairs[name]) for name in pairs}
    share = side.allocated / base.allocated if side.allocated and base.allocated else None
    ratio = {
        **{name: _spread([b / a for a, b in pairs[name]]) for name in pairs},
        memory: None if share is None else dict.fromkeys(RATIO, share),
    }
    return {
        "value": values[prefill],
        "n": len(side.runs),
        "status": "ok",
        "reason": None,
        "tokens_per_second": tokens / values[prefill],
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
