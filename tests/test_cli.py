"""The command line: exit codes, what goes to stdout and stderr, refusals, and what is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import random_model
from test_eval import (
    VOCABULARY,
    Ran,
    Run,
    evaluate,
    failing,
    kept,
    letters,
    save_model,
    tables,
)

import ctxext
from ctxext import choices, patches, tasks
from ctxext.cli import app as cli
from ctxext.engine import paths
from ctxext.measure import tokens as reading
from ctxext.models.aliases import ALIASES
from ctxext.records import problem_with
from ctxext.report import FORMATS
from ctxext.tasks.base import TokenScores

pytestmark = pytest.mark.quick

PACKAGE = Path(ctxext.__file__).parent
MAIN = "from ctxext.cli.app import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def here(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the model `plain` and the data `t.txt`."""
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def refused(ran: Ran, *words: str) -> str:
    """The one line on stderr of a usage error, which has the words."""
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return line


# Exit 0.


def test_a_table_goes_to_stdout_and_progress_to_stderr(run: Run, here: Path) -> None:
    base = ("eval", "--model", "plain", "--data", "t.txt", "--limit", "3", "--len", "32,48")
    ran = run(*base, "--method", "rerope:window=8", "--method", "ntk")
    head, *rows = tables(ran)
    assert ran.code == 0
    assert head == ["method", "32", "48", "tax (nat)", "tokens/s", "peak memory"]
    assert [row[0] for row in rows] == ["rope", "rerope:window=8", "ntk"]
    for record in evaluate(run, "--limit", 3, "--len", "32,48", "--method", "ntk").records:
        (row,) = [row for row in rows if row[0] == record["requested"]]
        cell = row[head.index(str(record["length"]))]
        shown = [float(number.rstrip("*")) for number in cell.split("±")]
        assert shown == pytest.approx([record["value"], record["stderr"]], rel=1e-2)
    path, count, *lines = ran.err.splitlines()
    assert count == "6 cells"
    assert path.startswith("attention path: sdpa · not flash: it needs a CUDA device")
    assert lines.pop(0) == "plain: trained length 32, from max_position_embeddings"
    assert [line.split()[0] for line in lines] == [f"[{n}/6]" for n in range(1, 7)]
    assert not [line for line in lines if set(line) & set("│┃━")]


DESIGNED = (
    *("model", "method", "task", "length", "metric", "value", "stderr", "n", "status", "seconds"),
    *("tokens_per_second", "peak_memory_bytes", "buckets", "versions", "device", "dtype"),
    *("attention", "data", "model_sha256", "seed", "created"),
)


def test_json_is_one_record_per_line_and_nothing_else(run: Run, here: Path) -> None:
    ran = evaluate(run, "--method", "rerope", "--task", "ppl,acc", "--seed", 7)
    assert ran.code == 0
    assert ran.out.endswith("}\n")
    assert len(ran.records) == 4
    for record in ran.records:
        assert set(DESIGNED) <= record.keys()
        assert problem_with(record) is None
        assert record["status"] == "ok"
        assert record["seed"] == 7
        assert record["data"].keys() >= {"name", "sha256"}
        assert record["versions"].keys() >= {"ctxext", "torch", "transformers", "python"}
        assert len(record["buckets"]) == 16
        assert all(b.keys() >= {"start", "stop", "nll", "acc", "n"} for b in record["buckets"])
        assert record["seconds"] > 0
        tokens = record["windows"] * record["length"]
        assert record["tokens_per_second"] == pytest.approx(tokens / record["seconds"], rel=1e-6)
    assert [r["method"] for r in ran.records] == ["rope"] * 2 + ["rerope:window=16"] * 2
    assert [r["metric"] for r in ran.records] == ["perplexity", "accuracy"] * 2


def test_the_unpatched_model_comes_first_once_per_length(run: Run, here: Path) -> None:
    ran = evaluate(
        run, "--method", "logn", "--method", "rope", "--method", "rope+rope", "--len", "48,32,32"
    )
    cells = [(r["requested"], r["length"]) for r in ran.records]
    assert cells == [("rope", 32), ("rope", 48), ("logn", 32), ("logn", 48)]


