"""The cells of a plan: whether their records are there, and what time and memory they will take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ctxext import methods
from ctxext.errors import UsageError, short
from ctxext.measure.attempts import reads_in_parts
from ctxext.measure.costs.probe import Held, Probe, Speed
from ctxext.measure.costs.work import Shape, Work, works
from ctxext.measure.inputs import Inputs, place
from ctxext.measure.loaded import Loaded
from ctxext.measure.machine import device_name
from ctxext.measure.memory import resident
from ctxext.methods import Spec
from ctxext.models import loading
from ctxext.models.outline import outline
from ctxext.records import Record, Store
from ctxext.request.cells import Cell, Plan
from ctxext.tasks.base import TokenTask

ROUNDS = 3  # in each of which all kinds of methods are measured once
SECONDS = 0.15  # that one kind may take in a round, but for the first forwards
NEAR = 4.0  # times the length of a record from which time is taken, at most
NEAREST = 3  # lengths that were measured, of which the median counts
FOUND, RETRY, REFUSED, COMPUTE = "found", "retry", "refused", "compute"
_BITS = {"4bit": 4, "8bit": 8}


@dataclass(frozen=True)
class Estimate:
    """What is known of a cell before it is computed.

    Attributes:
        state: `found` where its record is there, `retry` where that is of a failure, `refused`
            where it cannot be measured, `compute`.
        reason: why it is refused.
        shared: whether another cell before it reads the same, so that it costs nothing more.
        tokens: that it reads; None where another library draws them.
        seconds: None where that is not known; by the quickest of what was measured.
        most: the same by the slowest, as on a machine that is as busy as it was then.
        basis: what seconds come from: `records`, or `measured` on a few layers.
        memory: bytes at most at once, the process with its libraries included on the CPU.
    """

    model: str
    cell: Cell
    key: str
    state: str
    reason: str | None = None
    shared: bool = False
    tokens: int | None = None
    seconds: float | None = None
    most: float | None = None
    basis: str | None = None
    memory: int | None = None

    def to_record(self) -> dict[str, Any]:
        """As a line of JSON."""
        cell = self.cell
        asked = {"method": str(cell.requested), "resolved": cell.method.full()}
        place = {"task": str(cell.asked), "length": cell.length, "seed": cell.seed}
        cost = {"tokens": self.tokens, "seconds": self.seconds, "basis": self.basis}
        return {
            "model": self.model,
            **asked,
            **place,
            "data": cell.data.name,
            "state": self.state,
            "reason": self.reason,
            "shared": self.shared,
            **cost,
            "seconds_at_most": self.most,
            "memory_bytes": self.memory,
            "key": self.key,
        }


Note = Callable[[str], None]


def estimates(
    plan: Plan, records: Mapping[str, Record | None], store: Store, note: Note, loaded: Loaded
) -> list[Estimate]:
    """All cells of a plan, in order; nothing is written. Where the model cannot be had, those that
    are not found are refused.

    Args:
        records: what there is under each cell's key.
        store: of earlier records, by which time is told.
        note: told, in a line, what could not be measured.
        loaded: what was loaded for plans before this one.
    """
    states = [_state(records[plan.key(cell)], plan.request.force) for cell in plan.cells]
    name = plan.request.source.name
    found = [
        Estimate(name, cell, plan.key(cell), REFUSED if cell.refusal else state, cell.refusal)
        for cell, state in zip(plan.cells, states, strict=True)
    ]
    new = [one.cell for one in found if one.state not in (FOUND, REFUSED)]
    costs = iter(_costs(plan, new, store, note, loaded))
    return [one if one.state in (FOUND, REFUSED) else replace(one, **next(costs)) for one in found]


def _costs(
    plan: Plan, cells: Sequence[Cell], store: Store, note: Note, loaded: Loaded
) -> list[dict[str, Any]]:
    """What the `Estimate` of each cell has beside its name; its state, where it is refused."""
    if not cells:
        return []
    try:
        inputs = Inputs(plan, cells, loaded)
        fit = iter(_Costs(plan, inputs, store, note).all() if inputs.cells else ())
    except UsageError as error:
        return [{"state": REFUSED, "reason": str(error)}] * len(cells)
    whys = (inputs.refusals.of(place(cell)) for cell in cells)
    return [
        {"state": REFUSED, "reason": why.fields["reason"]} if why else next(fit) for why in whys
    ]


def _state(record: Record | None, force: bool) -> str:
    if record is not None and record["status"] != "ok":
        return RETRY
    return FOUND if record is not None and not force else COMPUTE


Group = tuple[str, bool]  # methods that cost the same: the distance method or rule, and scales


def _group(spec: Spec) -> Group:
    method = spec.distance or spec.rule
    return method.name if method else "", bool(spec.query_scales)


_ROPE = methods.parse("rope")
_PLAIN = _group(_ROPE)


def _slower(speed: Speed, plain: Speed) -> Speed:
    """The speed of a method, which is no quicker than the model without it in the same round."""
    return Speed(min(speed.reading, plain.reading), max(speed.step, plain.step))


def _ends(some: Sequence[Speed]) -> tuple[Speed, Speed]:
    """The quickest and the slowest of several."""
    reading, step = zip(*some, strict=True)
    return Speed(max(reading), min(step)), Speed(min(reading), max(step))


class _Costs:
    """What the cells that inputs are of will take."""

    def __init__(self, plan: Plan, inputs: Inputs, store: Store, note: Note) -> None:
        self._plan, self._inputs, self._note = plan, inputs, note
        config = loading.load_config(plan.request.source)
        whole = outline(config, plan.source.trust_remote_code)
        self._shape = Shape.of(whole)
        batch, sharing = plan.request.batch, reads_in_parts(whole)
        trained = plan.identity.trained
        found = works(self._shape, whole, self._inputs, trained, batch, sharing)
        both = zip(self._inputs.cells, found, strict=True)
        known = [pair for pair in both if self._inputs.refusals.of(place(pair[0])) is None]
        self._cells, self._works = [cell for cell, _ in known], [work for _, work in known]
        self._bytes = getattr(torch, plan.source.dtype).itemsize
        cpu = plan.source.device.startswith("cpu")
        self._libraries = (resident() or 0) if cpu else 0
        self._records = [r for r in store.read_all()[0] if self._is_like(r)]
        self._probe: Probe | None = self._tried(lambda: Probe(config, plan.source, trained))
        self._held: dict[Group, Held | None] = {}
        self._speeds: dict[Group, list[dict[int, Speed]]] = {}
        self._failed = set[Spec]()
        self._decodes = any(work is not None and work.steps for work in self._works)

    def all(self) -> list[dict[str, Any]]:
        """What the `Estimate` of each cell has beside its name."""
        seen, found = set[object](), []
        pairs = list(zip(self._cells, self._works, strict=True))
        known = [self._known(cell, work) if work else None for cell, work in pairs]
        new = [cell for (cell, work), one in zip(pairs, known, strict=True) if work and one is None]
        self._speeds = self._measure(new) if new else {}
        for (cell, work), seconds in zip(pairs, known, strict=True):
            names = {self._plan.key(cell), self._inputs.shared(cell)}
            shared = not seen.isdisjoint(names)
            seen |= names
            one = self._fields(cell, work, shared, seconds) if work else {"shared": shared}
            found.append(one)
        return found

    def _fields(self, cell: Cell, work: Work, shared: bool, known: float | None) -> dict[str, Any]:
        least, most, basis = known, known, "records"
        if known is None:
            (least, most), basis = self._measured(cell, work), "measured"
        return {
            "shared": shared,
            "tokens": 0 if shared else work.tokens,
            "seconds": 0.0 if shared else least,
            "most": 0.0 if shared else most,
            "basis": None if shared or least is None else basis,
            "memory": self._memory(cell, work),
        }

    def _tried(self, call: Callable[[], Any]) -> Any:
        """What is measured; None where that fails, which is told once."""
        try:
            return call()
        except Exception as error:
            why = short(error)
            self._note(f"not estimated for {self._plan.request.source.name}: {why}")
            return None

    def _is_like(self, record: Record) -> bool:
        """Whether a record is of this model, type and machine, in one process."""
        source, device = self._plan.source, device_name(torch.device(self._plan.source.device))
        mine = (self._plan.identity.sha256, source.load_in or source.dtype, device)
        theirs = (record["model_sha256"], record["dtype"], record["device"])
        timed = record["status"] == "ok" and record["tokens_per_second"]
        return mine == theirs and bool(timed) and record.get("processes", 1) == 1

    def _known(self, cell: Cell, work: Work) -> float | None:
        """Seconds by the record of the nearest length that reads alike; None without one."""
        near = [
            (abs(math.log(record["length"] / cell.length)), record)
            for record in self._records
            if self._reads_alike(record, cell)
        ]
        far, record = min(near, key=lambda pair: pair[0], default=(math.inf, None))
        rate = record["tokens_per_second"] if record else None
        if record is None or rate is None or far > math.log(NEAR):
            return None
        trained, measured = self._plan.identity.trained, methods.parse(record["method"])
        both = ((cell.method, cell.length), (measured, record["length"]))
        each, known = (self._shape.under(spec, trained).read(n) / n for spec, n in both)
        return float(work.tokens / rate * each / known)

    def _reads_alike(self, record: Record, cell: Cell) -> bool:
        try:
            group = _group(methods.parse(record["method"]))
        except UsageError:
            return False
        if isinstance(cell.task, TokenTask):
            same = bool(record["buckets"])
        else:
            same = record.get("task_resolved") == str(cell.task)
        on = self._plan.attention(cell.method)
        return same and group == _group(cell.method) and record["attention"] == on

    def _measured(self, cell: Cell, work: Work) -> tuple[float | None, float | None]:
        """Seconds by the longest lengths up to the cell's at which something was measured: by the
        quickest and by the slowest of the rounds."""
        rounds, held, probe = self._speeds.get(_group(cell.method)), self._hold(cell), self._probe
        if not rounds or held is None or probe is None:
            return None, None

        def moved(shape: Shape, length: int) -> float:
            """Bytes that a decoding step reads."""
            weights: int = (shape.active + shape.head) * self._bytes
            return weights + shape.layers * length * held.cached

        def seconds(at: int, speed: Speed) -> float:
            share = moved(self._shape, cell.length) / moved(probe.shape, at)
            return work.reading / speed.reading + work.steps * speed.step * share

        lengths = sorted(set[int]().union(*rounds))
        some = [n for n in lengths if n <= cell.length][-NEAREST:] or lengths[:1]
        both = [_ends([found[n] for found in rounds if n in found]) for n in some]
        least, most = (
            statistics.median(seconds(n, ends[i]) for n, ends in zip(some, both, strict=True))
            for i in (0, 1)
        )
        return least, most

    def _alike(self, cell: Cell) -> list[Cell]:
        """The cells whose methods cost the same, the longest first."""
        some = [one for one in self._cells if _group(one.method) == _group(cell.method)]
        return sorted(some, key=lambda one: -one.length)

    def _measure(self, cells: Sequence[Cell]) -> dict[Group, list[dict[int, Speed]]]:
        """What is measured, by length, for each kind of method of the cells and for none: all of
        them in each round, so that a busy moment meets all alike."""
        longest: dict[Group, tuple[Spec, int]] = {}
        for cell in cells:
            longest[_PLAIN] = _ROPE, max(cell.length, longest.get(_PLAIN, (_ROPE, 0))[1])
            first = self._alike(cell)[0]
            longest[_group(cell.method)] = first.method, first.length
        found: dict[Group, list[dict[int, Speed]]] = {group: [] for group in longest}
        for _ in range(ROUNDS):
            for group, (spec, length) in longest.items():
                if speeds := self._speeds_of(spec, length):
                    plain = found[_PLAIN][-1] if found[_PLAIN] and group != _PLAIN else {}
                    both = speeds.keys() & plain.keys()
                    same = {n: _slower(speeds[n], plain[n]) for n in sorted(both)}
                    found[group].append(same or speeds)
        return found

    def _speeds_of(self, spec: Spec, length: int) -> dict[int, Speed]:
        probe, batch = self._probe, self._plan.request.batch
        if probe is None or spec in self._failed:
            return {}
        found = self._tried(lambda: probe.speeds(spec, length, batch, SECONDS, self._decodes))
        if found is None:
            self._failed.add(spec)
        return found or {}

    def _hold(self, cell: Cell) -> Held | None:
        """What a forward with the like of this method holds."""
        group = _group(cell.method)
        if group not in self._held and (probe := self._probe) is not None:
            longest = self._alike(cell)[0]
            self._held[group] = self._tried(
                lambda: probe.held(longest.method, longest.length, self._decodes)
            )
        return self._held.get(group)

    def _memory(self, cell: Cell, work: Work) -> int | None:
        """The most bytes at once: of weights, one forward or the logits after it, and the cache."""
        held, shape, tokens = self._hold(cell), self._shape, work.rows * cell.length
        if held is None:
            return None
        weights = shape.parameters * _BITS.get(self._plan.source.load_in or "", 8 * self._bytes) / 8
        forward = tokens * held.token + tokens * cell.length * held.pair
        cached = tokens * shape.layers * held.cached if work.steps else 0.0
        scores_all = isinstance(cell.task, TokenTask)
        scored = shape.scoring(tokens, self._bytes) if scores_all else 0
        return int(self._libraries + weights + max(forward, scored) + cached)
