"""The proof of an export: a fresh process without ctxext finds the patched model in it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ctxext.engine.anatomy import examine
from ctxext.engine.patch import patched
from ctxext.engine.probe import learn
from ctxext.engine.stock import config_with, stock_ropes, unheard
from ctxext.errors import CtxextError, UnsupportedModelError, UsageError
from ctxext.export import check
from ctxext.export.fresh import Fresh, fresh
from ctxext.methods import Spec, parse
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import FrequencySet, find_frequency_sets
from ctxext.models.loading import Source, load_config, load_saved
from ctxext.models.small import Changes, flat, merge, quiet, small_model
from ctxext.models.trained import ORIGINAL, explain_trained
from ctxext.text import counted

Job = dict[str, Any]  # what `check.measure` is told

EXACT = 1e-5  # of the largest logit
FAR = 100  # times what is allowed: a method that moves logits less is hardly seen
POSITIONS = 2**17  # of a table, at most
PLAIN = 1024  # tokens of a plain probe, at most
BLOCK = 16  # tokens that are read at a place far out
SPREAD = 64  # keys before them that stand anywhere
JUMP = 256  # tokens of the probe that jumps from the first positions to the last
ROWS = 256  # logits that are compared, in tokens
FULL_ROWS = 64  # … with the real weights, whose vocabulary is large
LONGEST = 2**17  # positions of a cache that is filled up, at most
NEW = 8  # tokens generated after a prompt
PATIENCE = 1800.0  # seconds for a small model
# What an export may change in a config: its rotation, its length and its code …
FREE = frozenset(
    {
        *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"),
        *("rotary_emb_base", "head_dim", "max_position_embeddings"),
        *("original_max_position_embeddings", "auto_map", "transformers_version"),
        "_name_or_path",
    }
)
CARRIED_FREE = frozenset({"architectures", "model_type", "ctxext"})  # … and whose code it is


@dataclass(frozen=True)
class Figure:
    """How far the export is from the patched model in one respect, and how far it may be."""

    what: str
    value: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough, which what is no number never is."""
        return self.value <= self.allowed


@dataclass(frozen=True)
class Proof:
    """What a fresh process found in an export, against the patched model.

    Attributes:
        figures: all of them hold.
        moved: how far the method takes the small model's logits at L, of the largest: what would
            be found if the export left the method out. None where it changes nothing.
        loaded: what was loaded, in words.
        versions: those of torch and transformers.
        seconds: it took.
        notes: what a reader should know, a line each.
    """

    figures: tuple[Figure, ...]
    moved: float | None
    loaded: str
    versions: str
    seconds: float
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """For a model card's table: what was compared, how far off it is, how far it may be."""
        return [(f.what, f"{f.value:.2g}", f"{f.allowed:.2g}") for f in self.figures]


def prove(
    source: Path,
    stage: Path,
    spec: Spec,
    length: int,
    *,
    train_len: int | None,
    own_scaling: str = "keep",
    trust_remote_code: bool,
    carried: bool,
    full: bool,
) -> Proof:
    """Load what was written in a fresh process without ctxext, and compare it.

    Both sides are small random models of the configs, with the same weights (`small_model`), so
    that neither process needs memory for the real ones. They run the same operators on one
    machine, so that equal bits are expected. Allowed are

    - frequencies, cos and sin, generated tokens: no difference;
    - logits: EXACT of the largest.

    Args:
        source: the model folder, unpatched.
        stage: the export: config.json, and *.py where code is needed. For `full` its weights
            too, or none, where those of `source` are meant.
        spec: what the export carries, resolved or not.
        length: L in tokens.
        train_len: T in tokens where the config's is not right.
        own_scaling: whether methods "keep" or "replace" the model's own rope scaling.
        trust_remote_code: whether the model brings code of its own, which may run.
        carried: whether the export carries code of ours; its tables are not those of the model,
            but its logits are compared over all of T and of L tokens, and what it generates.
        full: whether the real weights are loaded too, on both sides, one after the other.

    Raises:
        UnsupportedModelError: what was written is not the patched model, or does not load.
        UsageError: the disk has no room for it.
    """
    begin = time.perf_counter()
    given = Source(
        os.path.realpath(source),
        trust_remote_code=trust_remote_code,
        train_len=train_len,
        own_scaling=own_scaling,
    )
    config = load_config(given)
    model, changes = small_model(config, trust_remote_code=trust_remote_code)
    job = _job(model, spec, length, given, carried) | {
        "trust_remote_code": trust_remote_code or carried,
        "kept": check.kept(config, free := _free(config, carried)),
        "free": free,
        "carried": carried,
        "options": {"dtype": "float32"} | ({} if carried else _attention(model)),
    }
    with _box(stage) as box:
        job |= _write_small(box, stage, model, changes)
        on = patched(model, spec, length, **_options(given))
        with fresh(box, job, PATIENCE) as other, on as handle:
            found = _Found(job)
            found.compare(_measure(model, job), other)
            about = other.end()
    figures = [*found.figures.values(), *_judge(found, EXACT)]
    figures += _of_stock(model, spec, length, given) if carried else []
    _require(figures, config.model_type)
    moved = None
    if not handle.spec.unpatched:
        moved = _distance(check.logits(model, job["probes"][-1]), found.logits[-1][0])
    loaded, notes = _loaded(changes), _notes(moved)
    if full:
        del model
        figures += _prove_weights(given, stage, spec, length, carried)
        _require(figures, config.model_type)
        loaded += ", and the weights themselves"
    versions = f"torch {about['torch']}, transformers {about['transformers']}"
    seconds = time.perf_counter() - begin
    return Proof(tuple(figures), moved, loaded, versions, seconds, notes)


