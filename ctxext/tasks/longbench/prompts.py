"""LongBench's prompts and generation limits, as its authors give them: prompts.json."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from typing import NamedTuple

_PLACES = re.compile(r"\{(context|input)\}")


class Prompt(NamedTuple):
    """How one task asks.

    Attributes:
        template: with `{context}` and `{input}` for what stands in a row.
        generates: the most tokens of an answer.
    """

    template: str
    generates: int

    def render(self, context: str, question: str) -> str:
        """The prompt's text."""
        row = {"context": context, "input": question}
        return _PLACES.sub(lambda place: row[place[1]], self.template)


@functools.cache
def prompts() -> dict[str, Prompt]:
    """Those of all tasks."""
    file = importlib.resources.files(__package__).joinpath("prompts.json")
    tasks = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {name: Prompt(task["prompt"], task["generates"]) for name, task in tasks.items()}


def prompt(task: str) -> Prompt:
    """That of one task."""
    return prompts()[task]
