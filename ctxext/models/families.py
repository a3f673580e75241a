"""What each causal model type of transformers takes, as `make test-families` finds it.

families.json is written by `scripts/families.py` from tiny random models, one of each type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("families.json")


class Family(NamedTuple):
    """A model type; the others are "yes" (or how exact), or why not.

    Attributes:
        frequency, distance: whether it takes such methods; `ctxext eval` measures it with those.
        decoding: how near decoding step by step is to one forward.
        export: whether `ctxext patch` writes folders with ntk and with rerope, where it takes them.
    """

    model_type: str
    frequency: str
    distance: str
    decoding: str
    export: str


def tried() -> str:
    """The version of transformers whose model types these are."""
    return str(json.loads(FILE.read_text())["transformers"])


def families() -> list[Family]:
    """Every causal model type with rotary embeddings, by name."""
    types = json.loads(FILE.read_text())["types"]
    return [Family(name, **row) for name, row in sorted(types.items())]


def grouped() -> dict[tuple[str, ...], list[str]]:
    """The model types by what they take, the largest group first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for family in families():
        groups.setdefault(family[1:], []).append(family.model_type)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
