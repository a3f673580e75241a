"""Speed and memory of the attention paths on models of fixed shape: records to results/bench.

    python scripts/bench.py cpu      a Llama of 4 layers, 512 wide, float32, up to 64k tokens
    python scripts/bench.py cuda     layers shaped like Llama 3.1 8B's, bfloat16, up to 1M tokens

Weights are random: speed does not depend on them. Installs nothing, downloads nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FREQUENCY = ("pi", "ntk-old", "ntk", "ntk-fixed", "beta-radix", "yarn")
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
}
MODELS = {
    "llama-4x512": SMALL,
    "llama-2x8b": LARGE,
    # at 1M tokens the full feed-forward layer alone would fill the device
    "llama-8b-attention": {**LARGE, "num_hidden_layers": 1, "intermediate_size": 1024},
}
REST = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096}
Run = tuple[
    str, str, tuple[str, ...], tuple[str, ...], int
]  # model, lengths, methods, paths, pairs


def runs(device: str) -> list[Run]:
    """What is measured on a device; of the attention paths those that can run there."""
    rerope, leaky = "rerope:window=256", "leaky-rerope"
    if device == "cpu":
        return [
            ("llama-4x512", "8k", (rerope, leaky, "logn"), ("sdpa",), 15),
            ("llama-4x512", "16k", (rerope,), ("sdpa",), 15),
            ("llama-4x512", "8k", FREQUENCY, ("sdpa",), 15),
            ("llama-4x512", "64k", (rerope,), ("sdpa",), 2),
        ]
    able = _able()
    fast = tuple(path for path in able if path == "flash")
    return [
        ("llama-2x8b", "32k", ("rerope", leaky), able, 15),
        ("llama-2x8b", "128k", ("rerope", leaky), fast or able[:1], 15),
        ("llama-2x8b", "32k", ("logn", *FREQUENCY), able[:1], 15),
        ("llama-8b-attention", "256k,512k,1m", ("rerope",), fast or able[:1], 2),
    ]


def _able() -> tuple[str, ...]:
    import torch

    from ctxext.engine import PATHS
    from ctxext.engine.paths import choose
    from ctxext.errors import UsageError

    able = []
    for path in PATHS:
        try:
            able.append(choose(path, "cuda", torch.bfloat16, LARGE["head_dim"]).name)
        except UsageError as error:
            print(error, file=sys.stderr)
    return tuple(path for path in able if path != "eager")


def main(device: str) -> int:
    """Run everything; the number of runs that failed."""
    failed = 0
    dtype = "float32" if device == "cpu" else "bfloat16"
    for model, lengths, methods, paths, pairs in runs(device):
        folder = ROOT / "build" / "bench" / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**REST, **MODELS[model]}, indent=1))
        command = [sys.executable, "-m", "ctxext", "bench", "--random-weights"]
        command += ["--model", f"build/bench/{model}", "--device", device, "--dtype", dtype]
        command += ["--len", lengths, "--pairs", str(pairs), "--out", "results/bench"]
        command += [word for method in methods for word in ("--method", method)]
        command += ["--attn", ",".join(paths)]
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    report = [sys.executable, "-m", "ctxext", "report", "--write", "--pack"]
    report += ["--out", "results/bench"]
    return failed + (subprocess.run(report, cwd=ROOT, check=False).returncode != 0)


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["cuda"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
