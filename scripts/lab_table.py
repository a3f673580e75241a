"""The laboratory: what its models are read by, what the records say, and which claims held.

Models of the size of tiny, trained at 512 tokens on the same data in the same order, that differ in
their attention. What was published is of a model of 100 million parameters trained at 512 tokens:
next-token accuracy in percent at 512, and at 4096 with text that repeats (R) and text that does not
(N).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from seed_table import LOGN as PLUS_LOGN
from seed_table import SCALES, TAIL, TASKS, TOKENS, TRAINED, grid

from ctxext.methods import parse
from ctxext.notation import format_length
from ctxext.records import Record, difference

OUT = Path("results/lab")
LENGTHS = (4096, 16384)
SHORT = 128  # tokens that a model reads whose divisor could go by length
LOGN, REROPE, CAP = SCALES[PLUS_LOGN], "rerope:window=256", "entropy-cap"
PASS = "passkey:samples=2"
ALL = (REROPE, "window", CAP)
HALVES = {"acc": "N", "acc-repeat": "R"}


@dataclass(frozen=True)
class Model:
    """A model that is read.

    Attributes:
        name: what it is called.
        about: what its attention is, in a few words.
        own: the scale that it was trained with, and is read with.
        takes: the training-free methods that are tried on it.
        why: what keeps it from the others, in a few words.
        shipped: whether it is in the package.
    """

    name: str
    about: str
    own: str = ""
    takes: tuple[str, ...] = ALL
    why: str = ""
    shipped: bool = False

    @property
    def known_as(self) -> str:
        """Its name in records."""
        held = self.shipped or self.name == OWN_LENGTH
        return self.name if held else (OUT / self.name).as_posix()

    @property
    def folder(self) -> Path:
        """Where its weights are, if it is not in the package."""
        return OUT / self.name.removesuffix("-n")

    @property
    def plain(self) -> str:
        """What it is read with, by itself."""
        return self.own or "rope"

    def with_own(self, method: str) -> str:
        """A method beside the scale that it was trained with."""
        return f"{method}+{self.own}" if self.own else method

    @property
    def methods(self) -> list[str]:
        """All that it is read with."""
        found = [self.plain, "rope" if self.own else "logn", *map(self.with_own, self.takes)]
        if REROPE in self.takes and not self.own:
            found.insert(3, f"{REROPE}+logn")
        return found


OWN_LENGTH = "relu2-n"  # the weights of relu2, read with the text's own length as divisor
NO_ROTATION = "no layer that sees beyond 512 tokens is rotated"
NO_SOFTMAX = "they rest on softmax"
MODELS = (
    Model("tiny", "softmax, RoPE", shipped=True),
    Model("tiny-logn", "with log n", LOGN, shipped=True),
    Model("tiny-inv-leaky", "trained under Inverse Leaky ReRoPE", takes=("window", CAP),
          why="it is made to be read without", shipped=True),
    Model("hwfa", "windows of 128 with RoPE, last layer full without positions, log n", LOGN,
          (CAP,), NO_ROTATION),
    Model("hwfa2", "windows of 128, third of four layers full, all with RoPE, log n", LOGN),
    Model("key-norm", "keys of one length", takes=(*ALL, "ntk")),
    Model("relu2", "relu² over 512", takes=(), why=NO_SOFTMAX),
    Model(OWN_LENGTH, "the same weights, relu² over the text's length", takes=(), why=NO_SOFTMAX),
    Model("relu2-norm", "relu² over its sum", takes=(), why=NO_SOFTMAX),
)  # fmt: skip
BY_NAME = {model.name: model for model in MODELS}


class Place(NamedTuple):
    """A cell: the name of a model, a spec, a task, a length in tokens."""

    model: str
    spec: str
    task: str
    length: int


def places(model: Model) -> Iterator[Place]:
    """All that is measured of a model, cheap things first.

    The entropy cap, which scores twice, is for accuracy at the nearer length alone.
    """
    if model.name == "tiny" or model.folder.name.startswith("relu2"):
        yield Place(model.name, model.plain, "acc", SHORT)
    for spec in model.methods:
        yield Place(model.name, spec, "acc", TRAINED)
        for task in TASKS.values():
            yield Place(model.name, spec, task, LENGTHS[0])
    for spec in (spec for spec in model.methods if CAP not in spec):
        for task in TASKS.values():
            yield Place(model.name, spec, task, LENGTHS[1])
        for length in (TRAINED, *LENGTHS):
            yield Place(model.name, spec, TAIL, length)
            yield Place(model.name, spec, PASS, length)


class Found:
    """The records of the laboratory, by place.

    Attributes:
        records: those finished, in float32, over the text that was read last, by each model's
            last weights; the newest of each place.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        done = [r for r in sorted(records, key=lambda r: str(r["created"])) if _sound(r)]
        weights = {r["model"]: r["model_sha256"] for r in done}
        text = {r["task"]: r["data"]["sha256"] for r in done}
        self._by_place = {
            (r["model"], r["requested"], r["task"], r["length"]): r
            for r in done
            if r["model_sha256"] == weights[r["model"]] and r["data"]["sha256"] == text[r["task"]]
        }
        asked = {_key(place) for model in MODELS for place in places(model)}
        self._by_place = {at: r for at, r in self._by_place.items() if at in asked}
        self.records = list(self._by_place.values())

    def at(self, place: Place) -> Record | None:
        """The record of a place."""
        return self._by_place.get(_key(place))

    def has(self, model: Model) -> bool:
        """Whether there are records of a model."""
        return any(r["model"] == model.known_as for r in self.records)


