"""What a config says of rotary embeddings: each value checked, before transformers trips over it
or takes it for something else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.trained import ORIGINAL, scales
from ctxext.notation import is_length
from ctxext.text import did_you_mean

Settings = dict[str, Any]

BLOCKS = ("rope_scaling", "rope_parameters")  # a config's; the second is transformers 5's
NESTED = "text_config"
# What a type cannot be computed without; of Phi-3's older names, `su` is longrope.
REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
RENAMED = ({"su", "longrope"}, {"yarn", "longrope"}, {"mrope", "default"})  # older and newer names
BY_ORIGINAL = ("yarn", "longrope", "llama3")  # types that go by the length before scaling
NULL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # is as if absent
FOREIGN = {"attn_factor": "attention_factor", "extrapolation_factor": "beta_fast and beta_slow"}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _above(low: float) -> Callable[[Any], bool]:
    return lambda value: _number(value) and value > low


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_above(0), value)) and bool(value)


_POSITIVE = ("a number above 0", _above(0))
_BASE = ("a number above 1, such as 10000", _above(1))
_MSCALE = ("a number, at least 0", lambda value: _number(value) and value >= 0)
_LIST = ("a list of numbers above 0, one for each pair of rotated dimensions", _numbers)
_LENGTH = ("a whole number of tokens, at least 2", is_length)
_SHARE = ("a number above 0, at most 1", lambda value: _number(value) and 0 < value <= 1)
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "factor": ("a number, at least 1", lambda value: _number(value) and value >= 1),
    "attention_factor": _POSITIVE,
    "beta_fast": _POSITIVE,
    "beta_slow": _POSITIVE,
    "mscale": _MSCALE,
    "mscale_all_dim": _MSCALE,
    "truncate": ("true or false", lambda value: isinstance(value, bool)),
    "short_factor": _LIST,
    "long_factor": _LIST,
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    ORIGINAL: _LENGTH,
    "rope_theta": _BASE,
    "partial_rotary_factor": _SHARE,
}
#: The same beside the block, where null is as if absent.
BESIDE = {
    **{name: FIELDS[name] for name in (ORIGINAL, "rope_theta", "partial_rotary_factor")},
    "max_position_embeddings": _LENGTH,
    "rope_local_base_freq": _BASE,
}


def check_raw(raw: Settings) -> None:
    """Refuse what cannot be meant in a config.json, as it was read.

    Raises:
        UsageError: names the key, its value and the valid ones.
    """
    text = raw.get(NESTED)
    for part in (raw, text if isinstance(text, dict) else {}):
        for name, (need, fits) in BESIDE.items():
            if part.get(name) is not None and not fits(part[name]):
                raise _refused(name, part[name], need)
        blocks = {name: part[name] for name in BLOCKS if part.get(name) not in (None, {})}
        for name, block in blocks.items():
            if not isinstance(block, dict):
                raise _refused(name, block, "an object of settings, or null for none")
        if len(blocks) == len(BLOCKS):
            _check_both(part)
        for name, block in blocks.items():
            for path, settings in _sets(name, block):
                _check_set(path, settings)
                _check_twice(path, settings, part, alone=path == name)


def check_config(config: Any, raw: Settings | None = None) -> None:
    """Refuse what cannot be meant in a text model's config as transformers holds it.

    Args:
        raw: the config.json that it was read from, where no model has been made of it yet: then
            rope types that transformers does not have are refused, and an original length that
            the family overrides.

    Raises:
        UsageError: names the key, its value and the valid ones.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    for path, settings in _sets("rope_parameters", rope):
        _check_set(path, settings)
        _check_lists(path, settings, config)
        if raw is not None:
            _check_type(path, settings, config)
            _check_original(path, settings, config, raw)


def is_scaled(config: Any) -> bool:
    """Whether a config has a rope scaling of its own."""
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    sets = _sets("", rope if isinstance(rope, dict) else {})
    return any(scales(settings) for _, settings in sets)


def made_up(config: Any, raw: Settings) -> bool:
    """Whether a config's own scaling goes by a trained length that its config.json does not name.

    Transformers takes `max_position_embeddings` then, which many give as the extended length.
    """
    longest = getattr(config, "max_position_embeddings", None)
    return any(
        settings.get("rope_type") in BY_ORIGINAL
        and settings.get(ORIGINAL) == longest
        and not _names_original(raw)
        for _, settings in _sets("", getattr(config, "rope_parameters", None) or {})
    )


def _sets(name: str, block: Settings) -> Iterator[tuple[str, Settings]]:
    """The sets of settings in a block with their paths: one, or one for each layer type."""
    known = {"rope_type", "type", *FIELDS}
    inner = {k: value for k, value in block.items() if isinstance(value, dict) and k not in known}
    yield from ((f"{name}.{key}", value) for key, value in inner.items())
    flat = {key: value for key, value in block.items() if key not in inner}
    if not inner:
        yield name, flat
    elif odd := [key for key in flat if key in known - BESIDE.keys()]:
        raise UsageError(
            f"the config's {name} has {odd[0]!r} beside settings of layer types "
            f"({', '.join(inner)}): give each of these its own"
        )


