"""lm_eval's tasks on patched models, and patched models in lm_eval's own command."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ctxext
from ctxext import tasks
from ctxext.cli import app as cli
from ctxext.errors import UsageError
from ctxext.tasks.base import Score
from ctxext.tasks.lm_eval.task import LmEval

METHOD, LENGTH, NEW = "rerope:window=16+logn", 96, 6
CHOICES = [  # the third question and its answers are longer than LENGTH
    ("def area(width, height):\n    return", ["width * height", "import", "None"], 0),
    ("import os\nimport", ["sys", "the", "return value of the function"], 1),
    (" ".join(f"line {i} of the file is read and" for i in range(30)), ["closed", "is"], 0),
    ("The `for` statement is used to iterate over the elements of a", ["sequence", "if"], 0),
]
#: Of each benchmark the file with its prompts and its scoring, and rows with the Hub's columns.
LONG: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "longbench2": (
        "longbench2/_longbench_common_yaml",
        [{"context": "x = [1]", "question": "What?", "choices": list("pqrs"), "answer": n}
         for n in range(4)],
    ),
    "babilong": (
        "babilong/babilong_qa1.yaml",
        [{"input": "Mary went to the garden.", "question": "Where is Mary?", "target": "garden"},
         {"input": "Mary went to the garden.", "question": "Where is Mary?", "target": ""}],
    ),
    "infinitebench": (
        "infinitebench/infinitebench_passkey.yaml",
        [{"id": 0, "context": "The pass key is 71432.", "input": "What is the pass key?",
          "answer": ["71432"], "options": [""]}],
    ),
}  # fmt: skip
PROMPTS = ["import os\nimport", "The `with` statement is", "x = [1, 2, 3]\nfor", "class"]


def write_tasks(folder: Path) -> Path:
    """A multiple choice and a generation on local data, and groups of them."""
    folder.mkdir()
    rows = [{"q": q, "choices": c, "gold": g} for q, c, g in CHOICES]
    (folder / "choice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "write.jsonl").write_text(
        "\n".join(json.dumps({"q": q, "a": "sys"}) for q in PROMPTS)
    )
    choice = {
        "task": "my_choice", "tag": ["my_tag"], "dataset_path": "json", "test_split": "train",
        "dataset_kwargs": {"data_files": str(folder / "choice.jsonl")},
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    write = {
        "task": "my_writing", "dataset_path": "json", "test_split": "train",
        "dataset_kwargs": {"data_files": str(folder / "write.jsonl")}, "num_fewshot": 0,
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": NEW},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    text = {
        "task": "my_text", "dataset_path": "json", "test_split": "train", "doc_to_text": "",
        "dataset_kwargs": {"data_files": str(folder / "choice.jsonl")},
        "output_type": "loglikelihood_rolling", "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    losing = {**choice, "task": "my_losing", "tag": []}
    losing["metric_list"] = [{"metric": "acc", "higher_is_better": False}]
    hub = {**choice, "task": "my_hub", "dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    members = ["my_choice", {"task": "my_choice", "doc_to_text": "{{q}}!"}]
    files = {
        "losing": losing, "choice": choice, "write": write, "hub": hub, "text": text,
        "both": {"group": "my_both", "task": ["my_choice", "my_writing"]},
        "sum": {"group": "my_sum", "task": members[:1], "aggregate_metric_list": aggregate},
        "unsafe": {**write, "task": "my_unsafe", "unsafe_code": True},
    }  # fmt: skip
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent / "tasks"
    for name, (file, rows) in LONG.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files[name] = {
            "include": str(home / file), "task": f"my_{name}", "dataset_path": "json",
            "test_split": "train", "custom_dataset": None,
            "dataset_kwargs": {"data_files": str(folder / f"{name}.jsonl")},
        }  # fmt: skip
    for name, config in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "broken.yaml").write_text("task: [")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: lm_eval reads all of its tasks anew for another."""
    return write_tasks(tmp_path_factory.mktemp("harness") / "mine")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return ctxext.load("tiny")


