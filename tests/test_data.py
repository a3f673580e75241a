"""Where text comes from: the held-out split of the standard library, files, datasets."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import datasets
import pytest
import tokenizers
import torch
import transformers
from datasets.packaged_modules.parquet.parquet import Parquet
from test_eval import Run

import ctxext
from ctxext.errors import UsageError
from ctxext.tasks.data import (
    HELD_OUT_MODULES,
    HELD_OUT_TOPICS,
    Text,
    load_text,
    stdlib,
    stdlib_documents,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(name: str) -> str:
    """The message with which a name is refused: one line, and it has the name."""
    with pytest.raises(UsageError) as refusal:
        load_text(name)
    message = str(refusal.value)
    assert message.count("\n") == 0
    assert repr(name) in message
    return message


# The standard library.


@pytest.fixture(scope="module")
def held() -> dict[str, str]:
    return dict(stdlib_documents(held_out=True))


@pytest.fixture(scope="module")
def training() -> dict[str, str]:
    return dict(stdlib_documents(held_out=False))


def test_every_held_out_document_is_there(held: dict[str, str]) -> None:
    topics = {f"topic:{name}" for name in HELD_OUT_TOPICS}
    modules = {f"module:{name}" for name in HELD_OUT_MODULES}
    assert held.keys() == topics | modules
    assert len(held) == len(stdlib_documents(held_out=True)) == 23
    assert min(map(len, held.values())) > 2000
    assert "def fill(" in held["module:textwrap"]


def test_prose_and_code_alternate(held: dict[str, str]) -> None:
    kinds = [name.partition(":")[0] for name in held]
    assert kinds[:10] == ["topic", "module"] * 5
    size, prose = 0, 0
    for name, text in held.items():
        part = text[: max(0, 200_000 - size)]
        size += len(part)
        prose += len(part) * name.startswith("topic:")
    assert 0.2 < prose / size < 0.8


def test_no_document_is_on_both_sides(held: dict[str, str], training: dict[str, str]) -> None:
    assert held.keys().isdisjoint(training)
    assert set(held.values()).isdisjoint(training.values())
    assert len(training) == len(stdlib_documents(held_out=False)) > 300
    assert sum(map(len, training.values())) > 5 * sum(map(len, held.values()))
    assert not [name for name in training if name.split(".")[-1] in ("idle_test", "tests")]


def test_held_out_text_does_not_come_back_in_training(
    held: dict[str, str], training: dict[str, str]
) -> None:
    """Lines long enough to tell: of ≥ 80 characters at most 1% in all and none of a topic's; of
    ≥ 60, where licences and code's idioms recur, at most 10% of any document."""
    seen = {line.strip() for text in training.values() for line in text.splitlines()}
    longest, shared = 0, 0
    for name, text in held.items():
        lines = [line.strip() for line in text.splitlines()]
        long = [line for line in lines if len(line) >= 80]
        longest, shared = longest + len(long), shared + sum(line in seen for line in long)
        if name.startswith("topic:"):
            assert not [line for line in long if line in seen], name
        medium = [line for line in lines if len(line) >= 60]
        assert sum(line in seen for line in medium) <= 0.1 * len(medium), name
    assert longest > 50
    assert shared <= 0.01 * longest


def test_a_topic_that_repeats_a_held_out_paragraph_is_not_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paragraph = "a sentence that two topics share, " * 4
    topics = {
        HELD_OUT_TOPICS[0]: f"Head\n\n{paragraph}\n\nmore",
        "copy": f"Other head\n\n{paragraph.replace(' ', chr(10), 3)}",
        "free": f"Of its own\n\n{paragraph[:60]}",
    }
    monkeypatch.setattr(stdlib, "_topics", lambda: topics)
    names = [name for name, _ in stdlib_documents(held_out=False) if name.startswith("topic:")]
    assert names == ["topic:free"]


