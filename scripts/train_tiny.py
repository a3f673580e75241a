"""Train the tiny models, from a seed, on a CPU or one GPU.

    python scripts/train_tiny.py --variant tiny --books books.tar.xz

Three ship in ``ctxext/models/shipped`` and differ in the method that is on while they learn, by the
public patch API; the others, of ``results/lab``, in their attention. See VARIANTS. All else is the
same: data, order, seed, first weights, and how many there are. Rows of 512 tokens (see
tiny_rows.py), a function of (seed, step) alone. The learning rate warms up, stays, and decays over
the last 30 % of the tokens. Checkpoints are written every few minutes and on SIGTERM; the same
command resumes, and may change ``--tokens`` as long as the decay has not begun.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.progress
import tokenizers
import torch
import torch.nn.functional as F
import transformers
import typer
from tiny_rows import (
    ANSWER,
    BOOK_CHARS,
    CONTEXT,
    EOS,
    EOS_ID,
    KINDS,
    VOCABULARY,
    Corpus,
    Phase,
    Row,
    build_corpus,
    make_row,
    retrieval_row,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from variants.key_norm import KeyNormConfig, KeyNormForCausalLM
from variants.relu2 import Relu2Config, Relu2ForCausalLM

import ctxext
from ctxext.tasks.data import HELD_OUT_MODULES, HELD_OUT_TOPICS

MODEL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "initializer_range": 0.04,
}
SHIPPED, LAB = Path("ctxext/models/shipped"), Path("results/lab")


@dataclass(frozen=True)
class Variant:
    """What a model is trained as.

    Attributes:
        method: what is on while it learns.
        home: the folder that its own folder goes to.
        config: the class of its config.
        model: its own class; a class of this script's is saved with the weights.
        given: what its config says besides MODEL.
        source: where it was published.
    """

    method: str
    home: Path = LAB
    config: type[PreTrainedConfig] = LlamaConfig
    model: type[PreTrainedModel] = LlamaForCausalLM
    given: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def windows(full: int, rotated: bool, source: str) -> Variant:
    """Layers that see 128 tokens, itself included, and one, the number of `full`, that sees all.

    128 is the most for which three layers see no more than 3/4 of the context: 3·127 + 1 ≤ 384.
    The method leaves layers alone that see less than the context, so log n is on the full one.
    """
    kinds = ["sliding_attention"] * MODEL["num_hidden_layers"]
    kinds[full] = "full_attention"
    given = {
        "use_sliding_window": True,
        "sliding_window": 128,
        "layer_types": kinds,
        "no_rope_layers": [int(rotated or i != full) for i in range(len(kinds))],
    }
    return Variant("logn:clip=false", LAB, SmolLM3Config, SmolLM3ForCausalLM, given, source)


def relu2(source: str, **given: Any) -> Variant:
    return Variant("rope", LAB, Relu2Config, Relu2ForCausalLM, given, source)


VARIANTS = {
    "tiny": Variant("rope", SHIPPED),
    "tiny-logn": Variant("logn:clip=false", SHIPPED),
    "tiny-inv-leaky": Variant("inv-leaky-rerope:window=128,expansion=8", SHIPPED),
    "hwfa": windows(3, rotated=False, source="kexue.fm 9603"),
    "hwfa2": windows(2, rotated=True, source="kexue.fm 9731"),
    "key-norm": Variant("rope", LAB, KeyNormConfig, KeyNormForCausalLM, source="kexue.fm 9859"),
    "relu2": relu2("kexue.fm 9019", relu2_length=CONTEXT),
    "relu2-norm": relu2("kexue.fm 9019", relu2_normalised=True),
}
LR_MATRICES, LR_REST = 3e-3, 3e-3
# The rate decays to 0 by FIRST_DECAY, then once more, from SECOND_SHARE of it, to the end.
FIRST_DECAY, SECOND_SHARE = 21_600_000, 0.3
WARMUP_STEPS, DECAY_SHARE, CLIP = 60, 0.3, 1.0

PHASES = (
    Phase(0, 8, code=0.30, books=0.15, retrieval=0.25, repetition=0.30, short=True),
    Phase(1100, 8, code=0.42, books=0.23, retrieval=0.27, repetition=0.08),
    Phase(4395, 8, code=0.62, books=0.16, retrieval=0.16, repetition=0.06, packed=0.7),
)


@dataclass
class State:
    """What a checkpoint keeps beside the weights."""

    seed: int
    total_tokens: int
    method: str
    variant: str
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    checks: list[dict[str, float]] = field(default_factory=list)

    @property
    def phase(self) -> Phase:
        return [phase for phase in PHASES if phase.step <= self.step][-1]

    def lr_factor(self) -> float:
        if self.tokens >= FIRST_DECAY:
            left = (self.total_tokens - self.tokens) / (self.total_tokens - FIRST_DECAY)
            return SECOND_SHARE * left
        decay = (FIRST_DECAY - self.tokens) / (DECAY_SHARE * FIRST_DECAY)
        return min(1.0, (self.step + 1) / WARMUP_STEPS, decay)


def make_batch(corpus: Corpus, rows: list[Row], device: str) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack(column)).to(device) for column in zip(*rows, strict=True)]


def build_config(variant: Variant) -> PreTrainedConfig:
    return variant.config(
        **MODEL,
        **variant.given,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
        attn_implementation="sdpa",
    )


def build_model(seed: int, device: str, variant: Variant) -> PreTrainedModel:
    """The model with its first weights, patched with the method that it is trained under."""
    torch.manual_seed(seed)
    model = variant.model(build_config(variant)).to(device)
    ctxext.patch(model, variant.method, length=CONTEXT)
    return model


def build_optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    muon = torch.optim.Muon(
        matrices, lr=LR_MATRICES, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest, lr=LR_REST, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def token_losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every next token.  [b, t + 1] -> [b, t]"""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    flat = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(ids.shape[0], -1)


