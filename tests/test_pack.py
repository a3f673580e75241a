"""Records in one file, a line each: read as files are, and none lost, whatever happens."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from test_results import failed, files, make

from ctxext.errors import OutputError
from ctxext.records import Store, sealed
from ctxext.records.files import PACK, name_of, parse, text_of

pytestmark = pytest.mark.quick

SOME = [make(seed=seed, requested=f"ntk:factor={2 + seed}") for seed in range(6)]
SOME.append(failed(requested="pi"))


def written(folder: Path, records: list[dict[str, object]] = SOME) -> Store:
    """A folder with their files."""
    store = Store(folder)
    store.prepare()
    for record in records:
        store.write(record)
    return Store(folder)


def test_what_is_packed_is_read_as_its_files_were(tmp_path: Path) -> None:
    before = written(tmp_path).read_all()
    assert Store(tmp_path).pack() == []
    assert files(tmp_path) == [PACK]
    store = Store(tmp_path)
    assert store.read_all() == before
    assert len((tmp_path / PACK).read_bytes().splitlines()) == len(SOME)
    for record in before[0]:
        assert store.get(record["key"]) == record
        store.write(record)  # as a run does with what it has found
    assert store.prepare() == []
    assert files(tmp_path) == [PACK]


def test_packing_goes_by_what_is_packed_alone(tmp_path: Path) -> None:
    written(tmp_path / "a").pack()
    some = random.Random(0).sample(SOME, len(SOME))
    written(tmp_path / "b", some[:3]).pack()
    written(tmp_path / "b", some[3:]).pack()
    whole = (tmp_path / "a" / PACK).read_bytes()
    assert (tmp_path / "b" / PACK).read_bytes() == whole
    inode = (tmp_path / "a" / PACK).stat().st_ino
    Store(tmp_path / "a").pack()
    assert (tmp_path / "a" / PACK).stat().st_ino == inode
    (tmp_path / "none").mkdir()
    assert Store(tmp_path / "none").pack() == []
    assert files(tmp_path / "none") == []


def test_a_file_supersedes_its_line_until_it_is_packed(tmp_path: Path) -> None:
    store = written(tmp_path)
    store.pack()
    newer = make(key=SOME[0]["key"], requested=SOME[0]["requested"], value=3.0)
    path = store.write(newer)
    for _ in range(2):
        assert Store(tmp_path).get(newer["key"]) == sealed(newer)
        assert len(Store(tmp_path).read_all()[0]) == len(SOME)
        Store(tmp_path).pack()
    assert not path.exists()
    lost = failed(key=SOME[1]["key"], requested=SOME[1]["requested"])
    store.write(lost)  # a failure does not
    path.with_name(name_of(lost)).write_bytes(text_of(sealed(lost)))
    for _ in range(2):
        assert Store(tmp_path).get(lost["key"]) == sealed(SOME[1])
        assert sealed(SOME[1]) in Store(tmp_path).read_all()[0]
        Store(tmp_path).pack()
    assert files(tmp_path) == [PACK]


def test_a_packed_record_that_is_withdrawn_is_set_aside(tmp_path: Path) -> None:
    store = written(tmp_path)
    store.pack()
    (line,) = store.withdraw(SOME[0]["key"])
    assert "done again, it failed" in line
    assert store.get(SOME[0]["key"]) is None
    (path,) = (tmp_path / "set-aside").iterdir()
    assert parse(path.read_bytes()).record == sealed(SOME[0])
    assert len(Store(tmp_path).read_all()[0]) == len(SOME) - 1


def test_a_torn_or_edited_line_is_told_and_the_others_stay(tmp_path: Path) -> None:
    written(tmp_path).pack()
    path = tmp_path / PACK
    lines = path.read_bytes().splitlines(keepends=True)
    edited = lines[1].replace(b'"value": 7.38', b'"value": 1.38')
    assert edited != lines[1]
    bad = [b"<<<<<<< ours\n", edited, b"[" * 100_000 + b"\n", b"\xff\n", b" " * (17 << 20) + b"\n"]
    spoilt = b"".join([lines[0], *bad, b"\n", *lines[2:-1], lines[-1][:-40]])
    path.write_bytes(spoilt)
    records, problems = Store(tmp_path).read_all()
    assert [name_of(record) for record in records] == [
        name_of(parse(line).record or {}) for line in (lines[0], *lines[2:-1])
    ]
    assert len(problems) == 6
    assert problems[1].startswith(f"{PACK}, line 3: its digest is wrong")
    assert all("\n" not in line for line in problems)
    assert Store(tmp_path).prepare() == problems
    assert path.read_bytes() == spoilt
    (line,) = Store(tmp_path).pack()
    assert "6 of its lines" in line
    assert (tmp_path / "set-aside" / PACK).read_bytes() == spoilt
    assert Store(tmp_path).read_all() == (records, [])


def test_what_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    store = written(tmp_path)
    (tmp_path / PACK).mkdir()
    records, problems = store.read_all()
    assert (len(records), len(problems)) == (len(SOME), 1)
    with pytest.raises(OutputError, match="cannot pack records"):
        store.pack()
    assert len(files(tmp_path)) == len(SOME) + 1


KILLED = """
import os, sys
from ctxext.records import Store
call, left = getattr(os, sys.argv[2]), int(sys.argv[3])
def kill(*args, **more):
    global left
    if str(args[0]).endswith(("lock", ".claims")):
        return call(*args, **more)
    left -= 1
    return call(*args, **more) if left >= 0 else os._exit(9)
setattr(os, sys.argv[2], kill)
Store(sys.argv[1]).pack()
"""


@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("replace", 0), ("unlink", 3)])
def test_a_killed_pack_loses_nothing(call: str, after: int, tmp_path: Path) -> None:
    written(tmp_path, SOME[:1]).pack()
    before = written(tmp_path, SOME[1:]).read_all()
    words = [sys.executable, "-c", KILLED, str(tmp_path), call, str(after)]
    assert subprocess.run(words, check=False).returncode == 9
    assert Store(tmp_path).read_all() == before
    Store(tmp_path).prepare()
    Store(tmp_path).pack()
    assert Store(tmp_path).read_all() == before
    assert files(tmp_path) == [PACK]


BUSY = """
import sys
from ctxext.records import Store
from test_results import make
store = Store(sys.argv[1])
for n in range(15):
    store.write(make(seed=n, model=sys.argv[2]))
    if n % 5 == 4:
        store.pack()
    assert len(store.read_all()[0]) > n
"""


def test_processes_that_write_and_pack_at_once(tmp_path: Path) -> None:
    here = {"cwd": Path(__file__).parent, "stderr": subprocess.PIPE, "env": {**os.environ}}
    words = [sys.executable, "-c", BUSY, str(tmp_path)]
    some = [subprocess.Popen([*words, f"model {n}"], **here) for n in range(3)]  # type: ignore[call-overload]
    for process in some:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()
    records, problems = Store(tmp_path).read_all()
    assert (len(records), problems) == (45, [])
    assert files(tmp_path) == [PACK]
