"""What the regression gate reads on the shipped models, and how far a figure may move.

A figure is the difference between two methods on the same tokens: mean loss in nats and accuracy.
The text is the beginning of some of the documents held out of the models' training, one window of
each, so that a change of one document between two Pythons moves no other window.

`ctxext check` compares a cell with itself, as a user has it; this gate needs what that has not:
windows that still hold the pinned tokens where another Python's text has changed the others,
orderings of two methods that must stay as published, one tolerance for losses (5e-6 nats) and
another for accuracy (two tokens), and pins that are refused where weights are others.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch

import ctxext
from ctxext.measure import tokens as reading
from ctxext.measure.answers import Limits, answers
from ctxext.models.aliases import ASSETS
from ctxext.tasks.data import stdlib_documents
from ctxext.tasks.passkey import PassKey
from ctxext.tasks.windows import Windows

HERE = Path(__file__).parent
PINS = HERE / "pins.json"
SHORT, LONG = 512, 4096  # tokens; the first is T
METRICS = ("nll", "accuracy")

#: Some with 4096 tokens and more, whose beginning changed little from CPython 3.10 to 3.13.
DOCUMENTS = (
    "module:textwrap",
    "topic:typesseq",
    "module:difflib",
    "module:mailbox",
    "module:smtplib",
    "module:subprocess",
)


# On the same tokens a difference in mean loss moved by 2e-7 nats at most, over vector instructions,
# threads, eager attention, transformers 5.17 and float64; the tolerance is 25 times that. No
# token's first choice moved; two may.
DRIFT = 5e-6  # nats
FLIPS = 2.5  # tokens

# On other tokens the tolerance is in standard errors of the difference between two unrelated texts:
# Student's quantile at 5 degrees of freedom that all of some 70 figures together exceed with less
# than 1%. The texts of CPython 3.8, which shares no window, moved figures by 0.9 of them (root mean
# square), by 3.1 at most. CPython 3.10 to 3.13 share four windows or more and need none of this.
ERRORS = 10.5


class Comparison(NamedTuple):
    """A method against another on the same tokens.

    Attributes:
        better: whether the first is published as the better one; a pin must have it so.
        repeated: whether each window says its first T tokens again and again.
    """

    spec: str
    other: str
    length: int = LONG
    better: bool = False
    repeated: bool = False

    def __str__(self) -> str:
        """The pin's name."""
        return f"{self.spec} − {self.other} at {self.length}" + " repeated" * self.repeated


#: Beyond T: each method against plain rope or, for a smaller standard error, its neighbour.
BEYOND = (
    Comparison("pi", "rope"),
    Comparison("ntk-old", "pi", better=True),
    Comparison("ntk-old", "rope", better=True),
    Comparison("ntk", "ntk-old", better=True),
    Comparison("ntk-fixed", "ntk", better=True),
    Comparison("beta-radix", "ntk-fixed", better=True),
    Comparison("rerope", "beta-radix", better=True),
    Comparison("rerope", "rope", better=True),
    Comparison("rerope", "rope", better=True, repeated=True),
    Comparison("rerope", "rerope:window=512", better=True),
    Comparison("rerope:window=512", "rope"),
    Comparison("rerope+logn", "rerope", better=True),
    Comparison("logn", "rope"),
    Comparison("logn:power=2", "logn"),
    Comparison("mscale", "logn"),
    Comparison("llama4", "logn"),
    Comparison("infoscale", "logn"),
    Comparison("dynamic-ntk", "ntk"),
    Comparison("dynamic-ntk:factor=2", "ntk"),
    Comparison("yarn", "rope"),
    Comparison("llama3", "yarn"),
    Comparison("abf:base=1e5", "ntk-old"),
    Comparison("p-rope", "rope"),
    Comparison("cope", "rope"),
    Comparison("cope:clip=10,hard=true", "rope"),
    Comparison("mrrope", "yarn"),
    Comparison("mrrope:kind=uni", "mrrope"),
    Comparison("longrope:factors=@longrope.json", "rope"),
    Comparison("leaky-rerope", "rerope"),
    Comparison("jet-long-freq", "yarn"),
    Comparison("self-extend", "leaky-rerope"),
    Comparison("jet-long", "self-extend"),
    Comparison("string", "rope"),
    Comparison("dca", "rerope"),
    Comparison("window", "rope"),
    Comparison("streaming", "window"),
    Comparison("lm-infinite", "streaming"),
)

#: Inside T: the tax of what 4096 tokens take, and what changes nothing there.
INSIDE = tuple(
    Comparison(spec, "rope", SHORT)
    for spec in (
        *(f"{name}:factor=8" for name in ("pi", "ntk-old", "ntk", "ntk-fixed", "beta-radix")),
        "yarn:factor=8",
        "llama3:factor=8",
        "mrrope:factor=8",
        "p-rope",
        "cope",
        "longrope:factors=@longrope.json",
        "rerope",
        "leaky-rerope:leak=31",
        "self-extend:group=11",
        "jet-long:group=8",
        "string",
        "logn:clip=false",
        "jet-long-freq:factor=8",
        "mscale:factor=8",
        *("logn", "dynamic-ntk", "dca", "window", "streaming", "lm-infinite"),
    )
)

