"""The proof of an export: a fresh process without ctxext finds the patched model in it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ctxext.engine.patch import patched
from ctxext.errors import CtxextError, UnsupportedModelError, UsageError
from ctxext.export import check
from ctxext.export.figures import EXACT, Figure, Found, distance, logit_figures, of_stock, require
from ctxext.export.fresh import fresh
from ctxext.export.job import Job, free_settings, make_job, options
from ctxext.methods import Spec
from ctxext.models.loading import Source, load_config, load_saved
from ctxext.models.sizes import Changes, flat, merge
from ctxext.models.small import quiet, small_model

FAR = 100  # times what is allowed: a method that moves logits less is hardly seen
FULL_ROWS = 64  # logits that are compared with the real weights, whose vocabulary is large
PATIENCE = 1800.0  # seconds for a small model


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
    job = make_job(model, spec, length, given, carried) | {
        "trust_remote_code": trust_remote_code or carried,
        "kept": check.kept(config, free := free_settings(config, carried)),
        "free": free,
        "carried": carried,
        "options": {"dtype": "float32"} | ({} if carried else _attention(model)),
    }
    with _box(stage) as box:
        job |= _write_small(box, stage, model, changes)
        on = patched(model, spec, length, **options(given))
        with fresh(box, job, PATIENCE) as other, on as handle:
            found = Found(job)
            found.compare(_measure(model, job), other)
            about = other.end()
    figures = [*found.figures.values(), *logit_figures(found, EXACT)]
    figures += of_stock(model, spec, length, given) if carried else []
    require(figures, config.model_type)
    moved = None
    if not handle.spec.unpatched:
        moved = distance(check.logits(model, job["probes"][-1]), found.logits[-1][0])
    loaded, notes = _loaded(changes), _notes(moved)
    if full:
        del model
        figures += _prove_weights(given, stage, spec, length, carried)
        require(figures, config.model_type)
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
    job = make_job(model, spec, length, given, carried, rows=FULL_ROWS)
    job |= {"tables": [], "trust_remote_code": given.trust_remote_code or carried, "kept": {}}
    job["options"] = {"dtype": str(model.dtype).removeprefix("torch.")}
    job["options"] |= {} if carried else _attention(model)
    if model.device.type != "cpu":
        job["options"]["device_map"] = str(model.device)
    found = Found(job)
    with patched(model, spec, length, **options(given)):
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
    figures = [*found.figures.values(), *logit_figures(found, allowed)]
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
