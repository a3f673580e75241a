"""Llama whose attention weights are relu²(q·k/√d) over a divisor, in the place of softmax.

As in a gated attention unit (arXiv 2202.10447; kexue.fm 8934 and 9019): the divisor is n, the
sequence's length. With rows of one length it is a constant in training, so that nothing says what
it should be at another length: n is `relu2_length` where that is given, else the number of keys.
With `relu2_normalised` the divisor is the sum of a query's relu², so that weights add up to 1 as
under softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

TINY = 1e-6  # of a sum of relu² that may be 0, where no key is taken
QUERIES = 1024  # whose scores are held at a time


def relu2_weights(scores: Tensor, length: int | None, normalised: bool) -> Tensor:
    """Attention weights of scores, masked ones at the lowest.  [..., n, m] -> [..., n, m]"""
    weights = scores.relu().square()
    if normalised:
        return weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights / (length or scores.shape[-1])


def relu2_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function; query, key and value have as many heads.

    [b, h, n, d], [b, h, m, d], a mask that is added to scores -> [b, n, h, d]
    """
    config: Any = module.config
    scaling = scaling or query.shape[-1] ** -0.5
    found = []
    for start in range(0, query.shape[-2], QUERIES):
        rows = slice(start, start + QUERIES)
        scores = (query[:, :, rows] @ key.mT).float() * scaling
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, rows]
        weights = relu2_weights(scores, config.relu2_length, config.relu2_normalised)
        found.append(weights.to(value.dtype) @ value)
    return torch.cat(found, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("relu2", relu2_attention)
AttentionMaskInterface.register("relu2", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


class Relu2Config(LlamaConfig):
    model_type = "llama_relu2"
    relu2_length: int | None = None
    relu2_normalised: bool = False


class Relu2ForCausalLM(LlamaForCausalLM):
    config_class = Relu2Config

    def __init__(self, config: Relu2Config) -> None:
        config._attn_implementation = "relu2"  # whatever it is loaded with
        super().__init__(config)


Relu2Config.register_for_auto_class()
Relu2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