def test_progress_on_a_terminal_leaves_stdout_clean(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = evaluate(run, "--method", "ntk:factor=2", "--len", "32,48")
    assert ran.code == 0
    assert len(ran.records) == 4
    assert "ntk:factor=2 48 perplexity" in ran.err


@pytest.mark.parametrize("name", ["模型 🦙", "new\nline", "--model", "[bold]x", "a" * 200])
def test_any_folder_name_will_do(run: Run, here: Path, name: str) -> None:
    shutil.copytree("plain", name)
    shutil.copy("t.txt", data := f"{name[:150]}.txt")
    ran = evaluate(run, "--model", f"./{name}", "--data", data)
    assert ran.code == 0
    assert ran.records[0]["model"] == f"./{name}"
    assert ran.records[0]["data"]["name"] == data
    (file,) = kept()
    assert file.isascii()
    assert file.isprintable()
    assert run("report").code == run("report", "--format", "md").code == 0


# Exit 1.


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no room"), "oom"),
        (torch.OutOfMemoryError("no room"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: no room"), "oom"),
        (RuntimeError("no\nroom"), "error"),
        (IndexError("no room"), "error"),
    ],
    ids=repr,
)
def test_a_failed_cell_leaves_the_rest(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    asked = ("--method", "ntk:factor=2", "--method", "logn", "--batch-size", "1")
    with monkeypatch.context() as patch:
        real, calls = reading.score, itertools.count()

        def fail_second(*args: Any) -> TokenScores:
            if next(calls) == 1:
                raise error
            return real(*args)

        patch.setattr(reading, "score", fail_second)
        ran = evaluate(run, *asked)
    good, bad, last = ran.records
    assert ran.code == 1
    assert (good["status"], bad["status"], last["status"]) == ("ok", status, "ok")
    assert (bad["value"], bad["stderr"], bad["n"], bad["buckets"]) == (None, None, 0, [])
    assert type(error).__name__ in bad["reason"]
    assert "room" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert len(kept()) == 3
    again = evaluate(run, *asked)
    assert again.code == 0
    assert [r["status"] for r in again.records] == ["ok"] * 3


def test_a_failed_cell_is_in_the_table(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, MemoryError("no room"), after=1)
    ran = run(
        *("eval", "--model", "plain", "--data", "t.txt", "--len", "32", "--limit", "2"),
        *("--method", "logn"),
    )
    rows = {row[0]: row[1:] for row in tables(ran)}
    assert ran.code == 1
    assert rows["logn"] == ["oom", "–", "–", "–"]
    assert rows["rope"][0] != "oom"


def test_a_window_that_is_not_finite_fails_its_cell(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reading.score

    def spoiled(*args: Any) -> TokenScores:
        scores = real(*args)
        scores.nll[34] = math.nan
        return scores

    monkeypatch.setattr(reading, "score", spoiled)
    ran = evaluate(run, "--task", "ppl,acc")
    assert ran.code == 1
    assert [(r["status"], r["value"]) for r in ran.records] == [("error", None)] * 2


# Exit 130.


def test_an_interrupt_keeps_and_shows_what_is_done(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--method", "ntk:factor=2", "--method", "logn")
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), after=2)
        ran = evaluate(run, *asked)
        assert ran.code == 130
        assert [r["requested"] for r in ran.records] == ["rope", "ntk:factor=2"]
        assert "interrupted" in ran.err.splitlines()[-1]
        before = kept()
        assert len(before) == 2
        base = ("--model", "plain", "--data", "t.txt", "--len", "32", "--limit", "2")
        failing(patch, KeyboardInterrupt())
        ran = run("eval", *base, *asked)
        assert ran.code == 130
        assert [row[0] for row in tables(ran)] == ["method", "rope", "ntk:factor=2"]
    ran = evaluate(run, *asked)
    assert ran.code == 0
    assert len(ran.records) == 3
    assert before.items() < kept().items()


@pytest.mark.parametrize("where", ["load_model", "load_tokenizer", "load_config"])
def test_an_interrupt_while_loading(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ctxext.models.loading.{where}", stop)
    ran = evaluate(run)
    assert (ran.code, ran.out, kept()) == (130, "", {})
    assert "Traceback" not in ran.err


TAKEN = {
    "tiny": "model 'tiny' is the shipped one, not the folder here: write ./tiny for that",
    "./tiny": None,
    "plain": None,
    "yi": "model 'yi' is 01-ai/Yi-6B on the Hub, not the folder here: write ./yi for that",
    "./yi": None,
    "org/yi": "model 'org/yi' is the folder here, not the Hub's: write ./org/yi to be clear",
    "./org/yi": None,
    "stablelm": "model 'stablelm' is the folder stabilityai/stablelm-2-1_6b here, not the Hub's",
}


@pytest.mark.parametrize("name", TAKEN)
def test_which_of_two_models_a_name_is(run: Run, here: Path, name: str) -> None:
    """A folder of an alias' name is meant where it is written as a path."""
    for folder in ("tiny", "yi", "org/yi", "stabilityai/stablelm-2-1_6b"):
        shutil.copytree("plain", folder)
    ran, line = evaluate(run, "--model", name), TAKEN[name]
    said = [text for text in ran.err.splitlines() if text.startswith("model ")]
    assert said == ([] if line is None else [line])
    if name == "yi":  # which nobody can reach here
        assert ran.code == 2
        assert "'yi' (01-ai/Yi-6B) could not be had from the Hub" in ran.err
    elif name != "tiny":
        assert {record["model"] for record in ran.records} == {name}
        assert {record["trained_length"] for record in ran.records} == {32}
    else:
        assert ran.records[0]["trained_length"] == 512


# Exit 2: arguments.

ALL_METHODS = ", ".join(patches.names())
ALL_TASKS = ", ".join(tasks.names())

BAD = {
    ("--model", "tinny"): ("'tinny'", "did you mean 'tiny'", *ALIASES),
    ("--model", "nope"): ("'nope'", *ALIASES),
    ("--model", "llama"): ("meta-llama/Llama-2-7b-hf", "HF_HUB_OFFLINE", "hf download"),
    ("--model", "nobody/nothing"): ("'nobody/nothing'", "offline", "hf download", *ALIASES),
    ("--model", "t.txt"): ("'t.txt' is a file",),
    ("--model", "a/b/c"): ("'a/b/c'",),
    ("--model", "n\0ul"): ("'n\\x00ul'",),
    ("--model", "new\nline"): ("'new\\nline'",),
    ("--model", "🦙"): ("'🦙'",),
    ("--model", "x" * 5000): ("xxx",),
    ("--model", "/"): ("'/'",),
    ("--method", "rerop"): ("'rerop'", "did you mean 'rerope'", ALL_METHODS),
    ("--method", ""): ("''", ALL_METHODS),
    ("--method", "base"): ("'base'", ALL_METHODS),
    ("--method", "../x"): ("'../x'", ALL_METHODS),
    ("--method", "rerope\0"): ("'rerope\\x00'",),
    ("--method", "🦙\n"): ("🦙",),
    ("--method", "rerope+"): ("''",),
    ("--method", "rerope:windo=4"): ("'windo'", "did you mean 'window'"),
    ("--method", "rerope:window"): ("'window'", "name:key=value"),
    ("--method", "rerope:window=4,window=5"): ("'window'", "twice"),
    ("--method", "rerope:window=0"): ("'0'", "'window'"),
    ("--method", "rerope:window=1e3"): ("'1e3'", "tokens"),
    ("--method", "ntk:factor=nan"): ("'nan'", "finite"),
    ("--method", "ntk:factor=0.5"): ("0.5", "at least 1"),
    ("--method", "rerope+leaky-rerope"): ("rerope and leaky-rerope",),
    ("--method", "logn:clip=yes"): ("'yes'", "true or false"),
    ("--task", "pppl"): ("'pppl'", "did you mean 'ppl'", ALL_TASKS),
    ("--task", "ppl,"): ("''", ALL_TASKS),
    ("--task", "ruler:vt,"): ("''", ALL_TASKS),
    ("--task", "ruler:vt,passkye"): ("'passkye'", "did you mean 'passkey'", ALL_TASKS),
    ("--task", "ruler:vt,cew"): ("unknown ruler task 'cew'", "did you mean 'cwe'"),
    ("--task", "passkey:samples=2,foo"): ("unknown task 'foo'", ALL_TASKS),
    ("--task", "ppl:stride=2"): ("'stride'",),
    ("--task", "windows"): ("'windows'", ALL_TASKS),
    **{("--len", bad): (repr(bad), "16k") for bad in ("", "k", "0", "-5", "1e3", "1.5k", "１６")},
    ("--len", "99999999999"): ("'99999999999'",),
    ("--len", "32,,48"): ("''",),
    ("--len", "1"): ("length 1",),
    ("--len", "1m"): ("tokens", "--len"),
    ("--tokens", "20"): ("20 tokens",),
    ("--tokens", "x"): ("'x'",),
    ("--limit", "0"): ("--limit", "0"),
    ("--limit", "-1"): ("--limit", "-1"),
    ("--limit", "few"): ("--limit",),
    ("--batch-size", "-1"): ("--batch-size", "-1"),
    ("--batch-size", "1.5"): ("--batch-size",),
    ("--attn", "flahs"): ("'flahs'", "did you mean"),
    ("--dtype", "fp16"): ("'fp16'", "float16"),
    ("--device", "cuda:99"): ("'cuda:99'", "auto"),
    ("--device", "gpu"): ("'gpu'",),
    ("--device", ""): ("''",),
    ("--load-in", "3bit"): ("'3bit'", "4bit, 8bit"),
    ("--train-len", "0"): ("'0'",),
    ("--train-len", "1"): ("1",),
    ("--data", "no.txt"): ("'no.txt'", "No such file"),
    ("--data", "plain"): ("'plain'", ".jsonl"),
    ("--data", "n\0ul.txt"): ("null",),
    ("--data", "hf:nobody/nothing"): ("'hf:nobody/nothing'",),
    ("--out", "t.txt"): ("t.txt",),
    ("--out", "t.txt/sub/deeper"): ("t.txt",),
    ("--out", "n\0ul"): ("null",),
    ("--out", "x" * 300): ("xxx",),
    ("--mehtod", "ntk"): ("--mehtod", "--method"),
    ("--seed", "x"): ("--seed",),
    ("--model", ""): ("aliases",),
    ("--model", "./no-such"): ("no such folder or .gguf file",),
    ("--model", "."): ("has no config.json",),
    ("--model", "a/\x1b[31mred"): ("red",),
    ("--model", "a/n\0ul"): ("ul",),
    ("--method", "yarn:beta_fast=1e308"): ("beta_fast",),
    ("--device", "meta"): ("'meta'",),
    ("--device", "hpu"): ("'hpu'",),
    ("--seed", "-1"): ("-1",),
    ("--seed", str(2**63)): (str(2**63),),
    ("--batch-size", str(2**70)): ("--batch-size",),
}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [(*given, words) for given, words in BAD.items()],
    ids=lambda x: ascii(x)[:30] if isinstance(x, str) else "",
)
def test_a_bad_argument_is_one_line(
    run: Run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(reading, "score", lambda *args: pytest.fail("computed"))
    ran = evaluate(run, option, value)
    assert refused(ran, *words).isprintable()
    assert not (here / "results").exists() or not kept()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is there")
def test_quantization_without_bitsandbytes_says_what_to_install(run: Run, here: Path) -> None:
    refused(evaluate(run, "--load-in", "4bit"), "bitsandbytes", "pip install")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_where_there_is_none(run: Run, here: Path) -> None:
    refused(evaluate(run, "--device", "cuda"), "'cuda'", "not available")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"too short", "fewer than one window of 32"),
    ],
)
def test_bad_data_is_one_line(run: Run, here: Path, content: bytes, words: str) -> None:
    Path("t.txt").write_bytes(content)
    refused(evaluate(run), "'t.txt'", words)


