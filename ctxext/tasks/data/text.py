"""`--data` → documents: what its name says, which rows there are, and how they become text."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import UsageError
from ctxext.system.digests import sha256_of_text
from ctxext.tasks.data import files, hub
from ctxext.tasks.data.stdlib import stdlib_documents

TEXTS, TABLES = (".txt", ".md"), (".jsonl", ".json", ".parquet")
MANUAL = Path(__file__).with_name("manual.txt")
_BEGINNING = 2**20  # characters of a dataset that are read at least
_PER_TOKEN = 16  # characters, more than a tokenizer's mean on any text but odd ones
_MOST_FILES = 100_000
_TAKES = (
    "stdlib, manual, a .txt, .md, .jsonl, .json or .parquet file (.gz too), a folder, "
    "or hf:name[:split[:column]]"
)


@dataclass(frozen=True)
class Text:
    """Documents to measure on, with the name they were asked for by.

    Attributes:
        facts: how they were made, for the record.
        cut: whether there is more, that was not read: the rows of a dataset behind its beginning.
    """

    name: str
    documents: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict, compare=False)
    cut: bool = False

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of all documents, in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            raw = document.encode("utf-8", "surrogatepass")
            digest.update(f"{len(raw)}\0".encode() + raw)
        return digest.hexdigest()


@dataclass(frozen=True)
class Synthetic:
    """What stands for data where a task makes its prompts of nothing else but its templates."""

    name: str
    templates: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The hash of the templates."""
        return sha256_of_text("\0".join(self.templates))


def load_text(name: str, tokens: int | None = None) -> Text:
    """The text that `--data` names.

    Args:
        name: what is read, and after it `,join=SEPARATOR` for all rows, empty ones too, as one
            text. What is read is `stdlib` (the documents held out of the tiny model's training);
            `manual` (this package's own, as it was once: the same with every Python and release);
            a file of text, which is one document, or with `join` a row for each line; a file of
            rows, `.jsonl`, `.json` or `.parquet`, with `:key` for another key or column than
            `text`; a folder of text files, a document each; or `hf:name[:split[:column]]` (a
            dataset on the Hub or in a folder; split `test` or the only one, column `text`), with
            `,config=NAME` for one of its configurations.
        tokens: how many will be wanted at most: of a dataset only a beginning that has them is
            read. None for all.

    Raises:
        UsageError: it is missing, empty, undecodable or of another kind.
    """
    asked = _Asked.parse(name)
    read = _read(asked, tokens is not None)
    return _made(asked, read, _beginning(tokens) if tokens and read.long else None)


class _Asked(NamedTuple):
    """What a name says.

    Attributes:
        path: `stdlib`, `manual`, `hf:…` or a path, with what stands after it.
        join: what stands between rows that become one text; None where each is a document.
    """

    name: str
    path: str
    config: str | None = None
    join: str | None = None

    @classmethod
    def parse(cls, name: str) -> _Asked:
        """UsageError for a separator that is more than white space."""
        asked = cls(name, name)
        while not os.path.exists(asked.path) and (
            found := re.fullmatch(r"(.*),(join|config)=([^,]*)", asked.path, re.DOTALL)
        ):
            path, option, value = found.groups()
            if option == "join":
                value = value.replace("\\n", "\n").replace("\\t", "\t")
                if value.strip():
                    raise UsageError(
                        f"data {name!r}: bad value {value!r} for join: give white space in "
                        "quotes, such as ',join=\\n\\n', or nothing"
                    )
            asked = asked._replace(path=path, **{option: value})
        if asked.config is not None and not asked.path.startswith("hf:"):
            raise UsageError(f"data {name!r}: config is for hf:name: leave it out")
        return asked

    @property
    def where(self) -> str:
        """How to call it in a message."""
        return f"data {self.name!r}"

    def parts(self) -> tuple[str, str]:
        """The path of what is there, and what stands after it and a colon.

        A path may have colons of its own: the longest that is there counts, or else the longest
        with the ending of a file.
        """
        path = self.path.removeprefix("hf:")
        ends = [len(path), *(m.start() for m in reversed(list(re.finditer(":", path))))]
        for known in (os.path.exists, _is_file_name):
            for end in ends:
                if known(path[:end]):
                    return path[:end], path[end + 1 :]
        head, _, rest = path.partition(":")
        return head, rest


class _Read(NamedTuple):
    """Rows, how they were read, and whether there may be too many to read them all."""

    rows: Iterable[str]
    facts: dict[str, Any]
    long: bool = False


def _is_file_name(path: str) -> bool:
    return files.suffix(path) in TEXTS + TABLES


