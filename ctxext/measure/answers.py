"""Prompts → greedy answers: batches by length, and one prefill for what prompts share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ctxext.engine.pinned import alike, pinned, unswitched
from ctxext.errors import CtxextError
from ctxext.measure.attempts import reads_in_parts
from ctxext.measure.growing import GrowingCache, new_cache
from ctxext.models.calls import cache_name, padding_id
from ctxext.tasks.base import Row, Sample

SHARED = 0.5  # of a prompt that must be another's beginning too, to be read but once


class Limits(NamedTuple):
    """When an answer ends.

    Attributes:
        most: tokens of an answer.
        least: tokens before it may stop.
        stops: token ids that end it, beside the tokenizer's and the model's own.
    """

    most: int
    least: int = 0
    stops: tuple[int, ...] = ()


def answers(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    limits: Limits,
    batch: int,
    advance: Callable[[int], None] = lambda tokens: None,
    chunk: int | None = None,
) -> Iterator[Row]:
    """The rows of the samples, in the order in which they are answered.

    Args:
        model: a causal language model, patched or not, in evaluation mode. Where its own scaling
            goes by the length, each sequence has that of its prompt and the longest answer.
        batch: prompts read at once, where they share no beginning.
        advance: told the prompt tokens that are done, shared ones included.
        chunk: tokens of a prompt read at once; None for all. The model must be one that
            `reads_in_parts`.

    Raises:
        CtxextError: the logits are not finite.
    """
    decoder = _Decoder(model, tokenizer, limits, chunk)
    for length, group in alike(model, samples, lambda sample: len(sample.ids) + limits.most):
        with pinned(model, length):
            for some, shares in schedule(group, batch, reads_in_parts(model)):
                start = time.perf_counter()
                alone = shares or chunk is not None
                found = decoder.shared(some) if alone else iter([decoder.together(some)])
                for answered in found:
                    took, start = time.perf_counter() - start, time.perf_counter()
                    for sample, answer in answered:
                        yield row_of(sample, answer.text, answer.margin, took / len(answered))
                        advance(len(sample.ids))


def row_of(sample: Sample, pred: str, margin: float, seconds: float) -> Row:
    """What is kept of a sample: the answer, what is right, and what tells its prompt from others.

    Args:
        margin: the least difference between the two best logits of a step.
    """
    said = {"name": sample.name, "pred": pred, "answers": list(sample.answers)}
    facts = {"all_classes": None, "length": len(sample.ids), **sample.facts}
    measured = {"margin": margin, "seconds": seconds}
    return {**said, **facts, **measured, "prompt": sample.digest}


def schedule(
    samples: Sequence[Sample], batch: int, can_share: bool
) -> Iterator[tuple[list[Sample], bool]]:
    """Samples that are answered together, and whether they are to share what they have in common.

    Those that share at least half of their prompts with the one before them, in the order of
    their ids, follow one another; the others are batched with those nearest in length.
    """
    ordered = sorted(samples, key=_ids)
    families: list[list[Sample]] = []
    for sample in ordered:
        before = families[-1][-1].ids if families else ()
        if can_share and common(before, sample.ids) >= max(1, SHARED * len(sample.ids)):
            families[-1].append(sample)
        else:
            families.append([sample])
    yield from ((family, True) for family in families if len(family) > 1)
    alone = [family[0] for family in families if len(family) == 1]
    alone.sort(key=lambda sample: (-len(sample.ids), sample.name))  # what is too large fails first
    yield from ((alone[i : i + batch], False) for i in range(0, len(alone), batch))


def share(samples: Sequence[Sample], rank: int, count: int) -> list[Sample]:
    """The samples of one process among `count`: about as many tokens for each, and neighbours,
    since they may begin alike."""
    ordered = sorted(samples, key=_ids)
    sizes = [max(1, len(sample.ids)) for sample in ordered]
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    place = [int(middle * count / sum(sizes)) for middle in middles]
    return [sample for sample, at in zip(ordered, place, strict=True) if at == rank]


def _ids(sample: Sample) -> Any:
    """By which prompts that begin alike are neighbours."""
    return sample.ids


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(first), len(second))
    return next((i for i in range(most) if first[i] != second[i]), most)


class Answer(NamedTuple):
    """What was said, and how close it was.

    Attributes:
        text: special tokens left out.
        margin: the least difference between the two best logits of a step.
    """

    text: str
    margin: float


class _Margins(LogitsProcessor):  # type: ignore[misc]
    """Watches the steps of a batch: the least difference between the two best logits of each row,
    up to its end."""

    def __init__(self, prompt: int, stops: Tensor) -> None:
        self._prompt, self._stops = prompt, stops
        self.least: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        two = scores.float().topk(2, -1).values
        if not bool(torch.isfinite(two[:, 0]).all()):
            raise CtxextError("the logits are not finite")
        margin = two[:, 0] - two[:, 1]
        ended = torch.isin(input_ids[:, self._prompt :], self._stops).any(1)
        margin = margin.masked_fill(ended, torch.inf)
        self.least = margin if self.least is None else torch.minimum(self.least, margin)
        return scores


class _Decoder:
    """Greedy decoding by the model's own `generate`, with none of its other settings."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits, chunk: int | None) -> None:
        self._model, self._tokenizer, self._chunk = model, tokenizer, chunk
        self._device = model.get_input_embeddings().weight.device
        own = getattr(model.generation_config, "eos_token_id", None)
        ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, *limits.stops]
        self._ends = sorted({int(end) for end in ends if end is not None})
        self._pad = padding_id(model, tokenizer.pad_token_id, *self._ends)
        self._config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=limits.most,
            min_new_tokens=limits.least or None,
            eos_token_id=self._ends or None,
            pad_token_id=self._pad,
            use_cache=new_cache(model) is not None,
        )
        self._stops = torch.tensor(self._ends, dtype=torch.long, device=self._device)

    def together(self, samples: Sequence[Sample]) -> list[tuple[Sample, Answer]]:
        """The answers to a batch, padded on the left."""
        longest = max(len(sample.ids) for sample in samples)
        ids = torch.full((len(samples), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            ids[row, longest - len(sample.ids) :] = torch.tensor(list(sample.ids))
            mask[row, longest - len(sample.ids) :] = 1
        cache = new_cache(self._model, longest + self._config.max_new_tokens)
        own = cache if isinstance(cache, GrowingCache) else None  # else one that `generate` makes
        return list(zip(samples, self._generate(ids, mask, own), strict=True))

    def shared(self, samples: Sequence[Sample]) -> Iterator[list[tuple[Sample, Answer]]]:
        """The answers one by one; of each prompt only what the one before did not begin with."""
        cache, before = GrowingCache(self._model.config), list[int]()
        for sample in samples:
            ids = list(sample.ids)
            keep = min(common(before, ids), len(ids) - 1)
            if (extra := cache.get_seq_length() - keep) > 0:
                cache.crop(-extra)
            cache.expect(len(ids) + self._config.max_new_tokens)
            tensor = torch.tensor([ids])
            self._read(tensor[:, keep:-1], cache)
            [answer] = self._generate(tensor, torch.ones_like(tensor), cache)
            before = ids
            yield [(sample, answer)]

    def _read(self, ids: Tensor, cache: Any) -> None:
        """Read what is to be read in chunks: `generate` does not in every release, with a cache."""
        if self._chunk is None or not ids.shape[1]:
            return
        base = self._model.base_model
        with torch.no_grad():
            for part in ids.to(self._device).split(self._chunk, 1):
                base(input_ids=part, use_cache=True, **{cache_name(base): cache})

    def _generate(self, ids: Tensor, mask: Tensor, cache: Any) -> list[Answer]:
        ids, mask = ids.to(self._device), mask.to(self._device)
        margins = _Margins(ids.shape[1], self._stops)
        with torch.no_grad(), self._settings(), unswitched(self._model):
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                **{cache_name(self._model): cache},
                generation_config=self._config,
                logits_processor=LogitsProcessorList([margins]),
            )
        new = out[:, ids.shape[1] :].tolist()
        assert margins.least is not None
        texts = [self._tokenizer.decode(self._said(row), skip_special_tokens=True) for row in new]
        return [Answer(text, m) for text, m in zip(texts, margins.least.tolist(), strict=True)]

    def _said(self, row: list[int]) -> list[int]:
        """The tokens up to the end, with it; what follows is padding."""
        stop = next((i + 1 for i, token in enumerate(row) if token in self._ends), len(row))
        return row[:stop]

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """The model without the generation settings that came with it, such as penalties."""
        own = self._model.generation_config
        self._model.generation_config = self._config
        try:
            yield
        finally:
            self._model.generation_config = own
