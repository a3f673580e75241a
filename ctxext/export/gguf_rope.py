"""How llama.cpp is told a rotation: a base, a linear factor, YaRN's parameters, or λ per pair.

llama.cpp turns pair i of the token at position p by p · base^(−2i/d) / λ_i / k radians, where λ is
the tensor `rope_freqs.weight`, which only its llama architecture reads, and k is
`rope.scaling.factor`; under YaRN, 1/k is ramped in over the pairs. Rotated queries and keys carry
`rope.scaling.attn_factor`, and 0.1 ln k + 1 on top under YaRN. (`rope_yarn` in ggml,
`llama-context.cpp` and `llama-model.cpp`, as in llama-cpp-python 0.3.36.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ctxext.errors import UnsupportedModelError
from ctxext.methods import Spec
from ctxext.methods.base import Rotary
from ctxext.models.frequency_sets import FrequencySet
from ctxext.models.trained import ORIGINAL

CLOSE = 1e-6  # relative: a few float32 roundings
LARGEST = 3e38  # what float32 metadata can hold
PER_PAIR = frozenset({"llama"})  # the architectures that read rope_freqs.weight
TURNS = (32.0, 1.0)  # YaRN's beta_fast and beta_slow: from a file, these two hold for every model


@dataclass(frozen=True)
class Ramp:
    """YaRN's parameters: the factor k, T in tokens, and the turns between which it sets in."""

    k: float
    trained: int
    turns: tuple[float, float] = TURNS


@dataclass(frozen=True)
class Rotation:
    """What the patched model does: θ [d/2] in radians per token, and what q and k each carry."""

    theta: tuple[float, ...]
    factor: float
    ramp: Ramp | None = None

    def is_close(self, other: Rotation) -> bool:
        """Whether both say the same to a few roundings of float32."""
        pairs = [*zip(self.theta, other.theta, strict=True), (self.factor, other.factor)]
        return all(math.isclose(a, b, rel_tol=CLOSE) and a > 0 for a, b in pairs)


@dataclass(frozen=True)
class Expression:
    """What stands in a GGUF file, and the name for it; `k` is 1 without a linear factor or YaRN."""

    name: str
    base: float
    k: float = 1.0
    attention: float = 1.0
    ramp: Ramp | None = None
    factors: tuple[float, ...] = ()

    def rotation(self, pairs: int) -> Rotation:
        """What llama.cpp makes of it."""
        factors = self.factors or (1.0,) * pairs
        kept = _kept(self.ramp, self.base, pairs) if self.ramp else [0.0] * pairs
        theta = tuple(
            self.base ** (-i / pairs) / factors[i] * (kept[i] + (1 - kept[i]) / self.k)
            for i in range(pairs)
        )
        carried = 0.1 * math.log(self.k) + 1 if self.ramp else 1.0
        return Rotation(theta, self.attention * carried)


def wanted(freqs: FrequencySet, spec: Spec) -> Rotation:
    """The rotation of the patched model; a spec of no frequency method leaves the model's own."""
    own, rope = freqs.facts, freqs.rope
    scales = spec.scales(own)
    theta = tuple(t / scale for t, scale in zip(own.theta, scales, strict=True))
    factor, ramp = freqs.start.factor * spec.attention_factor(own), None
    if freqs.scaled and not freqs.replaced:
        if rope["rope_type"] == "yarn" and set(scales) == {1.0}:
            turns = (float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1))
            ramp = Ramp(float(rope["factor"]), int(rope[ORIGINAL]), turns)
    elif len(spec.frequencies) == 1 and spec.frequencies[0].name == "yarn":
        yarn: Any = spec.frequencies[0]
        ramp = Ramp(yarn.k, own.trained, (yarn.beta_fast, yarn.beta_slow))
    return Rotation(theta, factor, ramp)


def express(architecture: str, rotation: Rotation, own: Rotary, what: str) -> Expression:
    """The first expression that llama.cpp reads as this rotation.

    Args:
        architecture: llama.cpp's name.
        rotation: what the patched model does.
        own: the model's own rotation.
        what: the spec and the model, for the message.

    Raises:
        UnsupportedModelError: there is none.
    """
    pairs = len(rotation.theta)
    for found in _candidates(architecture, rotation, own):
        held = found.rotation(pairs).factor
        full = replace(found, attention=rotation.factor / held)
        if _fits(full) and full.rotation(pairs).is_close(rotation):
            return full
    raise UnsupportedModelError(
        f"llama.cpp cannot express {what}: its {architecture} architecture reads a base, one "
        "linear factor, or YaRN with its usual betas (ntk, ntk-old, pi or yarn), and λ for each "
        f"pair only in {', '.join(sorted(PER_PAIR))} models"
    )


