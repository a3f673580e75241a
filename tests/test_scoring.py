"""LongBench's metrics against hand-worked values and plain oracles, and its published scores."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import string
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxext.cli import app as cli
from ctxext.errors import UsageError
from ctxext.tasks.scoring import metrics
from ctxext.tasks.scoring.base import mean_score
from ctxext.tasks.scoring.longbench import E_TASKS, TASKS, averages, score
from ctxext.tasks.scoring.predictions import score_folder

SHARED = Path(os.environ.get("CTXEXT_SHARED", Path(__file__).parents[2] / "shared"))
LLAMA = SHARED / "longbench" / "predictions" / "llama2-7b-chat-4k"
published = pytest.mark.skipif(not LLAMA.is_dir(), reason=f"no predictions at {LLAMA}")

EPSILON = 1e-8  # that the package rouge adds to p + r
WORDS = st.text(st.sampled_from("ab c.,'A\n"), max_size=30)


def f1(same: int, predicted: int, right: int) -> float:
    p, r = same / predicted, same / right
    return 2 * p * r / (p + r)


def rouge_f(same: int, predicted: int, right: int) -> float:
    p, r = same / predicted, same / right
    return 2 * p * r / (p + r + EPSILON)


def row(pred: str = "", *answers: str, **facts: Any) -> dict[str, Any]:
    return {"pred": pred, "answers": list(answers), **facts}


# Values by hand


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("The cat sat.", "a cat", f1(1, 2, 1)),  # {cat sat} and {cat}: p 1/2, r 1
        ("cat cat dog", "cat cat cat", f1(2, 3, 3)),  # a bag, so two of three
        ("It's U.S.", "its us", 1.0),  # marks go without leaving a space
        ("an-the", "anthe", 1.0),  # punctuation goes before articles
        ("théa", "THÉA", 1.0),
        ("the", "the", 0.0),  # nothing is left of either
        ("", "cat", 0.0),
        ("", "", 0.0),
    ],
)
def test_qa_f1(prediction: str, answer: str, value: float) -> None:
    assert metrics.qa_f1_score(prediction, answer) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("我爱北京", "我爱上海", f1(2, 3, 3)),  # 我|爱|北京 and 我|爱|上海
        ("北京。\n", "　北京", 1.0),
        ("《北京》", "北京", f1(1, 2, 1)),  # 》 is dropped, 《 is missing in the authors' list
        ("OK 北京", "ok北京", 1.0),
        ("，。", "，。", 0.0),
        ("", "北京", 0.0),
    ],
)
def test_qa_f1_zh(prediction: str, answer: str, value: float) -> None:
    assert metrics.qa_f1_zh_score(prediction, answer) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("the cat sat", "the cat ran off", rouge_f(2, 3, 4)),
        ("cat the", "the cat", rouge_f(1, 2, 2)),  # order counts
        ("a a a", "a", rouge_f(1, 1, 1)),  # distinct words are counted
        ("x b. a y", "a b", rouge_f(2, 4, 2)),  # the union over sentences
        ("Cat", "cat", 0.0),  # case counts
        ("", "cat", 0.0),
        ("...", "cat", 0.0),
        ("cat", "", 0.0),
    ],
)
def test_rouge(prediction: str, answer: str, value: float) -> None:
    assert metrics.rouge_score(prediction, answer) == pytest.approx(value, abs=1e-12)


def test_rouge_gives_up_on_a_sentence_too_long_to_recurse_over() -> None:
    words = list(map(str, range(1200)))
    assert metrics.rouge_score(" ".join(words), "0") == 0.0
    some = metrics.rouge_score(" ".join(words[:600]), "0")
    assert some == pytest.approx(rouge_f(1, 600, 1), abs=1e-12)


def test_rouge_zh() -> None:
    assert metrics.rouge_zh_score("我爱北京", "我爱上海") == pytest.approx(rouge_f(2, 3, 3))
    assert metrics.rouge_zh_score("", "北京") == 0.0


@pytest.mark.parametrize(
    ("prediction", "answer", "classes", "value"),
    [
        ("Other location", "Other location", ["Food", "Other location"], 1.0),
        ("Food or Date", "Date", ["Food", "Date"], 0.5),
        ("other location", "location", ["City", "location"], 1.0),
        ("Sport event", "Sport event", ["Sport", "Sport event"], 1.0),  # Sport is a part of it
        # "a" is dropped, so "b" takes its place and is passed over: "ab" is one of two
        ("abc", "ab", ["a", "b", "ab"], 0.5),
        ("abc", "ab", ["a", "ab", "b"], 1.0),
        ("Food", "Date", ["Food", "Date"], 0.0),
        ("Date", "Date", ["Food"], 0.0),
        ("", "Date", ["Date"], 0.0),
    ],
)
def test_classification(prediction: str, answer: str, classes: list[str], value: float) -> None:
    assert metrics.classification_score(prediction, answer, classes) == value


@pytest.mark.parametrize(
    ("prediction", "value"), [("3", 1.0), ("3, 4, 3 and 33", 0.5), ("03", 0.0), ("no", 0.0)]
)
def test_numbers(prediction: str, value: float) -> None:
    assert metrics.count_score(prediction, "3") == value
    assert metrics.retrieval_score(prediction, "Paragraph 3, not Paragraph 4") == value
    assert metrics.retrieval_zh_score(prediction, "段落3") == value


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("\n\nx = 1\ny = 2", "x = 1"),
        ("# note\n```\nx // y\n  z\n", "  z"),
        (" \nx", " "),  # only newlines are skipped, a line of blanks is a line
        ("# a", ""),
        ("", ""),
    ],
)
def test_the_line_of_code_that_is_compared(prediction: str, line: str) -> None:
    assert metrics.first_code_line(prediction) == line


@pytest.mark.parametrize(
    ("prediction", "answer", "by_difflib", "by_levenshtein"),
    [
        ("abcd", "bcde", 0.75, 0.75),  # bcd: 2·3/8
        ("ab", "cd", 0.0, 0.0),
        ("x", "", 0.0, 0.0),
        ("", "x", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        # "ab" is the longest block, and nothing is left beside it: 2·2/8
        ("ab", "bac" * 2, 0.5, 0.5),
        # one block, the first "a" with the last: 2·1/6; the letters b, a in order: 2·2/6
        ("aba", "bca", 0.33, 0.67),
        ("x" * 199 + "y", "y", 0.01, 0.01),  # 2·1/201 = 0.00995
    ],
)
def test_code_similarity(
    prediction: str, answer: str, by_difflib: float, by_levenshtein: float
) -> None:
    assert metrics.code_sim_score(prediction, answer) == by_difflib
    assert metrics.code_sim_levenshtein(prediction, answer) == by_levenshtein


def test_difflib_takes_frequent_characters_of_a_long_answer_for_junk() -> None:
    """From 200 characters on, one that makes up more than 1% begins no match."""
    assert metrics.code_sim_score("ba", "ab" * 100) == 0.0
    assert metrics.code_sim_levenshtein("ba", "ab" * 100) == 0.02  # 2·2/202 = 0.0198
    assert metrics.code_sim_score("ab" * 100, "ba") == 0.02  # so the order of the two matters
    assert metrics.code_sim_score("ab" * 100, "ab" * 100) == 1.0


# Oracles: the definitions, written plainly and slowly


def common(a: Iterable[str], b: Iterable[str]) -> int:
    left, same = list(b), 0
    for item in a:
        if item in left:
            left.remove(item)
            same += 1
    return same


def subsequence(a: str, b: str) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for x in a:
        before = best[:]
        for j, y in enumerate(b, 1):
            best[j] = before[j - 1] + 1 if x == y else max(before[j], best[j - 1])
    return best[-1]


def blocks(a: str, b: str) -> int:
    """Characters in matching blocks: the longest, the first in a and then in b, and both sides."""
    for size in range(min(len(a), len(b)), 0, -1):
        for i in range(len(a) - size + 1):
            j = b.find(a[i : i + size])
            if j >= 0:
                return size + blocks(a[:i], b[:j]) + blocks(a[i + size :], b[j + size :])
    return 0


def percent(same: int, a: str, b: str) -> float:
    """2·same / both lengths, rounded half to even, with fuzzywuzzy's special cases."""
    if a == b:
        return 1.0
    if not (a and b):
        return 0.0
    hundredths = 200 * same
    whole, rest = divmod(hundredths, len(a) + len(b))
    half = 2 * rest - (len(a) + len(b))
    return (whole + (half > 0 or (half == 0 and whole % 2 == 1))) / 100


