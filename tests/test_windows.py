"""Windows of the tasks over tokens, against rules over Python lists, and their numbers.

Tolerances: 1e-5 nats for mean losses against a float64 log-softmax over full float32 logits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import TRAINED
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eval import BOS, Run, folders, here, letters  # noqa: F401 - fixtures

import ctxext
from ctxext import tasks
from ctxext.errors import UsageError
from ctxext.models.loading import Source
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_tasks
from ctxext.tasks.acc_repeat import AccuracyOnRepeated
from ctxext.tasks.base import TokenTask

pytestmark = pytest.mark.quick

START = 1000  # a BOS that is no token of a text


class Cut(NamedTuple):
    """A window: its ids, the places in the text of all but its BOS, and its scored positions."""

    ids: list[int]
    places: list[int]
    scored: list[int]


def opened(text: list[int], places: list[int], start: int | None, scored: list[int]) -> Cut:
    head = [] if start is None else [start]
    return Cut(head + [text[place] for place in places], places, scored)


def ppl(text: list[int], length: int, start: int | None, **_: Any) -> list[Cut]:
    """One after another; what is left over is dropped."""
    step = length if start is None else length - 1
    places, cuts = list(range(len(text))), []
    while len(places) >= step:
        cuts.append(opened(text, places[:step], start, list(range(1, length))))
        places = places[step:]
    return cuts


def ppl_tail(
    text: list[int], length: int, start: int | None, span: int, trained: int, **_: Any
) -> list[Cut]:
    """Spans one after another; of each its end, of which all but the first of T are scored."""
    room = 0 if start is None else 1
    places, cuts = list(range(len(text))), []
    while len(places) >= span - room:
        one, places = places[: span - room], places[span - room :]
        scored = list(range(length))[-trained:][1:]
        cuts.append(opened(text, one[len(one) - (length - room) :], start, scored))
    return cuts


def ppl_sliding(
    text: list[int], length: int, start: int | None, stride: int, **_: Any
) -> list[Cut]:
    """What was in no window before is scored; a last window ends where the text does."""
    room = 0 if start is None else 1
    cuts, seen, begin = [], set[int](), 0
    if not 0 < length - room <= len(text):
        return []
    while True:
        places = list(range(begin, begin + length - room))
        scored = [i + room for i, place in enumerate(places) if place not in seen and i + room > 0]
        seen.update(places)
        cuts.append(opened(text, places, start, scored))
        if places[-1] == len(text) - 1:
            return cuts
        begin = min(begin + stride, len(text) - len(places))


def acc_repeat(
    text: list[int], length: int, start: int | None, trained: int, **_: Any
) -> list[Cut]:
    """The windows of ppl, whose n-th token is its (n mod T)-th."""
    cuts = []
    for cut in ppl(text, length, start):
        places = [cut.places[i % trained] for i in range(len(cut.places))]
        cuts.append(opened(text, places, start, cut.scored))
    return cuts


RULES = {"ppl": ppl, "ppl-tail": ppl_tail, "ppl-sliding": ppl_sliding, "acc-repeat": acc_repeat}


def task_of(name: str, span: int, stride: int) -> TokenTask:
    more = {"ppl-tail": f":span={span}", "ppl-sliding": f":stride={stride}"}.get(name, "")
    task = tasks.parse(name + more)
    assert isinstance(task, TokenTask)
    return task


shapes = st.tuples(
    st.integers(1, 150),  # tokens of the text
    st.integers(2, 40),  # length
    st.integers(0, 30),  # how much longer the span is
    st.integers(2, 40),  # trained length
    st.integers(1, 39),  # stride
    st.none() | st.integers(1, 6),  # limit
    st.sampled_from([None, START]),
)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=150, deadline=None)
@given(shape=shapes)
def test_windows_are_those_of_the_rule(name: str, shape: tuple[Any, ...]) -> None:
    size, length, longer, trained, stride, limit, start = shape
    trained, stride, span = min(trained, length), min(stride, length - 1), length + longer
    text = [7 * i for i in range(size)]
    task = task_of(name, span, stride).resolve(trained, [length])
    want = RULES[name](text, length, start, span=span, trained=trained, stride=stride)[:limit]
    assert isinstance(task, TokenTask)
    if not want:
        with pytest.raises(UsageError, match=rf"^the data has {size} tokens?, fewer than one"):
            task.windows(torch.tensor(text), length, start, limit, trained)
        return
    found = task.windows(torch.tensor(text), length, start, limit, trained)
    assert found.ids().tolist() == [cut.ids for cut in want]
    if limit is not None:
        enough = torch.tensor(text[: task.reads(length, limit)])
        found = task.windows(enough, length, start, limit, trained)
        assert found.ids().tolist() == [cut.ids for cut in want]
    for first, cut in zip(found.first.tolist(), want, strict=True):
        assert list(range(first, length)) == cut.scored
        assert first >= 1


def test_what_a_request_reads_of_a_text() -> None:
    """The least that the first windows of all its tasks are cut from, or all of it."""

    class Odd(TokenTask):
        windows = AccuracyOnRepeated.windows

    def needed(spec: str, limit: int | None, tokens: int | None = None) -> int | None:
        asked = parse_tasks([spec])
        request = EvaluationRequest(
            Source("tiny"), (), (512, 1024), asked, limit=limit, tokens=tokens
        )
        return request.text_tokens

    assert needed("ppl", None) is None
    assert needed("ppl", None, 99) == 99
    assert needed("passkey", 3) is None
    assert needed("ppl,acc,passkey", 3) == needed("acc-repeat", 3) == 3 * 1024
    assert needed("ppl-tail,ppl", 3) == 3 * 1024
    assert needed("ppl-tail:span=4096,ppl", 3) == 3 * 4096
    assert needed("ppl-sliding:stride=100", 3) == 1224
    assert needed("ppl", 3, 2000) == 2000
    assert Odd().reads(512, 3) is None


@settings(max_examples=150, deadline=None)
@given(size=st.integers(2, 200), length=st.integers(2, 40), data=st.data())
def test_a_sliding_window_scores_each_token_once_with_enough_before_it(
    size: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    start = data.draw(st.sampled_from([None, START]))
    room = start is not None
    if size < length - room:
        return
    task = task_of("ppl-sliding", 0, stride)
    windows = task.windows(torch.arange(size), length, start, None, length)
    ids, first = windows.ids(), windows.first
    scored: list[int] = []
    for number, (row, begin) in enumerate(zip(ids.tolist(), first.tolist(), strict=True)):
        scored += row[begin:]
        if number:
            assert begin >= length - stride
            assert row[room:] == list(range(row[room], row[room] + length - room))
    assert sorted(scored) == list(range(0 if room else 1, size))


@pytest.mark.parametrize("start", [None, START])
def test_the_tail_is_the_same_at_every_length(start: int | None) -> None:
    text, trained, span = torch.arange(700), 24, 100
    task = tasks.parse(f"ppl-tail:span={span}")
    assert isinstance(task, TokenTask)
    seen = set()
    for length in (24, 25, 57, 99, 100):
        windows = task.windows(text, length, start, None, trained)
        ids, first = windows.ids(), windows.first
        seen.add(tuple(tuple(r[f:]) for r, f in zip(ids.tolist(), first.tolist(), strict=True)))
        assert {len(r) - f for r, f in zip(ids.tolist(), first.tolist(), strict=True)} == {23}
    assert len(seen) == 1
    assert len(next(iter(seen))) == 700 // (span - (start is not None))


def test_the_tails_end_where_their_spans_do_and_the_span_is_the_longest_length() -> None:
    task = tasks.parse("ppl-tail").resolve(8, [10, 30])
    assert str(task) == "ppl-tail:span=30"
    assert isinstance(task, TokenTask)
    windows = task.windows(torch.arange(95), 10, None, None, 8)
    ids, first = windows.ids(), windows.first
    assert ids.tolist() == [list(range(end - 10, end)) for end in (30, 60, 90)]
    assert first.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("spec", "lengths", "message"),
    [
        ("ppl-tail", [31, 64], "length 31: it scores the last 32 tokens"),
        ("ppl-tail:span=48", [32, 64], "length 64, beyond its span: give a span of at least 64"),
        ("ppl-sliding:stride=32", [64, 32], "leaves out tokens at length 32: give a stride below"),
        ("ppl-sliding", [256], "stride=256 leaves out tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(spec: str, lengths: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tasks.parse(spec).resolve(32, lengths)


# The numbers.

GIVEN = {"ppl-sliding": ":stride=8", "ppl-tail": ":span=80"}
#: Every task over tokens, but for the one whose tokens a model chooses.
SPECS = tuple(
    f"{name}{GIVEN.get(name, '')}"
    for name in tasks.names()
    if issubclass(tasks.REGISTRY.get(name), TokenTask) and name != "longppl"
)


@pytest.mark.parametrize("name", ["plain", "bos"])
@pytest.mark.parametrize("method", ["rope", "rerope:window=8+logn:clip=false"])
def test_values_and_errors_are_those_of_plain_forwards(
    run: Run,
    here: Path,  # noqa: F811
    name: str,
    method: str,
) -> None:
    length, limit = 48, 6
    ran = run(
        *("eval", "--json", "--model", name, "--data", "t.txt", "--len", length, "--limit", limit),
        *("--method", method, "--batch-size", 4, "--task", ",".join(SPECS)),
    )
    assert ran.code == 0, ran.err
    core = tokenizers.Tokenizer.from_file(f"{name}/tokenizer.json")
    text = core.encode(letters(), add_special_tokens=False).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(name).eval()
    start = BOS if name == "bos" else None
    records = {r["task"]: r for r in ran.records if r["requested"] == method}
    assert list(records) == list(SPECS)
    for spec, record in records.items():
        rule = RULES.get(spec.partition(":")[0], ppl)
        cuts = rule(text, length, start, span=80, trained=TRAINED, stride=8)[:limit]
        weights, sums = [], []
        with torch.no_grad(), ctxext.patched(model, method, length):
            for cut in cuts:
                at = torch.tensor(cut.scored)
                ids = torch.tensor(cut.ids)
                logits = model(ids[None], use_cache=False).logits[0].double()[at - 1]
                nll = -logits.log_softmax(-1).gather(1, ids[at][:, None])[:, 0]
                hit = (logits.argmax(-1) == ids[at]).double()
                weights.append(len(cut.scored))
                sums.append(float((hit if record["metric"] == "accuracy" else nll).sum()))
        mean, total, count = sum(sums) / sum(weights), sum(weights), len(cuts)
        rest = np.array(sums) - mean * np.array(weights)
        error = math.sqrt((rest**2).sum() * count / (count - 1)) / total
        assert (record["n"], record["windows"]) == (total, count)
        if record["metric"] == "accuracy":
            assert record["value"] == pytest.approx(mean, abs=1e-12)
            assert record["stderr"] == pytest.approx(error, abs=1e-9)
            assert 0 < mean < 1
        else:
            assert math.log(record["value"]) == pytest.approx(mean, abs=1e-5)
            assert record["stderr"] == pytest.approx(error * math.exp(mean), rel=1e-3)


@pytest.mark.parametrize("spec", ["ppl", "ppl-sliding:stride=8", "ppl-tail", "acc-repeat"])
def test_too_little_data_is_refused(run: Run, here: Path, spec: str) -> None:  # noqa: F811
    (here / "short.txt").write_text("a b c")
    ran = run("eval", "--model", "plain", "--data", "short.txt", "--len", 64, "--task", spec)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert "fewer than one window of 64: give longer data or a smaller --len" in line
    assert not list(Path("results").glob("*.json"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ruler:vt,cwe", ["ruler:vt", "ruler:cwe"]),
        ("ppl,ruler:vt, cwe ,passkey:samples=2",
         ["ppl", "ruler:vt", "ruler:cwe", "passkey:samples=2"]),
        ("ruler:vt,fwe,samples=5,acc", ["ruler:vt,samples=5", "ruler:fwe,samples=5", "acc"]),
        ("ruler:vt,samples=5,ruler:vt,samples=7", ["ruler:vt,samples=5", "ruler:vt,samples=7"]),
        ("longbench:qasper,lcc,chat=false,kv", ["longbench:qasper,chat=false",
                                                "longbench:lcc,chat=false", "kv"]),
        ("lm-eval:hellaswag,longbench_lcc,shots=2,longbench-e:trec,lcc",
         ["lm-eval:hellaswag,shots=2", "lm-eval:longbench_lcc,shots=2",
          "longbench-e:trec", "longbench-e:lcc"]),
        ("passkey:samples=5,depths=3,acc", ["passkey:samples=5,depths=3", "acc"]),
    ],
)  # fmt: skip
def test_a_benchmark_takes_a_list_of_its_own(text: str, wanted: list[str]) -> None:
    assert [str(task) for task in parse_tasks([text])] == wanted
