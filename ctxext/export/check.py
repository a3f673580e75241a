"""What a model computes, as a proof compares it: here, and in a process that has no ctxext.

As a script, this file reads a job from its input, a line of JSON, loads the model folder that the
job names, and writes what `measure` finds to its output. It imports torch and transformers alone,
and makes sure that nothing else can import ctxext. It ends when its input does, so that it never
outlives its parent.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import inspect
import json
import os
import site
import sys
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Measured = tuple[str, "Tensor"]  # what it is, and the numbers

CHUNK = 4096  # positions in a table at a time
HEADER = 2**16  # bytes
FIRST = 32  # tokens that are read before those that stand far out
SHARP = 6.0  # times its size is a key of a filled cache, so that a query sees few of them
NUMBERS = ("float32", "int64")


def measure(model: Any, job: dict[str, Any]) -> Iterator[Measured]:
    """Frequencies and tables of each rotary set, logits of each probe, tokens as generated.

    Yields:
        `frequencies` [d/2] and then `table`s [2, …, positions, columns], for each of
        `job["tables"]`; `logits` [rows, vocabulary] in float32 for each of `job["probes"]`;
        `tokens` [b, n] for `job["generate"]`.
    """
    for table in job["tables"]:
        yield from _tables(model, table)
    for probe in job["probes"]:
        yield "logits", logits(model, probe)
    if job["generate"]:
        yield "tokens", _generate(model, job["generate"])


def logits(model: Any, probe: dict[str, Any]) -> Tensor:
    """Those [rows, vocabulary] of a probe, its rows spread evenly over the tokens."""
    import torch

    if probe["at"]:
        return _far_out(model, probe)
    device = next(model.parameters()).device
    ids = token_ids(1, probe["length"], probe["vocabulary"]).to(device)
    rows = spread(probe["length"], probe["rows"]).to(device)
    given: dict[str, Any] = {}
    if probe["jump"]:  # from the first tokens' positions to the last ones'
        half = probe["length"] // 2
        start = probe["jump"] - (probe["length"] - half)
        positions = torch.arange(probe["length"], device=device)
        positions[half:] += start - half
        given = {"position_ids": positions[None], "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            found = model(ids, **given, use_cache=False, logits_to_keep=rows).logits[0]
        else:
            found = model(ids, **given, use_cache=False).logits[0, rows]
    return found.float().cpu()  # type: ignore[no-any-return]


def _far_out(model: Any, probe: dict[str, Any]) -> Tensor:
    """The logits [n, vocabulary] of tokens at the positions `at`, `at` + 1, ….

    Before them a cache is filled up without reading so many tokens: with keys of the first ones,
    at the positions that the probe names, and zeros elsewhere. The keys are so large that each
    query sees a few of them alone, so that a turn of any is seen.
    """
    import torch
    from transformers import Cache

    device = next(model.parameters()).device
    ids = token_ids(1, FIRST + probe["length"], probe["vocabulary"]).to(device)
    with torch.no_grad():
        first = model(ids[:, :FIRST], use_cache=True)
        name, cache = next(kv for kv in first.items() if isinstance(kv[1], Cache))
        places = torch.tensor(probe["keys"], dtype=torch.long, device=device) - FIRST
        for layer in cache.layers:
            if getattr(layer, "keys", None) is None:  # a state that does not grow
                continue
            layer.keys = layer.keys * SHARP
            more = []
            for held in (layer.keys, layer.values):
                filled = held.new_zeros(*held.shape[:-2], probe["at"] - FIRST, held.shape[-1])
                filled[..., places, :] = held[..., torch.arange(len(places)) % held.shape[-2], :]
                more.append(filled)
            layer.update(*more)
        last = ids[:, FIRST:]
        given = {name: cache}
        if "position_ids" in inspect.signature(model.forward).parameters:  # some count from 0 else
            given["position_ids"] = torch.arange(last.shape[1], device=device)[None] + probe["at"]
        found = model(last, use_cache=True, **given).logits[0]
    return found.float().cpu()  # type: ignore[no-any-return]


def token_ids(rows: int, length: int, vocabulary: int) -> Tensor:
    """Seeded tokens [rows, length] from the middle of a vocabulary: special ones are elsewhere."""
    import torch

    low = vocabulary // 3
    seed = torch.Generator().manual_seed(length)
    return torch.randint(low, max(low + 1, 2 * low), (rows, length), generator=seed)


def spread(length: int, count: int) -> Tensor:
    """At most `count` of the positions 0 … length − 1, evenly, with the first and the last."""
    import torch

    if length <= count:
        return torch.arange(length)
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long()


def kept(config: Any, free: list[str]) -> dict[str, Any]:
    """All settings of a config but the free ones, as JSON has them."""

    def rest(part: dict[str, Any]) -> dict[str, Any]:
        return {k: rest(v) if isinstance(v, dict) else v for k, v in part.items() if k not in free}

    return rest(json.loads(config.to_json_string(use_diff=False)))


def one_line(error: BaseException) -> str:
    """What an error says, or its type where it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else f"{said[:299].rpartition(' ')[0]} …"