def _key(place: Place) -> tuple[str, str, str, int]:
    return (BY_NAME[place.model].known_as, _requested(place.spec), place.task, place.length)


@functools.cache
def _requested(spec: str) -> str:
    return str(parse(spec))


def _sound(record: Record) -> bool:
    task, tokens = record["task"], TOKENS.get(record["task"], 0)
    facts = (record["status"], record.get("dtype"), record.get("limit"))
    return (
        facts == ("ok", "float32", None)
        and task in (*TOKENS, PASS)
        and bool(record["model_sha256"])
        and (task == PASS or record["data"]["tokens"] == tokens)
    )


# Claims.


@dataclass(frozen=True)
class Claim:
    """One reading is above another, as was published.

    Attributes:
        words: what is claimed.
        source: where, a number of kexue.fm.
        above, below: names of models, each with a spec.
        task: acc (N) or acc-repeat (R).
        published: both figures in percent, where there are some.
        lengths: at which it is looked at.
    """

    words: str
    source: int
    above: tuple[str, str]
    below: tuple[str, str]
    task: str = "acc"
    published: tuple[float, float] | None = None
    lengths: tuple[int, ...] = LENGTHS


def claims() -> tuple[Claim, ...]:
    """Those that the models can show."""
    own = {model.name: (model.name, model.plain) for model in MODELS}
    turned = ("hwfa2", BY_NAME["hwfa2"].with_own(REROPE))
    at_512, at_128 = (TRAINED,), (SHORT,)
    tiny, keys, hwfa = own["tiny"], own["key-norm"], own["hwfa"]
    base = 49.41
    return (
        Claim("windows and one full layer cost a little at 512", 9603, tiny, hwfa, "acc",
              (base, 48.70), at_512),
        Claim("… and keep what they have beyond, N", 9603, hwfa, tiny, "acc", (48.15, 23.16)),
        Claim("… R", 9603, hwfa, tiny, "acc-repeat", (80.84, 24.17)),
        Claim("rotating the full layer, and putting it in the middle, mends 512", 9731,
              own["hwfa2"], hwfa, "acc", (49.21, 48.70), at_512),
        Claim("… and with ReRoPE in it beyond, N", 9731, turned, hwfa, "acc", (48.99, 48.15)),
        Claim("keys of one length are a little better at 512", 9859, keys, tiny, "acc",
              (49.60, base), at_512),
        Claim("… and far better beyond, unchanged, N", 9859, keys, tiny, "acc", (47.69, 23.16)),
        Claim("… R", 9859, keys, tiny, "acc-repeat", (61.08, 24.17)),
        Claim("… where NTK makes it worse, N", 9859, keys, ("key-norm", "ntk"), "acc",
              (47.69, 43.02)),
        Claim("… and ReRoPE better where text repeats, R", 9859, ("key-norm", REROPE), keys,
              "acc-repeat", (77.76, 61.08)),
        Claim("relu² at shorter lengths wants the trained length as divisor, not the text's", 9019,
              own["relu2"], own[OWN_LENGTH], "acc", None, at_128),
        Claim("softmax goes over to shorter lengths better than relu² over the length", 9019,
              tiny, own[OWN_LENGTH], "acc", None, at_128),
        Claim("softmax with log n goes over to longer ones better than relu²", 9019,
              own["tiny-logn"], own["relu2"], "acc"),
    )  # fmt: skip


