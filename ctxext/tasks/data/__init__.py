"""What is measured on: text and rows from the standard library, files, folders and datasets."""

from __future__ import annotations

from ctxext.tasks.data.stdlib import (
    HELD_OUT_MODULES,
    HELD_OUT_TOPICS,
    stdlib_documents,
)
from ctxext.tasks.data.text import Synthetic, Text, load_text

__all__ = [
    "HELD_OUT_MODULES",
    "HELD_OUT_TOPICS",
    "Synthetic",
    "Text",
    "load_text",
    "stdlib_documents",
]
