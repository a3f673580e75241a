"""What `ctxext bench` measures and keeps; no test asserts a time."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import io
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import random_model
from rich.console import Console
from test_eval import Ran, Run, kept, tables
from test_results import HOSTILE
from test_results import make as make_score
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ctxext import report
from ctxext.engine.patch import HANDLE
from ctxext.errors import CtxextError
from ctxext.measure import bench, memory
from ctxext.measure.bench import timed
from ctxext.measure.bench.record import interval
from ctxext.measure.bench.timed import Case, Generation, Timing
from ctxext.models import loading
from ctxext.models.calls import cache_name
from ctxext.records import MEASURES, Store, problem_with, sealed
from ctxext.report import cost, speed
from ctxext.request.lists import parse_methods

QUICK = {"--model": "tiny", "--len": "64", "--pairs": "6", "--decode-tokens": "2"}
SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `small`, a model folder that has nothing but a config.json."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(SMALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def measured(run: Run, *more: object, json: bool = True, **instead: object) -> Ran:
    """A bench of tiny, or of what is given `instead`; as JSON, into `results`."""
    given = {**QUICK, **{f"--{key.replace('_', '-')}": value for key, value in instead.items()}}
    flat = [item for pair in given.items() for item in pair]
    return run("bench", *(["--json"] if json else []), *flat, *more)


def small(run: Run, *more: object, **instead: object) -> Ran:
    """A bench of the random model that `small` describes."""
    settings = {"model": "small", "len": 32, "pairs": 2, "decode_tokens": 1}
    return measured(run, "--random-weights", *more, **settings | instead)


def spec_on(model: Any) -> str:
    """The method that is on the model, `rope` where it is unpatched."""
    on = [m.__dict__[HANDLE].spec for m in model.modules() if HANDLE in m.__dict__]
    return str(on[0]) if on else "rope"


def watched(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[str, int], None] = lambda spec, run: None
) -> list[str]:
    """Grows by the method that is on at each run; `act` may raise, told the runs before it."""
    runs: list[str] = []
    real = Case.run

    def watch(case: Case, model: Any, *more: Any) -> Timing:
        spec = spec_on(model).partition(":")[0]
        act(spec, len(runs))
        runs.append(spec)
        return real(case, model, *more)

    monkeypatch.setattr(Case, "run", watch)
    return runs


# The interval.


@pytest.mark.parametrize("n", range(2, 40))
def test_the_interval_is_the_narrowest_that_covers_the_median(n: int) -> None:
    def covers(rank: int) -> float:
        """The chance that the median lies between the rank-th smallest and largest value."""
        return sum(math.comb(n, below) for below in range(rank, n - rank + 1)) / 2**n

    ranks = [rank for rank in range(1, n // 2 + 1) if covers(rank) >= 0.95]
    values = [float(rank) for rank in range(1, n + 1)]
    found = interval(values[::-1])
    assert found == ((max(ranks), n + 1 - max(ranks)) if ranks else None)
    assert (found is None) == (n < 6)


def test_the_interval_of_15_has_ranks_4_and_12() -> None:
    assert interval([float(rank) for rank in range(1, 16)]) == (4, 12)


@pytest.mark.parametrize("n", [6, 9, 12])
def test_the_coverage_is_counted_over_every_outcome(n: int) -> None:
    """Each value is above or below the median with equal chance: all 2^n ways, one by one."""
    inside = 0
    for signs in itertools.product((-1.0, 1.0), repeat=n):
        low, high = interval(signs) or (math.nan, math.nan)
        inside += low < 0 < high
    assert inside / 2**n >= 0.95


# Records.


def test_records_have_what_was_measured_and_how(run: Run) -> None:
    ran = measured(run, "--method", "rerope", "--method", "logn", "--seed", 3)
    assert ran.code == 0
    assert [r["requested"] for r in ran.records] == ["rope", "rerope", "logn"]
    rope, *others = ran.records
    assert len(kept()) == 3
    for record in ran.records:
        assert problem_with(record) is None
        assert (record["task"], record["metric"]) == ("bench", "prefill_seconds")
        assert (record["status"], record["n"]) == ("ok", 12 if record["requested"] == "rope" else 6)
        assert record["value"] == record["prefill_seconds"] > 0
        assert record["tokens_per_second"] == pytest.approx(64 / record["value"])
        assert record["baseline_attention"] == "sdpa"
        assert (record["threads"], record["seed"]) == (torch.get_num_threads(), 3)
        assert record["data"]["tokens"] == 64
        assert record["peak_memory_bytes"] > 4 * 2**20  # the weights alone
        for name in MEASURES[:2]:
            seconds = [pair[-1] for pair in record["pairs"][name]]
            assert len(seconds) == record["n"]
            assert record[name] == statistics.median(seconds)
    assert {r["data"]["sha256"] for r in ran.records} == {rope["data"]["sha256"]}
    for record in others:
        for name in MEASURES[:2]:
            ratios = sorted(b / a for a, b in record["pairs"][name])
            assert record["ratio"][name]["median"] == statistics.median(ratios)
            assert [record["ratio"][name][end] for end in ("low", "high")] == ratios[
                :: len(ratios) - 1
            ]
        share = record["peak_memory_bytes"] / rope["peak_memory_bytes"]
        assert set(record["ratio"]["peak_memory_bytes"].values()) == {share}
    beside = [pair[:1] for r in others for pair in r["pairs"]["prefill_seconds"]]
    assert beside == rope["pairs"]["prefill_seconds"]
    assert {x for spread in rope["ratio"].values() for x in spread.values()} == {1.0}


def test_pairs_run_side_by_side_and_take_turns_at_being_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = watched(monkeypatch)
    small(run, "--method", "ntk", "--method", "logn", pairs=3)
    order = ["rope", "{0}", "{0}", "{0}", "rope", "rope", "{0}"]  # the first of it is its warm-up
    warm_up, paired = runs[:1], runs[1:]
    pair = ["{0}", "rope", "{0}", "{0}", "rope", "rope", "{0}"]
    assert warm_up == order[:1]
    assert paired == [text.format(name) for name in ("ntk", "logn") for text in pair]


def test_too_few_pairs_have_no_interval(run: Run) -> None:
    ran = small(run, "--method", "ntk", pairs=5)
    spread = ran.records[1]["ratio"]["prefill_seconds"]
    assert spread["median"] > 0
    assert (spread["low"], spread["high"]) == (None, None)


def test_the_unpatched_model_alone(run: Run) -> None:
    (record,) = small(run, len="16,16").records
    assert (record["requested"], record["n"], record["length"]) == ("rope", 2, 16)


def test_each_length_and_path_is_a_cell_but_paths_that_come_to_the_same_are_one(run: Run) -> None:
    ran = small(
        run, "--method", "rerope:window=8", "--method", "ntk", "--attn", "sdpa,eager",
        "--attn", "auto", len="16,32",
    )  # fmt: skip
    cells = [(r["requested"], r["length"], r["attention"]) for r in ran.records]
    assert cells == [
        (method, length, path)
        for length in (16, 32)
        for method, path in [
            ("rope", "sdpa"),
            ("rerope:window=8", "sdpa"),
            ("rerope:window=8", "eager"),
            ("ntk", "sdpa"),
        ]
    ]
    assert len(kept()) == 8


def test_a_bench_is_always_measured_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = watched(monkeypatch)
    first = small(run, "--method", "ntk").records
    before = kept()
    second = small(run, "--method", "ntk").records
    assert len(runs) == 2 * (2 + 2 * 2)
    assert [r["key"] for r in first] == [r["key"] for r in second]
    assert all(b["created"] > a["created"] for a, b in zip(first, second, strict=True))
    assert kept().keys() == before.keys()
    assert all(kept()[name] != before[name] for name in before)
    small(run, "--method", "ntk", pairs=3)
    assert len(kept()) == 4


def test_a_run_reads_the_prompt_and_then_tokens_from_its_cache() -> None:
    model = random_model()
    seen: list[tuple[tuple[int, ...], int]] = []

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs[cache_name(model)]
        seen.append((tuple(kwargs["input_ids"].shape), cache.get_seq_length() if cache else 0))
        assert kwargs["logits_to_keep"] == 1
        assert not torch.is_grad_enabled()

    model.register_forward_pre_hook(look, with_kwargs=True)
    timing = Case().run(model, torch.zeros(2, 20, dtype=torch.long), 3)
    assert seen == [((2, 20), 0), ((2, 1), 20), ((2, 1), 21), ((2, 1), 22)]
    assert min(timing) > 0  # type: ignore[type-var]


def test_the_model_and_the_process_are_left_as_they_were(run: Run) -> None:
    """Nothing of the measuring stays: no hook, no frozen garbage, no random state, no thread."""
    state = (torch.get_rng_state().tolist(), torch.get_num_threads(), gc.get_freeze_count())
    ran = small(run, "--method", "rerope:window=8")
    assert ran.code == 0
    assert (torch.get_rng_state().tolist(), torch.get_num_threads(), gc.get_freeze_count()) == state
    model = random_model()
    memory.allocated_peak(model, lambda: model(torch.zeros(1, 8, dtype=torch.long)))
    assert not any(m._forward_pre_hooks for m in model.modules())


# Cases.

CASE = {"case": "steps", "method": "rerope:window=8", "batch_size": 2, "decode_tokens": 3}


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int, dict[str, Any]]]:
    """Grows by the method, the cache, how much it holds, and what is given of each forward."""
    seen: list[tuple[str, str, int, dict[str, Any]]] = []
    real = Generation.__call__

    def look(self: Generation) -> None:
        cache = self._cache
        held = 0 if cache is None else cache.get_seq_length()
        given = {"mask": self._mask, "positions": self._positions, "ids": self._ids}
        seen.append((spec_on(self._model), type(cache).__name__, held, given))
        real(self)

    monkeypatch.setattr(Generation, "__call__", look)
    return seen


def test_a_case_is_a_record_and_a_table_of_its_own(run: Run) -> None:
    made = {case: small(run, **CASE | {"case": case}) for case in timed.CASES}
    for case, ran in made.items():
        assert ran.code == 0
        alone = case == "steps"
        assert [r["requested"] for r in ran.records] == ["rope", "rerope:window=8"]
        for record in ran.records:
            prefill, decode, memory = (record[name] for name in MEASURES)
            assert problem_with(record) is None
            assert record.get("case") == (None if case == "model" else case)
            assert (prefill is None) == (memory is None) == (case not in ("model", "packed"))
            assert (decode is None) == (case == "packed")
            assert record["value"] == record[record["metric"]] == (prefill or decode)
            patched = alone or record["requested"] != "rope"
            assert (record.get("patch_seconds", 0) > 0) == patched
            assert len(record["pairs"][record["metric"]][0]) == (2 if patched else 1)
    assert len({r["key"] for ran in made.values() for r in ran.records}) == 2 * len(made)
    shown = run("report", "--format", "md").out
    titles = [line for line in shown.splitlines() if line.startswith("###")]
    assert sorted(title.rpartition(" · ")[2] for title in titles) == sorted(
        ["float32", *(case for case in timed.CASES if case != "model")]
    )
    assert shown.count("seconds that the patch takes: rerope:window=8 ") == len(made)


def test_garbled_values_of_a_case() -> None:
    good = make("ntk", metric=MEASURES[1], value=0.01, prefill_seconds=None, case="steps")
    assert problem_with(good) is None
    for bad in ({"decode_seconds_per_token": None}, {"case": 1}, {"patch_seconds": -1}):
        assert problem_with({**good, **bad})


def test_steps_go_on_from_caches_that_are_full(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the unpatched model that others are compared with are transformers' own."""
    seen = forwards(monkeypatch)
    small(run, **CASE)
    assert [held for _, _, held, _ in seen] == [0, 32, 33, 34, 35] * (len(seen) // 5)
    plain = [("rope", "DynamicCache")] * 4
    rows = [(spec.partition(":")[0], cache) for spec, cache, *_ in seen[::5]]
    rope, rerope = ("rope", "GrowingCache"), ("rerope", "GrowingCache")
    pairs = [(rows[i], rows[i + 1]) for i in (2, 4, 7, 9)]
    assert rows[0] == plain[0]
    assert [set(pair) for pair in pairs] == [{plain[0], rope}] * 2 + [{plain[0], rerope}] * 2


def test_steps_cannot_be_timed_where_keys_are_dropped(run: Run, here: Path) -> None:
    config = {**SMALL, "model_type": "mistral", "sliding_window": 8}
    config["architectures"] = ["MistralForCausalLM"]
    (here / "small" / "config.json").write_text(json.dumps(config))
    ran = small(run, **CASE | {"method": "ntk"})
    assert ran.code == 1
    assert {r["status"] for r in ran.records} == {"error"}
    assert "its cache drops keys" in ran.err


def test_attention_is_timed_layer_by_layer_and_left_as_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, real = list[int](), timed._attention_timed

    @contextlib.contextmanager
    def count(model: Any) -> Iterator[list[float]]:
        with real(model) as calls:
            yield calls
        counts.append(len(calls))

    monkeypatch.setattr(timed, "_attention_timed", count)
    seen, own = forwards(monkeypatch), ALL_ATTENTION_FUNCTIONS["sdpa"]
    small(run, **CASE | {"case": "attention"})
    assert {cache for _, cache, *_ in seen} == {"GrowingCache"}
    assert set(counts) == {SMALL["num_hidden_layers"]}
    assert len(counts) == 3 * len(seen) // 5
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_padded_and_packed_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = forwards(monkeypatch)
    small(run, **CASE | {"case": "padded", "batch_size": 3})
    masks = [given["mask"].sum(1).tolist() for *_, given in seen[-5:]]
    assert masks == [[4, 0, 0], *([33 + i, 25 + i, 17 + i] for i in range(4))]
    assert {cache for _, cache, *_ in seen} == {"GrowingCache"}
    seen.clear()
    small(run, **CASE | {"case": "packed"})
    assert {given["ids"].shape for *_, given in seen} == {(2, 32)}
    assert all(given["positions"].tolist() == [[0, 1, 2, 3] * 8] * 2 for *_, given in seen)
    ran = small(run, **CASE | {"case": "packed", "len": 30})
    assert (ran.code, ran.out) == (2, "")
    assert "that 8 sequences divide" in ran.err


# Memory.


class Layered(nn.Module):
    """Three weights of 256 × 256, one of them twice, and a buffer of 1000 numbers; float32."""

    device = torch.device("cpu")
    held = (3 * 256 * 256 + 1000) * 4

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 256, bias=False) for _ in range(3)])
        self.tied = self.layers[0]
        self.register_buffer("table", torch.zeros(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_memory_is_counted_to_the_byte() -> None:
    model = Layered()

    def call() -> None:
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(3 << 20, dtype=torch.uint8)
        del first
        third = torch.empty(1 << 19, dtype=torch.uint8)
        del second, third

    assert memory.allocated_peak(model, call) == Layered.held + (4 << 20)
    assert memory.allocated_peak(model, lambda: None) == Layered.held


def test_memory_is_counted_on_from_layer_to_layer() -> None:
    """The profiler stops at each layer; at the last, x, its input and its output are alive."""
    model = Layered()

    def call() -> None:
        with torch.inference_mode():
            x = torch.empty(1000, 256)
            model(x)

    assert memory.allocated_peak(model, call) == Layered.held + 3 * 1000 * 256 * 4


def test_memory_is_counted_where_the_call_fails() -> None:
    model = Layered()

    def call() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        memory.allocated_peak(model, call)
    assert memory.allocated_peak(model, lambda: None) == Layered.held


def test_a_cache_is_part_of_a_prefills_memory() -> None:
    """Keys and values of 2 layers, 2 heads of 16: 512 bytes a token; the rest grows as well."""
    model = random_model()
    peaks = []
    for length in (64, 128):
        ids = torch.zeros(1, length, dtype=torch.long)
        peaks.append(memory.allocated_peak(model, lambda ids=ids: Generation(model, ids)()))
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert peaks[0] > weights + 64 * 512
    assert peaks[1] - peaks[0] >= 64 * 512


@pytest.mark.skipif(memory.resident_peak() is None, reason="no /proc")
def test_the_resident_peak_is_of_what_came_since_the_reset() -> None:
    memory.release()
    memory.reset_resident_peak()
    before = memory.resident_peak()
    torch.ones(1 << 26, dtype=torch.uint8)
    after = memory.resident_peak()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(1 << 26, rel=0.1)


# Random weights.


def test_random_weights_need_nothing_but_a_config(run: Run) -> None:
    ran = small(run, "--method", "rerope:window=8", "--dtype", "bfloat16", "--batch-size", 2)
    assert ran.code == 0
    for record in ran.records:
        assert (record["random_weights"], record["dtype"]) == (True, "bfloat16")
        assert (record["windows"], record["batch_size"], record["data"]["tokens"]) == (2, 2, 64)
        assert record["trained_length"] == 32
    without = measured(run, model="small")
    assert without.code == 2
    assert "'small'" in without.err


def test_random_weights_are_those_of_the_seed(here: Path) -> None:
    source = loading.Source("small")
    first, second, other = (timed.random_model(source, seed) for seed in (0, 0, 1))
    assert not first.training
    assert first.config._attn_implementation == "sdpa"
    weights = [model.lm_head.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_random_and_trained_weights_are_told_apart(run: Run) -> None:
    random_model().save_pretrained("plain")
    trained = small(run, model="plain").records[0]["key"]
    settings = {"model": "plain", "len": 32, "pairs": 2, "decode_tokens": 1}
    assert measured(run, **settings).records[0]["key"] != trained


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "no-such"}, "no-such"),
        ({"model_type": "t5"}, "cannot be built"),
        ({"num_attention_heads": 0}, "'small'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings cannot be 0"),
    ],
)
def test_a_config_that_is_no_causal_model_is_one_line(
    run: Run, changes: dict[str, Any], words: str
) -> None:
    Path("small/config.json").write_text(json.dumps(SMALL | changes))
    ran = small(run)
    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out, kept()) == (2, "", {})
    assert words in line


