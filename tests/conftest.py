"""Small random models, one per rotary layout, whose weights are large enough to show positions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the Hub
# a folder of this process, which removes it when it ends
os.environ.setdefault("CTXEXT_CACHE", (OURS := TemporaryDirectory(prefix="ctxext-")).name)
os.environ.setdefault("HF_MODULES_CACHE", f"{OURS.name}/modules")

import numpy as np
import pytest
import torch
import transformers

from ctxext.export import check, fresh
from ctxext.models.calls import cache_name
from ctxext.tasks.windows import Windows

transformers.utils.logging.set_verbosity_error()

TRAINED = 32  # tokens
CACHE = cache_name(transformers.LlamaForCausalLM)  # what forwards and their outputs call it

FAMILIES = {
    "llama-gqa": ("LlamaForCausalLM", "LlamaConfig", {}),
    "cohere-interleaved": ("CohereForCausalLM", "CohereConfig", {}),
    "glm-interleaved-partial": ("GlmForCausalLM", "GlmConfig", {"head_dim": 16}),
    "phi-partial-outside": ("PhiForCausalLM", "PhiConfig", {}),
    "gpt_neox-partial-inside": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "qwen3-qk-norm": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16}),
}


SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(
    family: str = "llama-gqa", seed: int = 0, **changes: object
) -> transformers.PreTrainedModel:
    """A random float32 model of two layers, vocabulary 97 and trained length 32."""
    model_class, config_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{**SETTINGS, **own, **changes})
    return getattr(transformers, model_class)(config).eval()


@pytest.fixture
def llama() -> transformers.PreTrainedModel:
    """A fresh random Llama with grouped-query attention."""
    return random_model()


SHORT, LONG = [1.0] * 64, [1 + i / 3 for i in range(64)]  # longrope's lists, by the pair


def fitted(spec: str, pairs: int) -> str:
    """The spec with lists of so many pairs for `longrope`, which has none of its own."""
    file = Path(OURS.name) / f"{pairs}.json"
    if not file.exists():
        lists = {"short_factor": SHORT[:pairs], "long_factor": LONG[:pairs]}
        file.write_text(json.dumps(lists))
    return re.sub(
        r"\blongrope\b(:)?", lambda m: f"longrope:factors=@{file}{',' * bool(m[1])}", spec
    )


def pairs_of(model: transformers.PreTrainedModel) -> int:
    """d/2 of a model."""
    return len(model.base_model.rotary_emb.inv_freq)


def tokens(length: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    """Random token ids [batch, length] that avoid the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (batch, length), generator=generator)


@contextlib.contextmanager
def checked_here(box: Path, job: dict[str, Any], _: float | None) -> Iterator[fresh.Fresh]:
    """What a proof starts, but that the check runs in this process."""
    stream = io.BytesIO()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]  # the code of a folder before this one
    try:
        check._answer(stream, job)
        check.send(stream, "end", **check._about())
    except Exception as error:
        check.send(stream, "end", error=check.one_line(error))
    stream.seek(0)
    yield fresh.Fresh(SimpleNamespace(stdout=stream), box, None)  # type: ignore[arg-type]


def whole(ids: torch.Tensor) -> Windows:
    """Windows [windows, length] in which every token but the first is scored."""
    count, length = ids.shape
    begins = torch.arange(count) * length
    return Windows(ids.flatten(), begins, torch.ones_like(begins), length)


def by_window(values: np.ndarray, windows: int) -> np.ndarray:
    """What was found of the tokens of equal windows [windows, length − 1]."""
    return values.reshape(windows, -1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line, in this process."""
    from test_eval import runner

    return runner(monkeypatch, capsys)
