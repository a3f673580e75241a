"""Changes to a model in place that can be undone, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import zlib
from collections.abc import Iterator
from typing import Any

# A copy of this code that a model folder carries has names of its own in transformers' registries.
_COPY = "" if __name__ == "ctxext.engine.switch" else f"_{zlib.crc32(__name__.encode()):08x}"


def registered(name: str) -> str:
    """What an attention of ours is registered as, in a table that all of a process shares."""
    return f"ctxext{_COPY}_{name}"


def replace(undo: contextlib.ExitStack, target: Any, name: str, value: Any) -> None:
    """Set an attribute of a module or config until `undo`."""
    kept = target.__dict__.get(name, undo)  # undo itself stands for "not there"
    target.__dict__[name] = value
    if kept is undo:
        undo.callback(target.__dict__.pop, name, None)
    else:
        undo.callback(target.__dict__.__setitem__, name, kept)


@contextlib.contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """`replace` for the length of a `with` block."""
    with contextlib.ExitStack() as undo:
        replace(undo, target, name, value)
        yield


def use_attention(model: Any, name: str, undo: contextlib.ExitStack) -> None:
    """Give this model configs of its own that name an attention: models may share one config."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if config is None or not hasattr(config, "_attn_implementation"):
            continue
        if id(config) not in copies:
            copies[id(config)] = copy.deepcopy(config)
            copies[id(config)]._attn_implementation = name
        replace(undo, module, "config", copies[id(config)])