# Failures.


def test_a_method_that_runs_out_of_memory_leaves_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: str, number: int) -> None:
        if spec == "logn":
            raise torch.OutOfMemoryError("no\nroom")

    watched(monkeypatch, fail)
    ran = small(run, "--method", "logn", "--method", "ntk")
    rope, logn, ntk = ran.records
    assert ran.code == 1
    assert (rope["status"], logn["status"], ntk["status"]) == ("ok", "oom", "ok")
    assert [logn[name] for name in ("value", "ratio", "pairs", *MEASURES)] == [None] * 6
    assert "no room" in logn["reason"]
    assert "no room" in ran.err.splitlines()[-1]
    assert problem_with(logn) is None
    assert len(kept()) == 3
    (row,) = [row for row in tables(run("report")) if row[1] == "logn"]
    assert row == ["32", "logn", "sdpa", "oom", *["–"] * 7]


@pytest.mark.parametrize("method", [[], ["--method", "logn"]])
def test_no_room_for_the_tokens_is_a_failed_cell(
    run: Run, monkeypatch: pytest.MonkeyPatch, method: list[str]
) -> None:
    def draw(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "randint", draw)
    ran = small(run, *method)
    assert ran.code == 1
    assert [record["status"] for record in ran.records] == ["oom"] * (1 + len(method) // 2)
    assert [problem_with(record) for record in ran.records] == [None] * len(ran.records)


@pytest.mark.parametrize("changed", [{"num_key_value_heads": 3}, {"vocab_size": 0}])
@pytest.mark.parametrize("method", [[], ["--method", "logn"], ["--method", "rerope:window=8"]])
def test_a_model_that_cannot_run_is_one_line(
    run: Run, here: Path, changed: dict[str, int], method: list[str]
) -> None:
    config = random_model().config
    config.update({"num_hidden_layers": 1, "pad_token_id": None, **changed})
    config.save_pretrained(here / "broken")
    ran = run("bench", "--model", "./broken", "--random-weights", "--len", "32", *method)
    assert ran.code in (1, 2)
    assert "Traceback" not in ran.err
    assert len([line for line in ran.err.splitlines() if "rror: " in line]) == 1


def test_a_method_that_does_not_fit_is_a_failed_cell_beside_others(run: Run) -> None:
    fit = "ntk:factor=2"
    ran = small(run, "--method", "longrope", "--method", fit)
    assert ran.code == 1
    found = {record["requested"]: record["status"] for record in ran.records}
    assert found == {"rope": "ok", "longrope": "error", fit: "ok"}
    ran = small(run, "--method", "longrope", "--out", "none")
    assert (ran.code, ran.out) == (2, "")
    assert not list(Path("none").glob("*.json"))


def test_methods_that_come_to_the_same_are_measured_once_and_named(run: Run) -> None:
    ran = small(run, "--method", "ntk:factor=1", "--method", "ntk")
    assert [record["requested"] for record in ran.records] == ["rope", "ntk:factor=1"]
    assert "ntk at 32 is ntk:factor=1: measured once" in ran.err


def test_what_was_measured_is_printed_though_it_cannot_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: Any, record: Any) -> None:
        raise CtxextError("cannot write")

    monkeypatch.setattr("ctxext.records.Store.write", write)
    ran = small(run, "--method", "logn")
    assert ran.code == 1
    assert [record["requested"] for record in ran.records] == ["logn"]
    assert ran.err.splitlines()[-1] == "error: cannot write"


