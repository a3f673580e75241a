"""Models whose own rope scaling goes by the length: one length for each sequence, whatever is read
before it, beside it, in parts, or in which process.

The oracle is stock transformers: a fresh model that has read one far position, and whose tables
are then held. Tolerance: 1e-4 of logits and 1e-5 of losses where the batch differs, as elsewhere;
what is computed alike must be equal to the last bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SETTINGS, TRAINED, tokens, whole
from test_answers import Words
from test_eval import Run, runner
from test_processes import TORCHRUN, launched, same_answers

import ctxext
from ctxext import tasks
from ctxext.engine.pinned import alike, pinned
from ctxext.measure.answers import Limits, answers
from ctxext.measure.tokens import score
from ctxext.models.aliases import TINY
from ctxext.tasks.base import Sample

LISTS = {"short_factor": [1.0] * 8, "long_factor": [1 + i / 2 for i in range(8)]}
SCALINGS = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, **LISTS},
}
MOST = 5  # tokens of an answer


def made(kind: str) -> Any:
    """A fresh random model: a Llama with dynamic scaling, or the shape of Phi-3."""
    torch.manual_seed(0)
    given = {**SETTINGS, "rope_parameters": json.loads(json.dumps(SCALINGS[kind]))}
    if kind == "dynamic":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**given)).eval()
    given |= {"max_position_embeddings": 4 * TRAINED, "original_max_position_embeddings": TRAINED}
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**given)).eval()


def stock(kind: str, length: int) -> Any:
    """Stock transformers' model as it reads `length` tokens, and nothing else."""
    return held(made(kind), length)


