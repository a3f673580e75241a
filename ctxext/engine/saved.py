"""A model as it was saved: patched, where it was patched then."""

from __future__ import annotations

import logging
from typing import Any

from ctxext.engine.patch import patch
from ctxext.models.aliases import taken
from ctxext.models.loading import Source, load_saved, load_tokenizer
from ctxext.models.mark import read_mark

_LOG = logging.getLogger("ctxext")


def load(name: str, **options: Any) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer.

    One that was saved while it was patched is patched again, as a line says; `model.ctxext` is the
    handle, and its `remove()` leaves the plain model.

    Args:
        name: `tiny`, an alias, a Hub id, a folder or a GGUF file.
        options: the other fields of `Source`: revision, trust_remote_code, dtype, device, ….

    Raises:
        UsageError: no such model, or one that transformers cannot load, or that does not take the
            patch it was saved with; the message says why.
    """
    if line := taken(name):
        _LOG.warning("%s", line)
    source = Source(name, **options)
    model, given = load_saved(source)
    tokenizer = load_tokenizer(source)
    if given is not None:
        mark = read_mark(given)
        options = {"train_len": source.train_len or mark.trained, "own_scaling": mark.own_scaling}
        patch(model, mark.spec, mark.length, attn=source.attn, **options)
        _LOG.warning("model %r is patched with %s, as it was when it was saved", name, mark.spec)
    return model, tokenizer
