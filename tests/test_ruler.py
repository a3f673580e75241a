"""RULER: what the prompts say, read from their text alone, and how it is scored."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import importlib.resources
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ctxext import tasks
from ctxext.errors import UsageError
from ctxext.tasks.base import Sample
from ctxext.tasks.prompts import fit
from ctxext.tasks.ruler import lexicon, niah, questions, tracking, words
from ctxext.tasks.ruler.questions import QuestionsMaker, load_questions
from ctxext.tasks.ruler.words import CommonWordsMaker, FrequentWordsMaker
from ctxext.tasks.scoring import ruler as scoring

TINY = Path(__file__).parents[1] / "ctxext/models/shipped/tiny"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (.{1,60}?) is: ([0-9a-f-]+)\.")
NUMBER, UUID = r"[1-9]\d{6}", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
GENERATES = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
# name: haystack, kind of values, needles hidden, values asked for (paper, table 2; synthetic.yaml)
NIAH = {
    "niah_single_1": ("noise", "numbers", 1, 1),
    "niah_single_2": ("essay", "numbers", 1, 1),
    "niah_single_3": ("essay", "uuids", 1, 1),
    "niah_multikey_1": ("essay", "numbers", 4, 1),
    "niah_multikey_2": ("needle", "numbers", None, 1),
    "niah_multikey_3": ("needle", "uuids", None, 1),
    "niah_multivalue": ("essay", "numbers", 4, 4),
    "niah_multiquery": ("essay", "numbers", 4, 4),
}
SYNTHETIC = [*NIAH, "vt", "cwe", "fwe"]


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTXEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ruler"


class Opened:
    """A tokenizer that adds a BOS, and counts what it is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.asked += 1
        found = self.inner(text, **options)
        found["input_ids"] = [0, *found["input_ids"]]
        return found

    def get_vocab(self) -> dict[str, int]:
        return dict(self.inner.get_vocab())


def prompts(
    tokenizer: Any, spec: str, length: int, limit: int | None = 4, data: str | None = None,
    seed: int = 0,
) -> list[Sample]:  # fmt: skip
    task: Any = tasks.parse(f"ruler:{spec}")
    return list(task.prompts(tokenizer, length, task.read(data), seed, limit))


def texts(tokenizer: Any, *args: Any, **named: Any) -> list[tuple[str, Sample]]:
    return [(tokenizer.decode(s.ids), s) for s in prompts(tokenizer, *args, **named)]


def test_names() -> None:
    ruler: Any = tasks.REGISTRY.get("ruler")
    assert ruler.members() == [*SYNTHETIC, "qa_1", "qa_2"]
    assert str(tasks.parse("ruler:qa_squad,samples=500")) == "ruler:qa_1,samples=500"
    assert tasks.parse("ruler:qa_hotpot") == tasks.parse("ruler:task=qa_2")
    for spec, said in (("ruler:niah_single_4", "niah_single_3"), ("ruler", "vt")):
        with pytest.raises(UsageError, match=said):
            tasks.parse(spec)
    with pytest.raises(UsageError, match="bad value 0"):
        ruler("vt", samples=0)
    for name in ruler.members():
        task: Any = tasks.parse(f"ruler:{name}")
        assert task.generates == GENERATES[name.split("_")[0]]
        assert task.metric == f"string_match_{'part' if name.startswith('qa') else 'all'}"
        assert tasks.parse(str(task)) == task
    assert "string_match_part" in ruler.describe()["metric"]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, ctxext.tasks as t; t.parse('ruler:vt').read(None); t.parse('kv').read(None);"
        "sys.exit(bool({'torch', 'transformers', 'lm_eval', 'nltk'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", NIAH)
