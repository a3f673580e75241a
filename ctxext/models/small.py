"""A small random model with the rotation, and the kinds of layers, of a large one."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import nn

from ctxext.errors import UnsupportedModelError, short
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.layout import head_dim
from ctxext.models.loading import Source, settle

Changes = dict[str, Any]  # keys of a config → values; for a nested config another such dict

TINY = 5_000_000  # parameters: such a model is taken as it is
LARGEST = 100_000_000  # parameters, 400 MB in float32: no larger one is made
GAIN = 1.0  # weights have the standard deviation GAIN / √(inputs)
TOKENS = 512  # vocabulary
SPECIAL = 8  # special tokens are made to lie below
PREFIX = 8  # layers: up to so many, the first ones are taken
MANY = 2000  # layers: a config that names more is not a model's

HEADS = 2
# Sizes by name, and what each is made at most; by groups, which are left alone one after another.
SIZES: dict[str, dict[str, int]] = {
    "vocabulary": dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), TOKENS),
    "mlp": dict.fromkeys(
        (
            *("intermediate_size", "ffn_hidden_size", "ffn_dim", "intermediate_size_mlp"),
            *("dense_intermediate_size", "shared_intermediate_size", "moe_intermediate_size"),
            *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
            *("expert_ffn_hidden_size", "hidden_size_per_layer_input"),
        ),
        128,
    ),
    "experts": {
        **dict.fromkeys(
            ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
        ),
        **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
        **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_dense_layers"), 1),
    },
    "latent": dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 64),
}
ONE_LAYER = dict.fromkeys(("num_hidden_layers", "depth"), 1)  # of parts beside the text's
STEPS: tuple[tuple[str, ...], ...] = (
    ("layers", "vocabulary", "mlp", "experts", "heads", "latent"),
    ("layers", "vocabulary", "mlp", "experts", "heads"),
    ("layers", "vocabulary", "mlp", "experts"),
    ("layers", "vocabulary"),
    ("vocabulary",),
    (),
)


def small_model(config: Any, *, trust_remote_code: bool = False) -> tuple[Any, Changes]:
    """A random float32 model on the CPU, of a config that differs in sizes alone.

    Kept are the head dimension, all that rotation depends on, windows, softcaps, T, and every kind
    of layer. The sizes are the smallest with which transformers builds and runs the model.
    Weights are seeded; they are large enough that attention picks keys by content and position,
    which transformers' own initial weights hardly do.

    Args:
        config: a causal language model's transformers config; it is left as it is.

    Returns:
        The model in evaluation mode, and what `merge` has to put into its config's JSON.

    Raises:
        UnsupportedModelError: no smaller model is built, and this one is too large to be tried.
    """
    whole = outline(config, trust_remote_code)
    rotation, why = _rotation(whole), f"it has more than {LARGEST:,} parameters"
    steps = ((),) if _size(whole) <= TINY else STEPS
    for groups in steps:
        try:
            changes = _changes(config, groups)
            small = _with(config, changes)
            if _size(drawn := outline(small, trust_remote_code)) > LARGEST:
                continue
            if _rotation(drawn) != rotation:
                why = "its rotation depends on its sizes"
                continue
            return _build(small, trust_remote_code), changes
        except Exception as error:
            why = short(error)
    raise UnsupportedModelError(
        f"{config.model_type}: no small model of this config can be made to prove an export with "
        f"({why}): use ctxext.patch at run time"
    )


def fewer_layers(config: Any, *groups: str) -> Any:
    """The config of a model with fewer layers, of every kind, and a small vocabulary.

    Args:
        groups: further sizes of SIZES that are made small.
    """
    return _with(config, _changes(config, ("layers", "vocabulary", *groups)))


def merge(settings: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """A config's settings with the changes in them, nested ones too; None takes a key out."""
    merged = dict(settings)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            nested = isinstance(value, dict)
            merged[key] = merge(merged.get(key) or {}, value) if nested else value
    return merged


def flat(changes: Changes) -> Iterator[tuple[str, Any]]:
    """Every key that is changed and its value, those of nested configs without their place."""
    for key, value in changes.items():
        yield from flat(value) if isinstance(value, dict) else [(key, value)]


def _with(config: Any, changes: Changes) -> Any:
    settings = merge(config.to_dict(), changes)
    settings.pop("quantization_config", None)
    small = type(config).from_dict(settings)
    small.name_or_path = config.name_or_path  # where its code is
    return small