def test_half_a_character_in_the_data_is_one_line(run: Run, here: Path) -> None:
    Path("d.jsonl").write_text(json.dumps({"text": "\ud83e" + letters()}))
    refused(evaluate(run, "--data", "d.jsonl"), "'d.jsonl'")


PATCH = ("patch", "--model", "plain")
PATCH_BAD = (
    ("--format", "onnx"),
    ("--verify", "never"),
    ("--private",),
    ("--config-only", "--link"),
    ("--config-only", "--verify", "full"),
    ("--format", "gguf", "--link"),
    ("--format", "gguf", "--verify", "full"),
    ("--push-to-hub", "a/b/c"),
    ("--push-to-hub", "../x"),
    ("--train-len", "0"),
)


@pytest.mark.parametrize(
    "argv",
    [
        ("evall",),
        ("eval",),
        ("eval", "--len", "32", "more"),
        ("report", "--format", "pdf"),
        ("report", "--format", "html"),
        ("report", "--out", "nowhere"),
        ("report", "--out", "t.txt"),
        ("report", "--out", "plain"),
        ("models", "--jsonn"),
        (*PATCH, "--method", "ntk", "--len", "64", "--out", "t.txt/new"),
        (*PATCH, "--method", "ntk", "--len", "1", "--out", "new"),
        (*PATCH, "--method", "ntk", "--len", "64", "--out", "plain"),
        *((*PATCH, "--method", "ntk", "--len", "64", "--out", "new", *rest) for rest in PATCH_BAD),
        *(
            (*PATCH, "--method", "rerope", "--len", "64", "--out", "new", option)
            for option in ("--native-only", "--config-only", "--format=gguf")
        ),
    ],
    ids=" ".join,
)
def test_other_commands_refuse_alike(run: Run, here: Path, argv: tuple[str, ...]) -> None:
    before = sorted(path.name for path in here.rglob("*"))
    ran = run(*argv)
    lines = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert lines[-1].startswith("error: ")
    if argv[:3] != ("report", "--out", "plain"):  # where each file that is no record is told
        assert len(lines) == 1
    assert sorted(path.name for path in here.rglob("*")) == before