def sums_by_kind(losses: torch.Tensor, kinds: torch.Tensor) -> dict[str, tuple[float, int]]:
    found = {name: losses[kinds == i] for i, name in enumerate(KINDS)}
    return {name: (float(x.sum()), x.numel()) for name, x in found.items()}


@torch.no_grad()
def check(model: PreTrainedModel, corpus: Corpus, rows: int, samples: int) -> dict[str, float]:
    """Held-out loss at the full context, and the share of pass keys and pairs answered greedily.

    All the answer's tokens being the likeliest given the ones before is what greedy decoding needs.
    """
    device = str(model.device)
    held_out = corpus.ids["held_out"]
    starts = np.linspace(0, len(held_out) - CONTEXT - 1, rows).astype(int)
    text = np.stack([held_out[i : i + CONTEXT + 1].astype(np.int64) for i in starts])
    batches = torch.from_numpy(text).to(device).split(16)
    result = {"held_out_loss": float(torch.cat([token_losses(model, b) for b in batches]).mean())}
    for name, is_key, source in (
        ("pass_key_grass", True, "grass"), ("pass_key_books", True, "books"),
        ("pass_key_code", True, "code"), ("pairs", False, None),
    ):  # fmt: skip
        right = 0
        for i in range(samples):
            rng = np.random.default_rng([12345, i])
            row = retrieval_row(corpus, rng, CONTEXT, pass_key=is_key, source=source)
            ids, _, kinds = make_batch(corpus, [row], device)
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                guess = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
            asked = kinds[:, 1:] == ANSWER
            right += bool((guess == ids[:, 1:])[asked].all())
        result[name] = right / samples
    return result