def test_the_unpatched_model_is_measured_where_all_methods_fail(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: str, number: int) -> None:
        if spec != "rope":
            raise RuntimeError("boom")

    watched(monkeypatch, fail)
    rope, ntk = small(run, "--method", "ntk").records
    assert (rope["status"], rope["n"], ntk["status"]) == ("ok", 2, "error")
    assert ntk["reason"] == "RuntimeError: boom"


def test_without_the_unpatched_model_there_is_no_ratio(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: str, number: int) -> None:
        if spec == "rope":
            raise MemoryError("no room")

    watched(monkeypatch, fail)
    ran = small(run, "--method", "ntk", "--method", "logn")
    assert ran.code == 1
    assert [r["status"] for r in ran.records] == ["oom"] * 3
    assert ran.records[0]["reason"] == "MemoryError: no room"
    assert ran.records[1]["reason"] == "the unpatched model failed: MemoryError: no room"


def test_a_failure_does_not_take_the_place_of_a_finished_record(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(run, "--method", "ntk")
    before = kept()

    def fail(spec: str, number: int) -> None:
        raise MemoryError

    watched(monkeypatch, fail)
    assert small(run, "--method", "ntk").code == 1
    assert kept() == before


def test_an_interrupt_keeps_what_is_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(spec: str, number: int) -> None:
        if spec == "logn" and number > 7:
            raise KeyboardInterrupt

    watched(monkeypatch, stop)
    ran = small(run, "--method", "ntk", "--method", "logn")
    assert ran.code == 130
    assert [r["requested"] for r in ran.records] == ["rope", "ntk"]
    assert len(kept()) == 2
    assert "begins anew" in ran.err.splitlines()[-1]
    monkeypatch.setattr(Case, "run", lambda *args: stop("logn", 9))
    ran = small(run, "--method", "ntk", "--out", "other")
    assert (ran.code, ran.out, kept(Path("other"))) == (130, "", {})


BAD = {
    ("--method", "rerop"): ("'rerop'", "did you mean 'rerope'"),
    ("--method", "yarn:beta_fast=1e308"): ("beta_fast",),
    ("--len", "0"): ("'0'",),
    ("--len", "1"): ("length 1",),
    ("--attn", "flahs"): ("'flahs'", "did you mean 'flash'"),
    ("--attn", "auto,"): ("''",),
    ("--attn", "auto,flash"): ("'flash' cannot run", "CUDA"),
    ("--attn", "triton"): ("unknown attention path 'triton'", "valid: auto, eager, flash, sdpa"),
    ("--case", "pads"): ("unknown case 'pads'", "did you mean 'padded'"),
    ("--case", "padded"): ("--batch-size of 2",),
    ("--pairs", "1"): ("--pairs", "give 2"),
    ("--pairs", "-3"): ("--pairs", "-3"),
    ("--decode-tokens", "0"): ("--decode-tokens", "0"),
    ("--batch-size", "0"): ("--batch-size", "0"),
    ("--seed", "-1"): ("--seed", "-1"),
    ("--dtype", "fp16"): ("'fp16'", "float16"),
    ("--device", "gpu"): ("'gpu'",),
    ("--model", "nope"): ("'nope'",),
    ("--train-len", "x"): ("'x'",),
    ("--out", "small/config.json"): ("config.json",),
    ("--par", "3"): ("--par", "--pairs"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash may run")
@pytest.mark.parametrize(
    ("option", "value", "words"), [(*given, words) for given, words in BAD.items()]
)
def test_a_bad_argument_is_one_line(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(Case, "run", lambda *args: pytest.fail("measured"))
    ran = small(run, "--method", "rerope:window=8", option, value)
    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not Path("results").exists() or not kept()


def test_a_length_is_needed(run: Run) -> None:
    assert run("bench", "--model", "small").code == 2


# The unpatched model's path.


@pytest.mark.parametrize(
    ("dtype", "there", "seconds", "best"),
    [
        ("bfloat16", True, {"sdpa": 2.0, "flash_attention_2": 1.0}, "flash_attention_2"),
        ("bfloat16", True, {"sdpa": 1.0, "flash_attention_2": 2.0}, "sdpa"),
        ("bfloat16", True, {"sdpa": 1.0}, "sdpa"),
        ("bfloat16", False, {"flash_attention_2": 1.0}, "sdpa"),
        ("float32", True, {"flash_attention_2": 1.0}, "sdpa"),
    ],
)
def test_on_cuda_the_quicker_path_is_the_baseline(
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    there: bool,
    seconds: dict[str, float],
    best: str,
) -> None:
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: there)
    config = SimpleNamespace(_attn_implementation="sdpa")
    work = bench.Bench(bench.BenchRequest(loading.Source("small"), parse_methods([]), (32,)))
    work.source = loading.Source("small", dtype=dtype, attn="sdpa")
    work.model = SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        config=config,
        set_attn_implementation=lambda path: setattr(config, "_attn_implementation", path),
    )
    monkeypatch.setattr(
        work, "_measure", lambda ids, plain: Timing(seconds[config._attn_implementation], 0.0)
    )
    assert work._quickest(None) == best
    assert config._attn_implementation == best


# Tables.


def spread(median: float, width: float = 0.02) -> dict[str, float | None]:
    return {"median": median, "low": median - width, "high": median + width}


def make(requested: str = "rope", **changed: Any) -> dict[str, Any]:
    """A sound bench record."""
    ratio = {name: spread(1.05) for name in MEASURES[:2]}
    ratio["peak_memory_bytes"] = dict.fromkeys(("median", "low", "high"), 1.25)
    pairs = [[0.4, 0.5]] * 15
    return make_score(
        **{
            "requested": requested, "method": requested, "task": "bench", "value": 0.5, "n": 15,
            "metric": "prefill_seconds", "prefill_seconds": 0.5, "stderr": None, "windows": 1,
            "decode_seconds_per_token": 0.01, "peak_memory_bytes": 3 << 30, "buckets": [],
            "peak_resident_bytes": None, "ratio": ratio, "baseline_attention": "sdpa",
            "pairs": {"prefill_seconds": pairs, "decode_seconds_per_token": pairs},
            "attention": "sdpa", "random_weights": False, "batch_size": 1, "decode_tokens": 8,
            "threads": 1, "notes": [],
        } | changed
    )  # fmt: skip


def lost(requested: str, **changed: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("value", *MEASURES, "ratio", "pairs"))
    return make(requested, **nothing | {"n": 0, "status": "oom", "reason": "no room"} | changed)


def test_the_table_has_each_method_and_path_beside_the_unpatched_model(run: Run) -> None:
    asked = ("--method", "rerope", "--method", "logn")
    ran = measured(run, *asked, json=False)
    assert ran.code == 0
    named = [row for row in tables(ran) if row[0] == "64"]
    assert [row[:3] for row in named] == [
        ["64", "rope", "sdpa"],
        ["64", "rerope", "sdpa"],
        ["64", "logn", "sdpa"],
    ]
    assert named[0][5] == named[0][8] == named[0][10] == "1.00"
    assert named[0][4] == named[0][7] == "–"
    lines = ran.err.splitlines()
    assert lines.pop(0) == "tiny: trained length 512, from max_position_embeddings"
    assert lines[0] == "3 cells"
    assert [line.split()[1] for line in lines[1:]] == ["rerope", "logn", "rope"]
    shown = run("report")
    assert sorted(shown.out.splitlines()) == sorted(ran.out.splitlines())


def test_a_row_of_the_table() -> None:
    (table,) = speed.build([make("ntk"), make("rope"), lost("rerope", length=128)])
    text = speed.to_markdown(table)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:7]]
    assert rows[0] == list(speed.HEADER)
    ratio = r"1.05 \[1.03, 1.07\]"
    times = ["0.500", "0.400", ratio, "10.0", "400", ratio]
    assert rows[3] == ["64", "ntk", "sdpa", *times, "3.00 GiB", "1.25"]
    assert rows[4] == ["128", "rerope", "sdpa", "oom", *["–"] * 7]
    assert "median of 15 pairs and its 95% interval;" in table.caption


