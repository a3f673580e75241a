"""Tables and plots from made-up records: what is compared, marked, taxed, escaped and drawn."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_results import HOSTILE, failed, make

from ctxext import report
from ctxext.errors import UsageError
from ctxext.notation import format_length
from ctxext.records import SPENT, Record, problem_with, sealed
from ctxext.records.intervals import tango, wilson
from ctxext.report import formats, groups, heatmaps, labels, latex, plots, series, tables
from ctxext.report.figure import Figure


def cell(method: str, length: int, losses: tuple[float, float] = (2.0, 2.0), **more: Any) -> Record:
    """A record with one loss inside the trained length (32) and one beyond it."""
    record = make(requested=method, length=length, **more)
    for bucket in record["buckets"]:
        bucket["nll"] = losses[bucket["stop"] > record["trained_length"]]
        bucket["acc"] = math.exp(-bucket["nll"])
    total = sum(bucket["n"] for bucket in record["buckets"])
    mean = sum(bucket["nll"] * bucket["n"] for bucket in record["buckets"]) / total
    value = math.exp(mean if record["metric"] == "perplexity" else -mean)
    return record | {"value": more.get("value", value)}


def only(records: list[Record], **kw: Any) -> tables.Table:
    (table,) = tables.build(records, **kw)
    return table


def texts(table: tables.Table) -> dict[str, list[str]]:
    return {
        row.method: [table.cell_text(c) for c in row.cells] + table.tax_texts(row)
        for row in table.rows
    }


def terminal(table: tables.Table, width: int = 120, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(formats.to_rich(table, width), crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


EXAMPLE = [
    cell("rope", 64, (2.0, 5.0)),
    cell("rope", 128, (2.0, 7.0)),
    cell("ntk", 64, (2.1, 2.2)),
    cell("ntk", 128, (2.15, 2.4)),
    cell("rerope", 64, (1.99, 2.0)),
    failed(requested="rerope", length=128),
    failed(requested="pi", length=64, status="error", reason="boom"),
]


def test_rows_columns_failures_and_best() -> None:
    table = only(EXAMPLE)
    assert table.header() == ["method", "64", "128", "Δ 64", "Δ 128", "tax (nat)", "tokens/s"]
    assert [row.method for row in table.rows] == ["rope", "ntk", "pi", "rerope"]
    shown = texts(table)
    assert shown["pi"] == ["error", "–", "–"]
    assert shown["rerope"][1] == "oom"
    best = [(row.method, column.length) for row, column, c in table.cells() if c.best]
    assert best == [("ntk", 128), ("rerope", 64)]


def test_tax_is_measured_at_the_longest_length_inside_the_trained_one() -> None:
    shown = texts(only(EXAMPLE))
    assert shown["rope"][-1] == "0.000"
    assert shown["ntk"][-1] == "+0.150"  # at 128, not the +0.100 of 64
    assert shown["rerope"][-1] == "–"  # it ran out of memory at 128
    caption = only(EXAMPLE).caption
    assert "positions 0 to 32 (trained length 32), measured at length 128" in caption
    assert "standard error over windows" in caption
    # at 1024 each bucket has 64 tokens and none lies inside 32
    longer = [*EXAMPLE, cell("rope", 1024), cell("ntk", 1024)]
    assert texts(only(longer))["ntk"][-1] == "+0.150"
    assert texts(only([cell("rope", 1024), cell("ntk", 1024)]))["ntk"][-1] == "–"


def test_tax_is_weighted_by_tokens_and_signed() -> None:
    rope, ntk = cell("rope", 64), cell("ntk", 64)
    for number, bucket in enumerate(ntk["buckets"]):
        bucket["nll"] = 1.0 if number == 0 else 2.0  # bucket 0 has 12 tokens, others 16
    inside = 12 + 7 * 16
    row = only([rope, ntk]).rows[1]
    assert row.tax == pytest.approx(-12 / inside)
    assert texts(only([rope, ntk]))["ntk"][-1] == f"{-12 / inside:+.3f}"


def test_tax_needs_rope_on_the_same_tokens() -> None:
    without = only([cell("ntk", 64), cell("pi", 64)])
    assert {row.tax for row in without.rows} == {None}
    assert "needs rope" in without.caption
    edited = cell("ntk", 64)
    edited["buckets"][1]["n"] -= 1
    table = only([cell("rope", 64), edited, cell("pi", 64)])
    assert [row.tax is None for row in table.rows] == [False, True, False]
    failed_rope = only([failed(requested="rope"), cell("ntk", 64)])
    assert texts(failed_rope)["rope"] == ["oom", "–"]


def test_accuracy_is_in_percent_and_its_tax_in_points() -> None:
    records = [
        cell("rope", 64, (0.5, 3.0), metric="accuracy", stderr=0.01),
        cell("ntk", 64, (0.6, 0.7), metric="accuracy", stderr=None),
    ]
    table = only(records)
    points = 100 * (math.exp(-0.6) - math.exp(-0.5))
    value = records[0]["value"] * 100
    assert table.header() == ["method", "64", "Δ 64", "tax (pt)", "tokens/s"]
    assert texts(table)["rope"] == [f"{value:.2f} ± 1.00", "0.00"]
    assert texts(table)["ntk"] == [f"{100 * records[1]['value']:.2f}", f"{points:+.2f}"]
    assert [row.cells[0].best for row in table.rows] == [False, True]
    assert "Percent" in table.caption
    (first, second) = csv.DictReader(io.StringIO(formats.to_csv([table])))
    assert float(first["value"]) == records[0]["value"]
    assert second["stderr"] == ""


def test_ties_are_both_best_and_a_lone_row_is_not() -> None:
    table = only([cell("rope", 64), cell("ntk", 64), cell("pi", 64, (2.0, 3.0))])
    assert [row.cells[0].best for row in table.rows] == [True, True, False]
    assert not only([cell("rope", 64)]).rows[0].cells[0].best
    alone = only([cell("rope", 64), failed(requested="pi")])
    assert not any(c.best for _, _, c in alone.cells())


@pytest.mark.parametrize(
    ("metric", "says", "best"),
    [
        ("word_perplexity", {}, ["c"]),
        ("string_match_all", {}, ["a"]),
        ("odd", {}, []),
        ("odd", {"higher_is_better": None}, []),
        ("odd", {"higher_is_better": False}, ["c"]),
        ("odd", {"higher_is_better": True}, ["a"]),
        ("word_perplexity", {"higher_is_better": True}, ["a"]),
    ],
    ids=str,
)
def test_the_best_is_what_records_say_or_what_a_known_metric_does(
    metric: str, says: dict[str, Any], best: list[str]
) -> None:
    values = {"a": 80.0, "b": 20.0, "c": 12.0}
    records = [cell(m, 64, metric=metric, value=v, **says) for m, v in values.items()]
    table = only(records)
    assert [row.method for row in table.rows if row.cells[0].best] == best
    assert ("better" in table.caption) == bool(best)
    assert [line.split(" | ")[1].startswith("**") for line in report.render(records).splitlines()
            if line[:4] in ("| a ", "| b ", "| c ")] == [m in best for m in values]  # fmt: skip
    page_marks = re.findall(r'class="best" data-value="([\d.]+)"', report.render(records, "html"))
    assert page_marks == [str(values[m]) for m in best]


def test_records_that_do_not_agree_on_what_is_better_have_no_best() -> None:
    said = [("a", 1.0, True), ("b", 2.0, False)]
    table = only([cell(m, 64, metric="odd", value=v, higher_is_better=h) for m, v, h in said])
    assert not any(row.cells[0].best for row in table.rows)


@pytest.mark.parametrize("values", [(3.0, 3.0, 3.0), (3.0, 3.00001, 3.0)])
def test_a_column_whose_values_read_alike_has_no_best(values: tuple[float, ...]) -> None:
    names = ("rope", "ntk", "pi")
    table = only([cell(m, 64, value=v) for m, v in zip(names, values, strict=True)])
    assert not any(row.cells[0].best for row in table.rows)


def test_what_reads_as_the_best_is_as_good() -> None:
    values = {"rope": 3.0, "ntk": 2.5, "pi": 2.50001}
    table = only([cell(m, 64, value=v) for m, v in values.items()])
    assert [row.method for row in table.rows if row.cells[0].best] == ["ntk", "pi"]


def test_every_metric_of_ours_is_known_as_its_task_says() -> None:
    """Records from before tasks said it are judged by the metric alone."""
    from ctxext import tasks
    from ctxext.records.metrics import KNOWN

    for name in tasks.names():
        task = tasks.REGISTRY.get(name)
        if task.higher_is_better is True or task.higher_is_better is False:  # lm-eval's is its own
            said = re.split(", | or ", task.describe()["metric"])
            assert {KNOWN[metric].higher_is_better for metric in said} == {task.higher_is_better}


def test_no_map_of_what_is_worse_where_there_is_more() -> None:
    lost = [found("rope", 64, {0.5: 1.0}, metric="lost", higher_is_better=False)]
    assert heatmaps.heatmaps(lost) == []
    assert heatmaps.heatmaps([{**lost[0], "higher_is_better": True}]) != []


def test_numbers_are_short_at_every_size() -> None:
    table = only([cell("rope", 64)])
    show = [(5.4321, 0.0213), (54.321, 0.2), (543.21, 2.0), (54321.0, 9.0), (1.5e30, 2e29)]
    assert [table.cell_text(tables.Cell(v, s, "ok")) for v, s in show] == [
        "5.432 ± 0.021",
        "54.32 ± 0.20",
        "543.2 ± 2.0",
        "54321 ± 9",
        "1.5e+30 ± 2e+29",
    ]
    assert [format_length(n) for n in (512, 1000, 1024, 16384, 1 << 20, 1536)] == [
        "512",
        "1000",
        "1k",
        "16k",
        "1m",
        "1536",
    ]
    tiny = tables.Row("x", (), -1e-9)
    assert table.tax_texts(tiny) == ["0.000"]


def test_method_order() -> None:
    names = [
        "yarn",
        "rerope:window=256",
        "rope",
        "rerope:window=64",
        "rerope",
        "ntk",
        "²",
        "9" * 99,
    ]
    records = [cell(name, 64) for name in names]
    assert groups.method_order(records)[:1] == ["rope"]
    sorted_names = [n for n in groups.method_order(records) if n in names[:6]]
    assert sorted_names == [
        "rope",
        *sorted(["ntk", "rerope", "yarn"])[:2],
        "rerope:window=64",
        "rerope:window=256",
        "yarn",
    ]
    given = [row.method for row in only(records, order=["yarn", "ntk", "absent"]).rows]
    assert given[:3] == ["rope", "yarn", "ntk"]


def test_only_what_is_comparable_shares_a_table() -> None:
    data = make()["data"]
    records = [
        cell("rope", 64),
        cell("rope", 64, dtype="bfloat16"),
        cell("rope", 64, data=data | {"tokens": 77}),
        cell("rope", 64, data=data | {"sha256": "ee" * 32}),
        cell("rope", 64, model="other"),
        cell("rope", 64, task="acc", metric="accuracy"),
        cell("rope", 64, seed=5),
        cell("rope", 64, model_sha256=None),
        cell("rope", 64, device="cuda (NVIDIA H200)"),
    ]
    built = tables.build(records)
    assert len(built) == len(records)
    titles = [table.title for table in built]
    assert len(set(titles)) == len(titles)
    assert "other · ppl · perplexity · stdlib" in titles
    assert any("bfloat16" in title and "1000 tokens" in title for title in titles)


def test_what_was_tokenised_beyond_the_windows_of_a_limit_makes_no_difference() -> None:
    data = make()["data"] | {"at_most": None}
    records = [cell("rope", n, limit=2, data=data | {"tokens": 2 * n}) for n in (64, 128)]
    assert len(tables.build(records)) == 1
    capped = cell("rope", 64, limit=2, data=data | {"at_most": 100})
    assert len(tables.build([*records, capped])) == 2


def test_cells_of_different_windows_are_not_compared() -> None:
    records = [
        cell("rope", 64),
        cell("ntk", 64, windows=2, value=1.0),
        cell("pi", 64, windows=2, value=3.0),
        failed(requested="yarn", length=64),
    ]
    table = only(records)
    assert table.header()[1:3] == ["64 (2 windows)", "64 (4 windows)"]
    shown = texts(table)
    assert shown["rope"][0] == "–"
    assert shown["ntk"] == ["1.000 ± 0.100", "–", "–"]
    assert shown["yarn"][:2] == ["oom", "oom"]
    assert [(row.method, c.windows) for row, c, x in table.cells() if x.best] == [("ntk", 2)]


def test_the_newest_finished_record_of_a_cell_counts() -> None:
    records = [
        cell("ntk", 64, value=3.0, created="2026-01-02T00:00:00+00:00", limit=4),
        cell("ntk", 64, value=4.0, created="2026-01-01T00:00:00+00:00"),
        failed(requested="ntk", created="2026-01-03T00:00:00+00:00"),
    ]
    assert texts(only(records))["ntk"][0] == "3.000 ± 0.100"


OTHERS = [
    {"device": "cpu (x86_64, 2 threads)"},
    {"attention": "eager"},
    {"versions": {"torch": "2.13.0"}},
    {"versions": {"torch": "2.11", "transformers": "5.24.0"}},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_what_was_not_measured_alike_is_told_and_no_difference_of_it_is_exact(
    other: dict[str, Any],
) -> None:
    same = [cell("rope", n, value=5.5) for n in (64, 128)]
    same += [cell("ntk", n, value=5.5) for n in (64, 128)]
    records = [*same, *(cell("pi", n, value=5.5, **other) for n in (64, 128))]
    table = only(records)
    apart = {row.method: table.difference_text(row.cells[0]) for row in table.rows}
    assert apart == {"rope": "–", "ntk": "0.000", "pi": "≈0.000"}
    (what,) = other.values()
    text = list(what.values())[-1] if isinstance(what, dict) else what
    assert text in table.caption
    assert all(text in " ".join(shown.notes) for shown in series.figures(records))
    for form in ("md", "latex", "csv", "html"):
        assert text in html.unescape(report.render(records, form)).replace("\\_", "_"), form
    assert "Not all are of one" not in only(same).caption
    assert "≈" not in only(same).caption


def test_a_record_that_another_took_the_place_of_is_told() -> None:
    first = cell("ntk", 64, value=9.0, attention="eager", created="2025-01-01T00:00:00+00:00")
    last = [cell("rope", 64), cell("ntk", 64, value=3.0)]
    table = only([first, *last])
    assert texts(table)["ntk"][0] == "3.000 ± 0.100"
    assert "Left out: 1 older record of the same cells: attention eager." in table.caption
    same = {**first, "attention": "flash", "limit": 4}
    assert "Left out" not in only([same, *last]).caption


def test_records_of_older_versions_are_left_out_and_told() -> None:
    """Those of a method that has a newer version, whatever their length, and those that say none;
    where what all are measured by has one, all others."""
    now = {"the engine": 1, "method ntk": 2}
    old = [
        cell("ntk", 64, value=9.0, created="2027-01-01T00:00:00+00:00"),
        cell("ntk", 128, value=9.0, version_of={"the engine": 1, "method ntk": 1}),
    ]
    others = [cell(m, n, version_of={"the engine": 1}) for m in ("rope", "pi") for n in (64, 128)]
    table = only([*old, *others, cell("ntk", 64, value=3.0, version_of=now)])
    assert [text[:5] for text in texts(table)["ntk"][:2]] == ["3.000", "–"]
    assert "Left out: 2 records of an older version" in table.caption
    raised = [cell("rope", 64, version_of={"the engine": 2})]
    table = only([*old, *others, *raised, cell("yarn", 64)])
    assert [row.method for row in table.rows] == ["rope"]
    assert "Left out: 7 records of an older version" in table.caption


def test_the_order_of_records_does_not_matter() -> None:
    shuffled = EXAMPLE[:]
    random.Random(1).shuffle(shuffled)
    for form in report.FORMATS:
        assert report.render(EXAMPLE, form) == report.render(shuffled, form)
    assert series.figures(EXAMPLE) == series.figures(shuffled) != []
    assert heatmaps.heatmaps(MAPPED) == heatmaps.heatmaps(MAPPED[::-1]) != []


def test_markdown() -> None:
    text = report.render(EXAMPLE, "md")
    assert text.splitlines()[:4] == [
        "### tiny · ppl · perplexity · stdlib",
        "",
        "| method | 64 | 128 | Δ 64 | Δ 128 | tax (nat) | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    row = r"\| rerope \| \*\*\d\.\d{3} ± 0\.100\*\* \| oom \| -\d+\.\d{3} \| – \| – \| – \|"
    assert re.search(row, text)
    assert report.render([], "md") == "No records.\n"


@pytest.mark.parametrize(
    "name", [*HOSTILE, "=1+1", "@x", "a|b\\|c", "**x**", "`x`", "[red]x[/red]", "[/]", "&lt;"]
)
def test_hostile_names_do_no_harm(name: str, tmp_path: Path) -> None:
    name = name.replace("\udcff", "?")  # the store lets no lone surrogate through
    records = [cell("rope", 64, model=name), cell(name, 64, (2.0, 3.0), model=name)]
    plain = "".join(c if c.isprintable() else "?" for c in name)
    table = only(records)

    lines = report.render(records, "md").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.count("|") for line in rows} == {6}
    assert "<" not in "".join(lines)
    shown = html.unescape(re.sub(r"\\([`*_\[\]~$])", r"\1", rows[3].split(" | ")[0][2:]))
    assert shown == plain

    printed = terminal(table, width=12_000)
    assert plain in printed
    assert "\x1b" not in printed

    parsed = list(csv.DictReader(io.StringIO(report.render(records, "csv"))))
    inert = f"'{plain}" if plain[0] in "=+-@" else plain  # no formula for a spreadsheet
    assert [(row["model"], row["method"]) for row in parsed] == [(inert, "rope"), (inert, inert)]

    written = report.write_files(tmp_path, records)
    assert len(written) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    starts = ("loss-by-position", "cost--perplexity")
    endings = [(start, suffix) for start in starts for suffix in ("png", "svg")]
    for path, (start, suffix) in zip(written[1:], endings, strict=True):
        assert re.fullmatch(rf"{start}--[A-Za-z0-9._+=-]+--stdlib\.{suffix}", path.name)
        assert len(path.name) < 200
        assert suffix == "png" or ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")


def test_terminal_shows_the_best_with_and_without_colour() -> None:
    table = only(EXAMPLE)
    plain = terminal(table)
    assert re.search(r"rerope .*\d ±0\.100\* ", plain)
    assert "* is the best of its column" in " ".join(plain.split())
    coloured = terminal(table, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m" in coloured


def test_a_narrow_terminal_breaks_no_name_and_no_number() -> None:
    name = "leaky-rerope:window=128,leak=16+logn"
    table = only([cell("rope", 64), cell(name, 64, (2.1234, 2.5))])
    printed = terminal(table, width=30)
    assert name in printed
    for text in texts(table)[name]:
        assert all(word in printed for word in text.replace("± ", "±").split())
    assert max(map(len, terminal(table, width=73).splitlines())) == 73
    console = Console(file=io.StringIO(), width=30)
    console.print(formats.to_rich(table), crop=False)
    whole = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"leaky-rerope\S+ +│ +10\.12 ±0\.10 +│ +\+0\.123 +│", whole)


def test_csv_is_long_form() -> None:
    rows = list(csv.DictReader(io.StringIO(report.render(EXAMPLE, "csv"))))
    assert len(rows) == len(EXAMPLE)
    oom = next(row for row in rows if row["status"] == "oom")
    assert (oom["method"], oom["length"], oom["value"], oom["windows"]) == (
        "rerope",
        "128",
        "",
        "4",
    )
    ntk = next(row for row in rows if row["method"] == "ntk")
    assert float(ntk["tax"]) == pytest.approx(0.15)
    assert report.render([], "csv").startswith("model,task,metric,data,method,length,value,stderr")


def test_an_unknown_format_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="'pdf'; valid: md, csv, latex"):
        report.render([], "pdf")


def test_files_are_written_the_same_each_time(tmp_path: Path) -> None:
    data = make()["data"] | {"name": "hf:pg19:test"}
    records = [
        *EXAMPLE,
        cell("rope", 64, data=data),
        cell("rope", 64, data=data, dtype="bfloat16"),
        cell("rope", 64, data=data | {"name": "hf/pg19/test"}, dtype="bfloat16"),
        cell("rope", 64, metric="accuracy"),
        failed(requested="rope", model="broken"),
    ]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = report.write_files(tmp_path / "a", records)
    second = report.write_files(tmp_path / "b", records[::-1])
    names = [path.name for path in first]
    assert names[0] == "tables.md"
    assert "loss-by-position--tiny--stdlib.png" in names
    assert "loss-by-position--tiny--hf-pg19-test--bfloat16.png" in names
    assert not any("broken" in name for name in names)
    assert len(names) == len({name.casefold() for name in names}) == 13
    contents = {path.name: path.read_bytes() for path in first}
    assert contents == {path.name: path.read_bytes() for path in second}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(names)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_deterministic(suffix: str, tmp_path: Path) -> None:
    (shape,) = heatmaps.heatmaps(MAPPED)
    pictures = [partial(plots.draw, figure) for figure in series.figures(EXAMPLE)]
    for draw in (*pictures, partial(heatmaps.draw, shape)):
        first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        plots.save(first, draw)
        plots.save(second, draw)
        assert first.read_bytes() == second.read_bytes()
        if suffix == "png":
            assert first.read_bytes().startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(first.read_bytes()).tag.endswith("svg")


def test_a_picture_needs_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        plots.save(tmp_path / "a.gif", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_the_tables_of_a_thousand_records_take_less_than_three_seconds(tmp_path: Path) -> None:
    for number in range(1000):
        method, length = f"m{number % 25}", 64 << (number // 25 % 5)
        record = sealed(cell(method, length, model=f"model {number // 125}"))
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
    argv = [sys.executable, "-m", "ctxext", "report", "--out", str(tmp_path), "--no-plots"]
    before = os.times()
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    after = os.times()
    assert "skipped" not in done.stderr
    assert len(re.findall("^│ m", done.stdout, re.MULTILINE)) == 8 * 25
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 3


# Intervals of shares.


def answered(method: str, hits: list[int], **more: Any) -> Record:
    """A record of passkey over these samples."""
    share, n = sum(hits) / len(hits), len(hits)
    kept = {"by_sample": {"prompts": "ab", "scores": hits}, "n": n, "windows": n, "stderr": 0.0}
    return found(method, 64, {0.5: share}, **{**kept, **more})


def test_a_share_has_its_interval_in_every_format() -> None:
    """Two of two found and two of two lost are no certainties, nor is what parts them."""
    records = [answered("rope", [0, 0]), answered("ntk", [1, 1]), answered("pi", [0, 0])]
    table = only(records)
    shown = {row.method: table.cell_text(row.cells[0]) for row in table.rows}
    assert shown == {
        "rope": "0.0 [0.0, 65.8]",
        "ntk": "100.0 [34.2, 100.0]",
        "pi": "0.0 [0.0, 65.8]",
    }
    apart = {row.method: table.difference_text(row.cells[0]) for row in table.rows}
    assert apart == {"rope": "–", "ntk": "+100.0 [-31.5, +100.0]", "pi": "0.0 [-65.8, +65.8]"}
    assert "95% interval over 2 samples" in table.caption
    for form in ("md", "latex", "html"):
        text = html.unescape(report.render(records, form)).replace("{[}", "[").replace("{]}", "]")
        if form == "latex":
            assert "$+$100.0 [$-$31.5, $+$100.0]" in text
        assert "100.0 [34.2, 100.0]" in text.replace("\\[", "[").replace("\\]", "]"), form
        assert "0.0 ±" not in text
    assert "100.0 [34.2,100.0]*" in " ".join(terminal(table).split())
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(report.render(records, "csv")))}
    ends = [float(rows["ntk"][name]) for name in ("low", "high")]
    assert ends == pytest.approx(wilson(1, 2))
    ends = [float(rows["ntk"][name]) for name in ("difference_low", "difference_high")]
    assert ends == pytest.approx(tango(2, 0, 2))
    assert rows["rope"]["difference_low"] == ""


def test_shares_that_records_do_not_keep_by_sample_are_not_paired() -> None:
    table = only([answered("rope", [0, 1]), answered("ntk", [1, 1], by_sample=None)])
    (ours, theirs) = (row.cells[0].difference for row in table.rows[::-1])
    assert theirs is None
    assert ours is not None
    assert (ours.value, ours.stderr) == (0.5, None)
    assert ours.interval is not None
    assert ours.interval.low < 0 < ours.interval.high


def test_another_librarys_perplexity_is_over_samples_and_has_no_tax() -> None:
    rows = [make(requested=m, metric="perplexity", task="lm-eval:x", buckets=[], value=v)
            for m, v in (("rope", 3.0), ("ntk", 2.0))]  # fmt: skip
    table = only(rows)
    assert table.header() == ["method", "64", "Δ 64"]
    assert "standard error over samples" in table.caption


def test_another_librarys_accuracy_is_shown_on_its_own_scale() -> None:
    rows = [make(requested=m, metric="accuracy", task="lm-eval:x", buckets=[], value=v)
            for m, v in (("rope", 87.5), ("ntk", 0.5))]  # fmt: skip
    assert [problem_with(row) for row in rows] == [None, None]
    table = only(rows)
    assert table.cell_text(table.rows[0].cells[0]).startswith("87.50")
    assert "ercent" not in table.caption


def test_a_map_says_how_many_samples_a_square_is_of() -> None:
    (shape,) = heatmaps.heatmaps(MAPPED)
    assert "5 samples a square: 95% intervals up to 65 points wide" in shape.about


# Beside rope, and LaTeX.


def test_differences_are_to_rope_at_the_same_windows() -> None:
    table = only(
        [
            cell("rope", 64, value=5.5),
            cell("ntk", 64, value=5.25),
            cell("pi", 64, value=5.5),
            cell("ntk", 64, value=1.0, windows=2),
            cell("ntk", 128, value=7.0),
            failed(requested="rope", length=128),
        ]
    )
    assert [table.columns[number] for number in table.compared()] == [(64, 4)]
    shown = {(row.method, column): table.difference_text(c) for row, column, c in table.cells()}
    assert shown["rope", (64, 4)] == "–"
    assert shown["ntk", (64, 4)] == "-0.250"
    assert shown["pi", (64, 4)] == "0.000"
    assert shown["ntk", (64, 2)] == shown["ntk", (128, 4)] == "–"
    rows = list(csv.DictReader(io.StringIO(formats.to_csv([table]))))
    assert [
        row["difference"] for row in rows if row["windows"] == "4" and row["length"] == "64"
    ] == [
        *("", "-0.25", "0.0"),
    ]
    shares = [cell(m, 64, metric="accuracy", value=v) for m, v in (("rope", 0.5), ("ntk", 0.625))]
    table = only(shares)
    assert table.difference_text(table.rows[1].cells[0]) == "+12.50"
    assert "in percentage points" in table.caption


def test_differences_have_the_error_of_the_pairs_where_windows_are_recorded() -> None:
    ids = {"n": [10, 20, 30], "nll": [20.0, 44.0, 63.0]}
    rope, pi = ({**ids, "hits": hits} for hits in ([5, 9, 15], [6, 13, 17]))
    shares = [("rope", 29 / 60, rope), ("pi", 36 / 60, pi), ("ntk", 0.5, None)]
    table = only([cell(m, 64, metric="accuracy", value=v, by_window=w, n=60) for m, v, w in shares])
    d = [1 / 10, 4 / 20, 2 / 30]
    weights, mean = [10, 20, 30], 7 / 60
    squares = sum((w * (x - mean)) ** 2 for w, x in zip(weights, d, strict=True))
    error = 100 * math.sqrt(squares * 3 / 2) / 60
    shown = {row.method: table.difference_text(row.cells[0]) for row in table.rows}
    assert shown == {"rope": "–", "pi": f"+11.67 ± {error:.2f}", "ntk": "+1.67"}
    assert "paired over windows" in table.caption
    lines = csv.DictReader(io.StringIO(formats.to_csv([table])))
    errors = {row["method"]: row["difference_stderr"] for row in lines}
    assert (errors["rope"], errors["ntk"]) == ("", "")
    assert float(errors["pi"]) == pytest.approx(error / 100)
    same = [cell(m, 64, metric="accuracy", value=0.5, by_window=rope, n=60) for m in ("rope", "pi")]
    table = only(same)
    assert table.difference_text(table.rows[1].cells[0]) == "0.00"  # no error to speak of
    assert "paired over windows" in table.caption


def test_speed_and_memory_are_those_of_the_longest_length_that_rope_finished() -> None:
    gib = 2**30
    records = [
        cell("rope", 64, seconds=2.0, tokens_per_second=500.0, peak_memory_bytes=gib),
        cell("ntk", 64, seconds=4.0, tokens_per_second=250.0, peak_memory_bytes=3 * gib),
        cell("pi", 64, seconds=1.0, peak_memory_bytes=gib // 2, device="cpu (other)"),
        cell("yarn", 64, seconds=1.0, peak_memory_bytes=gib, batch_size=1, prefill_chunk=512),
        cell("ntk", 32, seconds=1.0, tokens_per_second=9.0),
        cell("ntk", 128, seconds=1.0, tokens_per_second=9.0),
        failed(requested="rerope", length=64),
    ]
    table = only(records)
    assert table.header()[-2:] == ["tokens/s", "peak memory"]
    assert {row.method: table.cost_texts(row) for row in table.rows} == {
        "rope": [("500", ""), ("1.00 GiB", "")],
        "ntk": [("250", "×0.50"), ("3.00 GiB", "×3.00")],
        "pi": [("170", ""), ("512 MiB", "")],
        "yarn": [("170", "×2.00"), ("1.00 GiB", "")],
        "rerope": [("–", ""), ("–", "")],
    }
    (row,) = [
        row
        for row in csv.DictReader(io.StringIO(formats.to_csv([table])))
        if (row["method"], row["length"]) == ("ntk", "64")
    ]
    named = ("tokens_per_second", "speed_ratio", "peak_memory_bytes", "memory_ratio")
    assert [float(row[name]) for name in named] == [250.0, 0.5, 3 * gib, 3.0]
    assert row["prefill_ratio"] == row["decode_ratio"] == ""
    assert only([failed(requested="pi")]).header() == ["method", "64", "tax (nat)"]


def timed(method: str, **changed: Any) -> Record:
    """A record of 10 prompts of 64 tokens and answers, which took 2 and 3 seconds."""
    spent = {"prefill_seconds": 2.0, "prefill_tokens": 640}
    spent |= {"decode_seconds": 3.0, "decode_tokens": 60}
    return found(method, 64, {0.5: 1.0}) | spent | {"seconds": 5.0} | changed


def test_short_answers_are_not_quick_ones() -> None:
    """A prompt is compared with a prompt and a step with a step, in batches of one size."""
    old = dict.fromkeys(SPENT)
    records = [
        timed("rope"),
        timed("yarn", decode_seconds=0.5, decode_tokens=10, seconds=2.5),
        timed("rerope", prefill_seconds=2.5, decode_seconds=6.0, seconds=8.5),
        timed("ntk", prefill_chunk=256),
        timed("pi", decode_seconds=None, decode_tokens=None),
        timed("dca", **old),
    ]
    table = only(records)
    assert table.header()[2:] == ["Δ 64", "prefill tokens/s", "decode tokens/s"]
    assert {row.method: table.cost_texts(row) for row in table.rows} == {
        "rope": [("320", ""), ("20.0", "")],
        "yarn": [("320", "×1.00"), ("20.0", "×1.00")],
        "rerope": [("256", "×0.80"), ("10.0", "×0.50")],
        "ntk": [("320", ""), ("20.0", "")],
        "pi": [("320", "×1.00"), ("–", "")],
        "dca": [("–", ""), ("–", "")],
    }
    assert "Prefill tokens/s and decode tokens/s are of the evaluation" in table.caption
    shown = figure(records, "cost")
    assert {line.method: line.points[0].x for line in shown.lines} == {
        "rope": 1.0,
        "yarn": 1.0,
        "rerope": 1.25,
        "pi": 1.0,
    }
    assert shown.x.startswith("prefill time over that of rope")
    assert only([timed(name, **old) for name in ("rope", "yarn")]).costs() == []


def test_times_of_several_processes_are_not_those_of_one() -> None:
    alone = cell("rope", 64, seconds=2.0)
    for several, told in ((2, ""), (1, "×2.00")):
        table = only([alone, cell("ntk", 64, seconds=1.0, processes=several)])
        assert table.cost_texts(table.rows[1])[0][1] == told


def test_the_terminal_shows_differences_below_values() -> None:
    table = only([cell("rope", 64, value=5.5), cell("ntk", 64, value=5.25)])
    lines = [line.split("│")[1:-1] for line in terminal(table).splitlines() if line[:1] == "│"]
    assert [[part.strip() for part in line] for line in lines] == [
        ["rope", "5.500 ±0.100", "0.000", "170"],
        ["ntk", "5.250 ±0.100*", "0.000", "170"],
        ["", "-0.250", "", "×1.00"],
    ]


def test_latex_is_a_booktabs_table() -> None:
    lines = report.render(EXAMPLE, "latex").splitlines()
    assert lines[:3] == ["% \\usepackage{booktabs}", "\\begin{table}", "\\centering"]
    assert "\\begin{tabular}{lrrrrrr}" in lines
    head = lines.index("\\toprule") + 1
    assert lines[head] == (
        "method & 64 & 128 & $\\Delta$ 64 & $\\Delta$ 128 & tax (nat) & tokens/s \\\\"
    )
    assert lines[head + 1] == "\\midrule"
    rows = lines[head + 2 : lines.index("\\bottomrule")]
    assert {row.count(" & ") for row in rows} == {6}
    assert all(row.endswith(" \\\\") for row in rows)
    assert any(row.startswith("rerope & \\textbf{") and " & oom & " in row for row in rows)
    assert lines[-2:] == ["\\end{tabular}", "\\end{table}"]


def test_nothing_in_a_name_is_latex() -> None:
    shown = {
        "a_b%c": "a\\_b\\%c",
        "\\input{x}": "\\textbackslash{}input\\{x\\}",
        "$x^2$ & ~#": "\\$x\\textasciicircum{}2\\$ \\& \\textasciitilde{}\\#",
        '<|">': "\\textless{}\\textbar{}\\char34{}\\textgreater{}",
        "λ=1±2×ω": "$\\lambda$=1$\\pm$2$\\times$$\\omega$",
        "[1]*": "{[}1{]}{*}",
        "a---b''": "a-{}-{}-b'{}'",
        "é模\n\u202e": "é???",
        "ς σ ο": "$\\varsigma$ $\\sigma$ o",
    }
    assert {name: latex.escape(name) for name in shown} == shown


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_keeps_its_shape_whatever_the_names(name: str) -> None:
    records = [sealed(cell(m, 64, model=name, metric=name)) for m in ("rope", name)]
    text = report.render(records, "latex")
    assert len(text.splitlines()) == 13
    body = re.sub(r"\\[{}$&#_%]", "", text)
    assert body.count("{") == body.count("}")
    assert body.count("$") % 2 == 0
    assert {line.count("&") for line in body.splitlines() if line.endswith("\\\\")} == {3}


# What plots show.


def figure(records: list[Record], start: str) -> Figure:
    (found,) = [f for f in series.figures(records) if f.name.startswith(f"{start}--")]
    return found


def axes_of(shown: Figure) -> Any:
    (axes,) = plots.draw(shown).axes
    return axes


def test_which_plots_there_are() -> None:
    assert [f.name for f in series.figures(EXAMPLE)] == [
        "loss-by-position--tiny--stdlib",
        "perplexity--tiny--stdlib",
        "cost--perplexity--tiny--stdlib",
    ]
    assert series.figures([make(buckets=[]), failed()]) == []
    assert series.figures([]) == []
    odd = [cell(m, n, metric="cost", task="cost") for m in ("rope", "ntk") for n in (64, 128)]
    names = [f.name for f in series.figures(odd)]
    assert names == [
        "loss-by-position--tiny--cost--stdlib",
        "metric-cost--tiny--cost--stdlib",
        "cost--cost--tiny--stdlib",
    ]


def test_titles_tell_plots_apart_and_name_no_folders() -> None:
    """What tells two of them apart may be the task, the dtype, the data or a folder of a path."""
    data = make()["data"]
    changes: list[dict[str, Any]] = [
        {},
        {"task": "ppl-tail:span=128"},
        {"dtype": "bfloat16"},
        {"data": data | {"name": "/home/me/book.txt", "sha256": "ab" * 32}},
        {"model": "/home/me/a/llama"},
        {"model": "/home/me/b/llama"},
        {"model": "Qwen/Qwen3-8B"},
    ]
    records = [
        cell(m, n, **change) for change in changes for m in ("rope", "ntk") for n in (64, 128)
    ]
    figures = series.figures(records)
    titles = [shown.title for shown in figures]
    assert len(set(titles)) == len(titles) == 3 * len(changes)
    assert "tiny on stdlib: ppl-tail:span=128, loss by position (float32)" not in titles
    assert "tiny on stdlib: loss by position (bfloat16)" in titles
    assert "tiny on book.txt: loss by position" in titles
    assert {"a/llama", "b/llama", "Qwen3-8B"} < {shown.place.split(" on ")[0] for shown in figures}
    assert not any("/home" in title for title in titles)
    assert not any("/home" in table.title for table in tables.build(records))
    depths = [found(m, 64, {0.5: 1.0}, **change) for change in changes[2:] for m in ("rope", "ntk")]
    maps = [shown.title for shown in heatmaps.heatmaps(depths)]
    assert len(set(maps)) == len(maps) == len(changes) - 2


def test_short_names_of_methods_keep_what_tells_them_apart() -> None:
    several = ["rope", "rerope:window=256+logn", "yarn:factor=4", "ntk:factor=2", "ntk:factor=4"]
    assert list(labels.short_methods(several).values()) == [
        *("rope", "rerope+logn", "yarn", "ntk:factor=2", "ntk:factor=4")
    ]
    one, two = (f"longrope:factors=@/home/{who}/a.json" for who in ("me", "you"))
    assert labels.short_methods([one]) == {one: "longrope"}
    assert labels.short_methods([one, two]) == {one: one, two: two}  # else both were @a.json
    odd = ["", "+", "a+", ":", "a=b", *HOSTILE]
    assert len(set(labels.short_methods(odd).values())) == len(set(odd))


def test_loss_by_position_is_of_the_longest_common_length() -> None:
    shown = figure(EXAMPLE, "loss-by-position")
    assert shown.x_range == (0, 64)  # rerope ran out of memory at 128
    assert shown.about == "4 windows of 64 tokens, float32"
    assert [line.method for line in shown.lines] == ["rope", "ntk", "rerope"]
    assert [(p.x, p.y) for p in shown.lines[1].points[7:9]] == [(30.0, 2.1), (34.0, 2.2)]
    assert shown.mark == 32
    ordered = series.figures(EXAMPLE, order=["rerope"])[0]
    assert [line.method for line in ordered.lines] == ["rope", "rerope", "ntk"]


def test_an_exploding_line_leaves_the_view_with_a_note() -> None:
    records = [cell("rope", 64, (2, 9)), cell("ntk", 64, (2.1, 2.4)), cell("pi", 64, (2, 300))]
    axes = axes_of(figure(records, "loss-by-position"))
    low, high = axes.get_ylim()
    assert low < 2.0
    assert 2.4 < high < 2.6
    assert "out of view: rope up to 9.00, pi up to 300.00 nats per token" in axes.get_xlabel()
    assert axes.get_xlim() == (0, 64)


@pytest.mark.parametrize(("most", "cut"), [(5.1, False), (5.3, True)])
def test_what_is_nearly_in_view_is_shown(most: float, cut: bool) -> None:
    """Three nats above the lowest are in view, here up to 4.9, and a tenth of this range more."""
    shown = figure([cell("ntk", 64, (2, 4.9)), cell("pi", 64, (2, most))], "loss-by-position")
    assert (shown.y_range[1] < most) is cut
    assert bool(shown.notes) is cut


def test_labels_and_the_trained_length() -> None:
    names = ["rope", "$\\frac{1", "_lead", "ntk+logn"]
    axes = axes_of(figure([cell(name, 64) for name in names], "loss-by-position"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    curves = axes.get_lines()
    assert list(curves[0].get_xdata())[:2] == [2.0, 6.0]  # bucket centres
    assert list(curves[-1].get_xdata()) == [32, 32]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["4 windows of 64 tokens, float32", "trained length 32"]
    assert curves[0].get_color() == "black"


def test_many_methods_look_different() -> None:
    looks = [plots.look(number, "x") for number in range(84)]
    kinds = ("color", "marker", "fillstyle")
    assert len({tuple(look[kind] for kind in kinds) for look in looks}) == 84
    lines = [(look["color"], str(look["linestyle"])) for look in looks[:24]]
    assert len(set(lines)) == 24


def test_a_metric_by_length_with_its_errors_and_the_trained_length() -> None:
    shown = figure(EXAMPLE, "perplexity")
    assert [line.method for line in shown.lines] == ["rope", "ntk", "rerope"]
    rope = shown.lines[0].points
    # 8 of 16 buckets lie inside 32 at 64; 4 at 128; the first bucket lacks 4 tokens
    nats = (2 * 124 + 5 * 128) / 252, (2 * 124 + 7 * 384) / 508
    assert [p.x for p in rope] == [64, 128]
    assert [p.y for p in rope] == pytest.approx([math.exp(n) for n in nats])
    assert [p.bar for p in rope] == [pytest.approx((p.y - 0.1, p.y + 0.1)) for p in rope]
    assert [len(line.points) for line in shown.lines] == [2, 2, 1]
    assert (shown.log_x, shown.log_y, shown.mark) == (True, True, 32)
    far = [{**record, "trained_length": 4096} for record in EXAMPLE]
    (shown,) = [f for f in series.figures(far) if f.name.startswith("perplexity")]
    assert shown.mark is None
    assert "trained length 4k" in shown.about


def test_shares_are_in_percent_and_within_their_range() -> None:
    records = [
        found(method, length, {0.5: share})
        for method, length, share in (("rope", 64, 1.0), ("rope", 128, 0.0), ("pi", 64, 1.0))
    ]
    shown = figure(records, "passkey")
    assert [p.y for p in shown.lines[0].points] == [100.0, 0.0]
    assert shown.lines[0].points[0].bar == pytest.approx(wilson(1, 252).times(100))
    assert shown.y == "passkey (%, higher is better)"
    assert shown.y_range == (-2.0, 102.0)


def test_cost_is_the_time_of_the_evaluation_over_that_of_rope() -> None:
    records = [
        cell("rope", 64, seconds=2.0),
        cell("ntk", 64, seconds=3.0),
        cell("pi", 64, seconds=1.0, device="cpu (other)"),
        cell("yarn", 64, seconds=0),
    ]
    shown = figure(records, "cost")
    assert [(x.method, x.points[0].x) for x in shown.lines] == [("rope", 1.0), ("ntk", 1.5)]
    assert shown.lines[1].points[0].y == pytest.approx(records[1]["value"])
    assert shown.x.startswith("evaluation time")
    assert shown.notes[0] == "no cost measured of pi, yarn"
    assert not any(f.name.startswith("cost") for f in series.figures(records[2:]))


def test_cost_is_that_of_bench_records_where_they_are_of_the_same() -> None:
    scores = [{**cell(name, 64, seconds=2.0), "method": name} for name in ("rope", "ntk", "pi")]
    timed = [timing("rope", 1.0), timing("ntk", 1.25), timing("pi", 1.5)]
    shown = figure(scores + timed, "cost")
    assert [line.points[0].x for line in shown.lines] == [1.0, 1.25, 1.5]
    assert "prefill time" in shown.x
    for change in ({"length": 128}, {"model": "x"}, {"method": "x"}, {"model_sha256": "ee" * 32}):
        shown = figure([*scores, *timed[:2], {**timed[2], **change}], "cost")
        assert [line.points[0].x for line in shown.lines] == [1.0, 1.0, 1.0], change
        assert "evaluation time" in shown.x


def timing(method: str, ratio: float, **more: Any) -> Record:
    spread = {"median": ratio, "low": ratio, "high": ratio}
    measures = ("prefill_seconds", "decode_seconds_per_token", "peak_memory_bytes")
    given = {"requested": method, "method": method, "task": "bench", "metric": measures[0]}
    given |= {"ratio": dict.fromkeys(measures, spread), "batch_size": 1, "buckets": []}
    return make(**{**given, **more})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "change",
    [
        {"value": 1e300, "stderr": 1e308},
        {"metric": "accuracy", "value": 0.0, "stderr": None},
        {"value": 1e-300, "seconds": 1e-300},
        {"metric": "odd\nmetric", "value": -1e308},
        {"metric": "odd", "value": 1e300, "stderr": 1e300},
        {"metric": "accuracy", "value": 1.0, "stderr": 1e9},
        {"seconds": 1e308, "tokens_per_second": None, "peak_memory_bytes": 2**62},
        {"length": 2**62, "buckets": []},
        {"length": 2, "trained_length": 2**62, "buckets": []},
    ],
    ids=str,
)
def test_extreme_records_are_drawn(change: dict[str, Any], tmp_path: Path) -> None:
    base = {"metric": change.get("metric", "perplexity")}
    records = [
        *(cell(name, 64, value=0.5, **base) for name in ("rope", "ntk")),
        *({**cell(name, 128, **base), **change} for name in ("rope", "ntk")),
    ]
    records = [sealed(record) for record in records]
    assert [problem_with(record) for record in records] == [None] * 4
    written = report.write_files(tmp_path, records)
    assert len(written) > 2
    for form in report.FORMATS:
        assert report.render(records, form)
    for table in report.to_rich(records, width=100):
        Console(file=io.StringIO(), width=100).print(table, crop=False)


@pytest.mark.parametrize("count", [1, 30, 60])
def test_the_legend_is_whole_and_outside(count: int) -> None:
    records = [cell(f"m{i}" + "x" * (5 * i), 64) for i in range(count)]
    drawing = plots.draw(figure(records, "loss-by-position"))
    drawing.canvas.draw()
    (axes,) = drawing.axes
    legend = axes.get_legend()
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1
    assert len(legend.get_texts()) == count


def test_a_plot_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        before = dict(matplotlib.rcParams)
        plots.save(tmp_path / "a.png", partial(plots.draw, figure(EXAMPLE, "cost")))
        assert dict(matplotlib.rcParams) == before


# Maps by depth.


def found(method: str, length: int, shares: dict[float, float], **more: Any) -> Record:
    """A record with a part for each depth."""
    parts = [
        {"name": f"depth {depth:.3g}", "depth": depth, "value": value, "n": 5}
        for depth, value in shares.items()
    ]
    value = sum(shares.values()) / max(1, len(shares))
    given = {"task": "passkey", "metric": "passkey", "buckets": [], "value": value, "parts": parts}
    return make(requested=method, length=length, **{**given, **more})


DEPTHS = tuple(i / 10 for i in range(11))
MAPPED = [
    found("rope", 512, dict.fromkeys(DEPTHS, 1.0)),
    found("rope", 2048, dict.fromkeys(DEPTHS, 0.0)),
    found("rerope", 512, {depth: depth for depth in DEPTHS}),
    found("rerope", 2048, dict.fromkeys(DEPTHS, 0.8)),
]


def drawn(records: list[Record], path: Path) -> str:
    """What the map says, label by label."""
    (heatmap,) = heatmaps.heatmaps(records)
    plots.save(path.with_suffix(".svg"), partial(heatmaps.draw, heatmap))
    drawing = path.with_suffix(".svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawing)
    return html.unescape("\n".join(re.findall(r"<!-- (.*?) -->", drawing, re.DOTALL)))


def panels(records: list[Record]) -> dict[str, list[list[str]]]:
    """The numbers of each method's map, depth by depth; "" where there is none."""
    (heatmap,) = heatmaps.heatmaps(records)
    shown = {}
    for panel in heatmaps.draw(heatmap).axes:
        if panel.get_title() and panel.images:
            rows, columns = panel.images[0].get_array().shape
            grid = [[""] * columns for _ in range(rows)]
            for text in panel.texts:
                column, row = text.get_position()
                grid[row][column] = text.get_text()
            shown[panel.get_title()] = grid
    return shown


