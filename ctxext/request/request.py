"""What was asked for: every argument parsed, checked and frozen before anything is loaded."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ctxext import methods, tasks
from ctxext.errors import UsageError
from ctxext.methods import Spec
from ctxext.models.loading import Source
from ctxext.models.trained import OWN_SCALING
from ctxext.notation import parse_length
from ctxext.tasks.base import Task, TokenTask
from ctxext.text import did_you_mean

BASELINE = "rope"


@dataclass(frozen=True)
class Request:
    """An evaluation: every method × task × length × seed on one model and one text.

    Attributes:
        source: the model; `source.attn` is the attention path asked for, `auto` or one of PATHS.
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

    def on(self, device: str) -> Request:
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


def check_own_scaling(own_scaling: str) -> str:
    """What becomes of the model's own rope scaling; UsageError for an unknown word."""
    if own_scaling not in OWN_SCALING:
        valid = did_you_mean(own_scaling, OWN_SCALING)
        raise UsageError(f"unknown --own-scaling {own_scaling!r}: {valid}")
    return own_scaling


def check_device_map(device_map: str | None, device: str) -> str | None:
    """The device map asked for; UsageError for an unknown one, or with a device beside it."""
    if device_map not in (None, "auto"):
        raise UsageError(f"unknown --device-map {device_map!r}: valid: auto")
    if device_map is not None and device != "auto":
        raise UsageError(f"--device-map {device_map} chooses devices: leave out --device {device}")
    return device_map


def check_data(data: str | None) -> str | None:
    """What `--data` names; UsageError for an empty name."""
    if data is not None and not data.strip():
        raise UsageError(f"bad value {data!r} for --data: give stdlib, manual, a file or a folder")
    return data


def parse_seeds(texts: list[str]) -> tuple[int, ...]:
    """Seeds from `0`, `0,1,2`, …, in the order given, none twice."""
    items = [item for text in texts for item in text.split(",")]
    seeds = [in_range("--seed", parse_count("--seed", item), least=0) or 0 for item in items]
    return tuple(dict.fromkeys(seeds))


def parse_count(name: str, text: str) -> int:
    """A whole number; UsageError where the text is none."""
    if not (text.strip().isascii() and text.strip().isdigit() and len(text) <= 20):
        raise UsageError(f"bad value {text!r} for {name}: give a whole number")
    return int(text)


def in_range(name: str, value: int | None, least: int = 1) -> int | None:
    """The value; UsageError where it is below `least` or beyond 31 bits."""
    if value is not None and not least <= value < 2**31:
        raise UsageError(f"bad value {value} for {name}: give {least} … {2**31 - 1}")
    return value