def test_records_of_older_versions_and_what_is_not_shared_are_told() -> None:
    old = make("ntk", version_of={"the engine": 1})
    new = [make(m, version_of={"the engine": 2}) for m in ("rope", "pi")]
    (table,) = speed.build([old, *new, make("yarn", versions={"torch": "2.99"})])
    assert [record["requested"] for record in table.records] == ["rope", "pi"]
    assert "Left out: 2 records of an older version" in table.caption
    (table,) = speed.build([make("rope"), make("yarn", versions={"torch": "2.99"})])
    assert "2.99" in table.caption


def test_the_caption_speaks_of_what_is_there() -> None:
    bare: dict[str, Any] = {name: spread(1.05) | {"low": None, "high": None} for name in MEASURES}
    few = make("ntk", n=2, ratio=bare)
    (table,) = speed.build([make("rope"), few])
    assert "median of 2 pairs;" in table.caption
    (table,) = speed.build([make("rope"), few, make("pi")])
    assert "median of 2–15 pairs, in brackets its 95% interval;" in table.caption
    (table,) = speed.build([make("rope")])
    assert "pairs" not in table.caption
    (table,) = speed.build([make("rope"), make("ntk", ratio=dict.fromkeys(MEASURES))])
    assert "median of 15 pairs;" in table.caption


