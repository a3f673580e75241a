"""`ctxext.evaluate`: what `ctxext eval` does, called from Python, also of a loaded model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctxext.advise.progress import Progress
from ctxext.choices import check_word
from ctxext.errors import UsageError
from ctxext.measure.monitor import Monitor
from ctxext.measure.run import Evaluation
from ctxext.methods import Spec
from ctxext.records import Record, to_frame
from ctxext.request.options import OPTIONS, check_device_map
from ctxext.request.texts import request_of
from ctxext.system.names import printable

if TYPE_CHECKING:
    from pandas import DataFrame

    from ctxext.models.loading import Source
    from ctxext.tasks.base import Task

TableFormat = Literal["md", "latex", "csv"]
#: Of an evaluation's options those that say how a model by name is loaded, with their defaults.
_LOADING: dict[str, Any] = {
    "revision": None,
    "trust_remote_code": False,
    "dtype": "auto",
    "device": "auto",
    "load_in": None,
    "device_map": None,
}


@dataclass(frozen=True)
class Results:
    """The records of an evaluation, in the order of its cells.

    Attributes:
        records: one for each cell, failed ones too, as they are kept.
        methods: as they were asked for, in order.
        notes: what a user should know of the evaluation, a line each.
    """

    records: list[Record]
    methods: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        failed = len(self.failed)
        return f"<Results: {len(self)} records{f', {failed} failed' if failed else ''}>"

    def _repr_markdown_(self) -> str:
        return self.table()

    @property
    def failed(self) -> list[Record]:
        """The records of cells that have no value; each has a `status` and a `reason`."""
        return [record for record in self.records if record["status"] != "ok"]

    def to_dataframe(self) -> DataFrame:
        """A row for each record, with the columns of `ctxext.records.load`."""
        return to_frame(self.records)

    def table(self, format: TableFormat = "md") -> str:
        """The tables that `ctxext report` makes, in one text.

        Raises:
            UsageError: another format.
        """
        from ctxext import report

        check_word("table format", format, TableFormat)
        return report.render(self.records, format, self.methods)

    def plot(self) -> dict[str, Any]:
        """The plots that `ctxext report` makes, as matplotlib figures by name: loss by position,
        each metric by length and against cost, and maps by depth."""
        from ctxext import report

        return report.figures(self.records, self.methods)


def evaluate(
    model: Any,
    methods: str | Spec | Iterable[str | Spec] = (),
    lengths: str | int | Iterable[str | int] = (),
    tasks: str | Task | Iterable[str | Task] = "ppl",
    data: str | os.PathLike[str] | None = None,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    limit: int | None = None,
    tokens: int | str | None = None,
    seeds: int | Iterable[int] = 0,
    batch_size: int | None = None,
    attn: str = "auto",
    train_len: int | str | None = None,
    own_scaling: str = "keep",
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    load_in: str | None = None,
    device_map: str | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool = False,
) -> Results:
    """Measure methods at lengths: every combination with tasks and seeds, beside the unpatched
    model, as `ctxext eval` does it, and with the same records.

        results = ctxext.evaluate("tiny", ["ntk", "rerope+logn"], ["512", "4k"], tokens="64k")
        results.to_dataframe(), results.table("latex"), results.plot()

    Args:
        model: `tiny`, an alias, a Hub id, a folder or a GGUF file; or a causal language model that
            transformers has loaded, which is measured where it is, in its own dtype, and left as
            it was.
        methods: specs such as `"ntk:factor=8+logn"`; the unpatched `rope` is measured always.
        lengths: in tokens, as `4096` or `"4k"`.
        tasks: such as `"ppl"`, `"acc"` or `"passkey:samples=10"`.
        data: what tasks are measured on, by the names that `--data` takes; None for each task's
            own.
        tokenizer: of a loaded model.
        name: what records call a loaded model; by default what its config says it was loaded from.
        limit: at most so many windows or samples.
        tokens: at most so many tokens of a text that is cut into windows.
        seeds: of the samples that are drawn.
        batch_size: windows or prompts at once; about 4096 tokens by default.
        attn: the attention path of distance methods.
        train_len: T in tokens where the config's is not right.
        own_scaling: whether methods "keep" the model's own rope scaling or "replace" it.
        revision, trust_remote_code, dtype, device, load_in, device_map: how a model by name is
            loaded, as on the command line.
        out: the folder of the records, in which finished cells are found and not computed again;
            without, nothing is kept on disk.
        force: compute finished cells again.
        progress: whether to show on stderr how far it is.

    Returns:
        The records. A cell that fails (out of memory, a method that the model does not take) has a
        record with its status and reason.

    Raises:
        UsageError: a bad name or value, a model that cannot be had, or nothing of it can be
            measured; the message has the valid ones.
        OutputError: records cannot be written to `out`.
    """
    options = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "device": device,
        "load_in": load_in,
        "device_map": device_map,
    }
    from ctxext.models.small import quiet

    source = _source(model, tokenizer, name, options, attn, train_len, own_scaling)
    spans = _some("lengths", lengths, "some in tokens, such as lengths=[512, '4k']")
    asked = _some("tasks", tasks, "some, such as tasks='ppl'")
    drawn = _some("seeds", seeds, "some, such as seeds=0")
    notes = list[str]()
    with contextlib.ExitStack() as stack:
        where = out if out is not None else stack.enter_context(_spare())
        request = request_of(
            source,
            _texts(methods),
            spans,
            asked,
            None if data is None else _path("data", data),
            drawn,
            limit=_read("limit", limit),
            tokens=_read("tokens", tokens),
            batch_size=_read("batch-size", batch_size),
            out=Path(_path("out", where)),
            force=force,
        )
        work = Evaluation([request])
        stack.enter_context(_evaluating(source))
        stack.enter_context(contextlib.nullcontext() if progress else quiet())
        work.monitor = _noting(stack.enter_context(Progress(silent=not progress)).monitor(), notes)
        work.run()
    return Results(work.records, tuple(work.methods), tuple(notes))


def _spare() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ctxext-evaluate-")


def _texts(value: Any) -> list[str]:
    """One or several, each as it is written."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return [str(one) for one in value] if several else [str(value)]


