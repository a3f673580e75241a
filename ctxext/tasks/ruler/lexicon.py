"""Words and sentences: the lists of the `wonderwords` package, and where a sentence ends."""

from __future__ import annotations

import functools
import importlib.resources
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from ctxext.errors import UsageError
from ctxext.system.digests import sha256_of_text
from ctxext.system.extras import need

_FILES = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*$")
_ABBREVIATION = re.compile(
    r"\W*((e\.g|i\.e|cf|vs|etc|mrs?|ms|dr|prof|st|jr|sr|no|fig|inc|ltd|co|[a-z])\.)", re.IGNORECASE
)
_LONGEST_WORD = 40  # characters: longer runs, of a language without spaces, are cut


class Lexicon(NamedTuple):
    """English words, sorted, each once."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    words: tuple[str, ...]  # nouns, adjectives and verbs
    sha256: str

    def compound(self, rng: random.Random) -> str:
        """An adjective and a noun, as in RULER's keys."""
        return f"{rng.choice(self.adjectives)}-{rng.choice(self.nouns)}"


@functools.cache
def lexicon() -> Lexicon:
    """The word lists; UsageError where the package is not installed."""
    need("wonderwords")
    try:
        folder = importlib.resources.files("wonderwords.assets")
        texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in _FILES]
    except (ImportError, OSError) as error:
        raise UsageError(
            f"RULER's words come from the package wonderwords, which cannot be read ({error}): "
            "pip install wonderwords"
        ) from error
    nouns, adjectives, verbs = (
        tuple(sorted({line.strip() for line in text.splitlines()} - {""})) for text in texts
    )
    words = tuple(sorted({*nouns, *adjectives, *verbs}))
    return Lexicon(nouns, adjectives, words, sha256_of_text("\0".join(texts)))


class Essay:
    """A text as words and sentences, said again from its start where more is asked for."""

    def __init__(self, documents: Sequence[str]) -> None:
        joined = " ".join(documents)
        self._words = re.findall(rf"\S{{1,{_LONGEST_WORD}}}", joined)
        following = [*self._words[1:], *self._words[:1]]
        pairs = zip(self._words, following, strict=True)
        self._starts = [i + 1 for i, pair in enumerate(pairs) if _ends_sentence(*pair)]

    def first(self, count: int) -> tuple[list[str], list[int]]:
        """The first `count` words, and where in them sentences start, with `count` as the end."""
        size = len(self._words)
        rounds = -(-count // size)
        starts = [r * size + start for r in range(rounds) for start in self._starts]
        inner = [start for start in starts if start < count]
        return (self._words * rounds)[:count], [0, *inner, count]


@functools.lru_cache(maxsize=1)
def essay_of(documents: tuple[str, ...]) -> Essay:
    """The essay of a text, the last of which is kept."""
    return Essay(documents)


def _ends_sentence(word: str, following: str) -> bool:
    """Whether a sentence ends with the word; a full stop in `e.g.` or before `and` ends none."""
    return (
        _SENTENCE_END.search(word) is not None
        and _ABBREVIATION.fullmatch(word) is None
        and not following[0].islower()
    )
