"""What a bench times: prefills and decoding steps, of rows of several kinds, or a part of them."""

from __future__ import annotations

import contextlib
import inspect
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext.choices import BenchCase
from ctxext.errors import CtxextError, UsageError, short
from ctxext.measure.growing import GrowingCache, new_cache
from ctxext.measure.meter import clock, synchronize
from ctxext.models import loading
from ctxext.models.calls import cache_name

MARK = 4  # tokens that are read before a cache is filled: their keys are as the model writes them
SEQUENCES = 8  # in a packed row


class Timing(NamedTuple):
    """Seconds of one run: its prefill, and the median of its decoding steps; None for neither."""

    prefill: float | None
    decode: float | None


class Case:
    """What is timed: a prefill of whole rows, and greedy steps that go on from its cache.

    Attributes:
        metric: which of its times a record's value is.
        reads: whether a prompt is read, so that there is a peak of memory.
        beside_itself: whether the unpatched model is one of those compared with itself.
    """

    metric = "prefill_seconds"
    reads = True
    beside_itself = False

    def check(self, batch: int, length: int) -> None:
        """UsageError where rows of that kind cannot be made."""

    def run(self, model: Any, ids: Tensor, steps: int, plain: bool = False) -> Timing:
        """Time it once, without gradients.

        Args:
            model: a causal language model, patched or not, in evaluation mode.
            ids: token ids [batch, length] on the model's device.
            steps: of one token each, at least 1.
            plain: of the unpatched model that others are compared with.
        """
        forward = Generation(model, ids, **self.rows(ids))
        with torch.no_grad():
            prefill, *rest = [clock(model.device, forward) for _ in range(1 + steps)]
        return Timing(prefill, statistics.median(rest))

    def prefill(self, model: Any, ids: Tensor) -> None:
        """What peak memory is of."""
        with torch.no_grad():
            Generation(model, ids, **self.rows(ids))()

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """What a forward is told of the rows."""
        return {}


