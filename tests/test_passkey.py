"""Pass-key retrieval: the published prompt, how it fills a length, what counts, and its figures."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_eval import Run, save_tokenizer

from ctxext import tasks
from ctxext.errors import UsageError
from ctxext.models.aliases import TINY
from ctxext.tasks.base import Sample
from ctxext.tasks.passkey import PassKey, right

# Mohtashami and Jaggi 2023, appendix; the wording of the authors' published script.
OPENS = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\.")
ASKS = "What is the pass key? The pass key is"
ANSWER = 8  # tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY)


def drawn(
    tokenizer: Any, length: int, spec: str = "passkey", seed: int = 0, limit: int | None = None,
    data: str | None = None,
) -> list[Sample]:  # fmt: skip
    task = tasks.parse(spec)
    assert isinstance(task, PassKey)
    return task.prompts(tokenizer, length, task.read(data), seed, limit)


def parted(tokenizer: Any, sample: Sample) -> tuple[str, str, str]:
    """Filler before the key, the key, and filler after it."""
    first, before, needle, after, last = tokenizer.decode(sample.ids).split("\n")
    assert (first, last) == (OPENS, ASKS)
    match = NEEDLE.fullmatch(needle)
    assert match is not None
    assert match[1] == match[2]
    assert tuple(sample.answers) == (match[1],)
    return before, match[1], after


@pytest.mark.parametrize("length", [200, 513, 2048])
def test_the_prompt_is_the_published_one(tokenizer: Any, length: int) -> None:
    samples = drawn(tokenizer, length, "passkey:samples=2,depths=5")
    assert len(samples) == len({s.name for s in samples}) == 10
    for sample, depth in zip(samples, [0.0, 0.25, 0.5, 0.75, 1.0] * 2, strict=True):
        before, _, after = parted(tokenizer, sample)
        whole = before + after
        assert (f"{GRASS} " * length).startswith(whole)
        assert abs(len(before) - depth * len(whole)) <= 1
        assert sample.facts["depth"] == depth
        assert sample.facts["length"] == len(sample.ids)
    assert len({s.answers[0] for s in samples}) == 10


@pytest.mark.parametrize("length", [150, 151, 256, 1000, 1024, 4096, 16384])
def test_a_prompt_fills_the_length_and_never_exceeds_it(tokenizer: Any, length: int) -> None:
    for sample in drawn(tokenizer, length, "passkey:samples=2,depths=4"):
        room = length - ANSWER - len(sample.ids)
        assert 0 <= room <= max(1, 0.005 * length)


def test_a_tokenizer_that_opens_texts_has_its_token_counted(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, bos=True)
    bos = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for length in (600, 601, 2048):
        for sample in drawn(bos, length, "passkey:samples=1,depths=3"):
            assert sample.ids[0] == bos.bos_token_id
            assert 0 <= length - ANSWER - len(sample.ids) <= 0.005 * length


def test_real_text_by_data(tokenizer: Any, tmp_path: Path) -> None:
    pick = random.Random(3)
    words = [f"w{pick.randrange(10**6)}" for _ in range(400)]
    (tmp_path / "real.txt").write_text(text := " ".join(words))
    begins = set()
    for sample in drawn(tokenizer, 600, "passkey:samples=3,depths=3", data=f"{tmp_path}/real.txt"):
        before, _, after = parted(tokenizer, sample)
        whole = before + after
        assert whole in f"{text} {text} {text}"
        begins.add(f"{text} {text} {text}".index(whole))
        assert 0 <= 600 - ANSWER - len(sample.ids) <= 3
    assert len(begins) == 9


def test_short_text_is_said_again(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one two three")
    for sample in drawn(tokenizer, 400, "passkey:samples=1,depths=2", data=f"{tmp_path}/short.txt"):
        before, _, after = parted(tokenizer, sample)
        assert before + after in "one two three " * 400
        assert 0 <= 400 - ANSWER - len(sample.ids) <= 2


def test_the_seed_decides_and_a_limit_takes_the_first(tokenizer: Any) -> None:
    whole = drawn(tokenizer, 300, "passkey:samples=3,depths=4")
    assert whole == drawn(tokenizer, 300, "passkey:samples=3,depths=4")
    assert drawn(tokenizer, 300, "passkey:samples=3,depths=4", limit=5) == whole[:5]
    assert drawn(tokenizer, 300, "passkey:samples=3,depths=4", limit=99) == whole
    other = drawn(tokenizer, 300, "passkey:samples=3,depths=4", seed=1)
    assert [s.name for s in other] == [s.name for s in whole]
    assert not {s.answers[0] for s in other} & {s.answers[0] for s in whole}
    longer = drawn(tokenizer, 900, "passkey:samples=3,depths=4")
    assert [s.answers for s in longer] == [s.answers for s in whole]


@pytest.mark.parametrize("spec", ["passkey", "passkey:depths=1002,samples=1"])
def test_no_two_samples_have_the_same_name(tokenizer: Any, spec: str) -> None:
    samples = drawn(tokenizer, 140, spec)
    assert len({s.name for s in samples}) == len(samples)


def test_one_depth_is_the_middle(tokenizer: Any) -> None:
    (sample,) = drawn(tokenizer, 300, "passkey:depths=1,samples=1")
    before, _, after = parted(tokenizer, sample)
    assert abs(len(before) - len(after)) <= 1
    assert sample.facts["depth"] == 0.5


@pytest.mark.parametrize("length", [2, 9, 60])
def test_a_length_that_is_too_short_says_what_would_do(tokenizer: Any, length: int) -> None:
    with pytest.raises(UsageError, match=r"does not fit into length") as caught:
        drawn(tokenizer, length)
    match = re.fullmatch(
        rf"passkey does not fit into length {length}: give --len (\d+) or more", str(caught.value)
    )
    assert match is not None
    least = int(match[1])
    assert all(len(s.ids) <= least - ANSWER for s in drawn(tokenizer, least))
    with pytest.raises(UsageError, match="does not fit"):
        drawn(tokenizer, least - 1)


SCORED = {
    " 12345. Remember it.": True,
    "12345": True,
    " the key: 12345 or 99999": True,
    " 99999, no, 12345": False,
    " 1234": False,
    " 1 2345": False,
    " 12 345": False,
    " 012345": False,
    " 12354": False,
    " ten": False,
    "": False,
    "１２３４５": False,
    " 123456": True,  # the published rule: as many tokens are generated as the key has
}


@pytest.mark.parametrize("answer", SCORED)
def test_the_first_digits_count(answer: str) -> None:
    rows = [{"pred": answer, "answers": ["12345"], "depth": 0.5}]
    score = PassKey().score(rows)
    assert (score.value, score.stderr) == (float(SCORED[answer]), None)


def test_the_score_is_the_share_with_its_error_and_a_part_for_each_depth() -> None:
    right = [True, True, False, True, False, False, True, True]
    rows = [
        {"pred": " 00042" if hit else " 7", "answers": ["00042"], "depth": (0.5, 0.0, 1.0)[i % 3]}
        for i, hit in enumerate(right)
    ]
    score = PassKey().score(rows)
    assert score.value == pytest.approx(5 / 8)
    assert score.stderr == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 7))
    assert [(p["depth"], p["value"], p["n"]) for p in score.parts] == [
        (0.0, pytest.approx(2 / 3), 3),
        (0.5, 1.0, 3),
        (1.0, 0.0, 2),
    ]


def test_the_shipped_model_finds_keys_where_it_was_trained_and_beyond_with_rerope(
    run: Run, tmp_path: Path
) -> None:
    ran = run(
        *("eval", "--json", "--model", "tiny", "--task", "passkey:samples=2", "--len", "512,2k"),
        *("--method", "rerope+logn", "--out", str(tmp_path)),
    )
    assert ran.code == 0, ran.err
    values = ran.values
    assert all((r["n"], r["windows"], len(r["parts"])) == (22, 22, 11) for r in ran.records)
    assert values["rope", 512, "passkey:samples=2"] >= 0.9  # type: ignore[operator]
    assert values["rope", 2048, "passkey:samples=2"] <= 0.1  # type: ignore[operator]
    assert values["rerope+logn", 2048, "passkey:samples=2"] >= 0.9  # type: ignore[operator]
    for record in ran.records:
        mean = sum(part["value"] * part["n"] for part in record["parts"]) / 22
        assert record["value"] == pytest.approx(mean)
        scores = record["by_sample"]["scores"]
        assert set(scores) <= {0, 1}
        assert sum(scores) / 22 == record["value"]
        kept = (tmp_path / record["predictions"]).read_text().splitlines()
        rights = [right(row["pred"], row["answers"][0]) for row in map(json.loads, kept)]
        assert scores == rights
        assert (record["higher_is_better"], record["perfect_score"]) == (True, 1.0)
    prompts = {(r["length"], r["by_sample"]["prompts"]) for r in ran.records}
    assert len(prompts) == len({prompt for _, prompt in prompts}) == 2


def test_a_cell_that_fails_leaves_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record says why, with no number; what was answered before stays for the next run."""
    from ctxext.measure import session

    real = session.answers

    def failing(*args: Any) -> Any:
        yield from itertools.islice(real(*args), 3)
        raise MemoryError("no room")

    asked = ("eval", "--len", "128", "--task", "passkey:samples=1,acc", "--limit", "8", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(session, "answers", failing)
        ran = run(*asked, "--out", str(tmp_path))
    bad, good = ran.records
    assert ran.code == 1
    assert (bad["status"], bad["value"], bad["n"], good["status"]) == ("oom", None, 0, "ok")
    assert "Traceback" not in ran.err
    asking = []
    monkeypatch.setattr(session, "answers", lambda *a: asking.extend(a[2]) or real(*a))
    again = run(*asked, "--out", str(tmp_path))
    assert [record["status"] for record in again.records] == ["ok", "ok"]
    assert len(asking) == 2


BOX = re.compile(
    r"The pass key of the (\w+) box is (\d{5})\. Remember it\. (\d{5}) opens the (\w+) box\."
)
BOX_LINE = "The pass key of the {c} box is {k}. Remember it. {k} opens the {c} box."
POINTER = re.compile(r"The box that you will be asked for is the (\w+) box\. Remember it\.")
OF_BOX = re.compile(
    r"What is the pass key of the (\w+) box\? The pass key of the (\w+) box is"
)  # fmt: skip
OF_POINTED = "What is the pass key of the box that you are asked for? The pass key is"


@pytest.mark.parametrize(
    ("spec", "needles", "hops"),
    [("needles=4", 4, 1), ("hops=2", 4, 2), ("hops=2,needles=8", 8, 2)],
)
def test_of_several_keys_one_is_asked_for(
    spec: str, needles: int, hops: int, tokenizer: Any
) -> None:
    """By its colour, or by that which a line names."""
    asked = set()
    for sample in drawn(tokenizer, 512, f"passkey:samples=3,depths=3,{spec}"):
        first, *lines, last = tokenizer.decode(sample.ids).split("\n")
        assert first == OPENS
        keys = {m[1]: m[2] for line in lines if (m := BOX.fullmatch(line))}
        assert len(keys) == len(set(keys.values())) == needles
        pointers = [m[1] for line in lines if (m := POINTER.fullmatch(line))]
        named = OF_BOX.fullmatch(last)
        assert len(pointers) == hops - 1
        assert last == OF_POINTED if hops == 2 else named is not None
        colour = pointers[0] if hops == 2 else named and named[1]
        assert tuple(sample.answers) == (keys[colour],)
        place = lines.index(BOX_LINE.format(c=colour, k=keys[colour]))
        filler = [0 if BOX.match(line) or POINTER.match(line) else len(line) for line in lines]
        depth = sample.facts["depth"]
        assert sum(filler[:place]) == pytest.approx(depth * sum(filler), abs=1)
        assert 500 <= len(sample.ids) + ANSWER <= 512
        asked.add(colour)
    assert len(asked) > 1


@pytest.mark.parametrize("spec", ["hops=3", "hops=2,needles=1", "needles=9", "needles=0"])
def test_refuses_hops_and_needles_that_it_has_not(spec: str) -> None:
    with pytest.raises(UsageError, match=r"give (1 or 2|[12] to 8) \(in "):
        tasks.parse(f"passkey:{spec}")
