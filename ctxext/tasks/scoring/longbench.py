"""LongBench and LongBench-E: what its tasks are, and the score of a task's rows.

The rules are those of the authors' eval.py (https://github.com/THUDM/LongBench): the best of a
row's answers counts, tasks with examples in the prompt are judged by the prediction's first line,
and a task's score is 100 times the mean over rows. The authors round it to two decimals, and take
the classes of a file's last row for all; here each row has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ctxext.errors import UsageError
from ctxext.tasks.scoring.base import Row, Score, mean_score
from ctxext.tasks.scoring.metrics import (
    METRICS,
    PARAGRAPH_EN,
    PARAGRAPH_ZH,
    Metric,
    code_sim_levenshtein,
)
from ctxext.text import did_you_mean

# category → task → the authors' name of its metric
_CATEGORIES = {
    "single-document QA": {
        "narrativeqa": "qa_f1_score",
        "qasper": "qa_f1_score",
        "multifieldqa_en": "qa_f1_score",
        "multifieldqa_zh": "qa_f1_zh_score",
    },
    "multi-document QA": {
        "hotpotqa": "qa_f1_score",
        "2wikimqa": "qa_f1_score",
        "musique": "qa_f1_score",
        "dureader": "rouge_zh_score",
    },
    "summarization": {
        "gov_report": "rouge_score",
        "qmsum": "rouge_score",
        "multi_news": "rouge_score",
        "vcsum": "rouge_zh_score",
    },
    "few-shot": {
        "trec": "classification_score",
        "triviaqa": "qa_f1_score",
        "samsum": "rouge_score",
        "lsht": "classification_score",
    },
    "synthetic": {
        "passage_count": "count_score",
        "passage_retrieval_en": "retrieval_score",
        "passage_retrieval_zh": "retrieval_zh_score",
    },
    "code": {"lcc": "code_sim_score", "repobench-p": "code_sim_score"},
}

TASKS: Mapping[str, str] = MappingProxyType(
    {task: metric for tasks in _CATEGORIES.values() for task, metric in tasks.items()}
)
E_TASKS: tuple[str, ...] = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec"),
    *("triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
BANDS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, float("inf"))}  # of `length`

_CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
_FIRST_LINE = _CATEGORIES["few-shot"]
_PARAGRAPH = {"passage_retrieval_en": PARAGRAPH_EN, "passage_retrieval_zh": PARAGRAPH_ZH}


def score(task: str, rows: Sequence[Row], extended: bool = False) -> Score:
    """A task's score, 0 to 100, not rounded.

    Args:
        rows: each with `pred`, `answers`, and where needed `all_classes` and `length`.
        extended: LongBench-E: `parts` are the rows by `length`, in the data's own words (English)
            or characters, not tokens. The value is still the mean over all rows: the mean of the
            bands, weighted by their rows, which the authors do not report.

    Returns:
        For code tasks, `also` has both definitions of similarity; the value is difflib's.

    Raises:
        UsageError: there is no such task or no row, or a row lacks something.
    """
    check_task(task, extended)
    if not rows:
        raise UsageError(f"no predictions of {task} to score: give at least one row")
    for number, row in enumerate(rows, 1):
        if problem := problem_with(task, row, extended):
            raise UsageError(f"row {number} of {task}: {problem}")
    metric = METRICS[TASKS[task]]
    values = [_best(task, row, metric) for row in rows]
    value, stderr = mean_score(values, 100)
    also = {}
    if task in _CATEGORIES["code"]:
        other = mean_score([_best(task, row, code_sim_levenshtein) for row in rows], 100)
        also = {"difflib": value, "levenshtein": other[0]}
    return Score(value, stderr, _bands(rows, values) if extended else (), also)


def averages(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The benchmark's averages, each the mean over six categories of the mean over their tasks.

    Args:
        results: {"task", "value", "parts"} of each task.

    Returns:
        For all 21 tasks "English", "Chinese" and "all", code being part of each, as in the paper;
        for all 13 of LongBench-E "all" and each band that no task lacks; else nothing.
    """
    values = {result["task"]: result["value"] for result in results}
    if set(values) == set(TASKS):
        english = {task: value for task, value in values.items() if task not in _CHINESE}
        code = _CATEGORIES["code"]
        chinese = {task: value for task, value in values.items() if task in (*_CHINESE, *code)}
        each = {"English": english, "Chinese": chinese, "all": values}
    elif set(values) == set(E_TASKS) and all(result["parts"] for result in results):
        each = {"all": values}
        for band in BANDS:
            parts = [(r["task"], part) for r in results for part in r["parts"]]
            found = {task: part["value"] for task, part in parts if part["name"] == band}
            if len(found) == len(values):
                each[band] = found
    else:
        return {}
    return {name: _category_mean(found) for name, found in each.items()}


def check_task(task: str, extended: bool, prefix: str = "") -> None:
    """UsageError, with the valid ones, where there is no such task."""
    valid = E_TASKS if extended else tuple(TASKS)
    if task not in valid:
        kind = "LongBench-E" if extended else "LongBench"
        raise UsageError(f"{prefix}unknown {kind} task {task!r}: {did_you_mean(task, valid)}")


def _best(task: str, row: Row, metric: Metric) -> float:
    """The best score over a row's answers."""
    prediction = row["pred"]
    if task in _FIRST_LINE:
        prediction = prediction.lstrip("\n").split("\n")[0]
    classes = row.get("all_classes") or ()
    return max(metric(prediction, answer, classes) for answer in row["answers"])


def _bands(rows: Sequence[Row], values: Sequence[float]) -> list[dict[str, Any]]:
    """The mean of each band that has rows."""
    parts = []
    for name, (low, high) in BANDS.items():
        inside = [v for row, v in zip(rows, values, strict=True) if low <= row["length"] < high]
        if inside:
            parts.append({"name": name, "value": mean_score(inside, 100)[0], "n": len(inside)})
    return parts


def _category_mean(values: Mapping[str, float]) -> float:
    means = []
    for tasks in _CATEGORIES.values():
        inside = [values[task] for task in tasks if task in values]
        means.append(sum(inside) / len(inside))
    return sum(means) / len(means)


def problem_with(task: str, row: object, extended: bool) -> str | None:
    """What makes this no row of the task, in a few words; None if it is one."""
    if not isinstance(row, dict):
        return "not a JSON object"
    answers, classes, length = row.get("answers"), row.get("all_classes"), row.get("length")
    if not isinstance(row.get("pred"), str):
        return "needs a string 'pred'"
    if not (_strings(answers) and answers):
        return "needs 'answers', a list of one string or more"
    if not (classes is None or _strings(classes)):
        return "'all_classes' must be a list of strings or null"
    if TASKS[task] == "classification_score" and not classes:
        return f"needs 'all_classes', a list of one string or more, as {task} is a classification"
    if extended and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
        return "needs a whole number 'length' for the bands of LongBench-E"
    if (pattern := _PARAGRAPH.get(task)) and not all(map(pattern.search, answers)):
        return f"each of 'answers' must match {pattern.pattern!r}"
    return _surrogates(row["pred"], *answers, *(classes or ()))


def _strings(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _surrogates(*texts: str) -> str | None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None
