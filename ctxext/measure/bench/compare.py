"""Speed and memory of methods against the unpatched model, in one process.

Each method, path and length is run in pairs: the unpatched model and the patched one directly
after one another, which goes first changing from pair to pair, so that a machine that slows down
or warms up meets both alike. What is reported is the median of the pairs' ratios.
"""

from __future__ import annotations

import functools
import gc
import itertools
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from ctxext.errors import UsageError
from ctxext.measure.bench.record import Cell, Recorder, Side
from ctxext.measure.bench.request import BenchRequest
from ctxext.measure.bench.timed import CASES, Case, Timing, random_model
from ctxext.measure.costs import Shape
from ctxext.measure.failure import failure
from ctxext.measure.memory import allocated_peak, release, reset_resident_peak, resident_peak
from ctxext.measure.monitor import Monitor, Step
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models import loading
from ctxext.models.hashes import keep
from ctxext.models.identity import identify, tell_trained
from ctxext.notation import format_length
from ctxext.records import Record, Store
from ctxext.request.lists import BASELINE

UNTIMED = 2  # runs before the pairs: one for peak memory, one to warm up


@dataclass
class Bench:
    """A comparison in progress; `records` grows as cells are done."""

    request: BenchRequest
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """The methods as they were asked for, in order."""
        return [str(spec) for spec in self.request.methods]

    @property
    def case(self) -> Case:
        """What is timed."""
        return CASES[self.request.case]

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
        self.identity = identify(self.source, config)
        keep()
        for path in request.paths:
            choose(path, self.source.device, getattr(torch, self.source.dtype), head_dim(config))
        if request.random_weights:
            self.model = random_model(self.source, request.seed)
        else:
            with self.monitor.outside():
                self.model = loading.load_model(self.source, self.monitor.note)
        self.recorder = Recorder(request, self.source, self.identity, self.model)
        self._unfit: dict[Cell, str] = {}
        cells = {length: self._cells(length) for length in request.lengths}
        if self._unfit and all(cell in self._unfit for some in cells.values() for cell in some):
            raise UsageError("; ".join(dict.fromkeys(self._unfit.values())))
        self._plan(cells)
        self.monitor.note(tell_trained(self.source, config))
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
        return patched(self.model, self._resolve(spec, length), length, attn=path, **options)

    def _cells(self, length: int) -> list[Cell]:
        """The methods beside `rope` on each path; paths that come to the same are one cell."""
        cells: dict[tuple[str, str], Cell] = {}
        for spec, path in itertools.product(self.request.methods, self.request.paths):
            if str(spec) == BASELINE and not self.case.beside_itself:
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
        own = not self.case.beside_itself  # a record of the unpatched model
        self.monitor.plan(sum(len(some) + own for some in cells.values()), 0)
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
            if not base.runs and not self.case.beside_itself:
                self._alone(base, ids)
        except KeyboardInterrupt:
            if base.runs and len(self.records) > first:
                self._emit_baseline(base, ids, first)
            raise
        self._emit_baseline(base, ids, first)

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
            self._warm_up(side, ids, plain=True)
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
                seconds[taken] = min(_total(self._measure(ids, plain=True)) for _ in range(2))
        best = min(seconds, key=seconds.__getitem__, default=own)
        self.model.set_attn_implementation(best)
        return best

    def _against(self, base: Side, cell: Cell, ids: Any) -> Record:
        """Run the pairs of one cell; its record, which is that of a failure if it came to one."""
        runs = UNTIMED + 2 * self.request.pairs
        self._begin(f"{cell.requested} on {cell.attention}", cell.length, runs)
        patch = functools.partial(self._patched, cell.requested, cell.length, cell.path)
        side = Side(cell.attention, patch, patches=True)
        start, first = time.perf_counter(), len(base.runs)
        if base.failed is not None:
            reason = f"the unpatched model failed: {base.failed['reason']}"
            side.failed = {**base.failed, "reason": reason}
            return self.recorder.record(cell, side, ids, base, [])
        try:
            with side.put_on() as handle:
                side.attention, side.notes = handle.attention, handle.notes
                side.reasons = handle.choice.reasons
            self._warm_up(side, ids, plain=False)
            for number in range(self.request.pairs):
                for one in (base, side) if number % 2 == 0 else (side, base):
                    self._run(one, ids, plain=one is base)
        except Exception as error:
            side.failed = failure(error)
        side.seconds = time.perf_counter() - start
        return self.recorder.record(cell, side, ids, base, base.runs[first:])

    def _alone(self, base: Side, ids: Any) -> None:
        """The unpatched model where there is nothing that it could be compared with."""
        self._begin(BASELINE, ids.shape[1], self.request.pairs)
        try:
            for _ in range(0 if base.failed else self.request.pairs):
                self._run(base, ids, plain=True)
        except Exception as error:
            base.failed = failure(error)

    def _emit_baseline(self, base: Side, ids: Any, place: int) -> None:
        """Keep the unpatched model's record, but where it is one of those compared."""
        if self.case.beside_itself:
            return
        rope, length = self.request.methods[0], ids.shape[1]
        cell = Cell(rope, self._resolve(rope, length), length, "auto", base.attention)
        self._emit(self.recorder.record(cell, base, ids, base, base.runs), place)

    def _measure(self, ids: Any, plain: bool) -> Timing:
        return self.case.run(self.model, ids, self.request.decode_tokens, plain)

    def _warm_up(self, side: Side, ids: Any, plain: bool) -> None:
        """Two runs that are not timed: for the peak of a prefill, and for the resident peak."""

        def prefill() -> None:
            with side.put_on():
                self.case.prefill(self.model, ids)

        if self.case.reads:
            release()
            side.allocated = allocated_peak(self.model, prefill)
        release()
        reset_resident_peak()
        with side.put_on():
            self._measure(ids, plain)
        side.resident = resident_peak() if self.model.device.type == "cpu" else None
        self.monitor.advance(UNTIMED * ids.numel())

    def _run(self, side: Side, ids: Any, plain: bool) -> None:
        gc.collect()
        start = time.perf_counter()
        with side.put_on():
            if side.patches:
                side.patching.append(time.perf_counter() - start)
            side.runs.append(self._measure(ids, plain))
        side.seconds += time.perf_counter() - start
        self.monitor.advance(ids.numel())

    def _emit(self, record: Record, place: int | None = None) -> None:
        """Keep a cell's record."""
        self.records.insert(len(self.records) if place is None else place, record)
        self.store.write(record)
        self.monitor.done(record)


def _total(timing: Timing) -> float:
    return sum(seconds for seconds in timing if seconds is not None)
