"""RULER's thirteen synthetic tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ctxext.errors import UsageError
from ctxext.models.prompting import Prompter
from ctxext.notation import Count
from ctxext.tasks import register
from ctxext.tasks.base import Data, Row, Sample, SampleTask, Score, at_least_one, mean_score, member
from ctxext.tasks.data import Synthetic, load_text
from ctxext.tasks.prompts import cache
from ctxext.tasks.prompts.fit import Maker, TooShort, fill, least_tokens
from ctxext.tasks.ruler import niah, questions, tracking, words
from ctxext.tasks.ruler.lexicon import essay_of, lexicon
from ctxext.tasks.scoring.ruler import METRICS

ALIASES = {"qa_squad": "qa_1", "qa_hotpot": "qa_2"}  # lm_eval's names


class Kind(NamedTuple):
    """What the tasks of one of RULER's scripts have in common.

    Attributes:
        generates: tokens of an answer.
        template: of the prompt, with the beginning of its answer.
        noise: what the haystack is made of, for a task that needs no text.
        words: whether it needs the lexicon.
    """

    generates: int
    template: str
    noise: str = "synthetic"
    words: bool = False
    metric: str = "string_match_all"


_NIAH = Kind(niah.TOKENS_TO_GENERATE, niah.TEMPLATE + niah.ANSWER_PREFIX, words=True)
_QA = Kind(
    questions.TOKENS_TO_GENERATE,
    questions.TEMPLATE + questions.ANSWER_PREFIX,
    metric="string_match_part",
)
KINDS: dict[str, Kind] = {
    **{
        name: _NIAH._replace(
            noise={"noise": "noise"}.get(needles.type_haystack, "synthetic"),
            words=needles.type_needle_k == "words",
        )
        for name, needles in niah.NIAH.items()
    },
    "vt": Kind(
        tracking.TOKENS_TO_GENERATE, tracking.TEMPLATE + tracking.ANSWER_PREFIX, noise="noise"
    ),
    "cwe": Kind(
        words.CWE_TOKENS_TO_GENERATE, words.CWE_TEMPLATE + words.CWE_ANSWER_PREFIX, words=True
    ),
    "fwe": Kind(words.FWE_TOKENS_TO_GENERATE, words.FWE_TEMPLATE + words.FWE_ANSWER_PREFIX),
    "qa_1": _QA,
    "qa_2": _QA,
}


@register("ruler")
@dataclass(frozen=True)
class Ruler(SampleTask):
    """A task of RULER (arXiv 2404.06654), 0 to 100: `samples` prompts (RULER takes 500) that fill
    the length but for RULER's number of tokens to generate, answered greedily, and scored by the
    share of the answers that the output contains, for qa by whether it contains any. In a chat
    template the beginning of the answer stands after the generation prompt. Haystacks of
    essays are the text of --data; qa_1 and qa_2 need --data with SQuAD's dev-v2.0.json or
    HotpotQA's hotpot_dev_distractor_v1.json, and are not among `ruler:all`.
    """

    higher_is_better = True
    perfect_score = 100.0
    positional = "task"
    version = 2
    libraries = ("wonderwords",)
    task: str
    samples: Count = field(default=100, metadata={"help": "samples (default 100; RULER takes 500)"})
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "chat=true|false: the tokenizer's chat template, always or never; where it "
            "has one if not given"
        },
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", member(type(self), ALIASES.get(self.task, self.task)))
        at_least_one(self, "samples")

    @classmethod
    def members(cls) -> list[str]:
        """RULER's names."""
        return list(KINDS)

    @classmethod
    def all_members(cls) -> list[str]:
        """All but those that need a file each."""
        return [name for name in KINDS if name not in questions.SOURCES]

    @property
    def uses_data(self) -> bool:
        """Whether there is an essay or a file of questions."""
        return self._in_essay() or self.task in questions.SOURCES

    @classmethod
    def describe(cls) -> dict[str, str]:
        """As of other tasks; the metric is one of two."""
        return super().describe() | {"metric": " or ".join(METRICS)}

    @property
    def metric(self) -> str:  # type: ignore[override]
        """string_match_part for qa, else string_match_all."""
        return KINDS[self.task].metric

    @property
    def generates(self) -> int:
        """RULER's tokens_to_generate."""
        return KINDS[self.task].generates

    def read(self, data: str | None) -> Data:
        """The text of the haystack, the file of questions, or what stands for neither.

        Raises:
            UsageError: it cannot be read, or the word lists are not installed.
        """
        kind = KINDS[self.task]
        if kind.words:
            lexicon()
        if self.task in questions.SOURCES:
            return questions.load_questions(self.task, data)
        if not self._in_essay():
            return Synthetic(kind.noise, self._made_of())
        text = load_text(data or "stdlib")
        if not any(map(str.split, text.documents)):
            raise UsageError(f"data {text.name!r} has no words: give other --data")
        return text

    def prompts(
        self, tokenizer: Any, length: int, data: Any, seed: int, limit: int | None
    ) -> list[Sample]:
        """The prompts, found again on disk where they were made before.

        Raises:
            UsageError: the length is too small for a prompt with its answer.
        """
        count = self._count(data, limit)
        prompter = Prompter(tokenizer, self.chat, self)
        made_of = (self.version, cache.prompter_sha256(prompter), seed, count, data.sha256)
        path = cache.cache_path(self.task, length, (*made_of, *self._made_of()))
        entries = cache.load(path, count)
        if entries is None:
            entries = self._make(prompter, length, data, seed, count)
            cache.save(path, entries)
        return [_sample(index, entry, prompter.facts) for index, entry in enumerate(entries)]

    def check(self, tokenizer: Any, length: int, data: Any, seed: int) -> None:
        """By the smallest prompt."""
        prompter = Prompter(tokenizer, self.chat, self)
        makers, room = self._makers(prompter, data, seed), length - self.generates
        if all(least_tokens(maker, prompter, 1) > room for maker in makers(length)):
            raise self._too_short(makers, prompter, length, self._count(data, None))

    def sizes(self, length: int, data: Any, limit: int | None) -> list[int]:
        """They fill the length."""
        return [length - self.generates] * self._count(data, limit)

    def score(self, rows: Sequence[Row]) -> Score:
        """The mean of RULER's metric times 100."""
        metric = METRICS[self.metric]
        return Score(*mean_score([metric(row["pred"], row["answers"]) for row in rows], 100.0))

    def _make(
        self, prompter: Prompter, length: int, data: Any, seed: int, count: int
    ) -> list[cache.Entry]:
        makers = self._makers(prompter, data, seed)
        for maker in makers(length):
            with contextlib.suppress(TooShort):
                fitted = fill(maker, prompter, count, length - self.generates)
                return [
                    cache.Entry(ids, list(prompt.answers), prompt.depth) for prompt, ids in fitted
                ]
        raise self._too_short(makers, prompter, length, count)

    def _count(self, data: Any, limit: int | None) -> int:
        """How many prompts there are."""
        count = min(limit or self.samples, self.samples)
        return min(count, len(data.questions)) if self.task in questions.SOURCES else count

    def _too_short(
        self, makers: Callable[[int], list[Maker]], prompter: Prompter, length: int, count: int
    ) -> UsageError:
        least, need = 0, length
        while need > least:
            least = need
            need = least_tokens(makers(least)[-1], prompter, count) + self.generates
        return UsageError(f"{self} does not fit into length {length}: give --len {least} or more")

    def _makers(self, prompter: Prompter, data: Any, seed: int) -> Callable[[int], list[Maker]]:
        """What makes the prompts of a length; the second where the first does not fit.

        A tokenizer with many tokens to a word has cwe not fit into 4096 tokens and somewhat more
        with the frequencies that RULER has from there on: it keeps those of shorter lengths.
        """
        if self.task == "cwe":
            short, long = (words.CommonWordsMaker(seed, short) for short in (True, False))
            return lambda length: [short] if length < words.SHORT else [long, short]
        if self.task == "fwe":
            return lambda length: [words.FrequentWordsMaker(seed, length)]
        maker: Maker
        if self.task == "vt":
            maker = tracking.TrackingMaker.of(prompter, seed)
        elif self.task in questions.SOURCES:
            maker = questions.QuestionsMaker(self.task, seed, data)
        else:
            essay = essay_of(tuple(data.documents)) if self._in_essay() else None
            maker = niah.NiahMaker(self.task, seed, essay)
        return lambda length: [maker]

    def _in_essay(self) -> bool:
        """Whether the haystack is a text."""
        return self.task in niah.NIAH and niah.NIAH[self.task].type_haystack == "essay"

    def _made_of(self) -> tuple[str, ...]:
        """The template, and the hash of the lexicon where it is needed."""
        kind = KINDS[self.task]
        return (kind.template, lexicon().sha256) if kind.words else (kind.template,)


def _sample(index: int, entry: cache.Entry, said: Mapping[str, bool]) -> Sample:
    facts: dict[str, Any] = {"length": len(entry.ids), **said}
    if entry.depth is not None:
        facts["depth"] = entry.depth
    return Sample(str(index), entry.ids, tuple(entry.answers), facts)