@pytest.mark.parametrize("width", [20, 100, 300])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    (table,) = speed.build([make("rope"), make("ntk:factor=8+logn"), make("模型\x1b[31m")])
    console = Console(file=io.StringIO(), width=width)
    console.print(speed.to_rich(table, width), crop=False)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in out
    assert "\x1b" not in out
    for word in ("ntk:factor=8+logn", "[1.03, 1.07]", "3.00 GiB", "模型?[31m"):
        assert word in out


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0000"), (0.00123, "0.0012"), (0.0123, "0.0123"), (0.5, "0.500"), (12.345, "12.3"),
     (123.45, "123"), (99999.0, "99999"), (1.5e30, "1.5e+30")],
)  # fmt: skip
def test_numbers_are_short_at_every_size(value: float, shown: str) -> None:
    assert cost.short(value) == shown


def test_the_newest_finished_record_of_a_method_and_path_is_shown() -> None:
    old, new = make("ntk", created="2026-01-01"), make("ntk", created="2026-02-01", value=0.7)
    new["prefill_seconds"] = 0.7
    failed = lost("ntk", created="2026-03-01")
    other = make("ntk", attention="eager")
    (table,) = speed.build([new, failed, old, other])
    assert table.records == (other, new)
    (table,) = speed.build([failed])
    assert table.records == (failed,)


