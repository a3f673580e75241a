"""What a model class needs to be patched whenever its models run, as in folders that carry this.

class CtxextLlamaForCausalLM(Carried, LlamaForCausalLM):
    config_class = CtxextLlamaConfig    # with an object `ctxext` of SETTINGS
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from ctxext.engine.compiled import uncompiled
from ctxext.engine.patch import Handle, patch, refit
from ctxext.errors import UnsupportedModelError

SETTINGS = {"spec": str, "length": int, "trained": int, "own_scaling": str}


class Place(NamedTuple):
    """Where a model's weights are, by which an attention path is chosen."""

    device: torch.device
    dtype: torch.dtype


class Carried:
    """Before a transformers model class: its models are patched as their config says.

    They are so when their weights are loaded; made in another way, at their first forward. Moved
    to another device or dtype, they choose their attention path anew. A model whose weights are
    offloaded so that it cannot be patched does not run.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _share_conversions(cls)

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)  # type: ignore[call-arg]
        self._ctxext: Handle | None = None
        self._ctxext_place: Place | None = None
        model: Any = self
        model.base_model.register_forward_pre_hook(self._ctxext_before, with_kwargs=True)

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """A patched model; arguments as those of transformers."""
        loaded = super().from_pretrained(*args, **options)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._ctxext_settle()
        return loaded

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the weights are the stock class's. Of others transformers leaves out buffers that a
        model without weights of its own fills, which then hold anything."""
        return False

    def generate(self, *args: Any, **options: Any) -> Any:
        """Text from a patched model; arguments as those of transformers."""
        before = self.__dict__.get("generate")
        self._ctxext_settle()  # which may give the model a `generate` of its own, over this one
        own = self.__dict__.get("generate")
        if own is None or own is before:
            own = super().generate  # type: ignore[misc]
        return own(*args, **options)

    @property
    def ctxext(self) -> Handle | None:
        """The patch: its spec, notes, attention path, and `remove`; None without weights."""
        self._ctxext_settle()
        return self._ctxext

    @uncompiled
    def _ctxext_before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A pre-hook of the base model: hooks that the patch adds are run for this forward too."""
        known = set(module._forward_pre_hooks)
        self._ctxext_settle()
        given = (*args, *kwargs.values())
        if self._ctxext_place is None and not any(getattr(x, "is_meta", False) for x in given):
            raise UnsupportedModelError(
                "the model's first weights are offloaded, so that it cannot be patched: load it "
                "without offloading, or with its embedding in memory"
            )
        for key, hook in list(module._forward_pre_hooks.items()):
            if key not in known:
                args, kwargs = hook(module, args, kwargs) or (args, kwargs)
        return args, kwargs

    def _ctxext_settle(self) -> None:
        """Patch the model where it is, unless it has no weights yet."""
        model: Any = self
        place = Place(model.device, model.dtype)
        if place == self._ctxext_place or place.device.type == "meta":
            return
        before, self._ctxext_place = self._ctxext_place, place  # the probe runs a forward
        try:
            with torch.inference_mode(False), torch.autocast(place.device.type, enabled=False):
                if self._ctxext is None:
                    spec, length, trained, own = _settings(model.config)
                    options = {"train_len": trained, "own_scaling": own}
                    self._ctxext = patch(model, spec, length, **options)
                else:
                    refit(model, self._ctxext)
        except BaseException:
            self._ctxext_place = before
            raise


def _settings(config: Any) -> tuple[Any, ...]:
    """Spec, L, T, and what becomes of the model's own scaling, as the config says."""
    given = getattr(config, "ctxext", None)
    if not isinstance(given, dict):
        raise UnsupportedModelError("the config has no 'ctxext' object: take that of the folder")
    for name, kind in SETTINGS.items():
        if not isinstance(given.get(name), kind):
            raise UnsupportedModelError(
                f"bad {name} {given.get(name)!r} in the config's 'ctxext' object: it is no "
                f"{kind.__name__}"
            )
    return tuple(given[name] for name in SETTINGS)


def _share_conversions(cls: Any) -> None:
    """Weights are renamed and merged at loading as for the stock class, by class and type names."""
    stock = cls.__mro__[cls.__mro__.index(Carried) + 1]
    names = {
        cls.__name__: stock.__name__,
        cls.config_class.model_type: cls.config_class.__base__.model_type,
    }
    for own, theirs in names.items():
        mapping = get_checkpoint_conversion_mapping(theirs)
        if mapping is not None:
            register_checkpoint_conversion_mapping(own, mapping, overwrite=True)
