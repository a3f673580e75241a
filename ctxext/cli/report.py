"""`ctxext report`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
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
    label: Annotated[
        list[str],
        listed(
            "label",
            "What to call a method, as in rerope:window=256=Ours; repeatable. Default: as it was "
            "asked for, or shorter in LaTeX and plots for a paper.",
            metavar="METHOD=NAME",
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
        str | None,
        typer.Option(
            help="Formats of the plots that --write draws: png, svg and pdf. Default: png,svg."
        ),
    ] = None,
    no_plots: Annotated[
        bool, typer.Option("--no-plots", help="Have --write draw none, which takes seconds.")
    ] = False,
    width: Annotated[
        str | None,
        typer.Option(
            help="Draw for a paper, so wide (3.3in, 84mm, 240pt): in small type, each with its "
            "caption as a LaTeX figure, and all line plots as small multiples in overview."
        ),
    ] = None,
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
    from ctxext.report import aggregate as aggregates
    from ctxext.report import labels

    if style == "html" and not write:
        raise UsageError("--format html is a page for a browser: add --write, for report.html")
    drawn, inches = _pictures(plots, no_plots, width, write)
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
    names = dict(labels.parse_label(text, known) for text in label)
    records = labels.labelled(reports.chosen(records, order), names)
    chosen, order = order, [names.get(name, name) for name in order]
    if aggregate is not None:
        found = aggregates.headlines(records, aggregate, seeds, order)
        form = "md" if style == "table" else style
        console.print_headlines(found, style)
        written = reports.write_headlines(out, found, form, drawn, inches) if write else ()
        return _tell(written)
    if seeds != "each":
        raise UsageError("--seeds is for a benchmark's means: add --aggregate, or leave it out")
    if style == "table":
        console.print_tables(records, order)
    elif style != "html":
        typer.echo(reports.render(records, style, order), nl=False)
    sys.stdout.flush()
    if write:
        form = "md" if style == "table" else style
        _tell(reports.write_files(out, records, order, drawn, form, chosen, inches))
    return None


def _pictures(
    plots: str | None, none: bool, width: str | None, write: bool
) -> tuple[tuple[str, ...], float | None]:
    """The formats of pictures, and how many inches wide they are; None for as they come."""
    from ctxext.errors import UsageError
    from ctxext.report import PLOTS
    from ctxext.report.paper import parse_width

    for option, given in (("--plots", plots), ("--width", width)):
        if given is not None and (none or not write):
            less = "leave --no-plots out" if none else "add --write"
            raise UsageError(f"{option} is for the plots that --write draws: {less}")
    words = PLOTS if plots is None else tuple(dict.fromkeys(plots.split(",")))
    drawn = tuple(choices.check_word("plot format", word, choices.PlotFormat) for word in words)
    return () if none else drawn, None if width is None else parse_width(width)


def _tell(written: Iterable[Path]) -> None:
    for path in written:
        typer.echo(f"wrote {path}", err=True)
