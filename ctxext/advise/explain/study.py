"""What was asked to be explained → what the methods do to angles, distances and entropy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.advise.explain.angles import LONGEST, Angles, Floats, effective
from ctxext.advise.explain.entropy import Entropy, measure
from ctxext.advise.explain.layers import Kind, find_kinds, turned
from ctxext.engine.patch import patched
from ctxext.errors import UsageError
from ctxext.measure import tokens as reading
from ctxext.measure.monitor import Monitor, Step
from ctxext.methods import Spec
from ctxext.methods.base import Part, Span
from ctxext.models import loading
from ctxext.models.identity import tell_trained
from ctxext.models.trained import explain_trained
from ctxext.notation import format_length
from ctxext.system.files import check_writable
from ctxext.tasks.data import load_text
from ctxext.tasks.windows import Windows, cut

BINS = 64  # of positions, at most
EFFECTS = ("least", "middle", "most")  # of the pairs' effective relative positions


@dataclass(frozen=True)
class ExplainRequest:
    """Methods to explain on one model at one length.

    Attributes:
        methods: the unpatched `rope` first, then the others as given, none twice.
        length: L in tokens.
        data: text that entropy is measured on, as `ctxext eval` takes it; None for none.
        limit: at most so many windows of it.
    """

    source: loading.Source
    methods: tuple[Spec, ...]
    length: int
    data: str | None = "stdlib"
    limit: int = 4
    out: Path = Path("results")


@dataclass(frozen=True)
class Block:
    """One kind of layers under one method."""

    kind: Kind
    angles: Angles
    parts: tuple[Part, ...]

    def effective(self, distances: Floats) -> Floats:
        """Effective relative positions at the last query [3, distances], in tokens.

        Of the pair that is stretched most, of the middle one, and of the one stretched least:
        e(δ)·θ'_i/θ_i. NaN where the key is not seen.
        """
        moving = self.kind.trained_theta > 0
        ratio = self.angles.theta[moving] / self.kind.trained_theta[moving]
        ratio = ratio if len(ratio) else np.ones(1)
        at = effective(self.parts, self.angles.length - 1, distances)
        if at.ndim == 1:
            at = np.outer(np.sort(ratio), at)
        else:
            at = np.sort(at.T[moving] * ratio[:, None], 0)
        at = np.where(distances < self.angles.edges[-1], at, np.nan)  # the layers' own window
        return at[[0, len(at) // 2, -1]]

    @property
    def bounds(self) -> set[int]:
        """The distances behind the last query at which keys of a part begin, or have ended."""
        last = self.angles.length - 1
        spans = [part.span(last, last) for part in self.parts]
        return {last + 1 - end for span in spans if span[0] < span[1] for end in span}


@dataclass
class Explained:
    """One method: resolved for the length, and what it does."""

    requested: Spec
    method: Spec
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What entropy is measured on: a model, windows of text, and the dtype it computes in.

    Attributes:
        entropies: one for each method.
    """

    model: Any
    windows: Windows
    dtype: str
    entropies: list[Entropy] = field(default_factory=list)

    @property
    def about(self) -> str:
        """How many windows."""
        return f"{len(self.windows)} window{'s' if len(self.windows) > 1 else ''}"


