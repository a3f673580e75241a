"""RULER's metrics (scripts/eval/synthetic/constants.py and evaluate.py of github.com/NVIDIA/RULER).

Each is of one prediction, from 0 to 1; RULER reports the mean over predictions times 100.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NON_PRINTABLE = re.compile(r"[\x00-\x1f]")


def postprocess(prediction: str) -> str:
    """The prediction without white space around it, its control characters newlines."""
    return _NON_PRINTABLE.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """The share of the references that the prediction contains, in upper or lower case."""
    found = _contained(prediction, references)
    return sum(found) / len(found)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction contains any of the references, in upper or lower case."""
    return float(any(_contained(prediction, references)))


METRICS = {"string_match_all": string_match_all, "string_match_part": string_match_part}


def _contained(prediction: str, references: Sequence[str]) -> list[bool]:
    text = postprocess(prediction).lower()
    return [reference.lower() in text for reference in references]
