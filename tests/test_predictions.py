"""Answers on disk: rows survive kills and hostile files, and nothing else is taken for a row."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_eval import Ran, Run

from ctxext.errors import CtxextError
from ctxext.measure import answers as answering
from ctxext.measure.predictions import Predictions
from ctxext.tasks.base import Sample

KEY = "ab" * 6


def a_row(name: str, **more: Any) -> dict[str, Any]:
    made = {"name": name, "pred": f"p {name} 模", "answers": ["x"], "margin": 0.5, "seconds": 0.25}
    return made | {"prompt": a_sample(name).digest} | more


def a_sample(name: str) -> Sample:
    return Sample(name, list(name.encode()), ["x"])


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions" / "cell" / "passkey-samples=4.jsonl"


def found(path: Path, *names: str, key: str = KEY) -> dict[str, dict[str, Any]]:
    with Predictions(path, key) as kept:
        return kept.found(map(a_sample, names))


def test_rows_are_found_as_soon_as_they_are_kept(path: Path) -> None:
    with Predictions(path, KEY) as kept:
        for name in "abc":
            kept.add(a_row(name))
            assert found(path, *"abcd")[name] == a_row(name) | {"cell": KEY}
        assert not path.exists()
    assert list(found(path, "b", "d")) == ["b"]


def test_in_the_end_there_is_one_file_in_the_order_of_the_samples(path: Path) -> None:
    for some in ("ca", "b"):
        with Predictions(path, KEY) as kept:
            for name in some:
                kept.add(a_row(name))
    assert len(list(path.parent.iterdir())) == 2
    with Predictions(path, KEY) as kept:
        kept.finish([a_row(name) for name in "abc"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == list("abc")
    assert "模" in path.read_text()
    assert list(found(path, *"abc")) == list("abc")


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_line_that_was_cut_off_is_not_there(path: Path, cut: int) -> None:
    with Predictions(path, KEY) as kept:
        kept.add(a_row("a"))
        kept.add(a_row("b"))
    (part,) = path.parent.iterdir()
    part.write_bytes(part.read_bytes()[:-cut])
    assert list(found(path, *"ab")) == (["a", "b"] if cut == 1 else ["a"])
    with Predictions(path, KEY) as kept:
        kept.add(a_row("b", pred="again"))
    assert found(path, *"ab")["b"]["pred"] in ("again", a_row("b")["pred"])
    assert set(found(path, *"ab")) == {"a", "b"}


DEEP = 100_000
GARBAGE = {
    "nothing": b"\n\n \n",
    "bytes": bytes(range(256)) * 3 + b"\n",
    "half a character": '{"name": "模"}'.encode()[:-4] + b"\n",
    "zeros": b"\0" * 999 + b"\n",
    "brackets": b"[" * DEEP + b"\n",
    "closed brackets": b"[" * DEEP + b"]" * DEEP + b"\n",
    "objects": b'{"name":' * DEEP + b"\n",
    "a long number": b"1" * DEEP + b"\n",
    "a list": lines([a_row("a", cell=KEY)]),
    "a string": lines("a"),
    "no cell": lines(a_row("a")),
    "another prompt": lines(a_row("a", cell=KEY, prompt=a_sample("z").digest)),
    "another cell": lines(a_row("a", cell="cd" * 6)),
    "a cell that is a list": lines(a_row("a", cell=[KEY])),
    **{
        f"{field} {value!r}": lines(a_row("a", cell=KEY) | {field: value})
        for field, values in {
            "name": [None, 1, ["a"], {"a": 1}],
            "pred": [None, 1, ["a"], {}],
            "margin": [None, "1", True, 1, -0.5, math.nan, []],
            "seconds": [None, "1", True, 0.0, -1.0, math.nan, math.inf, {}],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_row_is_not_there(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(GARBAGE[kind] + lines(a_row("b", cell=KEY)))
    path.with_name(f".{path.stem}.1-2.part").write_bytes(GARBAGE[kind])
    assert list(found(path, *"ab")) == ["b"]


def test_rows_of_other_samples_and_files_are_not_taken(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.with_name(".other.1-2.part").write_bytes(lines(a_row("a", cell=KEY)))
    path.with_name(f".{path.stem}.1-2.part").mkdir()
    path.with_name("x.jsonl").write_bytes(lines(a_row("a", cell=KEY)))
    assert found(path, "a") == {}
    path.mkdir()
    assert found(path, "a") == {}
    with Predictions(path, KEY) as kept, pytest.raises(CtxextError, match="cannot write"):
        kept.finish([a_row("a")])


def test_the_file_of_another_cell_is_moved_aside(path: Path) -> None:
    """As of the same task on other data."""
    for key in ("ab" * 6, "cd" * 6):
        with Predictions(path, key) as kept:
            kept.finish([a_row("a")])
    assert list(found(path, "a", key="cd" * 6)) == ["a"]
    assert list(found(path.parent / "older" / ("ab" * 6) / path.name, "a")) == ["a"]


def test_the_first_of_two_rows_counts(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(lines(a_row("a", cell=KEY, pred="1"), a_row("a", cell=KEY, pred="2")))
    assert found(path, "a")["a"]["pred"] == "1"


def test_two_writers_at_once_lose_nothing(path: Path) -> None:
    with Predictions(path, KEY) as one, Predictions(path, KEY) as two:
        for i in range(20):
            one.add(a_row(f"one {i}"))
            two.add(a_row(f"two {i}", pred="x" * 9999))
        names = [f"{who} {i}" for who in ("one", "two") for i in range(20)]
        assert set(found(path, *names)) == set(names)
        one.finish([a_row(name) for name in names])
        two.add(a_row("late"))  # its file is gone
        two.finish([a_row(name) for name in names])
    assert list(found(path, *names)) == names
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_discarded_parts_are_gone_and_what_is_finished_stays(path: Path) -> None:
    with Predictions(path, KEY) as kept:
        kept.add(a_row("a"))
        kept.finish([a_row("a")])
    with Predictions(path, KEY) as kept:
        kept.add(a_row("b"))
    other = path.with_name("other.jsonl")
    other.write_text("{}")
    with Predictions(path, KEY) as kept:
        kept.discard_parts()
        kept.discard_parts()
        assert list(kept.found(map(a_sample, "ab"))) == ["a"]
    assert sorted(path.parent.iterdir()) == sorted([other, path])


@pytest.mark.parametrize("how", ["file", "read-only"])
def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(path: Path, how: str) -> None:
    path.parent.parent.mkdir(parents=True)
    if how == "file":
        path.parent.write_text("")
    else:
        path.parent.mkdir(mode=0o500)
        if os.access(path.parent, os.W_OK):
            pytest.skip("root writes everywhere")
    with Predictions(path, KEY) as kept, pytest.raises(CtxextError, match=r"^cannot write .*part"):
        kept.add(a_row("a"))


# The whole way.

ASKED = (
    *("eval", "--model", "tiny", "--task", "passkey:samples=4,depths=5", "--len", "256"),
    *("--method", "rerope", "--json", "--batch-size", "2", "--out"),
)
SAMPLES = 20


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the names of the samples that are answered in this process."""
    from ctxext.measure import session

    real, names = answering.answers, list[str]()

    def noted(model: Any, tokenizer: Any, samples: Any, *rest: Any) -> Any:
        for row in real(model, tokenizer, samples, *rest):
            names.append(row["name"])
            yield row

    monkeypatch.setattr(session, "answers", noted)
    return names