@dataclass
class Study:
    """All methods on one model; `explained` begins with the unpatched `rope`.

    Attributes:
        trained: T in tokens.
        why: what T was taken from.
        run: what entropy was measured on; None where it was not.
    """

    request: ExplainRequest
    trained: int
    why: str
    explained: list[Explained]
    run: Run | None

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of layers."""
        return [block.kind for block in self.explained[0].blocks]

    def distances(self, kind: int) -> list[int]:
        """Distances that tell the methods apart: by doubling, T, and where parts begin or end."""
        reach = int(self.explained[0].blocks[kind].angles.edges[-1])
        bounds = {d for one in self.explained for d in one.blocks[kind].bounds}
        steps = {self.trained * 2**i for i in range(25)}
        found = {1, self.trained // 4, self.trained // 2, reach - 1} | bounds | steps
        return sorted(d for d in found if 0 < d < reach)

    def bands(self) -> list[tuple[int, int]]:
        """Ranges of positions: those inside T, then by doubling up to the length."""
        edges = [0, *(e for i in range(25) if (e := self.trained * 2**i) < self.request.length)]
        return list(zip(edges, [*edges[1:], self.request.length], strict=True))

    def bins(self) -> list[tuple[int, int]]:
        """Equal ranges of positions, at most BINS."""
        length = self.request.length
        edges = np.unique(np.linspace(0, length, min(BINS, length) + 1).round().astype(int))
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def explain(request: ExplainRequest, monitor: Monitor) -> Study:
    """Explain the methods; the model's weights are read only where entropy is asked for.

    Raises:
        UsageError: something asked for cannot be done; the message says why.
        UnsupportedModelError: the model cannot take a method.
    """
    length = request.length
    if length > LONGEST:
        raise UsageError(f"length {length} is too long to explain: at most {LONGEST}")
    config = loading.load_config(request.source)
    asked = request.source
    trained = explain_trained(config, asked.own_scaling, asked.train_len)
    if trained.tokens < 2:
        raise UsageError(f"bad value {trained.tokens} for --train-len: give at least 2")
    resolved = [spec.resolve(Span(trained.tokens, length)) for spec in request.methods]
    kinds = find_kinds(config, length, asked.train_len, asked.trust_remote_code, asked.own_scaling)
    check_writable(request.out)
    source = loading.settle(request.source, config)
    run = None
    if request.data is not None:
        windows = _windows(source, request.data, length, request.limit)
        with monitor.outside():
            model = loading.load_model(source, monitor.note)
        run = Run(model, windows, source.dtype)
        kinds = turned(kinds, run.model)
    elif len(kinds) > 1:
        monitor.note("layer types are the config's; some may be without positions")
    explained = [
        Explained(spec, method, [Block(kind, *kind.under(method, length)) for kind in kinds])
        for spec, method in zip(request.methods, resolved, strict=True)
    ]
    if run is not None:
        _measure(request, run, explained, monitor)
    monitor.note(tell_trained(asked, config))
    return Study(request, trained.tokens, trained.why, explained, run)


def _measure(
    request: ExplainRequest, run: Run, explained: list[Explained], monitor: Monitor
) -> None:
    """The entropy under each method, on the same windows."""
    monitor.plan(len(explained), 0)
    tokens = run.windows.tokens
    for left, one in zip(range(len(explained))[::-1], explained, strict=True):
        what = f"{one.requested} {format_length(request.length)} entropy"
        monitor.begin(Step(what, tokens, "", 1.0, {"": float(left)}))
        source = request.source
        with patched(
            run.model,
            one.method,
            request.length,
            train_len=source.train_len,
            own_scaling=source.own_scaling,
        ) as handle:
            one.notes += handle.notes
            for note in handle.notes:
                monitor.note(f"{one.requested}: {note}")
            run.entropies.append(measure(run.model, run.windows, monitor.advance))
        monitor.done(None)


def _windows(source: loading.Source, data: str, length: int, limit: int) -> Windows:
    text, tokenizer = load_text(data, length * limit), loading.load_tokenizer(source)
    start = reading.start_token(tokenizer)
    ids = reading.tokenise(text, tokenizer, length * limit)
    try:
        return cut(ids, length, start, limit)
    except UsageError as error:
        raise UsageError(
            f"data {data!r}: {error}, or --no-entropy to explain without running the model"
        ) from None


def records(study: Study) -> list[dict[str, Any]]:
    """One JSON object for each method: angles by pair, distances, entropy by position."""
    return [_record(study, number) for number in range(len(study.explained))]


def _record(study: Study, number: int) -> dict[str, Any]:
    request, run, one = study.request, study.run, study.explained[number]
    return {
        "model": request.source.name,
        "requested": str(one.requested),
        "method": one.method.full(),
        "length": request.length,
        "trained_length": study.trained,
        "trained_from": study.why,
        "own_scaling": request.source.own_scaling,
        "layers": [_layers(study, kind, block) for kind, block in enumerate(one.blocks)],
        "entropy": None if run is None else _entropy(study, run, run.entropies[number]),
        "notes": one.notes,
    }


def _layers(study: Study, number: int, block: Block) -> dict[str, Any]:
    kind, angles = block.kind, block.angles
    plain = study.explained[0].blocks[number].angles
    pairs = zip(plain.wavelength, plain.outside, angles.wavelength, angles.outside, strict=True)
    distances = study.distances(number)
    effects = block.effective(np.array(distances)).T.tolist()
    return {
        "type": kind.name,
        "count": kind.layers,
        "window": kind.window,
        "left_alone": kind.alone,
        "angles": angles.seen,
        "outside": angles.share,
        "pairs": [
            {
                "pair": i,
                "wavelength": {"before": _number(before), "after": _number(after)},
                "outside": {"before": int(out), "after": int(still)},
            }
            for i, (before, out, after, still) in enumerate(pairs)
        ],
        "distances": [
            {"distance": d, "effective": dict(zip(EFFECTS, map(_number, e), strict=True))}
            for d, e in zip(distances, effects, strict=True)
        ],
    }


def _entropy(study: Study, run: Run, entropy: Entropy) -> dict[str, Any]:
    far, bins = run.entropies[0].far(study.trained), study.bins()
    mean, ceiling = entropy.nats[far].mean(0), entropy.ceiling[far].mean(0)
    return {
        "data": study.request.data,
        "windows": len(run.windows),
        "dtype": run.dtype,
        "positions": [
            {"start": a, "stop": z, "nats": mean[a:z].mean(), "ceiling": ceiling[a:z].mean()}
            for a, z in bins
        ],
        "layers": [
            {"layer": i, "averaged": bool(far[i]), "nats": [row[a:z].mean() for a, z in bins]}
            for i, row in enumerate(entropy.nats)
        ],
    }


def _number(value: float) -> float | None:
    """JSON has no infinities."""
    return float(value) if np.isfinite(value) else None
