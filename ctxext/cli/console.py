"""What commands share: running with progress, what is printed where, and exit codes.

stdout carries the result, stderr progress and diagnostics. Exit codes: 0 all cells done, 1 some
cell failed (the rest are written), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ctxext.system.names import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ctxext.records import Record

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_verbose = False


def run(work: Any, as_json: bool, again: str, refused: Sequence[str] = ()) -> int:
    """Run an evaluation or a bench and print it; the exit code.

    Args:
        again: what the same command would do after an interrupt.
        refused: what the run finds that it can make no record of, in lines.
    """
    from ctxext.advise.progress import Progress
    from ctxext.errors import CtxextError
    from ctxext.measure.workers import launched_alone, leave, several, speaks

    quieten()
    if launched_alone():
        typer.echo(
            "accelerate launch started one process, as it does where there is no GPU: add "
            "--multi_gpu to have several",
            err=True,
        )
    with Progress(silent=not speaks()) as progress:
        work.monitor = progress.monitor()
        interrupted, unfinished = False, None
        try:
            with contextlib.nullcontext() if several() else terminable():
                work.run()
        except KeyboardInterrupt:
            interrupted = True
        except CtxextError as error:  # what was measured before it is printed all the same
            unfinished = error
    records = work.records
    if as_json:
        for record in records:
            typer.echo(json.dumps(record, allow_nan=False))
    elif records:
        print_tables(records, work.methods)
    if unfinished is not None:
        raise unfinished
    if interrupted:
        typer.echo(f"interrupted: finished cells are kept, {again}", err=True)
        return INTERRUPTED
    failed = [r for r in records if r["status"] != "ok"]
    for r in failed:
        line = f"{r['requested']} at {r['length']}, {r['task']}: {r['status']}: {r['reason']}"
        typer.echo(printable(line), err=True)
    for line in refused if speaks() else ():
        typer.echo(printable(line), err=True)
    leave()
    return FAILED if failed or refused else OK


def announce(names: Iterable[str]) -> None:
    """Say on stderr which model a name was taken for, where it could be another too."""
    from ctxext.measure.workers import speaks
    from ctxext.models.aliases import taken

    for line in dict.fromkeys(map(taken, names)):
        if line is not None and speaks():
            typer.echo(printable(line), err=True)


def tune(request: Any, as_json: bool) -> int:
    """Run a search and print what it has found; the exit code."""
    from ctxext.advise import tune
    from ctxext.advise.progress import Progress

    quieten()
    interrupted = False
    with Progress(unit="step") as progress:
        search = tune.Search(request, progress.monitor())
        try:
            with terminable():
                search.run()
        except KeyboardInterrupt:
            interrupted = True
    outcome = search.outcome
    if as_json:
        for record in tune.records(outcome):
            typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))
    elif outcome.trials:
        _print_outcome(outcome)
    if interrupted:
        typer.echo("interrupted: finished trials are kept, the same command goes on", err=True)
        return INTERRUPTED
    failed = [trial.last for trial in outcome.trials if trial.last.value is None]
    for trial in failed:
        typer.echo(printable(f"{trial.spec}: {trial.status}: {trial.reason}"), err=True)
    tried = [trial for trial in outcome.trials if not trial.spec.unpatched]
    some = outcome.winner is not None and len(failed) < len(tried)
    return OK if some else FAILED


def print_estimates(work: Any, as_json: bool) -> None:
    """What the cells of an evaluation will take."""
    from ctxext.advise import estimate
    from ctxext.measure.workers import speaks

    quieten()
    work.monitor.note = lambda line: typer.echo(line, err=True)
    found = work.estimates()
    if as_json and speaks():
        for one in found:
            typer.echo(json.dumps(one.to_record(), ensure_ascii=False, allow_nan=False))
    elif speaks():
        terminal = screen(highlight=False)
        for table in estimate.to_rich(found):
            terminal.print(table, crop=False)
        typer.echo(estimate.totals(found))


def print_tables(records: list[Record], order: list[str]) -> None:
    """Records as tables, methods in an order."""
    from ctxext import report

    terminal = screen()
    for table in report.to_rich(records, order, terminal.width):
        terminal.print(table, crop=False)


def print_headlines(found: list[Any], style: str) -> None:
    """The means over a benchmark's tasks, in a format."""
    from ctxext import report
    from ctxext.report import aggregate, sheets

    if style == "table":
        terminal = screen()
        for sheet in (sheet for headline in found for sheet in aggregate.sheets(headline)):
            terminal.print(sheets.to_rich(sheet), crop=False)
    else:
        typer.echo(report.render_headlines(found, style), nl=False)
    sys.stdout.flush()


