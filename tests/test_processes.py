"""Several processes: the same records as one, said once.

Tolerance: 1e-5 nats for losses, which are sums in another order.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from test_eval import Ran, Run

TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"),
)
ASKED = ("eval", "--model", "tiny", "--len", "256", "--method", "rerope", "--device", "cpu")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo as it is launched here")


def launched(launcher: tuple[str, ...], *argv: str) -> Ran:
    """The command line in two processes over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as logs:
        own = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": logs}
        done = subprocess.run(
            [sys.executable, "-m", *launcher, str(port), "-m", "ctxext", *argv],
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, **own},
        )
    return Ran(done.returncode, done.stdout, done.stderr)


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The answers, file by file."""
    assert not list(out.rglob("*.part"))
    return {
        path.relative_to(out).as_posix(): [json.loads(line) for line in path.open("rb")]
        for path in sorted(out.rglob("*.jsonl"))
    }


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both records say the same."""
    fields = ("requested", "method", "task", "length", "status", "n", "windows", "data", "key")
    for field in fields:
        assert ours[field] == theirs[field], field
    assert ours["status"] == "ok", ours["reason"]
    if ours["task"] == "ppl":
        assert math.log(ours["value"]) == pytest.approx(math.log(theirs["value"]), abs=1e-5)
    else:
        assert ours["value"] == theirs["value"]
    if theirs["stderr"] is None:
        assert ours["stderr"] is None
    else:
        assert ours["stderr"] == pytest.approx(theirs["stderr"], rel=1e-3)
    for one, other in zip(ours["buckets"], theirs["buckets"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert ours.get("parts") == theirs.get("parts")


def same_answers(ours: Path, theirs: Path) -> None:
    one, other = rows(ours), rows(theirs)
    assert one.keys() == other.keys()
    for path, answers in one.items():
        for a, b in zip(answers, other[path], strict=True):
            assert a.pop("margin") == pytest.approx(b.pop("margin"), abs=1e-4)
            assert a.pop("seconds") > 0
            assert b.pop("seconds") > 0
            assert a == b


def test_two_processes_give_the_records_of_one(run: Run, tmp_path: Path) -> None:
    tasks = ("--task", "ppl,acc,passkey:samples=2,depths=3", "--limit", "5", "--json")
    alone = run(*ASKED, *tasks, "--out", str(tmp_path / "one"))
    both = launched(TORCHRUN, *ASKED, *tasks, "--out", str(tmp_path / "two"))
    assert both.code == 0, both.err
    assert len(both.records) == len(alone.records) == 6
    for ours, theirs in zip(both.records, alone.records, strict=True):
        same(ours, theirs)
        assert (ours["processes"], theirs["processes"]) == (2, 1)
    same_answers(tmp_path / "two", tmp_path / "one")
    assert both.err.count("attention path:") == 1
    files = [sorted(p.name for p in (tmp_path / out).glob("*.json")) for out in ("one", "two")]
    assert files[0] == files[1]


def test_a_process_may_have_no_window_and_no_prompt(run: Run, tmp_path: Path) -> None:
    tasks = ("--task", "ppl,passkey", "--limit", "1")
    alone = run(*ASKED, *tasks, "--json", "--out", str(tmp_path / "one"))
    both = launched(ACCELERATE, *ASKED, *tasks, "--out", str(tmp_path / "two"))
    assert both.code == 0, both.err
    kept = {
        (record["requested"], record["task"]): record
        for record in map(json.loads, (p.read_text() for p in (tmp_path / "two").glob("*.json")))
    }
    assert len(kept) == 4
    for theirs in alone.records:
        ours = kept[theirs["requested"], theirs["task"]]
        same(ours, theirs)
        assert ours["processes"] == 2
    same_answers(tmp_path / "two", tmp_path / "one")
    titles = re.findall(r"^.*tiny.*$", both.out, re.MULTILINE)
    assert len(titles) == len(set(titles)) == 2, both.out
    assert len(re.findall(r"│ rerope +│", both.out)) == 2


def test_a_usage_error_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    data = ("--data", str(tmp_path / "short.txt"), "--out", str(tmp_path / "out"))
    ran = launched(TORCHRUN, *ASKED, *data)
    assert ran.code != 0
    assert ran.out == ""
    said = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "fewer than one window of 256" in said[0]
    assert ran.err.count("fewer than one window") == 1
    assert not list((tmp_path / "out").iterdir())
