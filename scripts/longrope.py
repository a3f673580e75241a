"""Factors for longrope on tiny at 4096 tokens, by a small evolution as LongRoPE's own.

    python scripts/longrope.py      results/seed-table/longrope.json, where there is none

The first parents are pi, ntk and yarn; a child scales a run of the best parents' factors, which
then are kept at 1 and above and in order. What is compared is the loss on the last 512 tokens of
windows of `stdlib` that come after all that the seed's table reads (LongRoPE, arXiv 2402.13753).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import typer
from seed_table import FACTORS

import ctxext
from ctxext.measure import tokens as reading
from ctxext.methods import parse
from ctxext.methods.base import Rotary, Span
from ctxext.system.files import write_atomically
from ctxext.tasks.data import load_text
from ctxext.tasks.windows import Windows

OUT = Path(FACTORS)
TRAINED, LENGTH, AFTER, COUNT = 512, 4096, 262144, 6
PARENTS, CHILDREN, SEED = ("pi", "ntk", "yarn"), 40, 0
KEPT, REACH = 4, 1.5  # parents at a time, and the most by which a run is scaled


def unread(tokenizer: Any) -> Windows:
    """Windows of 4096 tokens of which the last 512 are scored."""
    text = reading.tokenise(load_text("stdlib"), tokenizer, AFTER + COUNT * LENGTH)
    begins = AFTER + LENGTH * torch.arange(COUNT)
    first = torch.full((COUNT,), LENGTH - TRAINED)
    return Windows(text, begins, first, LENGTH)


def child(parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A run of the factors scaled; none below 1, none below the one before it."""
    start, stop = sorted(rng.integers(0, len(parent) + 1, 2))
    scaled = parent.copy()
    scaled[start:stop] *= REACH ** rng.uniform(-1, 1)
    return np.maximum.accumulate(np.maximum(scaled, 1.0)).round(3)


def main() -> None:
    """Search, unless the file is there."""
    if OUT.exists():
        return
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    model, tokenizer = ctxext.load("tiny")
    windows, rng = unread(tokenizer), np.random.default_rng(SEED)
    theta = tuple(1e4 ** (-i / 32) for i in range(32))
    rotary, span = Rotary(theta, 1e4, TRAINED), Span(TRAINED, LENGTH)
    first = [np.array(parse(name).resolve(span).scales(rotary)) for name in PARENTS]
    known: list[tuple[float, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(first) + CHILDREN):
            best = sorted(known)[:KEPT]
            parent = np.array(best[rng.integers(len(best))][1]) if best else first[0]
            factors = first[number] if number < len(first) else child(parent, rng)
            lists = {"short_factor": [1.0] * len(factors), "long_factor": factors.tolist()}
            path = Path(folder) / f"{number}.json"
            path.write_text(json.dumps(lists))
            with ctxext.patched(model, f"longrope:factors=@{path}", LENGTH):
                loss = float(reading.score(model, windows, batch=1).nll.mean())
            known.append((loss, factors.tolist()))
            typer.echo(f"{number}: {loss:.4f}, best {min(known)[0]:.4f}", err=True)
    lists = {"short_factor": [1.0] * len(theta), "long_factor": min(known)[1]}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(OUT, (json.dumps(lists) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
