"""Stretch the context of Hugging Face RoPE models without training.

    handle = ctxext.patch(model, "rerope:window=256+logn", length=16384)   # in place
    handle.remove()                                                        # as it was
    with ctxext.patched(model, "ntk:factor=8"): ...
    model, tokenizer = ctxext.load("tiny")
    results = ctxext.evaluate(model, "rerope", "4k", tokenizer=tokenizer)  # as ctxext eval does
    assert ctxext.check("baseline").passed                                 # it measures as it did

`ctxext.patches` is the registry of methods, and `ctxext.records.load(folder)` gives records as a
DataFrame; importing `ctxext` imports neither torch nor
transformers until `patch`, `patched` or `load` is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxext.advise.check import check
    from ctxext.advise.evaluate import Results, evaluate
    from ctxext.engine.patch import Handle, patch, patched
    from ctxext.engine.saved import load

__version__ = "0.1.0"
__all__ = ["Handle", "Results", "__version__", "check", "evaluate", "load", "patch", "patched"]

_LAZY = {
    "check": "ctxext.advise.check",
    "evaluate": "ctxext.advise.evaluate",
    "Results": "ctxext.advise.evaluate",
    "Handle": "ctxext.engine.patch",
    "patch": "ctxext.engine.patch",
    "patched": "ctxext.engine.patch",
    "load": "ctxext.engine.saved",
}


def __getattr__(name: str) -> Any:
    if name in ("patches", "results"):
        return importlib.import_module(f"ctxext.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ctxext' has no attribute {name!r}")