def test_the_library_is_read_from_its_folder_and_odd_files_are_skipped(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "textwrap.py": b"held = 1",
        "unittest/mock.py": b"held = 2",
        "abc.py": b"kept = 1",
        "json/decoder.py": "kept = 'é'".encode(),
        "latin.py": b"caf\xe9",
        "empty.py": b"",
        "test/test_abc.py": b"no",
        "site-packages/x.py": b"no",
        "json/tests/x.py": b"no",
        "pydoc_data/topics.py": b"no",
        "_sysconfigdata_linux.py": b"no",
        "notes.txt": b"no",
    }
    for name, content in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    (here / "folder.py").mkdir()
    (here / "dangling.py").symlink_to("nowhere")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(here))
    monkeypatch.setattr(stdlib, "_topics", lambda: {"copyright": "text"})
    assert stdlib_documents(held_out=False) == [
        ("topic:copyright", "text"),
        ("module:abc", "kept = 1"),
        ("module:json.decoder", "kept = 'é'"),
    ]
    assert dict(stdlib_documents(held_out=True)) == {
        "module:textwrap": "held = 1",
        "module:unittest.mock": "held = 2",
    }


def test_stdlib_is_the_held_out_side(held: dict[str, str]) -> None:
    text = load_text("stdlib")
    assert text.name == "stdlib"
    assert text.documents == tuple(held.values())
    assert text.sha256 == load_text("stdlib").sha256


# The hash.


def test_the_hash_tells_documents_apart() -> None:
    documents = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), ("ab", "c", ""), ("ab\0", "c")]
    hashes = {Text("x", d).sha256 for d in documents}
    assert len(hashes) == len(documents)
    assert Text("x", ("a",)).sha256 == Text("y", ("a",)).sha256
    assert all(len(digest) == 64 for digest in hashes)


# Text files.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("été 模型 🦙".encode(), "été 模型 🦙"),
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("\ufeffwide\r\n".encode("utf-16-be"), "wide\n"),
        ("wide".encode("utf-16"), "wide"),
        ("wide 🦙\n".encode("utf-32"), "wide 🦙\n"),
        (gzip.compress(b"packed\r\n", mtime=0), "packed\n"),
        (b"nul \0 inside", "nul \0 inside"),
        (b"  kept as it is \n\n", "  kept as it is \n\n"),
    ],
    ids=repr,
)
def test_a_text_file_is_one_document(content: bytes, text: str) -> None:
    Path("t.txt").write_bytes(content)
    assert load_text("t.txt") == Text("t.txt", (text,))


@pytest.mark.parametrize(
    "name",
    ["🦙 模型.txt", "a\nb.txt", "--limit.txt", ".txt", "a.jsonl.txt",
     "T.TXT", "notes.Md", "a.txt.gz", "C:b:c.txt", "x.jsonl:text.txt", "a,join=b.txt"],
)  # fmt: skip
def test_any_file_name_will_do(name: str) -> None:
    Path(name).write_text("text")
    assert load_text(name).documents == ("text",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9", "not UTF-8 text (byte 3)"),
        ("wide".encode("utf-16")[:-1], "not UTF-16 text (byte 8)"),
        (gzip.compress(b"packed" * 99, mtime=0)[:-9], "cannot be read: Compressed file ended"),
        (b"\xed\xa0\x80", "not UTF-8 text"),
        (b"ok\n" * 9 + b"\xff", "not UTF-8 text (byte 27)"),
    ],
    ids=repr,
)
def test_a_bad_text_file_is_refused(content: bytes, words: str) -> None:
    Path("t.txt").write_bytes(content)
    assert words in refused("t.txt")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".JSON", ".parquet", ".md.gz", ".jsonl:key"])
def test_a_file_that_cannot_be_read_is_refused(here: Path, suffix: str) -> None:
    Path("file").touch()
    Path("dangling" + suffix).symlink_to("nowhere")
    Path("loop" + suffix).symlink_to("loop" + suffix)
    for stem in ("missing", "file/t", "dangling", "loop", "n\0ul", "x" * 5000, "\udcff"):
        assert "cannot be read" in refused(stem + suffix)


@pytest.mark.parametrize(
    "name",
    ["", "stdlibb", "Stdlib", "stdlib ", "t.pdf", "t.txt.zst", "-", "hf", "there.txt:key", "x:y"],
)
def test_unknown_data_is_refused_with_the_kinds_there_are(here: Path, name: str) -> None:
    Path("t.pdf").write_bytes(b"%PDF")
    Path("there.txt").write_text("text")
    message = refused(name)
    for kind in ("stdlib", ".txt", ".md", ".jsonl", ".json", ".parquet", ".gz", "folder", "hf:"):
        assert kind in message


# JSON lines.