@pytest.fixture
def patched(tiny: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    with ctxext.patched(tiny[0], METHOD, LENGTH):
        yield tiny


def task(name: str, folder: Path, **options: Any) -> LmEval:
    return LmEval(name, include=str(folder), **options)


def run(
    patched: tuple[Any, Any], name: str, folder: Path, cache: Path, batch: int = 3, **options: Any
) -> tuple[Score, int]:
    return task(name, folder, **options).evaluate(*patched, LENGTH, batch, None, 0, cache)


def kept(cache: Path) -> list[Any]:
    """All answers in lm_eval's file, sorted."""
    rows = sqlite3.connect(cache).execute("SELECT value FROM unnamed").fetchall()
    return sorted((pickle.loads(value) for (value,) in rows), key=repr)


def likelihoods(model: Any, tokenizer: Any) -> list[list[tuple[float, bool]]]:
    """For every question and choice, the sum of ln p and whether each token comes first."""
    found = []
    for question, choices, _ in CHOICES:
        found.append([])
        start = len(tokenizer.encode(question))
        for choice in choices:
            ids = tokenizer.encode(f"{question} {choice}")
            n = len(ids) - start
            ids = torch.tensor([ids[-LENGTH - 1 :]])
            with torch.no_grad():
                logp = model(ids[:, :-1]).logits[0, -n:].log_softmax(-1)
            said = ids[0, -n:]
            total = float(logp[torch.arange(n), said].sum())
            found[-1].append((total, bool((logp.argmax(-1) == said).all())))
    return found


def writing(model: Any, tokenizer: Any, prompt: str) -> str:
    """What greedy choice writes, by whole forwards, up to a new line."""
    ids = tokenizer.encode(prompt)
    start = len(ids)
    for _ in range(NEW):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    text = tokenizer.decode(ids[start:]).partition(tokenizer.eos_token)[0]
    return text.partition("\n")[0]


def test_choices_are_scored_as_plain_forwards_say(
    patched: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    said = likelihoods(*patched)
    score, n = run(patched, "my_choice", folder, tmp_path / "cache")
    best = [max(range(len(row)), key=lambda i: row[i][0]) for row in said]
    lengths = [[len(choice) for choice in choices] for _, choices, _ in CHOICES]
    normed = [
        max(range(len(row)), key=lambda i: row[i][0] / sizes[i])
        for row, sizes in zip(said, lengths, strict=True)
    ]
    gold = [g for _, _, g in CHOICES]
    share = sum(b == g for b, g in zip(best, gold, strict=True)) / len(gold)
    assert (score.value, n) == (share, len(CHOICES))
    assert score.also == {"acc_norm": sum(b == g for b, g in zip(normed, gold, strict=True)) / 4}
    assert score.stderr == pytest.approx((share * (1 - share) / 3) ** 0.5)
    want = sorted(answer for row in said for answer in row)
    got = sorted(kept(tmp_path / "cache"))
    assert [a[0] for a in got] == pytest.approx([a[0] for a in want], abs=2e-4)
    assert [a[1] for a in got] == [a[1] for a in want]


def test_the_patch_makes_the_difference(
    tiny: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    plain = [answer[0] for row in likelihoods(*tiny) for answer in row]
    run(tiny, "my_choice", folder, tmp_path / "plain")
    got = sorted(a[0] for a in kept(tmp_path / "plain"))
    assert got == pytest.approx(sorted(plain), abs=2e-4)
    with ctxext.patched(tiny[0], METHOD, LENGTH):
        run(tiny, "my_choice", folder, tmp_path / "patched")
    long = {a[0] for a in kept(tmp_path / "patched")}
    assert min(abs(a - b) for a in plain[6:8] for b in long) > 1e-3  # those beyond the window


@pytest.mark.parametrize("beyond", [False, True])
def test_writing_in_padded_batches_is_what_whole_forwards_write(
    patched: tuple[Any, Any], folder: Path, tmp_path: Path, beyond: bool
) -> None:
    """Also where the tokenizer pads with what the model cannot embed."""
    model, tokenizer = patched[0], copy.deepcopy(patched[1])
    if beyond:
        tokenizer.add_special_tokens({"pad_token": "<|beyond|>"})
        assert tokenizer.pad_token_id >= len(model.get_input_embeddings().weight)
    want = [writing(model, tokenizer, prompt) for prompt in PROMPTS]
    score, n = run((model, tokenizer), "my_writing", folder, tmp_path / "cache", batch=4)
    assert kept(tmp_path / "cache") == sorted(want)
    assert (score.value, n) == (sum(text == "sys" for text in want) / len(want), len(want))


def test_text_is_read_from_the_prefix_on(
    patched: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = patched
    text = CHOICES[0][0]
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    one = task("my_text", folder)
    score, n = one.evaluate(*patched, LENGTH, 2, 1, 0, tmp_path / "cache")
    assert score.value == pytest.approx(math.exp(-float(logp.sum()) / len(text.split())), rel=1e-4)
    assert (score.stderr, n, one.metric) == (None, 1, "word_perplexity")
    assert score.samples == []  # pairs of a loss and a number of words, of which it is no mean


def test_model_and_tokenizer_are_left_alone(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = ctxext.load("tiny")
    tokenizer.pad_token = None
    ids = torch.arange(5, 60)[None]
    plain, config = model(ids).logits, model.config
    handle = ctxext.patch(model, METHOD, LENGTH)
    before = model(ids).logits
    run((model, tokenizer), "my_writing", folder, tmp_path / "cache")
    assert torch.equal(model(ids).logits, before)
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "right")
    handle.remove()
    assert torch.equal(model(ids).logits, plain)
    assert model.config is config


def test_nothing_is_printed(
    patched: tuple[Any, Any], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(patched, "my_choice", folder, tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


def test_a_killed_run_goes_on(patched: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    whole, _ = run(patched, "my_choice", folder, tmp_path / "whole", batch=2)
    left = 2

    def die(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    calls: list[int] = []
    killed = patched[0].register_forward_pre_hook(die)
    with pytest.raises(KeyboardInterrupt):
        run(patched, "my_choice", folder, tmp_path / "cache", batch=2)
    killed.remove()
    some = kept(tmp_path / "cache")
    assert 0 < len(some) < len(kept(tmp_path / "whole"))
    counted = patched[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again, n = run(patched, "my_choice", folder, tmp_path / "cache", batch=2)
    after = len(calls)
    third, _ = run(patched, "my_choice", folder, tmp_path / "cache", batch=2)
    counted.remove()
    assert len(calls) == after > 0  # the third found everything
    assert (again, third, n) == (whole, whole, len(CHOICES))
    assert len(kept(tmp_path / "cache")) == len(kept(tmp_path / "whole"))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("damage", ["noise", "half", "pickle", "class", "table", "empty"])
def test_a_damaged_file_does_no_harm(
    patched: tuple[Any, Any],
    folder: Path,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, trap = tmp_path / "cache", tmp_path / "trap"
    whole = run(patched, "my_choice", folder, cache)
    raw = cache.read_bytes()
    if damage in ("noise", "half", "empty"):
        cache.write_bytes(
            {"noise": b"\x80noise" * 99, "half": raw[: len(raw) // 2]}.get(damage, b"")
        )
    else:
        cache.unlink()
        with sqlite3.connect(cache) as file:
            if damage == "table":
                file.execute("CREATE TABLE unnamed (something TEXT)")
            else:
                value = b"no pickle" if damage == "pickle" else pickle.dumps(Hostile(trap))
                file.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
                file.execute("INSERT INTO unnamed VALUES ('a', ?)", (value,))
        file.close()
    assert run(patched, "my_choice", folder, cache) == whole
    assert not trap.exists()
    assert ("made anew" in capsys.readouterr().err) == (damage != "empty")


def test_its_cells_are_records_like_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A second run finds the record; --force asks the model again, not the cache."""
    spec = f"lm-eval:my_choice,include={folder}"
    asked = ("eval", "--len", "96", "--task", spec, "--out", str(tmp_path), "--json")

    def records(*more: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["ctxext", *asked, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (first,) = records()
    assert (first["metric"], first["n"], first["tokens_per_second"]) == ("acc", 4, None)
    assert first["higher_is_better"] is True
    assert sum(first["by_sample"]["scores"]) / 4 == first["value"]
    assert first["prefill_seconds"] > 0
    assert first["prefill_tokens"] > 0
    assert first["decode_seconds"] is None  # it writes no answers
    assert "lm_eval" in first["versions"]
    with monkeypatch.context() as patch:
        patch.setattr(LmEval, "evaluate", lambda *args: pytest.fail("computed again"))
        assert records() == [first]
    (cache,) = tmp_path.rglob("*.cache")
    with sqlite3.connect(cache) as base:
        base.execute("UPDATE unnamed SET value = ?", [pickle.dumps((-5.0, False))])
    (again,) = records("--force")
    assert again["value"] == first["value"]
    assert again["created"] > first["created"]


def test_a_group_has_parts(patched: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    alone, n = run(patched, "my_choice", folder, tmp_path / "one")
    group, m = run(patched, "my_sum", folder, tmp_path / "group")
    assert (group.value, m) == (alone.value, n)
    assert group.samples == alone.samples
    assert sum(score for _, score in group.samples) / n == group.value
    assert len({told for told, _ in group.samples}) == n
    assert group.stderr == pytest.approx(alone.stderr)
    assert group.parts == [{"name": "my_choice", "value": alone.value, "n": n}]


def test_examples_stand_before_questions(
    patched: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    none, _ = run(patched, "my_choice", folder, tmp_path / "0")
    run(patched, "my_choice", folder, tmp_path / "2", shots=2)
    zero, _ = run(patched, "my_choice", folder, tmp_path / "00", shots=0)
    assert kept(tmp_path / "2") != kept(tmp_path / "0") == kept(tmp_path / "00")
    assert none == zero


@pytest.mark.parametrize(("name", "metric"), zip(LONG, ("acc", "acc", "score"), strict=True))
def test_long_benchmarks_read_local_files(
    name: str, metric: str, tiny: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    """By lm_eval's own prompts and scoring: of four letters one is right, and any answer holds an
    empty one."""
    one = task(f"my_{name}", folder)
    with ctxext.patched(tiny[0], METHOD, 512):
        score, n = one.evaluate(*tiny, 512, 4, None, 0, tmp_path / "cache")
    assert (one.metric, n) == (metric, len(LONG[name][1]))
    assert score.value == {"longbench2": 0.25, "babilong": 0.5, "infinitebench": 0.0}[name]


def test_the_metric_is_the_tasks_own(folder: Path) -> None:
    names = ["my_choice", "my_writing", "my_sum", "mmlu", "wikitext", "gsm8k"]
    want = ["acc", "exact_match", "acc", "acc", "word_perplexity", "exact_match"]
    assert [task(name, folder).metric for name in names] == want
    assert isinstance(LmEval.describe()["metric"], str)


def test_whether_higher_is_better_is_the_tasks_own(folder: Path) -> None:
    names = {"my_choice": True, "my_sum": True, "my_text": False, "my_losing": False}
    assert {name: task(name, folder).higher_is_better for name in names} == names


def test_specs_parse_back(folder: Path) -> None:
    for one in (LmEval("hellaswag"), LmEval("a", shots=0), task("my_choice", folder, shots=3)):
        assert tasks.parse(str(one)) == one
    with pytest.raises(UsageError, match="needs a task"):
        tasks.parse("lm-eval")
    with pytest.raises(UsageError, match="such as 5"):
        tasks.parse("lm-eval:a,shots=-1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_choise", r"unknown lm-eval task 'my_choise': did you mean my_choice"),
        ("../..", "unknown lm-eval task"),
        ("x" * 6000, "cannot be read: .* name too long"),
        ("~no-such-user/x.yaml", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("FOLDER/broken.yaml", "cannot be read"),
        ("FOLDER/choice.jsonl", "cannot be read"),
        ("my_hub", r"hf download --repo-type dataset nobody/nothing"),
        ("hellaswag", r"hf download --repo-type dataset Rowan/hellaswag"),
        ("my_both", "has no number of its own: give its tasks: my_choice, my_writing"),
        ("my_tag", "lm-eval tag 'my_tag' has no number of its own: give its tasks: my_choice"),
        ("my_unsafe", "runs code that the model writes"),
    ],
)
def test_refused_in_one_line(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        task(name.replace("FOLDER", str(folder)), folder).check(None)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_cannot_be_asked_of_a_task(folder: Path) -> None:
    with pytest.raises(UsageError, match="takes no examples"):
        task("my_writing", folder, shots=2).check(None)
    with pytest.raises(UsageError, match=rf"writes up to {NEW} tokens: length {NEW} has no room"):
        task("my_writing", folder).resolve(512, [NEW, 64])
    with pytest.raises(UsageError, match="is not a folder"):
        LmEval("hellaswag", include="/no/such").check(None)
    one = task("my_writing", folder)
    assert one.resolve(512, [64]) is one


def test_the_hash_follows_config_code_and_data(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    text = (mine / "choice.yaml").read_text().replace(str(folder), str(mine))
    (mine / "choice.yaml").write_text(text)

    def digest() -> str:
        return task(str(mine / "choice.yaml"), folder).read("stdlib").sha256

    seen = [task(str(folder / "choice.yaml"), folder).read(None).sha256]
    assert digest() == seen[0]  # wherever the folder is
    with (mine / "choice.jsonl").open("a") as file:
        file.write("\n")
    seen.append(digest())
    (mine / "utils.py").write_text("x = 1")
    seen.append(digest())
    (mine / "choice.yaml").write_text(text.replace("{{q}}", "{{q}} "))
    seen.append(digest())
    assert len(set(seen)) == 4
    assert task("my_sum", folder).read(None).sha256 != task("my_both", folder).read(None).sha256


def test_arguments_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.registry import get_model

    import ctxext.harness  # noqa: F401 - registers

    make = get_model("ctxext").create_from_arg_string
    lm = make("pretrained=tiny,method=yarn:factor=4;beta_fast=31,length=1k", {"device": "cuda:0"})
    assert (lm.max_length, str(lm.handle.spec)) == (1024, "yarn:factor=4,beta_fast=31")
    assert isinstance(lm, get_model("hf"))
    assert lm.get_model_info()["ctxext_method"].startswith("yarn:factor=4,beta_fast=31")
    lm = make("pretrained=tiny", {"batch_size": 2})
    assert (lm.max_length, lm.batch_size, str(lm.handle.spec)) == (512, 2, "rope")
    for arguments, message in {
        "method=rope": "needs pretrained=",
        "pretrained=tiny,method=yarn:factor=4,beta_fast=31": "'beta_fast'.* write ';'",
        "pretrained=tiny,lenght=4k": "did you mean 'length'",
        "pretrained=tiny,length=4096.5": "malformed length '4096.5'",
        "pretrained=tiny,method=rerop": "did you mean 'rerope'",
        "pretrained=tiny,method=ntk": "give length= or factor",
        "pretrained=tiny,attn=fast": "unknown attention path 'fast'",
        "pretrained=tiny,dtype=int8": "unknown dtype 'int8'",
        "pretrained=/no/such/model": "/no/such/model",
    }.items():
        with pytest.raises(UsageError, match=message) as raised:
            make(arguments, {})
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(sys.modules["__main__"], "cli_evaluate", print, raising=False)
    with pytest.raises(SystemExit, match=r"error: .*'foo'"):  # as lm_eval's own command
        make("pretrained=tiny,foo=1", {})


def command(start: list[str], arguments: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*start, "--model", "ctxext", "--model_args", arguments, *more, "--batch_size", "3"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_harness_command(patched: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = f"pretrained=tiny,method={METHOD},length={LENGTH}"
    done = command(
        [sys.executable, "-m", "ctxext.harness"], arguments,
        "--tasks", "my_choice,my_writing", "--include_path", str(folder),
        "--output_path", str(out), "--use_cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "|my_choice " in done.stdout
    want = [a[0] for row in likelihoods(*patched) for a in row]
    got = kept(tmp_path / "cache_rank0.db")
    assert sorted(a for a in got if isinstance(a, str)) == sorted(
        writing(*patched, prompt) for prompt in PROMPTS
    )
    numbers = sorted(a[0] for a in got if not isinstance(a, str))
    assert numbers == pytest.approx(sorted(want), abs=2e-4)
    (record,) = tmp_path.glob("out*.json")
    assert json.loads(record.read_text())["config"]["ctxext_method"].startswith("rerope:window=16")


def test_the_model_is_known_to_lm_eval_where_it_is_registered() -> None:
    """And lm_eval's own models still are, of which it enters none where one is there."""
    start = (
        "import ctxext.harness; "
        "from lm_eval.api.registry import get_model; "
        "print(get_model('ctxext').__name__, get_model('dummy').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("ContextLM DummyLM\n", 0), done.stderr


def test_no_interpreter_runs_our_code_unasked() -> None:
    """What is installed has no `.pth` file, which `site` runs at every start."""
    root = Path(__file__).parents[1]
    assert not list((root / "ctxext").rglob("*.pth"))
    assert ".pth" not in (root / "pyproject.toml").read_text()
    hooks = "import sys; before = list(sys.meta_path); import ctxext.harness; "
    start = f"{hooks}print(before == sys.meta_path, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr
