"""Llama whose keys have one length: softmax(q·k/‖k‖), kexue.fm 9859 (Transformer upgrade 15).

The model's own 1/√d stays, so keys are scaled to length √d, before they are rotated, which changes
no length. Queries are as they were. No parameter is added.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class KeyNormConfig(LlamaConfig):
    model_type = "llama_key_norm"


class OneLength(nn.Linear):
    """A projection to heads of `head_dim`, each scaled to length √head_dim."""

    head_dim: int

    def forward(self, input: Tensor) -> Tensor:
        heads = super().forward(input).unflatten(-1, (-1, self.head_dim))
        return F.rms_norm(heads, (self.head_dim,)).flatten(-2)


class KeyNormForCausalLM(LlamaForCausalLM):
    config_class = KeyNormConfig

    def __init__(self, config: KeyNormConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.k_proj.__class__ = OneLength
            layer.self_attn.k_proj.head_dim = config.head_dim


KeyNormConfig.register_for_auto_class()
KeyNormForCausalLM.register_for_auto_class("AutoModelForCausalLM")
