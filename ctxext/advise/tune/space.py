"""What is searched: families of specs, the ranges of their parameters, a query scale or none.

What can be searched of a method is in the method's own file, as `Method.search`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ctxext import methods
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.methods.base import Method, QueryScale, Range, Span

NONE = "none"  # among the query scales
USUAL = (NONE, "logn")  # those that defaults are tried with
DIGITS = 3  # significant ones of a number that is not whole


class Draw(Protocol):
    """What proposes values, as Optuna's trials do."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from low to high."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number from low to high."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Family:
    """A spec whose given parameters stay, and whose others are searched.

    Attributes:
        name: the spec as it was written; it tells families apart.
        given: the parameters that stay, for each of the spec's methods.
    """

    name: str
    spec: Spec
    given: tuple[frozenset[str], ...]

    def ranges(self, span: Span) -> dict[tuple[int, str], Range]:
        """Where each parameter is looked for, by its method's place and its name."""
        return {
            (place, name): found
            for place, method in enumerate(self.spec.methods)
            for name, found in (method.search(span) or {}).items()
            if name not in self.given[place]
        }

    def label(self, place: int, name: str) -> str:
        """What Optuna knows a parameter by."""
        return f"{self.name} {place} {name}"

    def draw(self, draw: Draw, span: Span) -> Spec:
        """The spec with a value for each parameter; UsageError where they do not go together."""
        values: list[dict[str, float]] = [{} for _ in self.spec.methods]
        for (place, name), found in self.ranges(span).items():
            values[place][name] = _drawn(draw, self.label(place, name), found)
        pairs = zip(self.spec.methods, values, strict=True)
        return Spec(tuple(dataclasses.replace(method, **some) for method, some in pairs))


def _drawn(draw: Draw, label: str, found: Range) -> float:
    if found.whole:
        return draw.suggest_int(label, int(found.low), int(found.high), log=found.log)
    value = draw.suggest_float(label, found.low, found.high, log=found.log)
    return min(max(float(f"{value:.{DIGITS}g}"), found.low), found.high)


@dataclass(frozen=True)
class Default:
    """A spec that is tried before the search begins.

    Attributes:
        spec: as a user would write it.
        drawn: what to draw to get there.
    """

    spec: Spec
    drawn: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Families at one span; those without a query scale of their own are searched with each one.

    Attributes:
        families: their names differ.
    """

    families: tuple[Family, ...]
    span: Span

    def draw(self, draw: Draw) -> Spec:
        """A spec; UsageError where the values drawn do not go together."""
        families, scales = {one.name: one for one in self.families}, _scales()
        family = families[draw.suggest_categorical("family", list(families))]
        spec = family.draw(draw, self.span)
        if spec.query_scales:
            return spec
        return _scaled(spec, scales[draw.suggest_categorical("query scale", list(scales))])

    def defaults(self) -> Iterator[Default]:
        """Every family with its parameters at their defaults, without a query scale and with logn.

        A family whose defaults do not exist at this span has none of them.

        Raises:
            UsageError: that is so of a family that has nothing to search for.
        """
        for family in self.families:
            try:
                resolved = family.spec.resolve(self.span)
            except UsageError:
                if not family.ranges(self.span):
                    raise
                continue
            drawn: dict[str, Any] = {"family": family.name}
            for place, name in family.ranges(self.span):
                drawn[family.label(place, name)] = getattr(resolved.methods[place], name)
            if family.spec.query_scales:
                yield Default(family.spec, drawn)
                continue
            for name in USUAL:
                yield Default(_scaled(family.spec, _scales()[name]), {**drawn, "query scale": name})

    def mutants(self) -> Iterator[dict[str, Any]]:
        """Nothing: what is drawn by itself is as good."""
        return iter(())


def _scales() -> dict[str, Method | None]:
    """The query scales by name, with none of them first."""
    found = methods.REGISTRY.classes()
    return {NONE: None, **{c.name: c() for c in found if issubclass(c, QueryScale)}}


def _scaled(spec: Spec, scale: Method | None) -> Spec:
    """The spec with the scale; plain `rope` is not said beside it."""
    if scale is None:
        return spec
    return Spec((*(() if spec.unpatched else spec.methods), scale))


def parse_families(texts: Sequence[str], span: Span) -> tuple[Family, ...]:
    """The families of these specs, or of every method by itself, the unpatched model first.

    Raises:
        UsageError: a spec is wrong, or one of its methods must not be tried as it is.
    """
    families = {}
    for text in ("rope", *(texts or _alone(span))):
        spec = methods.parse(text)
        if unfit := [m.name for m in spec.methods if m.search(span) is None]:
            raise UsageError(
                f"{unfit[0]} cannot be tuned (in {text!r}): it is for training, or needs a file; "
                f"valid: {', '.join(_alone(span))}"
            )
        families[text] = Family(text, spec, tuple(map(frozenset, methods.given(text))))
    return tuple(families.values())


def _alone(span: Span) -> list[str]:
    """The methods that can be tried by themselves, but for query scales."""
    found = methods.REGISTRY.classes()
    return [c.name for c in found if not issubclass(c, QueryScale) and c().search(span) is not None]