def rows_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every file of rows below the folder, without what differs from run to run."""
    assert not [p for p in out.rglob("*") if p.suffix not in (".json", ".jsonl") and p.is_file()]
    files = {}
    for path in sorted(out.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        for row in rows:
            assert row.pop("seconds") > 0
            row["margin"] = pytest.approx(row["margin"], abs=1e-4)
        assert len({row["name"] for row in rows}) == len(rows) == SAMPLES
        files[path.relative_to(out).as_posix()] = rows
    return files


def measured(ran: Ran) -> list[tuple[Any, ...]]:
    fields = ("requested", "value", "stderr", "n", "windows", "parts", "status", "key")
    assert ran.code == 0, ran.err
    return [tuple(record[field] for field in fields) for record in ran.records]


def some_rows(out: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in out.rglob("*.part"))


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    run: Run, tmp_path: Path, answered: list[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    want = measured(run(*ASKED, str(whole)))
    assert len(answered) == 2 * SAMPLES
    answered.clear()
    pick, kills = random.Random(7), 0
    for patience in (0.0, 0.05, 0.4):
        before = some_rows(out)
        with subprocess.Popen(
            [sys.executable, "-m", "ctxext", *ASKED, str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:
            give_up = time.monotonic() + 60
            while process.poll() is None and some_rows(out) <= before:
                assert time.monotonic() < give_up
                time.sleep(0.002)
            time.sleep(patience * pick.random())
            process.kill()
        kills += process.returncode == -signal.SIGKILL
        assert rows_kept(out) > 0
    assert kills
    kept = rows_kept(out)
    ran = run(*ASKED, str(out))
    assert measured(ran) == want
    assert rows_of(out) == rows_of(whole)
    assert len(answered) == 2 * SAMPLES - kept
    assert measured(run(*ASKED, str(out))) == want
    answered.clear()
    assert measured(run(*ASKED, str(out), "--force")) == want
    assert len(answered) == 2 * SAMPLES
    assert rows_of(out) == rows_of(whole)


def rows_kept(out: Path) -> int:
    """The different rows in finished and unfinished files."""
    seen = set()
    for path in [*out.rglob("*.jsonl"), *out.rglob("*.part")]:
        for line in path.read_bytes().split(b"\n")[:-1]:
            seen.add((path.parent.name, json.loads(line)["name"]))
    return len(seen)


def test_what_else_a_kept_row_says_is_not_believed(
    run: Run, tmp_path: Path, answered: list[str]
) -> None:
    asked = ("eval", "--json", "--model", "tiny", "--task", "passkey:samples=1,depths=2")
    asked += ("--len", "256", "--out", str(tmp_path))
    want = measured(run(*asked))
    (path,) = tmp_path.rglob("*.jsonl")
    before = path.read_bytes()
    more: dict[str, Any] = {"answers": ["0"], "depth": "x", "length": -1, "truncated": [], "y": {}}
    rows = [{**json.loads(line), **more} for line in before.splitlines()]
    path.write_bytes(lines(*rows))
    for record in tmp_path.glob("*.json"):
        record.unlink()
    answered.clear()
    ran = run(*asked)
    assert measured(ran) == want
    assert ran.records[0]["truncated"] is None
    assert answered == []
    assert path.read_bytes() == before


def test_names_of_answers_leave_room_for_the_folder_that_they_are_in(tmp_path: Path) -> None:
    """Windows takes paths of 259 characters, most systems names of 255 bytes."""
    from types import SimpleNamespace

    from ctxext import patches, tasks
    from ctxext.measure.predictions import path_of
    from ctxext.system.names import told_apart

    asked = tasks.parse("lm-eval:" + "folder/of/" * 20 + "task.yaml,include=" + "x" * 90)
    spec = patches.parse("yarn:factor=16.123456789,beta_fast=31.5,beta_slow=1.25+logn:clip=false")
    cell = SimpleNamespace(asked=asked, task=asked, requested=spec, length=1 << 20)
    request = SimpleNamespace(source=SimpleNamespace(name="org/" + "m" * 90), out=tmp_path)
    path = path_of(SimpleNamespace(request=request, shared_key=lambda _: "0" * 12), cell)  # type: ignore[arg-type]
    longest = path.with_name(f"{path.stem}-{'0' * 12}.cache")
    assert len(longest.relative_to(tmp_path).as_posix()) <= 220
    long = [f"{'y' * 70}{end}" for end in "ab"]
    assert told_apart(long[0]) != told_apart(long[1])
    assert [told_apart(text) for text in ("hotpotqa", "a/b", "z" * 64)] == [
        "hotpotqa", "a-b", "z" * 64,
    ]  # fmt: skip
