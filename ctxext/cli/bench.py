"""`ctxext bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctxext import choices
from ctxext.cli import console
from ctxext.cli.options import (
    Device,
    Dtype,
    Json,
    Lengths,
    Methods,
    Model,
    Out,
    OwnScaling,
    Revision,
    TrainLen,
    Trust,
    count,
    listed,
    one_of,
    source_of,
    word,
)
from ctxext.request.options import OPTIONS

PATHS = OPTIONS["attn"]


def bench(
    context: typer.Context,
    length: Lengths,
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    paths: Annotated[
        list[str],
        listed(
            "attn",
            "Attention paths of distance methods; repeatable.",
            metavar=PATHS.takes,
            autocompletion=one_of(PATHS.words),
        ),
    ] = ["auto"],  # noqa: B006
    case: Annotated[
        choices.BenchCase,
        word(
            "case",
            "model: whole prefills, and steps after them; packed: prefills of packed rows; "
            "steps: after random keys, in a cache that grows in place; padded: such steps of rows "
            "of many lengths; attention: it alone in such steps.",
            choices.BenchCase,
            "case",
        ),
    ] = "model",
    batch_size: Annotated[int, count("batch-size", "Sequences read at once.")] = 1,
    pairs: Annotated[
        int, count("pairs", "Pairs of runs, patched and not; an interval needs 6.", least=2)
    ] = 15,
    decode_tokens: Annotated[int, count("decode-tokens", "Decoding steps after each prefill.")] = 8,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="From the model's config.json alone.")
    ] = False,
    seed: Annotated[int, count("seed", "Of the token ids, and of random weights.", least=0)] = 0,
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
    from ctxext.measure import bench as measured
    from ctxext.request import lists

    lengths = lists.parse_lengths(length)
    request = measured.BenchRequest(
        source=source_of(context),
        methods=lists.parse_methods(method),
        lengths=lengths,
        paths=measured.parse_paths(paths),
        case=measured.check_case(case, batch_size, lengths),
        batch_size=batch_size,
        pairs=pairs,
        decode_tokens=decode_tokens,
        random_weights=random_weights,
        seed=seed,
        out=out,
    )
    console.announce([model])
    again = "the same command begins anew"
    raise typer.Exit(console.run(measured.Bench(request), as_json, again))