def test_needles(tiny: Any, name: str, tmp_path: Path) -> None:
    haystack, kind, hidden, asked = NIAH[name]
    essay = " ".join(f"Sentence {'w' * (i % 7 + 1)} number{i} ends here." for i in range(400))
    (tmp_path / "essay.txt").write_text(essay)
    for text, sample in texts(tiny, name, 2048, data=str(tmp_path / "essay.txt")):
        head, _, rest = text.partition("\n")
        context, _, question = rest.rpartition("\n")
        one = kind.removesuffix("s")
        if asked == 1:
            assert head == (
                f"A special magic {one} is hidden within the following text. Make sure to memorize "
                f"it. I will quiz you about the {one} afterwards."
            )
        else:
            assert head.startswith(f"Some special magic {kind} are hidden within the following")
        found = re.fullmatch(
            rf"What (?:is the|are all the) special magic {kind}? for (.+) mentioned in the "
            rf"provided text\? The special magic {kind}? for (.+) mentioned in the provided text "
            "(is|are)",
            question,
        )
        assert found is not None
        assert found[1] == found[2]
        assert found[3] == ("is" if asked == 1 else "are")
        queries = found[1].replace(", and ", ", ").split(", ")
        needles = NEEDLE.findall(context)
        assert {which for which, _, _ in needles} == {kind}
        values = [value for _, key, value in needles if key in queries]
        assert sorted(values) == sorted(sample.answers)
        assert len(values) == asked
        assert all(re.fullmatch(NUMBER if one == "number" else UUID, value) for value in values)
        assert all(text.count(value) == 1 for value in values)
        if name != "niah_multivalue":
            assert len({key for _, key, _ in needles}) == len(needles)
        if hidden is not None:
            assert len(needles) == hidden
        bare = NEEDLE.sub("", context)
        if haystack == "essay":
            assert essay.startswith(" ".join(bare.split()))
            between = [part.strip() for part in NEEDLE.split(context)[::4]]
            for before, after in itertools.pairwise(between):
                assert before[-1:] in ("", ".") or not after
        else:
            lines = {line for line in bare.split("\n") if line}
            assert lines == ({NOISE} if haystack == "noise" else set())
        if asked == 1:
            start, end = re.search(rf"One of the [^.\n]*{values[0]}\.", context).span()  # type: ignore[union-attr]
            share = start / (start + len(context) - end)
            assert sample.facts["depth"] == pytest.approx(share, abs=1e-12)
        else:
            assert "depth" not in sample.facts


def test_multiquery_asks_in_the_order_of_its_answers(tiny: Any) -> None:
    for text, sample in texts(tiny, "niah_multiquery", 2048):
        given = {key: value for _, key, value in NEEDLE.findall(text)}
        asked = re.search(r"magic numbers for ([^?]+?) mentioned", text.rpartition("\n")[2])
        assert asked is not None
        assert sample.answers == tuple(given[key] for key in re.split(", (?:and )?", asked[1]))


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_depths_are_spread(tiny: Any, name: str) -> None:
    depths = [sample.facts["depth"] for sample in prompts(tiny, name, 2048, None)]
    assert len(depths) == 100
    assert min(depths) < 0.1 < 0.9 < max(depths)
    assert 0.35 < sum(depths) / 100 < 0.65