@given(WORDS, WORDS)
def test_qa_f1_is_the_definition(prediction: str, answer: str) -> None:
    def words(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    p, a = words(prediction), words(answer)
    value = 2 * common(p, a) / (len(p) + len(a)) if p and a else 0.0
    assert metrics.qa_f1_score(prediction, answer) == pytest.approx(value, abs=1e-12)


@given(st.permutations("abcdefgh"), st.permutations("efghijkl"), st.integers(1, 8))
def test_rouge_is_the_definition_for_one_sentence(a: list[str], b: list[str], size: int) -> None:
    """With distinct words: F of the longest common subsequence."""
    same = subsequence("".join(a[:size]), "".join(b))
    value = rouge_f(same, size, len(b)) if same else 0.0
    assert metrics.rouge_score(" ".join(a[:size]), " ".join(b)) == pytest.approx(value, abs=1e-12)


@given(st.text("abcd ", max_size=40), st.text("abcd ", max_size=40))
def test_code_similarity_is_the_definition(a: str, b: str) -> None:
    by_blocks = percent(blocks(a, b), a, b)
    assert metrics.code_sim_score(a, b) == by_blocks
    both = percent(subsequence(a, b), a, b)  # 1 − distance/lengths, up to a float's ties
    assert metrics.code_sim_levenshtein(a, b) == pytest.approx(both, abs=0.01 + 1e-9)
    assert by_blocks <= both + 1e-9


@given(st.lists(st.text("ab", min_size=1, max_size=3)), st.text("ab", max_size=4), st.data())
def test_classification_drops_parts_as_the_authors_loop(
    classes: list[str], prediction: str, data: st.DataObject
) -> None:
    answer = data.draw(st.sampled_from([*classes, "ab"]))
    found = [name for name in classes if name in prediction]
    for name in found:  # it changes while it is walked, and that is the rule
        if name in answer and name != answer:
            found.remove(name)
    value = 1 / len(found) if answer in found else 0.0
    assert metrics.classification_score(prediction, answer, classes) == value


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_mean_and_standard_error(values: list[float]) -> None:
    value, stderr = mean_score(values, 100)
    assert value == pytest.approx(100 * statistics.fmean(values), abs=1e-9)
    error = 100 * statistics.stdev(values) / math.sqrt(len(values))
    assert stderr == pytest.approx(error, abs=1e-6)


# Scores of rows


def test_tasks_are_the_benchmarks() -> None:
    assert len(TASKS) == 21
    assert len(set(E_TASKS)) == 13
    assert set(E_TASKS) < set(TASKS)
    assert set(TASKS.values()) == set(metrics.METRICS)


def test_the_best_answer_counts_and_the_mean_is_in_percent() -> None:
    found = score("hotpotqa", [row("cat", "dog", "cat sat"), row("x", "y"), row("x", "x")])
    assert found.value == pytest.approx(100 * (f1(1, 1, 2) + 0 + 1) / 3)
    error = statistics.stdev([f1(1, 1, 2), 0, 1]) / math.sqrt(3)
    assert found.stderr == pytest.approx(100 * error)
    assert (found.parts, found.also) == ((), {})
    assert score("hotpotqa", [row("x", "x")]) == (100.0, None, (), {}, ())


@pytest.mark.parametrize(
    ("task", "first_line_only"),
    [("triviaqa", True), ("samsum", True), ("hotpotqa", False), ("gov_report", False)],
)
def test_few_shot_tasks_are_judged_by_the_first_line(task: str, first_line_only: bool) -> None:
    value = score(task, [row("\n\ncat\ndog", "cat")]).value
    assert (value > 99) == first_line_only
    assert score(task, [row(" \ncat", "cat")]).value < 1 or not first_line_only


@pytest.mark.parametrize("task", ["trec", "lsht"])
def test_classifications_are_judged_by_the_first_line(task: str) -> None:
    rows = [row("\nFood\nDate", "Food", all_classes=["Food", "Date"])]
    assert score(task, rows).value == 100
    rows = [row("Food\nDate", "Date", all_classes=["Food", "Date"])]
    assert score(task, rows).value == 0


def test_code_has_both_similarities() -> None:
    """aba and bca are 1/3 and 2/3 alike, see above; abcd and bcde 3/4 by both."""
    found = score("lcc", [row("aba", "bca", "xyxx"), row("abcd", "bcde")])
    expected = {"difflib": 100 * (0.33 + 0.75) / 2, "levenshtein": 100 * (0.67 + 0.75) / 2}
    assert found.also == pytest.approx(expected)
    assert found.value == found.also["difflib"]


def test_bands_of_length() -> None:
    lengths = {"x": (0, 3999, 8000), "y": (7999, 4000, 3998)}
    rows = [row(p, "x", length=n) for p, several in lengths.items() for n in several]
    found = score("hotpotqa", rows, extended=True)
    bands = [("0-4k", 200 / 3, 3), ("4-8k", 0.0, 2), ("8k+", 100.0, 1)]
    assert [(p["name"], p["value"], p["n"]) for p in found.parts] == [
        (name, pytest.approx(value), n) for name, value, n in bands
    ]
    assert found.value == pytest.approx(sum(v * n for _, v, n in bands) / 6)
    short = score("hotpotqa", rows[:2], extended=True)
    assert [part["name"] for part in short.parts] == ["0-4k"]


# README of LongBench, "Evaluation Result on Each Dataset" and its "Avg", Llama2-7B-chat-4k
README = dict(
    zip(
        TASKS,
        [
            *(18.7, 19.2, 36.8, 11.9, 25.4, 32.8, 9.4, 5.2, 27.3, 20.8, 25.8, 0.2),
            *(61.5, 77.8, 40.7, 19.8, 2.1, 9.8, 0.5, 52.4, 43.8),
        ],
        strict=True,
    )
)


def test_averages_are_those_of_the_authors_leaderboard() -> None:
    results = [{"task": task, "value": value, "parts": []} for task, value in README.items()]
    found = averages(results)
    assert {k: round(v, 1) for k, v in found.items()} == {
        "English": 31.0,
        "Chinese": 14.3,
        "all": 26.8,
    }
    assert averages(results[1:]) == {}


def test_averages_of_longbench_e_are_by_band() -> None:
    def result(task: str, value: float) -> dict[str, Any]:
        parts = [{"name": "0-4k", "value": value, "n": 1}]
        if task != "lcc":
            parts.append({"name": "8k+", "value": 50.0, "n": 1})
        return {"task": task, "value": value, "parts": parts}

    results = [result(task, 60.0 if task == "lcc" else 0.0) for task in E_TASKS]
    # code is half of lcc, and one of six categories: 60 / 2 / 6; one task has no 8k+
    assert averages(results) == {"all": 5.0, "0-4k": 5.0}
    assert averages([{**r, "parts": []} for r in results]) == {}


# Files and the command line


def write(folder: Path, task: str, *rows: Any) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    (folder / f"{task}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ctxext", "score", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_a_folder_in_the_benchmarks_order(tmp_path: Path) -> None:
    blank = b"\xef\xbb\xbf  "
    line = json.dumps(row("x\u2028y", "x y", all_classes=None, length=5, more=[1])).encode()
    write(tmp_path, "musique", blank, line, b"\r")
    write(tmp_path, "lcc", row("ab", "ab"), row("ab", "cd"))
    (tmp_path / "result.json").write_text("{}")
    code, qa = score_folder(tmp_path)[::-1]
    assert (code["task"], code["metric"], code["n"]) == ("lcc", "code_sim_score", 2)
    assert (code["value"], code["stderr"]) == (50.0, pytest.approx(50.0))
    assert code["interval"] == pytest.approx([9.4531, 90.5469], abs=1e-4)
    assert (code["also"], code["parts"]) == ({"difflib": 50.0, "levenshtein": 50.0}, [])
    assert (qa["task"], qa["value"], qa["stderr"], qa["n"]) == ("musique", 100.0, None, 1)


BROKEN: list[tuple[str, Any, str]] = [
    ("hotpotqa", b"{", "not JSON"),
    ("hotpotqa", b"[" * 100_000, "not JSON"),
    ("hotpotqa", b'{"pred": ' + b"1" * 5000 + b"}", "not JSON"),
    ("hotpotqa", b'{"pred": "\xff"}', "not UTF-8 (byte 10 of the line)"),
    ("hotpotqa", b"[]", "not a JSON object"),
    ("hotpotqa", {"answers": ["x"]}, "needs a string 'pred'"),
    ("hotpotqa", {"pred": 3, "answers": ["x"]}, "needs a string 'pred'"),
    ("hotpotqa", {"pred": "x"}, "needs 'answers', a list of one string or more"),
    ("hotpotqa", {"pred": "x", "answers": "x"}, "needs 'answers', a list"),
    ("hotpotqa", {"pred": "x", "answers": []}, "needs 'answers', a list"),
    ("hotpotqa", {"pred": "x", "answers": ["x", None]}, "needs 'answers', a list"),
    ("hotpotqa", row("\ud800", "x"), "half a surrogate pair"),
    ("hotpotqa", row("x", "x\udfff"), "half a surrogate pair"),
    ("hotpotqa", row("x", "x", all_classes="x"), "'all_classes' must be a list of strings or null"),
    ("trec", row("x", "x"), "needs 'all_classes'"),
    ("lsht", row("x", "x", all_classes=None), "needs 'all_classes'"),
    ("lsht", row("x", "x", all_classes=[]), "needs 'all_classes'"),
    ("trec", row("x", "x", all_classes=["\ud800"]), "half a surrogate pair"),
    ("passage_retrieval_en", row("x", "Paragraph 1", "1"), r"must match 'Paragraph (\\d+)'"),
    ("passage_retrieval_zh", row("x", "Paragraph 1"), r"must match '段落(\\d+)'"),
]


@pytest.mark.parametrize(("task", "line", "message"), BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, task: str, line: Any, message: str) -> None:
    good = row("x", "Paragraph 1 段落1", all_classes=["x"])
    write(tmp_path, task, good, b"", line)
    with pytest.raises(UsageError) as raised:
        score_folder(tmp_path)
    assert f"{task}.jsonl, line 3: " in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize("length", [None, "5", 5.0, True, -1])
def test_longbench_e_needs_lengths(tmp_path: Path, length: Any) -> None:
    write(tmp_path, "qasper", row("x", "x", length=length))
    assert len(score_folder(tmp_path)) == 1
    with pytest.raises(UsageError, match=r"qasper\.jsonl, line 1: needs a whole number 'length'"):
        score_folder(tmp_path, extended=True)


def test_rows_in_memory_are_checked_too() -> None:
    with pytest.raises(UsageError, match="row 2 of trec: needs 'all_classes'"):
        score("trec", [row("x", "x", all_classes=["x"]), row("x", "x")])
    with pytest.raises(UsageError, match="no predictions of trec"):
        score("trec", [])
    with pytest.raises(UsageError, match="unknown LongBench task 'nq'"):
        score("nq", [row("x", "x")])


def test_refusals_are_one_line(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "trec.jsonl").write_text("\n \n")
    (tmp_path / "inside" / "trec.jsonl").mkdir(parents=True)
    other = write(tmp_path / "other", "hotpotqa_e", row("x", "x"))
    long = write(tmp_path / "long", "musique", row("x", "x", length=1))
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "missing"], "cannot read the folder"),
        ([other / "hotpotqa_e.jsonl"], "cannot read the folder"),
        ([tmp_path / "none"], "no TASK.jsonl in"),
        ([tmp_path / "empty"], "trec.jsonl is empty"),
        ([tmp_path / "inside"], "cannot read"),
        ([other], "did you mean 'hotpotqa'? valid: 2wikimqa, dureader"),
        ([long, "--e"], "unknown LongBench-E task 'musique'"),
    ]
    for arguments, message in cases:
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert err.startswith("error: ")
        assert message in err


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    write(tmp_path, "lcc", row("abcd", "bcde", length=10), row("x", "x", length=9000))
    code, out, err = run(tmp_path, "--e")
    head, line = (text.split() for text in out.splitlines())
    assert (code, err) == (0, "")
    assert head[:6] == ["task", "metric", "score", "95%", "interval", "n"]
    assert head[6:] == ["difflib", "levenshtein", "0-4k", "8k+"]
    assert line[:7] == ["lcc", "code_sim_score", "87.50", "26.41", "to", "99.27", "2"]
    assert line[7:] == ["87.50", "87.50", "75.00", "100.00"]
    code, out, err = run(tmp_path, "--e", "--json")
    assert (code, err) == (0, "")
    (result,) = map(json.loads, out.splitlines())
    assert result == score_folder(tmp_path, extended=True)[0]


