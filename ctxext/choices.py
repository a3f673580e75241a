"""Words that an option, an argument or a grid file's key takes, and no others: each set once."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ctxext.errors import UsageError
from ctxext.text import did_you_mean

AttentionPath = Literal["flash", "sdpa", "eager"]  # `auto` takes the first that can run
Attention = Literal["auto", AttentionPath]
OwnScaling = Literal["keep", "replace"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]
DeviceMap = Literal["auto"]
ExportFormat = Literal["hf", "gguf"]
BenchCase = Literal["model", "packed", "steps", "padded", "attention"]
Verification = Literal["quick", "full"]
Benchmark = Literal["ruler", "longbench", "longbench-e"]  # whose tasks have a mean
Seeds = Literal["each", "mean"]
ReportFormat = Literal["table", "md", "csv", "latex", "html"]


def words(kind: Any) -> tuple[str, ...]:
    """The words of one of these types, in the order in which they are declared."""
    return get_args(kind)


def check_word(what: str, word: str, kind: Any) -> str:
    """The word; UsageError, with the nearest, where it is none of the type's."""
    if word not in words(kind):
        raise UsageError(f"unknown {what} {word!r}: {did_you_mean(word, words(kind))}")
    return word