def test_the_map_shows_each_share_at_its_length_and_depth(tmp_path: Path) -> None:
    shown = panels(MAPPED)
    assert list(shown) == ["rope", "rerope"]
    assert shown["rope"] == [["100", "0"]] * 11
    assert shown["rerope"] == [[f"{10 * i}", "80"] for i in range(11)]
    labels = drawn(MAPPED, tmp_path / "a")
    for label in ("512", "2k", "depth", "length (tokens)", "found (%)", "0.3", "trained length 32"):
        assert label in labels


def test_what_was_not_measured_stays_blank(tmp_path: Path) -> None:
    records = [
        found("rope", 64, {0.0: 1.0, 1.0: 0.5}),
        found("ntk", 128, {0.5: 0.25}),
        failed(requested="pi", length=64, task="passkey", metric="passkey", parts=[]),
    ]
    shown = panels(records[:2])
    assert shown["rope"] == [["100", ""], ["", ""], ["50", ""]]
    assert shown["ntk"] == [["", ""], ["", "25"], ["", ""]]
    labels = drawn(records, tmp_path / "a")
    assert "pi" not in labels.split()
    assert heatmaps.heatmaps([records[2], cell("rope", 64)]) == []


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12])
def test_any_number_of_methods_has_a_map_each(count: int) -> None:
    records = [
        found(f"m{i}", length, {0.0: i / 12, 1.0: 1.0}) for i in range(count) for length in (64, 96)
    ]
    shown = panels(records)
    assert list(shown) == [f"m{i}" for i in range(count)]
    for i in range(count):
        assert shown[f"m{i}"][0] == [f"{100 * i / 12:.0f}"] * 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    data = make()["data"] | {"name": name}
    record = found(name, 64, {0.0: 1.0}, model=name, task=name, data=data)
    (heatmap,) = heatmaps.heatmaps([record])
    for file in ("a.png", "a.svg"):
        plots.save(tmp_path / file, partial(heatmaps.draw, heatmap))
    ElementTree.fromstring((tmp_path / "a.svg").read_bytes())


