"""How transformers itself says a spec, and the very frequencies that it computes then.

A patched model takes these to the last bit, so that it is the model that its exported config
describes: another order of float32 roundings turns a key 4096 tokens away by 1e-3 radians.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_rope_utils

from ctxext.errors import UnsupportedModelError, short
from ctxext.methods import Spec
from ctxext.models.frequency_sets import FrequencySet, Rope
from ctxext.models.trained import ORIGINAL

# Relative: the exponent 2i/d is rounded by 6e-8 of itself, which a base of e^20 makes 1.2e-6, in
# θ and anew under another base; and a few roundings more.
CLOSE = 4e-6


class StockRope(NamedTuple):
    """Rope parameters that say a spec for one set of frequencies.

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


def stock_ropes(freqs: FrequencySet, spec: Spec, length: int | None) -> Iterator[StockRope]:
    """The ways to say a resolved spec that transformers computes as θ/λ, best first.

    Args:
        length: L in tokens, which some of them name and some must fit; by the way that is first,
            frequencies differ by a rounding at most, and by none where the spec has no λ.
    """
    own, start = freqs.facts, freqs.start
    theta = torch.tensor(own.theta, dtype=torch.float64)
    wanted = theta / torch.tensor(spec.scales(own), dtype=torch.float64)
    close = CLOSE if spec.frequencies else 0.0
    for rope in _ropes(freqs, spec, length, wanted):
        try:
            with unheard():
                inv_freq, factor = freqs.compute(rope)
            torch.testing.assert_close(inv_freq.double(), wanted, rtol=close, atol=0)
            wanted_factor = start.factor * spec.attention_factor(own)
            torch.testing.assert_close(factor, wanted_factor, rtol=close, atol=0)
        except Exception:  # whatever a family's config refuses, or computes otherwise
            continue
        changed = "rope_theta" if rope["rope_type"] == "default" else rope["rope_type"]
        yield StockRope(changed, rope, inv_freq, factor)


def _ropes(freqs: FrequencySet, spec: Spec, length: int | None, wanted: Tensor) -> Iterator[Rope]:
    """The rope parameters that may say it; whether they do is seen when they are computed."""
    own = freqs.facts
    longest = max(length or 0, own.trained)
    plain = {"rope_theta": own.base, **freqs.plain_rope}
    stock = [method.stock(own) or {} for method in spec.frequencies]
    kept = freqs.scaled and not freqs.replaced
    scales = spec.scales(own)
    if kept:
        yield from _fixed(freqs, plain) if freqs.by_length else [freqs.rope]
        if not wanted.all():
            return
        unscaled = [own.base ** (-i / len(wanted)) for i in range(len(wanted))]
        scales = (torch.tensor(unscaled, dtype=torch.float64) / wanted).tolist()
    elif len(stock) == 1 and stock[0] and (length is None or _reaches(stock[0], longest)):
        yield {**plain, **stock[0]}
    elif not stock:
        yield plain
    if not all(map(math.isfinite, scales)):  # JSON has no number for pairs that do not turn
        return
    factor = freqs.start.factor * spec.attention_factor(own)
    sharp = next(
        ({k: r[k] for k in SHARP} for r in ([freqs.rope] if kept else stock) if _is_sharp(r)), {}
    )
    yield {
        **plain,
        "rope_type": "longrope",
        "factor": 1.0,
        **sharp,
        "attention_factor": factor,
        "short_factor": scales,
        "long_factor": scales,
        ORIGINAL: longest,
        **({} if factor == 1 else {"short_mscale": factor, "long_mscale": factor}),  # vLLM, SGLang
    }


# What latent attention computes the scaling of its scores from, under any rope type.
SHARP = ("factor", "mscale_all_dim")


def _is_sharp(rope: Rope) -> bool:
    return bool(rope.get("mscale_all_dim") and rope.get("factor"))


def _fixed(freqs: FrequencySet, plain: Rope) -> Iterator[Rope]:
    """What a scaling that goes by the length is at L: of longrope a list, of dynamic a base."""
    rope, length = freqs.rope, freqs.length or 1
    if freqs.scaling == "longrope":
        used = "long_factor" if length > rope[ORIGINAL] else "short_factor"
        lists = {"short_factor": rope[used], "long_factor": rope[used]}
        yield {**rope, **lists, "attention_factor": freqs.start.factor}
    else:
        dim, own = 2 * len(freqs.start.inv_freq), freqs.unscaled
        stretch = rope["factor"] * torch.tensor(max(length, own)) / own - (rope["factor"] - 1)
        yield {**plain, "rope_theta": float(plain["rope_theta"] * stretch ** (dim / (dim - 2)))}


@contextlib.contextmanager
def unheard() -> Iterator[None]:
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


def numbers(model: PreTrainedModel, ropes: dict[FrequencySet, Rope]) -> dict[tuple[str, str], Any]:
    """The numbers that modules beside the rotary ones hold otherwise under other rope parameters.

    Latent attention has its softmax scaling from them. Found by building the model without
    weights under both configs.

    Returns:
        Those under the other rope parameters, by the names of a module and an attribute.

    Raises:
        UnsupportedModelError: it cannot be built so.
    """
    try:
        before, after = (_outline_numbers(model, each) for each in ({}, ropes))
    except Exception as error:
        why = short(error, 200)
        raise UnsupportedModelError(
            f"{model.config.model_type}: what its own rope scaling changes beside the frequencies "
            f"is not known, so that it can only be kept ({why})"
        ) from error
    rotary = {freqs.module for freqs in ropes}
    names = {name for name, module in model.named_modules() if module in rotary}
    return {
        key: value
        for key, value in after.items()
        if key[0] not in names and key in before and before[key] != value
    }


def config_with(model: PreTrainedModel, ropes: dict[FrequencySet, Rope]) -> Any:
    """A copy of a model's config that has other rope parameters."""
    config = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    for freqs, rope in ropes.items():
        kind = freqs.layer_type
        text.rope_parameters = rope if kind is None else {**text.rope_parameters, kind: rope}
        if hasattr(text, ORIGINAL) and ORIGINAL in rope:
            setattr(text, ORIGINAL, rope[ORIGINAL])
    return config


def _outline_numbers(
    model: PreTrainedModel, ropes: dict[FrequencySet, Rope]
) -> dict[tuple[str, str], Any]:
    config = config_with(model, ropes)
    config._attn_implementation = "eager"
    with torch.device("meta"), unheard():
        outline = type(model)(config)
    return {
        (name, key): value
        for name, module in outline.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float)
    }
