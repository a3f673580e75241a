"""Which records may stand side by side: those that share a model, a task, a metric, data, a dtype
and a kind of device. What else they do not share is told beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ctxext.errors import UsageError
from ctxext.records import BENCH, Record, is_share
from ctxext.report.labels import short_path
from ctxext.system.digests import sha256_of_text
from ctxext.system.names import printable, safe_name
from ctxext.text import did_you_mean

_LONGEST = 160  # characters of a file name


class Group(NamedTuple):
    """What all records of one table share; `device` is its kind, such as cpu or cuda."""

    model: str
    task: str
    metric: str
    data: str
    tokens: int
    dtype: str
    data_sha256: str
    model_sha256: str
    seed: int
    trained_length: int
    own_scaling: str
    device: str

    @property
    def is_share(self) -> bool:
        """Whether values are from 0 to 1, and shown in percent."""
        return is_share(self.metric, self.task)


class Column(NamedTuple):
    """A length in tokens, and how many windows of it were scored (0 where every cell failed)."""

    length: int
    windows: int


Cells = dict[tuple[str, Column], Record]


def group_of(record: Record) -> Group:
    data, weights = record["data"], record["model_sha256"] or ""
    tokens = data["tokens"]
    if record.get("limit") is not None and "at_most" in data:
        tokens = data["at_most"] or 0  # no more was tokenised than the longest length needed
    task = record.get("task_resolved") or record["task"]
    names = (record["model"], task, record["metric"], data["name"], tokens)
    rest = (record["seed"], record["trained_length"], record.get("own_scaling") or "")
    device = re.split("[^a-z]", record["device"], maxsplit=1)[0]
    return Group(*names, record["dtype"], data["sha256"], weights, *rest, device)


def grouped(records: Iterable[Record], ignore: Sequence[str] = ()) -> dict[Group, list[Record]]:
    """Scores by what they share, in a fixed order; the fields in `ignore` may differ."""
    groups: dict[Group, list[Record]] = {}
    for record in (r for r in records if r["task"] != BENCH):
        group = group_of(record)._replace(**dict.fromkeys(ignore, ""))  # type: ignore[arg-type]
        groups.setdefault(group, []).append(record)
    return dict(sorted(groups.items()))


def describe(group: Any, among: Iterable[Any], always: Sequence[str]) -> list[str]:
    """The fields `always`, then those that tell the group from those like it `among` all.

    Args:
        group: a named tuple, of the kind of those it is `among`.
    """
    like = [g for g in among if all(getattr(g, f) == getattr(group, f) for f in always)]
    words = {"tokens": "{} tokens", "data_sha256": "data {:.8}", "model_sha256": "weights {:.8}"}
    words |= {"seed": "seed {}", "trained_length": "trained at {}"}
    words |= {"own_scaling": "own scaling: {}", "batch_size": "batch {}"}
    words |= {"decode_tokens": "{} decoding steps", "random_weights": "random weights: {}"}
    differing = [
        words.get(field, "{}").format(getattr(group, field))
        for field in group._fields
        if field not in always and len({getattr(g, field) for g in like}) > 1
    ]
    return [str(getattr(group, field)) for field in always] + differing


def titled(group: Any, among: Iterable[Any], always: Sequence[str]) -> list[str]:
    """`describe` in short, for titles: of the paths of models and data their last names."""
    among = list(among)
    said = describe(group, among, always)
    for place, field in enumerate(always):
        if field in ("model", "data"):
            said[place] = short_path(said[place], [getattr(other, field) for other in among])
    return said


def bracketed(subject: str, apart: Iterable[str]) -> str:
    """A title with what tells it from others of its subject in brackets, if anything does."""
    words = ", ".join(filter(None, apart))
    return f"{subject} ({words})" if words else subject


def file_name(
    starts: Sequence[str],
    group: Group,
    among: Iterable[Group],
    always: Sequence[str],
    taken: set[str],
) -> str:
    """A file name without an ending that says what the group is; it is added to those `taken`."""
    parts = [*starts, *describe(group, among, always)]
    name = "--".join(safe_name(part, 40) for part in parts)
    if name.casefold() in taken or len(name) > _LONGEST:
        digest = sha256_of_text(repr((starts, group)))
        name = f"{name[:_LONGEST]}--{digest[:8]}"
    taken.add(name.casefold())
    return name


def method_order(records: Iterable[Record], order: Sequence[str] = ()) -> list[str]:
    """`rope` first, then those in `order`, then the others by name, numbers by size."""

    def place(method: str) -> tuple[bool, int, list[tuple[int, str]]]:
        given = order.index(method) if method in order else len(order)
        parts = re.findall(r"([0-9]{1,15})|([^0-9]+)", method.casefold())
        return method != "rope", given, [(int(number or -1), text) for number, text in parts]

    return sorted(sorted({r["requested"] for r in records}), key=place)


def chosen(records: Iterable[Record], methods: Sequence[str]) -> list[Record]:
    """Those of `rope` and of these methods as they were asked for; all where none is named.

    Raises:
        UsageError: a method has no record.
    """
    records = list(records)
    known = {record["requested"] for record in records}
    if missing := [name for name in methods if name not in known]:
        valid = did_you_mean(missing[0], known)
        raise UsageError(f"no record of the method {missing[0]!r}: {valid}")
    wanted = {"rope", *methods} if methods else known
    return [record for record in records if record["requested"] in wanted]


def newest(records: Iterable[Record]) -> Cells:
    """By method and column the newest finished record, or where there is none a failed one.

    Those of older versions of what they are measured by do not count.
    """
    cells: Cells = {}
    ranked = sorted(current(records), key=lambda r: (r["created"], r["key"]))
    for record in (r for r in ranked if r["status"] == "ok"):
        cells[_place(record)] = record
    scored = {column for _, column in cells}
    for record in (r for r in reversed(ranked) if r["status"] != "ok"):
        length = record["length"]
        for column in [c for c in scored if c.length == length] or [Column(length, 0)]:
            cells.setdefault((record["requested"], column), record)
    return cells


def _place(record: Record) -> tuple[str, Column]:
    return record["requested"], Column(record["length"], record["windows"])


def current(records: Iterable[Record]) -> list[Record]:
    """Those that are of the last version of all that their numbers go by, such as task and method.

    A record that names no versions is of the first of what others of its method name, or of rope.
    """
    records = list(records)
    last, named = dict[str, int](), dict[str, set[str]]()
    for record in records:
        for what, version in (record.get("version_of") or {}).items():
            last[what] = max(version, last.get(what, 1))
            named.setdefault(record["requested"], set()).add(what)

    def is_last(record: Record) -> bool:
        unsaid = named.get(record["requested"], set()) | named.get("rope", set())
        of = record.get("version_of") or dict.fromkeys(unsaid, 1)
        return all(last[what] == version for what, version in of.items())

    return [record for record in records if is_last(record)]


def alike(record: Record, other: Record) -> bool:
    """Whether both were measured on one device, with one attention path, by the same versions, so
    that no rounding parts them."""
    return _setting(record) == _setting(other)


def _setting(record: Record) -> dict[str, str]:
    """What may part numbers in their last digits."""
    versions = {name: str(version) for name, version in record["versions"].items()}
    return {"device": record["device"], "attention": record["attention"], **versions}


def unlike(records: Iterable[Record], but: Sequence[str] = ()) -> list[str]:
    """What records that stand side by side do not share, in sentences, `but` for these."""
    records = list(records)
    sentences = []
    for name in sorted({name for record in records for name in _setting(record)} - set(but)):
        found = sorted({_setting(record).get(name, "an unknown one") for record in records})
        what = {"device": "device", "attention": "attention path"}.get(name, f"version of {name}")
        if len(found) > 1:
            sentences.append(printable(f"Not all are of one {what}: {' and '.join(found)}."))
    return sentences


def mixed(records: Iterable[Record], cells: Cells) -> list[str]:
    """What the records of a group that are shown as cells do not share, and which others are not
    shown, in sentences."""
    records = list(records)
    sentences = unlike(record for record in cells.values() if record["status"] == "ok")
    sentences += outdated(records)
    parts = [
        _apart(record, there)
        for record in current(records)
        if record["status"] == "ok" and (there := cells.get(_place(record))) is not None
    ]
    if replaced := list(filter(None, parts)):
        some = count_text(len(replaced), len(replaced), "older records")
        text = printable("; ".join(sorted(set(replaced))))
        sentences.append(f"Left out: {some} of the same cells: {text}.")
    return sentences


def outdated(records: Sequence[Record]) -> list[str]:
    """How many of a group's records are not `current`, in a sentence."""
    older = len(records) - len(current(records))
    some = count_text(older, older, "records")
    return [f"Left out: {some} of an older version of what measures them."] if older else []


def count_text(low: int, high: int, what: str) -> str:
    """`1 window`, or `2 to 20 windows`."""
    if low == high:
        return f"{high} {what if high != 1 else what[:-1]}"
    return f"{low} to {high} {what}"


def _apart(record: Record, other: Record) -> str:
    """What sets the first one's setting apart; "" where nothing does."""
    ours, theirs = _setting(record), _setting(other)
    return ", ".join(f"{name} {text}" for name, text in ours.items() if text != theirs.get(name))