def test_a_short_text_is_said_again(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One two. Three\nfour!")
    for text, _ in texts(tiny, "niah_single_2", 1024, data=str(tmp_path / "short.txt")):
        words = NEEDLE.sub(" ", text.partition("\n")[2].rpartition("\n")[0]).split()
        assert (
            words
            == ["One", "two.", "Three", "four!"] * (len(words) // 4) + words[len(words) // 4 * 4 :]
        )
        assert len(words) > 100


def test_text_without_spaces_is_a_haystack(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("关关雎鸠在河之洲" * 5000, encoding="utf-8")
    (sample,) = prompts(tiny, "niah_single_2", 2048, 1, str(tmp_path / "zh.txt"))
    assert 1500 < len(sample.ids) <= 2048 - 128


def test_sentences() -> None:
    text = 'It is e.g. 3.5 m. He said "No." Then Dr. Who left! why? Yes'
    words, starts = lexicon.Essay([text]).first(len(text.split()))
    parts = [" ".join(words[a:b]) for a, b in itertools.pairwise(starts)]
    assert parts == ['It is e.g. 3.5 m. He said "No."', "Then Dr. Who left! why?", "Yes"]


def test_variables(tiny: Any) -> None:
    starts = set()
    for text, sample in texts(tiny, "vt", 2048, 10):
        opening = "Memorize and track the chain(s) of variable assignment hidden"
        assert text.startswith(opening)
        cut = text.rindex(opening)
        example, asked = text[:cut], text[cut:]
        shown, names = _interpret(example)
        assert example.endswith(f"they are:  {' '.join(names)}\n\n")
        assert len(tiny(example).input_ids) <= 500 + 30
        value, found = _interpret(asked)
        assert value != shown
        assert asked.endswith(f"5 variables are assigned the value {value}, they are: ")
        assert tuple(found) == sample.answers
        assert len(found) == 5
        assert [len(name) for name in (*names, *found)] == [3] * 5 + [5] * 5
        starts.add(asked.index("VAR"))
    assert len(starts) > 3


def _interpret(text: str) -> tuple[str, list[str]]:
    """What the prompt asks for, and the variables that a run of its lines gives that value."""
    held: dict[str, str] = {}
    lines = text.split("\n\n", 1)[1].split("\nQuestion:")[0].split("\n")
    for line in lines:
        if found := re.fullmatch(r"VAR ([A-Z]+) = (\d{5}|VAR ([A-Z]+) )", line):
            held[found[1]] = held[found[3]] if found[3] else found[2]
        else:
            assert line == NOISE
    assert "VAR" not in {a[:3] for a, b in itertools.pairwise(lines) if b.startswith("VAR")}
    value = re.search(r"Find all variables that are assigned the value (\d+) in the", text)
    assert value is not None
    return value[1], [name for name, has in held.items() if has == value[1]]


@pytest.mark.parametrize(
    ("length", "shown", "frequencies"),
    [(2048, (3, 1, 20), (6, 1)), (4096, (3, 1, 20), (6, 1)), (6000, (10, 3, 40), (30, 3))],
)
def test_common_words(
    tiny: Any, length: int, shown: tuple[int, int, int], frequencies: tuple[int, int]
) -> None:
    for text, sample in texts(tiny, "cwe", length):
        first, second = text.split("\nBelow is a numbered list of words.")
        common, rare, kinds = shown
        example = _counts(first)
        assert Counter(example.values()) == {common: 10, rare: kinds - 10}
        told = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", first.split("in the list are: ")[1])
        assert sorted(told) == sorted(word for word, n in example.items() if n == common)
        counts = _counts(second)
        assert set(counts.values()) == set(frequencies)
        assert sorted(sample.answers) == sorted(w for w, n in counts.items() if n == frequencies[0])
        assert len(sample.answers) == 10
        assert second.endswith("The top 10 words that appear most often in the list are:")


def _counts(part: str) -> Counter[str]:
    listed = part.split("most often.\n")[1].split("\nQuestion:")[0]
    items = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    return Counter(word for _, word in items)


def test_more_common_words_than_the_lists_have() -> None:
    known = len(lexicon.lexicon().words)
    prompt = CommonWordsMaker(0, short=False).make(0, known + 1)
    counts = _counts(prompt.text.split("\nBelow is")[1])
    assert Counter(counts.values()) == {30: 10, 3: known - 9}


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_frequent_words(tiny: Any, length: int) -> None:
    for text, sample in texts(tiny, "fwe", length):
        coded = text.split("coded words. ")[1].split("\nQuestion:")[0].split(" ")
        ranked = Counter(coded).most_common()
        assert ranked[0][0] == "..."
        assert {word for word, _ in ranked[1:4]} == set(sample.answers)
        assert len(ranked) == 4 or ranked[3][1] > ranked[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
        for rank, (_, n) in enumerate(ranked, 1):
            assert ranked[0][1] // rank**2 <= n <= (ranked[0][1] + 1) / rank**2
        assert len(ranked) <= max((length - 50) // 50, 4)


def test_the_three_frequent_words_come_before_all_others() -> None:
    maker = FrequentWordsMaker(0, 4096)
    for units in range(maker.least(0), 400):
        coded = maker.make(0, units).text.split("coded words. ")[1].split("\nQuestion:")[0]
        counts = [n for _, n in Counter(coded.split(" ")).most_common()]
        assert counts[3] > (counts[4] if len(counts) > 4 else 0)


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("length", [1200, 4096])
def test_prompts_fill_their_length_and_never_exceed_it(tiny: Any, name: str, length: int) -> None:
    opened = Opened(tiny)
    for tokenizer in (tiny, opened):
        found = prompts(tokenizer, name, length, 20)
        budget = length - GENERATES[name.split("_")[0]]
        sizes = [len(sample.ids) for sample in found]
        assert len(found) == 20
        assert max(sizes) <= budget
        assert min(sizes) > 0.95 * budget - 40
        assert [sample.facts["length"] for sample in found] == sizes
        assert len({sample.name for sample in found}) == 20
        assert all(0 <= sample.facts.get("depth", 0) <= 1 for sample in found)
    assert found[0].ids[0] == 0


@given(
    costs=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    base=st.integers(0, 60),
    least=st.integers(1, 5),
    budget=st.integers(1, 3000),
)
def test_largest_is_the_largest(costs: list[int], base: int, least: int, budget: int) -> None:
    def count(units: int) -> int:
        return base + sum(costs[i % len(costs)] for i in range(units))

    if count(least) > budget:
        with pytest.raises(fit.TooShort):
            fit.largest(count, least, budget)
    else:
        units, _ = fit.largest(count, least, budget)
        assert count(units) <= budget < count(units + 1)


def test_units_that_count_nothing_end() -> None:
    assert fit.largest(lambda units: 1, 1, 100)[0] > 100


@pytest.mark.parametrize("name", SYNTHETIC)
def test_samples_depend_on_seed_and_index_alone(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTXEXT_CACHE", "/dev/null/none")
    some = prompts(tiny, name, 1200, 6)
    assert prompts(tiny, name, 1200, 6) == some
    assert prompts(tiny, name, 1200, 3) == some[:3]
    assert prompts(tiny, f"{name},samples=2", 1200, None) == some[:2]
    assert not {s.answers for s in some} & {s.answers for s in prompts(tiny, name, 1200, 6, seed=1)}


def test_prompts_are_kept(tiny: Any, cache: Path) -> None:
    spy = Opened(tiny)
    made = prompts(spy, "niah_single_2", 1024)
    (file,) = cache.iterdir()
    assert file.suffix == ".jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line[0] for line in lines[1:]] == [list(sample.ids) for sample in made]
    before, content = spy.asked, file.read_bytes()
    assert prompts(spy, "niah_single_2", 1024) == made
    assert spy.asked <= before + 3  # a few words, to tell the tokenizer by
    for changed in ({"length": 1025}, {"seed": 1}, {"limit": 3}, {"tokenizer": tiny}):
        known = len(list(cache.iterdir()))
        prompts(**{"tokenizer": spy, "spec": "niah_single_2", "length": 1024} | changed)
        assert len(list(cache.iterdir())) == known + 1
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"1", b"2", 1),
        lambda content: b"\xff\xfe" + content,
        lambda content: content + b"[]\n",
        lambda content: b"[" * 100000,
        lambda content: b"\n".join(content.split(b"\n")[:2]) + b"\n",
    ],
)
def test_damaged_files_are_made_again(tiny: Any, cache: Path, damage: Any) -> None:
    made = prompts(tiny, "vt", 1200)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert prompts(tiny, "vt", 1200) == made
    assert file.read_bytes() == content
    assert list(cache.iterdir()) == [file]


def test_without_a_place_to_keep_them(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = prompts(tiny, "vt", 1200)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "under", "x" * 5000):
        monkeypatch.setenv("CTXEXT_CACHE", str(folder))
        assert prompts(tiny, "vt", 1200) == made
    monkeypatch.delenv("CTXEXT_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert prompts(tiny, "vt", 1200) == made


@pytest.mark.parametrize("name", SYNTHETIC)
def test_too_short_lengths_say_what_would_do(tiny: Any, name: str) -> None:
    for length in (1, 100, 180):
        with pytest.raises(UsageError) as error:
            prompts(tiny, name, length)
        assert "\n" not in str(error.value)
        least = int(re.search(r"give --len (\d+) or more", str(error.value))[1])  # type: ignore[index]
        assert length < least < 1400
    assert len(prompts(tiny, name, least)) == 4
    with pytest.raises(UsageError):
        prompts(tiny, name, least - 1)


def test_missing_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(importlib.resources, "files", missing)
    lexicon.lexicon.cache_clear()
    with pytest.raises(UsageError, match="pip install wonderwords"):
        tasks.parse("ruler:cwe").read(None)
    tasks.parse("ruler:niah_multikey_3").read(None)
    lexicon.lexicon.cache_clear()


def test_data_of_each_task(tmp_path: Path) -> None:
    names = {name: tasks.parse(f"ruler:{name}").read(None) for name in SYNTHETIC}
    for name, data in names.items():
        kind = NIAH[name][0] if name in NIAH else {"vt": "noise"}.get(name, "")
        assert data.name == {"essay": "stdlib", "noise": "noise"}.get(kind, "synthetic")
        assert re.fullmatch("[0-9a-f]{64}", data.sha256)
    assert names["vt"].sha256 != names["fwe"].sha256
    (tmp_path / "blank.txt").write_text(" \n ")
    with pytest.raises(UsageError):
        tasks.parse("ruler:niah_single_2").read(str(tmp_path / "blank.txt"))


def squad(folder: Path) -> Path:
    """Three articles of four paragraphs, each with two questions of which one has an answer."""
    data = []
    for a in range(3):
        paragraphs = []
        for p in range(4):
            fact = f"In article {a} paragraph {p} the word is w{a}{p}w. " + "It goes on. " * (p + 5)
            asked = [
                {
                    "question": f"What is the word of {a} {p}?",
                    "answers": [{"text": f"w{a}{p}w"}, {"text": f"the word is w{a}{p}w"}],
                    "is_impossible": False,
                },
                {"question": "What else?", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": fact, "qas": asked})
        data.append({"title": str(a), "paragraphs": paragraphs})
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    return folder / "squad.json"


def hotpot(folder: Path) -> Path:
    """Eight questions over three paragraphs each, of which they share some."""
    data = [
        {
            "question": f"Who is {q}?",
            "answer": f"person{q}",
            "context": [[f"T{(q + i) % 6}", [f"Line {(q + i) % 6}.", " More."]] for i in range(3)],
        }
        for q in range(8)
    ]
    (folder / "hotpot.json").write_text(json.dumps(data))
    return folder / "hotpot.json"


@pytest.mark.parametrize("length", [400, 700, 2000])
def test_squad(tiny: Any, tmp_path: Path, length: int) -> None:
    found = texts(tiny, "qa_1", length, None, str(squad(tmp_path)))
    assert len(found) == 12
    places = set()
    for i, (text, sample) in enumerate(found):
        a, p = divmod(i, 4)
        assert len(sample.ids) <= length - 32
        assert sample.answers == (f"w{a}{p}w", f"the word is w{a}{p}w")
        assert text.endswith(f"\n\nQuestion: What is the word of {a} {p}? Answer:")
        body = text.split("given documents.\n\n")[1].split("\n\nAnswer the question")[0]
        documents = body.split("\n\n")
        assert [d.split(":\n")[0] for d in documents] == [
            f"Document {k}" for k in range(1, len(documents) + 1)
        ]
        said = [tuple(map(int, re.findall(r"\d", d.split(":\n")[1])[:2])) for d in documents]
        assert (a, p) in said
        own = [article for article, _ in said if article == a]
        assert len(own) == min(len(said), 4) or len(said) >= 12
        if len(said) < 12:
            assert len(set(said)) == len(said)
            gold = documents[said.index((a, p))]
            before = body.index(gold)
            share = before / (len(body) - len(gold)) if len(said) > 1 else 0
            assert sample.facts["depth"] == pytest.approx(share, abs=1e-12)
            places.add(sample.facts["depth"])
    assert length == 2000 or len(places) > 3


def test_questions_may_be_compressed(tmp_path: Path) -> None:
    file = squad(tmp_path)
    plain, packed = load_questions("qa_1", str(file)), tmp_path / "SQUAD.JSON.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert load_questions("qa_1", str(packed)) == dataclasses.replace(plain, name=str(packed))


def test_every_number_of_documents(tmp_path: Path) -> None:
    maker = QuestionsMaker("qa_1", 0, load_questions("qa_1", str(squad(tmp_path))))
    for units in range(maker.least(5), 30):
        text = maker.make(5, units).text
        assert text.count("\n\nDocument ") == units
        said = re.findall(r"In article (\d) paragraph (\d)", text)
        assert [a for a, _ in said].count("1") == min(units, 4) or units >= 12
        assert ("1", "1") in said
        assert len(set(said)) == min(units, 12)


def test_hotpot(tiny: Any, tmp_path: Path) -> None:
    found = texts(tiny, "qa_2", 300, None, str(hotpot(tmp_path)))
    assert len(found) == 8
    for q, (text, sample) in enumerate(found):
        assert sample.answers == (f"person{q}",)
        assert "depth" not in sample.facts
        assert all(f":\nT{(q + i) % 6}\nLine {(q + i) % 6}. More." in text for i in range(3))
    with pytest.raises(UsageError, match=r"give --len \d+ or more"):
        prompts(tiny, "qa_2", 120, None, str(hotpot(tmp_path)))


HOSTILE = [
    b"", b"null", b"[]", b"{}", b"3", b"\xff\xfe", b"[" * 100000, b"{" * 9, b'"data"', b"[[]]",
    b"[1" + b"0" * 9999 + b"]", b'{"data": 1}', b'{"data": [1]}',
    b'{"data": [{"paragraphs": [{}]}]}',
    b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": 1, "answers": []}]}]}]}',
    b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [1]}]}]}]}',
    b'{"data": [{"paragraphs": [{"context": "c", "qas": []}]}]}',
    b'{"data": [{"paragraphs": [{"context": "\\ud800", "qas": [{"question": "q", "answers": '
    b'[{"text": "a"}]}]}]}]}',
    b'[{"question": "q", "answer": "a", "context": []}]',
    b'[{"question": "q", "answer": "a", "context": [["t"]]}]',
    b'[{"question": "q", "answer": "a", "context": [["t", [1]]]}]',
    b'[{"question": "q", "answer": ["a"], "context": [["t", ["s"]]]}]',
    b'[{"question": "\\ud800", "answer": "a", "context": [["t", ["s"]]]}]',
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_files_that_are_none(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "hostile.json").write_bytes(content)
    with pytest.raises(UsageError) as error:
        tasks.parse(f"ruler:{name}").read(str(tmp_path / "hostile.json"))
    assert "\n" not in str(error.value)
    assert {"qa_1": "dev-v2.0.json", "qa_2": "hotpot_dev_distractor_v1.json"}[name] in str(
        error.value
    )