def options(rotation: Rotation, own: Rotary) -> list[str] | None:
    """The options by which llama.cpp's programs turn a file of the unscaled model so; None where
    there are none.

    Args:
        own: the model's own rotation, which has no scaling.
    """
    pairs = len(rotation.theta)
    for found in _candidates("", rotation, own):
        full = replace(found, attention=rotation.factor / found.rotation(pairs).factor)
        if _fits(full) and full.rotation(pairs).is_close(rotation):
            return _options(full, own)
    return None


def _options(expression: Expression, own: Rotary) -> list[str]:
    words = []
    if expression.ramp:
        words += ["--rope-scaling", "yarn", "--yarn-orig-ctx", str(expression.ramp.trained)]
    elif expression.k != 1:
        words += ["--rope-scaling", "linear"]
    if expression.k != 1:
        words += ["--rope-scale", f"{expression.k:.9g}"]
    if not math.isclose(expression.base, own.base, rel_tol=CLOSE):
        words += ["--rope-freq-base", f"{expression.base:.9g}"]
    if not math.isclose(expression.attention, 1, rel_tol=CLOSE):
        words += ["--yarn-attn-factor", f"{expression.attention:.9g}"]
    return words


def _candidates(architecture: str, rotation: Rotation, own: Rotary) -> Iterator[Expression]:
    first, last, pairs = rotation.theta[0], rotation.theta[-1], len(rotation.theta)
    if not all(math.isfinite(t) and t > 1 / LARGEST for t in rotation.theta):
        return
    k = 1 / first
    name = "rope.freq_base" if k == 1 else "linear"
    yield Expression(name, own.base, k)
    if pairs > 1 and (log := math.log(first / last) * pairs / (pairs - 1)) < math.log(LARGEST):
        yield Expression(name, math.exp(log), k)
    if (ramp := rotation.ramp) and ramp.turns == TURNS and architecture not in PER_PAIR:
        yield Expression("yarn", own.base, ramp.k, ramp=ramp)
    if architecture in PER_PAIR:
        factors = (own.base ** (-i / pairs) / t for i, t in enumerate(rotation.theta))
        yield Expression("rope_freqs", own.base, factors=tuple(factors))


def _fits(expression: Expression) -> bool:
    numbers = (expression.base, expression.k, expression.attention, *expression.factors)
    return all(1 / LARGEST < number < LARGEST for number in numbers)


def _kept(ramp: Ramp, base: float, pairs: int) -> list[float]:
    """How much of each pair YaRN leaves unscaled, 1 to 0; in float32, as ggml computes it."""
    turns = torch.tensor(ramp.turns, dtype=torch.float32)
    per_turn = torch.log(ramp.trained / (turns * 2 * math.pi))
    turning = 2 * pairs * per_turn / (2 * torch.log(torch.tensor(base, dtype=torch.float32)))
    low = max(0.0, float(torch.floor(turning[0])))
    high = min(2.0 * pairs - 1, float(torch.ceil(turning[1])))
    width = max(0.001, high - low)
    return [1 - min(1.0, max(0.0, (i - low) / width)) for i in range(pairs)]


def add_to(writer: Any, expression: Expression) -> None:
    """Write the metadata; the tensor of λ is the caller's."""
    from gguf import RopeScalingType

    writer.add_rope_freq_base(expression.base)
    kind = RopeScalingType.LINEAR if expression.k != 1 else RopeScalingType.NONE
    if ramp := expression.ramp:
        kind = RopeScalingType.YARN
        writer.add_rope_scaling_orig_ctx_len(ramp.trained)
    writer.add_rope_scaling_type(kind)
    if kind is not RopeScalingType.NONE:
        writer.add_rope_scaling_factor(expression.k)
    if expression.attention != 1:
        writer.add_rope_scaling_attn_factors(expression.attention)


def read_back(field: Any, factors: tuple[float, ...]) -> Expression:
    """The expression in a file: `field(key)` is the metadata under `<arch>.rope.<key>` or None."""
    kind, ramp = field("scaling.type"), None
    if kind == "yarn":
        ramp = Ramp(field("scaling.factor"), int(field("scaling.original_context_length")))
    k = 1.0 if kind == "none" else float(field("scaling.factor"))
    attention = field("scaling.attn_factor")
    attention = 1.0 if attention is None else float(attention)
    return Expression("read", float(field("freq_base")), k, attention, ramp, factors)