@pytest.mark.parametrize(("method", "how"), [("yarn", "yarn"), ("rerope+logn", "carried code")])
def test_an_export_tells_what_a_fresh_process_found(
    run: Run, here: Path, method: str, how: str
) -> None:
    ran = run(*PATCH, "--method", method, "--len", "96", "--out", "new", "--json")
    (record,) = ran.records
    assert ran.code == 0
    assert (record["expression"], record["out"]) == (how, "new")
    assert record["files"] == sorted(path.name for path in Path("new").iterdir())
    assert all(figure["value"] == 0 for figure in record["proof"])
    card = Path("new/README.md").read_text()
    for figure in record["proof"]:
        assert f"| {figure['what']} | 0 |" in card
    ran = run(*PATCH, "--method", method, "--len", "96", "--out", "new", "--force", "--verify=full")
    line = "plain: trained length 32, from max_position_embeddings\n"
    assert (ran.code, ran.err) == (0, line)
    assert ran.out.startswith(f"new: plain with {record['method']}, written ")
    if how == "carried code":
        on = ("--model", "new", "--len", "32", "--trust-remote-code")
        refused(run("eval", *on), "'new' carries its own patch", record["method"])


def test_an_export_that_is_another_model_is_removed(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctxext.export import native

    monkeypatch.setattr(native, "_check_frequencies", lambda *_: None)
    monkeypatch.setattr(native, "_edits", lambda raw, *_: iter([{**raw, "rope_theta": 9999.0}]))
    ran = run(*PATCH, "--method", "pi", "--len", "96", "--out", "new")
    assert (ran.code, ran.out) == (2, "")
    assert "llama" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir()) == ["plain", "t.txt"]


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    ran = run()
    assert ran.err != "error: \n"
    assert "eval" in ran.out + ran.err


