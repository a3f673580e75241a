"""Records on disk: whole or absent, harmless names, and no file that is not sound is used."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxext import records as records_of
from ctxext.errors import CtxextError, OutputError, UsageError
from ctxext.records import BENCH, MEASURES, Record, Store, load, problem_with, sealed
from ctxext.records.files import PACK, name_of, pack_of, parse, text_of
from ctxext.records.intervals import wilson
from ctxext.system import files as files_of
from ctxext.system.names import printable, safe_name

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parent.parent


def make(**changed: Any) -> Record:
    """A sound record of 4 windows of 64 tokens; its key is a hash of what is changed."""
    length = changed.get("length", 64)
    step = length // 16
    buckets = [
        {"start": i * step, "stop": (i + 1) * step, "nll": 2.0, "acc": 0.5, "n": 4 * step}
        for i in range(16)
    ]
    buckets[0]["n"] -= 4
    record = {
        "model": "tiny",
        "requested": "rerope+logn",
        "method": "rerope:window=32+logn",
        "task": "ppl",
        "metric": "perplexity",
        "length": length,
        "trained_length": 32,
        "value": math.exp(2),
        "stderr": 0.1,
        "n": 4 * length - 4,
        "windows": 4,
        "status": "ok",
        "reason": None,
        "seconds": 1.5,
        "tokens_per_second": 170.0,
        "peak_memory_bytes": None,
        "buckets": buckets,
        "seed": 0,
        "data": {"name": "stdlib", "sha256": "ab" * 32, "tokens": 1000},
        "model_sha256": "cd" * 32,
        "dtype": "float32",
        "device": "cpu",
        "attention": "flash",
        "versions": {"torch": "2.11"},
        "created": "2026-01-01T00:00:00+00:00",
        "key": hashlib.sha256(repr(sorted(changed.items())).encode("utf-8", "replace")).hexdigest(),
    }
    return record | changed


def failed(**changed: Any) -> Record:
    unmeasured = {"value": None, "stderr": None, "n": 0, "windows": 0, "buckets": []}
    return make(**unmeasured | {"status": "oom", "reason": "out of memory"} | changed)


def files(folder: Path) -> list[str]:
    """What is in the folder."""
    return sorted(path.name for path in folder.iterdir())


HOSTILE = [
    "../../etc/passwd",
    "/absolute",
    "..",
    ".hidden",
    "-rf",
    "a\nb\r\nc",
    "nul\0byte",
    "\"quoted\" 'name'",
    "<script>alert(1)</script>",
    "x" * 5000,
    "模型/模型",
    "\u202egnp",
    "\udcff",
    "CON",
    "con.json",
    "LPT1.x",
    "a--b",
    " ",
    "*?[a]",
    "C:\\x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_make_harmless_files(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.prepare()
    record = make(model=name, requested=name, task=name)
    path = store.write(record)
    assert path.parent == tmp_path / "out"
    assert re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]*\.json", path.name)
    assert len(path.name.encode()) < 200
    assert path.name.count("--") == 4
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", path.name, re.IGNORECASE)
    assert files(store.folder) == [path.name]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    found = store.get(record["key"])
    assert found is not None
    assert found["model"] == name.replace("\udcff", "?")


def test_names_can_be_read_and_differ_by_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = make(length=4096, key="ab12" * 16)
    assert store.path(record).name == "tiny--rerope+logn--ppl--4096--ab12ab12ab12.json"
    spec = make(requested="leaky-rerope:window=128,leak=16", key="0" * 64)
    assert "--leaky-rerope-window=128-leak=16--" in store.path(spec).name
    twins = [make(model="a/b", key="1" * 64), make(model="a:b", key="2" * 64)]
    assert len({store.path(twin).name.casefold() for twin in twins}) == 2


def test_safe_name_bounds() -> None:
    assert safe_name("ntk:factor=8") == "ntk-factor=8"
    assert safe_name("...") == safe_name("") == "_"
    assert len(safe_name("a" * 100, 10)) == 10
    assert safe_name("aaaa/bbbb", 5) == "aaaa"
    assert printable("a\nb\x1b[31m\u202e") == "a?b?[31m?"


def test_round_trip_and_get(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record, other = make(), failed(requested="pi")
    store.write(record)
    store.write(other)
    assert store.get(record["key"]) == sealed(record)
    assert store.get(other["key"]) == sealed(other)
    assert store.finished(record["key"]) == sealed(record)
    assert store.finished(other["key"]) is None
    assert store.get("f" * 64) is None
    assert store.get("") is None
    # the first 12 digits name the file, the whole key decides
    assert store.get(record["key"][:12] + "0" * 52) is None
    records, problems = store.read_all()
    assert (records, problems) == ([sealed(other), sealed(record)], [])


def test_what_is_held_is_read_once_and_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [sealed(make(seed=seed)) for seed in range(20)]
    for record in records:
        Store(tmp_path).write(record)
    keys = [record["key"] for record in records]
    monkeypatch.setattr(files_of, "COARSEST", -(10**12))  # all were written long ago
    listed, read = list[Any](), list[Path]()
    listdir, read_bytes = os.listdir, Path.read_bytes
    monkeypatch.setattr(os, "listdir", lambda *a: (listed.append(a), listdir(*a))[1])
    monkeypatch.setattr(Path, "read_bytes", lambda p: (read.append(p), read_bytes(p))[1])
    store = Store(tmp_path)
    assert store.prepare(keys) == []
    listed.clear()
    found = store.get_all([*keys, "f" * 64])
    assert found == {**dict(zip(keys, records, strict=True)), "f" * 64: None}
    assert len(listed) == 1
    for record in found.values():
        assert record is None or store.write(record) == store.path(record)
    assert (len(listed), len(read)) == (1, len(records))


def test_what_is_held_gives_way_to_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_of, "COARSEST", -(10**12))
    store, record = Store(tmp_path), make()
    path = store.write(record)
    assert store.prepare([record["key"]]) == []
    newer = sealed(make(key=record["key"], value=3.0))
    Store(tmp_path).write(newer)  # by another process
    assert store.get(record["key"]) == newer
    store.write(record)
    assert Store(tmp_path).get(record["key"]) == sealed(record)
    path.unlink()
    assert store.get(record["key"]) is None
    store.write(sealed(record))
    assert store.get(record["key"]) == sealed(record)


def test_a_failed_cell_done_again_takes_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = "ab" * 32
    assert store.write(failed(key=key)) == store.write(make(key=key))
    assert store.read_all() == ([sealed(make(key=key))], [])


def test_an_absent_folder_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "no")
    assert store.read_all() == ([], [])
    assert store.get("ab" * 32) is None
    assert not (tmp_path / "no").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").prepare()
    assert files(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("here first")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(UsageError, match="cannot write into") as caught:
            Store(folder).prepare()
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot write into"):
        Store("a\0b").prepare()
    with pytest.raises(UsageError, match="cannot read"):
        Store(tmp_path / "file").read_all()
    assert (tmp_path / "file").read_text() == "here first"


def test_non_finite_numbers_become_null_but_no_measured_value_does(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = make(stderr=math.nan, versions={"x": [math.inf]})
    record["buckets"][3] |= {"n": 0, "nll": math.nan, "acc": math.nan}
    before = copy.deepcopy(record)
    text = store.write(record).read_text()
    assert str(before) == str(record)
    kept = json.loads(text, parse_constant=pytest.fail)
    assert kept["stderr"] is None
    assert kept["versions"] == {"x": [None]}
    assert kept["buckets"][3]["nll"] is None
    spoilt = make(key="ee" * 32)
    spoilt["buckets"][0]["nll"] = math.inf
    for bad in (make(value=math.nan), make(value=math.inf), make(seconds=math.nan), spoilt):
        with pytest.raises(CtxextError, match="cannot be kept"):
            store.write(bad)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["replace", "fsync", "interrupt"])
def test_an_interrupted_write_leaves_the_old_record_and_no_trace(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = store.write(make(key="ab" * 32))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        if kind == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync" if kind == "fsync" else "replace", fail)
    with pytest.raises(KeyboardInterrupt if kind == "interrupt" else CtxextError) as caught:
        store.write(make(key="ab" * 32, value=9.0))
    if kind != "interrupt":
        assert "No space left" in str(caught.value)
    assert files(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_a_killed_writer_leaves_no_half_record(tmp_path: Path) -> None:
    """The process dies between writing and renaming: the folder reads as before."""
    program = (
        "import os, sys; sys.path.insert(0, 'tests');"
        "os.fsync = lambda _: os._exit(9);"
        "from test_results import Store, make; Store(sys.argv[1]).write(make())"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.glob(".record-*.tmp"))) == 1
    assert Store(tmp_path).read_all() == ([], [])
    assert Store(tmp_path).prepare() == []
    assert files(tmp_path) == []


def test_unsound_files_are_skipped_named_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole = store.write(make()).read_text()
    text = json.dumps(make())
    bad = {
        "cut.json": whole[: len(whole) // 2],
        "empty.json": "",
        "list.json": "[1, 2]",
        "other.json": '{"name": "package", "version": "1"}',
        "nan.json": text.replace('"stderr": 0.1', '"stderr": NaN'),
        "huge-float.json": text.replace('"stderr": 0.1', '"stderr": 1e999'),
        "huge-int.json": text.replace('"seed": 0', '"seed": 1' + "0" * 5000),
        "deep.json": "[" * 100_000,
        "surrogate.json": text.replace('"tiny"', '"\\ud800"'),
        "evil\nname\x1b[31m.json": "{",
    }
    for name, content in bad.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "latin.json").write_bytes(b'{"model": "\xff"}')
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("nowhere")
    (tmp_path / "tables.md").write_text("not a record, and no problem")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    records, problems = store.read_all()
    assert records == [sealed(make())]
    assert len(problems) == len(bad) + 3
    assert all("\n" not in line and "\x1b" not in line for line in problems)
    assert sorted(line.split(":")[0] for line in problems) == [
        line.split(":")[0] for line in problems
    ]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", 3),
        ("length", "64"),
        ("length", True),
        ("length", 0),
        ("length", 64.0),
        ("length", 2**70),
        ("value", None),
        ("value", "7.4"),
        ("value", True),
        ("value", -1.0),
        ("value", 0.0),
        ("value", [2.0]),
        ("stderr", math.inf),
        ("n", -3),
        ("windows", None),
        ("status", "fine"),
        ("status", []),
        ("buckets", None),
        ("buckets", [7]),
        ("buckets", [{"start": 0, "stop": 4}]),
        ("buckets", [{"start": 4, "stop": 4, "nll": 1.0, "acc": 0.5, "n": 1}]),
        ("buckets", [{"start": 0, "stop": 65, "nll": 1.0, "acc": 0.5, "n": 1}]),
        ("buckets", [{"start": 0, "stop": 4, "nll": None, "acc": 0.5, "n": 1}]),
        ("buckets", [{"start": 0, "stop": 4, "nll": 1.0, "acc": 1.5, "n": 1}]),
        ("buckets", [{"start": 0, "stop": 4, "nll": 1.0, "acc": None, "n": 0}]),
        ("buckets", [{"start": 0, "stop": 4, "nll": 1.0, "n": 1}]),
        ("by_window", [252]),
        ("by_window", {"n": [126, 126], "nll": [1.0, 2.0]}),
        ("by_window", {"n": [126, 126], "nll": [1.0], "hits": [1, 2]}),
        ("by_window", {"n": [126, 125], "nll": [1.0, 2.0], "hits": [1, 2]}),
        ("by_window", {"n": [126, 126], "nll": [1.0, 2.0], "hits": [1, 127]}),
        ("by_window", {"n": [126, 126], "nll": [1.0, math.nan], "hits": [1, 2]}),
        ("data", "stdlib"),
        ("data", {"name": "stdlib", "sha256": "ab"}),
        ("key", "XYZ"),
        ("key", "../../../../x"),
        ("key", 12),
        ("versions", None),
        ("created", None),
        ("perfect_score", 0),
        ("perfect_score", "1"),
        ("by_sample", [1, 0]),
        ("by_sample", {"prompts": "ab", "scores": [1, 0]}),  # of 252
        ("by_sample", {"prompts": "", "scores": [1] * 252}),
        ("by_sample", {"prompts": "ab", "scores": [math.nan] * 252}),
        ("by_sample", {"prompts": "ab", "scores": "1" * 252}),
        ("higher_is_better", "yes"),
        ("higher_is_better", 1),
        ("decode_tokens", "5"),
        ("prefill_seconds", -1.0),
        ("limit", "3"),
        ("batch_size", [1]),
        ("processes", 2**70),
        ("decode_seconds_per_token", "1"),
        ("ratio", "1"),
        ("ratio", [1]),
        ("data", {"name": "stdlib", "sha256": "ab", "tokens": 1, "at_most": [1]}),
        ("task_resolved", 5),
        ("task_resolved", ["ppl"]),
        ("task_resolved", {"ppl": 1}),
        ("close_calls", "1"),
        ("notes", "one"),
        ("parts", [{"name": "depth 0%", "n": 4}]),
        ("parts", [{"name": "depth 0%", "n": 4, "value": 1.0, "depth": "0"}]),
        ("version_of", {"the engine": 0}),
        ("ratio", {key: {"median": 2.0} for key in MEASURES}),
        ("ratio", {key: {"median": 2.0, "low": 1.0, "high": None} for key in MEASURES}),
        ("ratio", {key: {"median": 2.0, "low": 2.5, "high": 3.0} for key in MEASURES}),
    ],
)
def test_wrong_types_are_problems(field: str, value: Any) -> None:
    problem = problem_with(make() | {field: value})
    assert problem is not None
    assert field.rstrip("s") in problem


def test_missing_fields_are_problems() -> None:
    assert problem_with(make()) is None
    assert problem_with(failed()) is None
    assert problem_with(failed(n=None, windows=None, seconds=None) | {"buckets": None}) is None
    for field in make():
        lacking = {key: value for key, value in make().items() if key != field}
        assert problem_with(lacking) == f"the field {field!r} is missing"
    nothing = {"n": [], "nll": [], "hits": []}
    assert "by_window" in str(problem_with(make(n=0, by_window=nothing)))
    assert problem_with(make(metric="accuracy", value=1.2)) == "the value of accuracy cannot be 1.2"


def test_a_problem_names_its_field_and_its_value(tmp_path: Path) -> None:
    data = {"name": "stdlib", "sha256": "ab", "tokens": "many"}
    assert problem_with(make(data=data)) == (
        "the field 'data.tokens' cannot be 'many': expected `int`, got `str`"
    )
    del data["tokens"]
    assert problem_with(make(data=data)) == "the field 'data.tokens' is missing"
    buckets = make()["buckets"]
    buckets[3]["n"] = -1
    assert problem_with(make(buckets=buckets)) == (
        "the field 'buckets[3].n' cannot be '-1': expected `int` >= 0"
    )
    assert "\n" not in str(problem_with(make(method="", reason="a\nb", versions={"a\nb": 1})))


def test_what_later_versions_write_stays(tmp_path: Path) -> None:
    record = make(surprise={"later": [1]})
    record["buckets"][0]["surprise"] = record["data"]["surprise"] = "later"
    assert problem_with(record) is None
    Store(tmp_path).write(record)
    assert Store(tmp_path).get(record["key"]) == sealed(record)


def test_committed_records_are_sound_and_would_be_written_so_again() -> None:
    folders = [path for path in (ROOT / "results").iterdir() if path.is_dir()]
    found = {folder.name: Store(folder).read_all() for folder in folders}
    strange = [line for _, problems in found.values() for line in problems]
    assert [line.split(":")[0] for line in strange] == ["longrope.json"]
    assert sum(len(records) for records, _ in found.values()) >= 758
    for folder in folders:
        if (path := folder / PACK).exists():
            records = {name_of(record): record for record in found[folder.name][0]}
            assert path.read_bytes() == pack_of(records)
        for file in folder.glob("*--*.json"):
            assert text_of(parse(file.read_bytes()).record) == file.read_bytes()


def test_the_schema_is_that_of_the_types() -> None:
    file = Path(records_of.__file__).with_name("schema.json")
    assert json.loads(file.read_text()) == records_of.schema()


def test_an_edited_file_is_neither_served_nor_lost(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make()
    path = store.write(record)
    edited = path.read_text().replace('"value": 7.38', '"value": 1.38')
    assert edited != path.read_text()
    path.write_text(edited)
    assert store.get(record["key"]) is None
    store.write(record)  # where nothing has looked before
    assert store.get(record["key"]) == sealed(record)
    assert (tmp_path / "set-aside" / path.name).read_text() == edited


def test_a_record_renamed_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    store, other, record = Store(tmp_path), make(key="cd" * 32), make()
    whole, place = store.write(other).read_bytes(), store.path(record)
    store.path(other).rename(place)
    assert store.get(record["key"]) is None
    store.write(record)
    assert store.get(record["key"]) == sealed(record)
    assert (tmp_path / "set-aside" / place.name).read_bytes() == whole


def test_what_is_not_sound_is_set_aside_under_a_free_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path, other = store.write(make()), store.write(make(requested="pi"))
    whole = path.read_text()
    for content in (whole[:100], whole.replace("tiny", "huge")):
        path.write_text(content)
        (line,) = store.prepare()
        assert line.startswith(f"{path.name}: ")
        assert "\n" not in line
    kept = tmp_path / "set-aside"
    assert (kept / path.name).read_text() == whole[:100]
    assert (kept / f"{path.stem}-1.json").read_text() == whole.replace("tiny", "huge")
    (tmp_path / "notes.json").write_text("{}")  # not by its name a record
    assert store.prepare() == []
    assert files(tmp_path) == sorted(["notes.json", "set-aside", other.name])


def test_one_file_for_a_cell_by_two_names_that_look_alike(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(make(model="a/b", key="ab" * 32))
    before = path.read_bytes()
    assert store.write(make(model="a:b", key="ab" * 32)) == path
    assert path.read_bytes() == before
    store.write(make(model="a:b", key="ab" * 32, value=3.0))
    assert store.get("ab" * 32) == sealed(make(model="a:b", key="ab" * 32, value=3.0))


def test_a_failure_never_takes_the_place_of_a_finished_record(tmp_path: Path) -> None:
    store, key = Store(tmp_path), "ab" * 32
    store.write(make(key=key))
    store.write(failed(key=key))
    assert store.get(key) == sealed(make(key=key))
    store.write(failed(key=key, requested="rerope:window=32+logn"))  # the same cell, other words
    assert store.read_all() == ([sealed(make(key=key))], [])


CLAIM = """
import sys
from ctxext.records import Store
store = Store(sys.argv[1])
print(store.claim("ab" * 32), flush=True)
sys.stdin.read()
"""


def test_a_claim_holds_until_its_process_lets_go_or_dies(tmp_path: Path) -> None:
    store, key = Store(tmp_path), "ab" * 32
    store.prepare()
    for end in ("kill", "close"):
        with subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == b"True\n"
            assert not store.claim(key)
            assert store.claim("cd" * 32)
            store.release("cd" * 32)
            other.kill() if end == "kill" else other.stdin.close()
            other.wait()
        assert store.claim(key)
        assert store.claim(key)
        store.release(key)
        store.release(key)
    store.release_all()
    assert files(tmp_path) == []


def test_what_stands_in_the_way_of_a_claim_or_a_record_is_said(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make()
    store.prepare()
    (tmp_path / ".claims" / f"{record['key'][:24]}.lock").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot lock"):
        store.claim(record["key"])
    store.path(record).write_text("{")
    (tmp_path / "set-aside").touch()
    with pytest.raises(OutputError, match="cannot set aside"):
        store.write(record)
    assert store.path(record).read_text() == "{"


def test_a_traceback_is_added_to_the_log_of_its_cell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("first\n", "second \ud800"):
        place = store.log(make(model="../x"), text)
    assert re.fullmatch(r"logs/_?[\w.+=-]+--ppl--64--[0-9a-f]{12}\.log", place)
    said = (tmp_path / place).read_text()
    assert said == f"{make()['created']}\nfirst\n\n{make()['created']}\nsecond ?\n\n"


def test_records_are_a_data_frame(tmp_path: Path) -> None:
    store = Store(tmp_path)
    share = {"metric": "passkey", "task": "passkey", "buckets": [], "value": 1.0, "n": 2}
    ratio = {name: {"median": 2.0, "low": 1.5, "high": 3.0} for name in MEASURES}
    timed = {"metric": MEASURES[0], "task": BENCH, "buckets": [], "value": 3.0, "ratio": ratio}
    timed |= {MEASURES[0]: 3.0, MEASURES[1]: 0.1, "pairs": {name: [[3.0]] for name in MEASURES[:2]}}
    timed |= {"baseline_attention": "sdpa", "random_weights": False, "batch_size": 1}
    timed |= {"decode_tokens": 1, "threads": 1, "peak_resident_bytes": None, "notes": []}
    for record in (make(created="noon"), make(**share), make(**timed), failed(requested="pi")):
        store.write(record)
    (tmp_path / "other.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"left out: other\.json: the field"):
        frame = load(tmp_path)
    assert len(frame) == 4
    rows = {(row.requested, row.metric): row for row in frame.itertuples()}
    ppl, found = rows["rerope+logn", "perplexity"], rows["rerope+logn", "passkey"]
    assert (ppl.value, ppl.length, ppl.higher_is_better) == (math.exp(2), 64, False)
    assert len(ppl.buckets) == 16
    assert (found.low, found.high) == wilson(1, 2)
    assert (found.higher_is_better, found.perfect_score) == (True, 1)
    assert rows["rerope+logn", MEASURES[0]].prefill_seconds_ratio_low == 1.5
    assert rows["pi", "perplexity"].status == "oom"
    assert frame["value"].isna().sum() == 1
    kinds = {name: str(frame[name].dtype) for name in ("model", "length", "value", "created")}
    assert kinds == {"model": "string", "length": "Int64", "value": "Float64",
                     "created": kinds["created"]}  # fmt: skip
    assert re.fullmatch(r"datetime64\[.s, UTC\]", kinds["created"])
    assert frame["created"].isna().sum() == 1
    assert (ppl.data_name, ppl.version_torch) == ("stdlib", "2.11")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert set(frame.columns) - set(load(empty).columns) == {"version_torch"}
    with pytest.raises(UsageError, match="no folder"):
        load(tmp_path / "none")


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, ctxext.records, ctxext.report, ctxext.report.tables, ctxext.report.plots;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib', 'rich', 'numpy')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


TURNS = """
import sys
from ctxext.records import Store
from test_results import make
store, number = Store(sys.argv[1]), sys.argv[2]
for turn in range(40):
    key = f"{turn:012x}".ljust(64, "0")
    if store.claim(key):
        store.write(make(key=f"{number}{key[1:]}", model=number))
        store.release(key)
"""


def test_processes_that_lock_and_tidy_up_at_once(tmp_path: Path) -> None:
    """Each claim and write makes the lock anew where the others have just removed it."""
    folder = tmp_path / "out"
    folder.mkdir()
    some = [
        subprocess.Popen(
            [sys.executable, "-c", TURNS, str(folder), str(n)],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
        )
        for n in range(4)
    ]
    for process in some:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()
    found, problems = Store(folder).read_all()
    assert problems == []
    assert len(found) >= 40
    assert len(files(folder)) == len(found)
