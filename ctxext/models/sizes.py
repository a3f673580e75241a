"""The sizes of a config made small, by the names that families have for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from ctxext.models.layout import head_dim

Changes = dict[str, Any]  # keys of a config → values; for a nested config another such dict

TOKENS = 512  # vocabulary
SPECIAL = 8  # special tokens are made to lie below
PREFIX = 8  # layers: up to so many, the first ones are taken
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


def fewer_layers(config: Any, *groups: str) -> Any:
    """The config of a model with fewer layers, of every kind, and a small vocabulary.

    Args:
        groups: further sizes of SIZES that are made small.
    """
    return with_changes(config, smaller(config, ("layers", "vocabulary", *groups)))


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


def with_changes(config: Any, changes: Changes) -> Any:
    settings = merge(config.to_dict(), changes)
    settings.pop("quantization_config", None)
    small = type(config).from_dict(settings)
    small.name_or_path = config.name_or_path  # where its code is
    return small


def smaller(config: Any, groups: tuple[str, ...]) -> Changes:
    """The changes by these groups; without any, none."""
    text = config.get_text_config()
    changes: Changes = {}
    for group in groups:
        if group == "layers":
            changes |= _fewer_layers(text)
        elif group == "heads":
            changes |= _fewer_heads(text)
        else:
            changes |= _at_most(text.to_dict() | changes, text, SIZES[group])
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
            nested[name] = _at_most(part.to_dict(), part, ONE_LAYER)
    return {name: part for name, part in nested.items() if part}


def _own(text: Any, name: str) -> str:
    """What the config calls a size."""
    return str((text.attribute_map or {}).get(name, name))


def _at_most(known: dict[str, Any], text: Any, sizes: dict[str, int]) -> Changes:
    """Of the known settings the sizes that are larger than these; of lists all in them."""
    changes = Changes()
    for name, size in sizes.items():
        own = _own(text, name)
        value = known.get(own)
        if is_size(value) and value > size:
            changes[own] = size
        elif isinstance(value, list) and value and all(map(is_size, value)):
            changes[own] = [min(each, size) for each in value]
    return changes


def is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _fewer_heads(text: Any) -> Changes:
    heads, groups = (getattr(text, f"num_{x}_heads", None) for x in ("attention", "key_value"))
    if not (is_size(heads) and heads > HEADS):
        return {}
    changes: Changes = {_own(text, "num_attention_heads"): HEADS}
    if is_size(groups):
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
        if key.endswith(("_pattern", "_interval", "_period", "_every_n_layers")) and is_size(value):
            yield value


def _token_ids(config: Any) -> Iterator[tuple[str, Any]]:
    """Special tokens that do not fit the small vocabulary, and others in their place."""
    for key, value in config.to_dict().items():
        if isinstance(value, dict) and key in getattr(config, "sub_configs", {}):
            if inner := dict(_token_ids(getattr(config, key))):
                yield key, inner
        elif key.endswith(("_token_id", "_token_ids", "_token_index")):
            many = value if isinstance(value, list) else [value]
            if any(is_size(token) and token >= TOKENS for token in many):
                fit = [token % SPECIAL if is_size(token) else token for token in many]
                yield key, fit if isinstance(value, list) else fit[0]
