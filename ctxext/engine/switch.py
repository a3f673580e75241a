"""Changes to a model in place that can be undone, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ctxext.models.mark import MARK

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


def renew(module: nn.Module, as_is: Callable[..., Any], undo: contextlib.ExitStack) -> None:
    """Give a module a forward of its own that is its forward: compiled code, which does not look
    for new hooks, is compiled anew. Others may wrap it, and leave it when the patch is gone.

    Args:
        as_is: calls the function that is its first argument with all others.
    """
    renewed = functools.partial(as_is, module.forward)
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = renewed

    def back() -> None:
        if module.__dict__.get("forward") is not renewed:
            return
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own

    undo.callback(back)


def use_attention(model: Any, name: str, undo: contextlib.ExitStack) -> None:
    """Let this model's configs, and no other model's, name an attention until `undo`."""
    own_configs(model, undo, name)


def own_configs(model: Any, undo: contextlib.ExitStack, attention: str | None = None) -> None:
    """Give this model copies of its configs until `undo`: models may share one config.

    What is edited in the copies meanwhile goes over to the originals, for it is the model's own.

    Args:
        attention: the attention that the copies name; by default what the originals do.
    """
    memo: dict[int, Any] = {}  # one for all, so that a part's config stays in the whole's
    modules = [module for module in model.modules() if _is_config(module.__dict__.get("config"))]
    pairs = [pair for module in modules for pair in _copied(module.__dict__["config"], memo)]
    originals = {id(copied): original for original, copied in pairs}
    for module in modules:
        module.__dict__["config"] = memo[id(module.__dict__["config"])]
        if attention is not None:
            module.__dict__["config"]._attn_implementation = attention
    copies = [(copied, _values(copied)) for copied in {id(c): c for _, c in pairs}.values()]

    def give_back() -> None:
        for copied, before in copies:
            _carry_over(copied, before, originals)
        for module in {id(m): m for m in (*modules, *model.modules())}.values():
            config = module.__dict__.get("config")
            if id(config) in originals:
                module.__dict__["config"] = originals[id(config)]
            elif _is_config(config):  # one that was set meanwhile, which may be made of a copy
                original = pairs[0][0]
                if config._attn_implementation == attention:
                    config._attn_implementation = original._attn_implementation
                if MARK not in vars(original):
                    vars(config).pop(MARK, None)

    undo.callback(give_back)


def _is_config(x: Any) -> bool:
    """Whether it is a transformers config, by which modules choose their attention."""
    return hasattr(x, "_attn_implementation")


def _copied(config: Any, memo: dict[int, Any]) -> list[tuple[Any, Any]]:
    """A config, and those in it, with their copies."""
    parts = [pair for x in vars(config).values() if _is_config(x) for pair in _copied(x, memo)]
    return [(config, copy.deepcopy(config, memo)), *parts]


def _values(config: Any) -> dict[str, Any]:
    """A config's values as they are now; of configs in it, which they are."""
    return {k: x if _is_config(x) else copy.deepcopy(x) for k, x in vars(config).items()}


def _carry_over(copied: Any, before: dict[str, Any], originals: dict[int, Any]) -> None:
    """Do to a config what was done to its copy since this had the values `before`."""
    original, now = vars(originals[id(copied)]), vars(copied)
    for key in before.keys() - now.keys():
        original.pop(key, None)
    for key, value in now.items():
        if key != MARK and not (key in before and _same(value, before[key])):
            original[key] = originals.get(id(value), value)


def _same(value: Any, before: Any) -> bool:
    if _is_config(value) or _is_config(before):
        return value is before
    try:
        return bool(value == before)
    except (ValueError, RuntimeError):  # arrays of several numbers
        return False
