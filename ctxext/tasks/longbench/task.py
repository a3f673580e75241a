"""LongBench, all 21 tasks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ctxext.errors import UsageError
from ctxext.models.prompting import Prompter
from ctxext.system.extras import NotInstalledError
from ctxext.tasks import register
from ctxext.tasks.base import Row, Sample, SampleTask, Score, Task, member
from ctxext.tasks.longbench.halves import Cutter, TooShort
from ctxext.tasks.longbench.prompts import prompt
from ctxext.tasks.longbench.questions import Questions, read_questions
from ctxext.tasks.scoring import longbench as official

_CHARACTERS = 3  # to a token, about, of English, code and Chinese
_TYPICAL = 16  # prompts
# Answered without a chat template: few-shot examples and code, which are to be continued.
PLAIN = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")


@register("longbench")
@dataclass(frozen=True)
class LongBench(SampleTask):
    """LongBench (Bai et al. 2024, arXiv:2308.14508): questions over long documents, with the
    official prompts, truncation, generation limits and metrics, 0 to 100. A prompt that does not
    fit with its answer loses its middle.
    """

    metric = ", ".join(sorted(set(official.TASKS.values())))
    higher_is_better = True
    perfect_score = 100.0
    positional = "task"
    version = 2
    draws = False
    libraries = ("jieba", "rapidfuzz", "rouge")
    extended: ClassVar[bool] = False

    task: str
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "chat=true|false: the tokenizer's chat template, always or never; where it "
            f"has one if not given; {', '.join(PLAIN)} go without"
        },
    )

    def __post_init__(self) -> None:
        """Check the task; its metric is that of its answers."""
        member(type(self), self.task)
        object.__setattr__(self, "metric", official.TASKS[self.task])

    @classmethod
    def members(cls) -> list[str]:
        """The names of the tasks."""
        return list(official.TASKS)

    def resolve(self, trained: int, lengths: Sequence[int]) -> Task:
        """Itself; UsageError where a length, in tokens, leaves the answer no prompt."""
        for length in lengths:
            if length < self.generates + 2:
                raise self._too_short(length, 2)
        return self

    def read(self, data: str | None) -> Questions:
        """The questions: `read_questions` of what `--data` names, or of the official archive.

        Empty answers are scored at once: what cannot be scored, for want of a column or of a
        package, is refused before a model is loaded.
        """
        files = [f"{self.task}_e.jsonl", f"{self.task}.jsonl"][not self.extended :]
        questions = read_questions(data, self.task, files, list(official.TASKS))
        try:
            self.score([{**row, "pred": ""} for row in questions.rows])
        except NotInstalledError:
            raise
        except UsageError as error:
            raise UsageError(f"data {questions.name!r}: {error}") from None
        return questions

    @property
    def generates(self) -> int:
        """The official limit, in tokens."""
        return prompt(self.task).generates

    @property
    def at_least(self) -> int:
        """One for samsum, whose answers also end at a line break; else none."""
        return 1 if self.task == "samsum" else 0

    def stops(self, tokenizer: Any) -> Sequence[int]:
        """The line break for samsum."""
        if self.task != "samsum":
            return ()
        return tuple(tokenizer.encode("\n", add_special_tokens=False)[-1:])

    def prompts(
        self, tokenizer: Any, length: int, data: Questions, seed: int, limit: int | None
    ) -> list[Sample]:
        """The first `limit` prompts, cut to the length, in tokens, less the answer's."""
        prompter = Prompter(tokenizer, self.chat, self)
        if self.task in PLAIN:
            prompter = Prompter(tokenizer)
        cutter = Cutter(prompter, length - self.generates)
        pairs = list(zip(data.names(), data.rows, strict=True))[:limit]
        try:
            return [self._sample(cutter, name, row) for name, row in pairs]
        except TooShort as error:
            raise self._too_short(length, error.need) from None

    def sizes(self, length: int, data: Questions, limit: int | None) -> list[int]:
        """By their characters, and at most what the answer leaves of the length."""
        most, asked = length - self.generates, len(prompt(self.task).template)
        counts = (asked + len(r["context"]) + len(r["input"]) for r in data.rows[:limit])
        return [min(most, count // _CHARACTERS) for count in counts]

    @property
    def typical(self) -> int:
        """A few of the prompts, whose sizes differ."""
        return _TYPICAL

    def score(self, rows: Sequence[Row]) -> Score:
        """The official score."""
        return official.score(self.task, rows, extended=self.extended)

    def _sample(self, cutter: Cutter, name: str, row: Row) -> Sample:
        ids, truncated = cutter.cut(prompt(self.task).render(row["context"], row["input"]))
        facts: Row = {key: row[key] for key in ("all_classes", "length", "_id") if key in row}
        facts |= {"truncated": truncated, **cutter.prompter.facts}
        return Sample(name, array("i", ids), row["answers"], facts)

    def _too_short(self, length: int, need: int) -> UsageError:
        """`need`: the tokens of the shortest prompt."""
        return UsageError(
            f"{self}: a length of {length} tokens is too short: the answer takes "
            f"{self.generates} and the prompt at least {need}: give {self.generates + need} or more"
        )