def test_each_line_with_text_is_a_document() -> None:
    lines = ['{"text": "one", "id": 1}', "", '{"id": 2, "text": "été \\u0000"}', '{"text": " "}']
    Path("d.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    assert load_text("d.jsonl").documents == ("one", "été \0")


def test_a_line_separator_inside_a_string_ends_no_line() -> None:
    Path("d.jsonl").write_text('{"text": "a\u2028b\x85c"}\n{"text": "d"}')
    assert load_text("d.jsonl").documents == ("a\u2028b\x85c", "d")


@pytest.mark.parametrize(
    "bad",
    [
        "{oops",
        "text",
        "[" * 100_000,
        '{"n": ' + "9" * 5000 + "}",
        '{"text": "a\tb"}',
        "[1]",
        "null",
        '"text"',
        "{}",
        '{"Text": "a"}',
        '{"text": 5}',
        '{"text": null}',
        '{"text": ["a"]}',
    ],
    ids=lambda bad: bad[:20],
)
def test_a_bad_line_is_named(bad: str) -> None:
    Path("d.jsonl").write_text(f'{{"text": "fine"}}\n\n{bad}\n{{"text": "fine"}}\n')
    message = refused("d.jsonl")
    assert "line 3" in message
    assert len(message) < 200


def test_a_line_with_half_a_character_is_named() -> None:
    Path("d.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83e half"}')
    assert "line 2" in refused("d.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n{"text": " \\n"}'])
def test_no_text_at_all_is_refused(content: str) -> None:
    Path("d.jsonl").write_text(content)
    assert "is empty" in refused("d.jsonl")


# Datasets.


@pytest.fixture
def dataset(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder with the splits test and validation, in place of one on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(here / "cache"))
    rows = {"test": [("a", "x", 1), ("b", "y", 2)], "validation": [("c", "z", 3)]}
    for split, members in rows.items():
        lines = [json.dumps({"text": t, "body": b, "number": n}) for t, b, n in members]
        path = here / "books" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
    return here / "books"


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("hf:books", ("a", "b")),
        ("hf:books:validation", ("c",)),
        ("hf:books:test:body", ("x", "y")),
        ("hf:books::body", ("x", "y")),
    ],
)
def test_a_dataset_by_split_and_column(
    dataset: Path, name: str, documents: tuple[str, ...]
) -> None:
    assert load_text(name) == Text(name, documents)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:books:train", "train"),
        ("hf:books:test:words", "no column 'words': valid: text, body, number"),
        ("hf:books:test:number", "column 'number' is not text"),
        ("hf:", "write hf:name[:split[:column]]"),
        ("hf::test", "write hf:name[:split[:column]]"),
        ("hf:books:test:text:more", "write hf:name[:split[:column]]"),
        ("hf:nobody/nothing", "cannot be loaded"),  # conftest sets HF_HUB_OFFLINE
    ],
)
def test_a_bad_dataset_is_refused(dataset: Path, name: str, words: str) -> None:
    assert words in refused(name)


# Rows of other kinds.

ROWS = [
    {"text": "one\r\n", "body": "b1"},
    {"text": " ", "body": "b2"},
    {"text": "two", "body": "b3"},
]
LINES = "".join(json.dumps(row) + "\r\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("d.JSONL", LINES),
        ("d.jsonl", LINES.decode().encode("utf-16")),
        ("d.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("d.json.GZ", gzip.compress(LINES, mtime=0)),
        ("d.json", json.dumps(ROWS, indent=1).encode()),
        ("C:d:e.json", LINES),
    ],
)
def test_rows_by_key_are_left_as_they_are(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)
    assert load_text(file).documents == ("one\r\n", "two")
    assert load_text(f"{file}:body").documents == ("b1", "b2", "b3")
    assert "line 1" in refused(f"{file}:other") or "item 1" in refused(f"{file}:other")
    assert "valid: text, body, as FILE:KEY" in refused(f"{file}:other")


def test_a_list_of_texts() -> None:
    Path("d.json").write_text('["one", "", "two"]')
    assert load_text("d.json").documents == ("one", "two")
    assert "item 1: needs an object with a string 'body'" in refused("d.json:body")
    Path("d.json").write_text('["one", 2]')
    assert "item 2" in refused("d.json")
    Path("d.json").write_text('{"data": "x"}')
    assert "valid: data, as FILE:KEY" in refused("d.json")
    Path("d.json").write_text('["one"')
    assert "not JSON" in refused("d.json")