def test_a_dollar_is_no_formula_and_mark_up_is_text(tmp_path: Path) -> None:
    records = [found("$\\frac{1$ <b>&", 64, {0.0: 1.0}, model="a $x$ & <i>")]
    labels = drawn(records, tmp_path / "a")
    assert "$\\frac{1$ <b>&" in labels
    assert "a $x$ & <i> on stdlib: passkey by depth" in labels


def test_maps_stand_beside_the_tables_one_for_each_group(tmp_path: Path) -> None:
    other = found("rope", 512, {0.5: 1.0}, dtype="bfloat16")
    written = report.write_files(tmp_path, [*MAPPED, other, *EXAMPLE])
    assert [path.name for path in written if path.stem.startswith("depth")] == [
        f"depth--tiny--passkey--stdlib--{dtype}.{suffix}"
        for dtype in ("bfloat16", "float32")
        for suffix in ("png", "svg")
    ]
    assert {path.suffix for path in report.write_files(tmp_path, MAPPED, plots=False)} == {".md"}
    many = [f"a-method-of-number-{number}" for number in range(9)]
    (table,) = report.write_files(tmp_path, MAPPED, plots=False, methods=many)
    assert re.fullmatch(r"tables--9-methods--[0-9a-f]{8}\.md", table.name)
