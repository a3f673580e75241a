"""Pass-key retrieval."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxext.data import Text, load_text
from ctxext.errors import UsageError
from ctxext.tasks import register
from ctxext.tasks.base import Data, Row, Sample, SampleTask, Score, mean_score
from ctxext.tasks.fitting import encode, largest

HEADER = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
_PUBLISHED = Text("filler", (FILLER,))


@register("passkey")
@dataclass(frozen=True)
class PassKey(SampleTask):
    """How often the model finds a pass key of five random digits in the published filler prompt
    (Landmark Attention, arXiv 2305.16300), or with --data in that text: `samples` prompts that fill
    the length for each of `depths` places from 0 (the beginning) to 1, answered greedily, right
    where the first number in the answer is the key.
    """

    metric = "passkey"
    samples: int = field(default=20, metadata={"help": "samples (of each depth; default 20)"})
    depths: int = field(default=11, metadata={"help": "depths (from 0 to 1; default 11)"})

    def read(self, data: str | None) -> Data:
        """The published filler, unless a text is named."""
        return _PUBLISHED if data is None else load_text(data)

    @property
    def generates(self) -> int:
        """Room for a space and five digits, of which no tokenizer makes more than a token each."""
        return 8

    def prompts(
        self, tokenizer: Any, length: int, data: Any, seed: int, limit: int | None
    ) -> list[Sample]:
        """The prompts: one for each depth, then another for each, and so on."""
        filler = " ".join(data.documents)
        count = min(limit or self.samples * self.depths, self.samples * self.depths)
        samples, rate = [], 0.25
        for place in range(count):
            number, step = divmod(place, self.depths)
            depth = step / (self.depths - 1) if self.depths > 1 else 0.5
            rng = random.Random(f"passkey {seed} {number} {step}")
            sample, rate = _sample(
                tokenizer, length - self.generates, filler, rng, depth, data is _PUBLISHED, rate
            )
            if sample is None:
                least = self.generates + len(encode(tokenizer, _text("", 0, "00000", depth)))
                raise UsageError(
                    f"{self} does not fit into length {length}: the prompt and its answer take "
                    f"{least} tokens without any filler"
                )
            facts = {"depth": depth, "length": len(sample[0])}
            samples.append(Sample(f"{depth:.3g}-{number}", sample[0], (sample[1],), facts))
        return samples

    def score(self, rows: Sequence[Row]) -> Score:
        """The share of right answers, in all and for each depth."""
        hits = [(row["depth"], right(row["pred"], row["answers"][0])) for row in rows]
        parts = []
        for depth in sorted({depth for depth, _ in hits}):
            some = [hit for at, hit in hits if at == depth]
            parts.append(
                {
                    "name": f"depth {depth:.3g}",
                    "depth": depth,
                    "value": sum(some) / len(some),
                    "n": len(some),
                }
            )
        return Score(*mean_score([hit for _, hit in hits]), parts)


def right(answer: str, key: str) -> bool:
    """Whether the first number in the answer is the key."""
    found = re.search("[0-9]+", answer)
    return found is not None and found[0] == key


def _sample(
    tokenizer: Any,
    budget: int,
    filler: str,
    rng: random.Random,
    depth: float,
    published: bool,
    rate: float,
) -> tuple[tuple[list[int], str] | None, float]:
    """The ids and key of a prompt of at most `budget` tokens, and the tokens per character."""
    key = f"{rng.randrange(10**5):05d}"
    begin = 0 if published else rng.randrange(len(filler))
    most = max(0, budget) * 16
    around = _around(filler, begin, most)
    kept: dict[int, list[int]] = {}

    def count(chars: int) -> int:
        kept[chars] = encode(tokenizer, _text(around, chars, key, depth))
        return len(kept[chars])

    chars = largest(count, budget, most, rate)
    if chars is None:
        return None, rate
    return (kept[chars], key), max(len(kept[chars]) / max(chars, 1), 0.01) if chars else rate


def _around(filler: str, begin: int, chars: int) -> str:
    """So many characters of the filler from `begin` on, said again where it ends."""
    turned = f"{filler[begin:]} {filler[:begin]}".strip()
    return " ".join([turned] * (chars // (len(turned) + 1) + 1))[:chars]


def _text(filler: str, chars: int, key: str, depth: float) -> str:
    """The prompt with so many characters of filler, split at the depth."""
    split = int(chars * depth)
    pieces = (HEADER, filler[:split], NEEDLE.format(key=key), filler[split:chars], QUESTION)
    return "\n".join(pieces)
