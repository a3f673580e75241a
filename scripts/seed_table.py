"""The seed's table: what was published, what the records say, and which orderings held.

The source is a model of 100 million parameters trained at 512 tokens (kexue.fm 9706, 9708 and
9728): next-token accuracy in percent at 4096 tokens, with text that repeats (R) and text that does
not (N), k = 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.notation import format_length
from ctxext.records import Record, difference
from ctxext.records.paired import influences, spread

TRAINED, LENGTHS = 512, (4096, 16384)
PLAIN, DAGGER, LOGN = "plain", "+ logn†", "+ logn"
FAMILY = {PLAIN: "tiny", DAGGER: "tiny", LOGN: "tiny-logn"}
SCALES = {PLAIN: "", DAGGER: "logn", LOGN: "logn:clip=false"}
WINDOWS, LEAKS = (64, 128, 256, 384, 512), (8, 16, 32, 64)
FACTORS = "results/seed-table/longrope.json"  # searched for by longrope.py
TASKS = {"N": "acc", "R": "acc-repeat"}
SPAN = 16384
TAIL = f"ppl-tail:span={SPAN}"
TAIL_LENGTHS = (512, 1024, 2048, 4096, 8192, SPAN)
TAILS = {
    "tiny": (
        *("pi", "ntk", "beta-radix", "yarn", "rerope", "rerope+logn", "leaky-rerope+logn"),
        *("self-extend", "dca", "lm-infinite", "streaming", "window"),
    ),
    "tiny-logn": ("logn:clip=false", "rerope+logn:clip=false"),
}
TOKENS = {"acc": 131072, "acc-repeat": 65536, TAIL: 262144}  # of the text, by task


class Pair(NamedTuple):
    """Published accuracy in percent on text that repeats, and on text that does not."""

    R: float
    N: float


@dataclass(frozen=True)
class Row:
    """A method in some of the table's columns.

    Attributes:
        label: what it is called.
        spec: what is asked for, without log n.
        published: by column; a column without a figure was not published.
        columns: those that are measured.
        model: where it is a model of its own, in the place of the columns' models.
    """

    label: str
    spec: str
    published: dict[str, Pair]
    columns: tuple[str, ...] = (PLAIN, DAGGER, LOGN)
    model: str | None = None

    def asked(self, column: str) -> str:
        """The spec in a column."""
        scale = SCALES[column]
        if self.spec == "rope":
            return scale or "rope"
        return f"{self.spec}+{scale}" if scale else self.spec

    def read_by(self, column: str) -> str:
        """The model in a column."""
        return self.model or FAMILY[column]


PUBLISHED_AT_512 = {PLAIN: 49.41, DAGGER: 49.41, LOGN: 49.40}
_FREQUENCY = {
    "rope": {PLAIN: Pair(24.17, 23.16), LOGN: Pair(24.60, 24.02)},
    "pi": {PLAIN: Pair(15.04, 13.54), LOGN: Pair(14.99, 16.51)},
    "ntk-old": {PLAIN: Pair(51.28, 39.27), LOGN: Pair(61.71, 43.75)},
    "ntk": {},
    "ntk-fixed": {PLAIN: Pair(51.86, 39.61), DAGGER: Pair(55.94, 41.11), LOGN: Pair(62.85, 44.14)},
    "beta-radix": {PLAIN: Pair(53.09, 40.12), DAGGER: Pair(59.11, 42.38), LOGN: Pair(68.91, 45.41)},
    "dynamic-ntk": {},
    "llama3": {},
    "yarn": {},
}
_REROPE = {
    64: (Pair(69.39, 45.19), Pair(78.58, 47.42), Pair(84.38, 48.14)),
    128: (Pair(76.11, 47.82), Pair(82.28, 48.78), Pair(85.47, 48.87)),
    256: (Pair(77.90, 48.48), Pair(82.40, 48.85), Pair(85.12, 49.07)),
    384: (Pair(70.72, 48.15), Pair(76.42, 48.31), Pair(83.24, 48.62)),
    512: (Pair(7.09, 8.25), Pair(7.08, 8.25), Pair(15.84, 10.83)),
}
_LEAKY = {
    128: (Pair(80.00, 48.11), Pair(85.15, 49.10), Pair(85.31, 49.03), Pair(85.29, 48.96)),
    256: (Pair(69.80, 45.72), Pair(83.59, 48.87), Pair(84.30, 48.97), Pair(84.60, 49.03)),
}
_WINDOWS = ("lm-infinite", "streaming", "window")
_OTHERS = ("leaky-rerope", "self-extend", "dca", *_WINDOWS)


def _rows() -> Iterator[Row]:
    for spec, published in _FREQUENCY.items():
        yield Row(spec, spec, published)
    yield Row("longrope", f"longrope:factors=@{FACTORS}", {})
    for window, pairs in _REROPE.items():
        published = dict(zip(FAMILY, pairs, strict=True))
        yield Row(f"rerope w={window}", f"rerope:window={window}", published)
    for window, pairs in _LEAKY.items():
        for leak, pair in zip(LEAKS, pairs, strict=True):
            label, spec = f"leaky-rerope w={window} leak={leak}", f"window={window},leak={leak}"
            yield Row(label, f"leaky-rerope:{spec}", {LOGN: pair}, (LOGN,))
    for spec in _OTHERS:
        yield Row(spec, spec, {})
    own = "tiny-inv-leaky"
    name = "inv-leaky-rerope w=128"
    yield Row(name, "rope", {LOGN: Pair(82.25, 48.32)}, (PLAIN,), own)
    yield Row(f"{name}, base·8", "ntk-old:factor=8", {LOGN: Pair(81.15, 48.85)}, (PLAIN,), own)


ROWS = tuple(_rows())
BY_LABEL = {row.label: row for row in ROWS}


class Place(NamedTuple):
    """Where in the table: a row's label, a column, a length in tokens, "N" or "R"."""

    label: str
    column: str
    length: int
    text: str = "N"