def _some(name: str, value: Any, such: str) -> list[str]:
    """One or several, each as it is written; UsageError where there is none."""
    if not (texts := _texts(value)):
        raise UsageError(f"no {name}: give {such}")
    return texts


def _path(name: str, value: Any) -> str:
    """A name or path as text."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UsageError(f"bad {name} {printable(repr(value))[:80]}: give a name or a path")
    return str(os.fspath(value))


def _read(name: str, value: Any) -> Any:
    """The value of an option; UsageError, with the name, where it is none."""
    return None if value is None else OPTIONS[name].read(OPTIONS[name].field, str(value))


def _source(
    model: Any,
    tokenizer: Any,
    name: str | None,
    options: dict[str, Any],
    attn: str,
    train_len: int | str | None,
    own_scaling: str,
) -> Source:
    """The model as a source; UsageError where what is given does not go together."""
    from ctxext.models.held import Held
    from ctxext.models.loading import Source

    for key in ("dtype", "load_in", "device_map"):
        _read(key.replace("_", "-"), options[key])
    check_device_map(options["device_map"], options["device"])
    method = {
        "attn": _read("attn", attn),
        "train_len": _read("train-len", train_len),
        "own_scaling": _read("own-scaling", own_scaling),
    }
    if isinstance(model, str | os.PathLike):
        for key, value in (("tokenizer", tokenizer), ("name", name)):
            if value is not None:
                raise UsageError(f"{key}= is for a loaded model: leave it out, or give the model")
        return Source(os.fspath(model), **options, **method)
    if not _is_model(model):
        raise UsageError(
            f"bad model {printable(repr(model))[:80]}: give a name, a folder, or a causal language "
            "model that transformers has loaded"
        )
    if tokenizer is None:
        raise UsageError("a loaded model needs its tokenizer: give tokenizer=")
    if not _is_tokenizer(tokenizer):
        raise UsageError(
            f"bad tokenizer {printable(repr(tokenizer))[:80]}: give one of transformers"
        )
    if not isinstance(name, str | None):
        raise UsageError(f"bad name {printable(repr(name))[:80]}: give a text")
    for key, value in options.items():
        if value != _LOADING[key]:
            raise UsageError(f"{key}= says how a model is loaded, and this one is: leave it out")
    return Source(name or _name(model), **method, held=Held(model, tokenizer))


def _is_model(model: Any) -> bool:
    """Whether it is a model of transformers, in whatever wraps it."""
    from torch import nn
    from transformers import PreTrainedModel

    return isinstance(model, nn.Module) and any(
        isinstance(module, PreTrainedModel) for module in model.modules()
    )


def _is_tokenizer(tokenizer: Any) -> bool:
    """Whether it can be called, as a tokenizer of transformers, and decodes."""
    return callable(tokenizer) and callable(getattr(tokenizer, "decode", None))


def _name(model: Any) -> str:
    """What it was loaded from, of a folder the last part; else its class."""
    place = str(getattr(model.config, "name_or_path", "") or "").rstrip("/\\")
    return (Path(place).name if Path(place).is_dir() else place) or type(model).__name__


@contextlib.contextmanager
def _evaluating(source: Source) -> Iterator[None]:
    """A loaded model is in evaluation mode in the block, and as it was after it."""
    modules = [] if source.held is None else list(source.held.model.modules())
    modes = [module.training for module in modules]
    try:
        if source.held is not None:
            source.held.model.eval()
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def _noting(monitor: Monitor, notes: list[str]) -> Monitor:
    """The monitor; its notes are kept too."""
    shown = monitor.note

    def note(line: str) -> None:
        notes.append(line)
        shown(line)

    monitor.note = note
    return monitor