# Exit 2: folders that are no model.


def edit_json(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        path = model / file
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return edit


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda model: void((model / file).write_bytes(content))


def cut(file: str, share: float) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        content = (model / file).read_bytes()
        (model / file).write_bytes(content[: int(len(content) * share)])

    return edit


def remove(*files: str) -> Callable[[Path], None]:
    return lambda model: void([(model / file).unlink() for file in files])


def void(_: object) -> None:
    """For lambdas that edit."""


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload()}, model / "pytorch_model.bin")


def own_code(model: Path) -> None:
    edit_json("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})(model)
    (model / "own.py").write_text("open('executed', 'w')")


def own_tokenizer(model: Path) -> None:
    names = {"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}, "tokenizer_class": "T"}
    edit_json("tokenizer_config.json", **names)(model)
    (model / "own.py").write_text("open('executed', 'w')")


def gpt2(model: Path) -> None:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=VOCABULARY
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(model)


def falcon(model: Path) -> None:
    config = transformers.FalconConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCABULARY,
    )  # fmt: skip
    transformers.FalconForCausalLM(config).save_pretrained(model)


BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no rotary embeddings": (gpt2, ("gpt2", "no rotary embeddings")),
    "no config": (remove("config.json"), ()),
    "empty config": (write("config.json", b""), ("config.json",)),
    "binary config": (write("config.json", bytes(range(256))), ("config.json",)),
    "config is a list": (write("config.json", b"[1, 2]"), ()),
    "config is null": (write("config.json", b"null"), ()),
    "config of no type": (write("config.json", b"{}"), ("model_type",)),
    "nested config": (write("config.json", b"[" * 200_000), ()),
    "nested objects": (write("config.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), ()),
    "unknown type": (edit_json("config.json", model_type="no-such"), ("no-such",)),
    "type of a wrong type": (edit_json("config.json", model_type=["llama"]), ()),
    "length of a wrong type": (edit_json("config.json", max_position_embeddings="x"), ()),
    "no length": (
        edit_json("config.json", max_position_embeddings=0),
        ("max_position_embeddings", "cannot be 0"),
    ),
    "heads": (edit_json("config.json", num_attention_heads=0), ()),
    "another width": (edit_json("config.json", hidden_size=32), ()),
    "another vocabulary": (edit_json("config.json", vocab_size=200), ()),
    "rope of a wrong type": (edit_json("config.json", rope_parameters=[1]), ("rope",)),
    "unknown rope": (edit_json("config.json", rope_parameters={"rope_type": "zz"}), ("zz",)),
    "empty weights": (cut("model.safetensors", 0), ()),
    "truncated weights": (cut("model.safetensors", 0.9), ()),
    "truncated header": (cut("model.safetensors", 0.001), ()),
    "no weights": (remove("model.safetensors"), ("model.safetensors",)),
    "weights that are code": (pickled, ("pickle of more than tensors",)),
    "own code": (own_code, ("--trust-remote-code",)),
    "own tokenizer": (own_tokenizer, ("--trust-remote-code",)),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ("tokenizer",)),
    "empty tokenizer": (write("tokenizer.json", b""), ()),
    "binary tokenizer": (write("tokenizer.json", bytes(range(256))), ()),
    "nested tokenizer": (write("tokenizer.json", b"[" * 200_000), ()),
    "truncated tokenizer": (cut("tokenizer.json", 0.5), ()),
    "tokenizer without model": (edit_json("tokenizer.json", model=...), ()),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_folder_is_one_line(run: Run, here: Path, case: str) -> None:
    breaks, words = BROKEN[case]
    breaks(here / "plain")
    refused(evaluate(run, "--method", "rerope", "--len", "16"), *words)
    assert not Path("executed").exists()


def test_a_model_that_takes_no_distance_method_is_measured_without(run: Run, here: Path) -> None:
    falcon(here / "plain")
    ran = evaluate(run, "--method", "rerope", "--len", "16")
    assert (ran.code, [r["status"] for r in ran.records]) == (1, ["ok", "error"])
    assert "attention interface" in ran.records[1]["reason"]


def test_own_code_needs_the_option_by_name(run: Run, here: Path) -> None:
    own_code(here / "plain")
    refused(evaluate(run), "--trust-remote-code")


def test_a_tokenizer_that_cannot_encode_is_one_line(run: Run, here: Path) -> None:
    edit_json("tokenizer_config.json", tokenizer_class="BertTokenizer")(here / "plain")
    refused(evaluate(run), "'plain'")


def test_tokens_that_the_model_does_not_have_fail_the_cell(run: Run, here: Path) -> None:
    random_model(vocab_size=50).save_pretrained("plain")
    ran = evaluate(run)
    assert ran.code == 1
    assert ran.records[0]["status"] == "error"
    assert "Traceback" not in ran.err


def test_code_in_the_folder_runs_only_when_trusted(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(here / "cache")  # transformers copies the code, by default into the home folder
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)
    (here / "plain" / "own.py").write_text(
        "from transformers import LlamaConfig\n"
        "open('executed', 'w')\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
    )
    edit_json("config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})(
        here / "plain"
    )
    refused(evaluate(run))
    assert not Path("executed").exists()
    evaluate(run, "--trust-remote-code")
    assert Path("executed").exists()


# The lists.


@pytest.mark.parametrize("command", ["methods", "models", "tasks"])
def test_the_lists_name_everything(run: Run, command: str) -> None:
    names = {"methods": patches.names(), "models": list(ALIASES), "tasks": tasks.names()}[command]
    text, lines = run(command), run(command, "--json")
    assert (text.code, text.err, lines.code, lines.err) == (0, "", 0, "")
    assert [entry["name"] for entry in lines.records] == names
    words = [line.split()[0] for line in text.out.splitlines() if line[:1].strip()]
    assert words == names
    for entry in lines.records:
        assert all(str(value) for value in entry.values())


def test_model_types_have_a_line_each(run: Run) -> None:
    text, lines = run("models", "--families"), run("models", "--families", "--json")
    assert (text.code, lines.code, lines.err) == (0, 0, "")
    assert "transformers" in text.err
    names = [entry["model_type"] for entry in lines.records]
    assert [line.split()[0] for line in text.out.splitlines()] == names == sorted(names)
    assert {"llama", "qwen3", "gemma3_text", "gpt_oss", "deepseek_v3"} <= set(names)
    for entry in lines.records:
        assert entry.keys() == {"model_type", "frequency", "distance", "decoding", "export"}


def test_every_method_says_what_it_is(run: Run) -> None:
    text = run("methods").out
    assert "\n\n  T is the trained length and L the evaluated one" in text
    assert text.count("\n  inside T: ") == text.count("\n  beyond T: ") == len(patches.names())
    for entry in run("methods", "--json").records:
        assert entry.keys() >= {
            "name",
            "kind",
            "summary",
            "formula",
            "source",
            "inside_t",
            "beyond_t",
        }


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("eval",),
        ("bench",),
        ("plan",),
        ("explain",),
        ("tune",),
        ("patch",),
        ("report",),
        ("methods",),
    ],
)
def test_help(run: Run, command: tuple[str, ...]) -> None:
    ran = run(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    expected = {(): ["eval", "bench", "explain", "tune", "patch", "report", "methods", "models"]}
    expected["tune",] = ["--objective", "--tax", "--trials", "--method", "--len", "--json"]
    expected["eval",] = ["--model", "--method", "--len", "--task", "--data", "--limit", "--json"]
    for word in expected.get(command, ["--"]):
        assert word in ran.out


def test_a_report_prints_what_eval_printed(run: Run, here: Path) -> None:
    ran = run(
        *("eval", "--model", "plain", "--data", "t.txt", "--len", "32,48", "--limit", "2"),
        *("--method", "ntk:factor=2", "--task", "ppl,acc"),
    )
    report = run("report", "--write")
    assert report.code == 0
    assert report.out == ran.out
    assert Path("results/tables.md").read_text() == run("report", "--format", "md").out
    assert [path.suffix for path in sorted(Path("results").glob("loss-*"))] == [".png", ".svg"]
    assert run("report").out == ran.out


def test_a_report_shows_the_methods_that_are_chosen_in_their_order(run: Run, here: Path) -> None:
    few = ("--method", "pi:factor=2", "--method", "ntk:factor=2")
    evaluate(run, *few, "--method", "logn")
    ran = run("report", "--format", "csv", *few[:3], "ntk:factor=2.0")  # the same by another name
    methods = [line.split(",")[4] for line in ran.out.splitlines()[1:]]
    assert methods == ["rope", "pi:factor=2", "ntk:factor=2"]
    assert not Path("results/tables.md").exists()
    for unknown, words in (("nkt", "unknown method 'nkt'"), ("dca", "no record of the method")):
        ran = run("report", "--method", unknown)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert words in ran.err
        assert "did you mean" in ran.err or "valid: logn, ntk:factor=2, pi" in ran.err


def test_a_report_calls_methods_as_it_is_told(run: Run, here: Path) -> None:
    evaluate(run, "--method", "pi:factor=2", "--method", "ntk:factor=2")
    called = ("--label", "ntk:factor=2=Ours (λ=2)", "--method", "ntk:factor=2")
    for style in ("table", "md", "csv", "latex"):
        ran = run("report", "--format", style, *called)
        assert ran.code == 0, ran
        assert "Ours (" in ran.out
        assert "ntk" not in ran.out
    written = run("report", "--write", "--no-plots", *called)
    assert "tables--ntk-factor=2.md" in written.err  # files go by what was asked for
    for bad, words in (
        ("nkt=Ours", "but rope; valid: ntk:factor=2, pi:factor=2"),
        ("rope=RoPE", "of a method with a record but rope"),
        ("ntk:factor=2=", "bad name ''"),
        ("ntk:factor=2=a: b", "bad name 'a: b'"),
        ("ntk:factor=2=rope", "another has it too"),
        ("ntk:factor=2=pi:factor=2", "bad name"),
    ):
        ran = run("report", "--label", bad)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert words in ran.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("eval", "--method", "ntk", "yarn", "--len", "32"), "did you mean --method yarn?"),
        (("eval", "--method=ntk", "--len", "32", "64"), "did you mean --len 64?"),
        (("eval", "--limit", "2", "64"), "see ctxext eval --help"),
        (("methods", "ntk"), "see ctxext methods --help"),
    ],
)
def test_a_value_without_its_option_is_told_where_it_belongs(
    run: Run, argv: tuple[str, ...], words: str
) -> None:
    ran = run(*argv)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words in ran.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names of files")
