"""One patched model, eight threads: texts of mixed lengths against those of one thread.

python tests/threads.py [TEXTS] [NAME SPEC …]
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from conftest import SETTINGS, random_model, tokens
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import ctxext

THREADS, LENGTHS, NEW = 8, (3, 9, 17, 30, 41, 55, 70, 90), 6  # tokens
SPECS = ("rerope:window=5", "self-extend:window=5,group=3", "dca:chunk=5,local=3,reach=12")


def model_of(name: str) -> Any:
    """A Llama, or a Qwen 2 (`shared`) whose two layers share frequencies and one has a window."""
    if name == "llama":
        return random_model()
    kinds = ["sliding_attention", "full_attention"]
    windows = {"layer_types": kinds, "use_sliding_window": True, "sliding_window": 16}
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SETTINGS, **windows)).eval()


def differing(name: str, spec: str, texts: int) -> int:
    """How many of so many texts are not what one thread writes."""
    model, prompts = model_of(name), [tokens(n, seed=n) for n in LENGTHS]
    model.generation_config.eos_token_id = None

    def write(ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        given = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW)
        assert isinstance(given, Tensor)
        return given

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ctxext.patched(model, spec, 256), ThreadPoolExecutor(THREADS) as pool:
            wanted = [write(ids) for ids in prompts]
            found = pool.map(write, [prompts[i % len(prompts)] for i in range(texts)])
            return sum(
                not torch.equal(text, wanted[i % len(prompts)]) for i, text in enumerate(found)
            )
    finally:
        sys.setswitchinterval(interval)


def main(texts: str = "5000", *given: str) -> int:
    """Write the texts; how many differ."""
    pairs = list(zip(given[::2], given[1::2], strict=True))
    total = 0
    for name, spec in pairs or [*(("llama", spec) for spec in SPECS), ("shared", "ntk:factor=8")]:
        wrong = differing(name, spec, int(texts))
        print(f"{name} {spec}: {wrong} of {texts} differ", flush=True)
        total += wrong
    return total


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
