"""The entropy of attention by position, measured on text with a model, patched or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctxext.advise.explain.angles import Floats
from ctxext.engine.chunked import chunked_entropy
from ctxext.engine.positions import Positions
from ctxext.engine.watch import watching
from ctxext.errors import CtxextError, UnsupportedModelError
from ctxext.tasks.windows import Windows


@dataclass(frozen=True)
class Entropy:
    """Entropy of attention weights, a mean over heads and windows, in nats.

    Attributes:
        nats: by layer and position [layers, length].
        keys: how many keys a layer's query sees there, a sink among them [layers, length].
    """

    nats: Floats
    keys: Floats

    @property
    def ceiling(self) -> Floats:
        """The entropy of attention that is spread evenly, ln of the keys [layers, length]."""
        return np.log(np.maximum(self.keys, 1))

    def far(self, trained: int) -> Floats:
        """The layers that see more than T keys; all of them where none does [layers], bool."""
        reaching = self.keys[:, -1] > trained
        return reaching if reaching.any() else np.ones(len(self.nats), bool)


def measure(
    model: Any, windows: Windows, advance: Callable[[int], None] = lambda tokens: None
) -> Entropy:
    """The entropy in every layer, in the order in which they run.

    Memory is linear in length: scores are held for a chunk of queries alone, in float32 (float64
    where the model is).

    Args:
        model: a causal language model, patched or not, in evaluation mode.
        advance: told the tokens read, window by window.

    Raises:
        UnsupportedModelError: no layer runs through transformers' attention interface.
        CtxextError: an entropy is not finite.
    """
    device = model.get_input_embeddings().weight.device
    total: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for number in range(len(windows)):
            ids = windows.ids(slice(number, number + 1)).to(device)
            found: list[tuple[Tensor, Tensor]] = []
            with watching(model, lambda *scored, into=found: into.append(_of_layer(*scored))):
                model.base_model(input_ids=ids, use_cache=False)
            if why := _why_not(found, total, windows.length):
                raise UnsupportedModelError(
                    f"{model.config.get_text_config().model_type} {why}: --no-entropy explains it "
                    "without running it"
                )
            pairs = zip(total, found, strict=True)
            total = [(a + c, b + d) for (a, b), (c, d) in pairs] if total else found
            advance(ids.numel())
    nats, keys = (torch.stack(each).numpy() / len(windows) for each in zip(*total, strict=True))
    if not np.isfinite(nats).all():
        raise CtxextError("the entropy is not finite: try --dtype float32")
    return Entropy(np.maximum(nats, 0.0), keys)


def _why_not(found: list[Any], before: list[Any], length: int) -> str | None:
    """What is wrong with what was found in a window's layers, in a few words."""
    if not found:
        return "does not use transformers' attention interface"
    if before and len(found) != len(before):
        return "takes another way through its layers each time"
    if any(len(keys) != length for _, keys in found):
        return "has attention whose queries or keys are not one for each token"
    return None


def _of_layer(
    query: Tensor,
    key: Tensor,
    parts: Any,
    turn: Any,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
    at: Positions | None,
) -> tuple[Tensor, Tensor]:
    """One row's entropy, and the keys seen, at each position: [n] each, float64.

    Both are empty where keys are not one for each query.
    """
    n = query.shape[2]
    if n != key.shape[2]:
        return torch.empty(0), torch.empty(0)
    nats, keys = chunked_entropy(query, key, parts, turn, scaling, mask, softcap, sinks, at)
    return nats[0].double().mean(0).cpu(), keys[0].double().cpu()
