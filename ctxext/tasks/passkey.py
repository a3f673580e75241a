"""Pass-key retrieval."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxext.errors import UsageError
from ctxext.notation import Count
from ctxext.tasks import register
from ctxext.tasks.base import Data, Row, Score, at_least_one
from ctxext.tasks.data import Text, load_text
from ctxext.tasks.depths import Hiding, by_depth
from ctxext.tasks.prompts.fit import Prompt

HEADER = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION, OPENING = "What is the pass key?", " The pass key is"
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
BOX = "The pass key of the {colour} box is {key}. Remember it. {key} opens the {colour} box."
POINTER = "The box that you will be asked for is the {colour} box. Remember it."
OF_BOX = ("What is the pass key of the {colour} box?", " The pass key of the {colour} box is")
OF_POINTED = ("What is the pass key of the box that you are asked for?", OPENING)
_PUBLISHED = Text("filler", (FILLER,))


@register("passkey")
@dataclass(frozen=True)
class PassKey(Hiding):
    """How often the model finds a pass key of five random digits in the published filler prompt
    (Landmark Attention, arXiv 2305.16300), or with --data in that text: `samples` prompts that fill
    the length for each of `depths` places from 0 (the beginning) to 1, answered greedily, right
    where its first digits are the key; what follows them does not count, as in the published
    script, which stops there. With `needles` above 1 so many keys of boxes of different colours are
    hidden, the others anywhere, and the question names the colour of one; with `hops=2` it does
    not: a line that is hidden anywhere does.
    """

    metric = "passkey"
    higher_is_better = True
    perfect_score = 1.0
    samples: Count = field(default=20, metadata={"help": "samples (of each depth; default 20)"})
    depths: Count = field(default=11, metadata={"help": "depths (from 0 to 1; default 11)"})
    chat: bool = field(
        default=False,
        metadata={
            "help": "chat=true|false: the tokenizer's chat template, always or never (default "
            "false, as published)"
        },
    )

    hops: Count = field(
        default=1,
        metadata={"help": "hops (1, or 2: what is asked for stands elsewhere; default 1)"},
    )
    needles: Count | None = field(
        default=None,
        metadata={"help": f"needles (1 to {len(COLOURS)} keys; default 1, or 4 for hops=2)"},
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        at_least_one(self, "samples", "depths")
        if self.hops not in (1, 2):
            raise UsageError(f"bad value {self.hops} for 'hops' of {self.name}: give 1 or 2")
        least = self.hops  # of one key alone, no line would have to say which
        if self.needles is not None and not least <= self.needles <= len(COLOURS):
            raise UsageError(
                f"bad value {self.needles} for 'needles' of {self.name}: "
                f"give {least} to {len(COLOURS)}"
            )

    def read(self, data: str | None) -> Data:
        """The published filler, unless a text is named."""
        return _PUBLISHED if data is None else load_text(data)

    @property
    def generates(self) -> int:
        """Room for a space and five digits, of which no tokenizer makes more than a token each."""
        return 8

    def score(self, rows: Sequence[Row]) -> Score:
        """The share of right answers, in all and for each depth."""
        return by_depth((row["depth"], right(row["pred"], row["answers"][0])) for row in rows)

    def maker(self, data: Any, seed: int) -> KeyMaker:
        """What makes the prompts."""
        filler = " ".join(data.documents)
        needles = self.needles or (4 if self.hops == 2 else 1)
        return KeyMaker(filler, data != _PUBLISHED, seed, self.depths, self.hops, needles)


def right(answer: str, key: str) -> bool:
    """Whether the first digits of the answer are the key; what follows was not asked for."""
    found = re.search("[0-9]+", answer)
    return found is not None and found[0].startswith(key)


@dataclass(frozen=True)
class KeyMaker:
    """Makes the prompts of passkey; a unit is a character of filler.

    Attributes:
        anywhere: whether a sample's filler may begin anywhere in the text.
    """

    filler: str
    anywhere: bool
    seed: int
    depths: int
    hops: int = 1
    needles: int = 1

    def least(self, index: int) -> int:
        """No filler at all."""
        return 0

    def make(self, index: int, units: int) -> Prompt:
        """A prompt with so many characters of filler, parted at the depth by the key."""
        number, step = divmod(index, self.depths)
        depth = step / (self.depths - 1) if self.depths > 1 else 0.5
        rng = random.Random(f"passkey {self.seed} {number} {step}")
        key = f"{rng.randrange(10**5):05d}"
        begin = rng.randrange(len(self.filler)) if self.anywhere else 0
        text = self._from(begin, units)
        hidden, question, opening = self._hidden(rng, key, depth)
        pieces, done = [HEADER], 0
        for at, line in hidden:
            place = int(units * at)
            pieces += [text[done:place], line]
            done = place
        pieces += [text[done:], question]
        return Prompt("\n".join(pieces), (key,), depth, opening)

    def _hidden(
        self, rng: random.Random, key: str, depth: float
    ) -> tuple[list[tuple[float, str]], str, str]:
        """The lines that are hidden, with their depths, in their order; the question, and how its
        answer begins."""
        if self.needles == 1:
            return [(depth, NEEDLE.format(key=key))], QUESTION, OPENING
        asked, *others = rng.sample(COLOURS, self.needles)
        found = [(depth, BOX.format(colour=asked, key=key))]
        wrong = [f"{n:05d}" for n in rng.sample(range(10**5), self.needles)]
        for colour, other in zip(others, (one for one in wrong if one != key), strict=False):
            found.append((rng.random(), BOX.format(colour=colour, key=other)))
        question, opening = OF_BOX
        if self.hops == 2:
            found.append((rng.random(), POINTER.format(colour=asked)))
            question, opening = OF_POINTED
        return sorted(found), question.format(colour=asked), opening.format(colour=asked)

    def _from(self, begin: int, units: int) -> str:
        """So many characters from there on, the text said again where it ends."""
        text = self.filler[begin : begin + units]
        again = f"{self.filler} "
        if len(text) < units:
            text += " "
            text += again * ((units - len(text)) // len(again) + 1)
        return text[:units]
