"""Which tokens of windows a long context helps, by what an evaluator says of them.

It reads each window whole, or beyond its trained length T in reads of T tokens, a stride apart; and
again in reads that have a short context and a stride of tokens behind it. Each read opens with the
tokenizer's own BOS where it adds one, as windows do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ctxext.measure.tokens import score, start_token
from ctxext.models import loading
from ctxext.models.identity import identify
from ctxext.models.loading import Source
from ctxext.models.prompting import encoding
from ctxext.tasks.base import Helped
from ctxext.tasks.windows import Windows

_NEAR = 64  # tokens that are decoded together


Batch = Callable[[int], int]  # how many reads of a length are done at once


class Evaluator(NamedTuple):
    """A model that says which tokens count, unpatched; `trained` is its T in tokens."""

    model: Any
    tokenizer: Any
    trained: int


def load(name: str, beside: Source) -> Evaluator:
    """Another model, on the device and in the dtype of the one that is measured.

    Raises:
        UsageError: it cannot be had.
    """
    source = Source(name, dtype=beside.dtype, device=beside.device)
    config = loading.load_config(source)
    source = loading.settle(source, config)
    trained = identify(source, config).trained
    return Evaluator(loading.load_model(source), loading.load_tokenizer(source), trained)


def own(evaluator: Evaluator, windows: Windows, rule: Helped, batch: Batch) -> NDArray[np.bool_]:
    """Which tokens of windows of the evaluator's own tokens count [windows, length]."""
    whole = _losses(evaluator, windows, _whole(windows.length, evaluator.trained, rule), batch)
    short = _losses(evaluator, windows, _short(windows.length, rule), batch)
    return (short - whole > rule.alpha) & (whole < rule.beta)  # NaN is neither


def others(
    evaluator: Evaluator, tokenizer: Any, windows: Windows, rule: Helped, batch: Batch
) -> NDArray[np.bool_]:
    """Which tokens of windows of another tokenizer's count [windows, length]: those that lie within
    characters of the evaluator's tokens that do."""
    found = np.zeros((len(windows), windows.length), dtype=bool)
    opening = int(windows.start is not None)
    start = start_token(evaluator.tokenizer)
    for number in range(len(windows)):
        ids = windows.ids(slice(number, number + 1))[0, opening:]
        spans = _characters(tokenizer, ids.tolist())
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        theirs = encoding(
            evaluator.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True
        )
        length = len(theirs.input_ids) + int(start is not None)
        if length <= rule.short:
            continue
        zero = torch.zeros(1, dtype=torch.long)
        window = Windows(torch.tensor(theirs.input_ids), zero, zero + 1, length, start)
        helped = own(evaluator, window, rule, batch)[0, length - len(theirs.input_ids) :]
        found[number, opening:] = _within(
            spans, np.asarray(theirs.offset_mapping)[helped], len(text)
        )
    return found


class _Read(NamedTuple):
    """Where a read of a window begins, how long it is, and its first position that is scored."""

    begin: int
    length: int
    first: int


def _whole(length: int, trained: int, rule: Helped) -> Iterator[_Read]:
    """Reads that score each position of a window from the short context's on once, with all that
    stands before it, or as much as T holds."""
    end = min(length, trained)
    yield _Read(0, end, min(rule.short, end - 1))
    stride = min(rule.stride, trained - 1)
    while end < length:
        step = min(stride, length - end)
        end += step
        yield _Read(end - trained, trained, trained - step)


def _short(length: int, rule: Helped) -> Iterator[_Read]:
    """Reads that score each of these positions once, behind a short context."""
    for begin in range(0, length - rule.short, rule.stride):
        yield _Read(begin, min(rule.short + rule.stride, length - begin), rule.short)


def _losses(
    evaluator: Evaluator, windows: Windows, reads: Iterator[_Read], batch: Batch
) -> NDArray[np.float64]:
    """Losses in nats [windows, length]; NaN where no read scores a position."""
    found = np.full((len(windows), windows.length), np.nan)
    for read in reads:
        begins = windows.begins + read.begin
        some = replace(
            windows, begins=begins, first=torch.full_like(begins, read.first), length=read.length
        )
        scores = score(evaluator.model, some, batch(read.length))
        found[scores.window, scores.position + read.begin] = scores.nll
    return found


def _characters(tokenizer: Any, ids: list[int]) -> NDArray[np.int64]:
    """From where to where in the decoded text each token's characters are [tokens, 2]; tokens that
    make up characters together have all of these."""

    def count(begin: int, end: int) -> tuple[int, bool]:
        text = tokenizer.decode(ids[begin:end], clean_up_tokenization_spaces=False)
        return len(text), text.endswith("\ufffd")

    spans, parted, before, done = list[tuple[int, int]](), 0, 0, 0
    anchor = lead = 0  # where decoding begins, and the characters from there that are done
    for place in range(len(ids)):
        length, broken = count(anchor, place + 1)
        if broken and place + 1 < len(ids):
            continue
        end = before + length - lead
        spans += [(done, end)] * (place + 1 - parted)
        parted, done = place + 1, end
        if place - anchor >= _NEAR:
            anchor, before = (
                place,
                end,
            )  # a token before, since what opens a text may lose its space
            lead = count(anchor, place + 1)[0]
    return np.asarray(spans, dtype=np.int64).reshape(-1, 2)


def _within(
    spans: NDArray[np.int64], chosen: NDArray[np.int64], characters: int
) -> NDArray[np.bool_]:
    """Which of the spans [spans, 2] hold characters of the chosen ones [chosen, 2] alone, and at
    least one."""
    inside = np.zeros(characters + 1, dtype=np.int64)
    for begin, end in chosen:
        inside[begin + 1 : end + 1] = 1
    total, (begin, end) = inside.cumsum(), spans.clip(max=characters).T
    result: NDArray[np.bool_] = (total[end] - total[begin] == end - begin) & (end > begin)
    return result
