"""What both sides of a proof measure: a job, which is what `check.measure` is told."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from ctxext.engine.probe import learn
from ctxext.errors import UnsupportedModelError
from ctxext.export import check
from ctxext.methods import Spec
from ctxext.methods.base import Span
from ctxext.models.frequency_sets import FrequencySet, find_frequency_sets
from ctxext.models.loading import Source

Job = dict[str, Any]  # what `check.measure` is told

POSITIONS = 2**17  # of a table, at most
PLAIN = 1024  # tokens of a plain probe, at most
BLOCK = 16  # tokens that are read at a place far out
SPREAD = 64  # keys before them that stand anywhere
JUMP = 256  # tokens of the probe that jumps from the first positions to the last
ROWS = 256  # logits that are compared, in tokens
LONGEST = 2**17  # positions of a cache that is filled up, at most
NEW = 8  # tokens generated after a prompt
# What an export may change in a config: its rotation, its length and its code …
FREE = frozenset(
    {
        *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"),
        *("rotary_emb_base", "head_dim", "max_position_embeddings"),
        *("original_max_position_embeddings", "auto_map", "transformers_version"),
        "_name_or_path",
    }
)
CARRIED_FREE = frozenset({"architectures", "model_type", "ctxext"})  # … and whose code it is


def make_job(
    model: Any, spec: Spec, length: int, given: Source, carried: bool, rows: int = ROWS
) -> Job:
    """What both sides measure on the model, which is not patched yet."""
    freq_sets = find_frequency_sets(model, **options(given))
    trained = freq_sets[0].trained
    vocabulary = model.config.get_text_config().vocab_size
    probe = {"vocabulary": vocabulary, "rows": rows, "jump": 0, "at": 0}
    job: Job = {"threads": torch.get_num_threads(), "tables": [], "generate": None}
    if carried:
        ends = sorted({min(trained, PLAIN), min(length, PLAIN)})
        sizes = _sizes(spec.resolve(Span(trained, length)), trained)
        far = [
            {**probe, "length": BLOCK, "at": at, "keys": _keys(at, sizes)}
            for at in _places(sizes, min(length, LONGEST))
        ]
        prompt = max(4, min(trained + 32, length - NEW, PLAIN))
        return job | {
            "probes": [*({**probe, "length": n} for n in ends), *far],
            "generate": {**probe, "length": prompt, "new": NEW},
        }
    plain = min(trained + 64, length, PLAIN)
    job["probes"] = [{**probe, "length": plain}]
    if length > max(JUMP, plain):
        job["probes"].append({**probe, "length": JUMP, "jump": length})
    lengths = {min(trained, length), length}
    if any(freqs.by_length for freqs in freq_sets):  # which the export must not
        lengths.add(2)
    job["tables"] = [
        {**table, "length": n, "count": POSITIONS}
        for table in _sets(model, freq_sets)
        for n in sorted(lengths)
    ]
    return job


def _sizes(spec: Spec, trained: int) -> list[int]:
    """Where a spec may change what it does, in tokens: its windows, chunks and the like, and T."""
    values = (getattr(m, f.name) for m in spec.methods for f in fields(m))
    return sorted({trained, *(v for v in values if type(v) is int and v > 0)})


def _places(sizes: list[int], length: int) -> list[int]:
    """The positions of the first tokens of blocks: about all sizes, between them, and up to L.

    Chunks and groups are met at their beginnings, and where other sizes end in them.
    """
    last = length - BLOCK
    steps = [size for size in sizes if BLOCK < size < length]
    within = {last // a * a + b for a in steps for b in (0, *sizes) if b < a}
    odd = {length * part // 8 + part for part in (3, 5, 7)}
    places = {last, *(place - BLOCK // 2 for place in {*sizes, *within, *odd})}
    return sorted(place for place in places if check.FIRST < place <= last)


def _keys(at: int, sizes: list[int]) -> list[int]:
    """The positions of the keys that tokens from `at` on see: about every border, and anywhere."""
    near = range(-BLOCK, BLOCK + 1)
    borders = {at - size for size in sizes} | {at // size * size for size in sizes}
    found = {b + i for b in (at, *sizes, *borders) for i in near}
    found |= set(check.spread(at, SPREAD).tolist())
    return sorted(key for key in found if check.FIRST <= key < at)


def options(given: Source) -> dict[str, Any]:
    return {"train_len": given.train_len, "own_scaling": given.own_scaling}


def free_settings(config: Any, carried: bool) -> list[str]:
    """The settings that an export may change."""
    own = (config.get_text_config().attribute_map or {}).get("max_position_embeddings")
    return sorted(FREE | {own or "n_positions"} | (CARRIED_FREE if carried else set()))


def _sets(model: Any, freq_sets: list[FrequencySet]) -> list[dict[str, Any]]:
    """Every set of frequencies that a text uses: its module, layer type and axes of positions."""
    try:
        axes = learn(model, freq_sets)[1]
    except UnsupportedModelError:
        axes = {}
    names = {module: name for name, module in model.named_modules()}
    return [
        {"module": names[s.module], "kind": s.layer_type, "axes": list(axes.get(s, ()))}
        for s in axes or freq_sets
    ]
