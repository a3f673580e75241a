"""qa_1 and qa_2: RULER's qa.py, questions whose paragraphs stand among those of others."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ctxext.errors import UsageError, short
from ctxext.tasks.data.files import decode, read_bytes, suffix
from ctxext.tasks.prompts.fit import Prompt, depth_of, stream

TOKENS_TO_GENERATE = 32
TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nQuestion: {query}"
)
ANSWER_PREFIX = " Answer:"
DOCUMENT_PROMPT = "Document {i}:\n{document}"
SOURCES = {
    "qa_1": "SQuAD's dev-v2.0.json from https://rajpurkar.github.io/SQuAD-explorer",
    "qa_2": "HotpotQA's hotpot_dev_distractor_v1.json from https://hotpotqa.github.io",
}


class Question(NamedTuple):
    """A question; documents are given by their numbers.

    Attributes:
        context: what answers it.
        more_context: other paragraphs of the same article, which come before those of others.
    """

    query: str
    answers: tuple[str, ...]
    context: tuple[int, ...]
    more_context: tuple[int, ...] = ()


@dataclass(frozen=True)
class Questions:
    """The questions of a file and all its documents, sorted."""

    name: str
    sha256: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class QuestionsMaker:
    """Makes the prompts of a qa task, of question `index` of the file; a unit is a document.

    RULER puts the documents of all samples into one fixed order of places; here each sample has
    its own.
    """

    name: str
    seed: int
    data: Questions

    def least(self, index: int) -> int:
        """The documents that answer the question."""
        return len(self.data.questions[index].context)

    def make(self, index: int, units: int) -> Prompt:
        """The question after so many documents."""
        question = self.data.questions[index]
        rng = stream(self.name, self.seed, index)
        numbers = self._documents(rng, question, units)
        rng.shuffle(numbers)
        parts = [
            DOCUMENT_PROMPT.format(i=i, document=self.data.documents[number])
            for i, number in enumerate(numbers, 1)
        ]
        context = "\n\n".join(parts)
        depth = None
        if len(question.context) == 1:
            place = numbers.index(question.context[0])
            start = sum(len(part) + 2 for part in parts[:place])
            depth = depth_of(start, len(parts[place]), len(context))
        text = TEMPLATE.format(context=context, query=question.query)
        return Prompt(text, question.answers, depth, ANSWER_PREFIX)

    def _documents(self, rng: random.Random, question: Question, units: int) -> list[int]:
        """The numbers of `units` documents, those that answer the question among them."""
        total = len(self.data.documents)
        if units >= total:
            return [i % total for i in range(units)]
        needed, near = question.context, question.more_context
        extra = units - len(needed)
        if extra <= len(near):
            return [*needed, *rng.sample(near, extra)]
        known = {*needed, *near}
        drawn = rng.sample(range(total), min(total, extra - len(near) + len(known)))
        others = [number for number in drawn if number not in known]
        return [*needed, *near, *others[: extra - len(near)]]


def load_questions(task: str, path: str | None) -> Questions:
    """The file that `--data` names, for `qa_1` (SQuAD) or `qa_2` (HotpotQA).

    Raises:
        UsageError: no file is named, or it is not one of that kind.
    """
    wanted = f"give --data {SOURCES[task]}"
    if path is None or suffix(path) != ".json":
        got = "none is given" if path is None else f"not {path!r}"
        raise UsageError(f"ruler:{task} needs a .json file of questions, {got}: {wanted}")
    try:
        content = read_bytes(path, f"data {path!r}")
        text = decode(content, f"data {path!r}")
    except UsageError as error:
        raise UsageError(f"{error}: {wanted}") from None
    try:
        documents, questions = _READERS[task](json.loads(text))
        for text in documents:
            text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = short(error, 120)
        raise UsageError(f"data {path!r} is not what {task} reads ({reason}): {wanted}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    return Questions(path, sha256, tuple(documents), tuple(questions))


Read = tuple[list[str], list[Question]]


def _squad(content: Any) -> Read:
    """Paragraphs and the questions that they answer; ValueError says what is wrong."""
    articles = [
        [_Paragraph.of(paragraph) for paragraph in _take(article, "paragraphs", list)]
        for article in _take(content, "data", list)
    ]
    documents = sorted({paragraph.text for article in articles for paragraph in article})
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for article in articles:
        all_of_it = tuple(dict.fromkeys(number[paragraph.text] for paragraph in article))
        for paragraph in article:
            own = number[paragraph.text]
            others = tuple(other for other in all_of_it if other != own)
            for query, answers in paragraph.asked:
                questions.append(Question(query, answers, (own,), others))
    return documents, _some(questions)


class _Paragraph(NamedTuple):
    """A paragraph of SQuAD with its questions that have answers."""

    text: str
    asked: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, entry: Any) -> _Paragraph:
        return cls(_take(entry, "context", str), tuple(cls._asked(entry)))

    @staticmethod
    def _asked(entry: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
        for asked in _take(entry, "qas", list):
            query = _take(asked, "question", str)
            given = [_take(a, "text", str) for a in _take(asked, "answers", list)]
            answers = tuple(answer for answer in given if answer.strip())
            if answers and not asked.get("is_impossible", False):
                yield query, answers


def _hotpotqa(content: Any) -> Read:
    """Titled paragraphs and the questions over about ten each; ValueError says what is wrong."""
    if not isinstance(content, list):
        raise ValueError("no list of questions")
    contexts = [[_titled(entry) for entry in _take(asked, "context", list)] for asked in content]
    documents = sorted({text for context in contexts for text in context})
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(
            _take(asked, "question", str),
            (_take(asked, "answer", str),),
            tuple(dict.fromkeys(number[text] for text in context)),
        )
        for asked, context in zip(content, contexts, strict=True)
        if context
    ]
    return documents, _some(questions)


_READERS: dict[str, Callable[[Any], Read]] = {"qa_1": _squad, "qa_2": _hotpotqa}


def _titled(entry: Any) -> str:
    """A paragraph of HotpotQA: its title, and its sentences in one line."""
    if (
        not isinstance(entry, list)
        or len(entry) != 2
        or not isinstance(entry[0], str)
        or not isinstance(entry[1], list)
        or not all(isinstance(sentence, str) for sentence in entry[1])
    ):
        raise ValueError("a context that is not [title, sentences]")
    return f"{entry[0]}\n{''.join(entry[1])}"


def _take(entry: Any, key: str, kind: type) -> Any:
    """`entry[key]`; ValueError where it is missing or of another kind."""
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        raise ValueError(f"an entry without the {kind.__name__} {key!r}")
    return entry[key]


def _some(questions: list[Question]) -> list[Question]:
    """The questions; ValueError where there are none, or one is not text that can be encoded."""
    if not questions:
        raise ValueError("no question that has an answer")
    for question in questions:
        "".join((question.query, *question.answers)).encode("utf-8")
    return questions
