"""vLLM on a CPU runs what is exported as the patched model: `make test-vllm`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import cells
import pytest
from commands import run

from ctxext.errors import UnsupportedModelError

vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
ENGINE = "vLLM"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@contextlib.contextmanager
def engine(place: Path, length: int, **options: Any) -> Iterator[Any]:
    """vLLM on a folder, in float32, on token ids alone."""
    from vllm.distributed import cleanup_dist_env_and_memory

    started = vllm.LLM(
        str(place), dtype="float32", max_model_len=length, enforce_eager=True, max_num_seqs=1,
        skip_tokenizer_init=True, disable_log_stats=True, **options,
    )  # fmt: skip
    try:
        yield started
    finally:
        del started
        gc.collect()
        cleanup_dist_env_and_memory()


def read(started: Any, ids: list[int]) -> tuple[dict[int, float], list[int]]:
    """log p of a prompt's tokens, by their place, and greedy tokens after it."""
    how = vllm.SamplingParams(
        temperature=0, max_tokens=cells.NEW, prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    (out,) = started.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)
    given = {i: out.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))}
    return given, list(out.outputs[0].token_ids)


@pytest.mark.parametrize("method", cells.METHODS)
@pytest.mark.parametrize("model", cells.LENGTHS)
def test_an_export_is_the_patched_model(model: str, method: str, folder: Path) -> None:
    try:
        made = cells.exported(folder, model, method, native_only=True)
    except UnsupportedModelError as error:
        cells.record(cells.refused(ENGINE, vllm.__version__, model, method, str(error)))
        if method != "cope":  # JSON has no number for pairs that do not turn
            raise
        return
    with engine(folder / f"{model}-{method}", cells.LENGTHS[model]) as started:
        given, new = read(started, cells.prompt(model))
    about = ENGINE, vllm.__version__, model, cells.source(model, folder), method, made.expression
    cells.check(cells.compare(*about, given, new))


def planned(method: str, folder: Path) -> str:
    """The command that a plan prints for vLLM."""
    done = run("plan", "--model", "tiny", "--len", cells.LENGTHS["tiny"], "--method", method,
               "--no-time", "--out", folder / "none", "--json")  # fmt: skip
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["methods"]
    return str(found["commands"]["vLLM"])


def assert_patched(method: str, given: dict[int, float], new: list[int]) -> None:
    place = cells.source("tiny", Path())
    found = cells.compare(ENGINE, vllm.__version__, "tiny", place, method, "told", given, new)
    assert found.worst <= found.allowed < found.moved / 10, found


@pytest.mark.parametrize("method", ["ntk"])
def test_overrides_that_a_plan_prints(method: str, folder: Path) -> None:
    words = shlex.split(planned(method, folder))
    told = json.loads(words[words.index("--hf-overrides") + 1])
    length = int(words[words.index("--max-model-len") + 1])
    with engine(Path(words[2]), length, hf_overrides=told) as started:
        assert_patched(method, *read(started, cells.prompt("tiny")))
