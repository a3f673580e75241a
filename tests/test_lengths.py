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
from test_eval import Run, letters, save_model
from test_processes import TORCHRUN, launched, same_answers

import ctxext
from ctxext import tasks
from ctxext.engine.pinned import alike, pinned
from ctxext.errors import UsageError
from ctxext.measure.answers import Limits, answers
from ctxext.measure.tokens import score
from ctxext.models.aliases import TINY
from ctxext.records import problem_with
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
    assert model.config.to_dict() == made(kind).config.to_dict()
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
    pytest.importorskip("ray", reason="Ray is not installed")
    spread = run(*given, "--out", str(tmp_path / "ray"), "--launcher", "ray")
    assert spread.code == 0, spread.err
    assert numbers(spread.records, 768) == numbers(alone, 768)
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

    from ctxext.tasks.lm_eval.sequences import SequenceLM

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
    from ctxext.tasks.lm_eval.model import ContextLM

    folder = scale(tmp_path / kind, kind, 16)
    for method, fixed in (("rope", False), ("logn", True)):
        made = ContextLM(pretrained=str(folder), method=method, length=96, device="cpu")
        assert (len(alike(made.model, [8, 96], int)) == 1) is fixed
        assert made.get_model_info()["ctxext_method"].startswith(method)
    options = {"pretrained": str(folder), "method": METHOD, "length": 96, "device": "cpu"}
    for own, trained in (("keep", 64 if kind == "longrope" else 16), ("replace", 16)):
        info = ContextLM(**options, own_scaling=own).get_model_info()
        assert info["ctxext_trained_length"] == trained
    with pytest.raises(UsageError, match="bad own_scaling 'half': valid: keep, replace"):
        ContextLM(**options, own_scaling="half")


# --own-scaling.

OWN = {
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
}
METHOD = "ntk:factor=2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models `of-llama3` and `of-yarn`, for 64 tokens and before their
    scaling for 16, the unscaled `plain`, and the data `t.txt`."""
    for name, own in OWN.items():
        rope = {"rope_type": name, "rope_theta": 1e4, "original_max_position_embeddings": 16}
        save_model(
            tmp_path / f"of-{name}", rope_parameters={**rope, **own}, max_position_embeddings=64
        )
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_hand(name: str, length: int, **options: Any) -> float:
    """The perplexity of the first two windows, by the library."""
    model, tokenizer = ctxext.load(name, device="cpu")
    text = Path("t.txt").read_text()
    ids = torch.tensor(tokenizer(text).input_ids[: 2 * length]).view(2, -1)
    with ctxext.patched(model, METHOD, length, **options), torch.no_grad():
        logp = model(ids[:, :-1]).logits.double().log_softmax(-1)
    return float(logp.gather(-1, ids[:, 1:, None]).mean().neg().exp())


GIVEN = ("--data", "t.txt", "--len", "96", "--limit", "2", "--method", METHOD)


@pytest.mark.parametrize("name", ["of-llama3", "of-yarn"])
def test_own_scaling_is_the_librarys(run: Run, here: Path, name: str) -> None:
    kept = dict[str, dict[str, Any]]()
    for own, trained in (("keep", 64), ("replace", 16)):
        ran = run("eval", "--model", name, *GIVEN, "--own-scaling", own, "--json")
        rope, ntk = ran.records
        assert ntk["value"] == pytest.approx(by_hand(name, 96, own_scaling=own), rel=1e-6)
        assert {r["trained_length"] for r in (rope, ntk)} == {trained}
        assert {r["own_scaling"] for r in (rope, ntk)} == {own}
        why = rope["trained_from"]
        assert "original_max_position_embeddings" in why or "max_position_embeddings" in why
        line = f"{name}: trained length {trained}, from {why}; its own rope scaling: {own}"
        assert ran.err.splitlines().count(line) == 1
        kept[own] = {"rope": rope, "ntk": ntk}
    assert kept["keep"]["rope"]["value"] == kept["replace"]["rope"]["value"]  # the model as given
    assert kept["keep"]["ntk"]["value"] != pytest.approx(kept["replace"]["ntk"]["value"], rel=1e-3)
    keys = {r["key"] for records in kept.values() for r in records.values()}
    assert len(keys) == 4
    assert run("report", "--write", "--no-plots").code == 0


def test_own_scaling_makes_no_difference_where_there_is_none(run: Run, here: Path) -> None:
    first = run("eval", "--model", "plain", *GIVEN, "--json").records
    again = run("eval", "--model", "plain", *GIVEN, "--own-scaling", "replace", "--json").records
    assert again == first
    assert {r["own_scaling"] for r in first} == {None}
    ran = run("eval", "--model", "plain", *GIVEN, "--own-scaling", "off")
    assert ran.code == 2
    assert "unknown --own-scaling 'off': valid: keep, replace" in ran.err


def test_every_command_takes_it(run: Run, here: Path) -> None:
    """What each says of T, which is 16 before the scaling and 64 with it."""
    asked = ("--model", "of-yarn", "--own-scaling", "replace")
    ran = run("eval", *asked, *GIVEN, "--dry-run", "--json")
    assert "of-yarn: trained length 16, from" in ran.err
    bench = ("bench", *asked, "--len", "32", "--pairs", "2", "--method", METHOD, "--json")
    for record in run(*bench).records:
        assert (record["trained_length"], record["own_scaling"]) == (16, "replace")
    explained = run("explain", *asked, "--len", "96", "--no-entropy", "--method", METHOD, "--json")
    for record in explained.records:
        assert (record["trained_length"], record["own_scaling"]) == (16, "replace")
    [patched] = run(
        "patch", *asked, "--method", METHOD, "--len", "96", "--out", "p", "--json"
    ).records
    assert (patched["trained_length"], patched["own_scaling"]) == (16, "replace")
    Path("g.yaml").write_text(
        "models: [{model: of-yarn, own-scaling: replace}, of-yarn]\nlengths: 96\ndata: t.txt\n"
        "limit: 2\nmethods: 'ntk:factor=2'\n"
    )
    records = run("eval", "--grid", "g.yaml", "--out", "g", "--json").records
    assert [r["trained_length"] for r in records] == [16, 16, 64, 64]
    Path("bad.yaml").write_text("models: {model: of-yarn, own-scaling: half}\nlengths: 96\n")
    ran = run("eval", "--grid", "bad.yaml")
    assert ran.code == 2
    assert "unknown own-scaling 'half': valid: keep, replace" in ran.err


def test_records_from_before_are_records_still(run: Run, here: Path) -> None:
    record = run("eval", "--model", "plain", *GIVEN, "--json").records[0]
    before = {k: v for k, v in record.items() if k not in ("own_scaling", "trained_from")}
    assert problem_with(before) is None
    assert "own_scaling" in str(problem_with({**record, "own_scaling": "keeps"}))
    assert "trained_from" in str(problem_with({**record, "trained_from": 7}))
