"""Request → cells, and the hash of everything that a cell's numbers depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.errors import UsageError
from ctxext.models import loading
from ctxext.patches import Spec
from ctxext.patches.base import Span
from ctxext.request import Request
from ctxext.tasks.base import Data, HarnessTask, Task, TokenTask

if TYPE_CHECKING:
    from ctxext.engine.paths import PathChoice


@dataclass(frozen=True)
class Cell:
    """One record to make: a method and a task, both resolved for their lengths, its data and
    the seed of what the task draws."""

    requested: Spec
    method: Spec
    length: int
    asked: Task
    task: Task
    data: Data
    seed: int


@dataclass(frozen=True)
class Plan:
    """The cells, what makes each cell's key, and a line that tells T."""

    request: Request
    source: loading.Source
    identity: loading.Identity
    choice: PathChoice
    cells: list[Cell]
    trained_line: str

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
        return _hash(self._parts(cell))

    def shared_key(self, cell: Cell) -> str:
        """Twelve digits that the cells of a benchmark's tasks have in common."""
        parts = {**self._parts(cell), "task": cell.task.name, "data": self.request.data}
        return _hash(parts)[:12]

    def _parts(self, cell: Cell) -> dict[str, object]:
        request = self.request
        own = {"own_scaling": self.source.own_scaling} if self.identity.scaled else {}
        return {
            "model": self.identity.sha256,
            "trained": self.identity.trained,
            **own,  # so that the keys of models without any are what they were
            "method": cell.method.full(),
            "task": f"{cell.task}@{cell.task.version}",
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


def _hash(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make(request: Request) -> Plan:
    """The cells, and every `auto` decided.

    Raises:
        UsageError: a method, a task, a length or the data cannot be had; the message says why.
    """
    import torch

    from ctxext.engine.paths import choose
    from ctxext.models.layout import head_dim

    tasks = _read(request)
    config = loading.load_config(request.source)
    source = loading.settle(request.source, config)
    identity = loading.identify(source, config)
    settled = [
        (task, task.resolve(identity.trained, request.lengths), data) for task, data in tasks
    ]
    cells = [
        Cell(spec, spec.resolve(Span(identity.trained, length)), length, asked, task, data, seed)
        for spec in request.methods
        for length in request.lengths
        for (asked, task, data) in settled
        for seed in (request.seeds if task.draws else request.seeds[:1])
    ]
    choice = choose(
        request.source.attn, source.device, getattr(torch, source.dtype), head_dim(config)
    )
    line = loading.tell_trained(request.source, config)
    return Plan(request, source, identity, choice, cells, line)


def _read(request: Request) -> list[tuple[Task, Data]]:
    """Each task with its data; tasks over tokens share one text."""
    text: Data | None = None
    found: list[tuple[Task, Data]] = []
    for task in request.tasks:
        if isinstance(task, TokenTask):
            text = text or task.read(request.data, request.text_tokens)
            found.append((task, text))
        else:
            found.append((task, task.read(request.data)))
    return found


def check_workers(request: Request, count: int) -> None:
    """UsageError where what is asked for cannot be split over so many processes."""
    if count > 1 and request.source.device_map:
        raise UsageError(
            "--device-map auto takes all devices for one process: leave it out, or the launcher"
        )
    for task in request.tasks:
        if count > 1 and isinstance(task, HarnessTask):
            raise UsageError(
                f"{task} runs in one process: leave out accelerate launch, or use lm_eval's own "
                "command line under it with --model ctxext"
            )
