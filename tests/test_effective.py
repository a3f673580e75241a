"""Effective lengths of the committed records, against a script of its own that reads the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ctxext.records import Store, sealed
from ctxext.report import effective, render

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
Z = 1.959964


def ends(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval, by its usual formula."""
    middle, reach = (
        share + Z * Z / 2 / count,
        Z * math.sqrt(share * (1 - share) / count + Z * Z / 4 / count**2),
    )
    return ((middle - reach) / (1 + Z * Z / count), (middle + reach) / (1 + Z * Z / count))


def read(records: list[dict[str, Any]], method: str) -> dict[int, tuple[float, float, float]]:
    """By length the value of a method, and its interval."""
    found = {}
    for record in sorted(records, key=lambda r: (r["length"], r["windows"], r["created"])):
        if record["requested"] == method:
            value = record["value"]
            found[record["length"]] = (value, *ends(value, record["n"]))
    return found


def reach(values: dict[int, Any], holds: Any) -> int:
    longest = 0
    for length, value in values.items():
        if not holds(length, value):
            break
        longest = length
    return longest


def test_equals_what_a_script_finds_in_the_files() -> None:
    folder = ROOT / "results" / "tiny"
    records, _ = Store(folder).read_all()
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    files = [json.loads(line) for line in lines]
    files = [one for one in files if one["task"] == "passkey" and one["status"] == "ok"]
    rows = effective.rows(r for r in records if r["task"] == "passkey")
    assert len(rows) == len({one["requested"] for one in files}) > 3
    for row in rows:
        values = read(files, row.method)
        base, (first, first_low, first_high) = next(iter(values.items()))
        least = 0.85 * first
        assert row.base == base

        def low(length: int, value: Any) -> bool:
            apart = math.hypot(value[0] - value[1], 0.85 * (first_high - first))  # noqa: B023
            return length == base or value[0] - least - apart >= 0  # noqa: B023

        def high(length: int, value: Any) -> bool:
            apart = math.hypot(value[2] - value[0], 0.85 * (first - first_low))  # noqa: B023
            return length == base or value[0] - least + apart >= 0  # noqa: B023

        kept = reach(values, lambda n, v: n == base or v[0] >= least)  # noqa: B023
        assert row.kept == (kept, reach(values, low), reach(values, high), max(values))
        enough = [reach(values, lambda _, v, i=i: v[i] >= 0.856) for i in range(3)]
        assert row.enough == (*enough, max(values))


def made(length: int, value: float, **changes: Any) -> dict[str, Any]:
    """A record of a task over samples."""
    [one] = [
        r
        for r in Store(ROOT / "results" / "tiny").read_all()[0]
        if (r["task"], r["requested"], r["length"]) == ("passkey", "rope", 512)
    ]
    key = f"{length:012x}"
    return sealed(
        {**one, "length": length, "value": value, "by_sample": None, "key": key} | changes
    )


def test_says_what_is_open_and_beyond_what_nothing_is_known() -> None:
    values = {512: 0.95, 1024: 0.9, 2048: 0.79, 4096: 0.3, 8192: 0.9}
    text = render([made(length, value) for length, value in values.items()])
    assert r"| rope | 512 | 1k \[1k, 2k\] | 1k \[512, 1k\] |" in text
    text = render([made(512, 0.2), made(1024, 0.2)])
    assert r"| rope | 512 | ≥1k \[512, ≥1k\] | – |" in text
    assert "Effective length" not in render([made(512, 0.9)])


def test_leaves_out_what_has_no_perfect_score() -> None:
    some = {"metric": "perplexity", "task": "ppl", "perfect_score": None}
    records = [made(512, 9.0, **some), made(1024, 8.0, **some)]
    assert effective.sheets(records) == []


def test_rulers_threshold_is_told_of_samples_alone() -> None:
    """No model names 85.6% of a text's tokens."""
    for folder in ("tiny", "real"):
        records, _ = Store(ROOT / "results" / folder).read_all()
        for metric in ("accuracy", "passkey"):
            for sheet in effective.sheets(r for r in records if r["metric"] == metric):
                said = "85.6" in sheet.caption, "85.6 of 100" in sheet.header
                assert said == (metric == "passkey",) * 2
