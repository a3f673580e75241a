"""The laboratory: variants of tiny side by side, beside what was published, into results/lab.

    python scripts/lab.py             measure what has no record yet, then write all of it
    python scripts/lab.py --no-run    write table and plot from the records that are there
    python scripts/lab.py --untrained name the variants that have no weights yet

A run that is ended goes on where it was. Variants are trained by train_tiny.py; one that has no
weights is named as not trained. What the seed's table has measured of the shipped models is taken
from there. The code that comes with the variants is this repository's own, and is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import lab_entropy as entropy
import lab_table as table
import typer
from seed_table import TOKENS
from study import measure

from ctxext.errors import CtxextError
from ctxext.models import loading
from ctxext.models.held import Held
from ctxext.models.loading import Source
from ctxext.notation import format_length
from ctxext.records import Store
from ctxext.report import PLOTS, plots
from ctxext.report.figure import Figure, Line, Point
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_methods, parse_tasks
from ctxext.system.files import write_atomically
from ctxext.system.names import printable

SEED = Path("results/seed-table")
MARKS = {"N": {"color": "#0072B2", "marker": "o"}, "R": {"color": "#D55E00", "marker": "D"}}


def trained(model: table.Model) -> bool:
    """Whether its weights are there, and are of a training that came to its end."""
    return model.shipped or (model.folder / "model.safetensors").is_file()


def source(model: table.Model) -> Source:
    """The model as it is read."""
    if model.shipped:
        return Source(model.name)
    found = Source(model.folder.as_posix(), trust_remote_code=True, dtype="float32", device="cpu")
    if model.name != table.OWN_LENGTH:
        return found
    loaded = loading.load_model(found)
    loaded.config.relu2_length = None
    return Source(model.known_as, held=Held(loaded, loading.load_tokenizer(found)))


def requests() -> Iterator[EvaluationRequest]:
    """Everything that is measured, model by model, cheap things first."""
    for model in filter(trained, table.MODELS):
        on = source(model)
        cells = sorted(table.places(model), key=lambda p: (p.length, p.task))
        for (length, task), some in groupby(cells, key=lambda p: (p.length, p.task)):
            yield EvaluationRequest(
                on,
                parse_methods([place.spec for place in some]),
                (length,),
                parse_tasks([task]),
                tokens=TOKENS.get(task),
                out=table.OUT,
            )


def adopt() -> None:
    """Take over the seed table's records of what is measured here too."""
    wanted = {
        (model.known_as, str(place.spec), place.task, place.length)
        for model in table.MODELS
        if model.shipped
        for place in table.places(model)
    }
    store = Store(table.OUT)
    known = {r["created"] for r in store.read_all()[0]}
    for record in Store(SEED).read_all()[0]:
        at = (record["model"], record["requested"], record["task"], record["length"])
        if at in wanted and record["created"] not in known:
            store.write(record)


def keep_entropies() -> None:
    """The entropy of each model's attention, where it is not there yet."""
    for model in filter(trained, table.MODELS):
        entropy.keep(model, source(model))


# What is written.


def document(found: table.Found) -> str:
    """The table and the verdicts, with what they were made of."""
    text = {r["data"]["sha256"][:12] for r in found.records if r["data"]["name"] == "stdlib"}
    weights = {r["model"]: r["model_sha256"] for r in found.records}
    made = {
        ", ".join(f"{name} {version}" for name, version in sorted(r["versions"].items()))
        + f", {printable(r['device'])}, {r['dtype']}"
        for r in found.records
    }
    n, r = (TOKENS[task] for task in table.TASKS.values())
    return "\n\n".join(
        [
            "# The laboratory",
            (table.__doc__ or "").split("\n\n", 1)[1].strip(),
            table.models(),
            "## All of it",
            f"Next-token accuracy in percent on the standard library ({', '.join(sorted(text))}): "
            f"N the first {n} tokens in windows of the length; R the first 512 tokens of each "
            f"window again and again, {r} tokens in all. tail: mean loss in nats per token of the "
            "last 511 tokens of spans of 16384, by how many tokens of the span are read. key: pass "
            "keys found in percent, of 22. A model is read with the scale that it was trained "
            "with, and with `rope` without it; the entropy cap, which scores twice, for accuracy "
            "at the nearer length alone.",
            table.summary(found),
            "## What was published",
            table.held(found),
            "In brackets the difference in percentage points, with its standard error over "
            "windows, paired. It tells of the text that was read, not of another training: each "
            "model was trained once, with one seed.",
            "## Entropy of attention",
            "Mean over heads, those layers that see beyond 512 tokens, and "
            f"{entropy.WINDOWS} windows of {entropy.LENGTH} tokens, in nats by range of positions. "
            "relu²: of its weights over their sum.",
            entropy.grid(entropy.read()),
            "## Made with",
            "`make lab`; weights "
            + ", ".join(f"{name} ({sha:.12})" for name, sha in sorted(weights.items()))
            + f"; {'; '.join(sorted(made))}. Each record has all of its own.",
        ]
    )


