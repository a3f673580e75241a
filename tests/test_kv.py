"""Key-value retrieval: what the prompts say, read from their text alone, and how it is scored."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ctxext import tasks
from ctxext.errors import UsageError

pytestmark = pytest.mark.quick

TINY = Path(__file__).parents[1] / "ctxext/models/shipped/tiny"


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def prompts(tokenizer: Any, spec: str, length: int, limit: int | None = None, seed: int = 0) -> Any:
    task: Any = tasks.parse(spec)
    return task.prompts(tokenizer, length, task.read(None), seed, limit)


@pytest.mark.parametrize("length", [1024, 4096])
def test_prompts(tiny: Any, length: int) -> None:
    found = prompts(tiny, "kv", length, 25)
    assert len(found) == 25
    for i, sample in enumerate(found):
        text = tiny.decode(sample.ids)
        assert len(sample.ids) <= length - 50
        assert len(sample.ids) > length - 50 - 2 * 80
        assert sample.facts["length"] == len(sample.ids)
        parts = re.fullmatch(
            r"Extract the value corresponding to the specified key in the JSON object below\.\n\n"
            r'JSON data:\n(\{.*\})\n\nKey: "(.*)"\nCorresponding value:',
            text,
            re.DOTALL,
        )
        assert parts is not None
        assert re.fullmatch(r'\{"[^"]+": "[^"]+"(,\n "[^"]+": "[^"]+")*\}', parts[1])
        pairs = json.loads(parts[1])
        assert all(uuid.UUID(text).version == 4 for pair in pairs.items() for text in pair)
        assert sample.answers == (pairs[parts[2]],)
        assert text.count(sample.answers[0]) == 1
        assert sample.facts["depth"] == (i % 5) / 4
        place = list(pairs).index(parts[2])
        assert abs(place - sample.facts["depth"] * (len(pairs) - 1)) <= 0.5


def test_depths_share_their_pairs(tiny: Any) -> None:
    found = prompts(tiny, "kv:depths=3,samples=4", 2048)
    assert [sample.facts["depth"] for sample in found] == [0, 0.5, 1] * 4
    assert len({sample.name for sample in found}) == 12
    for i in range(4):
        assert len({sample.answers for sample in found[3 * i : 3 * i + 3]}) == 1
    assert len({sample.answers for sample in found}) == 4


def test_the_same_for_the_same_arguments(tiny: Any) -> None:
    some = prompts(tiny, "kv", 1024, 7)
    assert prompts(tiny, "kv", 1024, 7) == some
    assert prompts(tiny, "kv", 1024, 3) == some[:3]
    assert prompts(tiny, "kv:samples=1", 1024) == some[:5]
    assert not {s.answers for s in some} & {s.answers for s in prompts(tiny, "kv", 1024, 7, 1)}


def test_too_short(tiny: Any) -> None:
    for length in (1, 50, 300):
        with pytest.raises(UsageError) as error:
            prompts(tiny, "kv", length)
        least = int(re.search(r"give --len (\d+) or more", str(error.value))[1])  # type: ignore[index]
    assert len(prompts(tiny, "kv", least)) == 100
    with pytest.raises(UsageError):
        prompts(tiny, "kv", least - 1)


@pytest.mark.parametrize("spec", ["kv:depths=1", "kv:samples=0", "kv:depths=0", "kv:keys=3"])
def test_bad_parameters(spec: str) -> None:
    with pytest.raises(UsageError):
        tasks.parse(spec)


def test_an_answer_fits(tiny: Any) -> None:
    task: Any = tasks.parse("kv")
    answer = ' "' + str(uuid.uuid4())
    assert len(answer.encode()) <= task.generates - 10
    assert task.metric == "kv"
    assert tasks.parse(str(task)) == task


def test_score() -> None:
    rows = [
        {"pred": ' "AB-1"', "answers": ["ab-1"], "depth": 1.0},
        {"pred": "ab", "answers": ["ab-1"], "depth": 0.0},
        {"pred": "it is ab-2.", "answers": ["ab-2"], "depth": 0.0},
        {"pred": "", "answers": ["ab-2"], "depth": 1.0},
        {"pred": "ab-3", "answers": ["ab-3"], "depth": 0.0},
    ]
    task: Any = tasks.parse("kv")
    score = task.score(rows)
    assert score.value == pytest.approx(0.6)
    assert score.stderr == pytest.approx((0.3 / 5) ** 0.5)
    assert list(score.parts) == [
        {"name": "depth 0", "depth": 0.0, "value": pytest.approx(2 / 3), "n": 3},
        {"name": "depth 1", "depth": 1.0, "value": 0.5, "n": 2},
    ]
