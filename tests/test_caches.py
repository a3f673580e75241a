"""What an attention layer is handed against what positions say: caches, axes, padding, arguments.

Logits are compared as in test_engine.py, to 1e-5 of the largest.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import threads
import torch
import transformers
from conftest import CACHE, random_model, tokens
from test_engine import ABSOLUTE, NARROW, WIDE, L, close, logits, padded, small
from torch import Tensor
from transformers import DynamicCache, StaticCache

import ctxext
from ctxext.engine.rotation import Rotation
from ctxext.engine.state import STATE
from ctxext.errors import UnsupportedModelError

SPECS = [*NARROW.values(), "rerope:window=5+logn", "self-extend:window=5,group=3+logn", "logn"]
RELATIVE = [spec for spec in NARROW.values() if spec not in ABSOLUTE]
HALF = ["sliding_attention", "full_attention"]
MODELS: dict[str, Callable[[], Any]] = {
    "llama": random_model,
    "mistral": lambda: small("Mistral", sliding_window=38),  # above T, so that methods are in it
}
LEFT_ALONE = [("gemma3", "rerope:window=5"), ("gemma3", ABSOLUTE[0])]  # of half of the layers


def refused(words: str) -> Any:
    """One line with these words."""
    return pytest.raises(UnsupportedModelError, match=rf"\A[^\n]*{words}[^\n]*\Z")


# Caches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "spec"), [*itertools.product(MODELS, SPECS), *LEFT_ALONE])
def test_static_caches_give_what_the_default_one_gives(name: str, spec: str) -> None:
    """Padded batches, prompts in chunks, beams; sliding layers drop keys, or hold too many."""
    gemma = {"sliding_window": 16, "layer_types": HALF}
    model = MODELS[name]() if name in MODELS else small("Gemma3", "Gemma3Text", **gemma)
    model.generation_config.eos_token_id = None
    rows = [tokens(n, seed=n)[0] for n in (45, 20)]
    ids, mask, _ = padded(rows)
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "attention_mask": mask}
    with ctxext.patched(model, spec, 4 * L):
        want, whole = model.generate(ids, **greedy), logits(model, rows[0][None], use_cache=False)
        for more in ({}, {"prefill_chunk_size": 19}):
            static = model.generate(ids, cache_implementation="static", **greedy, **more)
            assert torch.equal(static, want)
        model.generation_config.cache_implementation = "static"
        beams = [model.generate(ids, num_beams=2, use_cache=c, **greedy) for c in (True, False)]
        assert torch.equal(*beams)
        for cache in (StaticCache(model.config, max_cache_len=64), DynamicCache()):
            pieces = itertools.pairwise((0, 20, 21, 44, 45))
            given = [logits(model, rows[0][None, a:b], **{CACHE: cache}) for a, b in pieces]
            close(torch.cat(given, 1), whole)


@pytest.mark.parametrize("spec", NARROW.values())
def test_keys_that_another_model_wrote_are_refused(spec: str) -> None:
    """As those of before the patch, or of prefix tuning; a copy of a cache is as its original."""
    model, ids = random_model(), tokens(L)
    with torch.no_grad():
        before = model(ids[:, :20])[CACHE]
        with ctxext.patched(model, spec, 4 * L):
            with refused("not written under this patch"):
                model(ids[:, 20:], **{CACHE: before})
            first = model(ids[:, :20])[CACHE]
            again = copy.deepcopy(first)
            for cache in (first, again):
                close(model(ids[:, 20:], **{CACHE: cache}).logits, logits(model, ids)[:, 20:])


@pytest.mark.parametrize("rows", [(40, 40), (40, 23)])
@pytest.mark.parametrize("spec", [*NARROW.values(), "self-extend:window=20,group=3"])
def test_keys_that_stay_turned(spec: str, rows: tuple[int, ...]) -> None:
    """While a cache grows the new keys alone are turned; what is done with it meanwhile is seen."""
    model, widths, turn = random_model(), list[int](), Rotation.turn
    ids, mask, positions = padded([tokens(n, seed=n)[0] for n in rows])

    def read(cache: Any, a: int, b: int, swap: bool = False) -> Tensor:
        order = [1, 0] if swap else [0, 1]
        given = {"attention_mask": mask[order, :b], "position_ids": positions[order, a:b]}
        return logits(model, ids[order, a:b], **given, **{CACHE: cache})

    def note(self: Rotation, x: Tensor, *tables: Tensor) -> Tensor:
        widths.append(x.shape[-2])
        return turn(self, x, *tables)

    def check(found: Tensor, a: int, b: int, order: tuple[int, ...] = (0, 1)) -> None:
        for i, row in enumerate(order):
            real = mask[row, a:b].bool()
            close(found[i][real], whole[row, a:b][real])

    for mode in (torch.no_grad, torch.inference_mode):
        with ctxext.patched(model, spec, 4 * L), mode():
            whole = logits(model, ids, attention_mask=mask, position_ids=positions)
            cache = DynamicCache(config=model.config)
            read(cache, 0, 26)
            read(cache, 26, 27)
            read(cache, 27, 28)
            with mock.patch.object(Rotation, "turn", note):
                check(read(cache, 28, 29), 28, 29)
                check(read(cache, 29, 32), 29, 32)
            assert mode is torch.inference_mode or set(widths) <= {1, 3}
            widths.clear()
            twin, saved = copy.deepcopy(cache), io.BytesIO()
            torch.save(cache.layers[0].keys, saved)
            saved.seek(0)
            assert torch.equal(torch.load(saved, weights_only=True), cache.layers[0].keys)
            cache.crop(-4)
            other = {"attention_mask": mask[:, :30], "position_ids": positions[:, 28:30]}
            logits(model, ids[:, 2:4], **other, **{CACHE: cache})  # other tokens there
            cache.crop(-2)
            for a, b in itertools.pairwise((28, 29, 30, 31, 33)):
                check(read(cache, a, b), a, b)
            cache.reorder_cache(torch.tensor([1, 0]))
            for a, b in itertools.pairwise((33, 34, 35, 36)):
                check(read(cache, a, b, swap=True), a, b, (1, 0))
            for a, b in itertools.pairwise((32, 33, 34)):
                check(read(twin, a, b), a, b)
    with ctxext.patched(model, spec, 4 * L), torch.no_grad():
        for layer in twin.layers:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        for a, b in itertools.pairwise((34, 35, 36, 37)):
            read(twin, a, b)
        for layer in twin.layers:
            layer.keys.mul_(0.5)
        again = copy.deepcopy(twin)
        close(read(twin, 37, 38), read(again, 37, 38))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_keys_that_were_written_over_are_turned_anew(mode: Any) -> None:
    """In inference mode too, where torch does not count what is written."""
    model, ids = random_model(), torch.cat((tokens(30), tokens(30, seed=2)))
    with ctxext.patched(model, "rerope:window=20"), mode():
        cache = DynamicCache(config=model.config)
        for a, b in itertools.pairwise((0, 24, 25, 26, 27)):
            logits(model, ids[:, a:b], **{CACHE: cache})
        for layer in cache.layers:
            for x in (layer.keys, layer.values):
                x[0] = x[1].clone()
        last = logits(model, ids[1:, 27:28].repeat(2, 1), **{CACHE: cache})
        close(last[0], last[1])


@pytest.mark.parametrize("spec", RELATIVE)
def test_full_sliding_caches_behind_padding_without_positions(spec: str) -> None:
    """Slots count the padding and what was dropped too; relative methods are right by them."""
    model, ids = MODELS["mistral"](), tokens(45).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :25] = 0
    with ctxext.patched(model, spec, 4 * L):
        cache = DynamicCache(config=model.config)
        for a, b in itertools.pairwise((0, 20, 21, 44, 45)):
            last = logits(model, ids[:, a:b], attention_mask=mask[:, :b], **{CACHE: cache})
        close(last[1, -1], logits(model, ids[1:, 25:])[0, -1])


@pytest.mark.parametrize("spec", [*ABSOLUTE, "logn", "rerope:window=5+logn"])
def test_packed_rows_by_a_mask_alone_are_refused(spec: str) -> None:
    """Slots are no positions of the second sequence; given positions, each is as by itself."""
    model, one, two = random_model(), tokens(20, seed=1), tokens(25, seed=2)
    squares = [torch.ones(n, n, dtype=torch.bool).tril() for n in (20, 25)]
    packed = {"attention_mask": torch.block_diag(*squares).bool()[None, None]}
    both, positions = torch.cat((one, two), 1), torch.cat((torch.arange(20), torch.arange(25)))
    with ctxext.patched(model, spec, 4 * L):
        with refused("from a row's first token"):
            model(both, **packed)
        apart = logits(model, both, position_ids=positions[None], **packed)
        close(apart[:, 20:], logits(model, two))


@pytest.mark.parametrize("spec", ["logn", "rerope:window=5+logn", ABSOLUTE[0]])
def test_threads_do_not_read_each_others_positions(spec: str) -> None:
    model, texts = random_model(), [tokens(n, seed=n) for n in (40, 90)]

    def read(ids: Tensor) -> Tensor:
        with torch.no_grad():
            cache = model(ids[:, :-20])[CACHE]
            steps = [model(x, **{CACHE: cache}).logits for x in ids[:, -20:].split(1, 1)]
        return torch.cat(steps, 1)

    with ctxext.patched(model, spec, 4 * L), ThreadPoolExecutor(4) as pool:
        alone = [read(ids) for ids in texts]
        for found, want in zip(pool.map(read, texts * 4), alone * 4, strict=True):
            assert torch.equal(found, want)


SHARED = ("shared", "ntk:factor=8")  # frequencies, by layers that are left alone and others


@pytest.mark.parametrize(
    ("name", "spec"),
    [*(("llama", NARROW[name]) for name in ("rerope", "self-extend", "dca")), SHARED],
)
def test_eight_threads_write_what_one_does(name: str, spec: str) -> None:
    """Short texts of mixed lengths; `python tests/threads.py` writes thousands."""
    assert threads.differing(name, spec, 100) == 0


@pytest.mark.parametrize("spec", [*RELATIVE, *ABSOLUTE[:1]])
def test_a_cache_that_does_not_hold_what_positions_say(spec: str) -> None:
    """Keys that are missing, and positions that leave out, repeat, or go on without padding."""
    model, ids = random_model(), tokens(L)

    def step(past: int, position: int, lost: int = 0) -> Tensor:
        cache = DynamicCache(config=model.config)
        logits(model, ids[:, :past], **{CACHE: cache})
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, lost:], layer.values[:, :, lost:]
        more = torch.arange(position, position + 3)[None]
        return logits(model, ids[:, past : past + 3], position_ids=more, **{CACHE: cache})

    with ctxext.patched(model, spec, 4 * L):
        close(step(40, 40), logits(model, ids[:, :43])[:, -3:])
        for past, position, lost in ((40, 40, 9), (40, 47, 0), (40, 33, 0)):
            count = past - lost
            with refused(f"holds {count} keys before the token at position {position}: distance"):
                step(past, position, lost)


@pytest.mark.parametrize("attn", ["sdpa", "eager", "dense"])
@pytest.mark.parametrize("spec", NARROW.values())
def test_packed_rows_are_as_separate_ones(spec: str, attn: str) -> None:
    """Where no mask shows it: transformers makes none with a cache. Sequences are told apart by
    positions that begin anew, or by cumulative lengths, and the last one goes on."""
    model, rows = random_model(), [tokens(n, seed=n) for n in (12, 1, 1, 37, 8)]
    lengths = torch.tensor([0, *(row.shape[1] for row in rows)]).cumsum(0).int()
    ids = torch.cat(rows, 1)
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    most = {"max_length_q": 37, "max_length_k": 37}
    cumulative = {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths.clone(), **most}
    with ctxext.patched(model, spec, 4 * L, attn=attn):
        alone = torch.cat([logits(model, row) for row in rows], 1)
        close(logits(model, ids, position_ids=positions), alone)
        close(logits(model, ids, position_ids=positions, use_cache=False), alone)
        close(logits(model, ids, position_ids=positions, **cumulative), alone)
        two = torch.cat((ids, ids.flip(1)))
        both = logits(model, two, position_ids=positions.expand(2, -1))
        close(both[:1], alone)
        first, more = ids[:, :-3], positions[:, -3:]
        cache = DynamicCache()
        logits(model, rows[-1][:, :5], **{CACHE: cache})
        close(logits(model, rows[-1][:, 5:], position_ids=more, **{CACHE: cache}), alone[:, -3:])
        close(logits(model, first, position_ids=positions[:, :-3]), alone[:, :-3])


@pytest.mark.parametrize("spec", [*NARROW.values(), "rerope:window=5+logn"])
def test_cumulative_lengths_alone(spec: str) -> None:
    """Positions go on over them: right for methods that go by distance, refused by others."""
    model, rows = random_model(), [tokens(n, seed=n) for n in (20, 30)]
    ends = torch.tensor([0, 20, 50], dtype=torch.int32)
    given = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    with ctxext.patched(model, spec, 4 * L):
        if spec in ABSOLUTE or "logn" in spec:
            with refused("from a row's first token"):
                model(torch.cat(rows, 1), **given)
            return
        alone = torch.cat([logits(model, row) for row in rows], 1)
        close(logits(model, torch.cat(rows, 1), **given), alone)


@pytest.mark.parametrize("spec", RELATIVE)
def test_positions_that_repeat_within_a_forward(spec: str) -> None:
    """A token twice, as no sequence begins."""
    model, ids = random_model(), tokens(20)
    packed = [*range(10), 9, *range(10, 19)]
    with ctxext.patched(model, spec, 4 * L), refused("leave out or repeat positions"):
        model(ids, position_ids=torch.tensor([packed]), use_cache=True)


def test_how_far_a_layer_sees() -> None:
    """As its own mask says: sliding, unlimited, or in chunks."""
    chunks = {"attention_chunk_size": 40, "num_local_experts": 2, "intermediate_size_mlp": 96}
    llama4 = small("Llama4", "Llama4Text", layer_types=["chunked_attention", HALF[1]], **chunks)
    windows = {"mistral": [38, 38], "llama": [None, None], "llama4": [40, None]}
    for name, want in windows.items():
        model = llama4 if name == "llama4" else MODELS[name]()
        with ctxext.patched(model, "logn", train_len=32):
            state = model.model.layers[0].self_attn.__dict__[STATE]
            assert [layer.window for layer in state.layers.values()] == want, name


# Padding that no hook has told of ----------------------------------------------------------------


@pytest.mark.parametrize("spec", [*ABSOLUTE, "logn", "rerope:window=5+logn"])
@pytest.mark.parametrize("past", [0, 40])
def test_positions_that_count_padding_are_noticed(spec: str, past: int) -> None:
    """Without the hook that finds positions, as where an argument of a forward has a new name."""
    model = random_model()
    ids, mask, _ = padded([tokens(43)[0], tokens(9)[0]])
    with ctxext.patched(model, spec, 4 * L):
        cache = DynamicCache(config=model.config)
        if past:
            logits(model, ids[:, :past], attention_mask=mask[:, :past], **{CACHE: cache})
        model.model._forward_pre_hooks.clear()
        with refused("positions from a row's first token"):
            model(ids[:, past:], attention_mask=mask, **{CACHE: cache})


# Several axes ------------------------------------------------------------------------------------


def with_vision(kind: str) -> Any:
    """A small model that reads images of 4 tokens, whose positions have three axes."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {**small("Qwen2", without=("head_dim",)).config.to_dict(), "rope_parameters": rope}
    vision = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    sizes = {"hidden_size": 64, "embed_dim": 32}
    if kind != "Qwen2VL":
        sizes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**text, "vocab_size": 110}, vision_config={**vision, **sizes},
        image_token_id=100, video_token_id=101, vision_start_token_id=102, vision_end_token_id=103,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL"])
