"""How token tasks cut a text's tokens into windows."""

from __future__ import annotations

import torch
from torch import Tensor

from ctxext.errors import UsageError
from ctxext.tasks.base import Windows


def cut(ids: Tensor, length: int, start: int | None, limit: int | None) -> Windows:
    """Consecutive windows that do not overlap, every token but the first scored."""
    payload = length - (start is not None)
    count = min(len(ids) // payload, limit or len(ids)) if payload else 0
    _check(count, ids, length)
    windows = ids[: count * payload].view(count, payload)
    return Windows(_opened(windows, start), torch.ones(count, dtype=torch.long))


def tails(
    ids: Tensor, length: int, start: int | None, limit: int | None, span: int, tail: int
) -> Windows:
    """The last `length` tokens of each consecutive span, the last `tail` − 1 of them scored.

    The ends, and so the scored tokens, are the same for every length up to `span`; all in tokens.
    """
    payload, step = length - (start is not None), span - (start is not None)
    count = min(len(ids) // step, limit or len(ids)) if step else 0
    _check(count, ids, span)
    windows = ids[: count * step].view(count, step)[:, step - payload :]
    return Windows(_opened(windows, start), torch.full((count,), length - tail + 1))


def slide(ids: Tensor, length: int, start: int | None, limit: int | None, stride: int) -> Windows:
    """Windows `stride` tokens apart: each token is scored once, by the first that it is in.

    The first window scores all but its first token, each other one the tokens that no window
    before it held. The last one ends with the text.
    """
    payload = length - (start is not None)
    _check(len(ids) // payload if payload else 0, ids, length)
    begins = list(range(0, len(ids) - payload + 1, stride))
    if begins[-1] + payload < len(ids):
        begins.append(len(ids) - payload)
    begins = begins[:limit]
    ends = [1 - (start is not None), *(begin + payload for begin in begins[:-1])]
    first = [end - begin + (start is not None) for begin, end in zip(begins, ends, strict=True)]
    windows = torch.stack([ids[begin : begin + payload] for begin in begins])
    return Windows(_opened(windows, start), torch.tensor(first))


def repeat(ids: Tensor, length: int, start: int | None, limit: int | None, passage: int) -> Windows:
    """As `cut`, but each window says its own first `passage` tokens again and again."""
    whole, first = cut(ids, length, start, limit)
    opening = int(start is not None)
    said = whole[:, opening : opening + passage]
    again = said.repeat(1, -(-length // said.shape[1]))[:, : length - opening]
    return Windows(_opened(again, start), first)


def _opened(windows: Tensor, start: int | None) -> Tensor:
    """The windows, each with the tokenizer's BOS before it where there is one."""
    if start is None:
        return windows
    return torch.cat((torch.full((len(windows), 1), start), windows), 1)


def _check(count: int, ids: Tensor, length: int) -> None:
    if count == 0:
        raise UsageError(
            f"the data has {len(ids)} tokens, fewer than one window of {length}: "
            "give longer data or a smaller --len"
        )