def save_model(model: PreTrainedModel, variant: Variant, corpus: Corpus, folder: Path) -> None:
    """The folder that ``from_pretrained`` loads: float16 weights, config and tokenizer."""
    half = variant.model(build_config(variant))
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    for path in filter(Path.is_file, folder.iterdir()):
        path.chmod(0o644)


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_provenance(folder: Path, state: State, corpus: Corpus, device: str, books: Path) -> None:
    keep = max(1, len(state.curve) // 100)
    hardware: dict[str, Any] = {"cpu": cpu_name(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    variant = VARIANTS[state.variant]
    record = {
        "script": "scripts/train_tiny.py",
        "variant": state.variant,
        "source": variant.source,
        "method": state.method,
        "seed": state.seed,
        "tokens": state.tokens,
        "steps": state.step,
        "context": CONTEXT,
        "hours": round(state.seconds / 3600, 2),
        "finished": state.tokens >= state.total_tokens,
        "model": {"class": variant.model.__name__, **MODEL, **variant.given},
        "optimizer": {
            "matrices": f"Muon (match_rms_adamw), lr {LR_MATRICES}",
            "rest": f"AdamW, lr {LR_REST}",
            "schedule": f"{WARMUP_STEPS} steps up, constant, linear to 0 over the last "
            f"{DECAY_SHARE:.0%} of {FIRST_DECAY} tokens, then linear from {SECOND_SHARE} to 0",
            "clip": CLIP,
            "precision": "bfloat16 autocast, float32 weights, saved as float16",
        },
        "phases": [asdict(phase) for phase in PHASES],
        "corpus": {
            "sha256": corpus.hashes,
            "tokens": {name: len(ids) for name, ids in corpus.ids.items()},
            "books": books.name,
            "books_part": f"{BOOK_CHARS} characters of each book from its first quarter on",
            "code": "CPython's standard library without the held-out part and encodings.*",
        },
        "held_out_modules": list(HELD_OUT_MODULES),
        "held_out_topics": list(HELD_OUT_TOPICS),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "hardware": hardware,
        "checks": state.checks[-1] if state.checks else {},
        "loss_curve": state.curve[::keep],
        "check_curve": state.checks,
    }
    (folder / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], state: State
) -> None:
    saved = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "state": asdict(state),
    }
    torch.save(saved, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], wanted: State
) -> State:
    saved = torch.load(path, map_location=model.device, weights_only=True)
    state = State(**saved["state"])
    for name in ("seed", "method", "variant"):
        if (value := getattr(state, name)) != getattr(wanted, name):
            raise typer.BadParameter(f"{path} was made with {name} {value}")
    changed = state.total_tokens != wanted.total_tokens
    if changed and state.tokens > FIRST_DECAY + state.phase.rows * CONTEXT:
        raise typer.BadParameter(
            f"--tokens {wanted.total_tokens} cannot replace {state.total_tokens}: the decay has "
            f"begun by the {state.tokens} tokens seen"
        )
    model.load_state_dict(saved["model"])
    for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    state.total_tokens = wanted.total_tokens
    return state


class Log:
    """A rich progress bar on a terminal, else a line every half minute; feeds the loss curve."""

    def __init__(self, state: State) -> None:
        self.state, self.began = state, time.monotonic()
        self.first, self.line_at = state.tokens, self.began
        self.sums = dict.fromkeys(KINDS, (0.0, 0))
        self.bar = rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TextColumn("{task.fields[note]}"),
        )
        self.task = self.bar.add_task(
            "training", total=state.total_tokens, completed=state.tokens, note=""
        )
        if self.bar.console.is_terminal:
            self.bar.start()

    def step(self, sums: dict[str, tuple[float, int]]) -> None:
        self.sums = {k: (a + sums[k][0], n + sums[k][1]) for k, (a, n) in self.sums.items()}
        state, now = self.state, time.monotonic()
        self.bar.update(self.task, completed=state.tokens)
        if now - self.line_at < 30 and state.tokens < state.total_tokens:
            return
        losses = {name: round(a / max(1, n), 4) for name, (a, n) in self.sums.items()}
        speed = (state.tokens - self.first) / (now - self.began)
        left = (state.total_tokens - state.tokens) / speed
        state.curve.append({"step": state.step, "tokens": state.tokens, **losses})
        note = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        self.say(
            f"{time.strftime('%H:%M:%S')} step {state.step} {state.tokens / 1e6:.2f}M {note} "
            f"{speed:.0f} tok/s eta {left / 60:.1f} min"
        )
        self.sums, self.line_at = dict.fromkeys(KINDS, (0.0, 0)), now

    def say(self, line: str) -> None:
        if self.bar.console.is_terminal:
            self.bar.update(self.task, note=line)
        else:
            print(line, flush=True)


