"""cwe and fwe: RULER's common_words_extraction.py and freq_words_extraction.py."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from ctxext.tasks.prompts.fit import Prompt, stream
from ctxext.tasks.ruler.lexicon import lexicon

CWE_TOKENS_TO_GENERATE = 120
CWE_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_ANSWER_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FREQ_CW, FREQ_UCW, NUM_CW = 30, 3, 10
SHORT = 4096  # tokens: below, words are repeated less often

FWE_TOKENS_TO_GENERATE = 50
FWE_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
FWE_ANSWER_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
ALPHA = 2.0
ZETA = math.pi**2 / 6  # ζ(ALPHA)
CODED_WORDLEN = 6
VOCAB_TOKENS = 50  # tokens of text for each word of the vocabulary
LEAST_WORDS = 53  # from here on rank 4 always appears more often than rank 5


@dataclass(frozen=True)
class CommonWordsMaker:
    """Makes the prompts of cwe; a unit is a word that differs from the others.

    Beyond the about 8,600 words of the lexicon, which fill about 120k tokens, RULER goes over to
    another word list; here words are then compounds, as in the keys of niah.

    Attributes:
        short: whether words are repeated as RULER does it for lengths below `SHORT`.
    """

    seed: int
    short: bool

    def least(self, index: int) -> int:
        """The common words and one other."""
        return NUM_CW + 1

    def make(self, index: int, units: int) -> Prompt:
        """A worked example, then a list made of so many words."""
        rng = stream("cwe", self.seed, index)
        if self.short:
            example, shown = _numbered_words(rng, 20, 3, 1)
            context, answers = _numbered_words(rng, units, 6, 1)
        else:
            example, shown = _numbered_words(rng, 40, 10, 3)
            context, answers = _numbered_words(rng, units, FREQ_CW, FREQ_UCW)
        solved = f"{CWE_TEMPLATE.format(context=example)}{CWE_ANSWER_PREFIX} {_numbered(shown)}"
        text = f"{solved}\n{CWE_TEMPLATE.format(context=context)}"
        return Prompt(text, tuple(answers), opening=CWE_ANSWER_PREFIX)


@dataclass(frozen=True)
class FrequentWordsMaker:
    """Makes the prompts of fwe; a unit is a word of text whose frequencies follow Zipf's law:
    the word of rank k makes out k^−α/ζ(α) of it, rounded down, and that of rank 1 is dots.

    Attributes:
        length: tokens of prompt and answer.
    """

    seed: int
    length: int

    def least(self, index: int) -> int:
        """Enough that the three asked for come before all others."""
        return LEAST_WORDS

    def make(self, index: int, units: int) -> Prompt:
        """A text of about so many coded words."""
        rng = stream("fwe", self.seed, index)
        size = max((self.length - FWE_TOKENS_TO_GENERATE) // VOCAB_TOKENS, 4)
        codes: dict[str, None] = {}
        while len(codes) < size:
            codes["".join(rng.choices(string.ascii_lowercase, k=CODED_WORDLEN))] = None
        ranked = ["...", *list(codes)[1:]]
        text = [word for k, word in enumerate(ranked, 1) for _ in range(_frequency(units, k))]
        rng.shuffle(text)
        asked = FWE_TEMPLATE.format(context=" ".join(text))
        return Prompt(asked, tuple(ranked[1:4]), opening=FWE_ANSWER_PREFIX)


def _numbered_words(
    rng: random.Random, count: int, common_repeats: int, uncommon_repeats: int
) -> tuple[str, list[str]]:
    """A numbered list in which the first of `count` words are common, and these."""
    words = _distinct_words(rng, count)
    common, uncommon = words[:NUM_CW], words[NUM_CW:]
    listed = common * common_repeats + uncommon * uncommon_repeats
    rng.shuffle(listed)
    return _numbered(listed), common


def _distinct_words(rng: random.Random, count: int) -> list[str]:
    known = lexicon()
    if count <= len(known.words):
        return rng.sample(known.words, count)
    words: dict[str, None] = {}
    while len(words) < count:
        words[known.compound(rng)] = None
    return list(words)


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def _frequency(units: int, rank: int) -> int:
    """How often the word of this rank is among so many."""
    return int(units * rank**-ALPHA / ZETA)
