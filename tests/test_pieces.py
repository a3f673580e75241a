"""Token ids of long texts, tokenised in pieces, against those of the whole text at once."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import ctxext
from ctxext.measure import pieces
from ctxext.measure.tokens import tokenise
from ctxext.tasks.data import Text, load_text

WORDS = [
    *("the", "and", "straße", "ΣΊΣΥΦΟΣ", "naïve", "e\u0301te\u0301", "模型言語", "🦙", "👩‍👩‍👧"),
    *("12345", "3.14", "don't", "ALL", "ababab", "aaaa", "<mask>", "<s>", "_", "▁", "\u00a0"),
    *("ﬁne", "각", "한국어", "\u200d", "İ", "...", "http://x.y/z", "\r\n", "\n\n", "\t"),
    *("x" * 30, "aab", "\u0301\u0302", " ", "  ", " a"),
]
RUNS = ["a", "ab", "aab", " ", "\n", "\t ", "\u3000", "1", "12", "=", "模", "▁", "x ", "🦙"]
fragments = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS).map(" ".__add__),
    st.tuples(st.sampled_from(RUNS), st.integers(1, 200)).map(lambda run: run[0] * run[1]),
    st.lists(st.sampled_from(WORDS[:16]), max_size=30).map(" ".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
)
texts = st.lists(fragments, min_size=5, max_size=60).map("".join)

BYTES = pre_tokenizers.ByteLevel.alphabet()
GPT4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(
    model: Any, trainer: Any, normalizer: Any = None, *splits: Any, special: bool = False
) -> Any:
    """A tokenizer that learnt on words like those of the texts, its tokens short."""
    core = Tokenizer(model)
    if normalizer is not None:
        core.normalizer = normalizer
    if splits:
        core.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    rng = random.Random(0)
    lines = [" ".join(rng.choice([*WORDS, *RUNS]) for _ in range(80)) for _ in range(150)]
    core.train_from_iterator(lines, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    if special:
        tokens = [AddedToken("<mask>", lstrip=True), AddedToken("<s>", rstrip=True)]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer


def bpe(normalizer: Any, *splits: Any, special: bool = False, **options: Any) -> Any:
    alphabet = {"initial_alphabet": BYTES} if "unk_token" not in options else {}
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        max_token_length=12,
        special_tokens=["<unk>"],
        show_progress=False,
        **alphabet,
    )
    return trained(models.BPE(**options), trainer, normalizer, *splits, special=special)


def unigram(normalizer: Any, *splits: Any) -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    return trained(models.Unigram(), trainer, normalizer, *splits)


def wordpiece(normalizer: Any, *splits: Any) -> Any:
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]"], show_progress=False
    )
    model = models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50)
    return trained(model, trainer, normalizer, *splits)


def byte_level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: bpe(None, byte_level(), special=True),
    "gpt2-prefix-space": lambda: bpe(None, byte_level(add_prefix_space=True)),
    "bytes, one word": lambda: bpe(None, byte_level(use_regex=False), special=True),
    "llama3": lambda: bpe(
        normalizers.NFC(),
        pre_tokenizers.Split(Regex(GPT4), "isolated"),
        byte_level(use_regex=False),
        special=True,
        ignore_merges=True,
    ),
    "llama2": lambda: bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
        special=True,
    ),
    "metaspace, first": lambda: bpe(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), unk_token="<unk>"
    ),
    "clip": lambda: bpe(
        normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),
        pre_tokenizers.WhitespaceSplit(),
        unk_token="<unk>",
        end_of_word_suffix="</w>",
    ),
    "t5": lambda: unigram(
        normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()]), pre_tokenizers.Metaspace()
    ),
    "unigram, one word": lambda: unigram(None),
    "bert": lambda: wordpiece(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "fixed length": lambda: wordpiece(normalizers.NFD(), pre_tokenizers.FixedLength(length=5)),
}
kind = functools.cache(lambda name: KINDS[name]())


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=texts, sizes=st.sampled_from([(67, 40), (131, 64), (257, 128)]))
def test_pieces_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr(pieces, "PIECE", sizes[0])
    monkeypatch.setattr(pieces, "MARGIN", sizes[1])
    tokenizer = kind(name)
    found = list(pieces.pieces(tokenizer, text))
    assert list(itertools.chain(*found)) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "name", [n for n in KINDS if n not in ("unigram, one word", "fixed length")]
)
def test_a_long_text_is_tokenised_in_pieces(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ordinary text is; where nothing shows that it may be cut, it is not."""
    monkeypatch.setattr(pieces, "PIECE", 601)
    monkeypatch.setattr(pieces, "MARGIN", 256)
    text = load_text("stdlib").documents[0][:12_000]
    found = list(pieces.pieces(kind(name), text))
    assert len(found) > 15
    assert list(itertools.chain(*found)) == kind(name)(text, add_special_tokens=False).input_ids
    assert len(list(pieces.pieces(kind("unigram, one word"), text))) == 1


