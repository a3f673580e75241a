"""Every causal language model type of the installed transformers, made tiny and random.

One rule for all: a config's own defaults, with every size by its name made small. `SPECIAL` has
what a rule cannot know. `survey` puts methods on a type and says what it takes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

import ctxext
from ctxext.errors import UnsupportedModelError
from ctxext.models.calls import cache_name

TRAINED = 64  # tokens
LENGTH = 100  # beyond T, so that every method has something to do
PAD = 7
LAYERS = 4
VOCABULARY = 2048  # of the shipped tokenizer, with which commands read
LARGEST = 2e7  # parameters: a larger model was not made tiny

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "max_position_embeddings": TRAINED, "hidden_size": 64, "hidden_size_global": 64,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "ffn_dim"), 64),
    **dict.fromkeys(
        (
            "moe_intermediate_size", "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size",
            "shared_intermediate_size", "dense_intermediate_size",
        ), 32,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # latent attention
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    # heads of global or of sliding layers, where they differ
    "global_head_dim": 32, "num_global_key_value_heads": 2, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 16, "swa_v_head_dim": 16,
    # Gemma 3n and 4
    "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0, "altup_num_inputs": 2,
    "laurel_rank": 8,
    # state-space and linear-attention layers
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_heads": 8, "mamba_d_head": 16,
    "mamba_n_groups": 1, "mamba_expand": 2, "mamba_chunk_size": 16, "n_mamba_heads": 8,
    "mamba_d_ssm": 128, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_head_dim": 16,
    "chunk_size": 16,
    # sparse attention
    "index_head_dim": 16, "index_n_heads": 2,
    # what leads from other parts to the language model
    "adapter_in_dim": 64, "adapter_input_size": 64, "adapter_out_dim": 64,
}  # fmt: skip
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")
KINDS = ["sliding_attention", "full_attention"] * (LAYERS // 2)
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4],
    },
    "cohere_compass_text": {
        "layer_types": KINDS,
        "rope_parameters": {kind: {**PLAIN_ROPE, "mrope_section": [2, 2, 4]} for kind in KINDS},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4},
    },
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 2, "head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note_text": {
        "head_dim": 16, "shared_experts_intermediate_size": 32, "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16,
        "swa_head_dim": 20, "swa_qk_nope_head_dim": 12, "swa_v_head_dim": 16,
    },
    "dory": {
        "layer_types": KINDS, "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1,
    },
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "qwen4_exp_text": {
        "indexer_budget": 64, "indexer_compress_ratio": 4, "indexer_n_heads": 2,
        "indexer_head_dim": 16, "indexer_kv_heads": 1, "hc_lowrank": 8, "ple_embed_dim": 16,
        "ngram_vocab_size_base": 50, "split_ngram_parts": 2,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "use_mem_rope": True},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_text": {"global_head_dim": 32, "num_global_key_value_heads": 2},
    "gemma4_unified_text": {"global_head_dim": 32, "num_global_key_value_heads": 2},
    "granitemoehybrid": {
        "position_embedding_type": "rope", "layer_types": ["mamba", "attention"] * 2,
    },
}  # fmt: skip


NOT_MADE = {
    "gemma4_unified_assistant": "it drafts for a larger model, whose keys it reads",
    "gemma3n": "its vision part needs timm; its text part is gemma3n_text",
}


def model_types() -> list[str]:
    """The causal model types whose code, or whose config, speaks of rotary embeddings."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if _rotates(kind)]


def _rotates(kind: str) -> bool:
    family = CONFIG_MAPPING[kind]
    model = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[family].__module__]
    if "rotary" in inspect.getsource(model).lower():
        return True
    try:  # a wrapper may have a language model of another type
        return getattr(family().get_text_config(), "rope_parameters", None) is not None
    except Exception:  # encoders and decoders, of which none is the language model
        return False


def tiny_config(kind: str, **changes: Any) -> Any:
    """A config of the model type with every size made small."""
    family = CONFIG_MAPPING[kind]
    plain = family()
    text = plain.get_text_config()
    special = {**SPECIAL.get(text.model_type, {}), **changes}
    small = {**_shrink(text, SIZES | special), **special}
    others = {
        name: _shrink(part, SIZES)
        for name in getattr(plain, "sub_configs", {})
        if hasattr(part := getattr(plain, name, None), "to_dict") and part is not text
    }
    if text is plain:
        return family(**{**others, **small})
    name = next(key for key in plain.sub_configs if getattr(plain, key, None) is text)
    return family(**{**others, name: small})