def train_step(
    model: PreTrainedModel,
    losses_of: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
    batch: list[torch.Tensor],
    lr_factor: float,
) -> dict[str, tuple[float, int]]:
    ids, weights, kinds = batch
    losses = losses_of(model, ids)
    weights = weights[:, 1:]
    ((losses * weights).sum() / weights.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for optimizer, lr in zip(optimizers, (LR_MATRICES, LR_REST), strict=True):
        optimizer.param_groups[0]["lr"] = lr * lr_factor
        optimizer.step()
        optimizer.zero_grad()
    return sums_by_kind(losses.detach(), kinds[:, 1:])


def main(
    books: Annotated[Path, typer.Option(exists=True, help="folder or tar of *.txt")],
    name: Annotated[str, typer.Option("--variant", help=", ".join(VARIANTS))] = "tiny",
    out: Annotated[Path | None, typer.Option(help="its folder, if another")] = None,
    build: Annotated[Path, typer.Option(help="caches, checkpoints")] = Path("build"),
    tokens: Annotated[int, typer.Option(min=1, help="tokens to train on in all")] = FIRST_DECAY,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    compiled: Annotated[bool, typer.Option("--compile", help="use torch.compile")] = False,
    every: Annotated[float, typer.Option(help="minutes between checkpoints")] = 3.0,
) -> None:
    """Train a tiny model, or go on from the checkpoint in its build folder."""
    if name not in VARIANTS:
        raise typer.BadParameter(f"unknown variant {name!r}: valid: {', '.join(VARIANTS)}")
    variant, work = VARIANTS[name], build / f"train-{name}"
    out = out or variant.home / name
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    corpus = build_corpus(books, work)
    model = build_model(seed, device, variant)
    optimizers = build_optimizers(model)
    state = State(seed, tokens, variant.method, name)
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizers, state)
    losses_of = torch.compile(token_losses) if compiled else token_losses
    log = Log(state)

    def keep(rows: int, samples: int, folder: Path) -> None:
        found = check(model, corpus, rows, samples)
        state.checks.append({"step": state.step, "tokens": state.tokens, **found})
        log.say("check " + json.dumps(state.checks[-1]))
        save_checkpoint(checkpoint, model, optimizers, state)
        save_model(model, variant, corpus, folder)
        write_provenance(folder, state, corpus, device, books)

    saved_at = began = time.monotonic()
    while state.tokens < state.total_tokens and not stopping:
        rngs = (np.random.default_rng([seed, state.step, i]) for i in range(state.phase.rows))
        batch = make_batch(corpus, [make_row(corpus, rng, state.phase) for rng in rngs], device)
        sums = train_step(model, losses_of, optimizers, batch, state.lr_factor())
        state.tokens += state.phase.rows * CONTEXT
        state.step += 1
        state.seconds += (now := time.monotonic()) - began
        began = now
        if not all(math.isfinite(total) for total, _ in sums.values()):
            raise FloatingPointError(f"the loss is not finite at step {state.step}")
        log.step(sums)
        if now - saved_at > 60 * every:
            keep(48, 25, work / "snapshot")
            saved_at = time.monotonic()
    log.bar.stop()
    if stopping:
        save_checkpoint(checkpoint, model, optimizers, state)
        raise typer.Exit(128 + stopping[0])
    keep(512, 100, out)


if __name__ == "__main__":
    typer.run(main)
