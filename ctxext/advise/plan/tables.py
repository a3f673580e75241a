"""A plan as tables and lines, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ctxext.advise.estimate import size
from ctxext.advise.plan.commands import commands
from ctxext.advise.plan.study import Memory, Plan, Suggested
from ctxext.export.engines import ENGINES
from ctxext.notation import format_length
from ctxext.system.names import printable
from ctxext.text import counted, format_seconds

UNKNOWN = "–"
_FITS = {True: "yes", False: "no", None: UNKNOWN}


def to_record(plan: Plan) -> dict[str, Any]:
    """All of it, for JSON."""
    request, trained = plan.request, plan.trained
    time = plan.time
    return {
        "model": request.source.name,
        "model_type": plan.kind,
        "length": request.length,
        "batch_size": request.rows,
        "tasks": [str(task) for task in request.tasks],
        "trained_length": trained.tokens,
        "trained_from": trained.why,
        "own_scaling": plan.own_scaling,
        "stretch": plan.stretch,
        "parameters": plan.parameters,
        "active_parameters": plan.active,
        "device": plan.where,
        "device_bytes": plan.capacity,
        "process_bytes": plan.process,
        "memory": [_memory(plan, one) for one in plan.memory],
        "memory_unknown": plan.uncounted,
        "time": None if time is None else time._asdict(),
        "methods": [_method(plan, one) for one in plan.methods],
        "notes": list(plan.notes),
    }


def _memory(plan: Plan, one: Memory) -> dict[str, Any]:
    return {
        "dtype": one.dtype,
        "weights_bytes": one.weights,
        "cache_bytes": one.cache,
        "activations_bytes": one.activations,
        "bytes": one.together + plan.process,
        "fits": one.fits,
    }


def _method(plan: Plan, one: Suggested) -> dict[str, Any]:
    expressed = one.expressed
    return {
        "method": str(one.choice.spec),
        "resolved": expressed.spec.full(),
        "why": one.choice.why,
        "basis": one.choice.basis,
        "engines": {name: expressed.support[name]._asdict() for name in ENGINES},
        "config_overrides": expressed.overrides,
        "commands": commands(plan, one),
    }


def head(plan: Plan) -> Iterator[str]:
    """Lines about the model, the length and the device."""
    own = "no rope scaling of its own"
    if plan.own_scaling is not None:
        own = f"its own rope scaling: {plan.own_scaling}"
    some = plan.active < plan.parameters / 2  # of experts; embeddings are never so many
    active = f", {plan.active:,} of them for a token" if some else ""
    yield f"{plan.request.source.name} ({plan.kind}): {plan.parameters:,} parameters{active}"
    at = format_length(plan.request.length)
    yield f"trained length T {plan.trained.tokens}, from {plan.trained.why}; {own}"
    yield f"{at} is {plan.stretch:.3g} × T"


def memory_table(plan: Plan) -> Any:
    """What each dtype takes; None where that is not known."""
    from rich.table import Table
    from rich.text import Text

    if not plan.memory:
        return None
    there = "unknown" if plan.capacity is None else size(plan.capacity)
    rows = counted(plan.request.rows, "sequence")
    title = f"memory for {rows} of {format_length(plan.request.length)}, of {there} ({plan.where})"
    table = Table(title=Text(printable(title)), title_justify="left")
    for name in ("dtype", "weights", "cache", "activations", "together", "fits"):
        table.add_column(name, justify="left" if name in ("dtype", "fits") else "right")
    for one in plan.memory:
        sizes = (one.weights, one.cache, one.activations, one.together + plan.process)
        table.add_row(one.dtype, *map(size, sizes), _FITS[one.fits])
    return table


def below(plan: Plan) -> Iterator[str]:
    """Lines below the memory: what is in it, time, and notes."""
    if plan.uncounted is not None:
        yield f"memory: {plan.uncounted}"
    else:
        kept = "" if plan.memory[0].cache else "; such tasks keep no cache"
        process = f"; with {size(plan.process)} of the process itself" if plan.process else ""
        yield f"as torch holds it at the highest point of reading them at once{process}{kept}"
    if plan.time is not None:
        step = "" if plan.time.step is None else f", then {plan.time.step:.3g} s a token"
        read = format_seconds(plan.time.read)
        yield f"time here in {plan.time.dtype}: {read} to read them{step}, by {plan.time.basis}"
    yield from plan.notes


def methods_table(plan: Plan) -> Any:
    """Methods, why, and what each engine takes of them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="methods, and what each engine takes of them", title_justify="left")
    for name in ("method", "why", *ENGINES):
        table.add_column(name, overflow="fold")
    for one in plan.methods:
        said = [one.expressed.support[name] for name in ENGINES]
        cells = [each.how if each.takes else f"no: {each.how}" for each in said]
        table.add_row(*map(Text, (str(one.choice.spec), printable(one.choice.why), *cells)))
    return table


def next_lines(plan: Plan) -> Iterator[str]:
    """The commands to go on with, method by method."""
    for one in plan.methods:
        yield f"with {one.choice.spec}:"
        yield from (f"  {line}" for line in commands(plan, one).values())
