"""Speed and memory of bench records: methods and attention paths down, beside the unpatched model.

The × of a measure is that of the method over that of the unpatched model: for times the median
over pairs of runs, with its 95% interval in brackets. What the unpatched model took is of the same
pairs, so that a row stands by itself: times of other rows may be of another hour.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ctxext.notation import format_length
from ctxext.records import BENCH, MEASURES, RATIO, Record
from ctxext.records.record import TIMED, Spread
from ctxext.report import latex, markdown
from ctxext.report.cost import bytes_text, short
from ctxext.report.groups import current, method_order, outdated, titled, unlike
from ctxext.report.spreadsheet import versions_text
from ctxext.report.tables import NO_VALUE
from ctxext.system.names import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

HEADER: tuple[str, ...] = (
    *("length", "method", "attention", "prefill s", "unpatched s", "×"),
    *("decode ms/token", "unpatched ms", "×", "peak memory", "×"),
)
WORDS = (1, 2)  # columns of HEADER that are words
_SAID = {  # of each case, with the steps and what is decoded at once
    "": "decoding is {} steps after the prefill{}, timed by the step",
    "packed": "each row is eight sequences that do not see each other",
    "steps": "decoding is {} steps{} after random keys, in a cache that grows in place; the "
    "unpatched model beside it is in transformers' own cache",
    "padded": "decoding is {} steps{} after random keys, of rows padded on the left, the last to "
    "twice its length",
    "attention": "decoding is the attention function of a layer alone, one query after random "
    "keys, in {} steps{}",
}
CSV = ("batch_size", "ratio", *(f"ratio_{end}" for end in RATIO[1:]))


class Group(NamedTuple):
    """What all records of one table share."""

    model: str
    device: str
    dtype: str
    batch_size: int
    decode_tokens: int
    random_weights: bool
    model_sha256: str
    seed: int
    trained_length: int
    case: str  # what is timed, if it is not whole prefills and the steps after them


Part = tuple[str, float | None]  # of a row: how it reads, and its number


@dataclass(frozen=True)
class Table:
    """Methods timed with the same model on the same device; rows by length, `rope` first."""

    group: Group
    title: str
    caption: str
    records: tuple[Record, ...]


def build(records: Iterable[Record], order: Sequence[str] = ()) -> list[Table]:
    """One table for each model and machine; `order` is that of the methods."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        if record["task"] == BENCH:
            facts: dict[str, Any] = {**record, "case": record.get("case") or ""}
            facts |= {"model_sha256": record["model_sha256"] or ""}
            group = Group(**{name: facts[name] for name in Group._fields})
            groups.setdefault(group, []).append(record)
    return [_table(group, groups, order) for group in sorted(groups)]


def _table(group: Group, groups: dict[Group, list[Record]], order: Sequence[str]) -> Table:
    rows: dict[tuple[int, int, str], Record] = {}
    methods = {method: i for i, method in enumerate(method_order(groups[group], order))}
    newest_last = sorted(
        current(groups[group]), key=lambda r: (r["status"] == "ok", r["created"], r["key"])
    )
    for record in newest_last:
        rows[record["length"], methods[record["requested"]], record["attention"]] = record
    told = titled(group, groups, ("model", "device", "dtype", "case"))
    title = " · ".join(["speed and memory", *filter(None, told)])
    shown = tuple(rows[place] for place in sorted(rows))
    said = [_caption(group, shown), *unlike(shown, but=("attention",)), *outdated(groups[group])]
    return Table(group, title, " ".join(said), shown)


def _caption(group: Group, shown: Sequence[Record]) -> str:
    compared = [r for r in shown if r["status"] == "ok" and r["requested"] != "rope"]
    pairs = sorted({r["n"] for r in compared})
    said = []
    if pairs:
        span = NO_VALUE.join(map(str, dict.fromkeys((pairs[0], pairs[-1]))))
        ratios = [r["ratio"][n] for r in compared for n in TIMED if r[n] is not None]
        wide = [ratio is not None and ratio["low"] is not None for ratio in ratios]
        brackets = " and its 95% interval" if all(wide) else ", in brackets its 95% interval"
        said.append(
            "× is the method over the unpatched model, run next to it: the median of "
            f"{span} pairs{brackets if any(wide) else ''}"
        )
    many = f", of {group.batch_size} sequences at once" if group.batch_size > 1 else ""
    said.append(_SAID[group.case].format(group.decode_tokens, many))
    if any(r["peak_memory_bytes"] is not None for r in shown):
        said.append("memory is the most that torch held in a prefill, weights included")
    patching = {printable(r["requested"]): r.get("patch_seconds") for r in compared}
    some = [f"{name} {short(took)}" for name, took in sorted(patching.items()) if took is not None]
    said += [f"seconds that the patch takes: {', '.join(some)}"] if some else []
    return "; ".join(said) + "."


