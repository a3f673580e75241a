"""Needles in a haystack: RULER's niah.py with the parameters of its synthetic.yaml."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ctxext.tasks.prompts.fit import Prompt, depth_of, stream
from ctxext.tasks.ruler.lexicon import Essay, lexicon

TOKENS_TO_GENERATE = 128
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?"
)
ANSWER_PREFIX = " The special magic {type_needle_v} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = [round(100 * i / 39) for i in range(40)]  # per cent of an essay's sentences


class Needles(NamedTuple):
    """What is hidden where, and how many are asked for."""

    type_haystack: str
    type_needle_k: str = "words"
    type_needle_v: str = "numbers"
    num_needle_k: int = 1
    num_needle_v: int = 1
    num_needle_q: int = 1


NIAH = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", type_needle_v="uuids"),
    "niah_multikey_1": Needles("essay", num_needle_k=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", type_needle_k="uuids", type_needle_v="uuids"),
    "niah_multivalue": Needles("essay", num_needle_v=4),
    "niah_multiquery": Needles("essay", num_needle_q=4),
}


@dataclass(frozen=True)
class NiahMaker:
    """Makes the prompts of a niah task; a unit is a word of an essay, else a line.

    Keys, and values, differ from each other in all of a prompt; RULER leaves that to chance.
    """

    name: str
    seed: int
    essay: Essay | None = None

    @property
    def needles(self) -> Needles:
        """The task's parameters."""
        return NIAH[self.name]

    def least(self, index: int) -> int:
        """As many units as needles, so that each has a place of its own."""
        needles = self.needles
        return max(needles.num_needle_k, needles.num_needle_q) * needles.num_needle_v

    def make(self, index: int, units: int) -> Prompt:
        """A prompt with so many words or lines of haystack around the needles."""
        needles, rng = self.needles, stream(self.name, self.seed, index)
        keys = _Fresh(rng, needles.type_needle_k)
        values = _Fresh(rng, needles.type_needle_v)
        hidden = {
            keys(): [values() for _ in range(needles.num_needle_v)]
            for _ in range(max(needles.num_needle_k, needles.num_needle_q))
        }
        kind = needles.type_needle_v
        lines = [_needle(kind, key, value) for key, some in hidden.items() for value in some]
        rng.shuffle(lines)
        if self.essay is not None:
            context = _in_essay(rng, self.essay, units, lines)
        else:
            noise = needles.type_haystack == "noise"
            hay = [NOISE if noise else _needle(kind, keys(), values()) for _ in range(units)]
            context = _in_lines(rng, hay, lines)
        queries = rng.sample(list(hidden), needles.num_needle_q)
        answers = tuple(value for key in queries for value in hidden[key])
        depth = None
        if len(answers) == 1:
            line = _needle(kind, queries[0], answers[0])
            depth = depth_of(context.index(line), len(line), len(context))
        text, opening = _texts(kind, context, queries, len(answers) == 1)
        return Prompt(text, answers, depth, opening)


class _Fresh:
    """Random keys or values of one kind, none twice."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self._rng, self._draw, self._seen = rng, _DRAW[kind], set[str]()

    def __call__(self) -> str:
        while (text := self._draw(self._rng)) in self._seen:
            pass
        self._seen.add(text)
        return text


def _number(rng: random.Random) -> str:
    return str(rng.randint(10**6, 10**7 - 1))


def _word(rng: random.Random) -> str:
    return lexicon().compound(rng)


def random_uuid(rng: random.Random) -> str:
    """A random UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_DRAW: dict[str, Callable[[random.Random], str]] = {
    "numbers": _number,
    "words": _word,
    "uuids": random_uuid,
}


def _needle(kind: str, key: str, value: str) -> str:
    return NEEDLE.format(type_needle_v=kind, key=key, value=value)


def _in_essay(rng: random.Random, essay: Essay, units: int, needles: list[str]) -> str:
    """The needles between sentences of the first words, at depths that differ."""
    words, starts = essay.first(units)
    sentences = len(starts) - 1
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    pieces, last = [], 0
    for depth, needle in zip(depths, needles, strict=True):
        place = starts[int(sentences * (depth / 100))]
        pieces += [*words[last:place], needle]
        last = place
    return " ".join([*pieces, *words[last:]])


def _in_lines(rng: random.Random, lines: list[str], needles: list[str]) -> str:
    """The needles as lines of their own, each before another line."""
    for place, needle in zip(
        sorted(rng.sample(range(len(lines)), len(needles)), reverse=True), needles, strict=True
    ):
        lines.insert(place, needle)
    return "\n".join(lines)


def _texts(kind: str, context: str, queries: list[str], single: bool) -> tuple[str, str]:
    """The prompt and its answer's beginning; in the singular where one value is asked for."""
    templates = [TEMPLATE, ANSWER_PREFIX]
    if single:
        more = [("Some", "A"), ("are all", "is"), ("are", "is")]
        for some, one in more:
            templates = [template.replace(some, one) for template in templates]
        kind = kind.removesuffix("s")
    query = ", and ".join([", ".join(queries[:-1]), queries[-1]] if queries[1:] else queries)
    text, opening = (t.format(type_needle_v=kind, context=context, query=query) for t in templates)
    return text, opening
