"""What engines are compared on: exports of small models, our log-probabilities, and the records."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import conftest
import torch
import transformers
from torch import Tensor

import ctxext
from ctxext import patches
from ctxext.export import proof
from ctxext.export.write import Order, export
from ctxext.methods.base import Span
from ctxext.models.aliases import locate

NEW = 16  # tokens that are generated
TRAINED = 64  # tokens, of the random models
LENGTHS = {"tiny": 2048, **dict.fromkeys(("llama", "qwen3", "gemma3", "phi3"), 4 * TRAINED)}
METHODS = [c.name for c in patches.REGISTRY.classes() if c.changes == "frequency"]
SIZES = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": TRAINED, "initializer_range": 0.1, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 32,
            "query_pre_attn_scalar": 32,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("Phi3Config", {}),
}
RECORDS = "ENGINE_RECORDS"  # names the file to which what was found is written


@dataclass(frozen=True)
class Found:
    """What an engine gives, against ours: |Δ log p| in nats, and greedy tokens.

    Attributes:
        method: its name; its parameters are its defaults for `length`.
        how: the config's words for it.
        moved: the largest |Δ log p| between the patched and the unpatched model.
        allowed: what float32 can do to a log p: twice what a rounding of every θ and what float64
            do to ours.
        equal: of `tokens` generated tokens, those that are our greedy choice after the same ones.
        near: of the others, those whose logit is within `allowed` of the best.
    """

    engine: str
    version: str
    model: str
    method: str
    how: str
    trained: int
    length: int
    mean: float
    worst: float
    within: float
    moved: float
    allowed: float
    tokens: int
    equal: int
    near: int


def source(model: str, folder: Path) -> Path:
    """The folder of a model: `tiny`, or a random one that is written once."""
    if model == "tiny":
        return Path(locate("tiny"))
    place = folder / model
    if not place.exists():
        name, own = CONFIGS[model]
        torch.manual_seed(0)
        config = getattr(transformers, name)(**{**SIZES, **own})
        made = transformers.AutoModelForCausalLM.from_config(config).float()
        for weight in made.parameters():  # norms that are not all alike
            if weight.ndim == 1:
                weight.data.add_(torch.empty_like(weight).uniform_(-0.3, 0.3))
        made.save_pretrained(place)
    return place


def exported(
    folder: Path, model: str, method: str, *, length: int | None = None, **options: Any
) -> Any:
    """An export, whose proof is found in this process."""
    spec, out = patches.parse(spec_of(model, method)), folder / f"{model}-{method}"
    order = Order(source(model, folder), spec, length or LENGTHS[model], out, **options)
    with mock.patch.object(proof, "fresh", conftest.checked_here):
        return export(order)


def spec_of(model: str, method: str) -> str:
    """A method with what it has no default for."""
    pairs = 32 if model == "tiny" else 16
    return conftest.fitted(method, pairs)


def prompt(model: str) -> list[int]:
    """L − NEW random tokens."""
    size = 2048 if model == "tiny" else SIZES["vocab_size"]
    return random.Random(0).choices(range(3, size), k=LENGTHS[model] - NEW)


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> Tensor:
    """All log p [tokens, vocabulary], in float64 arithmetic from the logits on."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)


def compare(
    engine: str, version: str, model: str, folder: Path, method: str, how: str,
    given: dict[int, float], new: list[int],
) -> Found:  # fmt: skip
    """What an engine gave of `prompt(model)`, against the patched model in float32.

    Args:
        folder: of the unpatched model.
        given: the engine's log p of tokens of the prompt, by their place.
        new: the tokens that it generated.
    """
    length, ids = LENGTHS[model], prompt(model)
    whole = [*ids, *new]
    at = torch.tensor([*given]) - 1
    spec = spec_of(model, method)
    ours = loaded(folder)
    plain = log_probabilities(ours, whole)
    trained = ours.config.get_text_config().max_position_embeddings
    ctxext.patch(ours, spec, length)
    logs = log_probabilities(ours, whole)
    exact = loaded(folder, "float64")
    ctxext.patch(exact, spec, length)
    others = [log_probabilities(exact, whole)]
    for module in ours.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq"):
                buffer.mul_(1 + 2**-23)
    others.append(log_probabilities(ours, whole))
    allowed = 2 * sum(float((other - logs).abs().max()) for other in others)
    targets = torch.tensor(ids)[at + 1]
    off = (torch.tensor([*given.values()], dtype=torch.float64) - logs[at, targets]).abs()
    last = logs[len(ids) - 1 : len(whole) - 1]
    gaps = last.max(-1).values - last[torch.arange(len(new)), torch.tensor(new)]
    return Found(
        engine, version, model, method, how, trained, length,
        mean=float(off.mean()), worst=float(off.max()), within=float(off[at + 1 < trained].max()),
        moved=float((plain - logs)[at, targets].abs().max()), allowed=allowed, tokens=len(new),
        equal=int((gaps == 0).sum()), near=int(((gaps > 0) & (gaps <= 2 * allowed)).sum()),
    )  # fmt: skip


def check(found: Found) -> None:
    """Keep what was found, and see that it is no more than roundings."""
    record(asdict(found))
    assert found.worst <= found.allowed, found
    assert found.equal + found.near == found.tokens, found
    assert found.moved == 0 or found.moved > 10 * found.allowed, found


def refused(engine: str, version: str, model: str, method: str, why: str) -> dict[str, Any]:
    """The record of what an engine cannot be told."""
    trained = 512 if model == "tiny" else TRAINED
    spec = patches.parse(spec_of(model, method))
    for said in (spec.resolve(Span(trained, LENGTHS[model])), spec):
        for words in (said.full(), str(said)):
            why = why.replace(words, method)
    return {"engine": engine, "version": version, "model": model, "method": method, "refused": why}


def record(row: dict[str, Any]) -> None:
    """Write a line, where the environment names a file; one of the same cell gives way."""
    if not (place := os.environ.get(RECORDS)):
        return
    file = Path(place)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    cell = ("engine", "model", "method")
    rows = [r for r in rows if any(r.get(k) != row.get(k) for k in cell)]
    rounded = {
        k: float(f"{v:.3g}") if isinstance(v, float) and math.isfinite(v) else v
        for k, v in row.items()
    }
    rows = sorted([*rows, rounded], key=lambda r: [r[k] for k in cell])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
