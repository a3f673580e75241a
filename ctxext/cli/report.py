"""`ctxext report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ctxext import choices
from ctxext.cli import console
from ctxext.cli.options import METHOD_NAMES, Out, listed, word


def report(
    out: Out = Path("results"),
    method: Annotated[
        list[str],
        listed(
            "method",
            "Show these and rope alone, in this order; repeatable. Default: all.",
            autocompletion=METHOD_NAMES,
        ),
    ] = [],  # noqa: B006
    style: Annotated[
        choices.ReportFormat,
        word(
            "format",
            "What is printed; html is a page, and needs --write.",
            choices.ReportFormat,
        ),
    ] = "table",
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Also write, into --out: tables.md, plots, and tables.csv, tables.tex or "
            "report.html of a --format. Where --method chooses, file names end in the methods.",
        ),
    ] = False,
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Whether --write draws, which takes seconds.")
    ] = True,
    pack: Annotated[
        bool,
        typer.Option(
            "--pack",
            help="First fold the records' files into one, records.jsonl, a line each, which all "
            "commands read as they do the files.",
        ),
    ] = False,
    aggregate: Annotated[
        choices.Benchmark | None,
        word(
            "aggregate",
            "The mean over a benchmark's tasks by length, in place of all tables; --write draws it "
            "as one picture.",
            choices.Benchmark,
        ),
    ] = None,
    seeds: Annotated[
        choices.Seeds,
        word(
            "seeds", "With --aggregate: each apart, or their mean, with its spread.", choices.Seeds
        ),
    ] = "each",
) -> None:
    """Tables from record files alone, printed; --write puts them and plots beside the records."""
    from ctxext import methods
    from ctxext import report as reports
    from ctxext.errors import UsageError
    from ctxext.records import Store

    if style == "html" and not write:
        raise UsageError("--format html is a page for a browser: add --write, for report.html")
    if not out.is_dir():
        raise UsageError(f"no folder {str(out)!r}: give --out, where ctxext eval wrote records")
    for line in Store(out).pack() if pack else ():
        typer.echo(line, err=True)
    records, problems = Store(out).read_all()
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if not records:
        raise UsageError(f"no records in {str(out)!r}: run ctxext eval or bench first")
    known = {record["requested"] for record in records}
    order = [name if name in known else str(methods.parse(name)) for name in method]
    records = reports.chosen(records, order)
    if aggregate is not None:
        return console.print_headlines(records, order, aggregate, seeds, style, out, write, plots)
    if seeds != "each":
        raise UsageError("--seeds is for a benchmark's means: add --aggregate, or leave it out")
    if style == "table":
        console.print_tables(records, order)
    elif style != "html":
        typer.echo(reports.render(records, style, order), nl=False)
    sys.stdout.flush()
    if write:
        form = "md" if style == "table" else style
        for path in reports.write_files(out, records, order, plots, form, order):
            typer.echo(f"wrote {path}", err=True)
    return None
