"""A benchmark's headline, from records alone: the mean over its tasks, by length; and the mean over
seeds.

A mean is told where all tasks of its table were measured, so that all means are of the same.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctxext.choices import Benchmark, Seeds, check_word
from ctxext.errors import UsageError
from ctxext.notation import format_length
from ctxext.records import Record
from ctxext.records.metrics import perfect_score
from ctxext.report.effective import ENOUGH
from ctxext.report.groups import Group, current, group_of, method_order, titled
from ctxext.report.sheets import Item, Sheet
from ctxext.system.names import printable
from ctxext.text import counted


class Score(NamedTuple):
    """A number from 0 to 100, and its standard error or, over seeds, its standard deviation."""

    value: float
    error: float | None


class _Place(NamedTuple):
    """What all scores of one headline share; tokens of data, its hash and seed are left out."""

    model: str
    asked: str  # the parameters of all tasks, such as samples=5
    dtype: str
    model_sha256: str
    seed: int | str
    trained_length: int
    own_scaling: str
    device: str


class Headline(NamedTuple):
    """The scores of a benchmark.

    Attributes:
        tasks: their labels, in order.
        scores: by method, length in tokens and task.
        seeds: how many each score is the mean of.
    """

    benchmark: str
    title: str
    tasks: tuple[str, ...]
    scores: dict[tuple[str, int], dict[str, Score]]
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    seeds: tuple[int, ...]
    trained: int

    def of(self, method: str, length: int, task: str) -> Score | None:
        """Of one task; None where it was not measured."""
        return self.scores.get((method, length), {}).get(task)

    def mean(self, method: str, length: int) -> Score | None:
        """Over all tasks; None where one is missing."""
        found = self.scores.get((method, length), {})
        if set(found) != set(self.tasks):
            return None
        errors = [score.error for score in found.values()]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / len(known) if len(known) == len(errors) else None
        return Score(statistics.fmean(score.value for score in found.values()), error)


def headlines(
    records: Iterable[Record], benchmark: str, seeds: str = "each", order: Sequence[str] = ()
) -> list[Headline]:
    """The benchmark's scores, for each model, dtype and way in which it was asked for.

    Args:
        seeds: "each" apart, or their "mean", with the standard deviation of the scores of each.

    Raises:
        UsageError: no such benchmark, or no record of it.
    """
    check_word("benchmark", benchmark, Benchmark)
    check_word("seeds", seeds, Seeds)
    places: dict[_Place, list[Record]] = {}
    for record in current(records):
        if record["status"] == "ok" and record["task"].partition(":")[0] == benchmark:
            places.setdefault(_place(record, seeds), []).append(record)
    if not places:
        raise UsageError(f"no record of {benchmark}: run ctxext eval --task {benchmark}:all first")
    return [
        _headline(benchmark, place, places, order)
        for place in sorted(places, key=lambda place: tuple(map(str, place)))
    ]


def _label(record: Record) -> str:
    """A task's name within its benchmark."""
    label: str = record["task"].partition(":")[2].partition(",")[0]
    return label


def _place(record: Record, seeds: str) -> _Place:
    group: Group = group_of(record)
    asked = record["task"].partition(":")[2].partition(",")[2]
    seed = group.seed if seeds == "each" else "all"
    rest = (group.trained_length, group.own_scaling, group.device)
    return _Place(group.model, asked, group.dtype, group.model_sha256, seed, *rest)


def _headline(
    benchmark: str, place: _Place, places: dict[_Place, list[Record]], order: Sequence[str]
) -> Headline:
    records = places[place]
    cells: dict[tuple[str, int, str], dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: (r["created"], r["key"])):
        where = (record["requested"], record["length"], _label(record))
        cells.setdefault(where, {})[record["seed"]] = record
    seeds = sorted({seed for some in cells.values() for seed in some})
    scores: dict[tuple[str, int], dict[str, Score]] = {}
    for (method, length, task), some in cells.items():
        if len(some) == len(seeds):
            scores.setdefault((method, length), {})[task] = _score(list(some.values()))
    tasks = sorted({task for _, _, task in cells}, key=_numbered)
    words = titled(place, places, ("model",))
    title = printable(" · ".join([words[0], benchmark, *filter(None, words[1:])]))
    lengths = sorted({length for _, length, _ in cells})
    methods = method_order(records, order)
    trained = place.trained_length
    return Headline(
        *(benchmark, title, tuple(tasks), scores),
        *(tuple(methods), tuple(lengths), tuple(seeds), trained),
    )


def _numbered(task: str) -> list[tuple[int, str]]:
    """Sorts numbers within names by size."""
    parts = re.findall(r"([0-9]{1,15})|([^0-9]+)", task)
    return [(int(number or -1), text) for number, text in parts]


def _score(records: list[Record]) -> Score:
    """Of one task, over its seeds."""
    values = [record["value"] * 100 / (perfect_score(record) or 100) for record in records]
    if len(values) > 1:
        return Score(statistics.fmean(values), statistics.stdev(values))
    [record] = records
    error = record["stderr"]
    return Score(values[0], None if error is None else error * 100 / (perfect_score(record) or 100))


def sheets(headline: Headline) -> list[Sheet]:
    """The means over tasks by length, and each task's scores."""
    count, seeds = len(headline.tasks), len(headline.seeds)
    labels = tuple(map(format_length, headline.lengths))
    what = (
        f"its standard deviation over {counted(seeds, 'seed')}"
        if seeds > 1
        else "its standard error over samples"
    )
    said = f"0 to 100, higher is better; ± is {what}; – where not all tasks were measured."
    mean = f"Mean over {counted(count, 'task')}, {said}"
    if headline.benchmark == "ruler":
        mean += f" Effective is the longest length up to which it is {100 * ENOUGH:g} or more."
        labels += ("effective",)
    found = [Sheet(f"{headline.title} · mean", mean, ("method", *labels), _means(headline))]
    labels = tuple(map(format_length, headline.lengths))
    for task in headline.tasks:
        rows = tuple(
            (Item(method), *(_item(headline.of(method, n, task)) for n in headline.lengths))
            for method in headline.methods
        )
        found.append(Sheet(f"{headline.title} · {task}", said, ("method", *labels), rows))
    return found


def _means(headline: Headline) -> tuple[tuple[Item, ...], ...]:
    rows = []
    for method in headline.methods:
        scores = [headline.mean(method, length) for length in headline.lengths]
        row = [Item(method), *map(_item, scores)]
        if headline.benchmark == "ruler":
            row.append(_effective(scores, headline.lengths))
        rows.append(tuple(row))
    return tuple(rows)


def _effective(scores: Sequence[Score | None], lengths: Sequence[int]) -> Item:
    reached = 0
    for score, length in zip(scores, lengths, strict=True):
        if score is None or score.value < 100 * ENOUGH:
            break
        reached = length
    return Item(format_length(reached), reached) if reached else Item("–")


def _item(score: Score | None) -> Item:
    if score is None:
        return Item("–")
    error = "" if score.error is None else f" ± {score.error:.1f}"
    return Item(f"{score.value:.1f}{error}", score.value)