def cells(record: Record, space: str = " ") -> list[Part]:
    """One row, each cell with its number; `space` comes before an interval."""
    names = (printable(name) for name in (record["requested"], record["attention"]))
    length: Part = format_length(record["length"]), record["length"]
    head = [length, *((name, None) for name in names)]
    nothing: Part = NO_VALUE, None
    if record["status"] != "ok":
        return [*head, (record["status"], None), *[nothing] * (len(HEADER) - len(head) - 1)]
    row = head
    for name, show in zip(MEASURES, (short, _milli, bytes_text), strict=True):
        value, ratio = record[name], record["ratio"][name]
        row += [nothing if value is None else (show(value), value)]
        if name != "peak_memory_bytes":
            beside = [pair[0] for pair in record["pairs"][name] if len(pair) == 2]
            median = statistics.median(beside) if beside else None
            row += [nothing if median is None else (show(median), median)]
        row += [nothing if ratio is None else (_ratio(ratio, space), ratio["median"])]
    return row


def _texts(record: Record, space: str = " ") -> list[str]:
    return [text for text, _ in cells(record, space)]


def _ratio(ratio: Spread, space: str) -> str:
    """`1.05 [1.03, 1.07]`, or one number where there is no interval or it has no width."""
    median, low, high = (None if ratio[n] is None else f"{ratio[n]:.2f}" for n in RATIO)
    if ratio["low"] == ratio["high"]:
        return str(median)
    return f"{median}{space}[{low}, {high}]"


def _milli(seconds: float) -> str:
    return short(seconds * 1000)


def to_rich(table: Table, width: int | None = None) -> RichTable:
    """For the terminal; intervals stand below their ratios where one line would be too wide."""
    from rich.table import Table as RichTable
    from rich.text import Text

    header, rows = HEADER, [_texts(record) for record in table.records]
    if width is not None and _width(header, *rows) > width:
        header = tuple(label.replace(" ", "\n") for label in HEADER)
        rows = [_texts(record, "\n") for record in table.records]
    rich = RichTable(title=Text(printable(table.title)), caption=Text(printable(table.caption)))
    rich.width = _width(header, *rows)
    for number, label in enumerate(header):
        rich.add_column(Text(label), justify="left" if number in WORDS else "right", no_wrap=True)
    lengths = [record["length"] for record in table.records]
    for row, here, below in zip(rows, lengths, [*lengths[1:], None], strict=True):
        rich.add_row(*map(Text, row), end_section=here != below)
    return rich


def _width(*rows: Sequence[str]) -> int:
    """Characters that the rows take of a terminal, with borders and padding."""
    from rich.cells import cell_len

    columns = zip(*rows, strict=True)
    return 1 + sum(3 + max(cell_len(w) for t in c for w in t.split("\n")) for c in columns)


def to_markdown(table: Table) -> str:
    """A GitHub table under a heading."""
    rows = [[*map(markdown.escape, _texts(record))] for record in table.records]
    return markdown.table(table.title, table.caption, HEADER, rows, left=WORDS)


def to_latex(table: Table) -> str:
    """A booktabs table."""
    rows = [[(text, False) for text in _texts(record)] for record in table.records]
    return latex.table(table.title, table.caption, HEADER, rows, left=WORDS)


def csv_rows(tables: Iterable[Table]) -> Iterator[dict[str, Any]]:
    """One line for each measure of a row, in seconds or bytes, with its ratio."""
    for record in (record for table in tables for record in table.records):
        shared = ("task", "length", "status", "windows", "seed", "batch_size")
        texts = ("model", "dtype", "attention", "device")
        fields: dict[str, Any] = {**record}
        row = {
            **{name: fields[name] for name in shared},
            **{name: printable(fields[name]) for name in texts},
            "data": printable(record["data"]["name"]),
            "method": printable(record["requested"]),
            "versions": printable(versions_text(record)),
        }
        for metric in MEASURES:
            ratio = record["ratio"][metric] if record["ratio"] else None
            ends = [ratio[end] if ratio else None for end in RATIO]
            named = dict(zip(CSV[-3:], ends, strict=True))
            yield {**row, "metric": metric, "value": record[metric], **named}