def strange(problems: Iterable[str]) -> list[str]:
    """Of what a store says of its files, that which is not of the factors, which are no record."""
    return [line for line in problems if not line.startswith(f"{Path(FACTORS).name}: ")]


class Cell(NamedTuple):
    """What was asked for: a model, a spec, a task, a length in tokens."""

    model: str
    requested: str
    task: str
    length: int


def current(records: Iterable[Record]) -> dict[Cell, Record]:
    """Of records those of the table: finished, in float32, over as many tokens as it reads of the
    text that was read last, by each model's last weights; the newest of each cell, in the order
    of their making.
    """
    wanted = {(row.read_by(c), str(_parse(row.asked(c)))) for row in ROWS for c in row.columns}
    wanted |= {(model, str(_parse(spec))) for model, specs in TAILS.items() for spec in specs}
    wanted |= {(model, "rope") for model in TAILS}
    done = [
        r
        for r in sorted(records, key=lambda r: str(r["created"]))
        if r["status"] == "ok" and (r["model"], r["requested"]) in wanted and _sound(r)
    ]
    weights = {r["model"]: r["model_sha256"] for r in done}
    return {
        Cell(*(r[name] for name in Cell._fields)): r
        for r in done
        if r["data"]["sha256"] == done[-1]["data"]["sha256"]
        and r["model_sha256"] == weights[r["model"]]
    }


def _sound(record: Record) -> bool:
    """Whether it was made as the table's are."""
    task = record["task"]
    if task not in TOKENS or not record["model_sha256"]:
        return False
    facts = ("metric", "trained_length", "dtype", "limit")
    metric = "perplexity" if task == TAIL else "accuracy"
    return (
        [record.get(name) for name in facts] == [metric, TRAINED, "float32", None]
        and record["data"]["tokens"] == TOKENS[task]
        and record["value"] > 0
    )


