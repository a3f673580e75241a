"""The metrics of LongBench: one prediction against one right answer, from 0 to 1.

Each gives what the authors' metrics.py gives (https://github.com/THUDM/LongBench, Bai et al.
2023, arXiv:2308.14508), corner cases included; `METRICS` is its list.
"""

from __future__ import annotations

import difflib
import functools
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

from ctxext.system.extras import need

Metric = Callable[[str, str, Sequence[str]], float]  # prediction, answer, all classes

PARAGRAPH_EN = re.compile(r"Paragraph (\d+)")
PARAGRAPH_ZH = re.compile(r"段落(\d+)")

_NUMBER = re.compile(r"\d+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_DROP = dict.fromkeys(map(ord, string.punctuation))
_DROP_ZH = _DROP | dict.fromkeys(
    map(
        ord,
        "–—‘’‛“”„‟…‧、。〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿﹏"
        "！＂＃＄％＆＇（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠｡｢｣､",  # no 《, no ．
    )
)


def qa_f1_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """F1 of the bags of words, in lower case, without ASCII punctuation and English articles."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """F1 of the bags of jieba's words, in lower case, without punctuation and white space."""
    return _f1(_words_zh(prediction), _words_zh(answer))


def rouge_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """The F of ROUGE-L over words, sentences ending at ".", by the package `rouge`.

    0 where that package gives up: on a text without anything but full stops, and where it
    recurses too deeply, once for each word, on a sentence of many hundred words. It is called in
    a thread of its own, so that how deep the caller is makes no difference.
    """
    return _shallow().submit(_rouge, prediction, answer).result()


@functools.cache
def _shallow() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def _rouge(prediction: str, answer: str) -> float:
    kind = need("rouge").Rouge
    try:
        scores = kind(metrics=["rouge-l"]).get_scores(prediction, answer)
    except (ValueError, RecursionError):
        return 0.0
    return float(scores[0]["rouge-l"]["f"])


def rouge_zh_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """`rouge_score` over jieba's words."""
    return rouge_score(" ".join(_segment(prediction)), " ".join(_segment(answer)))


def classification_score(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """1/k where the prediction contains the right class and k − 1 others, else 0.

    Classes that are a part of the right one's name do not count; but, as the authors' loop
    drops them from the list that it walks, the class after a dropped one is never looked at.
    """
    found = [name for name in all_classes if name in prediction]
    index = 0
    while index < len(found):
        if found[index] in answer and found[index] != answer:
            found.remove(found[index])
        index += 1
    return 1.0 / len(found) if answer in found else 0.0


def count_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """The share of the numbers in the prediction that are the answer, digit by digit."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """`count_score` against the number of the answer's first "Paragraph N"."""
    return count_score(prediction, PARAGRAPH_EN.findall(answer)[0])


def retrieval_zh_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """`count_score` against the number of the answer's first "段落N"."""
    return count_score(prediction, PARAGRAPH_ZH.findall(answer)[0])


def code_sim_score(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """The similarity of the first line of code to the answer, by difflib, in whole percent.

    This is fuzzywuzzy's `fuzz.ratio` as the published scores were made, without
    python-Levenshtein; see `code_sim_levenshtein` for the other.
    """
    return _similarity(
        first_code_line(prediction),
        answer,
        lambda a, b: difflib.SequenceMatcher(None, a, b).ratio(),
    )


def code_sim_levenshtein(prediction: str, answer: str, all_classes: Sequence[str] = ()) -> float:
    """What `code_sim_score` is where python-Levenshtein (0.21 or newer) is installed.

    1 − (insertions + deletions) / (both lengths), in whole percent.
    """
    need("rapidfuzz")
    from rapidfuzz.distance import Indel

    return _similarity(first_code_line(prediction), answer, Indel.normalized_similarity)


def first_code_line(prediction: str) -> str:
    """The first line without "`", "#" and "//", after leading newlines; "" if there is none."""
    lines = prediction.lstrip("\n").split("\n")
    return next((s for s in lines if not ("`" in s or "#" in s or "//" in s)), "")


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.__name__: metric
        for metric in (
            *(qa_f1_score, qa_f1_zh_score, rouge_score, rouge_zh_score, classification_score),
            *(retrieval_score, retrieval_zh_score, count_score, code_sim_score),
        )
    }
)


def _similarity(a: str, b: str, ratio: Callable[[str, str], float]) -> float:
    """As fuzzywuzzy 0.18 has it: in whole percent, and 1 for equal texts, also empty ones."""
    return 1.0 if a == b else round(100 * ratio(a, b)) / 100


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    same = (Counter(prediction) & Counter(answer)).total()
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_DROP)).split()


def _words_zh(text: str) -> list[str]:
    tokens = ("".join(token.lower().translate(_DROP_ZH).split()) for token in _segment(text))
    return [token for token in tokens if token]


@functools.lru_cache(maxsize=64)
def _segment(text: str) -> tuple[str, ...]:
    return tuple(_segmenter().cut(text, cut_all=False))


@functools.cache
def _segmenter() -> Any:
    """jieba with its own dictionary, and without its habits.

    It would report on stderr, and keep the dictionary in a file of the temporary folder, where
    others may write and we perhaps not; reading the dictionary anew takes a second.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jieba = need("jieba")
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter
