"""What a search has found: the order of its trials, the table, and the JSON records."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ctxext.methods import Spec
from ctxext.models.loading import Source
from ctxext.notation import format_length
from ctxext.records.paired import Difference
from ctxext.system.names import printable
from ctxext.text import counted, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10  # trials in the table, beside the defaults
SURE = 2.0  # standard errors from which a difference is one
_MEASURED = ("value", "stderr", "tax", "read")  # of a trial in the finals


@dataclass(frozen=True)
class Trial:
    """One spec and what was measured with it.

    Attributes:
        number: in the order in which they were tried; 0 is the unpatched model.
        spec: with every parameter a value, as resolved for the length.
        default: whether it is a method, or what was asked for, with its defaults.
        status: as that of its records.
        value: of the objective; None where it failed.
        tax: mean loss at length T beyond that of the unpatched model on the same tokens, in nats
            per token; below 0 is better; None where it failed.
        read: windows or samples that the value is over.
        keys: of its records, that of the objective first.
        final: the same spec on what the finals read; None where it was not in them.
    """

    number: int
    spec: Spec
    default: bool
    status: str
    reason: str | None
    value: float | None
    stderr: float | None
    tax: float | None
    seconds: float
    read: int
    keys: tuple[str, ...]
    final: Trial | None = None

    @property
    def last(self) -> Trial:
        """What counts of it: in the finals, where it was in these, else in the search."""
        return self.final or self


class Comparison(NamedTuple):
    """The winner against the best default on what the search has not read.

    Attributes:
        against: the default.
        difference: of the objective's values, the winner's minus the default's.
        read: windows or samples, as `what` says.
    """

    against: Trial
    difference: Difference
    read: int
    what: str


@dataclass
class Outcome:
    """The trials so far, and how they are ordered.

    Attributes:
        lower: whether lower values are better.
        bound: the most tax, in nats per token.
        comparison: None where the winner is a default, or nothing is left to compare on.
    """

    source: Source
    trained: int
    length: int
    task: str
    metric: str
    lower: bool
    bound: float
    trials: list[Trial] = field(default_factory=list)
    comparison: Comparison | None = None

    def within(self, trial: Trial) -> bool:
        """Whether it was measured, and keeps to the bound; in the finals, where it was in these."""
        last = trial.last
        return last.value is not None and last.tax is not None and last.tax <= self.bound

    @property
    def ranked(self) -> list[Trial]:
        """The best first, and finalists before others; those over the bound after those within,
        those that failed last."""
        return sorted(self.trials, key=self._rank)

    def _rank(self, trial: Trial) -> tuple[int, bool, float, float, int]:
        last = trial.last
        if last.value is None or last.tax is None:
            return 2, False, 0.0, 0.0, trial.number
        value = last.value if self.lower else -last.value
        over, others = int(not self.within(trial)), trial.final is None
        return over, others, value, max(last.tax, 0.0), trial.number

    @property
    def winner(self) -> Trial | None:
        """The best within the bound."""
        return next(filter(self.within, self.ranked), None)

    @property
    def best_default(self) -> Trial | None:
        """The best default within the bound."""
        return next((t for t in self.ranked if t.default and self.within(t)), None)

    @property
    def surely(self) -> int:
        """1 where the winner is better than the best default on what the search has not read, −1
        where it is worse, 0 where nothing tells."""
        if self.comparison is None:
            return 0
        value, stderr, interval = self.comparison.difference
        if interval is None and stderr is None:
            return 0
        low, high = interval or (value - SURE * (stderr or 0.0), value + SURE * (stderr or 0.0))
        return (high < 0) - (low > 0) if self.lower else (low > 0) - (high < 0)

    @property
    def advised(self) -> Trial | None:
        """What to use: the winner, or the best default where that is surely better."""
        return self.best_default if self.surely < 0 else self.winner

    def finalists(self, count: int) -> list[Trial]:
        """So many of the best within the bound, the best default always among them."""
        within, default = list(filter(self.within, self.ranked)), self.best_default
        best = within[:count]
        return best if default is None or default in best else [*best[:-1], default]


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """One JSON object for each trial, the best first; the winner's says how it did on what the
    search has not read, and that of what is to be used says how."""
    about = {
        "model": outcome.source.name,
        "trained_length": outcome.trained,
        "length": outcome.length,
        "task": outcome.task,
        "metric": outcome.metric,
        "tax_bound": outcome.bound,
    }
    return [{**about, **_fields(outcome, trial)} for trial in outcome.ranked]


def _fields(outcome: Outcome, trial: Trial) -> dict[str, Any]:
    won, advised = trial is outcome.winner, trial is outcome.advised
    unseen = outcome.comparison
    found = None
    if won and unseen is not None:
        found = {
            "against": str(unseen.against.spec),
            "difference": unseen.difference.value,
            "stderr": unseen.difference.stderr,
            "interval": unseen.difference.interval,
            unseen.what: unseen.read,
        }
    last, final = trial.last, trial.final
    return {
        "trial": trial.number,
        "method": str(trial.spec),
        "default": trial.default,
        "winner": won,
        "advised": advised,
        "status": last.status,
        "reason": last.reason,
        "value": trial.value,
        "stderr": trial.stderr,
        "tax": trial.tax,
        "read": trial.read,
        "final": final and {name: getattr(final, name) for name in _MEASURED},
        "within_tax": outcome.within(trial),
        "seconds": trial.seconds + (final.seconds if final else 0.0),
        "keys": [*trial.keys, *(final.keys if final else ())],
        "unseen": found,
        "command": command(outcome, trial) if advised else None,
    }


def to_rich(outcome: Outcome) -> Table:
    """The best trials and every default, the best first."""
    from rich.table import Table
    from rich.text import Text

    ranked = outcome.ranked
    at, model = format_length(outcome.length), outcome.source.name
    title = printable(f"{model} · {outcome.task} at {at} · {counted(len(ranked), 'spec')} tried")
    table = Table(title=Text(title), title_justify="left", highlight=False)
    table.add_column("method", overflow="fold")
    finals = ["finals"] if any(trial.final for trial in ranked) else []
    for name in (outcome.metric, *finals, "tax (nat)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for place, trial in enumerate(ranked):
        if place < SHOWN or trial.default:
            final = [_number(trial.final.value if trial.final else None) for _ in finals]
            numbers = (_number(trial.value), *final, _tax(trial.last))
            method = Text(printable(str(trial.spec)))
            table.add_row(method, *numbers, _remark(outcome, trial))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value < 1e6 else f"{value:.3g}"


def _tax(trial: Trial) -> str:
    return "–" if trial.tax is None else f"{trial.tax:+.3f}"


def _remark(outcome: Outcome, trial: Trial) -> str:
    last = trial.last
    over = last.tax is not None and not outcome.within(trial)
    words = {
        "winner": trial is outcome.winner,
        "default": trial.default,
        "over the tax": over,
        last.status: last.value is None,
    }
    return ", ".join(word for word, holds in words.items() if holds)


def verdict(outcome: Outcome) -> list[str]:
    """The winner, how it did on what the search has not read, and how to use it, in lines."""
    winner, default = outcome.winner, outcome.best_default
    if winner is None:
        return [f"no winner: no trial is within the tax of {outcome.bound:g} nats per token"]
    lines = [f"winner: {winner.spec}"]
    if default is None or winner is default:
        lines.append("it is a default: the search found nothing better")
    elif (unseen := outcome.comparison) is None:
        lines.append(
            f"not compared on unseen text with the best default, {default.spec}: none is left, or "
            "its records do not keep it; give more data or samples, or a smaller --limit"
        )
    else:
        lines.append(_compared(outcome, unseen))
    return [*lines, f"use it: {command(outcome, outcome.advised or winner)}"]


def _compared(outcome: Outcome, unseen: Comparison) -> str:
    value, stderr, interval = unseen.difference
    error, unsure = "", "one alone tells nothing of its error"
    if interval is not None:
        error, unsure = " [{:+.3f}, {:+.3f}]".format(*interval), "its 95% interval holds 0"
    elif stderr is not None:
        error, unsure = f" ± {stderr:.3f}", f"no difference beyond {SURE:g} standard errors"
    said = {1: "better", 0: unsure, -1: "worse: take the default"}[outcome.surely]
    return (
        f"on {unseen.read} {unseen.what} that the search did not read, {outcome.metric} against "
        f"the best default, {unseen.against.spec}: {value:+.3f}{error} (paired): {said}"
    )


def command(outcome: Outcome, trial: Trial) -> str:
    """The command that exports the model with the trial's spec."""
    source = outcome.source
    words = ["ctxext", "patch", "--model", source.name, "--method", str(trial.spec)]
    words += ["--len", format_length(outcome.length), "--out", "DIR"]
    if source.revision is not None:
        words += ["--revision", source.revision]
    if source.trust_remote_code:
        words += ["--trust-remote-code"]
    if source.train_len is not None:
        words += ["--train-len", str(source.train_len)]
    if source.own_scaling != "keep":
        words += ["--own-scaling", source.own_scaling]
    return shlex.join(words)


def line(outcome: Outcome, trial: Trial) -> str:
    """A trial in a line, for progress."""
    if trial.value is None:
        return f"{trial.spec}: {trial.status}: {trial.reason}"
    over = "" if outcome.within(trial) else ", over the bound"
    tax = f"tax {_tax(trial)}{over}"
    return f"{trial.spec} {_number(trial.value)}, {tax} ({format_seconds(trial.seconds)})"
