"""Pass-key retrieval."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
_PUBLISHED = Text("filler", (FILLER,))


@register("passkey")
@dataclass(frozen=True)
class PassKey(Hiding):
    """How often the model finds a pass key of five random digits in the published filler prompt
    (Landmark Attention, arXiv 2305.16300), or with --data in that text: `samples` prompts that fill
    the length for each of `depths` places from 0 (the beginning) to 1, answered greedily, right
    where its first digits are the key; what follows them does not count, as in the published
    script, which stops there.
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

    def __post_init__(self) -> None:
        """Check the numbers."""
        at_least_one(self, "samples", "depths")

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
        return KeyMaker(" ".join(data.documents), data != _PUBLISHED, seed, self.depths)


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
        text, split = self._from(begin, units), int(units * depth)
        pieces = (HEADER, text[:split], NEEDLE.format(key=key), text[split:], QUESTION)
        return Prompt("\n".join(pieces), (key,), depth, OPENING)

    def _from(self, begin: int, units: int) -> str:
        """So many characters from there on, the text said again where it ends."""
        text = self.filler[begin : begin + units]
        again = f"{self.filler} "
        if len(text) < units:
            text += " "
            text += again * ((units - len(text)) // len(again) + 1)
        return text[:units]
