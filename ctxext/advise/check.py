"""Whether a model still measures as it did: cells anew, beside the records of a baseline.

A cell is found again by the model's name, its method as it was asked for, its task, length, seed
and text, not by weights or versions: these are what may have changed. Both read the same windows
or samples, so that a difference is paired, and one far smaller than a cell's own error is seen.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctxext import tasks
from ctxext.errors import CtxextError, UsageError
from ctxext.models.loading import Source
from ctxext.notation import format_length
from ctxext.records import Record, difference, higher_is_better
from ctxext.records.record import BENCH, over_windows
from ctxext.records.store import Store
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_lengths, parse_methods, parse_tasks
from ctxext.system.names import printable
from ctxext.text import counted

SAME, BETTER, WORSE = "same", "better", "worse"
MISSING, MOVED, NEW = "missing", "other text", "new"
BAD = (WORSE, MISSING, MOVED)

#: What rounding alone may do on the same tokens, in nats per token: vector instructions, threads,
#: attention paths and releases of transformers together moved a mean loss by 2e-7 in float32;
#: the others have 2^16 and 2^13 times its spacing, of which a mean over thousands of tokens keeps
#: little.
ROUNDING = {"float32": 5e-6, "bfloat16": 2e-3, "float16": 5e-4}
FLIPS = 2.5  # tokens whose first choice may change with it


class Finding(NamedTuple):
    """What became of one cell.

    Attributes:
        verdict: one of SAME, BETTER, WORSE, MISSING, MOVED and NEW.
        before, now: its records, if there are such.
        change: the value now minus before, on the records' scale; None where one is lacking.
        most: how much it may change.
    """

    verdict: str
    before: Record | None
    now: Record | None
    change: float | None = None
    most: float | None = None

    @property
    def record(self) -> Record:
        """One of the two, for names."""
        found = self.now or self.before
        assert found is not None
        return found


@dataclass(frozen=True)
class Outcome:
    """All findings, in the order of the baseline; new cells behind them."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is worse, missing or of another text."""
        return not any(one.verdict in BAD for one in self.findings)

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{to_markdown(self)}"

    def summary(self) -> str:
        """How many cells came out how, in a line."""
        verdicts = [one.verdict for one in self.findings]
        said = [f"{verdicts.count(v)} {v}" for v in (*BAD, BETTER, SAME, NEW) if v in verdicts]
        return f"{counted(len(verdicts), 'cell')}: {', '.join(said)}"


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
            latest[_cell(record)] = record
    if not latest:
        raise UsageError(f"baseline {str(path)!r} has no finished record of a task: measure some")
    return list(latest.values())


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


def compare(
    baseline: Sequence[Record],
    found: Iterable[Record],
    sigma: float = 3.0,
    tolerance: float | None = None,
) -> Outcome:
    """The cells of a baseline beside the same ones as they are measured now.

    Args:
        sigma: by how many standard errors of the paired difference a value may move, and by
            rounding.
        tolerance: by how much instead: of a perplexity in nats per token, of other metrics on
            their own scale.
    """
    now = {_cell(r): r for r in found}
    findings = [_finding(old, now.pop(_cell(old), None), sigma, tolerance) for old in baseline]
    extra = [r for r in now.values() if r["requested"] != "rope"]  # which comes with every other
    return Outcome((*findings, *(Finding(NEW, None, r) for r in extra)))


def _cell(record: Record) -> tuple[Any, ...]:
    fields = ("model", "requested", "task", "length", "seed", "dtype", "limit")
    data = record["data"]
    return (*(record.get(name) for name in fields), data["name"], data.get("at_most"))


def _finding(old: Record, new: Record | None, sigma: float, tolerance: float | None) -> Finding:
    if new is None or new["status"] != "ok":
        return Finding(MISSING, old, new)
    if new["data"]["sha256"] != old["data"]["sha256"] or new["n"] != old["n"]:
        return Finding(MOVED, old, new)
    moved = difference(new, old)
    most = _most(old, moved.stderr, sigma, tolerance)
    if abs(moved.value) <= most:
        return Finding(SAME, old, new, moved.value, most)
    higher = higher_is_better([new, old])
    good = None if higher is None else higher == (moved.value > 0)
    return Finding(BETTER if good else WORSE, old, new, moved.value, most)