def _tables(model: Any, table: dict[str, Any]) -> Iterator[Measured]:
    """The rotary module's own, asked as for a sequence of `length` tokens."""
    import torch

    module, kind, length = model.get_submodule(table["module"]), table["kind"], table["length"]
    positions = spread(length, table["count"])
    device = next(model.parameters()).device

    @torch.no_grad()  # not around a yield, where it would hold for the caller too
    def ask(some: Tensor) -> Tensor:
        seen = torch.cat((some, positions[-1:])).to(device)  # scalings may go by the longest
        seen = seen.expand(*table["axes"], 1, len(seen))
        like = torch.zeros(1, seen.shape[-1], 1, device=device)
        found = module(like, seen, **({} if kind is None else {"layer_type": kind}))
        parts = found if isinstance(found, tuple) else (found.real, found.imag)
        return torch.stack(parts)[..., : len(some), :].float().cpu()

    ask(positions[:1])
    name = "inv_freq" if kind is None else f"{kind}_inv_freq"
    yield "frequencies", module._buffers[name].detach().float().cpu().clone()
    for some in positions.split(CHUNK):
        yield "table", ask(some)


def _generate(model: Any, job: dict[str, Any]) -> Tensor:
    """Greedy tokens [2, n] after two prompts, the first padded on its left by a quarter."""
    import torch

    ids = token_ids(2, job["length"], job["vocabulary"])
    mask = torch.ones_like(ids)
    mask[0, : job["length"] // 4] = 0
    device, pad = next(model.parameters()).device, job["vocabulary"] // 3
    out = model.generate(
        ids.masked_fill(mask == 0, pad).to(device),
        attention_mask=mask.to(device),
        max_new_tokens=job["new"],
        min_new_tokens=job["new"],
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
    )
    return out[:, job["length"] :].cpu()  # type: ignore[no-any-return]


# What goes from one process to the other ---------------------------------------------------------


def send(stream: IO[bytes], what: str, numbers: Tensor | None = None, **more: Any) -> None:
    """One thing that was measured: a line of JSON, and the numbers."""
    header: dict[str, Any] = {"what": what, **more}
    if numbers is not None:
        header |= {"shape": list(numbers.shape), "of": str(numbers.dtype).removeprefix("torch.")}
    stream.write(json.dumps(header).encode() + b"\n")
    if numbers is not None:
        stream.write(numbers.contiguous().numpy().tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], Tensor | None]:
    """What was sent; EOFError at the end, another exception where it is something else."""
    import torch

    line = stream.readline(HEADER)
    if not line:
        raise EOFError
    header = json.loads(line)
    if not isinstance(header, dict):
        raise ValueError(f"a {type(header).__name__}")
    if "shape" not in header:
        return header, None
    if header["of"] not in NUMBERS:
        raise ValueError(f"numbers of type {header['of']!r}")
    dtype = getattr(torch, header["of"])
    empty = torch.empty(header["shape"], dtype=dtype)
    data = stream.read(empty.numel() * empty.element_size())
    if len(data) < empty.numel() * empty.element_size():
        raise EOFError
    return header, torch.frombuffer(bytearray(data), dtype=dtype).reshape(header["shape"])


# The fresh process -------------------------------------------------------------------------------


class _Without(importlib.abc.MetaPathFinder):
    """Finds no ctxext, wherever it may be installed."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.partition(".")[0] == "ctxext":
            raise ModuleNotFoundError("ctxext is not there in a proof", name=fullname)


def _main() -> None:
    sys.meta_path.insert(0, _Without())
    site.main()  # the interpreter starts without, for what is installed may import ctxext
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no result
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _answer(stream, job)
        loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "ctxext")
        send(stream, "end", **({"error": f"it imports {loaded[0]}"} if loaded else _about()))
    except BaseException as error:
        send(stream, "end", error=one_line(error))
        raise


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def _answer(stream: IO[bytes], job: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    trust = job["trust_remote_code"]
    if job["kept"]:
        written = AutoConfig.from_pretrained(job["written"], trust_remote_code=trust)
        ours = kept(written, job["free"])
        new = ours.keys() - job["kept"].keys() if job["carried"] else set()
        _compare({k: v for k, v in ours.items() if k not in new}, job["kept"])
    model, found = AutoModelForCausalLM.from_pretrained(
        job["folder"], trust_remote_code=trust, output_loading_info=True, **job["options"]
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, found.get(problem) or ())):
            raise ValueError(f"{len(keys)} weights are {problem[:-5]}, such as {keys[0]}")
    for what, numbers in measure(model.eval(), job):
        send(stream, what, numbers)


def _compare(written: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError unless both settings are the same."""
    for key in wanted | written:
        got, want = written.get(key), wanted.get(key)
        if isinstance(want, dict) and isinstance(got, dict):
            _compare(got, want)
        elif json.dumps(got) != json.dumps(want):
            raise ValueError(f"its {key} is {str(got)[:80]} and not {str(want)[:80]}")


def _about() -> dict[str, Any]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    _main()
