"""A model that the caller has loaded, in place of one that is named."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from ctxext.errors import UsageError

_PLACES = ("_name_or_path", "transformers_version", "_commit_hash")  # in a config, not of the model


@dataclass(frozen=True, eq=False)
class Held:
    """A causal language model in memory, and its tokenizer; neither is changed.

    Attributes:
        model: as transformers loads it, in whatever wraps it.
    """

    model: Any
    tokenizer: Any

    @property
    def config(self) -> Any:
        """A copy of the model's config."""
        return copy.deepcopy(self.model.config)

    @property
    def device(self) -> str:
        """Where the model is, as torch has it."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """The type of its weights, as Dtype has it."""
        return str(self.model.dtype).removeprefix("torch.")

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of config, tokenizer and all weights.

        Raises:
            UsageError: some weights are not in memory.
        """
        settings = {k: v for k, v in self.model.config.to_dict().items() if k not in _PLACES}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(_tables(self.tokenizer).encode("utf-8", "surrogatepass"))
        for name, tensor in sorted(self.model.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue  # what a quantizer keeps beside its tensors
            if tensor.is_meta:
                raise UsageError(
                    f"the model's weight {name!r} is not in memory: give the model by its name"
                )
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            whole = tensor.detach().reshape(-1).contiguous().cpu()
            digest.update(whole.view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _tables(tokenizer: Any) -> str:
    """What a tokenizer goes by."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    known = core.to_str() if core is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return f"{type(tokenizer)}\0{known}\0{getattr(tokenizer, 'chat_template', None)}"
