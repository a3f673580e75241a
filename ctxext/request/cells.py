"""EvaluationRequest → cells, and the hash of everything that a cell's numbers depend on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ctxext import engine
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models import loading
from ctxext.models.identity import Identity, identify, tell_trained
from ctxext.request.evaluation import EvaluationRequest
from ctxext.system.digests import sha256_of_json, sha256_of_text
from ctxext.tasks.base import Data, HarnessTask, Task, TokenTask

if TYPE_CHECKING:
    from ctxext.engine.paths import PathChoice


@dataclass(frozen=True)
class Cell:
    """One record to make: a method and a task, both resolved for their lengths, its data and
    the seed of what the task draws.

    Attributes:
        refusal: why it cannot be measured, where its plan tells; then nothing is resolved.
    """

    requested: Spec
    method: Spec
    length: int
    asked: Task
    task: Task
    data: Data
    seed: int
    refusal: str | None = None


@dataclass(frozen=True)
class Plan:
    """The cells, what makes each cell's key, and a line that tells T."""

    request: EvaluationRequest
    source: loading.Source
    identity: Identity
    choice: PathChoice
    cells: list[Cell]
    trained_line: str
    _known: dict[int, tuple[Cell, str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def keys(self) -> list[str]:
        """The cells' keys, none twice."""
        return list(dict.fromkeys(self.key(cell) for cell in self.cells))

    def attention(self, method: Spec) -> str:
        """The attention path of a method: the model's own, or ours for a distance method."""
        if method.distance is None:
            return self.source.attn
        return self.choice.name

    def key(self, cell: Cell) -> str:
        """The hash of everything that a cell's numbers depend on."""
        known = self._known.get(id(cell))
        if known is None or known[0] is not cell:  # of a plan that was pickled
            known = self._known[id(cell)] = cell, sha256_of_json(self._parts(cell))
        return known[1]

    def older_keys(self, cell: Cell) -> dict[str, str]:
        """The keys that the cell had, each with what it was then of and what that is now."""
        now = versions(cell)
        ranges = (range(1, version + 1) for version in now.values())
        found = {}
        for then in (dict(zip(now, some, strict=True)) for some in itertools.product(*ranges)):
            apart = [f"version {then[w]} of {w}, now {now[w]}" for w in now if then[w] != now[w]]
            if apart:
                found[sha256_of_json(self._parts(cell, then))] = " and ".join(apart)
        return found

    def shared_key(self, cell: Cell) -> str:
        """Twelve digits that the cells of a benchmark's tasks have in common."""
        parts = {**self._parts(cell), "task": cell.task.name, "data": self.request.data}
        return sha256_of_json(parts)[:12]

    def _parts(self, cell: Cell, of: dict[str, int] | None = None) -> dict[str, object]:
        """What the key is made of, with the versions that it is `of`; None for today's."""
        request, of = self.request, versions(cell) if of is None else of
        raised = {what: n for what, n in of.items() if n > 1 and what != _task(cell)}
        other = _evaluator(cell.task, self.source)
        own = {"own_scaling": self.source.own_scaling} if self.identity.scaled else {}
        return {
            "model": self.identity.sha256,
            "trained": self.identity.trained,
            **({"evaluator": other.sha256} if other else {}),
            **own,  # so that the keys of models without any are what they were
            **({"versions": raised} if raised else {}),  # and those of first versions
            "method": cell.method.full(),
            "task": f"{cell.task}@{of[_task(cell)]}",
            "length": cell.length,
            "data": cell.data.sha256,
            "limit": request.limit,
            "tokens": request.tokens if isinstance(cell.task, TokenTask) else None,
            "seed": cell.seed if cell.task.draws else 0,
            "dtype": self.source.dtype,
            "load_in": self.source.load_in,
            "device": self.source.device.partition(":")[0],
            "attention": self.attention(cell.method),
        }


def versions(cell: Cell) -> dict[str, int]:
    """The versions that a cell's numbers go by."""
    return {"the engine": engine.VERSION, _task(cell): cell.task.version, **cell.method.versions}


def _task(cell: Cell) -> str:
    return f"task {cell.task.name}"


class _Beside(NamedTuple):
    """Another model that a task needs: what it is, or why it cannot be had."""

    sha256: str | None
    refusal: str | None = None


def _evaluator(task: Task, source: loading.Source) -> _Beside | None:
    """The model that chooses a task's tokens, where that is another than the one measured."""
    name = getattr(task, "evaluator", None)
    if not name:
        return None
    try:
        return _Beside(_sha256(name, source.device))
    except UsageError as error:
        return _Beside(None, str(error))


@functools.cache
def _sha256(name: str, device: str) -> str:
    source = loading.Source(name, device=device)
    return identify(source, loading.load_config(source)).sha256


class _Unread(NamedTuple):
    """What stands for data that cannot be read."""

    name: str
    sha256: str = sha256_of_text("unread")


class _Asked(NamedTuple):
    """A task with its data, and why it cannot be measured at any length, if so."""

    task: Task
    data: Data
    refusal: str | None = None


def make(request: EvaluationRequest, processes: int = 1) -> Plan:
    """The cells, and every `auto` decided.

    A method or a task that cannot be had at a length, and a task whose data cannot be read, is a
    refusal of those cells.

    Args:
        processes: among which each cell is split.

    Raises:
        UsageError: the model cannot be had, or not split so; the message says why.
    """
    import torch

    from ctxext.engine.paths import choose
    from ctxext.models.layout import head_dim

    check_split(request, processes)
    config = loading.load_config(request.source)
    source = loading.settle(request.source, config)
    identity = identify(source, config)
    asked = [_with_evaluator(one, source) for one in _read(request, processes)]
    cells = list(_cells(request, identity.trained, asked))
    choice = choose(
        request.source.attn, source.device, getattr(torch, source.dtype), head_dim(config)
    )
    line = tell_trained(request.source, config)
    return Plan(request, source, identity, choice, cells, line)


def _cells(request: EvaluationRequest, trained: int, tasks: Sequence[_Asked]) -> Iterator[Cell]:
    resolved = [_resolved(one.task, trained, request.lengths) for one in tasks]
    for spec in request.methods:
        for length in request.lengths:
            method, unfit = _method(spec, Span(trained, length))
            for (asked, data, unread), tasks_by_length in zip(tasks, resolved, strict=True):
                task, misfit = tasks_by_length[length]
                why = unfit or unread or misfit
                for seed in request.seeds if task.draws else request.seeds[:1]:
                    yield Cell(spec, method, length, asked, task, data, seed, why)


def _method(spec: Spec, span: Span) -> tuple[Spec, str | None]:
    """The method resolved; or as it is, and why it cannot be."""
    try:
        return spec.resolve(span), None
    except UsageError as error:
        return spec, str(error)


def _resolved(
    task: Task, trained: int, lengths: Sequence[int]
) -> dict[int, tuple[Task, str | None]]:
    """By length, the task resolved for all lengths at which it can be measured; or as it is, and
    why it cannot be."""
    found, fit = dict[int, tuple[Task, str | None]](), list[int]()
    for length in lengths:
        try:
            task.resolve(trained, [length])
            fit.append(length)
        except UsageError as error:
            found[length] = task, str(error)
    if fit:
        found |= dict.fromkeys(fit, (task.resolve(trained, fit), None))
    return found


def _read(request: EvaluationRequest, processes: int) -> list[_Asked]:
    """Each task with its data; tasks over tokens share one text."""
    text: _Asked | None = None
    found: list[_Asked] = []
    for task in request.tasks:
        if isinstance(task, TokenTask):
            text = text or _asked(task, request.data, request.text_tokens)
            found.append(text._replace(task=task))
        elif isinstance(task, HarnessTask) and processes > 1:
            why = (
                f"{task} runs in one process: leave out accelerate launch, or use lm_eval's own "
                "command under it: `accelerate launch -m ctxext.harness --model ctxext …`"
            )
            found.append(_Asked(task, _Unread(task.name), why))
        else:
            found.append(_asked(task, request.data))
    return found


def _with_evaluator(asked: _Asked, source: loading.Source) -> _Asked:
    """The same; refused where its evaluator cannot be had."""
    other = _evaluator(asked.task, source)
    return asked._replace(refusal=asked.refusal or (other and other.refusal))


def _asked(task: Task, data: str | None, *most: int | None) -> _Asked:
    try:
        return _Asked(task, task.read(data, *most))
    except UsageError as error:
        return _Asked(task, _Unread(data or task.name), str(error))


def check_split(request: EvaluationRequest, processes: int) -> None:
    """UsageError where the model cannot be split over so many processes."""
    if processes > 1 and request.source.device_map:
        raise UsageError(
            "--device-map auto takes all devices for one process: leave it out, or the launcher"
        )
