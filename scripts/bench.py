"""Speed and memory of the attention paths on models of fixed shape: records to results/bench.

    python scripts/bench.py cpu      default windows, up to 64k tokens, and what they may cost
    python scripts/bench.py long     whole prefills of a Llama of 4 layers, up to 64k: an hour
    python scripts/bench.py cuda     layers shaped like Llama 3.1 8B's, bfloat16, up to 1M tokens

With --small all of it is tried at a 64th of the lengths, into build/bench/small, and without bars.
Weights are random: speed does not depend on them. Installs nothing, downloads nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FREQUENCY = ("pi", "ntk-old", "ntk", "ntk-fixed", "beta-radix", "yarn")
WINDOWED = ("rerope", "leaky-rerope", "self-extend", "dca")
SMALLER, FEWER = 64, 2  # of --small: lengths, and pairs
TRAINED = "max_position_embeddings"
LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    TRAINED: 512,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    TRAINED: 8192,
}
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    TRAINED: 8192,
}
ONE, LONG = {"num_hidden_layers": 1}, {TRAINED: 8192}
MODELS = {
    "llama-4x512": LLAMA,
    "llama-4x512-8k": {**LLAMA, **LONG},
    # what is compared by the layer needs no more than one
    "llama-1x512-8k": {**LLAMA, **LONG, **ONE},
    "smollm2-30x576-8k": SMOLLM2,
    "smollm2-1x576-8k": {**SMOLLM2, **ONE},
    "llama-2x8b": LARGE,
    # at 1M tokens the full feed-forward layer alone would fill the device
    "llama-8b-attention": {**LARGE, "num_hidden_layers": 1, "intermediate_size": 1024},
}
REST = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096}
PREFILL, DECODE = "prefill_seconds", "decode_seconds_per_token"


class Run(NamedTuple):
    """One `ctxext bench`, and at most what its ratios may be.

    Attributes:
        bars: by length, of the measure that the case is about: the lower end of the interval of
            each distance method may not be above.
    """

    model: str
    lengths: tuple[int, ...]
    methods: tuple[str, ...]
    pairs: int
    case: str = "model"
    paths: tuple[str, ...] = ("sdpa",)
    dtype: str = "float32"
    batch: int = 1
    steps: int = 8
    bars: dict[int, float] = {}  # noqa: RUF012


K = 1024
DEFAULTS = (
    Run("llama-1x512-8k", (64 * K,), WINDOWED, 9, "attention", bars={64 * K: 1.05}),
    Run("smollm2-1x576-8k", (64 * K,), WINDOWED, 9, "attention", bars={64 * K: 1.05}),
    Run("llama-1x512-8k", (64 * K,), ("rope", *WINDOWED), 6, "steps", bars={64 * K: 0.6}),
    Run("llama-4x512-8k", (16 * K,), ("rope", *WINDOWED), 6, "steps"),
    Run("smollm2-30x576-8k", (16 * K,), ("rope", "rerope", "dca"), 6, "steps", steps=4),
    Run("llama-4x512", (K,), WINDOWED, 6, "padded", dtype="bfloat16", batch=16, bars={K: 1.1}),
    Run("llama-4x512", (2 * K,), WINDOWED, 9, "packed"),
    Run("smollm2-1x576-8k", (8 * K,), WINDOWED, 6, bars={8 * K: 1.05}),
    Run("llama-1x512-8k", (16 * K,), WINDOWED, 6, bars={16 * K: 1.03}),
)
HOUR = (
    Run("llama-4x512", (8 * K,), ("rerope:window=256", "leaky-rerope", "logn"), 15),
    Run("llama-4x512", (16 * K,), ("rerope:window=256",), 15),
    Run("llama-4x512", (8 * K,), FREQUENCY, 15),
    Run("llama-4x512", (64 * K,), ("rerope:window=256",), 2),
)


def runs(what: str) -> tuple[Run, ...]:
    """What is measured; on CUDA by those attention paths that can run there."""
    if what != "cuda":
        return DEFAULTS if what == "cpu" else HOUR
    able = _able()
    fast = tuple(path for path in able if path == "flash") or able[:1]
    half: dict[str, Any] = {"dtype": "bfloat16"}
    return (
        Run("llama-2x8b", (32 * K,), ("rerope", "leaky-rerope"), 15, paths=able, **half),
        Run("llama-2x8b", (128 * K,), ("rerope", "leaky-rerope"), 15, paths=fast, **half),
        Run("llama-2x8b", (32 * K,), ("logn", *FREQUENCY), 15, paths=able[:1], **half),
        Run("llama-8b-attention", (256 * K, 512 * K, 1024 * K), ("rerope",), 2, paths=fast, **half),
    )


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


def measure(run: Run, device: str, out: str, smaller: int, pairs: int) -> list[dict[str, Any]]:
    """The records of a run; none where it failed."""
    folder = ROOT / "build" / "bench" / (run.model if smaller == 1 else f"small/{run.model}")
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {**REST, **MODELS[run.model]}
    shape[TRAINED] //= smaller
    (folder / "config.json").write_text(json.dumps(shape, indent=1))
    command = [sys.executable, "-m", "ctxext", "bench", "--random-weights", "--json"]
    command += ["--model", folder.relative_to(ROOT).as_posix(), "--case", run.case]
    command += ["--device", device, "--dtype", run.dtype, "--batch-size", str(run.batch)]
    command += ["--len", ",".join(str(length // smaller) for length in run.lengths)]
    command += ["--pairs", str(pairs), "--decode-tokens", str(run.steps), "--out", out]
    command += [word for method in run.methods for word in ("--method", method)]
    command += ["--attn", ",".join(run.paths)]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    return [] if done.returncode else [json.loads(line) for line in done.stdout.splitlines()]


def above(run: Run, records: list[dict[str, Any]]) -> list[str]:
    """What is above its bar, in words."""
    found = []
    for record in records:
        bar, measure = run.bars.get(record["length"]), record["metric"]
        if bar is None or record["requested"] == "rope":
            continue
        ratio = record["ratio"][measure]
        least = ratio["low"] or ratio["median"]
        if least > bar:
            name = f"{run.model}, {run.case} at {record['length']}: {record['requested']}"
            found.append(f"{name} takes {ratio['median']:.3f}, at the least {least:.3f}, not {bar}")
    return found


def main(what: str, small: bool = False) -> int:
    """Run everything; the number of runs that failed, and of ratios above their bars."""
    failed, wrong = 0, list[str]()
    out = "build/bench/small/results" if small else "results/bench"
    smaller = SMALLER if small else 1
    for run in runs(what):
        pairs = FEWER if small else run.pairs
        records = measure(run, "cuda" if what == "cuda" else "cpu", out, smaller, pairs)
        failed += not records
        wrong += [] if small else above(run, records)
    report = [sys.executable, "-m", "ctxext", "report", "--write", "--pack", "--out", out]
    failed += subprocess.run(report, cwd=ROOT, check=False).returncode != 0
    for line in wrong:
        print(f"above its bar: {line}", file=sys.stderr)
    return failed + len(wrong)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] not in (["cpu"], ["long"], ["cuda"]) or given[1:] not in ([], ["--small"]):
        sys.exit(__doc__)
    sys.exit(min(main(given[0], len(given) > 1), 1))
