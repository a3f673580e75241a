"""Text → token ids; windows → token scores, with logits for one chunk of positions at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctxext.errors import UnsupportedModelError
from ctxext.measure.growing import GrowingCache
from ctxext.measure.head import Head
from ctxext.measure.pieces import MARGIN, pieces
from ctxext.models.calls import cache_name
from ctxext.models.prompting import frame
from ctxext.tasks.base import TokenScores
from ctxext.tasks.data import Text, load_text
from ctxext.tasks.windows import Windows

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32
_NO_TOKENS = tuple(
    torch.empty(0, dtype=t) for t in (torch.long, torch.long, torch.double, torch.bool)
)


def tokenise(text: Text, tokenizer: Any, at_most: int | None) -> Tensor:
    """The documents' token ids [tokens], a blank line after each but the last, nothing special.

    Of a text that is cut off its last tokens do not count, since they may be others with what
    follows; where there are too few without them, all of it is read.

    Args:
        at_most: stop at so many tokens; None for all.
    """
    wanted = math.inf if at_most is None else at_most + (4 * MARGIN if text.cut else 0)
    found, count = [torch.empty(0, dtype=torch.long)], 0
    for ids in itertools.chain.from_iterable(pieces(tokenizer, part) for part in _parts(text)):
        found.append(torch.tensor(ids, dtype=torch.long))
        count += len(ids)
        if count >= wanted:
            break
    if text.cut and count < wanted:
        return tokenise(load_text(text.name), tokenizer, at_most)
    return torch.cat(found)[:at_most]


def _parts(text: Text) -> Iterator[str]:
    """The documents, with what stands between them."""
    for number, document in enumerate(text.documents, 1):
        yield document + "\n\n" if number < len(text.documents) else document


def start_token(tokenizer: Any) -> int | None:
    """The id of the tokenizer's own BOS if it adds one, else None."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos if bos is not None and frame(tokenizer).before[:1] == (bos,) else None


def score(
    model: Any,
    windows: Windows,
    batch: int,
    advance: Callable[[int], None] = lambda tokens: None,
    chunk: int | None = None,
) -> TokenScores:
    """Score the tokens of windows.

    Args:
        model: a causal language model, patched or not, in evaluation mode.
        batch: windows read at once.
        advance: told the tokens read, batch by batch.
        chunk: tokens of each window read at once, through a cache; None for all. The model must
            be one that `reads_in_parts`.

    Raises:
        UnsupportedModelError: it does not keep what a chunk says in the cache.
    """
    device = model.get_input_embeddings().weight.device
    columns: list[tuple[Tensor, ...]] = [_NO_TOKENS]
    head: Head | None = None
    with torch.inference_mode():
        for begin in range(0, len(windows), batch):
            some = slice(begin, begin + batch)
            ids, scored = windows.ids(some).to(device), windows.scored(some)
            nll, hit = torch.zeros(scored.shape, dtype=torch.double), torch.zeros_like(scored)
            head = head or Head(model, ids[:1])
            for start, hidden in _hidden(model, head, ids, chunk):
                here = slice(start, start + hidden.shape[1])
                mask = scored[:, here]
                if not mask.any():
                    continue
                wanted = hidden[:, : mask.shape[1]][mask.to(hidden.device)]
                found = _score_hidden(head, wanted, ids[:, 1:][:, here][mask.to(device)])
                nll[:, here][mask], hit[:, here][mask] = found[0].cpu().double(), found[1].cpu()
            window, before = scored.nonzero(as_tuple=True)
            columns.append((window + begin, before + 1, nll[scored], hit[scored]))
            advance(ids.numel())
    arrays = [np.asarray(torch.cat(column)) for column in zip(*columns, strict=True)]
    return TokenScores(windows.length, arrays[0], arrays[1], arrays[2], arrays[3])


def _hidden(model: Any, head: Head, ids: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
    """Hidden states [windows, n, d] of consecutive positions, and the first one's position.

    Through a cache the last position is not read, since nothing follows it.
    """
    if chunk is None:
        yield 0, head.read(input_ids=ids, use_cache=False)
        return
    cache, end = GrowingCache(model.config), ids.shape[1] - 1
    cache.expect(end)
    for start in range(0, end, chunk):
        part = ids[:, start : min(start + chunk, end)]
        hidden = head.read(input_ids=part, use_cache=True, **{cache_name(model): cache})
        if cache.get_seq_length() != start + part.shape[1]:
            raise UnsupportedModelError(f"{type(model).__name__} does not keep what it has read")
        yield start, hidden


def _score_hidden(head: Head, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """nll and hit [n] of hidden states [n, d] against the tokens [n] that follow."""
    chunk = max(1, LOGITS_AT_ONCE // head.vocabulary)
    nll, hit = [], []
    for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True):
        logits = head.logits(h)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        right = t.to(logits.device)
        nll.append(torch.nn.functional.cross_entropy(wide, right, reduction="none"))
        hit.append(wide.argmax(-1) == right)
    return torch.cat(nll), torch.cat(hit)
