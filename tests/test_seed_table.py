"""The seed's table: the published figures, their orderings, and what is made of records."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxext import patches
from ctxext.methods.base import Span
from ctxext.records import Record, Store

ROOT = Path(__file__).parents[1]
METHODS = ROOT.parent / "shared" / "METHODS.md"
sys.path.insert(0, str(ROOT / "scripts"))
table: Any = importlib.import_module("seed_table")
reproduce: Any = importlib.import_module("reproduce")
COLUMNS = (table.PLAIN, table.DAGGER, table.LOGN)
TEXT: Record = {"model_sha256": "w", "limit": None, "trained_length": 512, "dtype": "float32"}


def record(place: Any, hits: list[int], n: int = 1000) -> Record:
    row = table.BY_LABEL[place.label]
    return {
        "model": row.read_by(place.column),
        "requested": str(patches.parse(row.asked(place.column))),
        "task": table.TASKS[place.text],
        "metric": "accuracy",
        "length": place.length,
        "value": sum(hits) / (n * len(hits)),
        "stderr": 0.01,
        "status": "ok",
        "created": "2026-01-01T00:00:00+00:00",
        **TEXT,
        "data": {"sha256": "a", "tokens": table.TOKENS[table.TASKS[place.text]]},
        "by_window": {"n": [n] * len(hits), "nll": [2.0 * n] * len(hits), "hits": hits},
    }


def as_published() -> list[Record]:
    """Records with the published figures, and ntk between ntk-old and ntk-fixed."""
    figures = {
        (row.label, column): pair
        for row in table.ROWS
        for column, pair in row.published.items()
        if row.model is None
    }
    for column in (table.PLAIN, table.LOGN):
        ends = zip(figures["ntk-old", column], figures["ntk-fixed", column], strict=True)
        figures["ntk", column] = table.Pair(*((a + b) / 2 for a, b in ends))
    return [
        record(table.Place(*where, 4096, text), [round(100 * getattr(pair, text))] * 2, 10_000)
        for where, pair in figures.items()
        for text in table.TASKS
    ]


def test_figures_are_those_of_the_specification() -> None:
    if not METHODS.exists():
        pytest.skip("no METHODS.md beside the repository")
    text = METHODS.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    want = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        name = name.split(",")[0].replace("beta-radix b=.625", "beta-radix")
        figures = [re.findall(r"(\d+\.\d+)/(\d+\.\d+)", cell) for cell in cells]
        if any(figures):
            want[name] = [[tuple(map(float, pair)) for pair in cell] for cell in figures]
    for row in table.ROWS:
        if row.label.startswith("leaky-rerope w="):
            window, leak = re.findall(r"=(\d+)", row.label)
            line = want[f"leaky w={window} leak=8"]
            place = ["8", "16", "32", "64"].index(leak)
            assert tuple(row.published[table.LOGN]) == line[2][place]
        elif row.label.startswith("inv-leaky"):
            (own, based) = want["inv-leaky w=128 (own training)"][2]
            assert tuple(row.published[table.LOGN]) == (based if "base" in row.label else own)
        else:
            line = want.get(row.label, [[], [], []])
            for column, cell in zip(COLUMNS, line, strict=True):
                assert [tuple(p) for p in [row.published.get(column)] if p] == cell


def test_every_row_asks_for_something_that_can_be_had() -> None:
    for row, length in product(table.ROWS, (512, 4096, 16384)):
        for column in row.columns:
            patches.parse(row.asked(column)).resolve(Span(512, length))
    labels = {row.label.split()[0] for row in table.ROWS}
    assert labels <= set(patches.names())


def test_the_published_orderings_hold_for_the_published_figures() -> None:
    found = table.Found(as_published())
    for text in table.TASKS:
        verdicts = [table.verdict(found, ordering, 4096, text) for ordering in table.orderings()]
        assert [(one.held, one.against, one.count) for one in verdicts] == [
            *((True, 0, count) for count in (12, 5, 12, 8, 14)),
        ]


def test_an_ordering_names_the_pair_that_is_the_other_way_round() -> None:
    records = as_published()
    place = table.Place("rerope w=128", table.LOGN, 4096)
    (old,) = (r for r in records if r == table.Found(records).at(place))
    hits = [4000, 4050]
    records[records.index(old)] = record(place, hits, 10_000)
    one = next(o for o in table.orderings() if "logn†" in o.words)
    verdict = table.verdict(table.Found(records), one, 4096, "N")
    assert (verdict.held, verdict.against, verdict.count) == (False, 1, 8)
    assert verdict.pair == "rerope w=128 + logn over rerope w=128 + logn†"
    assert verdict.value == pytest.approx(40.25 - 48.78)
    gaps = np.array([40.00, 40.50]) - 48.78
    assert verdict.stderr == pytest.approx(gaps.std(ddof=1) / 2**0.5)
    assert table._said(verdict).startswith("**not held**: 1 of 8 pairs")
    near = "held (a over b +0.19 ± 0.18, within two standard errors of 0)"
    assert table._said(table.Verdict(True, 0.19, 0.18, "a over b", 0, 5)) == near
    near = "not held: 1 of 5 pairs (a over b -0.19 ± 0.18, within two standard errors of 0)"
    assert table._said(table.Verdict(False, -0.19, 0.18, "a over b", 1, 5)) == near
    assert table.verdict(table.Found([]), one, 4096, "N") is None


def test_the_best_of_the_windows_stands_beside_the_best_of_the_others() -> None:
    places = [("rope", 9), ("pi", 310), ("window", 250), ("streaming", 270), ("dca", 40)]
    records = [record(table.Place(x, table.PLAIN, 4096), [n]) for x, n in places]
    assert "27.00 against 31.00 in N at 4k, – against – in R at 4k" in table.windowed(
        table.Found(records)
    )


def test_what_is_kept_has_a_paired_error() -> None:
    long, short = table.Place("rope", table.PLAIN, 4096), table.Place("rope", table.PLAIN, 512)
    rng = np.random.default_rng(0)
    longs = rng.integers(300, 500, 6)
    shorts = (longs[:, None] + rng.integers(20, 60, (6, 8))).clip(0, 1000)
    found = table.Found(
        [record(long, (8 * longs).tolist(), 8000), record(short, shorts.ravel().tolist())]
    )
    share, error = table.kept(found, long)
    assert share == pytest.approx(longs.mean() / shorts.mean())
    leave = [np.delete(longs, i).mean() / np.delete(shorts, i, 0).mean() for i in range(6)]
    jackknife = (5 / 6 * ((np.array(leave) - np.mean(leave)) ** 2).sum()) ** 0.5
    assert error == pytest.approx(jackknife, rel=0.1)  # they part in second order
    apart = table.Found([record(long, [3000] * 6, 8000), record(short, [400] * 40)])
    assert table.kept(apart, long) == (pytest.approx(0.375 / 0.4), None)
    assert table.kept(table.Found([]), long) is None


def test_a_loss_has_the_error_of_what_parts_it_from_another() -> None:
    rng = np.random.default_rng(1)
    nll = rng.uniform(2, 4, (2, 6)) * 511
    ours, other = (
        {
            "metric": "perplexity",
            "length": 512,
            "value": float(np.exp(sums.sum() / (6 * 511))),
            "by_window": {"n": [511] * 6, "nll": sums.tolist(), "hits": [0] * 6},
        }
        for sums in nll
    )
    length, value, error = table.loss(ours, other)
    assert length == 512
    assert value == pytest.approx(nll[0].mean() / 511)
    assert error == pytest.approx((nll[0] - nll[1]).std(ddof=1) / 511 / 6**0.5)
    assert table.loss(ours, ours).stderr is None


def test_everything_in_the_table_is_asked_for() -> None:
    asked = {
        (r.source.name, str(spec), str(task), length)
        for r in reproduce.requests()
        for spec, task, length in product(r.methods, r.tasks, r.lengths)
    }
    for row in table.ROWS:
        for column, length, text in product(row.columns, (512, *table.LENGTHS), table.TASKS):
            if length > 512 or (text == "N" and column != table.DAGGER):
                spec = str(patches.parse(row.asked(column)))
                assert (row.read_by(column), spec, table.TASKS[text], length) in asked


def made(at: str, spec: str = "rope", sha: str = "a", weights: str | None = "w") -> Record:
    data = {"name": "stdlib", "sha256": sha, "tokens": table.TOKENS["acc"]}
    facts = {"model": "tiny", "model_sha256": weights, "requested": spec, "status": "ok"}
    number = {"task": "acc", "metric": "accuracy", "value": 0.5, "length": 512}
    return {**TEXT, **facts, **number, "data": data, "created": at}


def test_records_of_another_text_or_other_weights_are_left_out() -> None:
    old, other = made("1", sha="b"), made("2", weights="v")
    first, failed = made("3"), {**made("6", "pi", "c", None), "status": "oom"}
    last, pi = made("4"), made("5", "pi")
    found = list(table.current([pi, failed, last, other, first, old]).values())
    assert found == [last, pi]
    assert table.current([failed]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "llama", "model_sha256": "x"},
        {"requested": "pi:factor=3"},
        {"task": "ppl", "data": {"sha256": "b", "tokens": 131072}},
        {"task": "passkey", "data": {"sha256": "b", "tokens": None}},
        {"data": {"name": "stdlib", "sha256": "a", "tokens": 65536}},
        {"limit": 3},
        {"dtype": "bfloat16"},
        {"trained_length": 4096},
        {"metric": "perplexity"},
        {"value": 0.0},
        {"model_sha256": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_newer_record_that_is_not_the_table_s_changes_nothing(change: Record) -> None:
    kept = [made("1"), made("2", "pi")]
    assert list(table.current([*kept, {**made("3"), **change}]).values()) == kept


def test_the_tail_s_records_are_found_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that the requests give them."""
    records = []
    for request in reproduce.requests():
        for spec, task, length in product(request.methods, request.tasks, request.lengths):
            if "tail" in str(task):
                data = {"name": "stdlib", "sha256": "a", "tokens": request.tokens}
                facts = {"model": request.source.name, "requested": str(spec), "task": str(task)}
                number = {"value": 9.0 + length / 1e4, "windows": 16, "metric": "perplexity"}
                rest = {"length": length, "status": "ok", "created": "1", "data": data}
                records.append({**facts, **number, **rest, **TEXT})
    found = table.Found(records)
    assert len(found.records) == len(records) == 6 * (13 + 3)
    figure = reproduce.tail(found)
    assert len(figure.lines) == 13 + 2
    assert {len(line.points) for line in figure.lines} == {6}
    assert table.tails(found).count("| 2.203 |") == 15  # ln 9.0512
    monkeypatch.setattr(reproduce, "OUT", tmp_path)
    monkeypatch.setattr(reproduce, "document", lambda found: "")
    monkeypatch.setattr(reproduce.plots, "save", lambda path, draw: path.touch())
    reproduce.write(found)
    assert (tmp_path / "tail.png").exists()