def test_questions_need_their_own_file(tmp_path: Path) -> None:
    given = {"qa_1": hotpot(tmp_path), "qa_2": squad(tmp_path)}
    for name, other in given.items():
        for data in (None, "stdlib", "a.txt", "none.json", "\0.json", str(other)):
            with pytest.raises(UsageError, match=r"give --data .*\.json from https"):
                tasks.parse(f"ruler:{name}").read(data)


def test_scores() -> None:
    assert scoring.postprocess("  a\tb\x00c\n ") == "a\nb\nc"
    assert scoring.string_match_all("It is ABC, def.", ["abc", "DEF", "ghi", "x"]) == 0.5
    assert scoring.string_match_part("It is ABC", ["no", "abc"]) == 1
    assert scoring.string_match_part("It is ABC", ["no", "abd"]) == 0
    assert scoring.string_match_all("a\tb", ["a\nb", "a b"]) == 0.5
    rows = [
        {"pred": "1 and 2", "answers": ["1", "2"]},
        {"pred": "only 1", "answers": ["1", "2"]},
        {"pred": "", "answers": ["1", "2"]},
    ]
    task: Any = tasks.parse("ruler:vt")
    score = task.score(rows)
    assert score.value == pytest.approx(50)
    assert score.stderr == pytest.approx(50 / 3**0.5)
    assert tasks.parse("ruler:qa_1").score(rows).value == pytest.approx(200 / 3)  # type: ignore[attr-defined]
    assert task.score(rows[:1]).stderr is None


def test_templates_are_those_of_another_copy() -> None:
    """The strings in lm_eval's copy of RULER, read without running it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent / "tasks" / "ruler"
    strings = {
        node.value
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    strings |= {text.replace("assgined", "assigned") for text in strings}
    ours = {
        niah.TEMPLATE, niah.NEEDLE, niah.NOISE, tracking.TEMPLATE, tracking.ANSWER_PREFIX,
        words.CWE_TEMPLATE, words.CWE_ANSWER_PREFIX, words.FWE_TEMPLATE, words.FWE_ANSWER_PREFIX,
        questions.TEMPLATE, questions.ANSWER_PREFIX.strip(), questions.DOCUMENT_PROMPT,
    }  # fmt: skip
    assert ours <= strings