def print_sheets(study: Any) -> None:
    """What `ctxext explain` has found."""
    from ctxext.advise.explain import tables

    terminal = screen()
    for sheet in tables.sheets(study):
        terminal.print(tables.to_rich(sheet), crop=False)
    for line in tables.left_alone(study):
        typer.echo(line)


def screen(width: int = 100, **options: Any) -> Console:
    """stdout, as wide as the terminal, or `width` columns where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, **options)


def _print_outcome(outcome: Any) -> None:
    from ctxext.advise import tune

    terminal = screen()
    terminal.print(tune.to_rich(outcome), crop=False)
    for line in tune.verdict(outcome):
        typer.echo(printable(line))


def print_families(as_json: bool) -> None:
    """Model types, and what each takes."""
    from ctxext.models import families

    if as_json:
        for family in families.families():
            typer.echo(json.dumps(family._asdict(), ensure_ascii=False))
        return
    wide = max(len(family.model_type) for family in families.families())
    for family in families.families():
        facts = zip(family._fields[1:], family[1:], strict=True)
        said = [f"{name}: {text}" for name, text in facts]
        line = said[0].partition(": ")[2] if len(set(family[1:])) == 1 else " · ".join(said)
        typer.echo(f"{family.model_type:<{wide}}  {line}")
    typer.echo(
        f"as found on tiny random models with transformers {families.tried()}; types without "
        "rotary embeddings take none",
        err=True,
    )


def print_registry(registry: Any, as_json: bool) -> None:
    """What a registry has; what another package brings and cannot be had is told on stderr."""
    found = registry.classes(lambda line: typer.echo(printable(line), err=True))
    print_entries([one.describe() for one in found], as_json)


def print_entries(entries: list[dict[str, Any]], as_json: bool) -> None:
    """Entries by their `name`, `summary`, and facts."""
    for entry in entries:
        if as_json:
            typer.echo(json.dumps(entry, ensure_ascii=False))
            continue
        typer.echo(f"{entry['name']}\n  {entry['summary']}")
        rest = {k: v for k, v in entry.items() if k not in ("name", "summary")}
        for key, value in rest.items():
            label = f"{key[:-2]} T" if key.endswith("_t") else key.replace("_", " ")
            typer.echo(f"  {label}: {value}")
        typer.echo("")


def be_verbose(wanted: bool) -> None:
    """Let errors be shown with their tracebacks, and what libraries say, if that is wanted."""
    global _verbose
    _verbose = _verbose or wanted


def begin() -> None:
    """Forget what a command before this one, in the same process, was asked to show."""
    global _verbose
    _verbose = False


def complain(message: object, code: int) -> int:
    """An error as a line on stderr, after its traceback where that is wanted; gives the code."""
    from ctxext.measure.workers import speaks

    if _verbose and sys.exc_info()[0] is not None:
        traceback.print_exc()
    line = printable(" ".join(str(message).split()))
    if line and speaks():  # bare `ctxext` has printed its help
        sys.stderr.write(f"error: {line}\n")
    return code


def quieten() -> None:
    """Keep libraries' chatter off stderr, unless it is wanted; errors come through as ours."""
    import huggingface_hub
    import transformers

    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    transformers.utils.logging.disable_progress_bar()
    if _verbose:
        hear()
        return
    warnings.simplefilter("ignore")
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what is stderr at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def hear() -> None:
    """Show on stderr what ctxext and libraries log, from INFO on."""
    import transformers

    root = logging.getLogger()
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    transformers.utils.logging.set_verbosity_info()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that nothing half-written is left."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