def test_machines_models_and_settings_have_tables_of_their_own() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"device": "cuda (X)"}, {"dtype": "bfloat16"}, {"batch_size": 2}, {"model": "other"},
        {"random_weights": True}, {"decode_tokens": 1}, {"model_sha256": None}, {"seed": 5},
    ]  # fmt: skip
    built = speed.build([make(**change) for change in changes])
    assert len(built) == len(changes) == len({table.title for table in built})


def test_scores_and_their_plots_are_the_same_beside_bench_records(here: Path) -> None:
    scores = [make_score(requested="rope"), make_score(requested="ntk")]
    both = [*scores, make("rope"), make("ntk"), lost("pi")]
    alone, mixed = report.render(scores), report.render(both)
    assert mixed.startswith(alone)
    assert mixed[len(alone) :].count("### ") == 1
    for folder, records in (("a", scores), ("b", both), ("c", both[2:])):
        Path(folder).mkdir()
        report.write_files(folder, records)
    assert kept(Path("a")).keys() == kept(Path("b")).keys()
    pictures = [{n: b for n, b in kept(Path(f)).items() if n.endswith("png")} for f in "ab"]
    assert pictures[0] == pictures[1] != {}
    assert list(kept(Path("c"))) == ["tables.md"]


def test_one_csv_has_both_kinds() -> None:
    score, fast, failed = make_score(), make("ntk"), lost("pi")
    plain = report.render([score], "csv").splitlines()
    lines = report.render([score, fast, failed], "csv").splitlines()
    assert lines[0].startswith(plain[0] + ",")
    assert lines[1].rstrip(",") == plain[1].rstrip(",")
    rows = list(csv.DictReader(lines))
    assert [row["metric"] for row in rows] == ["perplexity", *MEASURES, *MEASURES]
    assert rows[1]["value"] == "0.5"
    shown = [rows[1][name] for name in ("attention", "device", *speed.CSV)]
    assert shown == ["sdpa", "cpu", "1", "1.05", "1.03", "1.07"]
    assert [(row["status"], row["value"], row["ratio"]) for row in rows[4:]] == [
        ("oom", "", "")
    ] * 3


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_harmless(name: str) -> None:
    records = [sealed(make(name, model=name, device=name, attention=name, dtype=name))]
    text = report.render(records)
    assert "<script>" not in text
    assert len(report.render(records, "csv").splitlines()) == 4
    console = Console(file=io.StringIO(), width=100)
    for table in report.to_rich(records, width=100):
        console.print(table, crop=False)
    assert "\0" not in console.file.getvalue()  # type: ignore[attr-defined]


