"""A cache that grows in place, against transformers' own and against full forwards.

Logits are compared as in test_engine.py, to 1e-5 of the largest.
"""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any
from unittest import mock

import conftest
import pytest
import torch
import transformers
from conftest import CACHE, random_model, tokens
from test_answers import MOST, WINDOWED, asked, by_hand, plain, prompts, words
from test_engine import NARROW, L, close, logits, padded
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import ctxext
from ctxext.engine.rotation import Rotation
from ctxext.measure.attempts import reads_in_parts
from ctxext.measure.growing import GROWTH, GrowingCache, GrowingLayer, new_cache

SPECS = ["rope", *NARROW.values(), "logn", "rerope:window=5+logn"]
FIVE = torch.arange(5)
ACTS = {
    "read": lambda layer, n: layer.update(*states(len_of(layer), n)),
    "step": lambda layer, n: layer.update(*states(len_of(layer), 1)),
    "crop": lambda layer, n: layer.crop(-min(n, layer.get_seq_length())),
    "reorder": lambda layer, n: layer.reorder_cache(FIVE[: len_of(layer)].flip(0)),
    "repeat": lambda layer, n: layer.batch_repeat_interleave(2 if len_of(layer) < 3 else 1),
    "select": lambda layer, n: layer.batch_select_indices(FIVE[: max(1, len_of(layer) - 1)]),
    "first": lambda layer, n: layer.batch_select_indices(slice(0, max(1, len_of(layer) - 1))),
    "reset": torch.inference_mode()(lambda layer, n: layer.reset() if n > 8 else None),
    "wide": lambda layer, n: put(layer, layer.keys.double(), layer.values),
    "turned": lambda layer, n: put(layer, layer.keys.flip(-2), layer.values.contiguous()),
}  # fmt: skip
fresh = itertools.count()


def len_of(layer: Any) -> int:
    """Rows of what is held; 2 where nothing was."""
    return len(layer.keys) if layer.is_initialized and layer.keys.ndim > 1 else 2


