"""The command line: its commands, and the one place where errors become lines."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ctxext.cli import console, streams
from ctxext.cli.bench import bench
from ctxext.cli.check import check
from ctxext.cli.eval import evaluate
from ctxext.cli.explain import explain
from ctxext.cli.methods import methods
from ctxext.cli.models import models
from ctxext.cli.patch import patch
from ctxext.cli.plan import plan
from ctxext.cli.report import report
from ctxext.cli.score import score
from ctxext.cli.tasks import tasks
from ctxext.cli.tune import tune

VERBOSE = "Also show tracebacks of errors, and what is logged and warned of, on stderr."

app = typer.Typer(
    name="ctxext",
    help="Stretch the context of Hugging Face RoPE models without training, and measure the cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
KEPT = "What can be made again is kept in $CTXEXT_CACHE (see docs/tasks.md)."
app.command("eval", epilog=KEPT)(evaluate)
app.command()(bench)
app.command()(patch)
app.command("export", help="Another name of ctxext patch.")(patch)
app.command()(plan)
app.command()(explain)
app.command()(tune)
app.command()(report)
app.command()(check)
app.command()(methods)
app.command()(models)
app.command()(tasks)
app.command()(score)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ctxext import __version__

        typer.echo(f"ctxext {__version__}")
        raise typer.Exit


@app.callback()
def _any_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version, and end."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", callback=console.be_verbose, expose_value=False, help=VERBOSE
        ),
    ] = False,
) -> None:
    pass


def commands() -> Any:
    """All commands, each of which takes --verbose too."""
    whole: Any = typer.main.get_command(app)
    (verbose,) = (option for option in whole.params if option.name == "verbose")
    for one in whole.commands.values():
        one.params.append(verbose)
    return whole


def _fault(error: Exception) -> str:
    """What to say of an error that should not have come so far."""
    from ctxext.errors import short

    return f"{short(repr(error))}: a fault of ctxext; -v shows where"


def main() -> None:
    """Run the command line; every error the user can cause is one line on stderr."""
    from ctxext.errors import CtxextError, UsageError, short

    streams.hold()
    console.begin()
    try:
        code = commands()(standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        code = console.complain(error, console.USAGE)
    except CtxextError as error:
        code = console.complain(error, console.FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = console.INTERRUPTED
    except Exception as error:  # Typer's own usage errors have a message and an exit code
        if hasattr(error, "format_message"):
            code = getattr(error, "exit_code", console.USAGE)
            code = console.complain(error.format_message(), code)
        else:
            said = short(error) if isinstance(error, OSError) else _fault(error)
            code = console.complain(said, console.FAILED)
    sys.exit(code if isinstance(code, int) else console.OK)