@contextlib.contextmanager
def _box(stage: Path) -> Iterator[Path]:
    """A temporary folder beside the stage; UsageError where it cannot be filled."""
    try:
        with tempfile.TemporaryDirectory(prefix="proof-", dir=stage.parent) as name:
            yield Path(name)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"no proof can be made beside the export: {check.one_line(error)}: make room there"
        ) from error


# What is asked -----------------------------------------------------------------------------------


def _job(
    model: Any, spec: Spec, length: int, given: Source, carried: bool, rows: int = ROWS
) -> Job:
    """What both sides measure on the model, which is not patched yet."""
    freq_sets = find_frequency_sets(model, **_options(given))
    trained = freq_sets[0].trained
    vocabulary = model.config.get_text_config().vocab_size
    probe = {"vocabulary": vocabulary, "rows": rows, "jump": 0, "at": 0}
    job: Job = {"threads": torch.get_num_threads(), "tables": [], "generate": None}
    if carried:
        ends = sorted({min(trained, PLAIN), min(length, PLAIN)})
        sizes = _sizes(spec.resolve(Span(trained, length)), trained)
        far = [
            {**probe, "length": BLOCK, "at": at, "keys": _keys(at, sizes)}
            for at in _places(sizes, min(length, LONGEST))
        ]
        prompt = max(4, min(trained + 32, length - NEW, PLAIN))
        return job | {
            "probes": [*({**probe, "length": n} for n in ends), *far],
            "generate": {**probe, "length": prompt, "new": NEW},
        }
    plain = min(trained + 64, length, PLAIN)
    job["probes"] = [{**probe, "length": plain}]
    if length > max(JUMP, plain):
        job["probes"].append({**probe, "length": JUMP, "jump": length})
    lengths = {min(trained, length), length}
    if any(freqs.by_length for freqs in freq_sets):  # which the export must not
        lengths.add(2)
    job["tables"] = [
        {**table, "length": n, "count": POSITIONS}
        for table in _sets(model, freq_sets)
        for n in sorted(lengths)
    ]
    return job


def _sizes(spec: Spec, trained: int) -> list[int]:
    """Where a spec may change what it does, in tokens: its windows, chunks and the like, and T."""
    values = (getattr(m, f.name) for m in spec.methods for f in fields(m))
    return sorted({trained, *(v for v in values if type(v) is int and v > 0)})


