"""Whether a model still measures as it did: cells anew, beside the records of a baseline.

A cell is found again by the model's name, its method as it was asked for, its task, length, seed
and text, not by weights or versions: these are what may have changed. Both read the same windows
or samples, so that a difference is paired, and one far smaller than a cell's own error is seen.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctxext.advise.baseline import cell_of, check_out, read_baseline, requests
from ctxext.notation import format_length
from ctxext.records import Record, difference, higher_is_better
from ctxext.records.record import over_windows
from ctxext.records.store import Store
from ctxext.request.evaluation import EvaluationRequest
from ctxext.system.names import printable
from ctxext.text import counted

if TYPE_CHECKING:
    from ctxext.measure.run import Evaluation
    from ctxext.request.evaluation import EvaluationRequest

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
    """All findings, in the order of the baseline; new cells behind them.

    Attributes:
        refused: what could not be measured, a line each.
    """

    findings: tuple[Finding, ...]
    refused: tuple[str, ...] = ()

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
    now = {cell_of(r): r for r in found}
    findings = [_finding(old, now.pop(cell_of(old), None), sigma, tolerance) for old in baseline]
    extra = [r for r in now.values() if r["requested"] != "rope"]  # which comes with every other
    return Outcome((*findings, *(Finding(NEW, None, r) for r in extra)))


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
    return check_by(
        lambda before, where: requests(before, where, device), baseline, sigma, tolerance, out
    )


def check_by(
    asked: Callable[[Sequence[Record], Path], Sequence[EvaluationRequest]],
    baseline: str | Path,
    sigma: float = 3.0,
    tolerance: float | None = None,
    out: str | Path | None = None,
    run: Callable[[Evaluation], object] | None = None,
) -> Outcome:
    """`check` of the cells that are asked for.

    Args:
        asked: what measures them, from the baseline's records and the folder of the new ones.
        run: runs what was asked for, if it is more than that.
    """
    from ctxext.measure.run import Evaluation

    before = read_baseline(baseline)
    if out is not None:
        check_out(baseline, out)
    with tempfile.TemporaryDirectory(prefix="ctxext-check-") as spare:
        work = Evaluation(asked(before, Path(out or spare)))
        (run or Evaluation.run)(work)
    outcome = compare(before, work.records, sigma, tolerance)
    return replace(outcome, refused=tuple(work.refused))
