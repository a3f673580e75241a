"""The seal of a record, which shows later edits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctxext.records.record import Record
from ctxext.system.digests import sha256_of_json
from ctxext.system.names import encodable


def sealed(record: Mapping[str, Any]) -> Record:
    """The record with null for what is not finite, and a digest that shows later edits."""
    clean: Record = _finite(record)
    return {**clean, "digest": digest(clean)}


def digest(record: Mapping[str, Any]) -> str:
    """The SHA-256 of everything else in the record."""
    return sha256_of_json({field: record[field] for field in record if field != "digest"})


def _finite(value: Any) -> Any:
    """A copy in which every NaN and infinity is None, and no text has half a surrogate pair."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, str):
        return encodable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
