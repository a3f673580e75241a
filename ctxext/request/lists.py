"""Lists as they are written: lengths, methods, tasks and seeds."""

from __future__ import annotations

import difflib
import re

from ctxext import methods, tasks
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.notation import parse_length
from ctxext.request.options import whole
from ctxext.tasks.base import Task

BASELINE = "rope"


def parse_lengths(texts: list[str]) -> tuple[int, ...]:
    """Lengths from `4k`, `512,4k`, …, ascending; UsageError where one is malformed or is 1."""
    lengths = {parse_length(item) for text in texts for item in text.split(",")}
    if min(lengths, default=2) < 2:
        raise UsageError("length 1 has no token to score: give at least 2")
    return tuple(sorted(lengths))


def parse_methods(texts: list[str]) -> tuple[Spec, ...]:
    """Specs in the order given, the unpatched model first, none twice."""
    specs = [methods.parse(text) for text in (BASELINE, *texts)]
    return tuple(
        dict.fromkeys(spec for spec in specs if str(spec) == BASELINE or not spec.unpatched)
    )


def parse_tasks(texts: list[str]) -> tuple[Task, ...]:
    """Tasks from `ppl`, `ppl,acc`, `passkey:samples=5,depths=3,acc`, `ruler:all`, `ruler:vt,cwe`,
    …, none twice.

    A word that is no task's name goes on with the task before it, as another of a benchmark's
    tasks, and `key=value` as a parameter of all of these.
    """
    specs = [spec for text in texts for one in _lists(text) for spec in _specs(one)]
    return tuple(dict.fromkeys(map(tasks.parse, specs)))


def _lists(text: str) -> list[list[str]]:
    """The list's items, those that go on with another behind it."""
    found: list[list[str]] = []
    for item in text.split(","):
        if found and ":" in found[-1][0] and _goes_on(found[-1][0].partition(":")[0], item.strip()):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def _goes_on(name: str, item: str) -> bool:
    """Whether an item is a parameter of the task before it, or another of a benchmark's tasks."""
    if re.match(r"[a-z_]+\s*=", item):
        return True
    if not item or ":" in item or tasks.REGISTRY.get(name.strip()).positional is None:
        return False
    members, names = tasks.REGISTRY.get(name.strip()).members(), tasks.names()
    if item in members or item in names or not members:
        return item not in names
    near = difflib.get_close_matches(item, [*names, *members], n=1)  # what it was to be
    return not (near and near[0] in names)


def _specs(items: list[str]) -> list[str]:
    """The spec of each task of a benchmark that is named, or of all for `all`; else the spec."""
    name, colon, first = items[0].partition(":")
    text = ",".join(items)
    if not colon or not tasks.REGISTRY.get(name.strip()).positional:
        return [text]
    given = [first, *items[1:]]
    words = [item.strip() for item in given if "=" not in item]
    shared = "".join(f",{item}" for item in given if "=" in item)
    named = [member for word in words for member in _members(name.strip(), word)]
    return [f"{name}:{member}{shared}" for member in named] or [text]


def _members(name: str, word: str) -> list[str]:
    """What `all` stands for, or the word."""
    return (tasks.REGISTRY.get(name).all_members() if word == "all" else []) or [word]


def parse_seeds(texts: list[str]) -> tuple[int, ...]:
    """Seeds from `0`, `0,1,2`, …, in the order given, none twice."""
    items = [item for text in texts for item in text.split(",")]
    return tuple(dict.fromkeys(whole("--seed", item, least=0) for item in items))
