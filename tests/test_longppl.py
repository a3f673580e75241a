"""Perplexity of the tokens that a long context helps, against plain forwards, one for each token.

Tolerance: 1e-5 relative, as for other perplexities; 1e-3 to the published package, whose losses are
of float32.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAINED
from test_eval import BOS, Run, folders, here, letters, save_model  # noqa: F401 - fixtures

import ctxext
from ctxext.measure import helped
from ctxext.models.loading import Source, load_model, load_tokenizer
from ctxext.tasks.base import Helped
from ctxext.tasks.data import load_text
from ctxext.tasks.windows import Windows, cut

pytestmark = pytest.mark.quick

RULE = Helped(None, short=8, stride=3, alpha=0.05, beta=6.5)
ASKED = f"short={RULE.short},stride={RULE.stride},alpha={RULE.alpha},beta={RULE.beta}"


def loss(model: Any, ids: list[int], before: int, place: int, start: int | None) -> float:
    """Of the id at a place behind the ids from `before` on, which are opened by a BOS."""
    context = ids[before:place] if start is None else [start, *ids[before + 1 : place]]
    with torch.no_grad():
        logits = model(torch.tensor([context]), use_cache=False).logits[0, -1].double()
    return -float(logits.log_softmax(-1)[ids[place]])


def keys(model: Any, ids: list[int], start: int | None, rule: Helped) -> list[int]:
    """The places of a window that count, by the definition."""
    found = []
    for place in range(rule.short, len(ids)):
        near = (place - rule.short) // rule.stride * rule.stride
        far = 0
        if place >= TRAINED:
            strides = (place - TRAINED) // rule.stride + 1
            far = min(TRAINED + strides * rule.stride, len(ids)) - TRAINED
        long = loss(model, ids, far, place, start)
        if loss(model, ids, near, place, start) - long > rule.alpha and long < rule.beta:
            found.append(place)
    return found


@pytest.mark.parametrize("name", ["plain", "bos"])
def test_scores_the_tokens_that_an_evaluator_is_helped_with(
    name: str,
    here: Path,  # noqa: F811
    run: Run,
) -> None:
    start = BOS if name == "bos" else None
    task = f"longppl:{ASKED},ppl"
    ran = run("eval", "--model", name, "--len", "24,70", "--limit", 2, "--data", "t.txt",
              "--task", task, "--method", "rerope:window=16", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    model, tokenizer = load_model(Source(name)), load_tokenizer(Source(name))
    text = tokenizer(letters(), add_special_tokens=False).input_ids
    for record in (r for r in ran.records if r["task"].startswith("longppl")):
        length, losses, counts = record["length"], [], []
        payload = length - (start is not None)
        for number in range(2):
            ids = text[number * payload :][:payload]
            ids = ids if start is None else [start, *ids]
            places = keys(model, ids, start, RULE)
            counts.append(len(places))
            if record["requested"] == "rope":
                losses += [loss(model, ids, 0, place, start) for place in places]
                continue
            with ctxext.patched(model, record["requested"], length):
                losses += [loss(model, ids, 0, place, start) for place in places]
        assert counts == record["by_window"]["n"], record["requested"]
        assert min(counts) > 0
        assert record["value"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_takes_the_word_of_another_model(
    here: Path,  # noqa: F811
    run: Run,
) -> None:
    """Whose tokenizer parts text as the model's does, but for the BOS."""
    task = f"longppl:{ASKED},evaluator=other"
    asked = ("eval", "--model", "bos", "--len", 28, "--limit", 1, "--data", "t.txt", "--task", task)
    ran = run(*asked, "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "'other'" in ran.err
    save_model(here / "other", seed=5)
    [record] = run(*asked, "--json").records
    other, tokenizer = load_model(Source("other")), load_tokenizer(Source("other"))
    ids = tokenizer(letters(), add_special_tokens=False).input_ids[:27]
    assert record["n"] == len(keys(other, ids, None, RULE)) > 0
    assert run(*asked, "--json").records == [record]


def test_says_where_no_token_counts(here: Path, run: Run) -> None:  # noqa: F811
    asked = ("eval", "--model", "plain", "--len", 24, "--limit", 1, "--data", "t.txt")
    ran = run(*asked, "--task", "ppl,longppl:alpha=99", "--json")
    assert ran.code == 1
    assert "helps none of the 23 tokens" in ran.records[1]["reason"]
    ran = run(*asked, "--task", "longppl:short=24")
    assert ran.code == 2
    assert "give a smaller short, or longer lengths" in ran.err


def test_finds_the_characters_of_each_token() -> None:
    tokenizer, rng = load_tokenizer(Source("tiny")), random.Random(0)
    some = ("a", "the ", " ", "\n\n", "    ", "“x” ", "日本語", "🙂", "é", "def f(x):\n")
    text = "".join(rng.choice(some) for _ in range(400))
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = helped._characters(tokenizer, found.input_ids)
    assert spans.tolist() == [list(span) for span in found.offset_mapping]


def test_agrees_with_the_published_package() -> None:
    package = pytest.importorskip("longppl.longppl", reason="pip install longppl")
    model, tokenizer = load_model(Source("tiny")), load_tokenizer(Source("tiny"))
    text = load_text("stdlib").documents[0].encode("ascii", "ignore").decode()
    ids = tokenizer(text, add_special_tokens=False).input_ids[:400]
    theirs = package.compute_longppl(
        *(tokenizer.decode(ids), model, model, tokenizer, tokenizer),
        trunc_len=100,
        sliding_window=60,
        alpha=0.1,
        beta=-7,
    )
    windows: Windows = cut(torch.tensor(ids), 400, None, None)
    rule = Helped(None, short=100, stride=60, alpha=0.1, beta=7)
    evaluator = helped.Evaluator(model, tokenizer, 512)
    mask = helped.own(evaluator, windows, rule, lambda length: 1)
    assert (mask == helped.others(evaluator, tokenizer, windows, rule, lambda length: 1)).all()
    scores = helped.score(model, windows, 1)
    some = scores.of(mask[scores.window, scores.position])
    assert some.n == theirs["n_key_token"] > 5
    assert math.exp(some.mean_nll()[0]) == pytest.approx(theirs["longppl"], rel=1e-3)
