"""What a config says of a model's layers: sizes of heads, kinds, windows."""

from __future__ import annotations

from typing import Any

from ctxext.errors import UnsupportedModelError

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def layer_configs(config: Any) -> list[Any]:
    """The config of a model's language part, or those of its layers where settings differ."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def head_dim(config: Any) -> int:
    """The largest dimension of a query and key head, from a model's config.

    Raises:
        UnsupportedModelError: neither the language part nor any other says it.
    """
    names = getattr(config, "sub_configs", {})
    parts = (part for name in names if (part := getattr(config, name, None)) is not None)
    for some in (layer_configs(config), parts):
        if sizes := [size for part in some if (size := _head_dim(part))]:
            return max(sizes)
    raise UnsupportedModelError(f"{config.model_type}: the config names no attention heads")


def _head_dim(config: Any) -> int:
    """What a config says of one layer; 0 for nothing."""
    latent: list[Any] = [getattr(config, f"qk_{part}_head_dim", None) for part in ("rope", "nope")]
    own, wide, heads = (
        getattr(config, name, None) for name in ("head_dim", "hidden_size", "num_attention_heads")
    )
    if all(isinstance(part, int) for part in latent):
        return sum(latent)
    if isinstance(own, int) and own:
        return own
    return wide // heads if isinstance(wide, int) and isinstance(heads, int) and heads else 0


def layer_windows(config: Any) -> list[tuple[str, int | None]]:
    """The kind of each layer, and how many keys a query of it sees at most, from a config."""
    text, layers = config.get_text_config(), layer_configs(config)
    if len(layers) == 1:
        layers *= getattr(text, "num_hidden_layers", 1)
    kinds, slides = getattr(text, "layer_types", None), getattr(text, "use_sliding_window", True)
    if not isinstance(kinds, list):
        sliding = [slides and getattr(layer, "sliding_window", None) for layer in layers]
        kinds = ["sliding_attention" if one else "full_attention" for one in sliding]
    found = []
    for layer, kind in zip(layers, kinds, strict=False):
        window = getattr(layer, WINDOWS.get(kind, ""), None)
        found.append((kind, window if isinstance(window, int) and window > 0 else None))
    return found


def has_windows(config: Any, trained: int) -> bool:
    """Whether a config speaks of layers that see no further back than the trained length."""
    text, layers = config.get_text_config(), layer_configs(config)
    sizes = (getattr(layer, name, None) for name in WINDOWS.values() for layer in layers)
    windows = [size for size in sizes if size]
    if windows and min(windows) > trained:
        return False
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = any(getattr(layer, "sliding_window", None) for layer in layers)
    if window and getattr(text, "use_sliding_window", True) and "layer_types" not in vars(text):
        return True
    return bool(kinds & WINDOWS.keys())