def test_parquet_by_column() -> None:
    datasets.Dataset.from_list(ROWS).to_parquet("d.PARQUET")
    assert load_text("d.PARQUET").documents == ("one\r\n", "two")
    assert load_text("d.PARQUET:body").documents == ("b1", "b2", "b3")
    assert "no column 'words': valid: text, body" in refused("d.PARQUET:words")
    Path("cut.parquet").write_bytes(Path("d.PARQUET").read_bytes()[:-9])
    assert "cannot be read" in refused("cut.parquet")
    datasets.Dataset.from_dict({"text": ["a", None]}).to_parquet("null.parquet")
    assert "row 2: column 'text' is not text" in refused("null.parquet")


@pytest.mark.parametrize("file", ["d.jsonl", "d.json", "d.parquet", "d.jsonl.gz"])
def test_what_is_something_else_inside_is_refused(file: str) -> None:
    Path(file).write_bytes(b"\x89PNG\r\n\x1a\n\0\xff" * 99)
    assert len(refused(file)) < 300
    Path(file).write_bytes(b'{"text": "' + b"a" * 2**24)
    assert len(refused(file)) < 300


# Folders.


def test_a_folder_of_texts_is_a_document_each(here: Path) -> None:
    for name in ("b.txt", "a/z.MD", "a/y.txt.gz", ".git/c.txt", "figure.png", "settings.json"):
        (here / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "notes" / name).write_text(name)
    assert load_text("notes").documents == ("a/y.txt.gz", "a/z.MD", "b.txt")
    (here / "notes/b.txt").write_bytes(b"\xff")
    assert "'notes', b.txt, line 1: not UTF-8 text" in refused("notes")
    (here / "notes/rows.jsonl").write_bytes(LINES)
    assert "of rows (rows.jsonl) and of text (a/y.txt.gz)" in refused("notes")


@pytest.mark.parametrize("files", [(), ("model.safetensors", "config.json")])
def test_a_folder_with_nothing_to_read_is_refused(here: Path, files: tuple[str, ...]) -> None:
    (here / "folder").mkdir()
    for file in files:
        (here / "folder" / file).write_text("{}")
    assert "nothing to read in it: give a folder of .txt" in refused("folder")


def test_what_save_to_disk_wrote(dataset: Path) -> None:
    one, two = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[2:])
    one.save_to_disk("one")
    datasets.DatasetDict({"test": one, "validation": two}).save_to_disk("both")
    datasets.DatasetDict({"validation": two}).save_to_disk("single")
    for name in ("one", "one:text", "one::text", "hf:one", "both", "both:test", "both:test:text"):
        assert load_text(name).documents == ("one\r\n", "two")
    assert load_text("one:body").documents == ("b1", "b2", "b3")
    assert load_text("both:validation:body").documents == ("b3",)
    assert load_text("single").documents == ("two",)
    assert "no column 'test': valid: text, body" in refused("one:test")
    assert "no split 'train': valid: test, validation" in refused("both:train")
    assert "no split 'test': valid: validation" in refused("single:test")
    assert load_text("single").facts["split"] == "validation"
    assert "has no config: leave it out" in refused("hf:one,config=x")


def test_a_folder_like_those_of_the_hub_is_a_dataset(dataset: Path) -> None:
    Path("books/README.md").write_text("# Books")
    for name in ("books", "hf:books"):
        assert load_text(name).documents == ("a", "b")
        assert load_text(f"{name}:validation:body").documents == ("z",)
        assert load_text(f"{name}:test[:1]+validation").documents == ("a", "c")
    assert "no split 'train': valid: " in refused("books:test+train")


CONFIGS = """---
configs:
- {config_name: old, data_files: [{split: test, path: test.jsonl}]}
- {config_name: new, data_files: [{split: train, path: validation.jsonl}]}
---
"""


@pytest.mark.parametrize("tokens", [None, 5])
def test_a_configuration(dataset: Path, tokens: int | None) -> None:
    Path("books/README.md").write_text(CONFIGS)
    assert load_text("hf:books,config=old", tokens).documents == ("a", "b")
    new = load_text("hf:books::body,config=new", tokens)
    assert new.documents == ("z",)
    assert {"config": "new", "split": "train", "column": "body"}.items() <= new.facts.items()
    for name in ("hf:books", "hf:books,config=newer", "hf:books:test,config="):
        assert "add ,config=NAME: valid: old, new" in refused(name)
    assert "no split 'test': valid: train" in refused("hf:books:test,config=new")
    assert "config is for hf:name" in refused("d.jsonl,config=old")


# Rows that are joined.