def _most(old: Record, stderr: float | None, sigma: float, tolerance: float | None) -> float:
    """How much a value may change, on its own scale."""
    loss = old["metric"] == "perplexity"
    scale = old["value"] if loss else 1.0  # nats → perplexity
    if tolerance is not None:
        return tolerance * scale
    error = sigma * (stderr if stderr is not None else math.inf if not over_windows(old) else 0.0)
    rounding = ROUNDING.get(old["dtype"], max(ROUNDING.values()))
    return error + (rounding if loss else FLIPS / old["n"] if over_windows(old) else 0.0) * scale


# Tables -------------------------------------------------------------------------------------------

_TEXTS = ("model", "method", "task", "")
COLUMNS = ("model", "method", "task", "len", "before", "now", "change", "may change", "")


def rows(outcome: Outcome, every: bool = False) -> list[tuple[str, ...]]:
    """The cells as texts under COLUMNS; those that are as they were only where `every` is asked."""
    shown = [one for one in outcome.findings if every or one.verdict != SAME]
    return [_row(one) for one in shown]


def _row(one: Finding) -> tuple[str, ...]:
    r, values = (
        one.record,
        [
            "–" if x is None or x["value"] is None else f"{x['value']:.6g}"
            for x in (one.before, one.now)
        ],
    )
    change = "–" if one.change is None else f"{one.change:+.3g}"
    most = "–" if one.most is None or math.isinf(one.most) else f"{one.most:.2g}"
    names = (r["model"], r["requested"], r["task"], format_length(r["length"]))
    why = f": {one.now['reason']}" if one.now and one.verdict == MISSING else ""
    return (*names, *values, change, most, f"{one.verdict}{why}")


def to_markdown(outcome: Outcome, every: bool = False) -> str:
    """The table in Markdown; "" where every cell is as it was."""
    found = rows(outcome, every)
    lines = [COLUMNS, ("---",) * len(COLUMNS), *found] if found else []
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_rich(outcome: Outcome, every: bool = False) -> Any:
    """The table for a terminal; None where every cell is as it was."""
    from rich.table import Table
    from rich.text import Text

    if not (found := rows(outcome, every)):
        return None
    table = Table()
    for name in COLUMNS:
        table.add_column(name, overflow="fold", justify="left" if name in _TEXTS else "right")
    for row in found:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def to_json(outcome: Outcome) -> list[dict[str, Any]]:
    """Every cell as a line: its names, both values, the change, and the verdict."""
    names = ("model", "requested", "task", "length", "seed", "metric", "dtype")
    return [
        {
            **{name: one.record.get(name) for name in names},
            "before": one.before and one.before["value"],
            "now": one.now and one.now["value"],
            "change": one.change,
            "may_change": None if one.most == math.inf else one.most,
            "verdict": one.verdict,
            "reason": one.now and one.now["reason"],
        }
        for one in outcome.findings
    ]


def take(outcome: Outcome, folder: Path) -> None:
    """Put the new records into a baseline's folder, in place of those of the same cells.

    Raises:
        OutputError: a record cannot be written.
    """
    store = Store(folder)
    store.prepare()
    for one in outcome.findings:
        if one.now is None or one.now["status"] != "ok":
            continue
        if one.before is not None and one.before["key"] != one.now["key"]:
            store.withdraw(one.before["key"])
        store.write({**one.now, "log": None})


def check(
    baseline: str | Path,
    sigma: float = 3.0,
    tolerance: float | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Outcome:
    """Measure the cells of a baseline again and compare: `assert ctxext.check("baseline").passed`.

    Args:
        baseline: a folder of records, or one of its files.
        out: where the new records go; a temporary folder without.
        sigma: see `compare`.
        tolerance: see `compare`.

    Raises:
        UsageError: there is no such baseline, or nothing of it can be measured.
    """
    from ctxext.measure.run import Evaluation

    before = read_baseline(baseline)
    if out is not None:
        check_out(baseline, out)
    with tempfile.TemporaryDirectory() as spare:
        work = Evaluation(requests(before, Path(out or spare), device))
        work.run()
    return compare(before, work.records, sigma, tolerance)