# Records that are not sound.


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        inner = record
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]

    return edit


def having(value: object, *names: str) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        inner = record
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value

    return edit


FIELDS = (
    *("ratio", "pairs", "baseline_attention", "threads", "batch_size", "decode_tokens", "notes"),
    *("random_weights", "peak_resident_bytes", *MEASURES, "attention", "device"),
)
UNSOUND = [
    *(without(name) for name in FIELDS),
    *(without("ratio", name) for name in MEASURES),
    *(without("pairs", name) for name in MEASURES[:2]),
    *(having(None, name) for name in ("ratio", "pairs", "value", "prefill_seconds", "n")),
    *(having(bad, "ratio", "prefill_seconds") for bad in (1.0, [], "x", {}, {"median": "1"})),
    *(having(bad, "ratio", "prefill_seconds", "low") for bad in (None, "x", -1, 1.06, True)),
    having(1.04, "ratio", "prefill_seconds", "high"),
    having(0, "ratio", "prefill_seconds", "median"),
    *(
        having(bad, "pairs", "prefill_seconds")
        for bad in (None, 1, [1], [[]], [["x", 1]], [[0, 1]])
    ),
    *(having(bad, "pairs") for bad in ([], "x", 1)),
    *(having(bad, "prefill_seconds") for bad in (0, -1, "1", True, math.inf, math.nan, 10**400)),
    having("perplexity", "metric"),
    having("no", "random_weights"),
    having(0, "threads"),
    having([1], "notes"),
    having("x", "notes"),
    having(1, "baseline_attention"),
]


@pytest.mark.parametrize("edit", UNSOUND, ids=range(len(UNSOUND)))
def test_a_garbled_record_is_set_aside(run: Run, edit: Callable[[dict[str, Any]], None]) -> None:
    good, bad = make("rope"), copy.deepcopy(make("ntk", key="0" * 64))
    edit(bad)
    assert problem_with(good) is None
    assert problem_with(lost("ntk")) is None
    assert problem_with(bad)
    path = Store("results").write(good) if Path("results").mkdir() is None else None
    assert path is not None
    Path("results/bad.json").write_text(json.dumps(bad))
    ran = run("report")
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if line.startswith("skipped: bad.json")]
    assert "rope" in ran.out
    assert "ntk" not in ran.out


def test_a_record_edited_by_hand_is_set_aside(run: Run) -> None:
    ran = small(run, "--method", "ntk")
    (path,) = Path("results").glob("*--ntk--*")
    path.write_text(path.read_text().replace('"n": 2', '"n": 3'))
    shown = run("report")
    assert (ran.code, shown.code) == (0, 0)
    assert "edited by hand" in shown.err
