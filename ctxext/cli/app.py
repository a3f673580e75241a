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


class _Command(typer.core.TyperCommand):
    """A command that says which option a value lacks."""

    allow_extra_args = True  # so that they come here

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            from ctxext.errors import UsageError

            raise UsageError(f"unexpected {rest[0]!r}: {self._meant(given, rest[0], ctx)}")
        return rest

    def _meant(self, given: list[str], value: str, ctx: Any) -> str:
        """What to do with a value: the option before it again, if it may be."""
        before = (word for word in reversed(given[: given.index(value)]) if word.startswith("-"))
        name = next(before, "").partition("=")[0]
        again = any(
            name in option.opts and getattr(option, "multiple", False) for option in self.params
        )
        if again:
            return f"did you mean {name} {value}? each takes one value and may be repeated"
        return f"every value has its option before it: see ctxext {ctx.info_name} --help"


app.command("eval", cls=_Command, epilog=KEPT)(evaluate)
app.command(cls=_Command)(bench)
app.command(cls=_Command)(patch)
app.command("export", cls=_Command, help="Another name of ctxext patch.")(patch)
app.command(cls=_Command)(plan)
app.command(cls=_Command)(explain)
app.command(cls=_Command)(tune)
app.command(cls=_Command)(report)
app.command(cls=_Command)(check)
app.command(cls=_Command)(methods)
app.command(cls=_Command)(models)
app.command(cls=_Command)(tasks)
app.command(cls=_Command)(score)


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