class Found:
    """The records of the table, by place.

    Attributes:
        records: these alone.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._cells = current(records)
        self.records = list(self._cells.values())

    def at(self, place: Place) -> Record | None:
        """The record of a place; log n up to T is no change, so that † has none of its own."""
        row, column = BY_LABEL[place.label], place.column
        if place.length == TRAINED and column == DAGGER:
            column = PLAIN
        asked = str(_parse(row.asked(column)))
        return self._cells.get(Cell(row.read_by(column), asked, TASKS[place.text], place.length))

    def percent(self, place: Place) -> str:
        """The accuracy in percent, or a dash."""
        record = self.at(place)
        return "–" if record is None else f"{100 * record['value']:.2f}"


def _parse(spec: str) -> Any:
    from ctxext import methods

    return methods.parse(spec)


# What is kept of the accuracy at 512.


def kept(found: Found, place: Place) -> tuple[float, float | None] | None:
    """A place's accuracy over that at 512, as a share, and its standard error.

    Both read the same text where 512 tokens are read as often: then the error is paired, by
    adding up the short windows that lie in each long one.
    """
    longer, short = found.at(place), found.at(place._replace(length=TRAINED))
    if longer is None or short is None or not short["value"]:
        return None
    share = longer["value"] / short["value"]
    ours, theirs = influences(longer), influences(short)
    if not ours or len(theirs) * TRAINED != len(ours) * place.length:
        return share, None
    each = len(theirs) // len(ours)
    blocks = [sum(theirs[i * each : (i + 1) * each]) for i in range(len(ours))]
    parts = [(a - share * b) / short["value"] for a, b in zip(ours, blocks, strict=True)]
    return share, spread(parts)


def kept_text(found: Found, place: Place) -> str:
    """What is kept, `98.7 ± 0.2` in percent, or a dash."""
    known = kept(found, place)
    if known is None:
        return "–"
    share, error = known
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


# Orderings.


@dataclass(frozen=True)
class Ordering:
    """A published ordering: pairs of label and column, the first of which is the lower one."""

    words: str
    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...]
    strict: bool = True


def orderings() -> tuple[Ordering, ...]:
    """Those of the published table; `ntk`, which it lacks, is one of its ntks."""
    ntks = ("ntk-old", "ntk", "ntk-fixed")
    rows = [f"rerope w={w}" for w in WINDOWS if w < TRAINED]
    whole = f"rerope w={TRAINED}"
    scaled = [((w, a), (w, b)) for w in rows for a, b in ((PLAIN, DAGGER), (DAGGER, LOGN))]
    chain = (("ntk-old", "ntk-fixed"), ("ntk-fixed", "beta-radix"))
    return (
        _ordering("pi and rope below every ntk", product(("pi", "rope"), ntks)),
        _ordering("ntk-old ≤ ntk-fixed ≤ beta-radix", chain, strict=False),
        _ordering("beta-radix < rerope, windows 64 to 384", product(("beta-radix",), rows)),
        Ordering(
            "rerope, windows 64 to 384: logn (trained with it) ≥ logn† ≥ plain",
            tuple(scaled),
            strict=False,
        ),
        _ordering(
            f"rerope's window {TRAINED} (= T) collapses: below all others, and below rope",
            product((whole,), (*rows, "rope")),
        ),
    )


def _ordering(words: str, pairs: Iterable[tuple[str, str]], strict: bool = True) -> Ordering:
    """The pairs of rows in each column in which both were published."""
    ends = [
        ((a, c), (b, c))
        for c, (a, b) in product(FAMILY, list(pairs))
        if _known(a, c) and _known(b, c)
    ]
    return Ordering(words, tuple(ends), strict)


def _known(label: str, column: str) -> bool:
    return column in BY_LABEL[label].published or (label == "ntk" and column != DAGGER)


class Verdict(NamedTuple):
    """Whether an ordering held: its weakest pair's difference in points, with a standard error.

    `against` counts the pairs that are the other way round.
    """

    held: bool
    value: float
    stderr: float | None
    pair: str
    against: int
    count: int


def verdict(found: Found, ordering: Ordering, length: int, text: str) -> Verdict | None:
    """The verdict at a length; None where a record is missing."""
    gaps = []
    for low, high in ordering.pairs:
        ends = [found.at(Place(label, column, length, text)) for label, column in (low, high)]
        if ends[0] is None or ends[1] is None:
            return None
        gaps.append((difference(ends[1], ends[0]), (low, high)))
    wrong = [gap.value < 0 or (ordering.strict and gap.value == 0) for gap, _ in gaps]
    gap, (low, high) = min(gaps, key=lambda one: one[0].value)
    error = None if gap.stderr is None else 100 * gap.stderr
    pair = f"{' '.join(high)} over {' '.join(low)}"
    return Verdict(not any(wrong), 100 * gap.value, error, pair, sum(wrong), len(gaps))


# Markdown.


def grid(header: list[str], rows: Iterable[list[str]], words: int = 1) -> str:
    """A Markdown table whose first columns, so many, are words."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _both(found: Found, row: Row, column: str, length: int) -> str:
    places = [Place(row.label, column, length, text) for text in TASKS]
    return " / ".join(found.percent(place) for place in places[::-1])