@pytest.mark.parametrize("escaped", [True, False])
def test_joined_rows_are_one_text_empty_ones_too(dataset: Path, escaped: bool) -> None:
    Path("d.jsonl").write_bytes(LINES)
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    join = "\\n\\n" if escaped else "\n\n"
    for name in ("d.jsonl", "saved", "d.jsonl:text"):
        text = load_text(f"{name},join={join}")
        assert text == Text(f"{name},join=\\n\\n", ("one\r\n\n\n \n\ntwo",))
        facts = {"rows": 3, "blank_rows": 1, "documents": 1, "join": "\n\n", "beginning": False}
        assert facts.items() <= text.facts.items()
    assert load_text("d.jsonl:body,join=").documents == ("b1b2b3",)
    assert load_text("d.jsonl:body,join= ").documents == ("b1 b2 b3",)
    assert load_text("d.jsonl").facts["documents"] == 2
    assert "bad value 'nn' for join" in refused("d.jsonl,join=nn")
    assert load_text("stdlib,join=\\n\\n").documents == (
        "\n\n".join(load_text("stdlib").documents),
    )


def test_the_rows_of_a_text_are_its_lines() -> None:
    Path("t.txt").write_bytes(b"one\r\n \r\n\r\ntwo")
    assert load_text("t.txt,join=-".replace("-", " ")).documents == ("one\n   two",)
    assert load_text("t.txt,join=").documents == ("one\ntwo",)


# No more of a dataset than is needed.


def test_the_beginning_of_a_dataset_is_enough(dataset: Path) -> None:
    rows = [f"row {i} " * 500 for i in range(900)]
    Path("big").mkdir()
    datasets.Dataset.from_dict({"text": rows}).to_parquet("big/test.parquet", batch_size=10)
    datasets.Dataset.from_dict({"text": rows}).to_json("books/test.jsonl")
    datasets.Dataset.from_dict({"text": rows}).save_to_disk("saved")
    for name in ("hf:big", "big", "hf:books:test", "saved"):
        text = load_text(name, 5)
        assert text.documents == tuple(rows[: len(text.documents)])
        assert 2**20 <= sum(map(len, text.documents)) < 2**20 + len(rows[-1])
        assert text.cut
        assert text.facts["beginning"]
        assert text.sha256 == load_text(name, 2**16).sha256 != load_text(name, 2**17).sha256
        assert not load_text(name, 2**22).cut
        assert not load_text(name).cut


