"""What `ctxext eval` measures and keeps: the numbers, against plain forwards, and the records.

Tolerances: 1e-5 relative for perplexities against a float64 log-softmax over full float32 logits
(1e-7 is what is seen); accuracies and counts are exact.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import math
import os
import random
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import conftest
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import TRAINED, random_model

import ctxext
from ctxext.cli import app as cli
from ctxext.measure import tokens as reading
from ctxext.measure.head import TOKENS
from ctxext.models.aliases import TINY
from ctxext.records import Store, problem_with
from ctxext.tasks.scoring.tokens import BLOCKS, BUCKETS, TokenScores

Run = Callable[..., "Ran"]
VOCABULARY, BOS = 300, 1


def letters(count: int = 700, seed: int = 0) -> str:
    """Words that repeat one letter."""
    rng = random.Random(seed)
    return " ".join(rng.choice(string.ascii_lowercase) * rng.randint(1, 5) for _ in range(count))


def save_tokenizer(folder: Path, bos: bool = False) -> None:
    """A byte-level BPE of 300 tokens; with `bos` it opens each text with token 1."""
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat and the rain fell on the plain"] * 9, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def save_model(folder: Path, bos: bool = False, **changes: Any) -> Path:
    """A folder with a random model of trained length 32, and a tokenizer.

    Its large tied embeddings make it guess that a token repeats, so it is right now and then.
    """
    given = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "initializer_range": 0.1}
    model = random_model(**{**given, **changes})
    with torch.no_grad():
        model.get_input_embeddings().weight *= 3
    model.save_pretrained(folder)
    save_tokenizer(folder, bos)
    return folder


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def values(self) -> dict[tuple[str, int, str], float | None]:
        return {(r["requested"], r["length"], r["task"]): r["value"] for r in self.records}


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process."""

    def run(*argv: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["ctxext", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ran(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a model whose tokenizer adds nothing, and of one whose tokenizer adds a BOS."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, name == "bos") for name in ("plain", "bos")}


@pytest.fixture
def here(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models `plain` and `bos`, and the data `t.txt`."""
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of windows whenever windows are scored."""
    calls: list[int] = []
    real = reading.score

    def counted(model: Any, some: Any, *rest: Any) -> TokenScores:
        calls.append(len(some))
        return real(model, some, *rest)

    monkeypatch.setattr(reading, "score", counted)
    return calls


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 0) -> None:
    """Let scoring raise, from the call after `after` on."""
    real, calls = reading.score, itertools.count()

    def fail(*args: Any) -> TokenScores:
        if next(calls) >= after:
            raise error
        return real(*args)

    monkeypatch.setattr(reading, "score", fail)


def evaluate(run: Run, *more: object) -> Ran:
    """Two windows of 32 tokens, as JSON, into `results`; what comes later in `more` counts."""
    plain = {"--model": "plain", "--data": "t.txt", "--len": "32", "--limit": "2"}
    given = [item for key, value in plain.items() if key not in more for item in (key, value)]
    return run("eval", "--json", *given, *more)


def kept(folder: Path = Path("results")) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()}


class ByHand(NamedTuple):
    """nll [windows, length−1] in nats and hit, from full logits of a plain forward."""

    nll: np.ndarray
    hit: np.ndarray


def by_hand(
    folder: Path, text: str, length: int, limit: int, spec: str = "rope", **load: Any
) -> ByHand:
    """Windows cut and scored one by one, without the package's tasks."""
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = ids.encode(text, add_special_tokens=False).ids
    head = [BOS] if folder.name == "bos" else []
    step = length - len(head)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **load).eval()
    nll, hit = [], []
    with torch.no_grad(), ctxext.patched(model, spec, length):
        for start in range(0, len(ids) - step + 1, step)[:limit]:
            window = torch.tensor(head + ids[start : start + step])
            logits = model(window[None]).logits[0, :-1].double()
            chosen = logits.log_softmax(-1).gather(1, window[1:, None])[:, 0]
            nll.append(-chosen.numpy())
            hit.append((logits.argmax(-1) == window[1:]).numpy())
    return ByHand(np.array(nll), np.array(hit))


def tables(ran: Ran) -> list[list[str]]:
    """The rows of printed tables, cell by cell; of rows of several lines the first."""
    rows = [line[1:-1] for line in ran.out.splitlines() if line[:1] in ("│", "┃")]
    cells = [[cell.strip() for cell in row.replace("┃", "│").split("│")] for row in rows]
    return [row for row in cells if row[0]]


# The numbers.


@pytest.mark.parametrize("name", ["plain", "bos"])
@pytest.mark.parametrize("length", [17, 48, 100])
def test_values_are_those_of_a_plain_forward(run: Run, here: Path, name: str, length: int) -> None:
    ran = evaluate(
        run, "--model", name, "--len", length, "--limit", 5, "--task", "ppl,acc", "--batch-size", 3
    )
    want = by_hand(here / name, letters(), length, 5)
    means = want.nll.mean(1)
    ppl, acc = ran.records
    assert ran.code == 0
    assert ppl["value"] == pytest.approx(math.exp(want.nll.mean()), rel=1e-5)
    error = math.exp(want.nll.mean()) * np.sqrt(((means - means.mean()) ** 2).sum() / 4 / 5)
    assert ppl["stderr"] == pytest.approx(error, rel=1e-4)  # a difference of means: one digit less
    assert 0 < want.hit.mean() < 1
    assert acc["value"] == pytest.approx(want.hit.mean(), rel=1e-12)
    rates = want.hit.mean(1)
    assert acc["stderr"] == pytest.approx(rates.std(ddof=1) / 5**0.5, rel=1e-9)
    for record in (ppl, acc):
        assert (record["windows"], record["n"]) == (5, 5 * (length - 1))
        assert record["by_window"]["n"] == [length - 1] * 5
        assert record["by_window"]["nll"] == pytest.approx(want.nll.sum(1), rel=1e-5)
        assert record["by_window"]["hits"] == want.hit.sum(1).tolist()
        for bucket in record["buckets"]:
            inside = [p - 1 for p in range(1, length) if bucket["start"] <= p < bucket["stop"]]
            assert bucket["n"] == 5 * len(inside)
            if inside:
                assert bucket["nll"] == pytest.approx(want.nll[:, inside].mean(), rel=1e-5)
                assert bucket["acc"] == pytest.approx(want.hit[:, inside].mean(), rel=1e-12)
            else:
                assert bucket["nll"] is bucket["acc"] is None


@pytest.mark.parametrize(
    "spec",
    [
        "ntk:factor=4",
        "rerope:window=8",
        "logn:clip=false",
        "rerope:window=8+logn:clip=false",
    ],
)
def test_a_method_is_on_the_model_while_it_is_measured(run: Run, here: Path, spec: str) -> None:
    values = evaluate(run, "--method", spec, "--len", 64).values
    want = by_hand(here / "plain", letters(), 64, 2, spec)
    assert values[spec, 64, "ppl"] == pytest.approx(math.exp(want.nll.mean()), rel=1e-5)
    assert abs(values[spec, 64, "ppl"] / values["rope", 64, "ppl"] - 1) > 1e-3


def test_documents_are_joined_by_a_blank_line_and_windows_run_across_them(
    run: Run, here: Path
) -> None:
    texts = [letters(9, 1), "", "\n", letters(9, 2), letters(9, 3)]
    (here / "d.jsonl").write_text("\n".join(json.dumps({"text": t, "id": 1}) for t in texts))
    pieces = [t for t in texts if t.strip()]
    core = tokenizers.Tokenizer.from_file("plain/tokenizer.json")
    ends = ["\n\n", "\n\n", ""]
    counts = [len(core.encode(t + e).ids) for t, e in zip(pieces, ends, strict=True)]
    (record,) = evaluate(run, "--data", "d.jsonl", "--len", 20, "--limit", 99).records
    want = by_hand(here / "plain", "\n\n".join(pieces), 20, 99)
    assert record["data"]["tokens"] == sum(counts)
    assert record["windows"] == sum(counts) // 20 == len(want.nll)
    assert record["value"] == pytest.approx(math.exp(want.nll.mean()), rel=1e-5)


def test_perplexity_is_exp_of_the_mean_over_tokens(run: Run, here: Path) -> None:
    record = evaluate(run, "--limit", 9).records[0]
    buckets = [b for b in record["buckets"] if b["n"]]
    total = sum(b["nll"] * b["n"] for b in buckets)
    assert record["value"] == pytest.approx(math.exp(total / record["n"]), rel=1e-9)
    means = by_hand(here / "plain", letters(), 32, 9).nll.mean(1)
    assert abs(np.exp(means).mean() / record["value"] - 1) > 1e-3  # the wrong mean would show


def test_one_window_has_no_standard_error(run: Run, here: Path) -> None:
    for record in evaluate(run, "--limit", 1, "--task", "ppl,acc").records:
        assert record["stderr"] is None
        assert record["status"] == "ok"


@pytest.mark.parametrize("spec", ["rope", "rerope:window=8+logn"])
def test_the_batch_changes_nothing(run: Run, here: Path, spec: str) -> None:
    one, eight = (
        evaluate(run, "--method", spec, "--limit", 9, "--batch-size", size, "--out", size).values
        for size in (1, 8)
    )
    assert one.keys() == eight.keys()
    for key, value in one.items():
        assert eight[key] == pytest.approx(value, rel=1e-5)


def test_limit_and_tokens_cut_the_data(run: Run, here: Path) -> None:
    want = by_hand(here / "plain", letters(), 17, 999).nll
    for more, count in (
        (("--limit", 3), 3),
        (("--limit", 999), len(want)),
        (("--limit", 99, "--tokens", 100), 100 // 17),
        (("--limit", 3, "--tokens", 100), 3),
        (("--limit", 999, "--tokens", "1m"), len(want)),
    ):
        (record,) = evaluate(run, "--len", 17, *more).records
        assert record["windows"] == count
        assert record["value"] == pytest.approx(math.exp(want[:count].mean()), rel=1e-5)


def test_eager_attention_gives_the_same(run: Run, here: Path) -> None:
    auto, eager = (
        evaluate(run, "--method", "rerope:window=8", "--len", 64, "--attn", attn).records
        for attn in ("auto", "eager")
    )
    assert [r["attention"] for r in auto] == ["sdpa", "sdpa"]
    assert [r["attention"] for r in eager] == ["eager", "eager"]
    for ours, theirs in zip(auto, eager, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)  # two kernels in float32


def test_tiny_reads_python_well(run: Run, here: Path) -> None:
    ran = run("eval", "--model", "tiny", "--len", "64", "--limit", "4", "--tokens", "1k", "--json")
    (record,) = ran.records
    vocabulary = json.loads((TINY / "config.json").read_text())["vocab_size"]
    assert (record["model"], record["data"]["name"]) == ("tiny", "stdlib")
    assert record["trained_length"] == 512
    assert 1 < record["value"] < vocabulary / 10


# The buckets.


@pytest.mark.parametrize("length", [16, 17, 31, 33, 64, 100, 1000])
def test_sixteen_buckets_of_equal_width_hold_every_token(length: int) -> None:
    rng = np.random.default_rng(0)
    nll, hit = rng.random((3, length - 1)), rng.random((3, length - 1)) < 0.5
    window, before = np.indices(nll.shape)
    columns = (column.ravel() for column in (window, before + 1, nll, hit))
    scores = TokenScores(length, *columns)
    buckets = scores.buckets()
    assert len(buckets) == BUCKETS == 16
    assert (buckets[0]["start"], buckets[-1]["stop"]) == (0, length)
    assert all(a["stop"] == b["start"] for a, b in itertools.pairwise(buckets))
    widths = [b["stop"] - b["start"] for b in buckets]
    assert max(widths) - min(widths) <= 1
    assert sum(b["n"] for b in buckets) == scores.n == nll.size
    for b in buckets:
        columns = [p - 1 for p in range(max(1, b["start"]), b["stop"])]
        assert b["n"] == 3 * len(columns)
        if columns:
            assert b["nll"] == pytest.approx(nll[:, columns].mean(), rel=1e-12)
            assert b["acc"] == pytest.approx(hit[:, columns].mean(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, BLOCKS, BLOCKS + 1, 3 * BLOCKS - 1])
def test_sums_by_window_are_of_all_tokens_in_at_most_so_many_blocks(count: int) -> None:
    rng = np.random.default_rng(0)
    window = np.sort(np.concatenate([np.arange(count), rng.integers(0, count, 50)]))
    nll, hit = rng.random(len(window)), rng.random(len(window)) < 0.5
    sums = TokenScores(4, window, window % 3 + 1, nll, hit).by_window()
    assert {len(column) for column in sums.values()} == {min(count, BLOCKS)}
    for name, values in (("n", np.ones(len(window))), ("nll", nll), ("hits", hit)):
        assert sum(sums[name]) == pytest.approx(values.sum(), rel=1e-12)
    first = window < (1 if count <= BLOCKS else -(-count // BLOCKS))
    assert sums["hits"][0] == hit[first].sum()


@pytest.mark.parametrize("length", [2, 3, 8, 15])
def test_lengths_below_sixteen(run: Run, here: Path, length: int) -> None:
    ran = evaluate(run, "--len", length, "--model", "bos")
    assert ran.code == 0
    (record,) = ran.records
    want = by_hand(here / "bos", letters(), length, 2)
    assert record["value"] == pytest.approx(math.exp(want.nll.mean()), rel=1e-5)
    assert sum(b["n"] for b in record["buckets"]) == record["n"] == 2 * (length - 1)


# The head, a chunk of positions at a time.

SCALED = {
    "llama-gqa": {},
    "gpt_neox-partial-inside": {},
    "cohere-interleaved": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16, "attn_implementation": "eager"},
}
NEW = {
    "granite": ("GraniteForCausalLM", "GraniteConfig", {}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4}),
}


@pytest.mark.parametrize("family", SCALED)
def test_logits_exist_for_a_chunk_and_are_the_familys_own(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, entry in NEW.items():
        monkeypatch.setitem(conftest.FAMILIES, name, entry)
    model = random_model(family, **SCALED[family])
    ids = conftest.tokens(30, batch=5)
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 7 * 97 + 3)
    sizes: list[int] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *args: sizes.append(args[-1].numel()))
    scores = reading.score(model, conftest.whole(ids), 2)
    hook.remove()
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
        raw = head(model.base_model(ids).last_hidden_state)[:, :-1].double()
    nll = -logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(scores.nll, nll.flatten(), rtol=1e-5, atol=1e-5)
    assert (scores.hit == (logits.argmax(-1) == ids[:, 1:]).flatten().numpy()).all()
    assert max(sizes) <= max(7, 2 * TOKENS) * 97
    assert sum(sizes) <= (ids[:, 1:].numel() + len(ids) + 4 * TOKENS) * 97
    assert bool((raw - logits).abs().max() > 1e-2) is bool(SCALED[family])


def test_one_position_at_a_time_where_the_vocabulary_is_larger_than_a_chunk(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = conftest.tokens(9, batch=2)
    want = reading.score(llama, conftest.whole(ids), 2)
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 10)
    np.testing.assert_allclose(
        reading.score(llama, conftest.whole(ids), 2).nll, want.nll, rtol=1e-5
    )


def test_scoring_leaves_the_model_as_it_was_even_where_it_fails(llama: Any) -> None:
    base, ids = llama.base_model, conftest.tokens(9)
    reading.score(llama, conftest.whole(ids), 1)
    assert "forward" not in base.__dict__
    own = base.forward
    base.forward = own  # as accelerate's hooks do
    reading.score(llama, conftest.whole(ids), 1)
    assert base.__dict__["forward"] is own
    del base.forward

    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    hook = llama.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        reading.score(llama, conftest.whole(ids), 1)
    hook.remove()
    assert "forward" not in base.__dict__
    assert reading.score(llama, conftest.whole(ids), 1).nll.shape == (8,)


def test_capped_logits_in_attention_choose_eager(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conftest.FAMILIES, "gemma2", NEW["gemma2"])
    caps = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 5.0, "head_dim": 16}
    folder = save_model(here / "capped", family="gemma2", **caps)
    (record,) = evaluate(run, "--model", "capped", "--len", 48).records
    capped, free = (
        math.exp(by_hand(folder, letters(), 48, 2, attn_implementation="eager", **more).nll.mean())
        for more in ({}, {"attn_logit_softcapping": None})
    )
    assert record["attention"] == "eager"
    assert record["value"] == pytest.approx(capped, rel=1e-5)
    assert abs(free / capped - 1) > 1e-3


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_auto_attention_is_one_the_family_has(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setitem(conftest.FAMILIES, family, NEW[family])
    more = {"head_dim": 16, "attn_logit_softcapping": None, "tie_word_embeddings": False}
    folder = save_model(here / "folder", family=family, **more)
    ran = evaluate(run, "--model", "folder", "--len", 48)
    want = by_hand(folder, letters(), 48, 2, attn_implementation="eager")
    assert ran.code == 0
    assert ran.records[0]["value"] == pytest.approx(math.exp(want.nll.mean()), rel=1e-5)


# Records are found again, and only where they are right.


def test_a_rerun_computes_nothing_and_prints_the_same(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--method", "rerope:window=8", "--len", "32,48", "--task", "acc,ppl")
    first = evaluate(run, *asked)
    table = run("eval", "--model", "plain", "--data", "t.txt", "--limit", "2", *asked)
    files = kept()
    for name in ("ctxext.models.loading.load_model", "ctxext.measure.tokens.score"):
        monkeypatch.setattr(name, lambda *args: pytest.fail("computed again"))
    again = evaluate(run, *asked)
    assert again.out == first.out
    assert len(again.records) == 8
    assert run(*("eval", "--model", "plain", "--data", "t.txt", "--limit", "2"), *asked) == table
    assert kept() == files


def test_what_was_there_is_frozen_while_cells_are_found_and_not_while_any_is_measured(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, write = list[bool](), Store.write

    def noted(self: Store, record: Any) -> Path:
        frozen.append(gc.get_freeze_count() > 0)
        return write(self, record)

    monkeypatch.setattr(Store, "write", noted)
    evaluate(run)
    evaluate(run)
    assert frozen == [False, True]
    assert gc.get_freeze_count() == 0


def test_a_rerun_takes_what_is_packed_and_force_supersedes_it(
    run: Run, here: Path, scored: list[int]
) -> None:
    first = evaluate(run, "--method", "ntk:factor=2")
    table = run("report")
    assert run("report", "--pack") == table
    assert list(kept()) == ["records.jsonl"]
    assert evaluate(run, "--method", "ntk:factor=2").out == first.out
    assert (scored, len(kept())) == ([2, 2], 1)
    evaluate(run, "--method", "ntk:factor=2", "--method", "pi:factor=2")
    assert (len(scored), len(kept())) == (3, 2)
    evaluate(run, "--force")
    assert (len(scored), len(kept())) == (4, 3)
    whole = run("report")
    assert run("report", "--pack") == whole
    assert (len(kept()), len(Store("results").read_all()[0])) == (1, 3)


def test_what_is_printed_is_what_is_kept(run: Run, here: Path) -> None:
    ran = evaluate(run, "--method", "ntk:factor=2", "--task", "ppl,acc")
    stored, problems = Store("results").read_all()
    assert not problems
    assert sorted(stored, key=lambda r: r["key"]) == sorted(ran.records, key=lambda r: r["key"])
    assert len(stored) == 4


def test_force_computes_again(run: Run, here: Path, scored: list[int]) -> None:
    first = evaluate(run, "--method", "ntk:factor=2")
    forced = evaluate(run, "--method", "ntk:factor=2", "--force")
    assert scored == [2, 2, 2, 2]
    assert forced.values == first.values
    assert len(kept()) == 2


def test_more_methods_and_lengths_later_reuse_what_is_there(
    run: Run, here: Path, scored: list[int]
) -> None:
    evaluate(run, "--method", "pi:factor=2")
    before = kept()
    ran = evaluate(run, "--method", "pi:factor=2", "--method", "logn", "--len", "32,48")
    assert len(scored) == 2 + 4
    assert len(ran.records) == 6
    assert before.items() <= kept().items()


def test_tasks_of_one_method_and_length_share_a_forward(
    run: Run, here: Path, scored: list[int]
) -> None:
    evaluate(run, "--task", "ppl", "--task", "acc,ppl")
    assert scored == [2]


@pytest.mark.parametrize("share", [0, 1, 0.5, -3])
def test_a_truncated_record_is_computed_again(
    run: Run, here: Path, scored: list[int], share: float
) -> None:
    first = evaluate(run, "--method", "ntk:factor=2")
    (path,) = Path("results").glob("*ntk*")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole)) if share == 0.5 else int(share)])
    again = evaluate(run, "--method", "ntk:factor=2")
    assert scored == [2, 2, 2]
    assert again.values == first.values
    assert problem_with(json.loads(path.read_bytes())) is None