def _shrink(plain: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    known, names = plain.to_dict(), dict(plain.attribute_map or {})
    taken = set(inspect.signature(type(plain).__init__).parameters)
    small: dict[str, Any] = {}
    for name, size in sizes.items():
        own = names.get(name, name)
        if own in known or own in taken:
            small[own] = size
    if "kv_lora_rank" in small:  # every head has keys of its own
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
        small.pop("head_dim", None)
    for name in LISTS:
        if isinstance(known.get(name), list | tuple) and name not in sizes:
            small[name] = _few(list(known[name]))
    return small


def _few(kinds: list[Any]) -> list[Any]:
    """LAYERS of a list of layers, with every kind in it."""
    some = list(dict.fromkeys(map(str, kinds)))
    wanted = [next(x for x in kinds if str(x) == kind) for kind in some]
    return (wanted * LAYERS)[:LAYERS]


def tiny_model(kind: str, **changes: Any) -> Any:
    """A random float32 model of the type, in eager attention.

    Raises:
        ValueError: it would not be tiny.
    """
    config = tiny_config(kind, **changes)
    with torch.device("meta"):
        size = sum(
            p.numel()
            for p in AutoModelForCausalLM.from_config(
                config, attn_implementation="eager"
            ).parameters()
        )
    if size > LARGEST:
        raise ValueError(f"{kind} has {size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, weight in model.named_parameters():  # norms and scales that are not all alike
        if weight.ndim == 1 and (name.endswith("weight") or weight.unique().numel() == 1):
            size = 1 if name.endswith("weight") else weight.abs()
            weight.data.add_(torch.empty_like(weight).uniform_(-0.3, 0.3) * size)
    return model


# What a type takes -------------------------------------------------------------------------------

FREQUENCY = ("ntk:factor=4", "yarn:factor=4")
INFINITE = "rerope:window=4096"
DISTANCE = (
    INFINITE,
    "rerope:window=16",
    "leaky-rerope:window=9,leak=3+logn",
    "dca:chunk=20,local=9",
    "lm-infinite:window=16,sinks=4",
)
WHOLE = ("yarn:factor=4", INFINITE)  # which others of their kind read in parts
EXACT, AS_IS = "exact", "as exact as unpatched"


def survey(kind: str, **changes: Any) -> dict[str, str]:
    """What a model type takes: `frequency`, `distance`, `decoding`, each `yes` or a reason.

    Raises:
        AssertionError: it takes a method and gives wrong numbers.
    """
    if kind in NOT_MADE:
        return dict.fromkeys(("frequency", "distance", "decoding"), f"not tried: {NOT_MADE[kind]}")
    model = tiny_model(kind, **changes)
    row = {"frequency": "yes", "distance": "yes", "decoding": EXACT}
    for name, spec in (("frequency", FREQUENCY[0]), ("distance", INFINITE)):
        try:
            ctxext.patch(model, spec).remove()
        except UnsupportedModelError as error:
            row[name] = _reason(error)
    if "yes" not in (row["frequency"], row["distance"]):
        return {**row, "decoding": row["frequency"]}
    ids = torch.randint(3, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    plain = _whole(model, ids)
    tolerance = max(1e-5, 16 * _conditioning(model, ids, plain))
    own = {name: _off(read, model, ids, plain, skip) for name, (read, skip) in READS.items()}
    for spec in (*(FREQUENCY if row["frequency"] == "yes" else ()), "logn", *DISTANCE):
        try:
            handle = ctxext.patch(model, spec, 4 * LENGTH)
        except UnsupportedModelError as error:
            if spec in FREQUENCY:
                raise AssertionError(f"{kind} took {FREQUENCY[0]} but not {spec}") from error
            row["distance"], row["decoding"] = _reason(error), "frequency methods alone"
            continue
        ours = _whole(model, ids)
        assert torch.isfinite(ours).all(), (kind, spec)
        for read_name, (read, skip) in READS.items() if spec not in WHOLE else ():
            if isinstance(own[read_name], str) or math.isnan(own[read_name]):
                continue  # the unpatched model cannot
            off = _off(read, model, ids, ours, skip)
            allowed = max(tolerance, 4 * own[read_name])
            if "positions" in str(off) and own[read_name] > 0.1:
                continue  # the unpatched model counts positions wrong, and a method refuses that
            assert not isinstance(off, str), (kind, spec, read_name, off)
            assert off <= allowed, (kind, spec, read_name, off, allowed)
        handle.remove()
        if spec == INFINITE:
            assert _relative(ours, plain) <= tolerance, (kind, spec, _relative(ours, plain))
        elif spec in DISTANCE:
            with ctxext.patched(model, spec, 4 * LENGTH, attn="dense"):
                dense = _whole(model, ids)
            assert _relative(ours, dense) <= tolerance, (kind, spec, _relative(ours, dense))
    assert torch.equal(_whole(model, ids), plain), kind
    if isinstance(own["steps"], str):
        row["decoding"] = "no cache" if row["decoding"] == EXACT else row["decoding"]
    elif row["decoding"] == EXACT and own["steps"] > tolerance:
        row["decoding"] = AS_IS
    return row


def _whole(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _steps(model: Any, ids: Tensor) -> Tensor:
    """A prefill, and the last 20 tokens one by one."""
    name = cache_name(model)
    with torch.no_grad():
        out = model(ids[:, : LENGTH - 20], use_cache=True)
        logits = [out.logits]
        for i in range(LENGTH - 20, LENGTH):
            out = model(ids[:, i : i + 1], use_cache=True, **{name: out[name]})
            logits.append(out.logits)
    return torch.cat(logits, 1)


def _padded(model: Any, ids: Tensor) -> Tensor:
    """All but the last PAD tokens, as the left-padded row of a batch."""
    short = torch.cat((torch.zeros_like(ids[:, :PAD]), ids[:, :-PAD]), 1)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :PAD] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            torch.cat((short, ids)), attention_mask=mask, position_ids=positions, use_cache=False
        )
    row: Tensor = out.logits[:1, PAD:]
    return row


READS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "steps": (_steps, 0),
    "padded": (_padded, PAD),
}


def _reason(error: UnsupportedModelError) -> str:
    """What an error says after the name of the model type."""
    text = str(error).partition("; ")[0]
    return text.partition(": ")[2] if ": " in text else " ".join(text.split()[1:])


def _off(
    read: Callable[[Any, Tensor], Tensor], model: Any, ids: Tensor, whole: Tensor, skip: int
) -> Any:
    """How far a reading is off one forward, relative to the largest logit; or what it raised."""
    try:
        return _relative(read(model, ids), whole[:, : LENGTH - skip])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).abs().max() / truth.abs().max())


def _conditioning(model: Any, ids: Tensor, plain: Tensor) -> float:
    """What one rounding of each embedding does to the logits, relative to the largest."""
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda *args: args[2] * (1 + 2**-23))
    with contextlib.ExitStack() as undo:
        undo.callback(hook.remove)
        return _relative(_whole(model, ids), plain)
