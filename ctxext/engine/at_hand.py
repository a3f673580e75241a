"""One length for each sequence that a patched model reads, where a parameter is `auto`.

Before a forward its sequences are told apart, and each that is fresh has the parameters that its
length needs: as long as `generate` may make it, or as it is given. Rotary modules then give the
tables of those parameters, row by row. What a sequence began with is kept in its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from ctxext.engine.compiled import uncompiled
from ctxext.engine.frequencies import module_with
from ctxext.engine.rotary import call_rotary
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.methods import Spec
from ctxext.methods.base import Span, Stretch
from ctxext.models.frequency_sets import FrequencySet

BEGAN = "_ctxext_began"  # the attribute by which a cache knows what its sequences began with
UNLIMITED = 20  # tokens that `generate` writes where nothing says how many


class Generation(NamedTuple):
    """A `generate` that is running.

    Attributes:
        owner: the patch of its model.
        prompt: columns of its prompts, padding included.
        more: tokens that may follow them.
        rows: tokens of each prompt [b], where that is known.
    """

    owner: object
    prompt: int
    more: int
    rows: Tensor | None = None


class Chosen(NamedTuple):
    """What a forward's sequences have.

    Attributes:
        owner: the patch.
        specs: all that some sequence has, each once.
        which: of them each token has [b or 1, n]; None where all have the only one.
        outer: what was chosen for the forward that it is within.
    """

    owner: object
    specs: tuple[Spec, ...]
    which: Tensor | None
    outer: Chosen | None


_GENERATION: ContextVar[Generation | None] = ContextVar("generation", default=None)
_CHOSEN: ContextVar[Chosen | None] = ContextVar("chosen", default=None)


class AtHand:
    """What is at hand of one patched model: its sequences' lengths, and the tables for them.

    Args:
        spec: frequency methods and query scales, some of whose parameters are `auto`.
        trained: T in tokens.
        freq_sets: those that the spec changes, as they are without it.
    """

    def __init__(self, spec: Spec, trained: int, freq_sets: list[FrequencySet]) -> None:
        self.spec, self.trained, self.freq_sets = spec, trained, freq_sets
        self._modules: dict[tuple[Spec, FrequencySet], nn.Module] = {}
        for freqs in freq_sets:  # what it cannot take is refused at once
            self._module(spec.resolve(Span(trained, trained)), freqs)

    def needed(self, length: int) -> Spec:
        """The frequency methods for a sequence of so many tokens; none where they change nothing.

        Raises:
            UsageError: a ladder does not reach so far.
        """
        found = self.spec.resolve(Span(self.trained, length)).frequencies
        return Spec(tuple(m for m in found if not (isinstance(m, Stretch) and m.k == 1)))

    # Which length ----------------------------------------------------------------------------

    def generate(self, own: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        """A model's own `generate`, whose forwards know how long their sequences may become."""
        before = _GENERATION.get()
        _GENERATION.set(_generation(self, model, args, kwargs, before))
        try:
            return own(*args, **kwargs)
        finally:
            _GENERATION.set(before)

    @uncompiled
    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A pre-hook of what holds all layers: chooses for each sequence, or goes on as before."""
        named = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False))
        given = {**kwargs, **named}
        tokens = next(given[k] for k in ("input_ids", "inputs_embeds") if given.get(k) is not None)
        b, n = tokens.shape[:2]
        caches = [x for x in (*args, *kwargs.values()) if isinstance(x, Cache)]
        held = [cache for cache in caches if int(cache.get_seq_length())]
        if held:
            rows = self._began(held[0], b)
            specs, index = _apart(rows, torch.arange(len(rows))[:, None].expand(-1, n))
        else:
            lengths, places = self._lengths(given, b, n).unique(return_inverse=True)
            specs, index = _apart(tuple(map(self.needed, lengths.tolist())), places)
            for cache in caches:
                cache.__dict__[BEGAN] = self._mark(specs, index)
        _CHOSEN.set(Chosen(self, specs, index, _CHOSEN.get()))

    @uncompiled
    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook of what holds all layers: leaves in a cache that it has made what was chosen."""
        chosen = _CHOSEN.get()
        if chosen is None or chosen.owner is not self:
            return
        _CHOSEN.set(chosen.outer)
        some = () if output is None else output.values() if isinstance(output, dict) else output
        for cache in some:
            if isinstance(cache, Cache) and BEGAN not in cache.__dict__:
                cache.__dict__[BEGAN] = self._mark(chosen.specs, chosen.which)

    def _mark(self, specs: tuple[Spec, ...], index: Tensor | None) -> tuple[str, tuple[Spec, ...]]:
        """What a cache is to know: the patch, and what each row, or all, began with."""
        rows = specs if index is None else tuple(specs[i] for i in index[:, -1].tolist())
        return self.spec.full(), rows

    def _began(self, cache: Cache, b: int) -> tuple[Spec, ...]:
        """What the rows of a cache that holds keys began with, one for all where they are alike."""
        writer, rows = cache.__dict__.get(BEGAN, (None, ()))
        if writer != self.spec.full():
            raise UnsupportedModelError(
                "the cache holds keys that were not written under this patch, so that it is not "
                f"known for which length they are ({self._said}): begin with an empty one"
            )
        if len(set(rows)) == 1:
            return rows[:1]  # type: ignore[no-any-return]
        if len(rows) != b:
            raise UnsupportedModelError(
                f"the cache began with {len(rows)} rows of several lengths, and goes on with {b} "
                f"({self._said}): keep its rows, or begin with an empty one"
            )
        return rows  # type: ignore[no-any-return]

    def _lengths(self, given: dict[str, Any], b: int, n: int) -> Tensor:
        """How long the sequence of each token is, or may become [b or 1, n], on the CPU."""
        running = _GENERATION.get()
        running = running if running is not None and running.owner is self else None
        if running is not None and n < running.prompt:  # a prompt is read in parts
            prompts = running.rows
            if prompts is None or b % len(prompts):
                prompts = torch.tensor([running.prompt])
            else:
                prompts = prompts.repeat_interleave(b // len(prompts))
            return (prompts + running.more)[:, None].expand(-1, n)
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        hidden, at, back = None, torch.arange(n)[None], False
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()):
            hidden = ~mask[:, :n].bool().cpu()
        if isinstance(positions, Tensor):
            axes = positions.reshape(-1, *positions.shape[-2:])
            back = bool((axes != axes[0]).any())  # those of an image, in one sequence
            at = axes.amax(0).cpu()
            at = at.cummax(-1).values + torch.arange(n) if back else at
        ahead = 0 if running is None else max(0, running.prompt + running.more - n)
        rows = 1 if hidden is None and len(at) == 1 else b
        found = [
            _spans(at[row % len(at)], hidden if hidden is None else hidden[row], ahead)
            for row in range(rows)
        ]
        begins = [begin for _, some in found for begin in some]
        if isinstance(positions, Tensor) and hidden is None and max(begins) > 1:
            raise UnsupportedModelError(
                f"positions begin at {max(begins)} without a cache, so that it is not known how "
                f"their sequence began ({self._said}): give past_key_values, or positions that "
                "begin at 0"
            )
        return torch.stack([lengths for lengths, _ in found])

    @property
    def _said(self) -> str:
        return ", ".join(self.spec.at_hand)

    # Which tables ----------------------------------------------------------------------------

    def as_is(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module's own forward."""
        return forward(*args, **kwargs)

    @uncompiled
    def rotated(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """A hook of a rotary module: gives each sequence the tables of its parameters."""
        return self._rotated(module, output, *args, **kwargs)

    def _rotated(
        self,
        module: nn.Module,
        own: Any,
        x: Tensor,
        position_ids: Tensor,
        layer_type: str | None = None,
    ) -> Any:
        found = (s for s in self.freq_sets if s.module is module and s.layer_type == layer_type)
        if (freqs := next(found, None)) is None:
            return own
        chosen = _CHOSEN.get()
        if chosen is None or chosen.owner is not self:
            raise UnsupportedModelError(
                f"{type(module).__name__} runs outside of its model's forward, or in a replica of "
                f"it, so that no length is at hand ({self._said}): give a factor"
            )
        tables = [self._tables(spec, freqs, own, x, position_ids) for spec in chosen.specs]
        if chosen.which is None:
            return tables[0]
        index = chosen.which.to(x.device)[..., None]
        merged = tables[0]
        for place, more in enumerate(tables[1:], 1):
            merged = _where(index == place, more, merged)
        return merged

    def _tables(
        self, spec: Spec, freqs: FrequencySet, own: Any, x: Tensor, positions: Tensor
    ) -> Any:
        """The tables of one set of frequencies under resolved methods."""
        if not spec.methods:
            return own
        module = self._modules.get((spec, freqs))
        if module is None:
            module = self._modules.setdefault((spec, freqs), self._module(spec, freqs))
        forward = type(module).forward.__get__(module)
        return call_rotary(forward, x, positions, freqs.layer_type)

    def _module(self, spec: Spec, freqs: FrequencySet) -> nn.Module:
        """`module_with`, of tensors that any mode may use."""
        with torch.inference_mode(False), torch.no_grad():
            return module_with(freqs, spec, None)


def _generation(
    owner: AtHand,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    before: Generation | None,
) -> Generation:
    """What the arguments of `generate` say; within another one, as much as that one at least."""
    given = {**dict(zip(("inputs", "generation_config"), args, strict=False)), **kwargs}
    prompts = (given.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
    prompt = next((x.shape[1] for x in prompts if isinstance(x, Tensor)), 1)
    configs = [given.get("generation_config"), getattr(model, "generation_config", None)]

    def asked(name: str) -> int | None:
        some = (given.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in some if value is not None), None)

    more, longest = asked("max_new_tokens"), asked("max_length")
    if more is None and longest is None:
        most = getattr(model.config, "max_position_embeddings", None)
        longest = min(prompt + UNLIMITED, most or prompt + UNLIMITED)
    total = prompt + more if more is not None else longest or 0
    if before is not None:
        total = max(total, before.prompt + before.more)
    mask = given.get("attention_mask")
    rows = None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        rows = mask.long().sum(-1).cpu()
    return Generation(owner, prompt, total - prompt, rows)


def _spans(at: Tensor, hidden: Tensor | None, ahead: int) -> tuple[Tensor, list[int]]:
    """How long the sequence of each token of a row is [n], and where each sequence begins.

    Where positions do not rise another sequence begins. Hidden tokens are of the last.

    Args:
        at: positions [n].
        hidden: which tokens are padding [n].
        ahead: tokens that will follow the last sequence.
    """
    real = torch.arange(len(at)) if hidden is None else (~hidden).nonzero()[:, 0]
    if not len(real):
        return torch.full_like(at, max(1, ahead)), [0]
    seen = at[real]
    starts = [0, *((seen.diff() <= 0).nonzero()[:, 0] + 1).tolist()]
    stops = [*starts[1:], len(seen)]
    lengths = torch.full_like(at, int(seen[-1] - seen[starts[-1]]) + 1 + ahead)
    for start, stop in zip(starts[:-1], stops[:-1], strict=True):
        lengths[real[start:stop]] = seen[stop - 1] - seen[start] + 1
    return lengths, seen[starts].tolist()


def _apart(specs: tuple[Spec, ...], places: Tensor) -> tuple[tuple[Spec, ...], Tensor | None]:
    """Specs each once, and where each is; None where there is but one."""
    once = tuple(dict.fromkeys(specs))
    if len(once) == 1:
        return once, None
    return once, torch.tensor([once.index(spec) for spec in specs])[places]


def _where(here: Tensor, some: Any, others: Any) -> Any:
    """Tables [·, b or 1, n, columns], or pairs of such, where they are meant; else others."""
    if isinstance(some, tuple):
        return tuple(torch.where(here, *pair) for pair in zip(some, others, strict=True))
    return torch.where(here, some, others)


def check_at_hand(spec: Spec, freq_sets: list[FrequencySet]) -> None:
    """UsageError where a patched model cannot go by the length of each sequence."""
    said = ", ".join(spec.at_hand)
    if spec.distance is not None:
        raise UsageError(
            f"{said} goes with frequency methods and query scales on a patched model, and not in "
            f"{str(spec)!r}: give a number in its place (ctxext eval takes auto at each --len)"
        )
    for freqs in freq_sets:
        if freqs.by_length and not freqs.replaced:
            raise UsageError(
                f"the model's own {freqs.scaling} rope scaling goes by the length too: give a "
                f"number in place of {said}, or own_scaling='replace'"
            )