def verdict(found: Found, claim: Claim, length: int) -> str:
    """Whether a claim held at a length, with the difference in points and its paired error."""
    ends = [found.at(Place(*end, claim.task, length)) for end in (claim.above, claim.below)]
    if ends[0] is None or ends[1] is None:
        return "–"
    gap = difference(ends[0], ends[1])
    value, error = 100 * gap.value, None if gap.stderr is None else 100 * gap.stderr
    near = error is not None and abs(value) < 2 * error
    word = "held" if value > 0 else ("not held" if near else "**not held**")
    note = ", within two standard errors of 0" if near else ""
    return f"{word} ({value:+.2f}{'' if error is None else f' ± {error:.2f}'}{note})"


# Markdown.


def _percent(record: Record | None) -> str:
    return "–" if record is None else f"{100 * record['value']:.2f}"


def _share(record: Record | None) -> str:
    return "–" if record is None else f"{100 * record['value']:.0f}"


def _nats(record: Record | None) -> str:
    return "–" if record is None else f"{math.log(record['value']):.3f}"


def summary(found: Found) -> str:
    """A row for each model and method."""
    names = [format_length(n) for n in LENGTHS]
    header = [
        *("model", "method", "512"),
        *(f"{n} {text}" for n in names for text in TASKS),
        *(f"tail {format_length(n)}" for n in (TRAINED, *LENGTHS)),
        *(f"key {format_length(n)}" for n in (TRAINED, *LENGTHS)),
    ]
    rows = []
    for model in MODELS:
        if not found.has(model):
            rows.append([model.name, "not trained, or not measured", *["–"] * (len(header) - 2)])
            continue
        for spec in model.methods:
            at = [
                (_percent, "acc", TRAINED),
                *((_percent, task, n) for n in LENGTHS for task in TASKS.values()),
                *((_nats, TAIL, n) for n in (TRAINED, *LENGTHS)),
                *((_share, PASS, n) for n in (TRAINED, *LENGTHS)),
            ]
            cells = [said(found.at(Place(model.name, spec, task, n))) for said, task, n in at]
            rows.append([model.name, f"`{spec}`", *cells])
    return grid(header, rows, 2)


def held(found: Found) -> str:
    """Each claim, and whether it held."""
    header = ["published", "kexue.fm", "there, 512 or 4k", "128", "512", "4k", "16k"]
    rows = []
    for claim in claims():
        told = "–" if claim.published is None else "{:.2f} > {:.2f}".format(*claim.published)
        said = [
            verdict(found, claim, n) if n in claim.lengths else ""
            for n in (SHORT, TRAINED, *LENGTHS)
        ]
        rows.append([claim.words, str(claim.source), told, *said])
    return grid(header, rows, 2)


def models() -> str:
    """What each model is, and what is not tried on it."""
    lines = []
    for model in MODELS:
        left = [name for name in ALL if name not in model.takes]
        why = f"; not {', '.join(f'`{name}`' for name in left)}: {model.why}" if left else ""
        lines.append(f"- `{model.name}`: {model.about}{why}")
    return "\n".join(lines)
