"""What fails fails alone: less at once where memory runs out, one cell's trouble, a full disk.

Tolerances: 1e-5 relative for numbers that were read in other pieces, as for caches in the engine;
records of cells that share a forward are equal to the digit.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, fitted, pairs_of, random_model, tokens
from test_answers import MOST, SPECS, Words, by_hand, plain, prompts, words
from test_eval import Run, evaluate, kept, letters, save_model

import ctxext
from ctxext.errors import UnsupportedModelError
from ctxext.measure import attempts as trying
from ctxext.measure import session as measuring
from ctxext.measure import tokens as reading
from ctxext.measure.answers import Limits, answers
from ctxext.measure.attempts import attempts, halves, reads_in_parts
from ctxext.measure.failure import failure
from ctxext.measure.predictions import Predictions
from ctxext.methods import names
from ctxext.models import identity, loading
from ctxext.records import SPENT

METHODS = ("rope", "rerope:window=8", "leaky-rerope:window=8")
COSTS = {"seconds", "tokens_per_second", "peak_memory_bytes", "created", "digest", *SPENT}
STDLIB = ("--len", "64", "--limit", "2", "--json")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the model `plain` and the data `t.txt`."""
    shutil.copytree(model_folder, tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A Llama that has no memory for more than 64 tokens at once; grows by those that it read."""
    real, seen = transformers.LlamaModel.forward, list[int]()

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        if input_ids.numel() > 64:
            raise torch.OutOfMemoryError(f"no room for {input_ids.numel()} tokens")
        seen.append(input_ids.numel())
        return real(self, input_ids, **more)

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    monkeypatch.setattr(trying, "CHUNKS", (128, 48, 16))
    return seen


def measured(record: dict[str, Any]) -> dict[str, Any]:
    """The record without times and memory."""
    return {name: value for name, value in record.items() if name not in COSTS}


def logged(record: dict[str, Any], out: str = "results") -> str:
    """The log of a failed cell, which no finished one has."""
    assert (record["log"] is None) is (record["status"] == "ok")
    return Path(out, record["log"]).read_text()


def write_grid(**entries: Any) -> str:
    Path("grid.yaml").write_text(json.dumps({"models": "plain", "data": "t.txt"} | entries))
    return "grid.yaml"


# What is tried.


def test_halves_go_from_what_there_is_down_to_one() -> None:
    assert halves(8, 100) == [8, 4, 2, 1]
    assert halves(7, 100) == [7, 3, 1]
    assert halves(8, 8) == [8, 4, 2, 1]
    assert halves(128, 3) == [128, 1]
    assert halves(128, 1) == halves(128, 0) == [128]
    assert halves(1, 5) == [1]


def test_chunks_are_shorter_than_the_window() -> None:
    assert attempts([2, 1], 4096) == [(2, None), (1, None), (1, 1024), (1, 256)]
    assert attempts([1], 4097)[1] == (1, 4096)
    assert attempts([1], 256) == attempts([1]) == [(1, None)]
    assert [str(one) for one in attempts([2], 300)] == ["batch 2", "chunks of 256 tokens"]


@pytest.mark.parametrize("chunk", [9, 16, 47])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_in_chunks_is_the_whole_window(family: str, chunk: int) -> None:
    model, windows = random_model(family), conftest.whole(tokens(48, batch=3))
    windows.first[1] = 30
    assert reads_in_parts(model)
    for spec in (*(names() if chunk == 16 else ()), "yarn+rerope:window=5+logn"):
        with ctxext.patched(model, fitted(spec, pairs_of(model)), 64):
            whole = reading.score(model, windows, 3)
            parts = reading.score(model, windows, 1 + chunk % 2, lambda read: None, chunk)
        np.testing.assert_array_equal(parts.window, whole.window)
        np.testing.assert_array_equal(parts.position, whole.position)
        # a rounding of the entropy moves entropy-cap's γ by 1/(γ·Var) of it, Var of the logits; in
        # float64 both are equal to 1e-15
        atol = 1e-4 if spec == "entropy-cap" else 1e-5
        np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5, atol=atol)
        np.testing.assert_array_equal(parts.hit, whole.hit)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shared", [False, True])
def test_answers_to_prompts_in_chunks_are_those_of_full_forwards(spec: str, shared: bool) -> None:
    model, samples = plain(random_model()), prompts(shared, 4)
    with ctxext.patched(model, spec, 64):
        want = {sample.name: by_hand(model, sample.ids, MOST) for sample in samples}
        for batch, chunk in ((1, 5), (1, 16), (4, 7)):
            rows = answers(model, Words(), samples, Limits(MOST), batch, lambda n: None, chunk)
            for row in rows:
                said, margin = want[row["name"]]
                assert row["pred"] == words(said)
                assert row["margin"] == pytest.approx(margin, abs=1e-4)


def test_prompts_are_read_in_chunks_where_asked(small: list[int]) -> None:
    model, samples = plain(random_model()), prompts(False)
    list(answers(model, Words(), samples, Limits(MOST), 1, lambda n: None, 5))
    assert max(small) == 5


def test_what_would_differ_in_chunks_is_not_read_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that drops keys; scalings by the length are pinned (test_lengths)."""
    windowed = ("MistralForCausalLM", "MistralConfig", {"sliding_window": 8, "head_dim": 16})
    monkeypatch.setitem(conftest.FAMILIES, "mistral", windowed)
    assert not reads_in_parts(random_model("mistral"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert reads_in_parts(random_model("llama-gqa", rope_parameters=dynamic))


def test_a_model_that_keeps_nothing_is_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        return real(self, input_ids, use_cache=False)

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="does not keep"):
        reading.score(llama, conftest.whole(tokens(9)), 1, lambda read: None, 4)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "oom"),
        (RuntimeError("std::bad_alloc"), "oom"),
        (RuntimeError("shapes do not match"), "error"),
        (ValueError("this text is out of memory"), "error"),
    ],
    ids=repr,
)
def test_what_is_lack_of_memory(error: Exception, status: str) -> None:
    assert failure(error)["status"] == status
    with pytest.raises(UnsupportedModelError) as wrapped:
        raise UnsupportedModelError("it does not run") from error
    assert failure(wrapped.value)["status"] == status