def _published(row: Row, column: str) -> str:
    pair = row.published.get(column)
    return "–" if pair is None else f"{pair.R:.2f} / {pair.N:.2f}"


def beside(found: Found) -> str:
    """Accuracy at 4096 tokens, R / N, ours and as published."""
    names = [f"{column}, {whose}" for column in FAMILY for whose in ("tiny", "published")]
    rows = [
        [row.label, *(cell for c in FAMILY for cell in (_cell(found, row, c), _published(row, c)))]
        for row in ROWS
    ]
    return grid(["R / N at 4096", *names], rows)


def _cell(found: Found, row: Row, column: str, length: int = LENGTHS[0]) -> str:
    return _both(found, row, column, length) if column in row.columns else "–"


def longest(found: Found) -> str:
    """Accuracy at 512 and, R / N, at 16384 tokens."""
    header = ["method", f"{PLAIN}, 512", f"{LOGN}, 512", *(f"{c}, R / N at 16384" for c in FAMILY)]
    rows = []
    for row in ROWS:
        shorts = [
            found.percent(Place(row.label, c, TRAINED)) if c in row.columns else "–"
            for c in (PLAIN, LOGN)
        ]
        rows.append([row.label, *shorts, *(_cell(found, row, c, LENGTHS[1]) for c in FAMILY)])
    return grid(header, rows)


def summary(found: Found) -> str:
    """One row for each method: N at 512, 4096 and 16384 tokens, and N at 4096 as published."""
    shown = [(PLAIN, TRAINED)] + [(c, n) for n in LENGTHS for c in FAMILY]
    header = [
        "method",
        *(f"{format_length(n)} {c}" for c, n in shown),
        f"published, 4k: {' / '.join(FAMILY)}",
    ]
    rows = []
    for row in ROWS:
        cells = [
            found.percent(Place(row.label, c, n)) if c in row.columns else "–" for c, n in shown
        ]
        pairs = [row.published.get(c) for c in FAMILY]
        told = " / ".join("–" if pair is None else f"{pair.N:.2f}" for pair in pairs)
        rows.append([row.label, *cells, told if row.published else "–"])
    return grid(header, rows)


def windowed(found: Found) -> str:
    """The best accuracy of methods that see little but the last tokens, and that of the others."""

    def best(length: int, text: str, windows: bool) -> str:
        places = (
            Place(row.label, column, length, text)
            for row in ROWS
            for column in row.columns
            if (row.label in _WINDOWS) is windows
        )
        values = [record["value"] for record in map(found.at, places) if record is not None]
        return f"{100 * max(values):.2f}" if values else "–"

    names = ", ".join(f"`{name}`" for name in _WINDOWS)
    told = (
        f"{best(n, text, True)} against {best(n, text, False)} in {text} at {format_length(n)}"
        for n, text in product(LENGTHS, TASKS)
    )
    return (
        f"{names} attend to the last tokens, the first two to a few of the first besides. The best "
        f"of them against the best of the others, in percent: {', '.join(told)}."
    )