def picture(found: table.Found) -> Any:
    """Accuracy at both lengths, of text that does not repeat and of text that does."""
    from matplotlib.figure import Figure as Canvas

    rows = [(m, spec) for m in table.MODELS if found.has(m) for spec in m.methods][::-1]
    canvas = Canvas(figsize=(11, 0.3 * len(rows) + 1.6), layout="constrained")
    panels = canvas.subplots(1, len(table.LENGTHS), sharex=True, sharey=True)
    for axes, length in zip(panels, table.LENGTHS, strict=True):
        for y, (model, spec) in enumerate(rows):
            for text, task in table.TASKS.items():
                record = found.at(table.Place(model.name, spec, task, length))
                if record is not None:
                    error = record["stderr"] and 100 * record["stderr"]
                    at = {"xerr": error, "ls": "none", "capsize": 2.5, **MARKS[text]}
                    axes.errorbar(100 * record["value"], y, **at)
        axes.set_title(f"{format_length(length)} tokens", loc="left", fontsize=11)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), [f"{m.name}, {spec}" for m, spec in rows])
    panels[1].set_xlabel("next-token accuracy (%)")
    drawn = [panels[0].errorbar([], [], xerr=[], ls="none", **mark) for mark in MARKS.values()]
    words = ["text that does not repeat, ± a standard error", "text that repeats"]
    canvas.legend(drawn, words, loc="outside lower center", ncols=2, frameon=False)
    canvas.suptitle("Trained at 512 tokens, read at more", x=0.01, ha="left")
    return canvas


def entropies() -> Figure:
    """Entropy by position of each model as it is read by itself."""
    kept = [one for one in entropy.read() if one["method"] == table.BY_NAME[one["model"]].plain]
    lines = [
        Line(
            f"{one['model']}, {one['method']}",
            tuple(Point((i + 0.5) * one["bin"], y) for i, y in enumerate(one["nats"])),
        )
        for one in kept
    ]
    most = max(point.y for line in lines for point in line.points)
    return Figure(
        name="entropy",
        place="laboratory on stdlib",
        subject="entropy of attention by position",
        about=f"mean over heads, far-seeing layers and {entropy.WINDOWS} windows",
        x="position (tokens)",
        y="entropy (nats)",
        lines=tuple(lines),
        x_range=(0, entropy.LENGTH),
        y_range=(0, 1.05 * most),
        mark=table.TRAINED,
    )


def write(found: table.Found) -> None:
    """lab.md and the plots."""
    write_atomically(table.OUT / "lab.md", (document(found) + "\n").encode())
    for form in PLOTS:
        plots.save(table.OUT / f"lab.{form}", lambda: picture(found))
        if entropy.read():
            plots.save(table.OUT / f"entropy.{form}", lambda: plots.draw(entropies()))


def read() -> table.Found:
    """The laboratory's records, with a line for what is left out."""
    records, problems = Store(table.OUT).read_all()
    for line in problems:
        typer.echo(f"left out: {line}", err=True)
    found = table.Found(records)
    if not found.records:
        raise SystemExit(f"no finished records in {table.OUT}: run this without --no-run")
    return found


def main(
    run: bool = True,
    untrained: Annotated[bool, typer.Option("--untrained", help="name them, one a line")] = False,
) -> None:
    """Measure, then write."""
    missing = dict.fromkeys(m.folder.name for m in table.MODELS if not trained(m))
    if untrained:
        print("\n".join(missing))
        return
    for name in missing:
        typer.echo(f"not trained: {name} (scripts/train_tiny.py --variant {name})", err=True)
    try:
        if run:
            adopt()
            measure(requests(), keep_entropies)
            Store(table.OUT).pack()
        write(read())
    except CtxextError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    typer.run(main)
