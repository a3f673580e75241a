"""Key-value retrieval from "Lost in the middle"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxext.errors import UsageError
from ctxext.notation import Count
from ctxext.tasks import register
from ctxext.tasks.base import Data, Row, Score, at_least_one
from ctxext.tasks.data import Synthetic
from ctxext.tasks.depths import Hiding, by_depth
from ctxext.tasks.prompts.fit import Prompt, stream
from ctxext.tasks.ruler.niah import random_uuid

TEMPLATE = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    "JSON data:\n{records}\n\n"
    'Key: "{key}"\n'
)
OPENING = "Corresponding value:"
TOKENS = 50


@register("kv")
@dataclass(frozen=True)
class KeyValue(Hiding):
    """Retrieval of one value from a JSON object of random UUIDs ("Lost in the middle", arXiv
    2307.03172), 0 to 1: how often the value is in the answer, over `samples` objects with as many
    pairs as fill the length, each with its asked pair at `depths` places from 0 (the first) to 1
    (the last).
    """

    metric = "kv"
    higher_is_better = True
    perfect_score = 1.0
    version = 2
    depths: Count = field(default=5, metadata={"help": "depths (2 or more; default 5)"})
    samples: Count = field(default=20, metadata={"help": "samples (of each depth; default 20)"})
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "chat=true|false: the tokenizer's chat template, always or never; where it "
            "has one if not given"
        },
    )

    def __post_init__(self) -> None:
        at_least_one(self, "samples", "depths")
        if self.depths < 2:
            raise UsageError("bad value 1 for 'depths' of kv: give 2 or more")

    @property
    def generates(self) -> int:
        """Room for a space, a quote and the 36 characters of a UUID, of each of which no tokenizer
        makes more than a token, and for a few words before them.
        """
        return TOKENS

    @property
    def uses_data(self) -> bool:
        """No: the prompts are random."""
        return False

    def read(self, data: str | None) -> Data:
        """What stands for data: the prompts are random."""
        return Synthetic("synthetic", (TEMPLATE + OPENING,))

    def score(self, rows: Sequence[Row]) -> Score:
        """The share of rows whose answer contains the value, in all and for each depth."""
        return by_depth(
            (row["depth"], any(value.lower() in row["pred"].lower() for value in row["answers"]))
            for row in rows
        )

    def maker(self, data: Any, seed: int) -> RecordsMaker:
        """What makes the prompts."""
        return RecordsMaker(seed, self.depths)


@dataclass(frozen=True)
class RecordsMaker:
    """Makes the prompts of kv; a unit is a pair. Samples `depths`·i and on have the same pairs but
    for their number, and differ in where the asked one stands.
    """

    seed: int
    depths: int

    def least(self, index: int) -> int:
        """A pair for each depth."""
        return self.depths

    def make(self, index: int, units: int) -> Prompt:
        """An object of so many pairs, and the question for one of them."""
        number, step = divmod(index, self.depths)
        depth = step / (self.depths - 1)
        rng = stream("kv", self.seed, number)
        pairs = [(random_uuid(rng), random_uuid(rng)) for _ in range(units)]
        key, value = asked = pairs.pop(0)
        pairs.insert(round(depth * (units - 1)), asked)
        records = ",\n ".join(f'"{name}": "{held}"' for name, held in pairs)
        text = TEMPLATE.format(records="{" + records + "}", key=key)
        return Prompt(text, (value,), depth, OPENING)
