"""What docs/export.md says of engines × methods, from the records of results/engines alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODELS = ("tiny", "llama", "qwen3", "gemma3", "phi3")


def part(file: Path) -> str:
    """A table for each engine: a row for each method, a column for each model."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if "refused" in row:  # what is said of several methods is said once
            row["refused"] = row["refused"].replace(f"express {row['method']}", "express it")
    blocks = [_engine([r for r in rows if r["engine"] == name]) for name in _names(rows, "engine")]
    return "\n\n".join(blocks)


def _names(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _engine(rows: list[dict[str, Any]]) -> str:
    engine, versions = rows[0]["engine"], ", ".join(_names(rows, "version"))
    found = [row for row in rows if "refused" not in row]
    cells = {(row["method"], row["model"]): row for row in rows}
    tokens, equal, near = (sum(row[key] for row in found) for key in ("tokens", "equal", "near"))
    others = f"; {near} more are as good as it to a rounding" if near else ""
    reasons = _names([row for row in rows if "refused" in row], "refused") if found != rows else []
    marks = {reason: chr(ord("a") + i) for i, reason in enumerate(reasons)}
    lines = [
        f"{engine} {versions}: the largest |Δ log p| in nats between it and the patched model "
        f"within T / over all L tokens; {equal} of {tokens} greedy tokens are ours{others}.",
        "",
        f"| method | {' | '.join(MODELS)} |",
        "|---" + "|---:" * len(MODELS) + "|",
    ]
    for method in sorted(_names(rows, "method")):
        said = [_cell(cells.get((method, model)), marks) for model in MODELS]
        lines.append(f"| `{method}` | {' | '.join(said)} |")
    lines += ["", *(f"- ({mark}) {_safe(reason)}" for reason, mark in marks.items())]
    return "\n".join(lines).rstrip()


def _cell(row: dict[str, Any] | None, marks: dict[str, str]) -> str:
    if row is None:
        return "–"
    if "refused" in row:
        return f"({marks[row['refused']]})"
    return f"{row['within']:.0e} / {row['worst']:.0e}".replace("e-0", "e-")


def _safe(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", r"\|")
