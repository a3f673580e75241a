"""Packages that come with an extra of ctxext, and are imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from ctxext.errors import UsageError

#: What each is needed for, and the extra that brings it.
NEEDS = {
    "jieba": ("the score of Chinese text", "longbench"),
    "rouge": ("the score ROUGE-L", "longbench"),
    "rapidfuzz": ("the score of code", "longbench"),
    "wonderwords": ("RULER's words", "ruler"),
    "lm_eval": ("a task of lm_eval's", "lm-eval"),
}


class NotInstalledError(UsageError):
    """A package is missing; the message says how to install it."""


def need(package: str) -> Any:
    """The package, imported; NotInstalledError where it is not there."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        purpose, extra = NEEDS[package]
        raise NotInstalledError(
            f"{purpose} needs {package}: pip install 'ctxext[{extra}]'"
        ) from None
