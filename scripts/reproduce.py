"""The seed's table on the tiny family, beside the published figures, into results/seed-table.

    python scripts/reproduce.py             measure what has no record yet, then write all of it
    python scripts/reproduce.py --no-run    write tables and plots from the records that are there

A run that is ended goes on where it was. `make reproduce` does this and README's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import seed_table as table
import typer
from study import measure

from ctxext.errors import CtxextError
from ctxext.models.loading import Source
from ctxext.notation import format_length
from ctxext.records import Store
from ctxext.report import PLOTS, plots
from ctxext.report.figure import Figure, Line, Point, view
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_methods, parse_tasks
from ctxext.system.files import write_atomically
from ctxext.system.names import printable

OUT = Path("results/seed-table")
HERE: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "capsize": 2.5}
THERE: dict[str, Any] = {"marker": "D", "color": "#D55E00", "ls": "none", "fillstyle": "none"}
TAIL_ROOM = 0.5  # nats per token above the lowest loss that are in view


def requests() -> Iterator[EvaluationRequest]:
    """Everything that is measured, cheap things first."""
    for model in dict.fromkeys(row.read_by(c) for row in table.ROWS for c in row.columns):
        specs: dict[bool, list[str]] = {True: [], False: []}
        for row in table.ROWS:
            for column in row.columns:
                if row.read_by(column) == model:
                    specs[column != table.DAGGER].append(row.asked(column))
        yield _request(model, specs[True], (table.TRAINED,), "acc")
        for length, task in product(table.LENGTHS, table.TASKS.values()):
            yield _request(model, specs[True] + specs[False], (length,), task)
    for model, methods in table.TAILS.items():
        yield _request(model, methods, table.TAIL_LENGTHS, table.TAIL)


def _request(
    model: str, methods: Iterable[str], lengths: tuple[int, ...], task: str
) -> EvaluationRequest:
    return EvaluationRequest(
        Source(model),
        parse_methods(list(methods)),
        lengths,
        parse_tasks([task]),
        tokens=table.TOKENS[task],
        out=OUT,
    )


# What is written.


def document(found: table.Found) -> str:
    """The tables and verdicts, with what they were made of."""
    data = found.records[0]["data"]
    weights = {r["model"]: r["model_sha256"] for r in found.records}
    models = ", ".join(f"{name} ({sha:.12})" for name, sha in sorted(weights.items()))
    made = {
        ", ".join(f"{name} {version}" for name, version in sorted(r["versions"].items()))
        + f", {printable(r['device'])}, {r['dtype']}"
        for r in found.records
    }
    n, r = (table.TOKENS[task] for task in table.TASKS.values())
    near, far = table.LENGTHS
    return "\n\n".join(
        [
            "# The seed's table",
            (table.__doc__ or "").split("\n\n", 1)[1].strip(),
            "Here: next-token accuracy in percent of the tiny family, trained at 512 tokens, on "
            f"{data['name']} (sha256 {data['sha256'][:12]}). N is the first {n} tokens in windows "
            f"of the length, {n // near} at {near} and {n // far} at {far}; R the first 512 tokens "
            f"of each such window, again and again, {r // near} windows at {near} and {r // far} "
            f"at {far}. k is the length over 512. {table.PLAIN} and {table.DAGGER}: tiny, without "
            f"log n and with it on a model that was not trained with it; {table.LOGN}: tiny-logn, "
            "trained with it. inv-leaky-rerope is tiny-inv-leaky, read with plain rope; it learned "
            "without log n and on the base 10000, where the published one learned with log n and, "
            "under base·8, on the base 80000.",
            "## Kept",
            table.keeps(found),
            "## Published orderings",
            table.held(found),
            "## At 4096 tokens",
            table.beside(found),
            "## At 512 and 16384 tokens",
            table.longest(found),
            "## Longer context, lower loss",
            "Mean loss in nats per token of the last 511 tokens of the first "
            f"{table.TOKENS[table.TAIL] // table.SPAN} spans of {table.SPAN}, by how many tokens "
            "of the span are read; ± is the standard error of the difference to plain rope at 512 "
            "on the same model, paired.",
            table.tails(found),
            "## Made with",
            f"`make reproduce`; weights {models}; {'; '.join(sorted(made))}. Each record has all "
            "of its own.",
        ]
    )


def write(found: table.Found) -> None:
    """seed-table.md and both plots."""
    write_atomically(OUT / "seed-table.md", (document(found) + "\n").encode())
    for form in PLOTS:
        plots.save(OUT / f"seed-table.{form}", lambda: shares(found))
        if table.losses(found):
            plots.save(OUT / f"tail.{form}", lambda: plots.draw(tail(found)))


def shares(found: table.Found) -> Any:
    """What each method keeps at 4096 of the accuracy at 512, N: here, and as published."""
    from matplotlib.figure import Figure as Canvas

    rows = table.ROWS[::-1]
    canvas = Canvas(figsize=(11, 0.3 * len(rows) + 1.6), layout="constrained")
    panels = canvas.subplots(1, len(table.FAMILY), sharex=True, sharey=True)
    for axes, column in zip(panels, table.FAMILY, strict=True):
        for y, row in enumerate(rows):
            known = table.kept(found, table.Place(row.label, column, table.LENGTHS[0]))
            if known is not None:
                share, error = known
                axes.errorbar(100 * share, y, xerr=error and 100 * error, **HERE)
            if row.model is None and (pair := row.published.get(column)):
                share = 100 * pair.N / table.PUBLISHED_AT_512[column]
                axes.plot(share, y, **THERE)
        axes.axvline(100, color="0.35", linestyle=(0, (4, 3)), linewidth=1.2)
        axes.set_title(column, loc="left", fontsize=11)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    panels[1].set_xlabel("accuracy at 4096 tokens over that at 512 (%)")
    drawn = [panels[0].errorbar([], [], xerr=[], **HERE), *panels[0].plot([], [], **THERE)]
    words = ["here, ± a standard error", "published, of a model of 100 million parameters"]
    canvas.legend(drawn, words, loc="outside lower center", ncols=2, frameon=False)
    canvas.suptitle(
        "What is kept at eight times the trained length, on text that does not repeat",
        x=0.01,
        ha="left",
    )
    return canvas


def tail(found: table.Found) -> Figure:
    """Loss of the last tokens of spans as the context before them grows."""
    lines = [Line(name, tuple(map(_point, points))) for name, points in table.losses(found).items()]
    y_range, notes = view(lines, room=TAIL_ROOM)
    return Figure(
        name="tail",
        place="tiny family on stdlib",
        subject="loss of the same tokens as the context grows",
        about=f"the last 511 tokens of {table.TOKENS[table.TAIL] // table.SPAN} spans of "
        f"{table.SPAN}; bars: ± a standard error of what parts it from rope at 512 "
        "on the same model",
        x="context (tokens)",
        y="mean loss (nats per token)",
        lines=tuple(lines),
        x_range=(table.TAIL_LENGTHS[0] / 1.15, table.TAIL_LENGTHS[-1] * 1.15),
        y_range=y_range,
        log_x=True,
        mark=table.TRAINED,
        notes=notes,
    )


def _point(loss: table.Loss) -> Point:
    """With its standard error to both sides."""
    value, error = loss.value, loss.stderr
    bar = None if error is None else (value - error, value + error)
    return Point(loss.length, value, bar, f"{format_length(loss.length)}: {value:.3f}")


def main(run: bool = True) -> None:
    """Measure, then write."""
    try:
        if run:
            measure(requests())
            Store(OUT).pack()
        write(read())
    except CtxextError as error:
        raise SystemExit(f"error: {error}") from None


def read() -> table.Found:
    """The table's records, with a line for what is left out."""
    records, problems = Store(OUT).read_all()
    for line in table.strange(problems):
        typer.echo(f"left out: {line}", err=True)
    found = table.Found(records)
    if not found.records:
        raise SystemExit(f"no finished records in {OUT}: run this without --no-run")
    if others := len(records) - len(found.records):
        typer.echo(
            f"left out: {others} records that are not the table's, or not the last", err=True
        )
    return found


if __name__ == "__main__":
    typer.run(main)
