"""Tasks that hide something at several depths of a prompt, from 0 (the beginning) to 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.prompting import Prompter
from ctxext.tasks.base import Sample, SampleTask, Score, mean_score
from ctxext.tasks.prompts.fit import Maker, TooShort, fill, least_tokens


class Hiding(SampleTask):
    """A task with so many samples of each of so many depths, which fill the length."""

    @property
    def samples(self) -> int:
        """Of each depth."""
        raise NotImplementedError

    @property
    def depths(self) -> int:
        """From 0 to 1."""
        raise NotImplementedError

    @property
    def chat(self) -> bool | None:
        """Whether prompts are put into the tokenizer's chat template; None: where it has one."""
        raise NotImplementedError

    def maker(self, data: Any, seed: int) -> Maker:
        """What makes the prompts."""
        raise NotImplementedError

    def prompts(
        self, tokenizer: Any, length: int, data: Any, seed: int, limit: int | None
    ) -> list[Sample]:
        """The prompts: one for each depth, then another for each, and so on.

        Raises:
            UsageError: not even the smallest prompt fits into the length with its answer.
        """
        prompter = Prompter(tokenizer, self.chat, self)
        return spread(self, self.maker(data, seed), prompter, length, limit)

    def check(self, tokenizer: Any, length: int, data: Any, seed: int) -> None:
        """By the smallest prompt."""
        check_room(self, self.maker(data, seed), Prompter(tokenizer, self.chat, self), length)

    def sizes(self, length: int, data: Any, limit: int | None) -> list[int]:
        """They fill the length."""
        return filled(self, length, limit)

    @property
    def typical(self) -> int:
        """One for each depth: up to where what is asked is hidden they begin alike."""
        return self.depths


def spread(
    task: Hiding, maker: Maker, prompter: Prompter, length: int, limit: int | None
) -> list[Sample]:
    """The task's prompts, at most `limit`, which fill the length less the answer, in tokens: one
    for each depth, then another for each, and so on.

    Raises:
        UsageError: not even the smallest prompt fits.
    """
    count = drawn(task, limit)
    try:
        fitted = fill(maker, prompter, count, length - task.generates)
    except TooShort:
        raise _too_short(task, maker, prompter, length, count) from None
    samples = []
    for index, (prompt, ids) in enumerate(fitted):
        name = f"{index // task.depths}-{prompt.depth:.6g}"
        facts = {"depth": prompt.depth, "length": len(ids), **prompter.facts}
        samples.append(Sample(name, ids, prompt.answers, facts))
    return samples


def drawn(task: Hiding, limit: int | None) -> int:
    """How many prompts there are."""
    whole = task.samples * task.depths
    return min(limit or whole, whole)


def filled(task: Hiding, length: int, limit: int | None) -> list[int]:
    """About how many tokens each prompt has."""
    return [length - task.generates] * drawn(task, limit)


def check_room(task: Hiding, maker: Maker, prompter: Prompter, length: int) -> None:
    """UsageError where not even the smallest prompt fits into the length."""
    if least_tokens(maker, prompter, 1) > length - task.generates:
        raise _too_short(task, maker, prompter, length, drawn(task, None))


def _too_short(
    task: Hiding, maker: Maker, prompter: Prompter, length: int, count: int
) -> UsageError:
    least = least_tokens(maker, prompter, count) + task.generates
    return UsageError(f"{task} does not fit into length {length}: give --len {least} or more")


def by_depth(hits: Iterable[tuple[float, bool]]) -> Score:
    """The share of hits, given with their depths, in all and for each depth."""
    depths: dict[float, list[bool]] = {}
    for depth, hit in hits:
        depths.setdefault(depth, []).append(hit)
    parts = [
        {"name": f"depth {at:.3g}", "depth": at, "value": sum(some) / len(some), "n": len(some)}
        for at, some in sorted(depths.items())
    ]
    return Score(*mean_score([hit for some in depths.values() for hit in some]), parts)
