"""Options that a grid file has as keys too, said once for both.

The help and the completion of the command line read this file, so that it imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ctxext import choices
from ctxext.errors import UsageError
from ctxext.notation import parse_bytes, parse_length

MOST = 2**31 - 1


def _text(name: str, text: str) -> str:
    return text


def _tokens(name: str, text: str) -> int:
    return parse_length(text)


def whole(name: str, text: str, least: int = 1) -> int:
    """A whole number from `least` on; UsageError, with the name, where the text is none."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(text) <= 20):
        raise UsageError(f"bad value {text!r} for {name}: give a whole number")
    if not least <= int(text) <= MOST:
        raise UsageError(f"bad value {int(text)} for {name}: give {least} … {MOST}")
    return int(text)


@dataclass(frozen=True)
class Option:
    """`--name` of the command line, and `name` of a grid file.

    Attributes:
        read: its value from its name, as it is to be told, and a text.
        kind: the type of its words, where it takes some words alone.
        takes: what it takes, for help.
    """

    name: str
    help: str
    read: Callable[[str, str], Any] = _text
    kind: Any = None
    takes: str = "TEXT"

    @property
    def words(self) -> tuple[str, ...]:
        """All that it takes, where that is some words alone."""
        return choices.words(self.kind)

    @property
    def field(self) -> str:
        """Its name in Python."""
        return self.name.replace("-", "_")


def of_words(name: str, help: str, kind: Any, what: str = "") -> Option:
    """An option that takes the words of a type alone; messages call it `what`, or by its name."""

    def read(told: str, word: str) -> str:
        return choices.check_word(what or told, word, kind)

    return Option(name, help, read, kind, takes="|".join(choices.words(kind)))


def of_count(name: str, help: str, least: int = 1) -> Option:
    """An option that takes a whole number from `least` on."""
    return Option(name, help, partial(whole, least=least), takes="INTEGER")


def of_tokens(name: str, help: str) -> Option:
    """An option that takes a number of tokens."""
    return Option(name, help, _tokens, takes="LENGTH")


def _bytes(name: str, text: str) -> int:
    return parse_bytes(text)


def of_bytes(name: str, help: str) -> Option:
    """An option that takes a number of bytes."""
    return Option(name, help, _bytes, takes="SIZE")


def _by_name(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


#: How a model is loaded and run: for all of a grid, or for one of its models.
SOURCE = _by_name(
    Option("revision", "Hub branch, tag or commit."),
    of_words("dtype", "Of weights; auto: float32 on a CPU, else the model's.", choices.Dtype,
        "dtype"),
    Option("device", "auto, cpu, cuda, cuda:1, …."),
    of_words("device-map", "auto: spread a model over all devices.", choices.DeviceMap),
    of_words("attn", "Attention path; eager is the slow reference.", choices.Attention,
        "attention path"),
    of_words("load-in", "Quantized by bitsandbytes.", choices.Quantization),
    of_tokens("train-len", "Trained length, where the model's config is wrong."),
    of_words("own-scaling", "Whether methods build on the model's own rope scaling, or take it off "
        "first.", choices.OwnScaling),
)  # fmt: skip

#: What is for all cells.
COMMON = _by_name(
    of_count("limit", "At most so many windows or samples."),
    of_tokens("tokens", "Only so many tokens of a text that is cut into windows."),
    of_count("batch-size", "Windows or prompts at once; default about 4096 tokens."),
)

#: What a cell is of, by the key under which a grid file has a list of it.
LISTS = {
    "models": Option(
        "model",
        "tiny (shipped), an alias (see ctxext models), a Hub id, a folder or a .gguf file.",
    ),
    "methods": Option(
        "method", "name:key=value,…, several joined by + (see ctxext methods); repeatable."
    ),
    "lengths": Option("len", "Lengths in tokens, such as 512 or 4k,16k,1m."),
    "tasks": Option(
        "task", "ppl, acc, passkey, ruler:vt,cwe, longbench:all, … (see ctxext tasks)."
    ),
    "seeds": Option("seed", "Of the samples that are drawn; 0,1,2 for several."),
    "data": Option(
        "data",
        "stdlib, manual, a .txt, .md, .jsonl, .json or .parquet file, a folder, or "
        "hf:name[:split[:column]][,config=NAME]; with ,join=\\n\\n all rows as one text; for "
        "LongBench a folder of its .jsonl files, one of them, or data.zip; for ruler:qa_1 and "
        "qa_2 a .json file. Default: each task's own, stdlib for most.",
    ),
}

OPTIONS = {**SOURCE, **COMMON, **_by_name(*LISTS.values())}


def check_device_map(device_map: str | None, device: str) -> str | None:
    """The device map; UsageError where a device is asked for beside it."""
    if device_map is not None and device != "auto":
        raise UsageError(f"--device-map {device_map} chooses devices: leave out --device {device}")
    return device_map


def check_data(data: str | None) -> str | None:
    """What `--data` names; UsageError for an empty name."""
    if data is not None and not data.strip():
        raise UsageError(f"bad value {data!r} for --data: give stdlib, manual, a file or a folder")
    return data
