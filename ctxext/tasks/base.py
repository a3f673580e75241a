"""The contract of a task: its kinds, and what a prompt is.

Token tasks score the tokens of windows cut from a text; sample tasks have the model answer
prompts and score the answers; harness tasks are run by another library on the patched model.
All end in a `Score`: one number, its standard error, and what it is made of.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ctxext.errors import UsageError
from ctxext.notation import format_entry
from ctxext.system.digests import sha256_of_text
from ctxext.tasks.data import load_text
from ctxext.tasks.scoring.base import Row as Row
from ctxext.tasks.scoring.base import Score as Score
from ctxext.tasks.scoring.base import mean_score as mean_score
from ctxext.tasks.scoring.tokens import TokenScores as TokenScores

if TYPE_CHECKING:
    from torch import Tensor

    from ctxext.tasks.windows import Windows

MOST = 100_000  # samples of a task, or depths


class Data(Protocol):
    """What a task is measured on: documents, questions, or the template of a synthetic task."""

    @property
    def name(self) -> str:
        """As the user named it, or what stands for it in tables."""

    @property
    def sha256(self) -> str:
        """The hash of all of it."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        version: goes up where the same spec comes to measure something else: other prompts,
            windows, answers or scores.
        metric: the name of its number; `results.SHARES` has those from 0 to 1.
        higher_is_better: whether more of it is better; None where that is not known, so that
            tables mark no best.
        positional: the field that is given without its name, as in `ruler:vt`.
        draws: whether its samples are drawn with a seed.
        libraries: packages whose versions its numbers depend on.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool | None] = None
    version: ClassVar[int] = 1
    positional: ClassVar[str | None] = None
    draws: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()

    def resolve(self, trained: int, lengths: Sequence[int]) -> Task:
        """The task with defaults that depend on T or on the lengths asked for, both in tokens.

        Raises:
            UsageError: it cannot be measured at one of the lengths.
        """
        return self

    @property
    def uses_data(self) -> bool:
        """Whether what `--data` names makes a difference."""
        return True

    def read(self, data: str | None) -> Data:
        """What it is measured on: what `--data` names, or the task's own default for None."""
        raise NotImplementedError

    @classmethod
    def members(cls) -> list[str]:
        """The values of the positional field."""
        return []

    @classmethod
    def all_members(cls) -> list[str]:
        """Those that `name:all` stands for."""
        return cls.members()

    def __str__(self) -> str:
        """The spec that parses back to this task; what is at its default is left out."""
        given = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        values = {f.name: value for f, value in given if value != f.default}
        first = values.pop(self.positional) if self.positional else None
        text = format_entry(self.name, values)
        if first is None:
            return text
        name, _, rest = text.partition(":")
        return f"{name}:{first}" + (f",{rest}" if rest else "")

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Name, metric, what stands after the colon, and the docstring as one line."""
        text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
        entry = {"name": cls.name, "metric": cls.metric, "summary": text}
        if members := cls.members():
            entry[str(cls.positional)] = ", ".join(members)
        if named := [f for f in dataclasses.fields(cls) if f.name != cls.positional]:
            entry["parameters"] = ", ".join(f.metadata.get("help", f.name) for f in named)
        return entry


def at_least_one(task: Task, *fields: str) -> None:
    """UsageError where one of the fields is below 1, or beyond what fits into memory."""
    for name in fields:
        value = getattr(task, name)
        if not 1 <= value <= MOST:
            raise UsageError(f"bad value {value} for {name!r} of {task.name}: give 1 to {MOST}")


def member(task: type[Task], value: str) -> str:
    """The value of the positional field; UsageError, with the valid ones, where it is none."""
    from ctxext.text import did_you_mean

    if value not in task.members():
        raise UsageError(
            f"unknown {task.name} task {value!r}: {did_you_mean(value, task.members())}"
        )
    return value


class Helped(NamedTuple):
    """Which tokens count: those that a long context helps, by what an evaluator says of them.

    Attributes:
        evaluator: the name of a model; None for the one that is measured, without a method.
        short: tokens of a short context.
        stride: how many tokens in a row share one, so that a token sees up to stride − 1 more.
        alpha: nats that the long context gains at least, over the short one.
        beta: nats that are lost at most with the long context.
    """

    evaluator: str | None
    short: int
    stride: int
    alpha: float
    beta: float


@dataclass(frozen=True)
class TokenTask(Task):
    """A task over the tokens of a text."""

    draws: ClassVar[bool] = False

    def read(self, data: str | None, tokens: int | None = None) -> Data:
        """The text; `stdlib` unless another is named, of which `tokens` will be enough."""
        return load_text(data or "stdlib", tokens)

    def reads(self, length: int, limit: int) -> int | None:
        """The tokens of a text that its first `limit` windows, of up to `length` tokens, are cut
        from; None for all of it. A task that cuts windows of its own says so itself.
        """
        return limit * length if type(self).windows is TokenTask.windows else None

    def windows(
        self, ids: Tensor, length: int, start: int | None, limit: int | None, trained: int
    ) -> Windows:
        """What to read of the text's token ids [tokens], at most `limit` windows.

        Args:
            length: tokens of a window.
            start: the tokenizer's own BOS where it adds one: it opens each window, and counts.
            trained: T in tokens.

        Raises:
            UsageError: the text is too short for one window.
        """
        from ctxext.tasks.windows import cut

        return cut(ids, length, start, limit)

    @property
    def helped(self) -> Helped | None:
        """Which of the windows' scored tokens count; None for all."""
        return None

    def summarise(self, scores: TokenScores) -> Score:
        """The number, from the scores of all windows."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sample:
    """One prompt.

    Attributes:
        name: what tells it from the cell's other samples; short, and the same in every run.
        ids: the prompt's token ids, special tokens included: at most the length less `generates`.
        answers: what is right.
        facts: what else its row shall carry: depth, all_classes, length, truncated, ….
    """

    name: str
    ids: Sequence[int]
    answers: Sequence[str]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Sixteen digits that tell its prompt from others."""
        return sha256_of_text(" ".join(map(str, self.ids)))[:16]