def unigram_of_pairs() -> Any:
    """Its best tokens of ab… are those of `ba`, but only where there are many of them."""
    scores = [("<unk>", -99.0), ("ab", -1.0), ("ba", -0.9), ("a", -10.0), ("b", -10.0)]
    core = Tokenizer(models.Unigram(scores, unk_id=0))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize(
    ("make", "text", "size"),
    [
        (unigram_of_pairs, "ab" * 500, 68),  # no piece shows what all of it together does
        (
            functools.partial(kind, "gpt2"),
            "thethe!!" + "\t" * 600 + "<mask>",
            64,
        ),
        (functools.partial(kind, "bert"), "x" * 5000 + " the" * 50, 64),  # unknown, if seen whole
    ],
)
def test_neighbours_that_agree_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], text: str, size: int
) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    monkeypatch.setattr(pieces, "MARGIN", 40)
    ids = make()(text, add_special_tokens=False).input_ids
    assert list(itertools.chain(*pieces.pieces(make(), text))) == ids


class Counting:
    """A tokenizer, and the characters that it was given."""

    is_fast = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_no_more_is_tokenised_than_is_asked_for() -> None:
    _, tokenizer = ctxext.load("tiny")
    documents = load_text("stdlib").documents
    core = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = core.encode("\n\n".join(documents), add_special_tokens=False).ids
    for text in (Text("one", ("\n\n".join(documents),)), Text("many", documents)):
        counting = Counting(tokenizer)
        assert tokenise(text, counting, 2048).tolist() == ids[:2048]
        assert counting.characters < 3 * pieces.PIECE
        assert tokenise(text, tokenizer, 100_001).tolist() == ids[:100_001]


class OneToken:
    """A tokenizer that says one token of whatever it is given."""

    def __call__(self, text: str, **options: Any) -> Any:
        return transformers.BatchEncoding({"input_ids": [1]})


def test_a_cap_takes_no_longer_where_documents_are_many() -> None:
    """Counting anew after each document took 50 times as long."""
    text = Text("many", ("a",) * 20_000)

    def seconds(at_most: int | None) -> float:
        began = time.process_time()
        assert len(tokenise(text, OneToken(), at_most)) == 20_000
        return time.process_time() - began

    assert min(seconds(20_000) for _ in range(3)) < 3 * min(seconds(None) for _ in range(3))


def test_the_end_of_what_was_cut_off_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a beginning is too short, all is read."""
    tokenizer = kind("gpt2")
    whole = Text("all", ("word " * 9000,))
    monkeypatch.setattr("ctxext.measure.tokens.load_text", lambda name: whole)
    ids = tokenise(whole, tokenizer, None)
    for size in (200, 9000, 44_000):
        beginning = Text("all", (whole.documents[0][:size],), cut=True)
        found = tokenise(beginning, tokenizer, 5000)
        assert torch.equal(found, ids[:5000])
