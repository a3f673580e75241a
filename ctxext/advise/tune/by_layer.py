"""A factor for each attention layer, searched for from one for all and from slopes about it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ctxext import methods
from ctxext.advise.tune.curves import FIRST, SPREAD, curve, places_of
from ctxext.advise.tune.space import Default, Draw
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.methods.base import Span, Stretch, format_layers

SLOPES = ((0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0))  # ln factor by ln k, first and last layer


@dataclass(frozen=True)
class Asked:
    """A spec one of whose methods is to have a factor for each layer.

    Attributes:
        spec: without them.
        place: of that method.
    """

    spec: Spec
    place: int


def asked(texts: Sequence[str]) -> Asked | None:
    """What `pi:layers`, without a value, asks for, if one of the texts does.

    Raises:
        UsageError: there are others beside it, or its method has no factor to search for.
    """
    read = {text: [_apart(part) for part in methods.split(text)] for text in texts}
    bare = [text for text, parts in read.items() if any(asks for _, asks in parts)]
    if not bare:
        return None
    (text, *_), parts = bare, read[bare[0]]
    places = [place for place, (_, asks) in enumerate(parts) if asks]
    if len(texts) > 1 or len(places) > 1:
        raise UsageError(
            f"factors by layer are searched for by themselves: give --method {text!r} alone, with "
            "one list to search for, or layers=@FILE.json"
        )
    spec, place = methods.parse("+".join(part for part, _ in parts)), places[0]
    method = spec.methods[place]
    if not isinstance(method, Stretch) or method.factor is not None or method.layers is not None:
        raise UsageError(
            f"{method} has no factors by layer to search for (in {text!r}): give pi:layers, "
            "yarn:layers or the like"
        )
    if spec.distance is not None:
        raise UsageError(
            f"factors by layer do not go with {spec.distance.name} (in {text!r}): leave it out"
        )
    return Asked(spec, place)


def _apart(part: str) -> tuple[str, bool]:
    """A method without a parameter `layers` that has no value, and whether it had one."""
    name, _, rest = part.partition(":")
    given = rest.split(",") if rest else []
    others = [one for one in given if one.strip() != "layers"]
    return name + (":" + ",".join(others) if others else ""), len(others) < len(given)


@dataclass(frozen=True)
class Layers:
    """The space of factors by layer at one span.

    Attributes:
        count: of the model's attention layers.
        seed: of the first points.
    """

    asked: Asked
    span: Span
    count: int
    seed: int = 0

    def draw(self, draw: Draw) -> Spec:
        """A spec with a factor for each layer."""
        logs = [draw.suggest_float(label, 0.0, self._most) for label in self._labels]
        factors = format_layers(curve(logs, self.count))
        spec, place = self.asked.spec, self.asked.place
        method = dataclasses.replace(spec.methods[place], layers=factors)  # type: ignore[call-arg]
        return Spec((*spec.methods[:place], method, *spec.methods[place + 1 :]))

    def defaults(self) -> Iterator[Default]:
        """The unpatched model, and one factor for all layers."""
        yield Default(methods.parse("rope"), self._drawn(0.0, 0.0))
        yield Default(self.asked.spec, self._drawn(1.0, 1.0))

    def mutants(self) -> Iterator[dict[str, Any]]:
        """What to draw for the other first points: slopes, and one factor a little off by layer."""
        chance, slopes = random.Random(self.seed), [self._drawn(*slope) for slope in SLOPES]
        yield from slopes
        for _ in range(FIRST - len(slopes) - len(list(self.defaults()))):
            drawn = self._drawn(1.0, 1.0)
            for label in drawn:
                moved = drawn[label] + chance.gauss(0, SPREAD) * math.log(self.span.stretch())
                drawn[label] = min(max(moved, 0.0), self._most)
            yield drawn

    @property
    def _most(self) -> float:
        """ln of the largest factor: twice what L needs."""
        return math.log(2 * self.span.stretch())

    @property
    def _labels(self) -> list[str]:
        return [f"ln factor of layer {place}" for place in places_of(self.count)]

    def _drawn(self, first: float, last: float) -> dict[str, float]:
        """What to draw for factors between these of the first and the last layer, by ln k."""
        log, end = math.log(self.span.stretch()), max(1, len(self._labels) - 1)
        shares = (first + (last - first) * i / end for i in range(len(self._labels)))
        return {label: log * share for label, share in zip(self._labels, shares, strict=True)}
