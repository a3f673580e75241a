"""A short list of methods, each with its reason: what records of the same family say, or else what
a method says of itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctxext import methods
from ctxext.errors import CtxextError
from ctxext.export.reach import reach
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models.aliases import SHIPPED, locate
from ctxext.models.contents import CONFIG, MAX_CONFIG_BYTES, read_object
from ctxext.models.gguf_header import is_gguf, read_header
from ctxext.models.packages import kept
from ctxext.notation import format_length
from ctxext.records import BENCH, Record, Store, higher_is_better
from ctxext.report.groups import Group, group_of

#: Where no record says more: what engines have a name for, and what leaves near positions exact.
USUAL = ("yarn", "ntk", "rerope", "self-extend")
BEST, FAR = 2, 2.0  # so many of the best; records stretch as far as is asked within this ratio
_SMALL = 64  # tokens, in place of T, at which a method shows which keys it hides


class Choice(NamedTuple):
    """A method, as it was asked for or chosen, and why.

    Attributes:
        basis: what that is from: "asked", "records" or "nature".
    """

    spec: Spec
    why: str
    basis: str


def choose(
    asked: Sequence[Spec], name: str, kind: str, tasks: Sequence[str], span: Span, folder: Path
) -> list[Choice]:
    """The methods to look at.

    Args:
        asked: those that were asked for, if any.
        name, kind: of the model: what it is called, and its model type.
        tasks: as they were asked for; of records those of these count, or else of `ppl`.
        span: T and L.
        folder: of records; those of the folders in it count too.
    """
    if asked:
        return [Choice(spec, nature(spec), "asked") for spec in asked]
    length = span.need_length("the plan")
    if length <= span.trained:
        why = f"{format_length(length)} is within T, up to which the model is whole by itself"
        return [Choice(methods.parse("rope"), why, "nature")]
    found = list(_by_records(records_in(folder), name, kind, tasks, span))
    return found or [
        Choice(spec, nature(spec), "nature")
        for spec in map(methods.parse, USUAL)
        if _fits(spec, span)
    ]


def nature(spec: Spec) -> str:
    """What the methods of a spec say of themselves."""
    said = []
    for method in spec.methods:
        about = method.describe()
        inside = about.get("inside_t", "").rstrip(".")
        more = f" Inside T: {inside}." if inside else ""
        said.append(f"{about['summary'].partition(': ')[2] or about['summary']}{more}")
    return " ".join(said)


def _fits(spec: Spec, span: Span) -> bool:
    """Whether a spec can be had as it is, reaches L, and hides no key."""
    length = span.need_length("the plan")
    try:
        resolved = spec.resolve(span)
        small = Span(_SMALL, math.ceil(_SMALL * length / span.trained))
        return reach(resolved, span.trained, length) >= length and not _hides(
            spec.resolve(small), small
        )
    except CtxextError:
        return False


def _hides(spec: Spec, span: Span) -> bool:
    """Whether some query does not see some key before it, as under a window."""
    last = span.need_length("the plan") - 1
    if spec.distance is None:
        return False
    spans = [part.span(last, last) for part in spec.distance.parts()]
    return sum(max(0, high - low) for low, high in spans) < last + 1


def records_in(folder: Path) -> list[Record]:
    """The finished scores in a folder and in those in it; none where it cannot be read."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    found: list[Record] = []
    for place in (folder, *inside):
        try:
            found += Store(place).read_all()[0]
        except CtxextError:
            continue
    return [r for r in found if r["status"] == "ok" and r["task"] != BENCH]


def _by_records(
    records: Sequence[Record], name: str, kind: str, tasks: Sequence[str], span: Span
) -> Iterator[Choice]:
    """The best methods of the records that are nearest to what is asked, and the best of those
    that change frequencies alone."""
    groups: dict[tuple[Group, int], dict[str, Record]] = {}
    for record in records:
        if record["task"] in (tasks or ("ppl",)):
            groups.setdefault((group_of(record), record["length"]), {})[record["requested"]] = (
                record
            )
    wanted = math.log(span.need_length("the plan") / span.trained)
    types: dict[str, str | None] = {}
    near = []
    for (group, length), rows in groups.items():
        off = abs(math.log(length / group.trained_length) - wanted)
        model = group.model
        if "rope" not in rows or length <= group.trained_length or off > math.log(FAR):
            continue
        if model != name and types.setdefault(model, type_of(model)) != kind:
            continue
        better = list(_better(rows, span))
        if better:
            near.append((model != name, round(off, 6), -len(better), model, better, rows["rope"]))
    for *_, better, rope in sorted(near, key=lambda one: one[:4])[:1]:
        plain = [one for one in better if not one[0].changes_attention]
        for spec, record in dict([*better[:BEST], *plain[:1]]).items():
            yield Choice(spec, _told(record, rope), "records")


def _better(rows: dict[str, Record], span: Span) -> Iterator[tuple[Spec, Record]]:
    """The methods with their defaults that do better than rope, the best first."""
    higher = bool(higher_is_better([*rows.values()]))
    rope = rows["rope"]["value"]
    ordered = sorted(rows.values(), key=lambda r: -r["value"] if higher else r["value"])
    for record in ordered:
        if (record["value"] > rope) != higher or record["value"] == rope:
            return
        try:
            spec = methods.parse(record["requested"])
            given = methods.given(record["requested"])
        except CtxextError:
            continue
        if not any(given) and _fits(spec, span):
            yield spec, record


def _told(record: Record, rope: Record) -> str:
    times = record["length"] / record["trained_length"]
    at = f"{format_length(record['length'])}, {times:g} × T, on {record['model']}"
    return (
        f"{record['metric']} {record['value']:.4g} at {at} ({record['data']['name']}); "
        f"rope {rope['value']:.4g}"
    )


def type_of(name: str) -> str | None:
    """The model type of a model that is here, by its name; None for any other."""
    try:
        here = name in SHIPPED or kept(name) is not None or Path(name).exists()
        where = locate(name) if here else ""
        if not where:
            return None
        if is_gguf(where):
            return str(read_header(Path(where)).fields["general.architecture"])
        kind = read_object(Path(where) / CONFIG, MAX_CONFIG_BYTES, "a config").get("model_type")
        return kind if isinstance(kind, str) else None
    except (CtxextError, OSError, ValueError):
        return None
