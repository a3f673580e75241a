"""What a cell will take: counted by hand, for plain configs; and `--dry-run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from conftest import TRAINED, random_model
from test_eval import VOCABULARY, Ran, Run, letters, save_model
from test_methods import ROWS

from ctxext import patches
from ctxext.advise import estimate as table
from ctxext.measure.costs import Shape, cells, probe
from ctxext.measure.costs.work import works
from ctxext.methods.base import Span
from ctxext.models import loading
from ctxext.records import sealed

ASKED = ("--model", "plain", "--data", "t.txt", "--limit", "3")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters(2000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(run: Run, *argv: str) -> Ran:
    ran = run("eval", *ASKED, *argv, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    return ran


# The arithmetic.


def test_the_shape_of_a_llama() -> None:
    shape = Shape.of(random_model())  # 64 wide, 96 inside, 4 heads of 16, 2 for keys; 97 tokens
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3
    assert (shape.active, shape.head, shape.vocabulary) == (2 * layer, 97 * 64, 97)
    assert (shape.hidden, shape.heads, shape.layers, shape.windows) == (64, 64, 2, (None, None))
    assert shape.parameters == 2 * layer + 2 * 97 * 64 + 5 * 64
    assert shape.read(1) == 2 * 2 * layer + 2 * 4 * 64


def test_a_token_meets_the_experts_it_is_sent_to() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, **heads, num_local_experts=8, num_experts_per_tok=2)
    with torch.device("meta"):
        shape = Shape.of(MixtralForCausalLM(config))
    assert shape.active == 4 * 32 * 32 + 8 * 32 + 2 * 3 * 32 * 48


@pytest.mark.parametrize(("tokens", "after"), [(1, 0), (7, 0), (5, 3), (9, 30), (40, 0)])
@pytest.mark.parametrize("window", [None, 1, 4, 16])
def test_pairs_are_counted_one_by_one(tokens: int, after: int, window: int | None) -> None:
    shape = Shape(0, 0, 0, 1, heads=1, windows=(window,), layers=1)
    seen = [range(q + 1)[-window if window else None :] for q in range(after, after + tokens)]
    assert shape.read(tokens, after) == 4 * sum(map(len, seen))


@pytest.mark.parametrize("window", [None, 40, TRAINED])
@pytest.mark.parametrize("name", [n for n in patches.names() if oracle.RELATIVE.get(n)])
def test_pairs_that_a_method_shows_are_counted_one_by_one(name: str, window: int | None) -> None:
    n, shape = 90, Shape(0, 0, 0, 1, heads=1, windows=(window, window), layers=2)
    near = torch.ones(n, n).tril().triu(1 - (window or n)).bool()
    for spec, expected in ROWS[name]:
        seen = near if window == TRAINED else near & oracle.seen(n, expected(n))
        own = shape.under(patches.parse(spec).resolve(Span(TRAINED, n)), TRAINED)
        for after, end in ((0, 1), (0, n), (29, 64), (63, n)):
            assert own.read(end - after, after) == 2 * 4 * int(seen[after:end].sum())


def test_a_forward_after_a_cache_costs_what_it_adds(llama: Any) -> None:
    shape = Shape.of(llama)
    assert shape.read(10) + shape.read(6, after=10) == shape.read(16)


# The command.


def test_the_cells_are_printed_and_nothing_is_computed_or_written(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(loading, "load_model", load)
    before = sorted(here.rglob("*"))
    argv = ("--len", "640,704", "--method", "rerope:window=8", "--task", "ppl,acc,kv:samples=1")
    lines = dry(run, *argv, "--seed", "0,1").records
    assert sorted(here.rglob("*")) == before
    assert [(e["method"], e["length"], e["task"], e["seed"]) for e in lines] == [
        (method, length, task, seed)
        for method in ("rope", "rerope:window=8")
        for length in (640, 704)
        for task, seed in (("ppl", 0), ("acc", 0), ("kv:samples=1", 0), ("kv:samples=1", 1))
    ]
    for line in lines:
        again = line["task"] == "acc"  # which reads what ppl reads
        assert line["state"] == "compute"
        assert (line["shared"], line["tokens"] == 0, line["seconds"] == 0) == (again,) * 3
        assert line["basis"] == (None if again else "measured")
        assert line["memory_bytes"] > 0
        if line["task"] == "ppl":
            assert line["tokens"] == 3 * line["length"]


def test_found_retried_and_forced_cells(run: Run, here: Path) -> None:
    assert run("eval", *ASKED, "--len", "32").code == 0
    (done,) = Path("results").glob("*.json")
    both = ("--len", "32,64")
    assert [e["state"] for e in dry(run, *both).records] == ["found", "compute"]
    assert [e["state"] for e in dry(run, *both, "--force").records] == ["compute"] * 2
    lost = {"status": "error", "reason": "lost", "value": None, "digest": None}
    whole = json.loads(done.read_text()) | lost
    done.write_text(json.dumps(sealed(whole)))
    assert [e["state"] for e in dry(run, *both).records] == ["retry", "compute"]


def test_time_comes_from_records_first(run: Run, here: Path) -> None:
    assert run("eval", *ASKED, "--len", "32").code == 0
    (done,) = Path("results").glob("*.json")
    done.write_text(json.dumps(sealed(json.loads(done.read_text()) | {"tokens_per_second": 4.0})))
    near, far = dry(run, "--len", "32,1k", "--tokens", "3k").records
    assert (near["seconds"], near["basis"]) == (96 / 4, "records")
    assert far["basis"] == "measured"  # 32 times as long
    other = dry(run, "--len", "32", "--method", "rerope:window=8", "--tokens", "200").records[1]
    assert other["basis"] == "measured"


def test_time_goes_by_the_keys_that_a_method_shows(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def kept_too(*given: Any, **options: Any) -> Any:
        counted.extend(works(*given, **options))
        return counted

    monkeypatch.setattr(cells, "works", kept_too)
    asked = ("--method", "streaming:window=8", "--tokens", "1k")
    assert run("eval", *ASKED, "--len", "128", *asked).code == 0
    for done in Path("results").glob("*.json"):
        slow = json.loads(done.read_text()) | {"tokens_per_second": 4.0}
        done.write_text(json.dumps(sealed(slow)))
    lines = dry(run, "--len", "512", *asked).records
    shape = Shape.of(random_model(vocab_size=VOCABULARY))

    def each(n: int, pairs: int) -> float:  # operations of a token, of the keys in both layers
        return (2 * shape.active * n + 2 * 4 * shape.heads * pairs) / n

    plain, kept = ([n * (n + 1) // 2 for n in (128, 512)], [12 * n - 66 for n in (128, 512)])
    for line, (known, more) in zip(lines, (plain, kept), strict=True):
        expected = line["tokens"] / 4 * each(512, more) / each(128, known)
        assert (line["basis"], line["seconds"]) == ("records", pytest.approx(expected))
    hidden = 2 * (plain[1] - kept[1])  # in both windows
    assert counted[0].reading - counted[1].reading == 2 * 4 * shape.heads * hidden


def test_the_table_has_every_cell_and_the_totals(run: Run, here: Path) -> None:
    Path("grid.yaml").write_text(
        "models: plain\nlengths: [32, 64]\nmethods: ntk\ntasks: [ppl, acc]\ndata: t.txt\nlimit: 2\n"
    )
    ran = run("eval", "--grid", "grid.yaml", "--dry-run")
    assert ran.code == 0
    rows = [line for line in ran.out.splitlines() if "compute" in line and "cells" not in line]
    assert len(rows) == 8
    assert sum("shared" in row for row in rows) == 4
    assert ran.out.splitlines()[-1].startswith("8 cells: 8 compute; about ")
    assert not Path("results").exists()


@pytest.mark.parametrize("last", [("--len", "1m"), ("--method", "nope"), ("--out", "t.txt")])
def test_a_dry_run_refuses_what_a_run_refuses(run: Run, here: Path, last: tuple[str, ...]) -> None:
    length = () if "--len" in last else ("--len", "32")
    ran = run("eval", *ASKED, *length, *last, "--dry-run")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert len(ran.err.splitlines()) == 1


def test_a_busy_moment_widens_the_range_and_changes_no_order(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one round of three the machine is a hundred times slower, and a method seems quicker."""
    asked = list[str]()

    def speeds(self: Any, spec: Any, *rest: Any) -> dict[int, probe.Speed]:
        asked.append(str(spec))
        busy = 100.0 if len(asked) <= 2 else 1.0
        quick = 2.0 if str(spec) != "rope" else 1.0
        return {64: probe.Speed(1e9 * quick / busy, 1e-3 * busy / quick)}

    monkeypatch.setattr(probe.Probe, "speeds", speeds)
    lines = dry(run, "--len", "64", "--method", "rerope:window=8", "--task", "ppl").records
    assert asked == ["rope", "rerope:window=8"] * cells.ROUNDS
    rope, rerope = lines
    assert [line["basis"] for line in lines] == ["measured"] * 2
    assert rope["seconds"] > 0
    for end in ("seconds", "seconds_at_most"):
        assert rerope[end] == pytest.approx(rope[end])
    assert rope["seconds_at_most"] == pytest.approx(100 * rope["seconds"])


def test_a_range_is_told_where_there_is_one() -> None:
    assert table._range(19.0, None) == table._range(19.0, 19.2) == "19 s"
    assert table._range(19.0, 25.0) == "19 s to 25 s"


def test_a_model_without_a_tokenizer_is_refused_beside_others(run: Run, here: Path) -> None:
    save_model(here / "bare")
    for path in (here / "bare").glob("*token*"):
        path.unlink()
    (here / "g.yaml").write_text(
        "models: [plain, bare]\nlengths: 64\ntasks: acc\ndata: t.txt\nlimit: 1\n"
    )
    ran = run("eval", "--grid", "g.yaml", "--dry-run", "--json")
    assert ran.code == 0
    assert [one["state"] for one in ran.records] == ["compute", "refused"]
    assert "bare" in ran.records[1]["reason"]