def test_the_factors_beside_the_records_are_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written, without the plots, is of the table's records alone."""
    written: list[Any] = []
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(ROOT / "results" / "tiny" / "records.jsonl", out)
    others = len((out / "records.jsonl").read_text("utf-8").splitlines())
    packed = (ROOT / "results" / "seed-table" / "records.jsonl").read_text("utf-8").splitlines()
    own = [Store(out).write(json.loads(line)) for line in packed[:3]]
    (out / Path(table.FACTORS).name).write_text('{"short_factor": []}')
    (out / "broken.json").write_text("{")
    monkeypatch.setattr(reproduce, "OUT", out)
    monkeypatch.setattr(reproduce, "write", written.append)
    reproduce.main(run=False)
    (found,) = written
    assert len(found.records) == len(own) == 3
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": c")[0] for line in said] == [
        "left out: broken.json",
        f"left out: {others} records that are not the table's, or not the last",
    ]
    for path in own:
        (out / path.name).unlink()
    with pytest.raises(SystemExit, match="no finished records"):
        reproduce.main(run=False)


def test_what_readme_shows_is_of_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme: Any = importlib.import_module("readme")
    shutil.copytree(ROOT / "results" / "seed-table", tmp_path / "results" / "seed-table")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    text = readme.seed()
    assert text in (ROOT / "docs" / "seed-table.md").read_text(encoding="utf-8")
    assert all(f"| {row.label} |" in text for row in table.ROWS)
    (tmp_path / "results" / "seed-table" / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match="broken"):
        readme.seed()


@pytest.mark.parametrize("windows", [6, 36, 72])
@pytest.mark.parametrize("alone", [True, False])
def test_readme_says_of_a_search_that_is_not_whole_that_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int, alone: bool
) -> None:
    """Where the records of one reading are gone, or one of them (the first of a finalist's)."""
    readme: Any = importlib.import_module("readme")
    out = tmp_path / "results" / "tune-tiny"
    shutil.copytree(ROOT / "results" / "tune-tiny", out)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.tuned() in (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")
    packed = out / "records.jsonl"
    records = [json.loads(line) for line in packed.read_text("utf-8").splitlines()]
    tails = [r for r in records if r["task"].partition(":")[0] == "ppl-tail"]
    finalist = next(r["requested"] for r in tails if r["windows"] == 72).partition("+")[0]
    gone = [
        r
        for r in tails
        if r["windows"] == windows and (not alone or r["requested"].startswith(f"{finalist}+"))
    ]
    assert len(gone) == 1 if alone else len(gone) > 1
    kept = (json.dumps(r, ensure_ascii=False) for r in records if r not in gone)
    packed.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    with pytest.raises(SystemExit, match="does not hold one whole search") as told:
        readme.tuned()
    assert "\n" not in str(told.value)