def _build(config: Any, trust_remote_code: bool) -> Any:
    """The model with random weights; any exception where it does not run on a few tokens."""
    from transformers import AutoModelForCausalLM

    attn = settle(Source("", device="cpu"), config).attn
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn, trust_remote_code=trust_remote_code, dtype=torch.float32
    ).eval()
    _randomise(model)
    with torch.no_grad():
        vocabulary = config.get_text_config().vocab_size
        ids = torch.arange(vocabulary // 3, vocabulary // 3 + 8)[None] % vocabulary  # not special
        logits = model(ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are not finite")
    return model


def outline(
    config: Any, trust_remote_code: bool = False, *, dtype: Any = None, attn: str = "eager"
) -> Any:
    """The model on the meta device, but with real rotary frequencies.

    Args:
        dtype: torch's, of its weights; None for the config's.
        attn: transformers' attention implementation.

    Raises:
        UnsupportedModelError: transformers builds no such model, or it has no such frequencies.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if _is_size(layers) and layers > MANY:
        raise UnsupportedModelError(
            f"bad num_hidden_layers {layers} in the config: at most {MANY} are served"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),  # it writes into the configs of a config's parts
                attn_implementation=attn,
                trust_remote_code=trust_remote_code,
                **({} if dtype is None else {"dtype": dtype}),
            )
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers builds no causal language model of type {config.model_type}: "
            f"{short(error)}"
        ) from error
    for module in {s.module: s.module for s in find_frequency_sets(model)}:
        if hasattr(module, "config"):
            module.__init__(module.config)  # type: ignore[misc]
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings, of models that are nobody's."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _randomise(model: Any) -> None:
    """Seeded weights: scores of a standard deviation of about GAIN², norms about their values."""
    seed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, GAIN / math.sqrt(weight.shape[-1]), generator=seed)
            else:
                weight.add_(torch.empty_like(weight).uniform_(-0.3, 0.3, generator=seed))
        for module in model.modules():  # what some families set to 0 when they are loaded
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0


def _size(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _rotation(model: Any) -> set[tuple[Any, ...]]:
    """Every set of rotary frequencies that a model has, and its kinds of layers."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    sets = {
        (
            *(type(s.module).__name__, s.layer_type, s.scaling, s.factor),
            s.inv_freq.shape if s.inv_freq.is_meta else tuple(s.inv_freq.tolist()),
        )
        for s in find_frequency_sets(model)
    }
    return sets | {("layer", kind) for kind in kinds}


def _changes(config: Any, groups: tuple[str, ...]) -> Changes:
    """The changes by these groups; without any, none."""
    text = config.get_text_config()
    changes: Changes = {}
    for group in groups:
        if group == "layers":
            changes |= _fewer_layers(text)
        elif group == "heads":
            changes |= _fewer_heads(text)
        else:
            changes |= _smaller(text.to_dict() | changes, text, SIZES[group])
    if text is not config and changes:
        changes = _in_place(config, text, changes)
    if "vocabulary" in groups:
        changes = merge(changes, dict(_token_ids(config)))
    return changes


def _in_place(config: Any, text: Any, changes: Changes) -> Changes:
    """The changes of a nested config; the parts beside it keep but one layer."""
    nested: Changes = {}
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is text:
            nested[name] = changes
        elif part is not None and hasattr(part, "to_dict"):
            nested[name] = _smaller(part.to_dict(), part, ONE_LAYER)
    return {name: part for name, part in nested.items() if part}


def _own(text: Any, name: str) -> str:
    """What the config calls a size."""
    return str((text.attribute_map or {}).get(name, name))


def _smaller(known: dict[str, Any], text: Any, sizes: dict[str, int]) -> Changes:
    """Of the known settings the sizes that are larger than these; of lists all in them."""
    changes = Changes()
    for name, size in sizes.items():
        own = _own(text, name)
        value = known.get(own)
        if _is_size(value) and value > size:
            changes[own] = size
        elif isinstance(value, list) and value and all(map(_is_size, value)):
            changes[own] = [min(each, size) for each in value]
    return changes


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _fewer_heads(text: Any) -> Changes:
    heads, groups = (getattr(text, f"num_{x}_heads", None) for x in ("attention", "key_value"))
    if not (_is_size(heads) and heads > HEADS):
        return {}
    changes: Changes = {_own(text, "num_attention_heads"): HEADS}
    if _is_size(groups):
        changes[_own(text, "num_key_value_heads")] = HEADS if groups == heads else 1
    wide = HEADS * head_dim(text)
    return changes | ({_own(text, "hidden_size"): wide} if wide < text.hidden_size else {})


def _fewer_layers(text: Any) -> Changes:
    """The first layers that show every kind; where these are many, the first of each kind."""
    count, known = text.num_hidden_layers, text.to_dict()
    lists = {
        key: list(value)
        for key, value in known.items()
        if isinstance(value, list | tuple) and len(value) == count and "token" not in key
    }
    kinds = [str(each) for each in zip(*lists.values(), strict=True)] or [""] * count
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    needed = max(2, first[-1] + 1, *_periods(known))
    if needed > PREFIX:
        taken = sorted({*first, *([] if len(first) > 1 else [1])})
    else:
        taken = list(range(needed))
    if len(taken) >= count:
        return {}
    changes: Changes = {key: [value[i] for i in taken] for key, value in lists.items()}
    if own := known.get("per_layer_config"):  # such as {"05": {"head_dim": 512}, …}
        changes["per_layer_config"] = {i: None for i in own if int(i) >= len(taken)}
    if known.get("num_kv_shared_layers"):
        changes["num_kv_shared_layers"] = 0
    return changes | {_own(text, "num_hidden_layers"): len(taken)}


def _periods(known: dict[str, Any]) -> Iterator[int]:
    """After how many layers the kinds of layers come back, where a config says so by a number."""
    for key, value in known.items():
        if key.endswith(("_pattern", "_interval", "_period", "_every_n_layers")) and _is_size(
            value
        ):
            yield value


def _token_ids(config: Any) -> Iterator[tuple[str, Any]]:
    """Special tokens that do not fit the small vocabulary, and others in their place."""
    for key, value in config.to_dict().items():
        if isinstance(value, dict) and key in getattr(config, "sub_configs", {}):
            if inner := dict(_token_ids(getattr(config, key))):
                yield key, inner
        elif key.endswith(("_token_id", "_token_ids", "_token_index")):
            many = value if isinstance(value, list) else [value]
            if any(_is_size(token) and token >= TOKENS for token in many):
                fit = [token % SPECIAL if _is_size(token) else token for token in many]
                yield key, fit if isinstance(value, list) else fit[0]