def test_averages_stand_below_a_whole_benchmark(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    for task in TASKS:
        write(tmp_path, task, row("x 3", "Paragraph 3 段落3", all_classes=["x"], length=1))
    code, out, _ = run(tmp_path)
    assert code == 0
    assert [text.split()[:2] for text in out.splitlines()[22:]] == [
        ["average,", name] for name in ("English", "Chinese", "all")
    ]
    for task in set(TASKS) - set(E_TASKS):
        (tmp_path / f"{task}.jsonl").unlink()
    _, out, _ = run(tmp_path, "--e")
    (line,) = (text.split() for text in out.splitlines() if text.startswith("average"))
    assert line[2] == line[3]  # all rows are in the first band


LIGHT = """
import sys
sys.argv = ["ctxext", "score", sys.argv[1], "--json"]
from ctxext.cli import app as cli
try:
    cli.main()
finally:
    heavy = {"torch", "transformers", "datasets", "lm_eval"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_nothing_heavy_is_loaded_and_jieba_is_silent(tmp_path: Path) -> None:
    """Nor does it leave or read a dictionary in the temporary folder, which others may write."""
    folder = write(tmp_path / "p", "multifieldqa_zh", row("我爱北京", "我爱上海"))
    temporary = tmp_path / "t"
    temporary.mkdir()
    (temporary / "jieba.cache").write_bytes(b"not a dictionary")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", LIGHT, str(folder)]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert json.loads(done.stdout)["value"] == pytest.approx(100 * f1(2, 3, 3))
    assert [(p.name, p.read_bytes()) for p in temporary.iterdir()] == [
        ("jieba.cache", b"not a dictionary")
    ]


@published
@pytest.mark.parametrize("task", TASKS)
def test_published_scores_are_met(task: str, tmp_path: Path) -> None:
    """All 21 scores that the authors' code gave for Llama-2-7B-chat, to their two decimals."""
    shutil.copy(LLAMA / f"{task}.jsonl", tmp_path)
    (found,) = score_folder(tmp_path)
    assert round(found["value"], 2) == json.loads((LLAMA / "result.json").read_text())[task]
