"""A tiny model of a type through the command line: `ctxext eval` and `ctxext patch` of a folder.

Each ends with numbers that plain code finds too, or is refused in one line.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import conftest
import torch
from families import NOT_MADE, survey, tiny_config, tiny_model
from torch import Tensor

import ctxext
from ctxext.cli.app import main
from ctxext.export import proof
from ctxext.models.loading import Source, load_model, load_tokenizer

LENGTH = 192  # tokens, in which a pass key's prompt has room
NTK, REROPE = "ntk:factor=4", "rerope:window=16"
TEXT = Path(__file__).read_text()


class Ran(NamedTuple):
    """What a command gave."""

    code: Any
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a command that was refused, after the name of the model type."""
        lines = self.err.splitlines()
        assert (self.code, self.out, len(lines)) == (2, "", 1), self
        assert lines[0].startswith("error: "), self
        return lines[0].removeprefix("error: ")


def run(*argv: Any) -> Ran:
    """A command in this process; whatever it raises is raised."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["ctxext", *map(str, argv)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            return Ran(ended.code, out.getvalue(), err.getvalue())
    raise AssertionError("main() did not exit")


def tried(kind: str) -> dict[str, str]:
    """What a type takes, in the library and through the command line: a row of families.json.

    Raises:
        AssertionError: it takes a method and gives wrong numbers, or a command ends otherwise.
    """
    row = survey(kind)
    if kind in NOT_MADE:
        return {**row, "export": row["frequency"]}
    with TemporaryDirectory() as box:
        return {**row, "export": _commands(kind, row, Path(box))}


def _commands(kind: str, row: dict[str, str], box: Path) -> str:
    """Whether a type is exported with the methods that it takes, or why not."""
    (box / "t.txt").write_text(TEXT)
    folder = _saved(kind, box / "model")
    given = []
    for spec, said in ((NTK, row["frequency"]), (REROPE, row["distance"])):
        # what eager attention cannot take, by which `survey` goes, sdpa may
        if said == "yes" or (ran := _evaluate(folder, box, spec)).code == 0:
            given.append(spec)
        else:
            # 1 where the model is measured as it is, 2 where not even that can be
            code = 1 if ran.out else 2
            assert (ran.code, said in ran.err.splitlines()[-1]) == (code, True), kind
            assert said in _patch(folder, box, spec).refusal, kind
    if not given:
        return row["frequency"]
    ran = _evaluate(folder, box, *given)
    assert ran.code == 0, (kind, ran)
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert len(records) == 3 * (1 + len(given)), kind
    plain = load_model(Source(str(folder)))
    # as the type has it: some take text apart in a way of their own
    ids = torch.tensor(load_tokenizer(Source(str(folder)))(TEXT).input_ids[:LENGTH])[None]
    for spec in ("rope", *given):
        _check(kind, plain, ids, spec, [r for r in records if r["requested"] == spec])
    refused = {spec: _refused(_patch(folder, box, spec)) for spec in given}
    said = [f"{spec.partition(':')[0]}: {why}" for spec, why in refused.items() if why]
    if len(said) == len(given) == 2 and refused[NTK] == refused[REROPE]:
        return str(refused[NTK])
    return "; ".join(said) or "yes"


def _saved(kind: str, folder: Path) -> Path:
    """A model's folder, with the config of the whole type where the model is a part of it."""
    model = tiny_model(kind)
    model.save_pretrained(folder)
    config = tiny_config(kind)
    config.architectures, config.dtype = [type(model).__name__], "float32"
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@functools.cache
def _tokenizer() -> Any:
    return load_tokenizer(Source("tiny"))


def _evaluate(folder: Path, box: Path, *specs: str) -> Ran:
    methods = [part for spec in specs for part in ("--method", spec)]
    tasks = ("--task", "ppl,acc,passkey:samples=1", "--data", box / "t.txt", "--limit", 1, "--json")
    where = ("--model", folder, "--len", LENGTH, "--out", box / "results")
    return run("eval", *where, *tasks, *methods)


def _patch(folder: Path, box: Path, spec: str) -> Ran:
    where = ("--model", folder, "--len", LENGTH, "--out", box / spec.partition(":")[0])
    with mock.patch.object(proof, "fresh", conftest.checked_here):  # in a tenth of the time
        return run("patch", "--method", spec, *where)


def _refused(ran: Ran) -> str | None:
    """Why an export is refused, without the name of the type; None where it is not."""
    if ran.code == 0:
        assert "; a fresh process finds it off by " in ran.out, ran
        return None
    return " ".join(ran.refusal.partition(": use ")[0].split()[1:])


def _check(kind: str, model: Any, ids: Tensor, spec: str, records: list[dict[str, Any]]) -> None:
    """Perplexity and accuracy against those of all logits of one forward.

    Logits are rounded to 2e-7 of the largest, some ten, by each of a few hundred operations.
    """
    on = contextlib.nullcontext() if spec == "rope" else ctxext.patched(model, spec, LENGTH)
    with torch.no_grad(), on:
        logits: Tensor = model(ids, use_cache=False).logits[0, :-1].double()
    nll = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    right = (logits.argmax(-1) == ids[0, 1:]).double().mean()
    assert {record["status"] for record in records} == {"ok"}, (kind, records)
    found = {record["metric"]: record["value"] for record in records}
    assert found.keys() == {"perplexity", "accuracy", "passkey"}, kind
    off = abs(math.log(found["perplexity"]) - float(nll.mean()))
    assert off <= 1e-4, (kind, spec, off)
    assert found["accuracy"] == float(right), (kind, spec)