def test_a_file_whose_name_is_no_text_is_measured(run: Run, here: Path) -> None:
    name = "t\udcff.txt"
    Path(name).write_bytes(Path("t.txt").read_bytes())
    ask = ("eval", "--model", "plain", "--data", name, "--len", "32", "--limit", "1")
    ran = run(*ask)
    assert (ran.code, "t?.txt" in ran.out) == (0, True), ran
    assert "1 cell, found" in run(*ask).err


def folder_of(path: str) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def test_a_report_writes_nothing_unless_it_is_asked_to(run: Run, here: Path) -> None:
    """So that a folder that cannot be written to is read all the same."""
    evaluate(run, "--method", "ntk")
    before = folder_of("results")
    for style in ("table", "md", "csv", "latex"):
        ran = run("report", "--format", style)
        assert (ran.code, ran.err) == (0, "")
        assert "ntk" in ran.out
    page = run("report", "--format", "html")
    assert (page.code, page.out) == (2, "")
    assert "add --write, for report.html" in page.err
    assert folder_of("results") == before


def test_what_is_written_is_named_and_a_part_takes_no_place_of_the_whole(
    run: Run, here: Path
) -> None:
    evaluate(run, "--method", "ntk", "--method", "pi")
    whole = run("report", "--write", "--format", "html")
    kept = folder_of("results")
    assert {"tables.md", "report.html"} < set(kept)
    part = run("report", "--write", "--method", "ntk", "--format", "csv")
    assert part.out == Path("results/tables--ntk.csv").read_text()
    new = folder_of("results")
    assert {name: new[name] for name in kept} == kept
    told = [line.removeprefix("wrote results/") for line in part.err.splitlines()]
    assert sorted(told) == sorted(set(new) - set(kept))
    assert {"tables--ntk.md", "tables--ntk.csv"} < set(told)
    pictures = [name for name in kept if name.endswith((".png", ".svg"))]
    assert set(told[2:]) == {f"{Path(p).stem}--ntk{Path(p).suffix}" for p in pictures}
    assert whole.out == ""
    assert "pi" not in Path("results/tables--ntk.md").read_text()


