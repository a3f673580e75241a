"""How transformers itself says a spec, and the very frequencies that it computes then.

A patched model takes these to the last bit, so that it is the model that its exported config
describes: another order of float32 roundings turns a key 4096 tokens away by 1e-3 radians.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import modeling_rope_utils
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ctxext.models.layout import Source, head_dim
from ctxext.patches import Spec

Rope = dict[str, Any]  # what stands in a config as `rope_parameters`, for one layer type

ORIGINAL = "original_max_position_embeddings"
# Relative: the exponent 2i/d is rounded by 6e-8 of itself, which a base of e^20 makes 1.2e-6, in
# θ and anew under another base; and a few roundings more.
CLOSE = 4e-6
# All that transformers' rope types read, so what an older scaling leaves behind.
SCALING_KEYS = frozenset(
    "rope_type type factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate "
    "short_factor long_factor short_mscale long_mscale low_freq_factor high_freq_factor "
    f"{ORIGINAL}".split()
)


class Stock(NamedTuple):
    """One way to say a spec for one set of frequencies.

    Attributes:
        name: "rope_theta" where the base alone changes, else transformers' rope type.
        rope: all rope parameters.
        inv_freq: what transformers computes from them [d/2], float32, on the CPU.
        factor: its attention factor.
    """

    name: str
    rope: Rope
    inv_freq: Tensor
    factor: float


def ways(source: Source, spec: Spec, length: int | None) -> Iterator[Stock]:
    """The ways to say a resolved spec that transformers computes as θ/λ, best first.

    Args:
        length: L in tokens, which some of them name and some must fit; by the way that is first,
            frequencies differ by a rounding at most.
    """
    own = source.facts
    theta = torch.tensor(own.theta, dtype=torch.float64)
    wanted = theta / torch.tensor(spec.scales(own), dtype=torch.float64)
    for rope in _ropes(source, spec, length):
        try:
            with _unheard():
                inv_freq, factor = _compute(source, rope)
            torch.testing.assert_close(inv_freq.double(), wanted, rtol=CLOSE, atol=0)
            torch.testing.assert_close(factor, spec.attention_factor(), rtol=CLOSE, atol=0)
        except Exception:  # whatever a family's config refuses, or computes otherwise
            continue
        changed = "rope_theta" if rope["rope_type"] == "default" else rope["rope_type"]
        yield Stock(changed, rope, inv_freq, factor)


def _ropes(source: Source, spec: Spec, length: int | None) -> Iterator[Rope]:
    """The rope parameters that may say it; whether they do is seen when they are computed."""
    own = source.facts
    longest = max(length or 0, own.trained)
    kept = {k: v for k, v in source.rope.items() if k not in SCALING_KEYS}
    plain = {"rope_type": "default", "rope_theta": own.base, **kept}
    single = spec.frequencies[0].stock(own) if len(spec.frequencies) == 1 else None
    if single is not None and (length is None or _reaches(single, longest)):
        yield {**plain, **single}
    factor = spec.attention_factor()
    scales = spec.scales(own)
    yield {
        **plain,
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": factor,
        "short_factor": scales,
        "long_factor": scales,
        ORIGINAL: longest,
        **({} if factor == 1 else {"short_mscale": factor, "long_mscale": factor}),  # vLLM, SGLang
    }


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without transformers' warnings about rope parameters, which are tried and are nobody's."""
    logger = logging.getLogger(modeling_rope_utils.__name__)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reaches(rope: Rope, longest: int) -> bool:
    """Whether its own length times its factor is the longest, as others take for granted.

    vLLM's tables end there, and transformers 4 takes the quotient of both lengths for the factor.
    """
    return ORIGINAL not in rope or rope[ORIGINAL] * rope["factor"] == longest


def _compute(source: Source, rope: Rope) -> tuple[Tensor, float]:
    """inv_freq and attention factor by transformers; any exception where its config refuses."""
    config, kind = source.config, source.layer_type
    settings = config.to_dict()
    if getattr(config, "head_dim", 0) is None:  # which transformers' yarn and longrope cannot read
        settings["head_dim"] = head_dim(config)
    settings["rope_parameters"] = rope if kind is None else {**config.rope_parameters, kind: rope}
    if hasattr(config, ORIGINAL) and ORIGINAL in rope:  # it has priority over rope_parameters
        settings[ORIGINAL] = rope[ORIGINAL]
    other = type(config).from_dict(settings)
    options = {} if kind is None else {"layer_type": kind}
    if rope["rope_type"] == "default":
        default: Any = type(source.module)
        inv_freq, factor = default.compute_default_rope_parameters(other, **options)
    else:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](other, None, **options)
    if inv_freq.dtype != torch.float32 or inv_freq.is_meta:
        raise TypeError(inv_freq.dtype)
    return inv_freq, float(factor)
