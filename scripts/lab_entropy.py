"""The entropy of attention by position, trained and beyond, of the laboratory's models.

The series' argument for log n is that entropy should not grow with the keys (kexue.fm 8823), and
for softmax that relu² has no such scale (9019). Softmax is measured as `ctxext explain` does; of
relu² it is the entropy of its weights over their sum.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab_table as table
import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ctxext
from ctxext.advise.explain.entropy import Entropy, measure
from ctxext.measure import tokens as reading
from ctxext.models import loading
from ctxext.models.aliases import ASSETS
from ctxext.models.hashes import folder_sha256
from ctxext.models.loading import Source
from ctxext.system.files import write_atomically
from ctxext.tasks.data import load_text
from ctxext.tasks.windows import Windows, cut

LENGTH, WINDOWS = table.LENGTHS[0], 4
BIN = 128  # positions
QUERIES = 512  # whose scores are held at a time


def folder() -> Path:
    """Where they are kept, a file for each model and method."""
    return table.OUT / "entropy"


def specs(model: table.Model) -> list[str]:
    """What it is measured under: by itself, with log n, and with ReRoPE."""
    return [s for s in model.methods if s in (model.plain, "logn") or table.REROPE in s]


def keep(model: table.Model, source: Source) -> None:
    """Measure what has no file of these weights and this text yet."""
    text = load_text("stdlib", LENGTH * WINDOWS)
    weights = folder_sha256(ASSETS / model.name if model.shipped else model.folder)
    loaded: Any = None
    for spec in specs(model):
        path = folder() / f"{model.name}--{spec.replace(':', '-')}.json"
        made = {"model": model.name, "method": spec, "model_sha256": weights,
                "data_sha256": text.sha256, "windows": WINDOWS}  # fmt: skip
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            if made.items() <= known.items():
                continue
        if loaded is None:
            loaded, tokenizer = loading.load_model(source), loading.load_tokenizer(source)
            ids = reading.tokenise(text, tokenizer, LENGTH * WINDOWS)
            windows = cut(ids, LENGTH, reading.start_token(tokenizer), WINDOWS)
        with ctxext.patched(loaded, spec, LENGTH):
            softmax = loaded.config._attn_implementation.find("relu2") < 0
            found = measure(loaded, windows) if softmax else measure_relu2(loaded, windows)
        far = found.far(table.TRAINED)
        bins = {
            name: x[far].mean(0).reshape(-1, BIN).mean(1).round(5).tolist()
            for name, x in (("nats", found.nats), ("evenly", found.ceiling))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps({**made, "bin": BIN, **bins}) + "\n").encode())


def measure_relu2(model: Any, windows: Windows) -> Entropy:
    """`measure` for relu² attention: all of its layers are full."""
    total: list[Tensor] = []
    with torch.inference_mode():
        for number in range(len(windows)):
            found: list[Tensor] = []
            with watching_relu2(found):
                model.base_model(input_ids=windows.ids(slice(number, number + 1)), use_cache=False)
            total = [a + b for a, b in zip(total or [0.0] * len(found), found, strict=True)]
    nats = torch.stack(total).double().numpy() / len(windows)
    keys = np.broadcast_to(np.arange(1.0, windows.length + 1), nats.shape)
    return Entropy(nats, keys)


@contextlib.contextmanager
def watching_relu2(into: list[Tensor]) -> Iterator[None]:
    """Keep the entropy of each attention by position, a mean over heads [n]."""
    own = ALL_ATTENTION_FUNCTIONS["relu2"]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **given: Any
    ) -> Any:
        found = []
        for start in range(0, query.shape[-2], QUERIES):
            rows = slice(start, start + QUERIES)
            scores = query[:, :, rows] @ key.mT + mask[:, :, rows]
            weights = scores.float().relu().square()
            shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
            found.append(torch.special.entr(shares).sum(-1).mean((0, 1)))
        into.append(torch.cat(found))
        return own(module, query, key, value, mask, **given)

    AttentionInterface.register("relu2", attention)
    try:
        yield
    finally:
        AttentionInterface.register("relu2", own)


def read() -> list[dict[str, Any]]:
    """What is kept, in the order of the models and their methods."""
    found = []
    for model in table.MODELS:
        for spec in specs(model):
            path = folder() / f"{model.name}--{spec.replace(':', '-')}.json"
            if path.is_file():
                found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def bands() -> list[tuple[int, int]]:
    """Ranges of positions: those trained, then by doubling."""
    edges = [0, *(n for i in range(25) if (n := table.TRAINED * 2**i) <= LENGTH)]
    return list(itertools.pairwise(edges))


def grid(kept: list[dict[str, Any]]) -> str:
    """Mean entropy in nats by range of positions, with that of attention spread evenly."""

    def means(bins: list[float]) -> list[str]:
        return [f"{np.mean(bins[a // BIN : b // BIN]):.2f}" for a, b in bands()]

    header = ["model", "method", *(f"{a} to {b}" for a, b in bands())]
    rows = [[one["model"], f"`{one['method']}`", *means(one["nats"])] for one in kept]
    rows += [["any", "spread evenly", *means(one["evenly"])] for one in kept[:1]]
    return table.grid(header, rows, 2)