def test_images_among_positions(kind: str) -> None:
    """Text is right; where an image is, or was, slots are no positions."""
    model, text = with_vision(kind), tokens(40)
    image = text.clone()
    image[0, 10:16] = torch.tensor([102, 100, 100, 100, 100, 103])
    pixels = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    given = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    given["mm_token_type_ids"] = (image == 100).long()
    plain, seen = logits(model, text), logits(model, image, **given)
    for spec in WIDE.values():
        with ctxext.patched(model, spec, 2, train_len=4096):
            close(logits(model, text), plain)
            assert model.generate(text, do_sample=False, max_new_tokens=2).shape == (1, 42)
            with refused("axes differ"):
                model(image, **given)
        with torch.no_grad():
            cache = model(image, use_cache=True, **given)[CACHE]
        after = refused("not written under this patch")
        with ctxext.patched(model, spec, 2, train_len=4096), after:
            model(text[:, :1], **{CACHE: cache})
    for spec in ("ntk:factor=1", "logn"):
        with ctxext.patched(model, spec, 2, train_len=4096):
            close(logits(model, image, **given), seen)


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["rerope:window=5", *ABSOLUTE[:1]])
def test_arguments_that_could_change_attention(spec: str) -> None:
    """By what they are: numbers, functions and tensors that no layer was handed before."""
    model, ids = random_model(), tokens(L)
    ends = torch.tensor([0, 20, L], dtype=torch.int32)
    with ctxext.patched(model, spec, 4 * L):
        plain = logits(model, ids)
        others = {
            "position_bias": torch.zeros(1, 4, L, L),
            "cu_seq_lens_q": ends + 1,
            "a_name_to_come": (ends, ends),
            "logit_scale": 0.5,
            "score_mod": lambda score, *index: score,
        }
        for name, value in others.items():
            with refused(f"attention with '{name}'"):
                model(ids, **{name: value})
        with refused("that is not causal"):
            model(ids, is_causal=False)
        books = {"num_items_in_batch": torch.tensor(7), "output_router_logits": False, "flag": "a"}
        assert torch.equal(logits(model, ids, **books), plain)
        with refused("a mask of 4 × 50 × 50"):
            model(ids, attention_mask=torch.ones(1, 4, L, L, dtype=torch.bool).tril())


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_attention_weights(name: str) -> None:
    """Under an infinite window they are those of the model's own eager attention."""
    model, (ids, mask, _) = MODELS[name](), padded([tokens(45)[0], tokens(20)[0]])
    model.set_attn_implementation("eager")
    given = {"attention_mask": mask, "output_attentions": True}
    with torch.no_grad():
        wanted = model(ids, **given).attentions
        for spec in WIDE.values():
            with ctxext.patched(model, spec, 2, train_len=4096):
                found = model(ids, **given).attentions
                assert len(found) == len(wanted) == 2
                for ours, theirs in zip(found, wanted, strict=True):
                    close(ours[0], theirs[0])
                    close(ours[1, :, -20:], theirs[1, :, -20:])
        with ctxext.patched(model, "window:window=5"):
            (weights, _) = model(ids[:1], output_attentions=True).attentions
            steps = torch.arange(45)[:, None] - torch.arange(45)
            assert torch.equal(weights[0, 0] > 0, (steps >= 0) & (steps < 5))
        model.config.output_attentions = True  # which does not reach the attention function
        with refused("attention weights for `output_attentions=True` of a forward alone"):
            ctxext.patch(model, "window:window=5")


