"""Configs that carry a spec, so that stock transformers gives the patched model's logits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.errors import UnsupportedModelError
from ctxext.models.layout import Source as Frequencies
from ctxext.models.layout import find_sources, has_windows
from ctxext.patches import Spec
from ctxext.patches.base import Rotary

Rope = dict[str, Any]  # what stands in a config as `rope_parameters`

ORIGINAL = "original_max_position_embeddings"
# All that transformers' rope types read, so what an older scaling leaves behind.
SCALING_KEYS = frozenset(
    "rope_type type factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate "
    "short_factor long_factor short_mscale long_mscale low_freq_factor high_freq_factor "
    f"{ORIGINAL}".split()
)

# The methods that transformers computes itself. What one of them gives is checked like the rest.
DIRECT: dict[str, Callable[[Any, Rotary], tuple[str, Rope]]] = {
    "pi": lambda method, _: ("linear", {"rope_type": "linear", "factor": method.k}),
    "ntk-old": lambda method, own: ("rope_theta", {"rope_theta": own.base * method.k}),
    "ntk": lambda method, own: (
        "rope_theta",  # with one pair, d = 2, any base gives θ_0 = 1
        {"rope_theta": own.base * method.k ** (own.dim / max(1, own.dim - 2))},
    ),
    "yarn": lambda method, own: (
        "yarn",
        {
            "rope_type": "yarn",
            "factor": method.k,
            "beta_fast": method.beta_fast,
            "beta_slow": method.beta_slow,
            ORIGINAL: own.trained,
        },
    ),
}


@dataclass(frozen=True)
class Patched:
    """The patched model without weights, which the written config must reproduce."""

    model: Any
    raw: dict[str, Any]  # its config.json
    rotary: Frequencies
    own: Rotary  # of the model before the patch
    longest: int  # tokens
    trust_remote_code: bool


def only_source(model: Any, train_len: int | None) -> Frequencies:
    """The rotary frequencies of a model whose layers are all alike."""
    sources, kind = find_sources(model, train_len), model.config.model_type
    if len(sources) > 1 or has_windows(model.config, sources[0].trained):
        raise UnsupportedModelError(
            f"{kind} has several kinds of rotation, or layers that see no further back than its "
            "trained length, and a config cannot change these apart: use ctxext.patch at run time"
        )
    return sources[0]


def skeleton(config: Any, trust_remote_code: bool) -> Any:
    """The model without weights: all on the meta device but the rotary module, which is real."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", trust_remote_code=trust_remote_code
            )
        for module in [m for m in model.modules() if _is_rotary(m) and hasattr(m, "config")]:
            module.__init__(module.config)
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers builds no causal language model of type {config.model_type}: "
            f"{_one_line(error)}"
        ) from error
    if any(m.inv_freq.is_meta for m in model.modules() if _is_rotary(m)):
        raise UnsupportedModelError(f"{config.model_type}: its rotary module is not understood")
    return model


def _is_rotary(module: nn.Module) -> bool:
    return isinstance(getattr(module, "inv_freq", None), Tensor)


def _expressions(spec: Spec, own: Rotary, length: int) -> Iterator[tuple[str, Rope | None]]:
    """The ways to say the spec, best first: a name for it, and its scaling; None for unchanged."""
    if not spec.frequencies:
        yield "unchanged", None
        return
    if len(spec.frequencies) == 1 and spec.frequencies[0].name in DIRECT:
        with contextlib.suppress(OverflowError):
            yield DIRECT[spec.frequencies[0].name](spec.frequencies[0], own)
    scales = spec.scales(own)
    yield (
        "longrope",
        {
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": spec.attention_factor(),
            "short_factor": scales,
            "long_factor": scales,
            ORIGINAL: max(length, own.trained),
        },
    )


def write_config(stage: Path, patched: Patched, spec: Spec) -> str:
    """Write the first expression of the spec that proves right; its name."""
    why = ""
    for expression, rope in _expressions(spec, patched.own, patched.longest):
        edited = _edit(patched, rope)
        (stage / "config.json").write_text(json.dumps(edited, indent=2) + "\n")
        try:
            _check_written(stage, patched, rope is not None)
            return expression
        except Exception as error:
            why = _one_line(error)
    raise UnsupportedModelError(
        f"the config of a {patched.model.config.model_type} model cannot express {spec}: use "
        f"ctxext.patch at run time ({why})"
    )


def _edit(patched: Patched, rope: Rope | None) -> dict[str, Any]:
    """The config's JSON with this scaling; keys of transformers 4, where there, say the same."""
    config, raw, longest = patched.model.config, patched.raw, patched.longest
    if config.get_text_config() is not config:
        raise UnsupportedModelError(f"{config.model_type} nests the config of its language model")
    key = (config.attribute_map or {}).get("max_position_embeddings", "max_position_embeddings")
    if rope is None:  # a scaling of its own may depend on the length: leave that alone
        own = patched.rotary.scaling == "default"
        return {**raw, key: max(longest, getattr(config, key, None) or 0)} if own else raw
    own_rope = getattr(config, "rope_parameters", None) or {}
    kept = {k: v for k, v in own_rope.items() if k not in SCALING_KEYS}
    special = set(config.ignore_keys_at_rope_validation or ()) - {"partial_rotary_factor"}
    if special := special & set(kept):
        raise UnsupportedModelError(
            f"{config.model_type} reads {', '.join(sorted(special))} of its rope parameters "
            "outside the rotary module: use ctxext.patch at run time"
        )
    base = patched.own.base
    rope = {"rope_type": "default", "rope_theta": base, **kept, **rope}
    edited = {**raw, key: longest, "rope_parameters": rope}
    if getattr(config, "head_dim", 0) is None:  # which transformers' yarn and longrope cannot read
        edited["head_dim"] = config.hidden_size // config.num_attention_heads
    if ORIGINAL in rope and hasattr(config, ORIGINAL):  # it has priority over rope_parameters
        edited[ORIGINAL] = rope[ORIGINAL]
    legacy = {"rope_theta", "rotary_emb_base", "rope_scaling"} & set(raw)
    edited |= dict.fromkeys(legacy, rope["rope_theta"])
    if legacy:
        edited["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return edited


def _check_written(stage: Path, patched: Patched, scaled: bool) -> None:
    """Any exception, unless a model of the written config rotates as the patched one does."""
    from transformers import AutoConfig

    config = patched.model.config
    reader = type(config) if patched.trust_remote_code else AutoConfig  # no code runs from `stage`
    written = reader.from_pretrained(stage)
    written.name_or_path = config.name_or_path
    other = skeleton(written, patched.trust_remote_code)
    if _constants(other) != _constants(patched.model):
        raise ValueError("it would change more than the rotary module")
    if scaled and written.max_position_embeddings != patched.longest:
        raise ValueError("its max_position_embeddings is not read")
    theirs = next(m for m in other.modules() if _is_rotary(m))
    for last in (8, patched.longest - 1, patched.longest):
        pairs = zip(_tables(theirs, last), _tables(patched.rotary.module, last), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5 * (want.ndim > 1))


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _constants(model: Any) -> dict[str, Any]:
    """The shapes of all weights, and the numbers by which modules scale."""
    scales = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "scal" in key and isinstance(value, int | float) and not _is_rotary(module)
    }
    return {**{name: tuple(w.shape) for name, w in model.state_dict().items()}, **scales}


def _tables(rotary: Any, last: int) -> list[Tensor]:
    """The attention factor, inv_freq, and cos and sin at positions 0 … 7, up to `last` tokens."""
    positions = torch.tensor([[*range(8), last]])
    out = rotary(torch.zeros(1, positions.shape[1], 1), positions)
    tables = [x[:, :8] for x in (out if isinstance(out, tuple) else (out,))]  # [1, 8, d]
    factor = float(getattr(rotary, "attention_scaling", 1.0))
    return [torch.tensor(factor), rotary.inv_freq.clone(), *tables]