def states(rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Keys of 4 and values of 6 dimensions, as those of some models differ."""
    generator = torch.Generator().manual_seed(n + 100 * rows)
    return tuple(torch.randn(rows, 3, n, d, generator=generator) for d in (4, 6))  # type: ignore[return-value]


def put(layer: Any, keys: Tensor, values: Tensor) -> None:
    layer.keys, layer.values = keys, values


@pytest.mark.parametrize("seed", range(8))
def test_it_holds_what_the_one_of_transformers_holds(seed: int) -> None:
    """Whatever is done with it, in inference mode and out of it, by it and by its copies."""
    pick = random.Random(seed)
    ours, theirs = GrowingLayer(), DynamicLayer()
    ours.expected = pick.choice([0, 7, 30])
    for _ in range(60):
        name, n = pick.choice(["step", "step", *ACTS]), pick.randrange(1, 10)
        if not theirs.is_initialized or not theirs.get_seq_length():
            name = "read"
        if pick.random() < 0.2:
            ours = copy.deepcopy(ours)
        with pick.choice([torch.inference_mode, torch.no_grad])():
            given = [ACTS[name](layer, n) for layer in (ours, theirs)]
        for found, want in zip(*(g or () for g in given), strict=True):
            assert torch.equal(found, want)
            assert found.dtype == want.dtype
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.is_initialized:
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_rows_that_do_not_fit_are_refused() -> None:
    """None is spread over the others."""
    for held, more in ((2, 1), (1, 2)):
        layer = GrowingLayer()
        layer.update(*states(held, 3))
        with pytest.raises(RuntimeError, match=r"[Ss]izes of tensors must match"):
            layer.update(*states(more, 1))


def moves(layer: Any, steps: int) -> int:
    """How often what is held is moved in so many steps."""
    places = []
    with torch.no_grad():
        for _ in range(steps):
            layer.update(*states(2, 1))
            places.append(layer._key_room)
    return sum(a is not b for a, b in itertools.pairwise(places))


def test_it_is_seldom_moved() -> None:
    layer = GrowingLayer()
    layer.expected = 200
    layer.update(*states(2, 100))
    assert moves(layer, 100) == 0
    layer.crop(-50)
    assert moves(layer, 50) == 0
    assert layer.keys.untyped_storage().nbytes() == 2 * 3 * 200 * 4 * 4
    assert moves(layer, 1000) <= 9  # 200 · 1.25^8 > 1000
    assert layer.keys.untyped_storage().nbytes() <= GROWTH * 2 * 3 * 1200 * 4 * 4


def test_gradients_flow_through_it() -> None:
    ids = tokens(20)
    found = []
    for kind in (GrowingCache, DynamicCache):
        model = random_model()
        cache = kind(config=model.config)
        with torch.no_grad():
            model(ids[:, :10], **{CACHE: cache})
        for a, b in ((10, 15), (15, 20)):
            out = model(ids[:, a:b], **{CACHE: cache}).logits
        out.square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [(40,), (40, 23)])
@pytest.mark.parametrize("spec", SPECS)
def test_a_patched_model_reads_from_it_as_in_one_forward(spec: str, rows: tuple[int, ...]) -> None:
    """In parts, after cuts, in another order, repeated, padded on the left; keys that stay turned
    are turned but once."""
    model, widths, turn = random_model(), list[int](), Rotation.turn
    ids, mask, positions = padded([tokens(n, seed=n)[0] for n in rows])

    def read(cache: Any, a: int, b: int, order: Any, swap: bool = False) -> None:
        given = ids[order, a:b].flip(1) if swap else ids[order, a:b]
        more = {"attention_mask": mask[order, :b], "position_ids": positions[order, a:b]}
        found = logits(model, given, **more, **{CACHE: cache})
        for i, row in enumerate(range(len(ids))[order] if isinstance(order, slice) else order):
            real = mask[row, a:b].bool()
            if not swap:
                close(found[i][real], whole[row, a:b][real])

    def note(self: Rotation, x: Tensor, *tables: Tensor) -> Tensor:
        widths.append(x.shape[-2])
        return turn(self, x, *tables)

    order: Any = slice(None)
    with ctxext.patched(model, spec, 4 * L), torch.no_grad():
        whole = logits(model, ids, attention_mask=mask, position_ids=positions)
        cache = GrowingCache(model.config)
        cache.expect(40)
        for a, b in ((0, 20), (20, 26), (26, 27), (27, 28)):
            read(cache, a, b, order)
        place = cache.layers[0].keys.data_ptr()
        with mock.patch.object(Rotation, "turn", note):
            read(cache, 28, 29, order)
            read(cache, 29, 32, order)
        assert set(widths) <= {1, 3}
        twin = copy.deepcopy(cache)
        cache.crop(-5)
        read(cache, 27, 31, order, swap=True)  # other tokens where turned keys were
        cache.crop(-4)
        for a, b in itertools.pairwise((27, 28, 29, 32, 33, 36)):
            read(cache, a, b, order)
        assert cache.layers[0].keys.data_ptr() == place
        read(twin, 32, 33, order)
        again = [i for i in range(len(ids)) for _ in range(2)][::-1]
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.arange(len(again)).flip(0))
        for a, b in ((36, 37), (37, 38), (38, 40)):
            read(cache, a, b, again)


def spied(model: Any, samples: Any, batch: int) -> tuple[dict[str, Any], list[Any]]:
    """The rows of samples, and the caches that were handed to the model."""
    given, generate = list[Any](), model.generate

    def look(**more: Any) -> Any:
        given.append(more[CACHE])
        return generate(**more)

    with mock.patch.object(model, "generate", look):
        return asked(model, samples, batch), given


@pytest.mark.parametrize("spec", ["rope", "self-extend:window=5,group=3"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_answers_grow_in_place(spec: str, batch: int, shared: bool) -> None:
    """What a prompt and its answer take is made room for at once, and cut back for the next one."""
    model, samples = plain(random_model()), prompts(shared)
    with ctxext.patched(model, spec, 64):
        want = {s.name: words(by_hand(model, s.ids, MOST)[0]) for s in samples}
        with mock.patch.object(torch, "cat", wraps=torch.cat) as cat:
            rows, caches = spied(model, samples, batch)
    assert {name: row["pred"] for name, row in rows.items()} == want
    assert {type(cache) for cache in caches} == {GrowingCache}
    assert len({id(cache) for cache in caches}) == (1 if shared else len(samples) // batch)
    moved = sum("out" in call.kwargs for call in cat.call_args_list)
    longest = list(
        itertools.accumulate((len(s.ids) for s in sorted(samples, key=lambda s: s.ids)), max)
    )
    rooms = len(set(longest)) if shared else len(caches)
    assert moved == 2 * len(caches[0].layers) * rooms


@pytest.mark.parametrize("family", WINDOWED)
def test_sliding_layers_are_those_of_transformers(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conftest.FAMILIES, family, WINDOWED[family])
    model, samples = plain(random_model(family)), prompts(False)
    assert not reads_in_parts(model)
    for batch in (1, 8):
        rows, caches = spied(model, samples, batch)
        for sample in samples:
            assert rows[sample.name]["pred"] == words(by_hand(model, sample.ids, MOST)[0])
        for cache in caches:
            theirs = DynamicCache(config=model.config).layers
            for layer, own in zip(cache.layers, theirs, strict=True):
                assert type(layer) is (GrowingLayer if type(own) is DynamicLayer else type(own))


def test_caches_of_another_kind_are_left_to_transformers() -> None:
    kinds = ["linear_attention", "full_attention"]
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    config = transformers.Qwen3NextConfig(
        **conftest.SETTINGS, **sizes, linear_value_head_dim=8, head_dim=16, layer_types=kinds,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = plain(transformers.Qwen3NextForCausalLM(config).eval())
    assert type(new_cache(model)) is DynamicCache
    rows, caches = spied(model, prompts(False), 1)
    assert caches == [None] * len(rows)
