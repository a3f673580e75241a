"""vt: RULER's variable_tracking.py, one chain of assignments among noise after a worked example."""

from __future__ import annotations

import itertools
import random
import string
from dataclasses import dataclass

from ctxext.models.prompting import Prompter
from ctxext.tasks.prompts.fit import Prompt, TooShort, largest, stream
from ctxext.tasks.ruler.niah import NOISE

TOKENS_TO_GENERATE = 30
TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} "
    "variables are assigned the value {query}, they are: "
)
NUM_HOPS = 4  # of the one chain
EXAMPLE_TOKENS = 500  # the most that the worked example takes
EXAMPLE_LEAST = 5  # its fewest lines of noise, however many tokens they take


@dataclass(frozen=True)
class TrackingMaker:
    """Makes the prompts of vt; a unit is a line of noise.

    Where the worked example's assignments stand is the same in all samples of a cell; its names
    and value are not, and none is that of another chain.

    Attributes:
        example: its lines of noise, and the places of its assignments among them.
    """

    seed: int
    example: tuple[int, tuple[int, ...]]

    @classmethod
    def of(cls, prompter: Prompter, seed: int) -> TrackingMaker:
        """With the example that fills `EXAMPLE_TOKENS`."""

        def places(units: int) -> tuple[int, ...]:
            return _places(random.Random(f"ruler vt example {seed}"), units)

        def count(units: int) -> int:
            return len(prompter.plain("".join(_texts(names, "12345", units, places(units)))))

        names = _names(random.Random(f"ruler vt names {seed}"), 3)
        try:
            units, _ = largest(count, EXAMPLE_LEAST, EXAMPLE_TOKENS)
        except TooShort:
            units = EXAMPLE_LEAST
        return cls(seed, (units, places(units)))

    def least(self, index: int) -> int:
        """A line of noise for each assignment."""
        return NUM_HOPS + 1

    def make(self, index: int, units: int) -> Prompt:
        """The worked example, then a chain among so many lines of noise."""
        rng = stream("vt", self.seed, index)
        shown, asked = (str(value) for value in rng.sample(range(10000, 99999), 2))
        names = _names(rng, 3)
        example = "".join(_texts(names, shown, *self.example)) + " " + " ".join(names) + "\n"
        answers = _names(rng, 5)
        text, opening = _texts(answers, asked, units, _places(rng, units))
        return Prompt(example + "\n" + text, tuple(answers), opening=opening)


def _names(rng: random.Random, letters: int) -> list[str]:
    """A chain's variables, which differ; none is called VAR."""
    names: dict[str, None] = {}
    while len(names) <= NUM_HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name != "VAR":
            names[name] = None
    return list(names)


def _places(rng: random.Random, units: int) -> tuple[int, ...]:
    """Before which line of noise each assignment of a chain stands."""
    return tuple(sorted(rng.sample(range(units), NUM_HOPS + 1)))


def _texts(names: list[str], value: str, units: int, places: tuple[int, ...]) -> tuple[str, str]:
    """One prompt, a chain among so many lines of noise and the question; and its answer's
    beginning.
    """
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {after} = VAR {before} " for before, after in itertools.pairwise(names)]
    lines = [NOISE] * units
    for inserted, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + inserted, assignment)
    text = TEMPLATE.format(context="\n".join(lines), query=value)
    return text, ANSWER_PREFIX.format(query=value, num_v=NUM_HOPS + 1)
