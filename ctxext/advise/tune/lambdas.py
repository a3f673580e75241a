"""λ by the pair: longrope's long factors, searched for from what other methods make of them.

ln λ is drawn at a few pairs, each at least what it is at the pair before, and is straight between
them. Each point is a file as `longrope:factors=@FILE` takes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext import methods
from ctxext.advise.tune.curves import FIRST, SPREAD, curve, places_of, rounded
from ctxext.advise.tune.space import Default, Draw
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.methods.base import Rotary, Span
from ctxext.system.files import write_atomically

if TYPE_CHECKING:
    from ctxext.models.loading import Source

NAME = "longrope"
GUESSES = ("pi", "ntk", "yarn", "mrrope")
SHARPEST = 1.5  # times which rotated queries and keys each are multiplied, at most


def asked(texts: Sequence[str]) -> Spec | None:
    """The spec whose `longrope` has no factors, which are to be searched for, if there is one.

    Raises:
        UsageError: there are others beside it.
    """
    specs = [methods.parse(text) for text in texts]
    bare = [spec for spec in specs if any(_is_bare(m) for m in spec.methods)]
    if not bare:
        return None
    if len(specs) > 1 or sum(map(_is_bare, bare[0].methods)) > 1:
        raise UsageError(
            f"the factors of {NAME} are searched for by themselves: give --method {str(bare[0])!r} "
            f"alone, or {NAME}:factors=@FILE.json"
        )
    return bare[0]


def rotary(config: Any, source: Source, length: int) -> Rotary:
    """What a model's λ divide; UsageError where its rotary modules need lists of several sizes."""
    from ctxext.models.frequency_sets import find_frequency_sets
    from ctxext.models.small import small_model

    small, _ = small_model(config, trust_remote_code=source.trust_remote_code)
    found = find_frequency_sets(small, source.train_len, source.own_scaling, length)
    sizes = sorted({len(freqs.facts.theta) for freqs in found})
    if len(sizes) > 1:
        said = " and ".join(map(str, sizes))
        raise UsageError(f"the model has {said} pairs, and {NAME} one list for all: not tuned")
    return found[0].facts


@dataclass(frozen=True)
class Lambdas:
    """The space of one spec's λ at one span.

    Attributes:
        spec: one of its methods is `longrope` without factors.
        rotary: of the model.
        folder: where the files are put.
        seed: of the first points.
    """

    spec: Spec
    span: Span
    rotary: Rotary
    folder: Path
    seed: int = 0

    def __post_init__(self) -> None:
        if not str(self.folder).isprintable() or {*",+"} & {*str(self.folder)}:
            raise UsageError(f"bad value {str(self.folder)!r} for --out: give it no comma nor plus")

    def draw(self, draw: Draw) -> Spec:
        """A spec whose λ are written to a file."""
        drawn = [draw.suggest_float(label, 0.0, self._most) for label in self._labels]
        logs = list(accumulate(drawn, max))
        given = self._method.attention
        if given is None:
            given = draw.suggest_float("attention", 1.0, SHARPEST)
            given = rounded(given)
        return self._with(
            dataclasses.replace(self._method, factors=self._file(logs), attention=given)
        )

    def defaults(self) -> Iterator[Default]:
        """The unpatched model, what is beside the λ alone, and each guess in their place."""
        nothing = self._drawn([1.0] * len(self.rotary.theta), 1.0)
        yield Default(methods.parse("rope"), nothing)
        if len(self.spec.methods) > 1:
            yield Default(Spec(tuple(m for m in self.spec.methods if not _is_bare(m))), nothing)
        for name in GUESSES:
            if name in methods.names():
                guess = methods.parse(name)
                found = guess.resolve(self.span)
                drawn = self._drawn(found.scales(self.rotary), found.attention_factor(self.rotary))
                yield Default(self._with(guess.methods[0]), drawn)

    def mutants(self) -> Iterator[dict[str, Any]]:
        """What to draw for the other first points: guesses, each number a little off."""
        chance, guesses = random.Random(self.seed), [one.drawn for one in self.defaults()]
        for place in range(FIRST - len(guesses)):
            drawn = dict(guesses[-1 - place % max(1, len(guesses) - 1)])
            for label in self._labels:
                moved = drawn[label] + chance.gauss(0, SPREAD) * math.log(self.span.stretch())
                drawn[label] = min(max(moved, 0.0), self._most)
            yield drawn

    @property
    def _method(self) -> Any:
        return next(m for m in self.spec.methods if _is_bare(m))

    @property
    def _most(self) -> float:
        """ln λ at most: of twice what L needs."""
        return math.log(2 * self.span.stretch())

    @property
    def _places(self) -> list[int]:
        return places_of(len(self.rotary.theta))

    @property
    def _labels(self) -> list[str]:
        return [f"ln λ of pair {place}" for place in self._places]

    def _drawn(self, scales: Sequence[float], attention: float) -> dict[str, Any]:
        """What to draw for these λ, as near as the space has them."""
        logs = (min(max(math.log(scales[i]), 0.0), self._most) for i in self._places)
        found = dict(zip(self._labels, accumulate(logs, max), strict=True))
        if self._method.attention is None:
            found["attention"] = min(max(attention, 1.0), SHARPEST)
        return found

    def _with(self, method: Any) -> Spec:
        """The spec with a method in place of the bare one."""
        return Spec(tuple(method if _is_bare(m) else m for m in self.spec.methods))

    def _file(self, logs: Sequence[float]) -> str:
        """The file that has these ln λ of the places, as a parameter names it."""
        long = curve(logs, len(self.rotary.theta))
        text = json.dumps({"short_factor": [1.0] * len(long), "long_factor": long}) + "\n"
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        return f"@{path.as_posix()}"


def _is_bare(method: Any) -> bool:
    return method.name == NAME and method.factors is None