def _read(asked: _Asked, begin: bool) -> _Read:
    """The rows that a name stands for.

    Args:
        begin: whether a dataset's first rows will do.
    """
    if asked.path == "stdlib":
        return _Read([text for _, text in stdlib_documents(held_out=True)], {})
    if asked.path == "manual":
        return _Read([MANUAL.read_text("utf-8")], {})
    path, rest = asked.parts()
    if asked.path.startswith("hf:") or (os.path.isdir(path) and _is_dataset(asked, Path(path))):
        rows, facts = hub.read_table(asked.where, path, rest, asked.config, begin)
        return _Read(rows, {**facts, "line_ends": "as given"}, long=True)
    kind = files.suffix(path)
    if kind in TABLES and not os.path.isdir(path):
        rows = _table(asked, path, kind, rest or None)
        return _Read(rows, {"column": rest or hub.COLUMN, "line_ends": "as given"})
    if rest or not (kind in TEXTS or os.path.isdir(path)):
        raise UsageError(f"unknown {asked.where}: give {_TAKES}")
    return _Read(_texts(asked, Path(path)), {"line_ends": "as \\n"})


def _is_dataset(asked: _Asked, folder: Path) -> bool:
    """Whether a folder has rows and no text but a README; UsageError where it has both."""
    if hub.is_saved(folder):
        return True
    there = _files(folder)
    tables = [file for file in there if files.suffix(file) in (".jsonl", ".parquet")]
    texts = [file for file in there if files.suffix(file) in TEXTS and file != "README.md"]
    if tables and texts:
        raise UsageError(
            f"{asked.where} has files of rows ({tables[0]}) and of text ({texts[0]}): give a "
            "folder of one kind, or one file"
        )
    return bool(tables)


def _files(folder: Path) -> list[str]:
    """The files of a folder and those below it, but hidden ones, in a fixed order."""
    found = list(itertools.islice(folder.rglob("*"), _MOST_FILES + 1))
    if len(found) > _MOST_FILES:
        raise UsageError(f"data {str(folder)!r} has more than {_MOST_FILES} files: give fewer")
    names = (file.relative_to(folder) for file in found if file.is_file())
    return sorted(n.as_posix() for n in names if not any(p.startswith(".") for p in n.parts))


def _texts(asked: _Asked, path: Path) -> Iterator[str]:
    """The text of a file, or of each text file of a folder; lines where one file's are joined.

    Lines keep their ends, and are empty where they are blank, as WikiText's own loader has it.
    """
    if os.path.isdir(path):
        names = [file for file in _files(path) if files.suffix(file) in TEXTS]
        if not names:
            raise UsageError(
                f"{asked.where} has nothing to read in it: give a folder of .txt or .md files, "
                "of .jsonl or .parquet, or one that save_to_disk made"
            )
        for name in names:
            yield _decoded(path / name, f"{asked.where}, {name}")
        return
    text = _decoded(path, asked.where)
    if asked.join is None:
        yield text
    else:
        lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        yield from (line if line.strip() else "" for line in lines)


def _decoded(path: str | Path, where: str) -> str:
    return files.decode(files.read_bytes(path, where), where)


def _table(asked: _Asked, path: str, kind: str, key: str | None) -> Iterator[str]:
    """The texts under a key of each row; a .json file may also hold texts themselves."""
    column = key or hub.COLUMN
    if kind == ".parquet":
        for number, value in enumerate(files.parquet_column(path, column, asked.where), 1):
            if not isinstance(value, str):
                raise UsageError(f"{asked.where}, row {number}: column {column!r} is not text")
            yield value
        return
    parse = files.json_rows if kind == ".json" else files.json_lines
    for place, row in parse(_decoded(path, asked.where), asked.where):
        alone = kind == ".json" and key is None and isinstance(row, str)
        text = row if alone else _under(column, row, place)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place}: half a surrogate pair") from None
        yield text


def _under(key: str, row: Any, place: str) -> str:
    """The text under a key; UsageError, with the keys that have text, where there is none."""
    pairs = row if isinstance(row, dict) else {}
    if isinstance(found := pairs.get(key), str):
        return found
    keys = [name for name, value in pairs.items() if isinstance(value, str)]
    valid = f": valid: {files.listed(keys)}, as FILE:KEY" if keys else ""
    raise UsageError(f"{place}: needs an object with a string {key!r}{valid}")


def _beginning(tokens: int) -> int:
    """The characters of a dataset that are read for so many tokens: one of few sizes, so that
    what is read, and its hash, seldom depend on how much of it a run needs."""
    size = _BEGINNING
    while size < _PER_TOKEN * tokens:
        size *= 4
    return size


def _made(asked: _Asked, read: _Read, most: int | None) -> Text:
    """Documents: the rows that are not blank, or all of them joined; those that begin within the
    first `most` characters."""
    rows, size, blank, cut = list[str](), 0, 0, False
    for row in read.rows:
        if cut := most is not None and size >= most:
            break
        rows.append(row)
        size, blank = size + len(row), blank + (not row.strip())
    if blank == len(rows):
        raise UsageError(f"{asked.where} is empty: there is no text in it")
    join = asked.join
    kept = [row for row in rows if row.strip()] if join is None else [join.join(rows)]
    facts = {**read.facts, "rows": len(rows), "blank_rows": blank, "documents": len(kept)}
    return Text(_shown(asked.name), tuple(kept), {**facts, "join": join, "beginning": cut}, cut)


def _shown(name: str) -> str:
    """The name in one line, where a separator is given as it is."""
    head, option, value = name.rpartition(",join=")
    return head + option + value.replace("\n", "\\n").replace("\t", "\\t") if option else name
