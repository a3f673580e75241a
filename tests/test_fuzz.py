"""Random and hostile input to what reads text: a value or one of the project's own errors."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_results import make

from ctxext import patches, tasks
from ctxext.errors import CtxextError, UsageError
from ctxext.measure.launch import parse_launcher
from ctxext.methods.base import Span
from ctxext.models.loading import Source
from ctxext.notation import format_length, parse_length
from ctxext.records import Store
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.grid import read_grid
from ctxext.request.lists import parse_lengths, parse_methods, parse_seeds, parse_tasks
from ctxext.system.names import printable, safe_name
from ctxext.tasks.data import load_text
from ctxext.tasks.longbench.questions import read_questions
from ctxext.tasks.scoring.predictions import score_folder

TIMES = 1250  # of each of the first eight, which makes ten thousand
FUZZ = settings(
    max_examples=TIMES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = (
    *("", " ", "\n", "\0", "\ud800", "\u202e", "..", "../x", "/", "~", "%00", "nan", "inf", "-1"),
    *("1e999", "0x10", "１６", "²", "1_000", "<script>", "';--", '"', "$(x)", "{}", "True", "None"),
    *("9" * 400, "a" * 3000, "@", "@x", "@/dev/zero", "@/proc/self/mem"),
)
NAMES = (*patches.names(), *tasks.names())
KEYS = (
    *("window", "leak", "factor", "b", "clip", "beta_fast", "factors", "stride", "samples"),
    *("depths", "pairs", "task", "fewshot", "chat", "__class__", "name", "self"),
)
MARKS = (":", "=", ",", "+", "+logn", ":all", "k", "m", " ", ".")
words = st.one_of(st.sampled_from((*ODD, *NAMES, *KEYS)), st.integers().map(str), st.text())
pieces = st.lists(st.one_of(words, st.sampled_from(MARKS)), max_size=9).map("".join)
specs = st.one_of(
    pieces,
    st.tuples(
        st.sampled_from(NAMES), st.sampled_from(MARKS), st.sampled_from(KEYS), words, pieces
    ).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}={parts[3]}{parts[4]}"),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text()), inner, max_size=4),
    ),
    max_leaves=12,
)


def attempt(call: Callable[[], Any]) -> Any:
    """What the call gives, or None where it ends with an error of the project's."""
    with contextlib.suppress(CtxextError):
        return call()
    return None


@FUZZ
@given(specs)
def test_methods(text: str) -> None:
    spec = attempt(lambda: patches.parse(text))
    if spec is not None:
        assert patches.parse(str(spec)) == spec
        attempt(lambda: spec.resolve(Span(512, 4096)))
    attempt(lambda: parse_methods([text]))


@FUZZ
@given(st.one_of(st.sampled_from(ODD), pieces))
def test_lengths(text: str) -> None:
    tokens = attempt(lambda: parse_length(text))
    assert tokens is None or (0 < tokens < 2**31 and parse_length(format_length(tokens)) == tokens)
    lengths = attempt(lambda: parse_lengths([text]))
    assert lengths is None or list(lengths) == sorted(set(lengths))


@FUZZ
@given(specs)
def test_tasks(text: str) -> None:
    task = attempt(lambda: tasks.parse(text))
    if task is not None:
        assert tasks.parse(str(task)) == task
        attempt(lambda: task.resolve(512, [512, 4096]))
    attempt(lambda: parse_tasks([text]))


@FUZZ
@given(pieces)
def test_seeds_and_launchers(text: str) -> None:
    seeds = attempt(lambda: parse_seeds([text]))
    assert seeds is None or all(0 <= seed < 2**31 for seed in seeds)
    attempt(lambda: parse_launcher(text))


edits = st.one_of(
    st.binary(max_size=200),
    values.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from(sorted(make())), values).map(
        lambda edit: json.dumps({**make(), edit[0]: edit[1]}).encode()
    ),
    st.tuples(st.integers(0, 3000), st.binary(max_size=20)).map(
        lambda cut: (raw := json.dumps(make()).encode())[: cut[0]] + cut[1] + raw[cut[0] + 2 :]
    ),
)


@FUZZ
@given(edits)
def test_records(raw: bytes) -> None:
    """No file that `Store.write` has not made is ever served."""
    store = Store(FOLDER)
    path = FOLDER / f"{'a' * 8}--rope--ppl--64--{make()['key'][:12]}.json"
    path.write_bytes(raw)
    records, problems = store.read_all()
    assert records == []
    assert len(problems) == 1
    assert "\n" not in problems[0]
    assert store.get(make()["key"]) is None


@FUZZ
@given(st.one_of(st.binary(max_size=300), st.lists(values, max_size=4)))
def test_json_lines(content: bytes | list[Any]) -> None:
    path = FOLDER / "lines" / "hotpotqa.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else lines(content))
    text = attempt(lambda: load_text(str(path)))
    assert text is None or all(document.strip() for document in text.documents)
    attempt(lambda: read_questions(str(path), "hotpotqa", ["hotpotqa.jsonl"], ["hotpotqa"]))
    attempt(lambda: score_folder(path.parent))


def lines(content: list[Any]) -> bytes:
    good = {"pred": "a", "answers": ["a"], "all_classes": None, "length": 3, "text": "b"}
    rows = [row if not isinstance(row, dict) else {**good, **row} for row in content]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200),
        st.dictionaries(
            st.one_of(
                st.sampled_from(("models", "methods", "lengths", "tasks", "seeds", "data")), words
            ),
            st.one_of(values, st.lists(st.one_of(specs, values), max_size=3)),
            max_size=5,
        ),
    )
)
def test_grids(content: bytes | dict[str, Any]) -> None:
    path = FOLDER / "grid.yaml"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    base = EvaluationRequest(Source("tiny"), (), (), ())
    requests = attempt(lambda: read_grid(path, base))
    assert requests is None or all(request.lengths for request in requests)


@FUZZ
@given(st.one_of(words, pieces))
def test_names(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]*", name)
    assert len(name) <= 64
    assert "--" not in name
    assert ".." not in name
    assert printable(text).isprintable()


FOLDER = Path()


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    globals()["FOLDER"] = tmp_path_factory.mktemp("fuzz")


def test_a_list_of_yaml_aliases_does_not_grow() -> None:
    """Nine lists of nine of the one before: a reader that copies them needs 9^9 entries."""
    names = "abcdefghi"
    nested = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    path = FOLDER / "bomb.yaml"
    path.write_text("\n".join(["a: &a [x]", *nested, "lengths: *i"]))
    with pytest.raises(UsageError, match="unknown key 'a'"):
        read_grid(path, EvaluationRequest(Source("tiny"), (), (), ()))