def _check_set(path: str, settings: Settings) -> None:
    """What one set says: its type, each value by itself, and those that go together."""
    kinds = {key: value for key, value in settings.items() if key in ("rope_type", "type")}
    for key, value in kinds.items():
        if not isinstance(value, str):
            raise _refused(f"{path}.{key}", value, "a text: one of " + ", ".join(_types()))
    if len(set(kinds.values())) > 1 and set(kinds.values()) not in RENAMED:
        said = " and ".join(f"{key} {value!r}" for key, value in kinds.items())
        raise UsageError(f"the config's {path} has {said}, which differ: leave rope_type alone")
    kind = kinds.get("rope_type", kinds.get("type"))
    if kind == "su" and ORIGINAL not in settings:  # which transformers 5 then fails to move here
        raise _refused(f"{path}.{next(iter(kinds))}", kind, 'its newer name, "longrope"')
    scaled = [key for key in REQUIRED["llama3"] + REQUIRED["longrope"] if key in settings]
    if kind is None and scaled:
        raise UsageError(
            f"the config's {path} has {scaled[0]!r} and no rope_type: add one of "
            + ", ".join(_types())
        )
    for key in REQUIRED.get(kind or "", ()):
        if key not in settings:
            raise UsageError(
                f"the config's {path} is of type {kind!r} and has no {key!r}: add it, "
                f"{FIELDS[key][0]}"
            )
    nullable = {*NULL, *(("factor",) if kind in ("yarn", "longrope", "su") else ())}
    for key, (need, fits) in FIELDS.items():
        value = settings.get(key, ...)
        if value is ... or (value is None and key in nullable) or fits(value):
            continue
        raise _refused(f"{path}.{key}", value, need)
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        least, most = settings.get(low), settings.get(high)
        if least is not None and most is not None and least > most:
            raise _refused(f"{path}.{high}", most, f"at least {low}, which is {least}")
    for foreign, ours in FOREIGN.items():
        if settings.get(foreign, 1) not in (1, None):
            raise _refused(f"{path}.{foreign}", settings[foreign], f"1, or in its place {ours}")


def _check_twice(path: str, settings: Settings, part: Settings, alone: bool) -> None:
    """What may stand in the block and beside it may not be two different things.

    Args:
        alone: whether the block has this set alone; bases of layer types do differ.
    """
    for key in (ORIGINAL, "partial_rotary_factor", *(("rope_theta",) if alone else ())):
        inside, beside = settings.get(key), part.get(key)
        if None not in (inside, beside) and inside != beside:
            raise UsageError(
                f"the config's {path}.{key} is {inside} and its own {key} is {beside}: leave one"
            )


def _check_both(part: Settings) -> None:
    """Of two blocks transformers takes `rope_scaling`, with what stands beside it."""
    old, new = (part[name] for name in BLOCKS)
    taken = {
        **{key: part[key] for key in BESIDE if key in part},
        "rope_type": old.get("type"),
        **old,
    }
    for key, value in new.items():
        if key != "type" and taken.get(key) != value:
            raise UsageError(
                f"the config's rope_scaling and rope_parameters differ in {key!r}: leave one of "
                "the two"
            )


def _check_lists(path: str, settings: Settings, config: Any) -> None:
    """Lists of factors have one for each pair of the dimensions that are rotated."""
    if settings.get("rope_type") != "longrope":
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(size * settings.get("partial_rotary_factor", 1.0)) // 2
    for key in REQUIRED["longrope"]:
        if len(settings[key]) != pairs:
            raise UsageError(
                f"the config's {path}.{key} has {len(settings[key])} numbers: give {pairs}, one "
                "for each pair of rotated dimensions"
            )


def _check_type(path: str, settings: Settings, config: Any) -> None:
    own = getattr(config, "default_rope_type", "default")
    kind = settings.get("rope_type", own)
    if kind not in (*_types(), own):
        valid = did_you_mean(kind, _types())
        raise UsageError(f"the config's {path} has the unknown rope_type {kind!r}: {valid}")


def _check_original(path: str, settings: Settings, config: Any, raw: Settings) -> None:
    """A length in the block that the family's class overrides by its own is not in force."""
    inside = [s[ORIGINAL] for part in _parts(raw) for _, s in _sets("", part) if ORIGINAL in s]
    if inside and settings.get(ORIGINAL) not in (None, *inside):
        raise UsageError(
            f"the config's {path}.{ORIGINAL} is {inside[0]}, but {config.model_type} takes "
            f"{settings[ORIGINAL]}: write it beside the block"
        )


def _names_original(raw: Settings) -> bool:
    said = [raw, raw.get(NESTED) or {}, *(s for part in _parts(raw) for _, s in _sets("", part))]
    return any(settings.get(ORIGINAL) is not None for settings in said)


def _parts(raw: Settings) -> list[Settings]:
    """The blocks of a config.json."""
    parts = (raw, raw.get(NESTED) or {})
    return [part[name] for part in parts for name in BLOCKS if isinstance(part.get(name), dict)]


def _types() -> list[str]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ["default", *ROPE_INIT_FUNCTIONS]


def _refused(path: str, value: Any, need: str) -> UsageError:
    said = json.dumps(value, default=str)
    said = said if len(said) <= 60 else said[:60] + "…"
    return UsageError(f"the config's {path} cannot be {said}: give {need}")