@pytest.fixture(params=SCALINGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("chunk", [None, 16])
def test_windows_are_read_by_their_own_length_whatever_came_before(
    kind: str, chunk: int | None
) -> None:
    model = made(kind)
    for length in (128, 24, 64, 33, 32, 128):
        windows = whole(tokens(length, 2))
        expected = score(stock(kind, length), windows, 1, chunk=chunk)
        with ctxext.patched(model, "rope", length):
            found = score(model, windows, 1, chunk=chunk)
        assert (found.nll == expected.nll).all()
        assert (found.hit == expected.hit).all()


def prompts(shared: bool) -> list[Sample]:
    """Prompts within the trained length and beyond it, which begin alike or not."""
    lengths = (10, 20, 27, 28, 29, 40, 40, 60, 90)
    start = tokens(90)[0].tolist()
    ids = [start[:n] if shared else tokens(n, seed=n)[0].tolist() for n in lengths]
    return [Sample(str(i), [*each[:-1], 3 + i], ["x"]) for i, each in enumerate(ids)]


def greedy(model: Any, ids: Sequence[int]) -> list[int]:
    """What whole forwards choose."""
    said = list(ids)
    with torch.no_grad():
        for _ in range(MOST):
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    return said[len(ids) :]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_a_prompt_is_answered_alike_whatever_is_beside_it(
    kind: str, shared: bool, batch: int
) -> None:
    model, samples = made(kind), prompts(shared)
    model.generation_config.eos_token_id, tokenizer = None, Words()
    rows = list(answers(model, tokenizer, samples, Limits(MOST, MOST), batch))
    found = {row["name"]: row["pred"] for row in rows}
    for sample in samples:
        said = greedy(stock(kind, len(sample.ids) + MOST), sample.ids)
        assert found[sample.name] == tokenizer.decode(said, skip_special_tokens=True), sample.name


def test_only_what_reads_the_same_tables_is_together(kind: str) -> None:
    model = made(kind)
    found = [some for _, some in alike(model, [8, 32, 33, 128, 33, 16], int)]
    assert (
        found
        == {
            "dynamic": [[128], [33, 33], [8, 32, 16]],
            "longrope": [[33, 128, 33], [8, 32, 16]],
        }[kind]
    )
    with ctxext.patched(model, "ntk:factor=2", 64):  # L has decided
        assert alike(model, [8, 128], int) == [(128, [8, 128])]
        with pinned(model, 8):
            pass


# The command line, on the shipped model with another config.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)


def scale(folder: Path, kind: str, trained: int) -> Path:
    """The shipped model, scaled from so many tokens on."""
    shutil.copytree(TINY, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = {**SCALINGS[kind], "rope_theta": config["rope_parameters"]["rope_theta"]}
    if kind == "longrope":
        pairs = config["head_dim"] // 2
        rope |= {"short_factor": [1.0] * pairs, "original_max_position_embeddings": trained}
        rope |= {"long_factor": [1 + i / pairs for i in range(pairs)]}
    config["max_position_embeddings"] = trained * (4 if kind == "longrope" else 1)
    path.write_text(json.dumps({**config, "rope_parameters": rope}))
    return folder


def held(model: Any, length: int) -> Any:
    """The model, for good as it reads `length` tokens."""
    rotary = model.base_model.rotary_emb
    rotary(torch.zeros(1, 1, 1), torch.tensor([[length - 1]]))
    rotary.rope_type = "default"
    return model


@pytest.fixture
def scaled(kind: str, tmp_path: Path) -> Path:
    return scale(tmp_path / kind, kind, 512)


ASKED = ("--method", "logn", "--method", "ntk:factor=2", "--method", "rerope:window=128")
TASKS = ("--task", "ppl,kv:samples=1,depths=3", "--limit", "3", "--device", "cpu")


def numbers(records: Sequence[dict[str, Any]], length: int) -> dict[Any, Any]:
    return {
        (r["requested"], r["task"]): (r["value"], r["stderr"], r["key"], r["buckets"])
        for r in records
        if r["length"] == length and r["status"] == "ok"
    }


def test_a_cell_has_one_number_in_any_order(run: Run, scaled: Path, tmp_path: Path) -> None:
    def evaluate(out: str, *more: str) -> list[dict[str, Any]]:
        given = ("eval", "--model", str(scaled), *TASKS, *ASKED, "--out", str(tmp_path / out))
        return run(*given, "--json", *more).records

    alone = evaluate("alone", "--len", "768")
    after = evaluate("after", "--len", "512,768,1k", "--task", "kv:samples=1,depths=3,ppl")
    assert len(numbers(alone, 768)) == 8
    assert numbers(after, 768) == numbers(alone, 768)
    forced = evaluate("after", "--len", "768", "--force")
    assert numbers(forced, 768) == numbers(alone, 768)


def test_resumed_cells_and_several_processes_give_the_same(
    run: Run, scaled: Path, tmp_path: Path
) -> None:
    given = ("eval", "--model", str(scaled), "--len", "768", "--method", "logn", *TASKS, "--json")
    alone = run(*given, "--out", str(tmp_path / "one")).records
    both = launched(TORCHRUN, *given, "--out", str(tmp_path / "two"))
    assert both.code == 0, both.err
    for ours, theirs in zip(both.records, alone, strict=True):
        assert ours["key"] == theirs["key"]
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-5)
    same_answers(tmp_path / "two", tmp_path / "one")
    for record in (tmp_path / "one").glob("*.json"):
        record.unlink()
    for path in (tmp_path / "one" / "predictions").rglob("*.jsonl"):  # as a kill leaves it
        os.truncate(path, len(path.read_bytes().splitlines(True)[0]))
    again = run(*given, "--out", str(tmp_path / "one")).records
    assert numbers(again, 768) == numbers(alone, 768)


def test_the_unpatched_model_has_the_length_of_each_prompt(
    run: Run, scaled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, real = list[int](), ctxext.patched

    def spied(model: Any, spec: str, length: int) -> Any:
        lengths.append(length)
        return real(model, spec, length)

    monkeypatch.setattr("ctxext.engine.pinned.patched", spied)
    given = ("--model", str(scaled), "--method", "logn", *TASKS, "--out", str(tmp_path / "out"))
    assert run("eval", *given, "--len", "768").code == 0
    [path] = (tmp_path / "out").rglob("predictions/*--rope--*/*.jsonl")
    most = tasks.parse("kv").generates
    held = {json.loads(line)["length"] + most for line in path.open()}
    assert max(held) < 768
    assert set(lengths) == ({max(held)} if scaled.name == "longrope" else held)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_harness_reads_each_sequence_by_its_own_length(
    kind: str, batch: int, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance

    from ctxext.harness.sequences import SequenceLM

    folder = scale(tmp_path / kind, kind, 16)
    model, tokenizer = ctxext.load(str(folder), device="cpu")
    runner = SequenceLM(pretrained=model, tokenizer=tokenizer, max_length=96, batch_size=batch)
    texts = ["import", "import os and sys", " ".join(map(str, range(20))), "class A:\n    def f"]
    asked = [
        Instance("loglikelihood", {}, (text, " return value"), number)
        for number, text in enumerate(texts)
    ]
    found = runner.loglikelihood(asked, disable_tqdm=True)
    until = {"until": ["\0"], "max_gen_toks": MOST, "do_sample": False}
    said = runner.generate_until(
        [Instance("generate_until", {}, (text, until), n) for n, text in enumerate(texts)],
        disable_tqdm=True,
    )
    for text, (total, _), answer in zip(texts, found, said, strict=True):
        prompt, ids = tokenizer.encode(text), tokenizer.encode(f"{text} return value")
        alone = held(ctxext.load(str(folder), device="cpu")[0], len(ids) - 1)
        with torch.no_grad():
            logp = alone(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(ids) - 1)
        assert total == pytest.approx(sum(float(logp[i, ids[i + 1]]) for i in places), abs=1e-4)
        alone = held(ctxext.load(str(folder), device="cpu")[0], len(prompt) + MOST)
        assert tokenizer.decode(greedy(alone, prompt)) == answer


def test_a_model_of_lm_eval_is_not_held_to_its_longest_input(kind: str, tmp_path: Path) -> None:
    from ctxext.harness.model import ContextLM

    folder = scale(tmp_path / kind, kind, 16)
    for method, fixed in (("rope", False), ("logn", True)):
        made = ContextLM(pretrained=str(folder), method=method, length=96, device="cpu")
        assert (len(alike(made.model, [8, 96], int)) == 1) is fixed
        assert made.get_model_info()["ctxext_method"].startswith(method)