#: Of the model that was trained with log n.
WITH_LOGN = (
    Comparison("rerope+logn:clip=false", "logn:clip=false", better=True),
    Comparison("rerope+logn:clip=false", "rerope", better=True),
    Comparison("logn:clip=false", "rope", SHORT),
)

COMPARISONS = {"tiny": BEYOND + INSIDE, "tiny-logn": WITH_LOGN}
RETRIEVAL = {"tiny": ("rope", "rerope"), "tiny-logn": ("rerope+logn:clip=false",)}
LEFT_OUT = {
    "inv-leaky-rerope": "a way to train; it spoils a model that was not trained so",
    "entropy-cap": "it looks at every score of 4096 tokens, for each layer, which takes too long",
}


class Reading(NamedTuple):
    """What a method makes of one document's window: mean loss in nats, and accuracy."""

    nll: float
    accuracy: float


def weights(name: str) -> str:
    """The sha256 of a shipped model's weights."""
    return hashlib.sha256((ASSETS / name / "model.safetensors").read_bytes()).hexdigest()


class Reader:
    """A shipped model, and the beginnings of the documents."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = ctxext.load(name)
        texts = dict(stdlib_documents(held_out=True))
        ids = {name: self._encode(texts.get(name, "")) for name in DOCUMENTS}
        self.ids = {name: found for name, found in ids.items() if len(found) == LONG}

    def _encode(self, text: str) -> Any:
        found = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return torch.tensor(found[:LONG], dtype=torch.long)

    def texts(self) -> dict[str, str]:
        """What tells each document's window from that of another Python."""
        return {n: hashlib.sha256(i.numpy().tobytes()).hexdigest() for n, i in self.ids.items()}

    def read(self, spec: str, length: int, repeated: bool = False) -> dict[str, Reading]:
        """The readings of the first `length` tokens of each document."""
        begins = torch.arange(len(self.ids)) * LONG
        windows = Windows(
            torch.cat(list(self.ids.values())),
            begins,
            torch.ones_like(begins),
            length,
            passage=SHORT if repeated else None,
        )
        spec = spec.replace("@", f"@{os.path.relpath(HERE)}/")
        with ctxext.patched(self.model, spec, length):
            found = reading.score(self.model, windows, batch=LONG // length).by_window()
        rows = zip(self.ids, found["n"], found["nll"], found["hits"], strict=True)
        return {name: Reading(nll / n, hits / n) for name, n, nll, hits in rows}

    def keys_found(self, spec: str) -> int:
        """Of five pass keys in 4096 tokens of filler, from the beginning to the end."""
        task = PassKey(samples=1, depths=5)
        samples = task.prompts(self.tokenizer, LONG, task.read(None), 0, None)
        with ctxext.patched(self.model, spec, LONG):
            rows = answers(self.model, self.tokenizer, samples, Limits(task.generates), batch=1)
            return round(task.score(list(rows)).value * len(samples))


Read = Callable[[str, int, bool], Mapping[str, Reading]]
Figure = dict[str, Any]


def differences(pair: Comparison, read: Read) -> dict[str, Figure]:
    """For each metric the first method's figure minus the other's, window by window; their mean,
    and its standard error, which is paired since both read the same tokens.
    """
    ours, theirs = (read(spec, pair.length, pair.repeated) for spec in (pair.spec, pair.other))
    found = {}
    for metric in METRICS:
        values = [getattr(ours[name], metric) - getattr(theirs[name], metric) for name in ours]
        found[metric] = {
            "mean": round(fmean(values), 9) + 0.0,
            "stderr": round(stdev(values) / math.sqrt(len(values)), 9),
            "windows": {n: round(x, 9) + 0.0 for n, x in zip(ours, values, strict=True)},
        }
    return found


def tolerance(metric: str, length: int, pin: Figure, found: Figure, same: Collection[str]) -> float:
    """How far a figure may move: on the windows that are the `same`, or on texts that differ."""
    drift = DRIFT if metric == "nll" else FLIPS / ((length - 1) * len(same or found["windows"]))
    if same:
        return drift
    sizes = len(pin["windows"]), len(found["windows"])
    return drift + ERRORS * pin["stderr"] * math.sqrt(1 + sizes[0] / sizes[1])


def moved(
    pair: Comparison, metric: str, pin: Figure, found: Figure, same: Collection[str]
) -> str | None:
    """One line on a figure that is not what was pinned, or None.

    Args:
        same: the windows that hold the pinned tokens; where there is one, they alone count.
    """
    was, now = (fmean(x["windows"][name] for name in same or x["windows"]) for x in (pin, found))
    most = tolerance(metric, pair.length, pin, found, same)
    if abs(now - was) <= most:
        return None
    text = f"{len(same)} windows of the pinned tokens" if same else "another text"
    return (
        f"{metric} of {pair} moved from {was:+.6f} to {now:+.6f}, by more than {most:.2g} "
        f"({text}): mend it or, if it is meant, run `make pins` and say in the commit why"
    )