class Packed(Case):
    """A prefill of sequences that stand in one row, told apart by their positions."""

    def check(self, batch: int, length: int) -> None:
        if length % SEQUENCES:
            raise UsageError(f"--case packed: give a length that {SEQUENCES} sequences divide")

    def run(self, model: Any, ids: Tensor, steps: int, plain: bool = False) -> Timing:
        forward = Generation(model, ids, **self.rows(ids))
        with torch.no_grad():
            return Timing(clock(model.device, forward), None)

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        batch, length = ids.shape
        positions = torch.arange(length // SEQUENCES, device=ids.device).repeat(SEQUENCES)
        return {"position_ids": positions.expand(batch, -1)}


class Steps(Case):
    """Decoding steps after as many random keys, none of which were read.

    The cache grows in place, as that of answers; that of the model compared with is transformers'.
    """

    metric = "decode_seconds_per_token"
    reads = False
    beside_itself = True

    def run(self, model: Any, ids: Tensor, steps: int, plain: bool = False) -> Timing:
        forward = self._filled(model, ids, steps, plain)
        with torch.no_grad():
            return Timing(None, self._time(model, forward, steps))

    def _filled(self, model: Any, ids: Tensor, steps: int, plain: bool) -> Generation:
        """The steps that go on from a cache of random keys, one of them done."""
        length = ids.shape[1]
        cache = new_cache(model, length + steps + 1)
        if not isinstance(cache, GrowingCache) or any(cache.is_sliding):
            kind = type(model).__name__
            raise CtxextError(f"steps of {kind} cannot be timed alone: its cache drops keys")
        cache, told = self._kind(model, cache, plain), self.rows(ids)
        forward = Generation(
            model, ids[:, :MARK], cache, **{n: x[:, :MARK] for n, x in told.items()}
        )
        generator = torch.Generator(model.device).manual_seed(0)
        with torch.no_grad():
            forward()
            drawn: dict[torch.Size, Tensor] = {}
            for layer in cache.layers:
                held = (layer.keys, layer.values)
                layer.update(*(_more(x, length - MARK, drawn, generator) for x in held))
            forward.skip(**{name: x[:, MARK:] for name, x in told.items()})
            forward()
        return forward

    def _kind(self, model: Any, cache: GrowingCache, plain: bool) -> DynamicCache:
        return DynamicCache(config=model.config) if plain else cache

    def _time(self, model: Any, forward: Generation, steps: int) -> float:
        return statistics.median(clock(model.device, forward) for _ in range(steps))


def _more(x: Tensor, tokens: int, drawn: dict[torch.Size, Tensor], by: torch.Generator) -> Tensor:
    """Random keys or values like those held, drawn once for all layers that are alike."""
    if x.shape not in drawn:
        more = x.new_empty(*x.shape[:2], tokens, x.shape[3])
        drawn[x.shape] = more.uniform_(-1, 1, generator=by)
    return drawn[x.shape]


class Padded(Steps):
    """Such steps of a batch whose rows are padded on the left, the last to twice its length."""

    beside_itself = False

    def check(self, batch: int, length: int) -> None:
        if batch < 2:
            raise UsageError("--case padded: give a --batch-size of 2 or more")

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        batch, length = ids.shape
        padding = torch.linspace(0, length // 2, batch, device=ids.device).long()
        mask = (torch.arange(length, device=ids.device) >= padding[:, None]).long()
        return {"attention_mask": mask}

    def _kind(self, model: Any, cache: GrowingCache, plain: bool) -> DynamicCache:
        return cache


class Attention(Steps):
    """Of such steps the attention alone, that of the unpatched model in such a cache, too."""

    beside_itself = False

    def _kind(self, model: Any, cache: GrowingCache, plain: bool) -> DynamicCache:
        return cache

    def _time(self, model: Any, forward: Generation, steps: int) -> float:
        spent = []
        for _ in range(steps):
            with _attention_timed(model) as calls:
                forward()
            if not calls:
                raise CtxextError(f"the attention of {type(model).__name__} cannot be timed alone")
            spent.append(statistics.fmean(calls))
        return statistics.median(spent)


@contextlib.contextmanager
def _attention_timed(model: Any) -> Iterator[list[float]]:
    """Grows by the seconds of each attention layer's function."""
    name, calls = model.config._attn_implementation, list[float]()
    own = ALL_ATTENTION_FUNCTIONS.get(name)
    if own is None:
        raise CtxextError(f"{name} attention cannot be timed alone: load with sdpa")

    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronize(model.device)
        start = time.perf_counter()
        out = own(*args, **kwargs)
        synchronize(model.device)
        calls.append(time.perf_counter() - start)
        return out

    AttentionInterface.register(name, timed)
    try:
        yield calls
    finally:
        AttentionInterface.register(name, own)


class Generation:
    """The next forward of a greedy generation: of the ids first, then of a token at a time."""

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> None:
        takes = "logits_to_keep" in inspect.signature(model.forward).parameters
        # of packed rows transformers makes a mask where nothing is cached
        self._options = {
            "use_cache": position_ids is None,
            **({"logits_to_keep": 1} if takes else {}),
        }
        self._model, self._ids, self._cache = model, ids, cache
        self._mask, self._positions = attention_mask, position_ids
        self._name = cache_name(model)

    @property
    def cache(self) -> Any:
        """What is kept of the tokens so far."""
        return self._cache

    def __call__(self) -> None:
        more = {}
        if self._mask is not None:
            n = self._ids.shape[1]
            positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -n:]
            more = {"attention_mask": self._mask, "position_ids": positions}
        if self._positions is not None:
            more = {"position_ids": self._positions}
        given = {self._name: self._cache, **more, **self._options}
        out = self._model(input_ids=self._ids, **given)
        if not self._options["use_cache"]:
            return
        if out.get(self._name) is None:
            raise CtxextError(f"{type(self._model).__name__} returns no cache to decode with")
        self._ids, self._cache = out.logits[:, -1:].argmax(-1), out[self._name]
        if self._mask is not None:
            self._mask = pad(self._mask, (0, 1), value=1)

    def skip(self, attention_mask: Tensor | None = None) -> None:
        """Go on after more tokens, which the cache has been given."""
        if self._mask is not None and attention_mask is not None:
            self._mask = pad(torch.cat((self._mask[:, :-1], attention_mask), 1), (0, 1), value=1)


def random_model(source: loading.Source, seed: int) -> Any:
    """The model of a config alone, in evaluation mode: random weights are as fast as trained ones.

    Raises:
        UsageError: no such model, or no causal language model can be built from its config.
    """
    config = loading.load_config(source)
    source = loading.settle(source, config)
    device = torch.device(source.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=source.dtype,
                attn_implementation=source.attn,
                trust_remote_code=source.trust_remote_code,
            )
        except Exception as error:
            text = short(error)
            raise UsageError(
                f"model {source.name!r} cannot be built from its config: {text}"
            ) from error
    return model.eval()


CASES: dict[BenchCase, Case] = {
    "model": Case(),
    "packed": Packed(),
    "steps": Steps(),
    "padded": Padded(),
    "attention": Attention(),
}