EDITS = {
    "value": {"value": 1.5},
    "stderr": {"stderr": 0.0},
    "n": {"n": 3},
    "length": {"length": 64},
    "method": {"method": "pi"},
    "model": {"model": "other"},
    "task": {"task": "acc"},
    "metric": {"metric": "accuracy", "value": 0.5},
    "trained_length": {"trained_length": 5},
    "no buckets": {"buckets": []},
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_edited_by_hand_is_computed_again(
    run: Run, here: Path, scored: list[int], edit: str
) -> None:
    first = evaluate(run, "--method", "ntk:factor=2")
    (path,) = Path("results").glob("*ntk*")
    path.write_text(json.dumps(json.loads(path.read_text()) | EDITS[edit]))
    again = evaluate(run, "--method", "ntk:factor=2")
    assert again.values == first.values
    assert scored == [2, 2, 2]


@pytest.mark.parametrize(
    "edit",
    [{"value": -1.0}, {"value": None}, {"n": "3"}, {"key": "ab" * 32}, {"status": "fine"}],
    ids=str,
)
def test_an_unsound_record_is_computed_again(
    run: Run, here: Path, scored: list[int], edit: dict[str, Any]
) -> None:
    first = evaluate(run)
    (path,) = Path("results").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    assert evaluate(run).values == first.values
    assert scored == [2, 2]


def test_a_failed_cell_is_tried_again(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, RuntimeError("no"))
        assert evaluate(run).code == 1
    ran = evaluate(run)
    assert ran.code == 0
    assert [r["status"] for r in ran.records] == ["ok"]
    assert len(kept()) == 1


def touch_data(here: Path) -> tuple[str, ...]:
    (here / "t.txt").write_text("x" + letters())
    return ()


def touch_weights(here: Path) -> tuple[str, ...]:
    random_model(vocab_size=VOCABULARY, tie_word_embeddings=True, seed=5).save_pretrained("plain")
    return ()


def touch_config(here: Path) -> tuple[str, ...]:
    config = json.loads(Path("plain/config.json").read_text())
    Path("plain/config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))
    return ()


def touch_tokenizer(here: Path) -> tuple[str, ...]:
    save_tokenizer(here / "plain", bos=True)
    return ()


@pytest.mark.parametrize(
    "change",
    [
        touch_data,
        touch_weights,
        touch_config,
        touch_tokenizer,
        lambda here: ("--dtype", "bfloat16"),
        lambda here: ("--limit", "3"),
        lambda here: ("--tokens", "33"),
    ],
    ids=["data", "weights", "config", "tokenizer", "dtype", "limit", "tokens"],
)
def test_what_changes_the_numbers_makes_new_records(
    run: Run, here: Path, scored: list[int], change: Callable[[Path], tuple[str, ...]]
) -> None:
    first = evaluate(run)
    before = kept()
    more = change(here)
    changed = evaluate(run, *more)
    assert len(scored) == 2
    (old,), (new,) = first.values.values(), changed.values.values()
    assert abs(new / old - 1) > 1e-6
    assert before.items() < kept().items()
    assert evaluate(run, *more).out == changed.out
    assert len(scored) == 2


def test_a_copy_of_the_model_and_data_is_the_same_model_and_data(
    run: Run, here: Path, scored: list[int]
) -> None:
    first = evaluate(run)
    shutil.copytree("plain", "copy")
    shutil.copy("t.txt", "u.txt")
    again = evaluate(run, "--model", "copy", "--data", "u.txt")
    assert scored == [2]
    assert [r["value"] for r in again.records] == [r["value"] for r in first.records]


def test_a_found_record_has_the_names_that_were_asked_for(run: Run, here: Path) -> None:
    evaluate(run)
    shutil.copy("t.txt", "u.txt")
    asked = ("--model", "./plain", "--data", "u.txt", "--method", "ntk:factor=2")
    named = {(r["model"], r["data"]["name"]) for r in evaluate(run, *asked).records}
    assert named == {("./plain", "u.txt")}


def test_methods_that_resolve_alike_are_computed_once(
    run: Run, here: Path, scored: list[int]
) -> None:
    assert TRAINED // 2 == 16
    evaluate(run, "--method", "rerope", "--method", "rerope:window=16")
    assert scored == [2, 2]


@pytest.mark.parametrize(
    ("one", "other", "lengths"),
    [("rerope", "rerope:window=16", "32"), ("ntk", "ntk:factor=2", "32,64")],
)
def test_methods_that_resolve_alike_are_both_shown(
    run: Run, here: Path, one: str, other: str, lengths: str
) -> None:
    values = evaluate(run, "--method", one, "--method", other, "--len", lengths).values
    cells = {(spec, int(length)) for spec in ("rope", one, other) for length in lengths.split(",")}
    assert {key[:2] for key in values} == cells
    report = run("report", "--format", "csv").out.splitlines()[1:]
    assert len(report) == len(cells)


def test_a_method_asked_for_in_other_words_has_those_words(
    run: Run, here: Path, scored: list[int]
) -> None:
    evaluate(run, "--method", "rerope:window=16")
    ran = evaluate(run, "--method", "rerope")
    assert scored == [2, 2]
    assert [r["requested"] for r in ran.records] == ["rope", "rerope"]
    assert [r["method"] for r in ran.records] == ["rope", "rerope:window=16"]


# What a run that fails leaves behind.


@pytest.mark.parametrize(
    "more",
    [("--len", "1m"), ("--data", "no.txt"), ("--dtype", "int4"), ("--model", "no")],
    ids=str,
)
def test_a_refused_run_leaves_the_records_alone(
    run: Run, here: Path, more: tuple[str, str]
) -> None:
    evaluate(run, "--method", "ntk:factor=2")
    before = kept()
    assert evaluate(run, "--method", "ntk:factor=2", "--force", *more).code == 2
    assert kept() == before


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("no")], ids=repr)
def test_a_cell_that_fails_leaves_finished_records_alone(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    evaluate(run)
    before = kept()
    failing(monkeypatch, error)
    assert evaluate(run, "--task", "ppl,acc").code == 1
    assert before.items() <= kept().items()


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("no")], ids=repr)
def test_a_cell_that_fails_under_force_is_no_longer_finished(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its record says so, in a report too; the one that was there is set aside, and not lost."""
    evaluate(run, "--method", "ntk:factor=2")
    evaluate(run, "--method", "ntk:factor=2", "--model", here / "plain")  # by another name
    before = kept()
    failing(monkeypatch, error, after=1)
    ran = evaluate(run, "--method", "ntk:factor=2", "--force")
    assert (ran.code, [r["status"] == "ok" for r in ran.records]) == (1, [True, False])
    assert sum("done again, it failed" in line for line in ran.err.splitlines()) == 2
    records, _ = Store("results").read_all()
    lost = [r for r in records if r["requested"].startswith("ntk")]
    assert [r["status"] == "ok" for r in lost] == [False]
    aside = {path.name: path.read_bytes() for path in Path("results/set-aside").iterdir()}
    assert len(aside) == 2
    assert aside.items() <= before.items()


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_only_records_are_left_behind(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    failing(monkeypatch, error, after=1)
    assert evaluate(run, "--method", "ntk:factor=2", "--len", "32,48").code in (1, 130)
    assert kept()
    for name, content in kept().items():
        assert name.endswith(".json")
        assert problem_with(json.loads(content)) is None


def test_a_full_disk_costs_no_record(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def fsync(descriptor: int) -> None:
        if next(calls) >= 2:  # the probe of the folder, and the first record
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    ran = evaluate(run, "--method", "ntk:factor=2")
    assert ran.code == 1
    assert "No space left" in ran.err.splitlines()[-1]
    assert [json.loads(content)["requested"] for content in kept().values()] == ["rope"]


STUCK = """
import os, sys, time
calls = 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == 4:  # the probe, rope, the second record, and here in the middle of the third
        print("stuck", flush=True)
        time.sleep(600)
os.fsync = fsync
from ctxext.cli.app import main
main()
"""


def test_a_killed_run_leaves_whole_records_and_a_rerun_completes(
    run: Run, here: Path, scored: list[int]
) -> None:
    asked = ["--method", "ntk:factor=2", "--method", "logn", "--method", "pi:factor=2"]
    base = ["eval", "--model", "plain", "--data", "t.txt", "--len", "32", "--limit", "2", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, *base, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CTXEXT_CACHE": os.devnull},  # nothing is kept
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"stuck\n"
        finally:
            process.kill()
    records, problems = Store("results").read_all()
    assert not problems
    assert {r["requested"] for r in records} == {"rope", "ntk:factor=2"}
    ran = evaluate(run, *asked)
    assert ran.code == 0
    assert scored == [2, 2]
    assert len(ran.records) == len(list(Path("results").glob("*.json"))) == 4


# Numbers that must not look like results.


def weights(here: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the weights of `plain`."""
    from safetensors.torch import load_file, save_file

    path = here / "plain" / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path, metadata={"format": "pt"})


