"""What `make real-check` compares, with what is measured put in its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ctxext.records import Store, sealed

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import real  # noqa: E402 - a script
import real_table  # noqa: E402 - a script

FILES = ROOT / "results" / "real"


def first_window(record: dict[str, Any], more: float) -> dict[str, Any]:
    """The record of the first window alone, its loss higher by so many nats per token."""
    kept = {name: values[:1] for name, values in record["by_window"].items()}
    kept["nll"] = [kept["nll"][0] + more * kept["n"][0]]
    return sealed({**record, "by_window": kept, "n": kept["n"][0], "windows": 1})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """By method what is added to the loss that an evaluation finds."""
    off = dict.fromkeys(real.METHODS, 0.0)
    committed = real.find(Store(FILES).read_all()[0])

    def evaluate(*options: object, out: Path) -> int:
        for method, more in off.items():
            Store(out).write(first_window(committed[method], more))
        return 0

    monkeypatch.setattr(real, "FOLDER", FILES)
    monkeypatch.setattr(real, "evaluate", evaluate)
    return off


@pytest.mark.parametrize("same", [True, False])
def test_a_cell_measured_again_agrees_or_does_not(
    same: bool,
    measured: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the records' own text within rounding, on another by what windows differ by."""
    committed = real.find(Store(FILES).read_all()[0])["rope"]["data"]["sha256"]
    text = type("Text", (), {"sha256": committed if same else "other"})
    monkeypatch.setattr(real, "load_text", lambda name: text)
    assert real.check() == 0
    measured["rerope"] = 0.01
    assert real.check() == (1 if same else 0)
    measured["rerope"] = 1.0  # as plain rope
    assert real.check() == 1
    said = capsys.readouterr().out
    assert "rerope: " in said
    assert "DO NOT AGREE" in said
    assert ("not that of the records" in said) == (not same)


def test_says_how_to_have_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "kept", lambda name: None)
    assert real.main() == 2
    assert "ctxext models --fetch smollm2-135m" in capsys.readouterr().err


def test_differences_are_paired_by_window() -> None:
    """Against the sums in the records."""
    found = real_table.Found(Store(FILES).read_all()[0])
    ours, theirs = (found.of("ppl", real_table.LENGTH, name) for name in ("rerope", "rope"))
    assert ours is not None
    assert theirs is not None
    sums = zip(ours["by_window"]["nll"], theirs["by_window"]["nll"], strict=True)
    steps = [(a - b) / n for (a, b), n in zip(sums, ours["by_window"]["n"], strict=True)]
    apart = real_table.apart(ours, theirs)
    assert apart is not None
    mean = sum(steps) / len(steps)
    error = (sum((x - mean) ** 2 for x in steps) / (len(steps) - 1) / len(steps)) ** 0.5
    assert (apart.value, apart.error) == pytest.approx((mean, error))
    assert apart.sure


def made(method: str, values: tuple[float, float], **changes: Any) -> dict[str, Any]:
    """A record of two windows of so many nats per token."""
    kept = {"nll": [10 * x for x in values], "n": [10, 10]}
    known = {"model": real_table.MODEL, "task": "ppl", "length": real_table.LENGTH}
    known |= {"requested": method, "data": {"name": real_table.TEXT}, "by_window": kept}
    return {**known, "status": "ok", "created": "", "key": method, **changes}


def test_what_is_said_holds_where_the_loss_is_lower_in_each_window() -> None:
    """Of two windows that differ by as much, whichever the sign; and not told where they differ."""

    losses = {"rerope": (2.0, 1.0), "ntk": (2.5, 1.5), "window": (1.5, 0.5), "dca": (2.2, 0.8)}
    text = real_table.said([made(*each) for each in losses.items()])
    rows = {line.split(" | ")[2]: line.split(" | ")[3] for line in text.splitlines()[2:]}
    assert rows == {
        "`rerope` less `ntk`": "held: -0.50000 ± 0.00000",
        "`dca` less `rerope`": "not told by 2 windows: +0.000 ± 0.200",
        "`rerope` less `window`": "not held: +0.50000 ± 0.00000",
    }


def test_context_helps_where_the_same_tokens_have_less_loss() -> None:
    """And what has no record is not measured."""
    task = {"task": "ppl-tail:span=16k"}
    records = [
        made("rerope", (2.0, 1.0), **task),
        made("rerope", (2.0, 1.1), length=real_table.TRAINED, **task),
        made("rope", (2.5, 1.5), length=real_table.TRAINED, **task),
        made("rope", (2.5, 1.5)),
    ]
    told = [
        line.split(" | ")[3].rstrip(" |") for line in real_table.tails(records).splitlines()[2:]
    ]
    assert told == [
        "held: -0.50000 ± 0.00000",
        "not told by 2 spans: -0.050 ± 0.050",
        "not measured",
    ]


def test_keys_are_told_by_depth() -> None:
    """Of the committed records, whose scores are in the order of depths; beside them the plain
    model's inside T, of one key that is asked for as such."""
    records = Store(FILES).read_all()[0]
    rows = [line.split(" | ") for line in real_table.hidden(records).splitlines()]
    told = {row[0].strip("|` "): (row[2], row[3]) for row in rows[2:] if len(row) == 5}
    found = real_table.Found(records)
    assert len(told) > 5
    for method, (share, depths) in told.items():
        record = found.of("passkey", real_table.LENGTH, method, "filler")
        assert record is not None
        scores = record["by_sample"]["scores"]
        assert share == f"{sum(scores)} of 5"
        assert depths == ", ".join(f"{i / 4:g}" for i in range(5) if scores[i]) or "none"
    inside = [row[0] for row in rows if row[0].startswith("- ")]
    assert any("at 2k `rope` finds" in line for line in inside)
    assert len(inside) == len({line.split(" finds ")[0] for line in inside})
