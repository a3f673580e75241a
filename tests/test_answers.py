"""Greedy answers, against a loop of full forwards without a cache.

Tolerance: 1e-4 for margins, differences of float32 logits of about 10 by two orders of adding.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import conftest
import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import ctxext
from ctxext.errors import CtxextError
from ctxext.measure.answers import Limits, answers, common, schedule, share
from ctxext.measure.forwards import Forwards, Spent
from ctxext.tasks.base import Row, Sample

MOST, LENGTH = 6, 64
SPECS = ("rope", "ntk:factor=2", "rerope:window=8", "leaky-rerope:window=8,leak=3+logn:clip=false")


class Words:
    """A tokenizer that says token ids as numbers; 0 to 2 are special."""

    def __init__(self, eos: int | None = None, pad: int | None = None) -> None:
        self.eos_token_id, self.pad_token_id = eos, pad

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(str(int(i)) for i in ids if i > 2)


def prompts(shared: bool, count: int = 8, seed: int = 1) -> list[Sample]:
    """Prompts of 9 to 40 tokens; with `shared` they begin alike, more or less."""
    pick = random.Random(seed)
    stem, found = [pick.randrange(3, 97) for _ in range(34)], []
    for number in range(count):
        begin = stem[: pick.randrange(24, 34)] if shared else []
        fresh = pick.randrange(1, 8) if shared else pick.randrange(9, 41)
        ids = begin + [pick.randrange(3, 97) for _ in range(fresh)]
        found.append(Sample(f"s{number}", ids, ["x"], {"depth": number / 8}))
    return found


def by_hand(
    model: Any, ids: Sequence[int], most: int, ends: Sequence[int] = (), least: int = 0
) -> tuple[list[int], float]:
    """The tokens of a greedy answer, and its smallest margin: one full forward for each."""
    said, margin = list[int](), math.inf
    while len(said) < most:
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].double()
        if len(said) < least:
            logits[list(ends)] = -math.inf
        best, second = sorted(logits.tolist())[:-3:-1]
        margin = min(margin, best - second)
        said.append(logits.tolist().index(best))
        if said[-1] in ends:
            break
    return said, margin


def words(said: Sequence[int]) -> str:
    return " ".join(str(token) for token in said if token > 2)


def plain(model: Any) -> Any:
    """The model without an EOS of its own, so that answers are long."""
    model.generation_config.eos_token_id = None
    return model


def asked(
    model: Any, samples: Sequence[Sample], batch: int = 1, tokenizer: Any = None, **limits: Any
) -> dict[str, Row]:
    given_limits = Limits(**{"most": MOST, **limits})
    rows = list(answers(model, tokenizer or Words(), samples, given_limits, batch))
    assert len(rows) == len(samples)
    return {row["name"]: row for row in rows}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the tokens of each forward of a random Llama."""
    import transformers

    real, seen = transformers.LlamaModel.forward, list[int]()

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        seen.append(input_ids.numel())
        return real(self, input_ids, **more)

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    return seen


@pytest.mark.filterwarnings("error::FutureWarning")  # of caches handed over by an old name
@pytest.mark.parametrize("family", ["llama-gqa", "cohere-interleaved", "gpt_neox-partial-inside"])
@pytest.mark.parametrize("spec", SPECS)
def test_answers_are_those_of_full_forwards(family: str, spec: str) -> None:
    model = plain(random_model(family))
    for shared in (False, True):
        samples = prompts(shared)
        with ctxext.patched(model, spec, LENGTH):
            want = {s.name: by_hand(model, s.ids, MOST) for s in samples}
            for batch in (1, 8):
                rows = asked(model, samples, batch)
                for name, (said, margin) in want.items():
                    assert margin > 2e-4, "choose other prompts: this one is a toss-up"
                    assert rows[name]["pred"] == words(said)
                    assert rows[name]["margin"] == pytest.approx(margin, abs=1e-4)


def test_a_row_has_what_its_sample_says(llama: Any) -> None:
    (sample,) = prompts(False, 1)
    facts = {"depth": 0.5, "all_classes": ["a"]}
    done: list[int] = []
    sample = Sample("n", sample.ids, ("x", "y"), facts)
    (row,) = answers(llama, Words(), [sample], Limits(2), 1, done.append)
    seconds, margin = row.pop("seconds"), row.pop("margin")
    assert row.pop("prompt") == sample.digest
    assert row.pop("pred").count(" ") <= 1
    assert row == {"name": "n", "answers": ["x", "y"], "length": len(sample.ids), **facts}
    assert seconds > 0
    assert margin > 0
    assert done == [len(sample.ids)]


def test_what_prompts_share_is_read_once(read: list[int]) -> None:
    model, samples = plain(random_model()), prompts(True)
    asked(model, samples, 8)
    shared, whole = sum(read), sum(len(s.ids) for s in samples)
    read.clear()
    asked(model, prompts(False), 1)
    assert sum(read) == sum(len(s.ids) for s in prompts(False)) + 8 * (MOST - 1)
    assert shared < whole / 2


