"""A PlanRequest → a Plan: what a config says of a length, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctxext.advise.plan.choice import Choice, choose
from ctxext.choices import Dtype, words
from ctxext.errors import CtxextError, UnsupportedModelError, short
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models.trained import Trained, explain_trained
from ctxext.notation import format_length
from ctxext.tasks.base import Task, TokenTask

if TYPE_CHECKING:
    from ctxext.export.engines import Expressed
    from ctxext.models.loading import Source

SECONDS = 0.5  # that forwards of a few layers may take, beside the first


@dataclass(frozen=True)
class PlanRequest:
    """A model and a length.

    Attributes:
        source: the model; its dtype and device as they were asked for.
        length: L in tokens.
        gpu: bytes of a device that need not be here; None for the source's device.
        rows: sequences that are read at once.
        methods: those to look at; without any, a short list.
        tasks: what is to be measured.
        folder: of records that say how methods do, and how quick this machine is.
        timed: whether time is measured here where no record tells it.
    """

    source: Source
    length: int
    gpu: int | None = None
    rows: int = 1
    methods: tuple[Spec, ...] = ()
    tasks: tuple[Task, ...] = ()
    folder: Path = Path("results")
    timed: bool = True


class Memory(NamedTuple):
    """Bytes at the highest point of reading L tokens, in one dtype.

    Attributes:
        cache: what is kept for tokens to come; 0 where all that is asked for keeps none.
        fits: whether all that is no more than there is; None where that is not known.
    """

    dtype: str
    weights: int
    cache: int
    activations: int
    fits: bool | None

    @property
    def together(self) -> int:
        return self.weights + self.cache + self.activations


class Time(NamedTuple):
    """Seconds on this machine, and what they are from: "records" or "measured" on a few layers.

    Attributes:
        read: for L tokens in all rows.
        step: for each token after them; None where that is not known.
    """

    dtype: str
    read: float
    step: float | None
    basis: str


class Suggested(NamedTuple):
    """A method, why, and what engines can take of it."""

    choice: Choice
    expressed: Expressed


@dataclass(frozen=True)
class Plan:
    """What reading at a length takes.

    Attributes:
        kind: the model type.
        own_scaling: the types of the config's own rope scaling, and what becomes of it; None
            without any.
        parameters, active: how many there are, and how many of them one token meets.
        memory: for each dtype, or none and `uncounted`, the reason.
        capacity: bytes of the device; None where that is not known.
        where: the device, in words.
        process: bytes that the process takes beside tensors, on the CPU.
        time: None where nothing tells it.
        notes: what else a user should know, a line each.
    """

    request: PlanRequest
    kind: str
    trained: Trained
    own_scaling: str | None
    parameters: int
    active: int
    memory: tuple[Memory, ...]
    uncounted: str | None
    capacity: int | None
    where: str
    process: int
    time: Time | None
    methods: tuple[Suggested, ...]
    notes: tuple[str, ...]

    @property
    def stretch(self) -> float:
        """L/T."""
        return self.request.length / self.trained.tokens


def make(request: PlanRequest, note: Callable[[str], None] = lambda line: None) -> Plan:
    """Look at a config; no weights are read.

    Args:
        note: told, in a line, what could not be measured.

    Raises:
        UsageError: no such model or device, or a config of which no model can be made.
    """
    from ctxext.models.loading import load_config

    config = load_config(request.source)
    try:
        return _make(request, config, note)
    except CtxextError:
        raise
    except Exception as error:  # a config may say anything
        raise UnsupportedModelError(
            f"model {request.source.name!r}: its config is not understood ({short(error, 150)})"
        ) from error


def _make(request: PlanRequest, config: Any, note: Callable[[str], None]) -> Plan:
    from ctxext.measure.costs.work import Shape
    from ctxext.models.loading import pick_device
    from ctxext.models.outline import outline

    source = request.source
    here = None if request.gpu is not None else pick_device(source.device)
    trained = explain_trained(config, source.own_scaling, source.train_len)
    whole = outline(config, source.trust_remote_code)
    shape = Shape.of(whole)
    capacity, process = _room(request, here)
    memory, uncounted = _memory(request, config, shape, capacity, process)
    time = _time(request, config, shape, memory, trained.tokens, here, note) if here else None
    return Plan(
        request=request,
        kind=config.model_type,
        trained=trained,
        own_scaling=_own_scaling(source, config),
        parameters=shape.parameters,
        active=shape.active + shape.head,
        memory=tuple(memory),
        uncounted=uncounted,
        capacity=capacity,
        where="--gpu" if here is None else here,
        process=process,
        time=time,
        methods=tuple(_methods(request, config, trained.tokens)),
        notes=tuple(_about_weights(source, config)),
    )


def _own_scaling(source: Source, config: Any) -> str | None:
    from ctxext.models.rope import is_scaled
    from ctxext.models.trained import scales

    if not is_scaled(config):
        return None
    rope = config.get_text_config().rope_parameters
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    kinds = dict.fromkeys(str(part["rope_type"]) for part in parts if scales(part))
    return f"{' and '.join(kinds)}, {source.own_scaling}"


def _about_weights(source: Source, config: Any) -> list[str]:
    """What weights take otherwise than in the table."""
    from ctxext.models.gguf_header import read_header, shards

    if source.file is not None:
        kinds = read_header(source.file).dequantised or "its own types"
        size = sum(path.stat().st_size for path in shards(source.file))
        return [
            f"the file's weights take {size / 2**20:,.0f} MiB as they are, in {kinds}, which is "
            "what llama.cpp holds; here they are dequantized"
        ]
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return []
    said = quantized if isinstance(quantized, dict) else quantized.to_dict()
    return [
        f"the model's own weights are quantized ({short(said.get('quant_method', 'unknown'), 40)}) "
        "and take less than is counted here, which is for plain ones"
    ]


def _room(request: PlanRequest, here: str | None) -> tuple[int | None, int]:
    """The bytes there are, and those that the process takes of them beside tensors."""
    from ctxext.measure.memory import capacity, resident

    if here is None:
        return request.gpu, 0
    process = (resident() or 0) if here.startswith("cpu") else 0
    return capacity(here), process


def _memory(
    request: PlanRequest, config: Any, shape: Any, capacity: int | None, process: int
) -> tuple[list[Memory], str | None]:
    """What each dtype takes; or none, and the reason."""
    import torch

    from ctxext.measure.costs.counted import NotCountedError, count
    from ctxext.models.loading import settle

    source, tokens = request.source, request.rows * request.length
    attn = settle(replace(source, device="cpu"), config).attn
    asked = [one for one in words(Dtype) if one != "auto" and source.dtype in ("auto", one)]
    reads = bool(request.tasks) and all(isinstance(task, TokenTask) for task in request.tasks)
    found = []
    for dtype in asked:
        try:
            one = count(
                config,
                request.length,
                request.rows,
                dtype=dtype,
                attn=attn,
                trust_remote_code=source.trust_remote_code,
            )
        except NotCountedError as error:
            return [], str(error)
        cache, activations = one.cache, one.activations
        if reads:  # of windows of text nothing is kept, and every token is scored
            scored = shape.scoring(tokens, getattr(torch, dtype).itemsize)
            cache, activations = 0, max(activations, scored)
        whole = one.weights + cache + activations + process
        fits = None if capacity is None else whole <= capacity
        found.append(Memory(dtype, one.weights, cache, activations, fits))
    return found, None


def _methods(request: PlanRequest, config: Any, trained: int) -> list[Suggested]:
    from ctxext.export.engines import express
    from ctxext.models.small import small_model

    source = request.source
    tasks = [str(task) for task in request.tasks]
    span = Span(trained, request.length)
    chosen = choose(request.methods, source.name, config.model_type, tasks, span, request.folder)
    small, _ = small_model(config, trust_remote_code=source.trust_remote_code)
    return [
        Suggested(
            one,
            express(
                config,
                small,
                one.spec,
                request.length,
                train_len=source.train_len,
                own_scaling=source.own_scaling,
                trust_remote_code=source.trust_remote_code,
            ),
        )
        for one in chosen
    ]


def _time(
    request: PlanRequest,
    config: Any,
    shape: Any,
    memory: list[Memory],
    trained: int,
    device: str,
    note: Callable[[str], None],
) -> Time | None:
    """On this machine, by a record of the model, or by forwards of a few of its layers."""
    from ctxext.models.loading import settle

    source = settle(replace(request.source, device=device), config)
    return _recorded(request, shape, source) or (
        _measured(request, config, shape, source, memory, trained, note) if request.timed else None
    )


def _recorded(request: PlanRequest, shape: Any, source: Source) -> Time | None:
    """By the unpatched model's record at the nearest length."""
    import torch

    from ctxext.advise.plan.choice import records_in
    from ctxext.measure.costs.cells import NEAR
    from ctxext.measure.machine import device_name

    mine = (source.name, source.dtype, device_name(torch.device(source.device)))
    near = [
        (abs(math.log(r["length"] / request.length)), r["tokens_per_second"], r["length"])
        for r in records_in(request.folder)
        if (r["model"], r["dtype"], r["device"]) == mine
        and r["requested"] == "rope"
        and r["buckets"]
        and r["tokens_per_second"]
    ]
    off, rate, length = min(near, default=(math.inf, 0.0, 0))
    if off > math.log(NEAR):
        return None
    slower = (shape.read(request.length) / request.length) / (shape.read(length) / length)
    seconds = request.rows * request.length / rate * slower
    return Time(source.dtype, seconds, None, f"a record of it at {format_length(length)}")


def _measured(
    request: PlanRequest,
    config: Any,
    shape: Any,
    source: Source,
    memory: list[Memory],
    trained: int,
    note: Callable[[str], None],
) -> Time | None:
    """By forwards of a few layers with random weights."""
    import torch

    from ctxext import methods
    from ctxext.measure.costs.probe import Probe

    try:
        probe = Probe(config, source, trained)
        rope, rows = methods.parse("rope"), request.rows
        speeds = probe.speeds(rope, request.length, lambda length: rows, SECONDS, steps=True)
    except Exception as error:
        note(f"time is not measured: {short(error, 150)}")
        return None
    at = max(speeds)
    size = getattr(torch, source.dtype).itemsize
    kept = next((m.cache for m in memory if m.dtype == source.dtype), 0)
    moved = (shape.active + shape.head) * size + kept
    few = (probe.shape.active + probe.shape.head) * size
    few += int(kept * probe.shape.layers / shape.layers * at / request.length)
    read = rows * (shape.read(request.length) + shape.scored(1)) / speeds[at].reading
    said = f"forwards of {probe.shape.layers} of its {shape.layers} layers with random weights"
    return Time(source.dtype, read, speeds[at].step * moved / few, f"{said}, measured now")
