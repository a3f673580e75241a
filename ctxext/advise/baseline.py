"""A baseline: finished records, what measures their cells again, and new ones in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext import tasks
from ctxext.errors import CtxextError, UsageError
from ctxext.models.loading import Source
from ctxext.records import Record
from ctxext.records.record import BENCH
from ctxext.records.store import Store
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_lengths, parse_methods, parse_tasks


def read_baseline(path: str | Path) -> list[Record]:
    """The finished records of a folder, or of one file of it, each cell once: its latest.

    Raises:
        UsageError: there is none, or one is not sound.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(
            f"no baseline {str(path)!r}: give a folder of records, or one of its files"
        )
    folder = path if path.is_dir() else path.parent
    records, problems = Store(folder).read_all()
    if path.is_file():
        of = [r for r in records if Store(folder).path(r) == path]
        problems = [p for p in problems if path.name in p] or (
            [] if of else [f"{path.name}: no record"]
        )
        records = of
    if problems:
        raise UsageError(f"baseline {str(path)!r} is not sound: {problems[0]}")
    latest: dict[Any, Record] = {}
    for record in sorted(records, key=lambda r: r["created"]):
        if record["status"] == "ok" and record["task"] != BENCH:
            latest[cell_of(record)] = record
    if not latest:
        raise UsageError(f"baseline {str(path)!r} has no finished record of a task: measure some")
    return list(latest.values())


def cell_of(record: Record) -> tuple[Any, ...]:
    """What a cell is found again by."""
    fields = ("model", "requested", "task", "length", "seed", "dtype", "limit")
    data = record["data"]
    return (*(record.get(name) for name in fields), data["name"], data.get("at_most"))


def check_out(baseline: str | Path, out: str | Path) -> None:
    """UsageError where new records would take the place of those that they are compared with."""
    path = Path(baseline)
    if Path(out).resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UsageError(
            f"bad value {str(out)!r} for --out: it is the baseline's folder: give another, or "
            "--update to put the new records there"
        )


def requests(
    baseline: Iterable[Record], out: Path, device: str = "auto"
) -> list[EvaluationRequest]:
    """What measures the cells of a baseline again, into a folder.

    Raises:
        UsageError: one of them says nothing that can be asked for.
    """
    asked: dict[tuple[Any, ...], list[str]] = {}
    for r in baseline:
        own = r.get("own_scaling") or "keep"
        source = Source(
            r["model"], r.get("revision"), dtype=r["dtype"], device=device, own_scaling=own
        )
        where = (source, _data(r), r["data"].get("at_most"), r.get("limit"))
        asked.setdefault((*where, r["length"], r["task"], r["seed"]), []).append(r["requested"])
    alike: dict[tuple[Any, ...], list[tuple[int, str, int]]] = {}
    for (*place, length, task, seed), methods in asked.items():
        alike.setdefault((*place, tuple(methods)), []).append((length, task, seed))
    return [
        EvaluationRequest(
            source,
            parse_methods(methods),
            parse_lengths([str(length) for length in lengths]),
            parse_tasks(names),
            data,
            limit,
            tokens,
            seeds,
            out=out,
            force=True,
        )
        for (source, data, tokens, limit, methods), places in alike.items()
        for lengths, names, seeds in _products(places)
    ]


def _products(
    places: Sequence[tuple[int, str, int]],
) -> Iterator[tuple[Sequence[int], list[str], tuple[int, ...]]]:
    """Lengths, tasks and seeds, all of whose combinations are asked for."""
    lengths, named, seeds = (list(dict.fromkeys(x)) for x in zip(*places, strict=True))
    if len(places) == len(lengths) * len(named) * len(seeds):
        yield lengths, named, tuple(seeds)
    else:
        for length, task, seed in places:
            yield [length], [task], (seed,)


def _data(record: Record) -> str | None:
    """What was measured on, as `--data` takes it; None where it is the task's own."""
    name: str = record["data"]["name"]
    try:
        own = tasks.parse(record["task"]).read(None).name
    except CtxextError:
        return name
    return None if own == name else name
