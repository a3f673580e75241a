"""SHA-256 of texts and of what JSON can say."""

from __future__ import annotations

import hashlib
import json


def sha256_of_text(text: str) -> str:
    """Of a text in UTF-8, with `?` for half a surrogate pair."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def sha256_of_json(value: object) -> str:
    """Of the JSON of a value, with the keys of its objects in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