def held(found: Found) -> str:
    """Each published ordering: whether it held, N and R at 4096 and 16384, and what is printed."""
    where = list(product(LENGTHS, TASKS))
    windows = [TOKENS[TASKS[text]] // length for length, text in where]
    header = ["published ordering"] + [
        f"{format_length(n)} {text} ({count} windows)"
        for (n, text), count in zip(where, windows, strict=True)
    ]
    rows = []
    for ordering in orderings():
        verdicts = (verdict(found, ordering, *at) for at in where)
        rows.append([ordering.words, *map(_said, verdicts)])
    note = (
        "In brackets the pair of which this is least true: its difference in percentage points, "
        "with the standard error over windows, paired. It tells of the text that was read, not of "
        f"another training, which counts where {LOGN} is compared: that is another model. `ntk`, "
        "which was not published, counts as one of the ntks."
    )
    return f"{grid(header, rows)}\n\n{note}"


def _said(found: Verdict | None) -> str:
    if found is None:
        return "–"
    error = "" if found.stderr is None else f" ± {found.stderr:.2f}"
    near = found.stderr is not None and abs(found.value) < 2 * found.stderr
    note = ", within two standard errors of 0" if near else ""
    margin = f"{found.pair} {found.value:+.2f}{error}{note}"
    if found.held:
        return f"held ({margin})"
    words = "not held" if near else "**not held**"
    return f"{words}: {found.against} of {found.count} pairs ({margin})"


def keeps(found: Found) -> str:
    """What the headline's methods keep of their accuracy at 512, in percent."""
    places = [
        ("tiny-logn", "rerope w=256", LOGN),
        ("tiny", "rerope w=256", DAGGER),
        ("tiny", "rerope w=256", PLAIN),
        ("tiny", "rope", PLAIN),
        ("tiny-logn", "rope", LOGN),
        ("tiny", "window", PLAIN),
    ]
    rows = []
    for model, label, column in places:
        cells = [kept_text(found, Place(label, column, n)) for n in LENGTHS]
        was = "–"
        if pair := BY_LABEL[label].published.get(column):
            was = f"{100 * pair.N / PUBLISHED_AT_512[column]:.1f}"
        rows.append([f"{model}, {BY_LABEL[label].asked(column)}", *cells, was])
    note = (
        "More than 100 is possible: read at 512, a token has 256 before it on average, and in "
        "longer text as many as the method can use. `window`, which attends to the last 512 alone, "
        "shows how much that is worth."
    )
    header = ["kept of the accuracy at 512, N (%)", "4k", "16k", "published, 4k"]
    return f"{grid(header, rows)}\n\n{note}"


# Tails.


class Loss(NamedTuple):
    """A mean loss in nats per token at a length, and the standard error of what parts it from that
    of plain rope at 512 tokens on the same model, paired; None where they are one.
    """

    length: int
    value: float
    stderr: float | None


def losses(found: Found) -> dict[str, list[Loss]]:
    """Of the same last tokens of spans, by method, as the context before them grows."""
    at = {(r["model"], r["requested"], r["length"]): r for r in found.records if r["task"] == TAIL}
    lines = {}
    for model, methods in TAILS.items():
        base = at.get((model, "rope", TRAINED))
        for asked in (*(["rope"] if model == "tiny" else []), *map(str, map(_parse, methods))):
            here = [at[place] for n in TAIL_LENGTHS if (place := (model, asked, n)) in at]
            if here:
                name = asked if model == "tiny" else f"{asked} ({model})"
                lines[name] = [loss(r, base or r) for r in here]
    return lines


def loss(record: Record, other: Record) -> Loss:
    """A perplexity's mean loss, with its error beside another's over the same windows."""
    ours, theirs = ([x / r["value"] for x in influences(r)] for r in (record, other))
    error = None
    if record is not other and ours and len(ours) == len(theirs):
        error = spread([a - b for a, b in zip(ours, theirs, strict=True)])
    return Loss(record["length"], math.log(record["value"]), error)


def tails(found: Found) -> str:
    """Mean loss in nats per token by method and length."""
    rows = []
    for name, points in losses(found).items():
        known = {
            p.length: f"{p.value:.3f}" + ("" if p.stderr is None else f" ± {p.stderr:.3f}")
            for p in points
        }
        rows.append([name, *(known.get(n, "–") for n in TAIL_LENGTHS)])
    return grid(["method", *map(format_length, TAIL_LENGTHS)], rows)