def test_parquet_is_not_streamed_by_datasets(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves threads of Arrow's where not all is read, which abort the process at its end: in
    five of eight runs of a script that did no more."""

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("streamed")

    rows = [f"row {i} " * 500 for i in range(900)]
    Path("big").mkdir()
    datasets.Dataset.from_dict({"text": rows}).to_parquet("big/test.parquet", batch_size=10)
    monkeypatch.setattr(Parquet, "_generate_tables", fail)
    assert load_text("hf:big", 5).cut
    assert "cannot be loaded" in refused("hf:big")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("a\nb " * 300), KeyError("x"), MemoryError(), ValueError("")],
    ids=repr,
)
def test_whatever_the_hub_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    assert len(refused("hf:some/dataset")) < 300


@pytest.mark.parametrize(
    ("rows", "words"),
    [([" ", ""], "is empty"), (["a", None], "is not text"), ([1, 2], "is not text")],
)
def test_a_dataset_without_text_is_refused(dataset: Path, rows: list[Any], words: str) -> None:
    datasets.Dataset.from_dict({"text": rows}).to_parquet("books/test.parquet")
    Path("books/test.jsonl").unlink()
    Path("books/validation.jsonl").unlink()
    for name in ("hf:books", "books", "books/test.parquet"):
        assert words in refused(name)


def test_a_dataset_is_loaded_without_chatter(
    dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ctxext.cli.console import quieten

    quieten()
    load_text("hf:books")
    assert capfd.readouterr() == ("", "")


# The Hub, faked where it is reached: over HTTP.

COMMIT = "c0ffee" * 6 + "0000"
API = "/api/datasets/org/books"


class Hub(BaseHTTPRequestHandler):
    """One dataset, its files whole or by ranges."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    sent: ClassVar[list[int]] = []

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.reply(unquote(self.path.partition("?")[0]), body)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, found.groups())
            headers["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
            status, raw = 206, raw[first : last + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
            self.sent.append(len(raw))

    def reply(self, path: str, body: bytes) -> tuple[int, Any]:
        file = path.partition("/datasets/org/books/resolve/")[2].partition("/")[2]
        if file in self.files:
            return 200, self.files[file]
        if path.startswith(f"{API}/tree/"):
            return 200, [self.entry(name) for name in self.files]
        if path.startswith(f"{API}/paths-info/"):
            return 200, [self.entry(n) for n in json.loads(body)["paths"] if n in self.files]
        if path.startswith(API):
            return 200, {"id": "org/books", "sha": COMMIT, "private": False, "siblings": []}
        return 404, {"error": "not found"}

    def entry(self, name: str) -> dict[str, Any]:
        oid = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": oid}

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(here: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs the command line, in a process that reaches the Hub here."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(here / "hf")}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "0"}

    def ask(*argv: str) -> subprocess.CompletedProcess[str]:
        Hub.sent.clear()
        return subprocess.run(
            [sys.executable, "-m", "ctxext", *argv],
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    yield ask
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_no_more_than_is_needed(
    hub: Callable[..., subprocess.CompletedProcess[str]], here: Path
) -> None:
    rng = random.Random(0)
    rows = [" ".join(str(rng.random()) for _ in range(200)) for _ in range(3000)]
    datasets.Dataset.from_dict({"text": rows}).to_parquet("test.parquet", batch_size=100)
    readme = (
        "---\nconfigs:\n"
        "- {config_name: old, data_files: [{split: test, path: test.parquet}]}\n"
        "- {config_name: new, data_files: [{split: train, path: test.parquet}]}\n---\n"
    )
    Hub.files = {"test.parquet": Path("test.parquet").read_bytes(), "README.md": readme.encode()}
    asked = ("eval", "--json", "--len", "32", "--limit", "64", "--data")
    refusal = hub(*asked, "hf:org/books:dev,config=old")
    assert refusal.returncode == 2
    (line,) = refusal.stderr.splitlines()
    assert "no split 'dev': valid: test" in line
    assert sum(Hub.sent) < 2**16
    done = hub(*asked, "hf:org/books,config=old")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    facts = {"config": "old", "split": "test", "column": "text", "beginning": True}
    assert facts.items() <= record["data"].items()
    assert len(Hub.files["test.parquet"]) > 4 * 2**20 > sum(Hub.sent) > 2**16


# WikiText-2 by the published recipe: all rows, empty ones too, as one text with blank lines.

SHARED = Path(os.environ.get("CTXEXT_SHARED", Path(__file__).parents[2] / "shared"))
WIKITEXT = SHARED / "corpus" / "wikitext2_test.txt"


def published(lines: list[str], length: int, windows: int) -> float:
    """The perplexity of the shipped model, by a script of its own. A row of WikiText is a line with
    its end, or empty where the line is blank."""
    folder = Path(ctxext.__file__).parent / "models" / "shipped" / "tiny"
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "\n\n".join("" if line.isspace() else line for line in lines)
    ids = torch.tensor(core.encode(text, add_special_tokens=False).ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    with torch.no_grad():
        for window in ids.split(length)[:windows]:
            odds = model(window[None]).logits[0, :-1].double().log_softmax(-1)
            losses.append(-odds.gather(1, window[1:, None]).mean())
    return float(torch.stack(losses).mean().exp())


@pytest.mark.skipif(not WIKITEXT.exists(), reason="../shared/corpus/wikitext2_test.txt is not here")
def test_wikitext_by_the_published_recipe(run: Run, here: Path) -> None:
    """By its file, and by rows as the Hub has them."""
    with WIKITEXT.open(encoding="utf-8") as file:
        lines = file.readlines()
    rows = [{"text": "" if line.isspace() else line} for line in lines]
    datasets.Dataset.from_list(rows).to_parquet("rows.parquet")
    want = published(lines, 512, 12)
    for name in (str(WIKITEXT), "rows.parquet"):
        asked = ("--data", f"{name},join=\\n\\n", "--limit", "12", "--len", "512")
        (record,) = run("eval", "--json", *asked).records
        assert record["value"] == pytest.approx(want, abs=1e-4)
        facts = {"rows": 4358, "blank_rows": 1467, "documents": 1, "join": "\n\n"}
        assert facts.items() <= record["data"].items()
    (dropped,) = run("eval", "--json", "--data", "rows.parquet", *asked[2:]).records
    assert dropped["value"] != pytest.approx(want, abs=0.1)
    assert dropped["key"] != record["key"]
