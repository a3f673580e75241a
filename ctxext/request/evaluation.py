"""An evaluation that is asked for: parsed, checked and frozen before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ctxext.methods import Spec
from ctxext.models.loading import Source
from ctxext.tasks.base import Task, TokenTask


@dataclass(frozen=True)
class EvaluationRequest:
    """An evaluation: every method × task × length × seed on one model and one text.

    Attributes:
        source: the model; `source.attn` is the attention path asked for, a word of Attention.
        methods: the unpatched `rope` first, then the others as given, none twice.
        lengths: in tokens, ascending, none twice.
        data: what tasks are measured on; None for each task's own.
        limit: at most so many windows or samples; None for all.
        tokens: at most so many tokens of the data; None for all.
        seeds: of the samples that are drawn; tasks that draw none take the first alone.
        batch_size: windows or prompts read at once; None chooses by length.
    """

    source: Source
    methods: tuple[Spec, ...]
    lengths: tuple[int, ...]
    tasks: tuple[Task, ...]
    data: str | None = None
    limit: int | None = None
    tokens: int | None = None
    seeds: tuple[int, ...] = (0,)
    batch_size: int | None = None
    out: Path = Path("results")
    force: bool = False

    def on(self, device: str) -> EvaluationRequest:
        """The same request for a device."""
        return replace(self, source=replace(self.source, device=device))

    @property
    def text_tokens(self) -> int | None:
        """The most tokens of a text that windows are cut from, by `tokens` and `limit`; None: all.

        It holds for all cells, so that what one task reads is the same with and without others.
        """
        needs = [self.tokens]
        if self.limit is not None:
            tasks = [task for task in self.tasks if isinstance(task, TokenTask)]
            some = [task.reads(max(self.lengths), self.limit) for task in tasks]
            needs.append(None if None in some else max(filter(None, some), default=None))
        return min(filter(None, needs), default=None)

    def batch(self, length: int) -> int:
        """Windows or prompts read at once at this length: as asked, else about 4096 tokens."""
        return self.batch_size or max(1, 4096 // length)