def test_a_loss_that_is_not_finite_is_an_error(run: Run, here: Path) -> None:
    weights(here, lambda w: w["model.norm.weight"].fill_(math.nan))
    ran = evaluate(run)
    (record,) = ran.records
    assert ran.code == 1
    assert (record["status"], record["value"], record["n"]) == ("error", None, 0)
    assert "not finite" in record["reason"]


def test_a_perplexity_beyond_floats_is_an_error_of_its_cell(run: Run, here: Path) -> None:
    weights(here, lambda w: w["model.norm.weight"].mul_(1e5))
    ran = evaluate(run, "--task", "ppl,acc")
    assert ran.code == 1
    assert {r["task"]: r["status"] for r in ran.records} == {"ppl": "error", "acc": "ok"}


@pytest.mark.parametrize(
    "missing", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model."]
)
def test_weights_that_are_missing_are_refused(run: Run, here: Path, missing: str) -> None:
    weights(here, lambda w: [w.pop(name) for name in list(w) if name.startswith(missing)])
    ran = evaluate(run)
    assert (ran.code, ran.out) == (2, "")
    assert re.search(r"lacks \d+ weights?, such as", ran.err)
    assert missing in ran.err or missing == "model."


def test_weights_that_are_left_over_are_told(run: Run, here: Path) -> None:
    config = json.loads(Path("plain/config.json").read_text())
    Path("plain/config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "model.layers.1." in evaluate(run).err


# Tables of several runs.


def test_another_limit_does_not_mix_into_the_table(run: Run, here: Path) -> None:
    base = ("eval", "--model", "plain", "--data", "t.txt", "--len", "32")
    run(*base, "--limit", "2", "--method", "ntk:factor=2")
    (head, *rows) = tables(run(*base, "--limit", "3", "--method", "pi:factor=2"))
    assert head[:3] == ["method", "32", "tax (nat)"]
    assert [row[0] for row in rows] == ["rope", "pi:factor=2"]
    (head, *rows) = tables(run("report"))
    assert head[:4] == ["method", "32 (2 windows)", "32 (3 windows)", "tax (nat)"]
    assert {row[0]: [cell == "–" for cell in row[1:3]] for row in rows} == {
        "rope": [False, False],
        "ntk:factor=2": [False, True],
        "pi:factor=2": [True, False],
    }


@pytest.mark.parametrize(
    "more",
    [
        ("--dtype", "bfloat16"),
        ("--tokens", "100"),
        ("--model", "bos"),
        ("--train-len", "16"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_stands_in_tables_of_its_own(
    run: Run, here: Path, more: tuple[str, str]
) -> None:
    evaluate(run, "--method", "rerope")
    evaluate(run, "--method", "rerope", "--method", "ntk", *more)
    report = run("report", "--format", "md").out
    titles = [line for line in report.splitlines() if line.startswith("### ")]
    assert len(set(titles)) == 2


def test_sharing_one_folder_two_models_keep_apart(run: Run, here: Path) -> None:
    evaluate(run, "--method", "ntk:factor=2")
    evaluate(run, "--method", "ntk:factor=2", "--model", "bos")
    lines = run("report", "--format", "csv").out.splitlines()[1:]
    assert sorted(line.split(",")[0] for line in lines) == ["bos", "bos", "plain", "plain"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are 100 columns wide wherever the tests run."""
    monkeypatch.delenv("COLUMNS", raising=False)