@dataclass(frozen=True)
class SampleTask(Task):
    """A task whose samples are prompts that the model answers, greedily.

    Attributes:
        perfect_score: what a wholly right answer scores, where scores are from 0 to it; None where
            they are not, so that their mean has no interval.
    """

    perfect_score: ClassVar[float | None] = None

    def read(self, data: str | None) -> Data:
        """The text that prompts are made with; `stdlib` unless another is named."""
        return load_text(data or "stdlib")

    @property
    def generates(self) -> int:
        """The most tokens of an answer."""
        raise NotImplementedError

    @property
    def at_least(self) -> int:
        """The tokens before an answer may end."""
        return 0

    def stops(self, tokenizer: Any) -> Sequence[int]:
        """Token ids that end an answer beside the tokenizer's and the model's own."""
        return ()

    def prompts(
        self, tokenizer: Any, length: int, data: Any, seed: int, limit: int | None
    ) -> list[Sample]:
        """The prompts, at most `limit`: the first of them, and the same for the same arguments.

        Args:
            length: the most tokens of a prompt with its answer.
            data: what `read` gave.

        Raises:
            UsageError: no prompt fits into the length, and what would.
        """
        raise NotImplementedError

    def check(self, tokenizer: Any, length: int, data: Any, seed: int) -> None:
        """Find in a moment that no prompt fits into the length: by the first, if by no less.

        Raises:
            UsageError: as for `prompts`.
        """
        self.prompts(tokenizer, length, data, seed, 1)

    def sizes(self, length: int, data: Any, limit: int | None) -> Sequence[int] | None:
        """About how many tokens each prompt has; None where only making them tells."""
        return None

    @property
    def typical(self) -> int:
        """How many of the first prompts have as much in common as all have; 0 where these have
        nothing that is read but once, and their sizes tell what they take.
        """
        return 0

    def score(self, rows: Sequence[Row]) -> Score:
        """The number, from the rows of all samples, in their order."""
        raise NotImplementedError


@dataclass(frozen=True)
class HarnessTask(Task):
    """A task that another library runs on the patched model."""

    def check(self, limit: int | None) -> None:
        """Find everything that can be refused before a model is loaded."""

    def evaluate(
        self,
        model: Any,
        tokenizer: Any,
        length: int,
        batch: int,
        limit: int | None,
        seed: int,
        cache: Path,
    ) -> tuple[Score, int]:
        """The number and the samples that it is over; answers are kept at `cache` for a rerun."""
        raise NotImplementedError
