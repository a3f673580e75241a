"""The methods: one file each, one registry, and specs that compose them with `+`.

    parse("ntk:factor=8+logn")      a Spec
    given("ntk:factor=8+logn")      [{"factor"}, set()]
    names()                         every method's name
    register("my-method")           decorator that enters a dataclass from outside the package

Sources of the formulas stand in each method's docstring, which `ctxext methods` prints.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ctxext.errors import UsageError
from ctxext.methods.base import (
    AttentionRule,
    Distance,
    Frequency,
    Method,
    QueryScale,
    Rotary,
    Span,
    Stretch,
)
from ctxext.notation import AUTO
from ctxext.registry import Registry

__all__ = ["NOTATION", "REGISTRY", "Spec", "given", "names", "parse", "register", "split"]

_SHARED = ("base", "files", "parts", "values")  # what methods have in common
REGISTRY: Registry[Method] = Registry("method", __name__, private=_SHARED)
NOTATION = (
    "T is the trained length and L the evaluated one, in tokens, d the rotary dimension, "
    "i = 0 … d/2−1 the pair index, θ_i = base^(−2i/d) a pair's frequency, which λ_i divides, n the "
    "place of a query counted from 1, and δ how far a key stands behind its query."
)
_SUM = re.compile(r"(?<![0-9][eE])\+")  # the plus of 1e+3 parts nothing
register = REGISTRY.register
names = REGISTRY.names


@dataclass(frozen=True)
class Spec:
    """A composition of methods: λs multiply, query scales multiply, at most one distance."""

    methods: tuple[Method, ...]

    def __str__(self) -> str:
        """The shortest text that parses back to this spec."""
        return "+".join(str(method) for method in self.methods)

    def full(self) -> str:
        """The spec with all parameters; after `resolve`, every value that was used."""
        return "+".join(method.full() for method in self.methods)

    def resolve(self, span: Span) -> Spec:
        """Every default filled in for T and L; UsageError where one needs L and it is not given."""
        return Spec(tuple(method.resolve(span) for method in self.methods))

    @property
    def at_hand(self) -> tuple[str, ...]:
        """The parameters that are `auto`, as a spec writes them."""
        return tuple(f"{m.name}:{name}={AUTO}" for m in self.methods for name in m.at_hand)

    def settle(self, span: Span) -> Spec:
        """`resolve`, but for methods that go by the length of each sequence."""
        return Spec(tuple(m if m.at_hand else m.resolve(span) for m in self.methods))

    @property
    def versions(self) -> dict[str, int]:
        """The version of each method, by what it is of."""
        return {f"method {method.name}": method.version for method in self.methods}

    @property
    def by_layer(self) -> dict[str, str]:
        """The lists that have a factor for each attention layer, by what a spec calls them."""
        some = [m for m in self.methods if isinstance(m, Stretch) and m.layers is not None]
        return {f"{m.name}:layers": m.layers or "" for m in some}

    def at_layer(self, layer: int) -> Spec:
        """The spec as one attention layer has it, counted from 0; called on a resolved one."""
        return Spec(tuple(method.at_layer(layer) for method in self.methods))

    @property
    def frequencies(self) -> tuple[Frequency, ...]:
        """The frequency methods that change something (`rope` does not)."""
        found = (m for m in self.methods if isinstance(m, Frequency))
        return tuple(m for m in found if m.name != "rope")

    @property
    def distance(self) -> Distance | None:
        """The distance method, if there is one."""
        return next((m for m in self.methods if isinstance(m, Distance)), None)

    @property
    def query_scales(self) -> tuple[QueryScale, ...]:
        """The query scales."""
        return tuple(m for m in self.methods if isinstance(m, QueryScale))

    @property
    def unpatched(self) -> bool:
        """Whether this is plain `rope`, the model as it is."""
        return all(method.name == "rope" for method in self.methods)

    @property
    def rule(self) -> AttentionRule | None:
        """The attention rule, if there is one."""
        return next((m for m in self.methods if isinstance(m, AttentionRule)), None)

    @property
    def changes_attention(self) -> bool:
        """Whether attention itself is changed, and not frequencies alone."""
        return bool(self.distance or self.query_scales or self.rule)

    def scales(self, rotary: Rotary) -> list[float]:
        """The product of the frequency methods' λ [d/2], each from the model's own θ."""
        columns = [method.scales(rotary) for method in self.frequencies]
        return [math.prod(column[i] for column in columns) for i in range(len(rotary.theta))]

    def attention_factor(self, rotary: Rotary | None = None) -> float:
        """The product of the attention factors; rotated queries and keys each carry it.

        Args:
            rotary: the model's own rotation, where one is meant.
        """
        if rotary is None:
            return math.prod(method.attention_factor() for method in self.frequencies)
        return math.prod(method.attention_factor_on(rotary) for method in self.frequencies)


def split(text: str) -> list[str]:
    """The methods that a text composes, a text each."""
    return _SUM.split(text)


def given(text: str) -> list[set[str]]:
    """The parameters that a spec which parses gives, method by method, defaults among them."""
    lists = (item.partition(":")[2].split(",") for item in split(text))
    return [{pair.partition("=")[0].strip() for pair in pairs} - {""} for pairs in lists]


def parse(text: str) -> Spec:
    """A spec from `name:key=value,key=value+name…`.

    Raises:
        UsageError: an unknown name or parameter, a bad value, or a second distance method; the
            message names the valid ones.
    """
    spec = Spec(tuple(REGISTRY.parse(item) for item in split(text)))
    distances = [m.name for m in spec.methods if isinstance(m, Distance)]
    if len(distances) > 1:
        raise UsageError(
            f"two distance methods in {text!r}: {' and '.join(distances)} exclude each other; "
            "keep one (frequency methods and logn compose with it)"
        )
    rules = [m.name for m in spec.methods if isinstance(m, AttentionRule)]
    if len(rules) > 1 or (rules and distances):
        raise UsageError(
            f"{rules[0]} in {text!r} goes with frequency methods and query scales alone, not with "
            f"{[*distances, *rules[1:]][0]}: keep one of the two"
        )
    if spec.by_layer and (others := [*distances, *spec.at_hand]):
        raise UsageError(
            f"{next(iter(spec.by_layer))} in {text!r} goes with fixed frequencies and query "
            f"scales alone, not with {others[0]}: keep one of the two"
        )
    return spec