# Memory runs out.


@pytest.mark.parametrize(
    ("length", "batch", "want", "said"),
    [
        (32, 8, (2, None), ["batch 8: again with batch 4", "batch 4: again with batch 2"]),
        (64, 3, (1, None), ["batch 3: again with batch 1"]),
        (65, 1, (1, 48), ["batch 1: again with chunks of 48 tokens"]),
        (
            200,
            1,
            (1, 48),
            ["batch 1: again with", "of 128 tokens: again with"],
        ),
    ],
)
def test_less_at_once_gives_the_same_numbers(
    run: Run, here: Path, request: Any, length: int, batch: int, want: Any, said: list[str]
) -> None:
    more = ("--len", length, "--limit", 9, "--task", "ppl,acc", "--batch-size", batch)
    more += tuple(item for spec in METHODS[1:] for item in ("--method", spec))
    free = evaluate(run, *more, "--out", "free")
    request.getfixturevalue("small")
    ran = evaluate(run, *more)
    assert (free.code, ran.code) == (0, 0)
    for ours, theirs in zip(ran.records, free.records, strict=True):
        assert (theirs["batch_size"], theirs["prefill_chunk"]) == (batch, None)
        assert (ours["batch_size"], ours["prefill_chunk"]) == want
        assert ours["log"] is None
        assert ours["key"] == theirs["key"]
        for name in ("value", "stderr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
        assert (ours["n"], ours["windows"]) == (theirs["n"], theirs["windows"])
        for one, other in zip(ours["buckets"], theirs["buckets"], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    lines = [line for line in ran.err.splitlines() if "ran out of memory" in line]
    assert len(lines) == len(said) * len(METHODS)
    for line, part in zip(lines, said * len(METHODS), strict=True):
        assert part in line
    assert lines[0].startswith(f"rope at {length}, ppl ran out of memory with batch {batch}: again")


def test_what_is_still_too_much_is_a_failure_that_says_what_was_tried(
    run: Run, here: Path, small: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "CHUNKS", (128, 96))
    ran = evaluate(run, "--len", "32,200", "--limit", 9, "--batch-size", 2)
    good, bad = ran.records
    assert ran.code == 1
    assert (good["status"], bad["status"], bad["value"]) == ("ok", "oom", None)
    tried = "(tried batch 2, batch 1, chunks of 128 tokens, chunks of 96 tokens)"
    assert bad["reason"] == f"OutOfMemoryError: no room for 96 tokens {tried}"
    assert "Traceback" in logged(bad)
    assert "no room for 96 tokens" in logged(bad)
    assert ran.err.splitlines()[-1].endswith(bad["reason"])


def test_answers_are_kept_where_memory_runs_out(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of ever shorter prompts: what the small ones say before one fails is kept."""
    more = ("--len", 256, "--limit", 6, "--task", "passkey", "--batch-size", 4)
    free = evaluate(run, *more, "--out", "free")
    real, calls = measuring.answers, list[tuple[Any, ...]]()

    def failing(model: Any, tokenizer: Any, samples: Any, *rest: Any) -> Iterator[Any]:
        calls.append(([sample.name for sample in samples], rest[1], rest[3]))
        count = {4: 3, 1: 1}[rest[1]] if rest[3] is None else 9
        yield from itertools.islice(real(model, tokenizer, samples, *rest), count)
        if len(samples) > count:
            raise MemoryError

    monkeypatch.setattr(trying, "CHUNKS", (64,))
    monkeypatch.setattr(measuring, "answers", failing)
    ran = evaluate(run, *more)
    (ours,), (theirs,) = ran.records, free.records
    assert ran.code == 0
    assert [(len(asked), *how) for asked, *how in calls] == [(6, 4, None), (3, 1, None), (2, 1, 64)]
    assert set(calls[0][0]) > set(calls[1][0]) > set(calls[2][0])
    assert (ours["batch_size"], ours["prefill_chunk"]) == (1, 64)
    same = ("value", "stderr", "n", "parts", "key", "close_calls")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    ((one,), (other,)) = (list(Path(out).rglob("*.jsonl")) for out in ("results", "free"))
    said = [[json.loads(line)["pred"] for line in path.open()] for path in (one, other)]
    assert said[0] == said[1]
    assert len(said[0]) == 6


def test_prompts_that_do_not_fit_are_read_in_chunks(run: Run, here: Path, request: Any) -> None:
    more = ("--len", 256, "--limit", 4, "--task", "passkey", "--method", METHODS[1])
    free = evaluate(run, *more, "--out", "free")
    request.getfixturevalue("small")
    ran = evaluate(run, *more)
    for ours, theirs in zip(ran.records, free.records, strict=True):
        assert (ours["batch_size"], ours["prefill_chunk"]) == (1, 48)
        assert (ours["value"], ours["parts"]) == (theirs["value"], theirs["parts"])


def test_a_failed_attempt_holds_nothing_when_the_next_begins(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, held = reading.score, list[weakref.ref[Any]]()

    def failing(model: Any, windows: Any, *rest: Any) -> Any:
        if held:
            assert held[-1]() is None
            return real(model, windows, *rest)
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        cycle = [large]
        cycle.append(cycle)
        raise MemoryError

    gc.disable()
    try:
        monkeypatch.setattr(reading, "score", failing)
        (record,) = evaluate(run).records
    finally:
        gc.enable()
    assert (record["status"], record["batch_size"]) == ("ok", 1)


LIMITED = """
import resource
from ctxext.measure import tokens
real = tokens.score
def score(*args):
    with open("/proc/self/status") as file:
        size = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) * 1024
    if resource.getrlimit(resource.RLIMIT_AS)[0] < 0:
        resource.setrlimit(resource.RLIMIT_AS, (size + (320 << 20), -1))
    return real(*args)
tokens.score = score
from ctxext.cli.app import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the address space")
def test_a_real_limit(run: Run, here: Path) -> None:
    """Scores of 4096² × 4 heads take 256 MiB a copy, those of 1024 × 4096 a quarter."""
    Path("long.txt").write_text(letters(2500))
    asked = ("eval", "--json", "--model", "plain", "--data", "long.txt", "--len", "4096")
    asked += ("--limit", "1", "--attn", "eager", "--out")
    (free,) = run(*asked, "free").records
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *asked, "limited"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    limited = json.loads(done.stdout)
    assert "ran out of memory with batch 1: again with chunks of 1024 tokens" in done.stderr
    assert free["prefill_chunk"] is None
    assert limited["prefill_chunk"] in (1024, 256)
    assert limited["value"] == pytest.approx(free["value"], rel=1e-5)


RANKS = """
import os
from ctxext.measure import tokens
real, calls = tokens.score, []
def score(model, windows, batch, *rest):
    if os.environ["RANK"] == "1" and (windows.length == 48 or batch == 4):
        raise MemoryError("no room in the second")
    return real(model, windows, batch, *rest)
tokens.score = score
from ctxext.cli.app import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as it is launched here")
def test_two_processes_take_the_same_decision(run: Run, here: Path) -> None:
    more = ("--len", "48,64", "--limit", "8", "--batch-size", "4", "--device", "cpu")
    free = evaluate(run, *more, "--out", "free").records[1]
    Path("ranks.py").write_text(RANKS)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "ranks.py", "eval", "--json", *more,
         "--model", "plain", "--data", "t.txt"],
        capture_output=True, text=True, timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(here)},
    )  # fmt: skip
    bad, good = (json.loads(line) for line in done.stdout.splitlines())
    assert done.stderr.count("with batch 4: again with batch 2") == 2
    assert (bad["status"], good["status"], good["processes"]) == ("oom", "ok", 2)
    assert "(tried batch 4, batch 2, batch 1)" in bad["reason"]
    assert "no room in the second" in logged(bad)
    assert (good["batch_size"], good["prefill_chunk"]) == (2, None)
    assert good["value"] == pytest.approx(free["value"], rel=1e-5)


# Every failure leaves its traceback, and is its cell's alone.


class PanicException(BaseException):
    """What a tokenizer written in Rust raises, by name and by its base."""


@pytest.mark.parametrize("error", [RuntimeError("no"), PanicException("no")], ids=repr)
@pytest.mark.parametrize("where", ["forward", "answer", "summary", "prompts", "patch"])
def test_a_failure_is_its_cells_and_leaves_a_traceback(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    from ctxext.tasks.passkey import PassKey
    from ctxext.tasks.ppl import Perplexity

    def break_it(*args: Any, **more: Any) -> Any:
        raise error

    place: Any = {
        "forward": (reading, "score"),
        "answer": (transformers.PreTrainedTokenizerFast, "decode"),
        "summary": (Perplexity, "summarise"),
        "prompts": (PassKey, "prompts"),
        "patch": (measuring, "patched"),
    }[where]
    if where == "patch":
        real = measuring.patched

        def some(model: Any, spec: Any, *rest: Any, **more: Any) -> Any:
            return real(model, spec, *rest, **more) if str(spec) == "rope" else break_it()

        monkeypatch.setattr(measuring, "patched", some)
    else:
        monkeypatch.setattr(*place, break_it)
    more = ("--method", "logn") if where == "patch" else ()
    ran = evaluate(run, "--len", 256, "--task", "ppl,acc,passkey", "--limit", 1, *more)
    broken = {
        "forward": ["ppl", "acc"],
        "answer": ["passkey"],
        "summary": ["ppl"],
        "prompts": ["passkey"],
        "patch": ["ppl", "acc", "passkey"],
    }[where]
    assert ran.code == 1
    assert len(ran.records) == 3 + len(more) // 2 * 3
    for record in ran.records:
        bad = record["task"] in broken and (where != "patch" or record["requested"] == "logn")
        assert record["status"] == ("error" if bad else "ok")
        if bad:
            assert record["reason"] == f"{type(error).__name__}: no"
            assert "break_it" in logged(record)
            assert logged(record).count("Traceback (most recent call last)") == 1
    assert "Traceback" not in ran.err


def test_a_loss_that_is_not_finite_leaves_a_traceback(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reading.score

    def spoiled(*args: Any) -> Any:
        scores = real(*args)
        scores.nll[3] = math.nan
        return scores

    monkeypatch.setattr(reading, "score", spoiled)
    (record,) = evaluate(run).records
    assert (record["status"], record["reason"]) == ("error", "the loss is not finite")
    assert "the loss is not finite" in logged(record)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_ends_a_run_is_no_failure_of_a_cell(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(reading, "score", stop)
    ran = evaluate(run)
    assert ran.code == (130 if isinstance(error, KeyboardInterrupt) else 3)
    assert kept() == {}


# A full disk.

FULL = ("--task", "acc,passkey", "--len", "256", "--limit", "3", "--method", "logn")


def no_space(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["add", "finish", "log"])
def test_a_full_disk_ends_the_run_with_earlier_records_whole(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*args: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        if where == "log":
            patch.setattr(measuring, "answers", fail)
            Path("results").mkdir()
            Path("results/logs").write_text("in the way of a folder")
        else:
            real = Predictions._make_room
            calls = itertools.count()
            patch.setattr(
                Predictions, "_make_room", lambda s: no_space() if next(calls) else real(s)
            )
            if where == "add":
                patch.setattr(
                    "ctxext.measure.predictions._line",
                    lambda row: no_space() if next(calls) > 4 else b"{}\n",
                )
        ran = evaluate(run, *FULL)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: cannot write results")
    assert "Traceback" not in ran.err
    records = [json.loads(path.read_bytes()) for path in Path("results").glob("*.json")]
    assert records
    assert {record["status"] for record in records} == {"ok"}
    assert len(ran.records) == len(records)
    if where != "log":
        assert evaluate(run, *FULL).code == 0


def test_a_line_is_whole_where_the_disk_takes_it_in_parts(tmp_path: Path) -> None:
    """Without a buffer a write may end early, as it does before the disk is full."""
    row = {"name": "a", "pred": "x" * 5000, "answers": [], "margin": 1.0, "seconds": 1.0}
    path = tmp_path / "t.jsonl"
    with Predictions(path, "k") as predictions:
        predictions.add(row)
        file = predictions._file
        assert file is not None

        class Slow:
            def write(self, data: Any) -> int:
                return file.write(bytes(data[:7]))

            def close(self) -> None:
                file.close()

        predictions._file = Slow()  # type: ignore[assignment]
        predictions.add(row)
        (part,) = tmp_path.iterdir()
        one, two = part.read_text().splitlines()
        assert one == two


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of 48 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder))
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(run: Run, here: Path, tiny_disk: Path) -> None:
    methods = [item for n in range(2, 30) for item in ("--method", f"ntk:factor={n}")]
    more = ("--task", "ppl,passkey", "--len", "256", "--limit", "3", *methods)
    ran = evaluate(run, *more, "--out", "disk")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: cannot write disk")
    assert "No space left on device" in ran.err.splitlines()[-1]
    records = [json.loads(content) for content in kept(Path("disk")).values()]
    assert 0 < len(records) == len(ran.records) < 58
    assert {record["status"] for record in records} == {"ok"}
    shutil.copytree("disk", "roomy")
    again = evaluate(run, *more, "--out", "roomy")
    assert again.code == 0
    assert len(again.records) == 58
    values = {record["key"]: record["value"] for record in again.records}
    assert all(values[record["key"]] == record["value"] for record in records)


# What cannot be done is the failure of its cells, unless that is all.

REFUSED = {
    "prompt": ({"tasks": ["ppl", "passkey"], "lengths": [48, 256]}, [("passkey", 48)]),
    "data": ({"tasks": ["ppl"], "lengths": [48, 256, 100_000]}, [("ppl", 100_000)]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_the_failure_of_its_cell(run: Run, here: Path, kind: str) -> None:
    """In a grid and without."""
    entries, refused = REFUSED[kind]
    shutil.copy("t.txt", "u.txt")
    grid = write_grid(**entries, limit=2, data=["t.txt", "u.txt"])
    lengths = ",".join(map(str, entries["lengths"]))
    tasks = ",".join(entries["tasks"])
    for out, ran in {
        "grid": run("eval", "--json", "--grid", grid, "--out", "grid"),
        "one": evaluate(run, "--task", tasks, "--len", lengths, "--out", "one"),
    }.items():
        assert ran.code == 1
        assert "Traceback" not in ran.err
        for record in ran.records:
            bad = (record["task"], record["length"]) in refused
            assert record["status"] == ("error" if bad else "ok")
            if bad:
                assert "give" in record["reason"] or "fewer than one window" in record["reason"]
                assert record["reason"] in logged(record, out)


MISFITS = {  # what is refused, beside tasks that can be measured at the same length, 256
    "data": ("longbench:hotpotqa,longbench:2wikimqa", ("not JSON", "not JSON")),
    "length": ("ppl-sliding:stride=256,ppl-sliding:stride=300", ("stride=256", "stride=300")),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_no_plan_can_have_is_the_failure_of_its_cells(run: Run, here: Path, kind: str) -> None:
    tasks, said = MISFITS[kind]
    ran = evaluate(run, "--task", f"{tasks},ppl", "--len", 256)
    assert (ran.code, [r["status"] for r in ran.records]) == (1, ["error", "error", "ok"])
    for record, why in zip(ran.records, said, strict=False):
        assert why in record["reason"]
    assert evaluate(run, "--task", tasks, "--len", 256).code == 2  # no record of them is a number


@pytest.mark.parametrize("kind", [*MISFITS, "prompts"])
def test_where_nothing_can_be_done_all_is_told_at_once(
    run: Run, here: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, said = MISFITS.get(kind, ("passkey,kv", ("passkey", "kv")))
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for more in ((), ("--dry-run",)):
        length = 256 if kind in MISFITS else 16
        ran = evaluate(run, "--task", tasks, "--len", length, *more)
        line = ran.err.splitlines()[-1]
        assert (ran.code, ran.out) == (2, "")
        assert all(why in line for why in said)
        assert kept() == {}
        assert not list(here.rglob("*.log"))


def test_a_model_that_is_not_there_leaves_the_others_of_a_grid(run: Run, here: Path) -> None:
    grid = write_grid(models=["none/there", "plain"], lengths=48, limit=2)
    ran = run("eval", "--json", "--grid", grid)
    assert (ran.code, [r["model"] for r in ran.records]) == (1, ["plain"])
    assert "'none/there'" in ran.err.splitlines()[-1]
    ran = run("eval", "--grid", write_grid(models=["none/there", "no/more"], lengths=48))
    assert ran.code == 2
    assert "none/there" in ran.err
    assert "no/more" in ran.err


def test_a_method_that_one_model_cannot_take_fails_there_alone(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that see no further than T are left alone: nothing is left for a distance method."""
    real = measuring.patched

    def some(model: Any, spec: Any, *rest: Any, **more: Any) -> Any:
        if str(spec) != "rope" and model.config.eos_token_id == 77:
            raise UnsupportedModelError("this model takes no methods")
        return real(model, spec, *rest, **more)

    monkeypatch.setattr(measuring, "patched", some)
    save_model(here / "odd", eos_token_id=77)
    grid = write_grid(models=["odd", "plain"], methods="rerope:window=8", lengths=48, limit=2)
    records = run("eval", "--json", "--grid", grid).records
    bad = [record for record in records if record["status"] != "ok"]
    assert len(records) == 4
    assert [(r["model"], r["requested"], r["reason"]) for r in bad] == [
        ("odd", "rerope:window=8", "this model takes no methods")
    ]


def test_a_model_that_cannot_be_loaded_fails_in_its_cells_alone(run: Run, here: Path) -> None:
    shutil.copytree("plain", "bad")
    Path("bad/model.safetensors").write_bytes(b"no weights")
    grid = write_grid(models=["bad", "plain"], lengths=48, limit=2)
    ran = run("eval", "--json", "--grid", grid)
    assert [(r["model"], r["status"]) for r in ran.records] == [("bad", "error"), ("plain", "ok")]
    assert "Traceback" in logged(ran.records[0])


def test_weights_that_cannot_be_read_are_named(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "plain/model.safetensors")

    monkeypatch.setattr(identity, "folder_sha256", refuse)
    ran = evaluate(run)
    (line,) = ran.err.splitlines()
    assert ran.code == 2
    assert "'plain' cannot be read: Permission denied ('plain/model.safetensors')" in line


# Loaded once.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of what is loaded or made; no two models are there at once."""
    done, models = list[str](), list[weakref.ref[Any]]()

    def counted(place: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(place, name)

        def count(*args: Any) -> Any:
            done.append(name)
            if name == "load_model":
                assert not [model for model in models if model() is not None]
            made = real(*args)
            if name == "load_model":
                models.append(weakref.ref(made))
            return made

        monkeypatch.setattr(place, name, count)

    counted(loading, "load_model")
    counted(loading, "load_tokenizer")
    counted(reading, "tokenise")
    return done


def test_what_plans_share_is_loaded_once(run: Run, here: Path, calls: list[str]) -> None:
    save_model(here / "other", seed=3)
    (here / "u.txt").write_text(letters(seed=5))
    grid = write_grid(
        models=["plain", {"model": "plain", "dtype": "bfloat16"}, "other"],
        data=["t.txt", "u.txt"], methods="rerope:window=8", lengths=48, limit=2,
    )  # fmt: skip
    ran = run("eval", "--json", "--grid", grid)
    assert ran.code == 0
    assert len(ran.records) == 12
    # one tokenizer in all three folders
    assert {name: calls.count(name) for name in calls} == {
        "load_model": 3,
        "load_tokenizer": 2,
        "tokenise": 2,
    }
    for record in ran.records:
        alone = run(
            *("eval", "--json", "--model", record["model"], "--data", record["data"]["name"]),
            *("--dtype", record["dtype"], "--len", "48", "--limit", "2"),
            *("--method", record["requested"], "--out", "alone"),
        )
        assert alone.code == 0, alone.err
        found = {one["key"]: measured(one) for one in alone.records}
        assert found[record["key"]] == measured(record)


def test_other_tokenizers_make_tokens_of_their_own(run: Run, here: Path, calls: list[str]) -> None:
    save_model(here / "bos", bos=True)
    grid = write_grid(models=["plain", "bos"], lengths=48, limit=2)
    assert run("eval", "--grid", grid).code == 0
    assert calls.count("tokenise") == 2


# Sharing is exact.


def test_records_of_cells_that_share_are_those_of_each_alone(run: Run, here: Path) -> None:
    tasks = ["ppl", "acc", "ppl-tail", "acc-repeat", "ppl-sliding:stride=16", "passkey:samples=1"]
    lengths = [232, 256]
    grid = write_grid(tasks=tasks, methods=METHODS[1:], lengths=lengths, seeds=[0, 1], limit=3)
    together = run("eval", "--json", "--grid", grid, "--out", "together").records
    assert len(together) == 3 * 2 * (len(tasks) + 1)
    alone: dict[str, dict[str, Any]] = {}
    for task, seed in [*((task, 0) for task in tasks), (tasks[-1], 1)]:
        for spec in METHODS if task == "ppl" else (",".join(METHODS),):
            more = [item for one in spec.split(",") for item in ("--method", one)]
            ran = evaluate(
                run, "--task", task, "--seed", seed, "--len", "232,256", "--limit", 3, *more,
                "--out", f"alone-{len(alone)}",
            )  # fmt: skip
            assert ran.code == 0
            alone |= {record["key"]: measured(record) for record in ran.records}
    for record in together:
        assert record["status"] == "ok"
        ours, theirs = measured(record), alone[record["key"]]
        assert ours == theirs


def test_a_cell_under_two_names_with_another_between_them_keeps_its_numbers(
    run: Run, here: Path
) -> None:
    length = ("--len", "256")
    alone = {
        record["key"]: measured(record)
        for task in ("ppl-tail", "ppl")
        for record in evaluate(run, *length, "--task", task, "--out", task).records
    }
    tasks = "ppl-tail,ppl,ppl-tail:span=256"
    together = evaluate(run, *length, "--task", tasks, "--out", "together").records
    assert [record["task"] for record in together] == tasks.split(",")
    assert together[0]["key"] == together[2]["key"] != together[1]["key"]
    for record in together:
        expected = {**alone[record["key"]], "task": record["task"]}
        assert measured(record) == expected
