"""Text → token ids; windows → token scores, with logits for one chunk of positions at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from ctxext.data import Text
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.tasks.base import TokenScores, Windows

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32
_NO_TOKENS = tuple(
    torch.empty(0, dtype=t) for t in (torch.long, torch.long, torch.double, torch.bool)
)


def tokenise(text: Text, tokenizer: Any, at_most: int | None) -> Tensor:
    """The documents' token ids [tokens], a blank line after each but the last, nothing special.

    Args:
        at_most: stop at so many tokens; None for all.
    """
    pieces: list[Tensor] = []
    last = len(text.documents) - 1
    for i, document in enumerate(text.documents):
        piece = document if i == last else document + "\n\n"
        ids = _encode(tokenizer, piece, add_special_tokens=False)
        pieces.append(torch.tensor(ids, dtype=torch.long))
        if at_most is not None and sum(map(len, pieces)) >= at_most:
            break
    return torch.cat(pieces)[:at_most]


def _encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """The text's token ids; UsageError where the tokenizer fails, panics of its core included."""
    try:
        ids: list[int] = tokenizer(text, verbose=False, **options).input_ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) cannot "
            f"encode the data: {error}"
        ) from error
    return ids


def start_token(tokenizer: Any) -> int | None:
    """The id of the tokenizer's own BOS if it adds one, else None."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = _encode(tokenizer, "a")
    return bos if bos is not None and ids[:1] == [bos] else None


def score(
    model: Any, windows: Windows, batch: int, advance: Callable[[int], None] = lambda tokens: None
) -> TokenScores:
    """Score the tokens of windows.

    Args:
        model: a causal language model, patched or not, in evaluation mode.
        batch: windows read at once.
        advance: told the tokens read, batch by batch.
    """
    device = model.get_input_embeddings().weight.device
    columns: list[tuple[Tensor, ...]] = [_NO_TOKENS]
    with torch.inference_mode():
        for begin in range(0, len(windows), batch):
            some = slice(begin, begin + batch)
            ids, scored = windows.ids(some).to(device), windows.scored(some)
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            wanted = hidden[scored.to(hidden.device)]
            nll, hit = _score_hidden(model, wanted, ids[:, 1:][scored.to(device)])
            window, before = scored.nonzero(as_tuple=True)
            columns.append((window + begin, before + 1, nll.cpu().double(), hit.cpu()))
            advance(ids.numel())
    found = (np.asarray(torch.cat(column)) for column in zip(*columns, strict=True))
    return TokenScores(windows.length, *found)


def _score_hidden(model: Any, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """nll and hit [n] of hidden states [n, d] against the tokens [n] that follow."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    chunk = max(1, LOGITS_AT_ONCE // vocabulary)
    nll, hit = [], []
    for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True):
        with _base_gives(model, h[None]):
            logits = model(input_ids=t[None], use_cache=False).logits[0]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        right = t.to(logits.device)
        nll.append(torch.nn.functional.cross_entropy(wide, right, reduction="none"))
        hit.append(wide.argmax(-1) == right)
    return torch.cat(nll), torch.cat(hit)


@contextlib.contextmanager
def _base_gives(model: Any, hidden: Tensor) -> Iterator[None]:
    """The model's head alone: its base returns `hidden`, so each family scales logits its way."""
    base = model.base_model
    if base is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no base model apart from its head")
    kept = base.__dict__.get("forward")
    base.forward = lambda *args, **kwargs: MoeModelOutputWithPast(last_hidden_state=hidden)
    try:
        yield
    finally:
        if kept is None:
            del base.forward
        else:
            base.forward = kept
