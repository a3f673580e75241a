"""Cells → records: one model and its tokens loaded once, one record for each cell that is new."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctxext.data import Text, load_text
from ctxext.errors import CtxextError
from ctxext.machine import Meter, device_name, failure, versions
from ctxext.models import loading
from ctxext.patches import Spec
from ctxext.patches.base import Span
from ctxext.request import Request
from ctxext.results import Record, Store, sealed
from ctxext.tasks.base import Task, TokenScores

if TYPE_CHECKING:
    from ctxext.engine.patch import Handle
    from ctxext.engine.paths import Choice


@dataclass(frozen=True)
class Cell:
    """One record to make: a method, resolved for its length, and a task."""

    requested: Spec
    method: Spec
    length: int
    task: Task


@dataclass
class Monitor:
    """What a front end wants to know; every function may be left as it is."""

    plan: Callable[[int, int], None] = lambda cells, tokens: None
    begin: Callable[[str], None] = lambda what: None
    advance: Callable[[int], None] = lambda tokens: None
    done: Callable[[Record], None] = lambda record: None
    note: Callable[[str], None] = lambda line: None


@dataclass
class Evaluation:
    """An evaluation in progress; `records` grows as cells are done, in the order of cells."""

    request: Request
    monitor: Monitor = field(default_factory=Monitor)
    records: list[Record] = field(default_factory=list)

    def run(self) -> list[Record]:
        """Make or find every cell's record.

        Raises:
            UsageError: something asked for cannot be done; no cell has been computed then.
        """
        request = self.request
        store = Store(request.out)
        store.check_writable()
        self.text = load_text(request.data)
        self.plan = _plan(request, self.text)
        found = {k: None if request.force else store.get(k) for k in self.plan.keys}
        if any(record is None for record in found.values()):
            self._load(found)
        for length, cells in self._groups():
            new = [cell for cell in cells if found[self.plan.key(cell)] is None]
            for record in self._compute(new, length) if new else []:
                found[record["key"]] = record
            for cell in cells:
                self._emit(store, cell, found[self.plan.key(cell)] or {})
        return self.records

    def _emit(self, store: Store, cell: Cell, record: Record) -> None:
        """Report a cell's record, and keep it under the names of this request.

        A failure never takes the place of a finished record.
        """
        names = {"model": self.request.source.name, "requested": str(cell.requested)}
        data = {**record["data"], "name": self.text.name}
        record = sealed({**record, **names, "data": data})
        self.records.append(record)
        if record["status"] == "ok" or store.get(record["key"]) is None:
            store.write(record)
        self.monitor.done(record)

    def _groups(self) -> Iterator[tuple[int, list[Cell]]]:
        """Cells by method and length: these share a forward, since each task reads the same."""
        groups = itertools.groupby(self.plan.cells, key=lambda cell: (cell.requested, cell.length))
        return ((length, list(cells)) for (_, length), cells in groups)

    def _load(self, found: dict[str, Record | None]) -> None:
        """Tokens, windows and model; everything that can be refused is refused here."""
        from ctxext.engine.patch import patched
        from ctxext.tasks import windows

        request, source = self.request, self.plan.source
        tokenizer = loading.load_tokenizer(source)
        ids = windows.tokenise(self.text, tokenizer, request.tokens)
        start = windows.start_token(tokenizer)
        self.windows = {
            length: windows.cut(ids, length, start, request.limit, self.text.name)
            for length in request.lengths
        }
        self.data_tokens = len(ids)
        self.model = loading.load_model(source, self.monitor.note)
        paths: dict[str, None] = {}
        for length, spec in itertools.product(request.lengths, request.methods):
            with patched(self.model, spec, length, **self._patch_options()) as handle:
                for line in handle.notes:
                    self.monitor.note(f"{spec} at {length}: {line}")
                if spec.distance:
                    paths[str(handle.choice)] = None
        for path in paths:
            self.monitor.note(f"attention path: {path}")
        todo = {(c.method, c.length) for c in self.plan.cells if found[self.plan.key(c)] is None}
        total = sum(self.windows[length].numel() for _, length in todo)
        self.monitor.plan(len(todo), total)

    def _patch_options(self) -> dict[str, Any]:
        return {
            "train_len": self.request.source.train_len,
            "attn": self.request.source.attn,
        }

    def _compute(self, cells: list[Cell], length: int) -> list[Record]:
        """The records of the cells of one method and length, which share one forward."""
        from ctxext.engine.patch import patched
        from ctxext.tasks import windows

        some = self.windows[length]
        self.monitor.begin(f"{cells[0].requested} at {length}")
        meter = Meter(str(self.model.device))
        scores: TokenScores | Exception
        handle: Handle | None = None
        try:
            with patched(self.model, cells[0].method, length, **self._patch_options()) as handle:
                scores = windows.score(
                    self.model, some, self.request.batch(length), self.monitor.advance
                )
            if not math.isfinite(scores.nll.sum()):
                scores = CtxextError("the loss is not finite")
        except Exception as error:
            scores = error
        cost = meter.read(some.numel())
        return [self._record(cell, scores, some, handle, cost) for cell in cells]

    def _record(
        self,
        cell: Cell,
        scores: TokenScores | Exception,
        some: Any,
        handle: Handle | None,
        cost: dict[str, Any],
    ) -> Record:
        plan = self.plan
        outcome = {**_outcome(cell.task, scores), **cost}
        return {
            "model": self.request.source.name,
            "requested": str(cell.requested),
            "method": cell.method.full(),
            "task": str(cell.task),
            "metric": cell.task.metric,
            "length": cell.length,
            "trained_length": plan.identity.trained,
            "windows": len(some),
            **outcome,
            "seed": self.request.seed,
            "limit": self.request.limit,
            "data": {
                "name": self.text.name,
                "sha256": plan.data_sha256,
                "tokens": self.data_tokens,
            },
            "model_sha256": plan.identity.sha256,
            "revision": self.request.source.revision,
            "dtype": plan.source.load_in or str(self.model.dtype).removeprefix("torch."),
            "device": device_name(self.model.device),
            "attention": handle.attention if handle else plan.attention(cell.method),
            "attention_reasons": handle.choice.reasons if handle else (),
            "notes": handle.notes if handle else [],
            "batch_size": self.request.batch(cell.length),
            "versions": versions(),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(
                timespec="microseconds"
            ),
            "key": plan.key(cell),
        }


@dataclass(frozen=True)
class _Plan:
    """The cells, and what makes each cell's key."""

    source: loading.Source
    identity: loading.Identity
    choice: Choice
    data_sha256: str
    cells: list[Cell]
    request: Request

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(self.key(cell) for cell in self.cells))

    def attention(self, method: Spec) -> str:
        """The attention path of a method: the model's own, or ours for a distance method."""
        if method.distance is None:
            return self.source.attn
        return self.choice.name

    def key(self, cell: Cell) -> str:
        """The hash of everything that a cell's numbers depend on."""
        request = self.request
        parts = {
            "model": self.identity.sha256,
            "trained": self.identity.trained,
            "method": cell.method.full(),
            "task": f"{cell.task}@{cell.task.version}",
            "length": cell.length,
            "data": self.data_sha256,
            "limit": request.limit,
            "tokens": request.tokens,
            "seed": request.seed,
            "dtype": self.source.dtype,
            "load_in": self.source.load_in,
            "device": self.source.device.partition(":")[0],
            "attention": self.attention(cell.method),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plan(request: Request, text: Text) -> _Plan:
    import torch

    from ctxext.engine.paths import choose
    from ctxext.models.layout import head_dim

    config = loading.load_config(request.source)
    source = loading.settle(request.source, config)
    identity = loading.identify(source, config)
    cells = [
        Cell(spec, spec.resolve(Span(identity.trained, length)), length, task)
        for spec in request.methods
        for length in request.lengths
        for task in request.tasks
    ]
    choice = choose(
        request.source.attn, source.device, getattr(torch, source.dtype), head_dim(config)
    )
    return _Plan(source, identity, choice, text.sha256, cells, request)


def _outcome(task: Task, scores: TokenScores | Exception) -> dict[str, Any]:
    """What was measured, and the status; or no numbers, and the reason."""
    try:
        if isinstance(scores, Exception):
            raise scores
        summary = task.summarise(scores)
    except Exception as error:
        return {"value": None, "stderr": None, "n": 0, "buckets": [], **failure(error)}
    done = {"status": "ok", "reason": None, "buckets": scores.buckets()}
    return {**summary._asdict(), "n": int(scores.nll.size), **done}