def _places(sizes: list[int], length: int) -> list[int]:
    """The positions of the first tokens of blocks: about all sizes, between them, and up to L.

    Chunks and groups are met at their beginnings, and where other sizes end in them.
    """
    last = length - BLOCK
    steps = [size for size in sizes if BLOCK < size < length]
    within = {last // a * a + b for a in steps for b in (0, *sizes) if b < a}
    odd = {length * part // 8 + part for part in (3, 5, 7)}
    places = {last, *(place - BLOCK // 2 for place in {*sizes, *within, *odd})}
    return sorted(place for place in places if check.FIRST < place <= last)


def _keys(at: int, sizes: list[int]) -> list[int]:
    """The positions of the keys that tokens from `at` on see: about every border, and anywhere."""
    near = range(-BLOCK, BLOCK + 1)
    borders = {at - size for size in sizes} | {at // size * size for size in sizes}
    found = {b + i for b in (at, *sizes, *borders) for i in near}
    found |= set(check.spread(at, SPREAD).tolist())
    return sorted(key for key in found if check.FIRST <= key < at)


def _options(given: Source) -> dict[str, Any]:
    return {"train_len": given.train_len, "own_scaling": given.own_scaling}


def _free(config: Any, carried: bool) -> list[str]:
    """The settings that an export may change."""
    own = (config.get_text_config().attribute_map or {}).get("max_position_embeddings")
    return sorted(FREE | {own or "n_positions"} | (CARRIED_FREE if carried else set()))


def _sets(model: Any, freq_sets: list[FrequencySet]) -> list[dict[str, Any]]:
    """Every set of frequencies that a text uses: its module, layer type and axes of positions."""
    try:
        axes = learn(model, freq_sets)[1]
    except UnsupportedModelError:
        axes = {}
    names = {module: name for name, module in model.named_modules()}
    return [
        {"module": names[s.module], "kind": s.layer_type, "axes": list(axes.get(s, ()))}
        for s in axes or freq_sets
    ]


def _attention(model: Any) -> dict[str, Any]:
    return {"attn_implementation": model.config.get_text_config()._attn_implementation}


def _write_small(box: Path, stage: Path, model: Any, changes: Changes) -> Job:
    """The export's config and code as written, and made small with the model's weights."""
    written, small = box / "written", box / "model"
    with quiet():
        model.save_pretrained(box / "saved")
    written.mkdir()
    for path in [stage / "config.json", *sorted(stage.glob("*.py"))]:
        shutil.copyfile(path, written / path.name)
    shutil.copytree(written, small)
    for path in (box / "saved").glob("*.safetensors*"):
        path.rename(small / path.name)
    try:
        settings = json.loads((written / "config.json").read_bytes())
        settings.pop("quantization_config", None)
        for alias, own in (model.config.attribute_map or {}).items():
            if own in changes:
                settings.pop(alias, None)
        (small / "config.json").write_text(json.dumps(merge(settings, changes)))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"the export's config.json is no config: {check.one_line(error)}"
        ) from error
    return {"folder": str(small), "written": str(written)}


def _measure(model: Any, job: Job) -> Iterator[check.Measured]:
    """Our side; UnsupportedModelError where the patched model does not run as the job asks."""
    try:
        yield from check.measure(model, job)
    except CtxextError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{model.config.model_type} does not run as a proof of an export asks: "
            f"{check.one_line(error)}: use ctxext.patch at run time"
        ) from error


# What is found -----------------------------------------------------------------------------------


@dataclass
class _Found:
    """What two sides measured, as far as it came in."""

    job: Job
    figures: dict[str, Figure] = field(default_factory=dict)  # the worst by what it is of
    logits: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ours, theirs

    def compare(self, ours: Iterable[check.Measured], other: Fresh) -> None:
        """Take both sides' measurements one by one; UnsupportedModelError where one lacks."""
        tables, table = iter(self.job["tables"]), {}
        for what, mine in ours:
            theirs = other.receive(what)
            if mine.shape != theirs.shape:
                sizes = f"{list(theirs.shape)} and not {list(mine.shape)}"
                raise UnsupportedModelError(f"the export's {what} have the shape {sizes}")
            off = float((mine - theirs).abs().max())
            if what == "frequencies":
                table = next(tables)
                kind = f" ({table['kind']})" if table["kind"] else ""
                self.add(f"rotary frequencies{kind}", off, 0.0)
            elif what == "table":
                self.add(_name(table), off, 0.0)
            elif what == "logits":
                self.logits.append((mine, theirs))
            else:
                prompt = self.job["generate"]["length"]
                off = float((mine != theirs).sum())
                self.add(f"of {mine.numel()} tokens generated after {prompt}, differ", off, 0.0)

    def add(self, what: str, value: float, allowed: float) -> None:
        """A figure, unless there is a worse one of the same."""
        new, old = Figure(what, value, allowed), self.figures.get(what)
        if old is None or (old.holds and (not new.holds or new.value > old.value)):
            self.figures[what] = new


def _of_stock(model: Any, spec: Spec, length: int, given: Source) -> Iterator[Figure]:
    """How far the model is, with the rotation of the spec alone, from stock transformers' one.

    Carried code is compared with the code that it was made of. Where a scaling is taken off, what
    they have in common is compared with a model that never had one; if there is one, which layers
    that are left alone, or frequencies that no rope parameters say, preclude.
    """
    span = Span(explain_trained(model.config, given.own_scaling, given.train_len).tokens, length)
    alone = Spec(spec.resolve(span).frequencies) if spec.frequencies else parse("pi:factor=1")
    freq_sets = find_frequency_sets(model, **_options(given), length=length)
    found = examine(model, freq_sets, alone)
    if found.alone or not any(freqs.replaced for freqs in found.changed):
        return
    ropes = {}
    for freqs in found.changed:
        stock = next(stock_ropes(freqs, alone, length), None)
        if stock is None:
            return
        beside = {ORIGINAL: freqs.rope.get(ORIGINAL), **dict.fromkeys(freqs.beside, 0)}
        ropes[freqs] = stock.rope | (beside if freqs.beside else {})
    with unheard():
        stock = type(model)(config_with(model, ropes)).eval()
    stock.load_state_dict(model.state_dict())
    vocabulary = model.config.get_text_config().vocab_size
    probe = {"vocabulary": vocabulary, "rows": ROWS, "jump": 0, "at": 0}
    probe["length"] = min(length, PLAIN)
    theirs = check.logits(stock, probe)
    with patched(model, alone, length, **_options(given)):
        off = _distance(theirs, check.logits(model, probe))
    what = f"logits of its rotation alone against a stock model's at {probe['length']} tokens"
    yield Figure(f"{what}, of the largest", off, EXACT)


def _name(table: dict[str, Any]) -> str:
    kind = f" ({table['kind']})" if table["kind"] else ""
    length, count = table["length"], table["count"]
    where = f"at {length} tokens" if length <= count else f"at {count} of {length} positions"
    return f"cos and sin{kind} {where}"


def _judge(found: _Found, allowed: float) -> list[Figure]:
    """The logits' figures, of all places far out the worst."""
    worst = replace(found, figures={})
    probes = found.job["probes"]
    places = [probe["at"] for probe in probes if probe["at"]]
    for probe, (mine, theirs) in zip(probes, found.logits, strict=True):
        last, length = probe["jump"], probe["length"]
        where = f"positions up to {last}" if last else f"{length} tokens"
        if probe["at"]:
            where = f"{len(places)} places up to position {places[-1] + length}"
        worst.add(f"logits at {where}, of the largest", _distance(theirs, mine), allowed)
    return list(worst.figures.values())


def _distance(theirs: Tensor, mine: Tensor) -> float:
    """How far logits are apart, of the largest."""
    off, largest = float((theirs - mine).abs().max()), float(mine.abs().max())
    return off / largest


def _require(figures: list[Figure], kind: str) -> None:
    """UnsupportedModelError that names the first figure that does not hold, if there is one."""
    wrong = [figure for figure in figures if not figure.holds]
    if wrong:
        first = wrong[0]
        more = f" (and {counted(len(wrong) - 1, 'figure')} more)" if len(wrong) > 1 else ""
        raise UnsupportedModelError(
            f"the export is not the patched {kind} model: {first.what}: off by {first.value:.2g}, "
            f"where {first.allowed:.2g} is allowed{more}: use ctxext.patch at run time"
        )


def _notes(moved: float | None) -> tuple[str, ...]:
    """What to know of the logits at L: that the method hardly moves them, where that is so."""
    if moved is None or moved >= FAR * EXACT:
        return ()
    return (
        f"the method moves the small model's logits by {moved:.1g}, where {EXACT:.1g} is allowed, "
        "so that their agreement says little",
    )


def _loaded(changes: Changes) -> str:
    sizes = ", ".join(f"{key} {value}" for key, value in flat(changes) if isinstance(value, int))
    return f"a random model of the same config{f' with {sizes}' if sizes else ''}"


# The real weights --------------------------------------------------------------------------------


def _prove_weights(
    given: Source, stage: Path, spec: Spec, length: int, carried: bool
) -> list[Figure]:
    """The logits and tokens of the real weights: of the patched model, then of the export.

    In 16 bits logits may be off by one rounding.
    """
    model, _ = load_saved(given)
    job = _job(model, spec, length, given, carried, rows=FULL_ROWS)
    job |= {"tables": [], "trust_remote_code": given.trust_remote_code or carried, "kept": {}}
    job["options"] = {"dtype": str(model.dtype).removeprefix("torch.")}
    job["options"] |= {} if carried else _attention(model)
    if model.device.type != "cpu":
        job["options"]["device_map"] = str(model.device)
    found = _Found(job)
    with patched(model, spec, length, **_options(given)):
        ours = list(_measure(model, job))
    allowed = EXACT if model.dtype == torch.float32 else torch.finfo(model.dtype).eps
    del model
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with _box(stage) as box:
        job["folder"] = str(_linked(box, Path(given.name), stage))
        with fresh(box, job, None) as other:
            found.compare(ours, other)
            other.end()
    figures = [*found.figures.values(), *_judge(found, allowed)]
    return [replace(figure, what=f"the weights: {figure.what}") for figure in figures]


def _linked(box: Path, source: Path, stage: Path) -> Path:
    """The export, with the weights of the source where it has none."""
    folder = box / "model"
    folder.mkdir()
    weights = ("*.safetensors*", "pytorch_model*.bin*")
    own = any(any(stage.glob(pattern)) for pattern in weights)
    theirs = () if own else (path for pattern in weights for path in source.glob(pattern))
    for path in (*stage.iterdir(), *theirs):
        (folder / path.name).symlink_to(path.resolve())
    return folder