@pytest.mark.parametrize("same", [2, 3])
def test_the_same_prompt_again_and_a_prompt_that_another_begins_with(llama: Any, same: int) -> None:
    (long,) = prompts(False, 1)
    ids = [list(long.ids)] * same + [list(long.ids)[: len(long.ids) * 2 // 3]]
    samples = [Sample(str(i), one, []) for i, one in enumerate(ids)]
    rows = asked(plain(llama), samples, 4)
    for sample in samples:
        assert rows[sample.name]["pred"] == words(by_hand(llama, sample.ids, MOST)[0])


# Where an answer ends.


def stopping(kind: str, token: int, model: Any) -> tuple[Words, tuple[int, ...]]:
    """The token as an end of that kind: a tokenizer and the stops of a task."""
    if kind == "tokenizer":
        return Words(eos=token), ()
    if kind == "task":
        return Words(), (token, 96)
    model.generation_config.eos_token_id = token if kind == "model" else [96, token]
    return Words(pad=0), ()


@pytest.mark.parametrize("kind", ["tokenizer", "model", "model's list", "task"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("least", [0, 4])
def test_an_answer_ends_at_every_kind_of_end(
    llama: Any, kind: str, shared: bool, least: int
) -> None:
    samples, model = prompts(shared), plain(llama)
    token = by_hand(model, samples[0].ids, MOST)[0][2]
    tokenizer, stops = stopping(kind, token, model)
    ends = (token, 96) if kind in ("task", "model's list") else (token,)
    ended = set()
    for batch in (1, 8):
        rows = asked(model, samples, batch, tokenizer, stops=stops, least=least)
        for sample in samples:
            said, margin = by_hand(model, sample.ids, MOST, ends, least)
            ended.add(len(said) < MOST)
            assert len(said) > least
            assert rows[sample.name]["pred"] == words(said)
            assert rows[sample.name]["margin"] == pytest.approx(margin, abs=1e-4)
    assert least or ended == {True, False}


def test_what_follows_the_end_is_no_part_of_the_answer_even_where_padding_is_a_word(
    llama: Any,
) -> None:
    samples, model = prompts(False), plain(llama)
    token = by_hand(model, samples[0].ids, MOST)[0][0]
    rows = asked(model, samples, 8, Words(eos=token, pad=50))
    assert rows["s0"]["pred"] == str(token)
    for sample in samples:
        assert rows[sample.name]["pred"] == words(by_hand(model, sample.ids, MOST, (token,))[0])


@pytest.mark.parametrize("pad", [97, -1, 10**6])
def test_padding_that_the_model_cannot_embed(llama: Any, pad: int) -> None:
    """It is masked, and another id of the embeddings' 97 pads in its place."""
    samples, model = prompts(False), plain(llama)
    rows = asked(model, samples, 8, Words(pad=pad))
    for sample in samples:
        assert rows[sample.name]["pred"] == words(by_hand(model, sample.ids, MOST)[0])


SETTINGS = {
    "do_sample": True,
    "temperature": 9.0,
    "top_k": 2,
    "top_p": 0.1,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "max_length": 3,
    "min_length": 90,
    "num_beams": 4,
    "num_return_sequences": 2,
    "bad_words_ids": [[i] for i in range(3, 50)],
    "suppress_tokens": list(range(50, 90)),
    "forced_eos_token_id": 7,
    "begin_suppress_tokens": [91],
    "max_time": 1e-9,
    "use_cache": False,
    "return_dict_in_generate": True,
    "stop_strings": ["1"],
    "eos_token_id": 2,
}


@pytest.mark.parametrize("shared", [False, True])
def test_the_models_own_generation_settings_change_nothing_and_are_left(
    llama: Any, shared: bool
) -> None:
    samples = prompts(shared)
    want = asked(llama, samples, 4)
    own = llama.generation_config
    for name, value in SETTINGS.items():
        setattr(own, name, value)
    before = copy.deepcopy(own.to_dict())
    rows = asked(llama, samples, 4)
    assert llama.generation_config is own
    assert own.to_dict() == before
    for name, row in want.items():
        assert rows[name]["pred"] == row["pred"]
        assert rows[name]["margin"] == row["margin"]


@pytest.mark.parametrize("shared", [False, True])
def test_logits_that_are_not_finite_are_an_error_and_the_settings_come_back(
    llama: Any, shared: bool
) -> None:
    own = llama.generation_config
    llama.lm_head.weight.data[5] = math.nan
    with pytest.raises(CtxextError, match=r"^the logits are not finite$"):
        asked(llama, prompts(shared), 4)
    assert llama.generation_config is own


WINDOWED = {
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 8, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"sliding_window": 8, "head_dim": 16, "attn_logit_softcapping": None},
    ),
}


@pytest.mark.parametrize("family", WINDOWED)
def test_a_cache_that_cannot_be_cut_back_is_not_shared(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conftest.FAMILIES, family, WINDOWED[family])
    model, seen = plain(random_model(family)), list[int]()

    def see(*call: Any) -> None:
        seen.append(call[1][0].numel())

    hook = model.get_input_embeddings().register_forward_hook(see)
    samples = prompts(True)
    rows = asked(model, samples, 1)
    hook.remove()
    assert sum(seen) == sum(len(s.ids) for s in samples) + len(samples) * (MOST - 1)
    for sample in samples:
        assert rows[sample.name]["pred"] == words(by_hand(model, sample.ids, MOST)[0])


# Who answers what, and when.

id_lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=14)


def named(lists: list[list[int]]) -> list[Sample]:
    return [Sample(f"n{i}", ids, []) for i, ids in enumerate(lists)]


@settings(max_examples=300, deadline=None)
@given(lists=id_lists, batch=st.integers(1, 5), can_share=st.booleans())
def test_a_schedule_has_every_sample_once(
    lists: list[list[int]], batch: int, can_share: bool
) -> None:
    parts = list(schedule(named(lists), batch, can_share))
    names = [sample.name for some, _ in parts for sample in some]
    assert sorted(names) == sorted(s.name for s in named(lists))
    alone = [some for some, shares in parts if not shares]
    assert all(1 <= len(some) <= batch for some in alone)
    lengths = [len(s.ids) for some in alone for s in some]
    assert lengths == sorted(lengths, reverse=True)
    for some, shares in parts:
        if shares:
            assert can_share
            assert len(some) > 1
            for one, two in zip(some, some[1:]):  # noqa: B905 RUF007
                alike = [a == b for a, b in zip(one.ids, two.ids, strict=False)]
                kept = [*alike, False].index(False)
                assert kept == common(one.ids, two.ids)
                assert 2 * kept >= len(two.ids)


@settings(max_examples=200, deadline=None)
@given(lists=id_lists, count=st.integers(1, 9))
def test_each_process_has_its_own_share(lists: list[list[int]], count: int) -> None:
    shares = [share(named(lists), rank, count) for rank in range(count)]
    names = [sample.name for some in shares for sample in some]
    assert sorted(names) == sorted(s.name for s in named(lists))
    sizes = [sum(max(1, len(sample.ids)) for sample in some) for some in shares]
    longest = max((max(1, len(ids)) for ids in lists), default=0)
    assert all(abs(size - sum(sizes) / count) <= longest for size in sizes)
    assert shares == [share(named(lists), rank, count) for rank in range(count)]


@pytest.mark.parametrize(("batch", "chunk", "shared"), [(1, None, False), (8, None, False),
    (1, None, True), (1, 16, True), (1, 16, False)])  # fmt: skip
def test_reading_and_decoding_are_timed_apart(
    batch: int, chunk: int | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = plain(random_model()), prompts(shared)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    spent = Spent()
    with ctxext.patched(model, "rerope:window=8", LENGTH), Forwards(model, spent):
        list(answers(model, Words(), samples, Limits(MOST), batch, chunk=chunk))
    lengths, before = [len(sample.ids) for sample in samples], list[int]()
    want = sum(lengths) if batch == 1 else len(samples) * max(lengths)
    if shared:
        for sample in sorted(samples, key=lambda one: list(one.ids)):
            want, before = want - common(before, sample.ids), list(sample.ids)
    ones = 0  # a last token that is read by itself is a step like those of decoding
    if chunk is not None:
        ones = len(samples)
    assert spent.decode_tokens + spent.prefill_tokens == want + len(samples) * (MOST - 1)
    assert spent.decode_tokens >= len(samples) * (MOST - 1)
    assert spent.decode_tokens <= len(samples) * (MOST - 1) + ones + (4 if shared else 0)
    steps = spent.decode_tokens if batch == 1 else MOST - 1
    assert spent.decode_seconds == steps  # a tick for each forward, and none for what is between
    assert spent.prefill_seconds > 0
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_forward_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spent = random_model(), Spent()
    with Forwards(model, spent):
        with pytest.raises(IndexError):
            model(torch.tensor([[3, 10**6]]))
        assert spent == Spent()
        with torch.no_grad():
            model(torch.tensor([[3, 4, 5]] * 2))
            model.base_model(input_ids=torch.tensor([[3, 4]]))
    assert (spent.prefill_tokens, spent.decode_tokens) == (8, 0)
    assert spent.prefill_seconds > 0
    assert spent.record()["decode_seconds"] is spent.record()["decode_tokens"] is None
    together = Spent.together([Spent(1.0, 10, 2.0, 4), Spent(3.0, 20, 2.0, 4)])
    assert together == Spent(2.0, 30, 2.0, 8)
