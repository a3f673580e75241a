"""How quick this machine is, and what it holds, measured on a few layers of a model."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctxext.engine.patch import patched
from ctxext.measure.costs.work import Shape
from ctxext.measure.memory import allocated_peak, release
from ctxext.measure.meter import clock
from ctxext.methods import Spec
from ctxext.models.calls import cache_name
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.loading import Source
from ctxext.models.outline import outline
from ctxext.models.sizes import fewer_layers

LARGEST = 300_000_000  # parameters: of a larger model other sizes are made small too
FIRST = 64  # tokens of the first forward that is timed
TIMES, SHORT = 5, 0.03  # a forward is timed so often, or for so many seconds
STEPS = 3  # decoding steps, of which the median counts
HELD = (512, 1024)  # tokens at which memory is counted


class Speed(NamedTuple):
    """What was measured near a length.

    Attributes:
        reading: operations a second, as `Shape` counts them.
        step: seconds of a decoding step.
    """

    reading: float
    step: float


class Held(NamedTuple):
    """What a forward holds beside the weights.

    Attributes:
        token: bytes for each token.
        pair: bytes for each query and key, where an attention path keeps them all.
        cached: bytes of the cache for each token and layer.
    """

    token: float
    pair: float
    cached: float


class Probe:
    """A model of the same config with fewer layers, a small vocabulary, and random weights.

    Attributes:
        shape: what its forward is made of.

    Raises:
        UnsupportedModelError: transformers builds no such model.
    """

    def __init__(self, config: Any, source: Source, trained: int) -> None:
        self._source, self._trained = source, trained
        for groups in ((), ("experts",), ("experts", "mlp")):
            small = fewer_layers(config, *groups)
            shape = Shape.of(outline(small, source.trust_remote_code))
            if shape.parameters <= LARGEST:
                break
        self.shape = shape
        self._model = _build(small, source)
        takes = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if takes else {}
        self._cache = cache_name(self._model)

    def speeds(
        self, spec: Spec, longest: int, batch: Callable[[int], int], seconds: float, steps: bool
    ) -> dict[int, Speed]:
        """What is measured with a method at ever longer lengths, by length.

        Args:
            longest: the last length.
            batch: tells how many sequences are read at once at a length; where these take too
                long, one is.
            seconds: how long all forwards may take together.
            steps: whether decoding is measured too.
        """
        found: dict[int, Speed] = {}
        tokens, shape = min(FIRST, longest), self.shape.under(spec, self._trained)
        with self._patched(spec, longest), torch.inference_mode():
            self._forward(tokens, 1)()
            started, pace = time.perf_counter(), self._timed(tokens, 1) / shape.read(tokens)
            while True:
                left = seconds - (time.perf_counter() - started)
                likely = pace * shape.read(tokens)
                rows = batch(tokens) if likely * batch(tokens) < left / 4 else 1
                if found and likely * (1 + steps) > left:
                    return found
                reading = rows * shape.read(tokens) / self._timed(tokens, rows)
                found[tokens] = Speed(reading, self._step(tokens) if steps else 0.0)
                if tokens == longest:
                    return found
                tokens, pace = min(2 * tokens, longest), 1 / reading

    def held(self, spec: Spec, length: int, kept: bool) -> Held:
        """What a forward with a method holds, counted at two lengths.

        Args:
            kept: whether the cache is counted too.
        """
        with self._patched(spec, length), torch.inference_mode():
            cached = self._cached() if kept else 0.0
        a, b = (min(n, max(1, length * n // HELD[-1])) for n in HELD)
        x, y = (self._allocated(spec, length, n) for n in (a, b))
        pair = max(0.0, (y / b - x / a) / (b - a)) if b > a else 0.0
        if pair * a * a < x / 10:  # the rest of blocks, and no matrix of scores
            return Held(y / b, 0.0, cached)
        return Held(x / a - pair * a, pair, cached)

    def _patched(self, spec: Spec, length: int) -> AbstractContextManager[Any]:
        options = {"train_len": self._trained, "own_scaling": self._source.own_scaling}
        return patched(self._model, spec, length, attn=self._source.attn, **options)

    def _ids(self, tokens: int, rows: int = 1) -> Tensor:
        return torch.arange(rows * tokens, device=self._model.device).view(rows, -1) % 256 + 8

    def _forward(self, tokens: int, rows: int) -> Callable[[], object]:
        ids = self._ids(tokens, rows)
        return lambda: self._model.base_model(input_ids=ids, use_cache=False)

    def _timed(self, tokens: int, rows: int) -> float:
        """Seconds of a forward, of the quickest of several where one is short."""
        forward, times = self._forward(tokens, rows), list[float]()
        while len(times) < TIMES and sum(times) < SHORT:
            times.append(clock(self._model.device, forward))
        return min(times)

    def _prefill(self, tokens: int) -> Any:
        return self._model(input_ids=self._ids(tokens), use_cache=True, **self._options)

    def _step(self, tokens: int) -> float:
        """Seconds of a decoding step after so many tokens."""
        given, one = {self._cache: self._prefill(tokens)[self._cache]}, self._ids(1)

        def step() -> object:
            return self._model(input_ids=one, use_cache=True, **given, **self._options)

        return statistics.median(clock(self._model.device, step) for _ in range(STEPS))

    def _cached(self) -> float:
        cache, whole = self._prefill(FIRST)[self._cache], 0
        for layer in getattr(cache, "layers", ()):
            held = (getattr(layer, name, None) for name in ("keys", "values"))
            whole += sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))
        return whole / FIRST / self.shape.layers

    def _allocated(self, spec: Spec, length: int, tokens: int) -> int:
        """The most bytes beside the weights during a forward over so many tokens."""

        def forward() -> None:
            with self._patched(spec, length), torch.inference_mode():
                self._forward(tokens, 1)()

        forward()
        release()
        weights = sum(p.nbytes for p in (*self._model.parameters(), *self._model.buffers()))
        return int(max(0, (allocated_peak(self._model, forward) or 0) - weights))


def _build(config: Any, source: Source) -> Any:
    """The model on its device, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=source.dtype,
            attn_implementation=source.attn,
            trust_remote_code=source.trust_remote_code,
        ).eval()
    model.to_empty(device=source.device)
    generator = torch.Generator().manual_seed(0)
    some = torch.empty(2**20).uniform_(-0.05, 0.05, generator=generator)
    for tensor in (*model.parameters(), *model.buffers()):
        part = some.to(tensor) if tensor.is_floating_point() else torch.zeros_like(some).to(tensor)
        for piece in tensor.detach().view(-1).split(len(some)):
            piece.copy_(part[: len(piece)])
    with torch.device(source.device):
        for module in {found.module: found.module for found in find_frequency_sets(model)}:
            module.__init__(module.config)  # type: ignore[misc]
    model.tie_weights()
    return model