# Layers that run again ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("spec", ["logn", "rerope:window=5", "self-extend:window=5,group=3+logn"])
@pytest.mark.parametrize("family", ["Llama", "Persimmon"])  # which tells attention no positions
def test_two_forwards_before_their_backward(family: str, spec: str, reentrant: bool) -> None:
    """A layer that is computed again has the positions of its own forward: other lengths, rows."""
    model = small(family, without=() if family == "Llama" else ("head_dim",)).train()
    ids, mask, _ = padded([tokens(40)[0], tokens(22)[0]])

    def gradient() -> Tensor:
        model.zero_grad()
        first = model(ids, attention_mask=mask, use_cache=False).logits.square().mean()
        later = torch.arange(9, 9 + L)[None] if spec == "logn" else None
        other = model(tokens(L), position_ids=later, use_cache=False).logits.square().mean()
        (first + other).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    with ctxext.patched(model, spec, 4 * L):
        wanted = gradient()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        close(gradient(), wanted, 2e-6)


def test_tables_that_are_copies_are_no_ones() -> None:
    """A layer that runs again with tables that nobody knows is refused, not guessed."""
    model = random_model().train()
    attention = model.model.layers[0].self_attn

    def copied(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tables = tuple(table.clone() for table in kwargs["position_embeddings"])
        return args, {**kwargs, "position_embeddings": tables, "position_ids": None}

    hook = attention.register_forward_pre_hook(copied, with_kwargs=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with ctxext.patched(model, "logn", 4 * L):
        loss = model(tokens(L), use_cache=False).logits.square().mean()
        assert math.isfinite(float(loss))
        with refused("runs again after another forward"):
            loss.backward()
    hook.remove()