def test_a_report_tells_which_files_it_skips(run: Run, here: Path) -> None:
    evaluate(run)
    Path("results/bad.json").write_text("{")
    Path("results/folder.json").mkdir()
    ran = run("report", "--format", "csv")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 2
    skipped = [line for line in ran.err.splitlines() if line.startswith("skipped: ")]
    assert [line.split()[1] for line in skipped] == ["bad.json:", "folder.json:"]


# The terminal.


@pytest.mark.parametrize(
    "columns",
    ["", "0", "-5", "20", "99999", "wide"],
)
def test_any_width_will_do(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    base = ("eval", "--model", "plain", "--data", "t.txt", "--limit", "2", "--len", "32,48,64")
    monkeypatch.setenv("COLUMNS", columns)
    ran = run(
        *base, "--method", "leaky-rerope:window=8,leak=3.5+logn+ntk:factor=2.5+pi:factor=1.25"
    )
    assert ran.code == 0
    assert "leaky-rerope:window=8,leak=3.5+logn+ntk:factor=2.5+pi:factor=1.25" in ran.out


@pytest.mark.parametrize(("command", "encoding"), [("methods", "cp1252"), ("report", "ascii")])
def test_a_terminal_without_greek_letters(
    here: Path, monkeypatch: pytest.MonkeyPatch, run: Run, command: str, encoding: str
) -> None:
    evaluate(run)
    with open("out", "w", encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["ctxext", command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        stdout.flush()
    assert ended.value.code == 0
    assert Path("out").stat().st_size > 100


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ctxext", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_module_and_the_script_are_the_command(run: Run) -> None:
    done = subprocess.run([sys.executable, "-m", "ctxext", "models"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == run("models").out
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="ctxext")
    assert script.load() is cli.main


# Completion.

COMPLETED = {
    "ctxext ": "eval bench patch export plan explain tune report check methods models tasks score",
    "ctxext eval --attn ": "auto flash sdpa eager",
    "ctxext eval --dtype f": "float32 float16",
    "ctxext eval --own-scaling r": "replace",
    "ctxext eval --load-in ": "4bit 8bit",
    "ctxext eval --method ntk+re": "ntk+rerope",
    "ctxext eval --task ppl,pass": "ppl,passkey",
    "ctxext eval --model tiny-": "tiny-logn tiny-inv-leaky",
    "ctxext bench --attn f": "flash",
    "ctxext patch --format ": "hf gguf",
    "ctxext export --verify ": "quick full",
    "ctxext report --format ": "table md csv latex html",
}
COMPLETE = """
import os, sys
from ctxext.cli.app import main
sys.argv = ["ctxext"]
for words in sys.stdin.read().splitlines():
    os.environ |= {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    print(f"> {words}", flush=True)
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
found = [name for name in ("torch", "transformers", "numpy", "pandas") if name in sys.modules]
assert not found, found
"""


def test_completion_knows_names_and_choices_and_imports_nothing_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        input="\n".join(COMPLETED),
        capture_output=True,
        text=True,
        env=os.environ | {"_CTXEXT_COMPLETE": "complete_bash"},
    )
    assert done.returncode == 0, done.stderr
    blocks = [block.splitlines() for block in done.stdout.split("> ")[1:]]
    assert {words: " ".join(found) for words, *found in blocks} == COMPLETED


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_is_installed_for_a_shell(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'import sys; sys.argv[0] = \"ctxext\"; {MAIN}'"
    done = subprocess.run(
        ["bash", "-c", f"{command} --install-completion; exit $?"],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "ctxext" in (tmp_path / ".bash_completions" / "ctxext.sh").read_text()


def test_each_word_is_listed_by_help_and_known_where_it_is_used(run: Run) -> None:
    for argv, kind in {
        ("eval",): choices.Attention,
        ("bench",): choices.Attention,
        ("tune",): choices.OwnScaling,
        ("export",): choices.ExportFormat,
        ("report",): choices.ReportFormat,
    }.items():
        shown = run(*argv, "--help").out
        assert [word for word in choices.words(kind) if word not in shown] == []
    assert {*choices.words(choices.ReportFormat)} == {"table", *FORMATS}
    assert {*choices.words(choices.AttentionPath)} < paths._PATHS.keys()


def test_export_is_another_name_of_patch(run: Run) -> None:
    assert "export" in run("patch", "--help").out
    assert "patch" in run("export", "--help").out
    known = {one.name or one.callback.__name__: one.callback for one in cli.app.registered_commands}
    assert known["export"] is known["patch"]


# What is imported.

HEAVY = ("torch", "transformers", "datasets", "numpy", "accelerate")
LIGHT = """
import sys
from ctxext.cli import app as cli
import ctxext.records, ctxext.report, ctxext.tasks.data
heavy, late = sys.argv[1].split(), ["pandas", "matplotlib"]
helps = [[name, "--help"] for name in ("eval", "bench", "plan", "explain", "tune")]
for argv in (["--help"], *helps, ["methods"], ["models"], ["tasks"], ["report", "--write"]):
    if argv[0] == "report":
        heavy.remove("numpy"), late.clear()  # matplotlib needs numpy
    sys.argv = ["ctxext", *argv]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, argv
    found = [name for name in heavy + late if name in sys.modules]
    assert not found, (argv, found)
"""


def test_what_needs_no_model_imports_neither_torch_nor_transformers(run: Run, here: Path) -> None:
    evaluate(run)
    done = subprocess.run([sys.executable, "-c", LIGHT, " ".join(HEAVY)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_environment_is_left_alone(run: Run, here: Path) -> None:
    """No command may change how torch computes for whoever called it."""
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    evaluate(run, "--method", "rerope", "--dtype", "bfloat16")
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before
    assert os.getcwd() == str(here)


def test_verbose_shows_what_is_logged_and_tracebacks(here: Path) -> None:
    command = [sys.executable, "-m", "ctxext", "-v", "eval", "--model", "plain", "--data", "t.txt"]
    command += ["--len", "64", "--limit", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "INFO ctxext: loading plain: float32 on cpu, sdpa\n" in done.stderr
    assert json.loads(done.stdout)["status"] == "ok"
    done = subprocess.run([*command, "--attn", "none"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: unknown attention path 'none'")


@pytest.mark.parametrize(
    ("method", "package"),
    [("gptq", "optimum"), ("awq", "gptqmodel"), ("bitsandbytes", "bitsandbytes")],
)
def test_a_quantized_folder_says_what_to_install(
    run: Run, here: Path, method: str, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip("it is there")
    quantized = {"quant_method": method, "bits": 4, "group_size": 128}
    quantized |= {"load_in_4bit": True} if method == "bitsandbytes" else {}
    config = json.loads(Path("plain/config.json").read_text())
    Path("plain/config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
    ran = run("eval", "--model", "plain", "--data", "t.txt", "--len", "64")
    refused(ran, "model folder 'plain' cannot be loaded: ", "pip install", package)
