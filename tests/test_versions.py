"""Numbers of another version are not taken for today's, and none change without a new version.

`python tests/test_versions.py` renews `numbers.json`, which has what is measured at each version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from test_eval import letters, runner, save_model

from ctxext import engine, patches, tasks
from ctxext.errors import UsageError
from ctxext.measure import session
from ctxext.measure.loaded import Loaded
from ctxext.measure.run import Evaluation
from ctxext.methods.base import AttentionRule, Distance, Frequency, QueryScale, Rotary, Span
from ctxext.models.loading import Source
from ctxext.request import cells as plan
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.lists import parse_methods, parse_tasks
from ctxext.tasks.base import Row, TokenScores
from ctxext.tasks.scoring import longbench

TRAINED, LENGTH = 32, 128  # of the tables of methods, in tokens
LONG = 2048  # of the prompts
ROTARY = Rotary(tuple(1e4 ** (-i / 8) for i in range(8)), 1e4, TRAINED)
ROOT = Path(__file__).parent.parent
PINNED = ROOT / "tests" / "numbers.json"
RENEW = "run `python tests/test_versions.py`, and commit numbers.json"
PLAIN = ("--model", "plain", "--data", "t.txt", "--len", "64", "--limit", "2", "--json")


def digest(value: Any) -> str:
    """Twelve digits of numbers to nine places, texts and lists."""
    text = json.dumps(value, sort_keys=True, default=list)
    rounded = json.loads(text, parse_float=lambda number: f"{float(number):.9g}")
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:12]


def table(name: str, folder: Path) -> Any:
    """All that a method says of a model of 8 pairs."""
    text = name
    if name == "longrope":
        lists = {"short_factor": [1.0] * 8, "long_factor": [1.5 + i for i in range(8)]}
        (folder / "longrope.json").write_text(json.dumps(lists))
        text = f"longrope:factors=@{folder / 'longrope.json'}"
    (method,) = patches.parse(text).resolve(Span(TRAINED, LENGTH)).methods
    if isinstance(method, Frequency):
        return method.scales(ROTARY), method.attention_factor_on(ROTARY)
    if isinstance(method, Distance):
        at = torch.arange(LENGTH, dtype=torch.float64)
        return [
            (p.start, p.stop, p.unit, p.first, p.query(at).tolist(), p.key(at).tolist())
            + (p.factor,) * (p.factor != 1)
            for p in (part.on(ROTARY) for part in method.parts())
        ]
    if isinstance(method, AttentionRule):
        scores = 5 * torch.sin(torch.arange(float(LENGTH**2), dtype=torch.float64) * 0.7)
        place = torch.arange(1, LENGTH + 1).expand(LENGTH, -1).tril()[None, None]
        return method.sharper(scores.view(1, 1, LENGTH, LENGTH), place, TRAINED).flatten().tolist()
    assert isinstance(method, QueryScale)
    return method.scale_on(torch.arange(1.0, LENGTH + 1), TRAINED, 16).tolist()


TEXT = " ".join(f"Sentence number {i} ends {'here ' * (i % 7)}now." for i in range(1500))


def files(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Tasks by name, and data that does not differ between machines."""
    from test_ruler import hotpot, squad

    (folder / "t.txt").write_text(TEXT)
    (folder / "longbench").mkdir()
    for name in longbench.TASKS:
        row = {"input": "What is it?", "context": TEXT[:3000], "length": 9}
        numbered = {"passage_retrieval_en": "Paragraph 3", "passage_retrieval_zh": "段落3"}
        row["answers"] = [numbered.get(name, "3")]
        row |= {"dataset": name, "language": "en", "all_classes": ["3", "number"], "_id": "1"}
        for end in ("", "_e"):
            path = folder / "longbench" / f"{name}{end}.jsonl"
            path.write_text("".join(json.dumps({**row, "_id": str(i)}) + "\n" for i in range(2)))
    data = {
        **dict.fromkeys(("longbench", "longbench-e"), str(folder / "longbench")),
        **dict.fromkeys(("passkey", "kv"), None),
        "ruler:qa_1": str(squad(folder)),
        "ruler:qa_2": str(hotpot(folder)),
    }
    found = {}
    for name in (n for n in tasks.names() if n != "lm-eval"):  # whose key has its own configs
        for member in tasks.REGISTRY.get(name).members() or [""]:
            spec = f"{name}:{member}" if member else name
            found[spec] = spec, data.get(spec, data.get(name, str(folder / "t.txt")))
    return found


def measured(spec: str, data: str | None, folder: Path, loaded: Loaded) -> Any:
    """What the tiny model is asked, and the number that pinned answers or losses get."""
    asked: list[Any] = []

    def answers(model: Any, tokenizer: Any, samples: Any, limits: Any, *_: Any) -> Iterator[Row]:
        asked.append(list(limits))
        for n, sample in enumerate(sorted(samples, key=lambda one: one.name)):
            facts = [sample.facts.get(name) for name in ("all_classes", "depth", "length")]
            asked.append([sample.name, list(map(int, sample.ids)), list(sample.answers), facts])
            pred = f"{sample.answers[0]} and more" if n % 2 == 0 else "none"
            yield session.row_of(sample, pred, 1.0, 1.0)

    def score(model: Any, windows: Any, *_: Any) -> TokenScores:
        asked.append([windows.ids().tolist(), windows.scored().tolist()])
        window, position = (x.numpy() for x in windows.scored().nonzero(as_tuple=True))
        nll = 1 + np.sin(np.arange(len(window)))
        return TokenScores(windows.length, window, position + 1, nll, nll < 1)

    request = EvaluationRequest(
        Source("tiny", device="cpu"),
        parse_methods([]),
        (LONG,),
        parse_tasks([spec]),
        data=data,
        limit=2,
        out=folder / "out",
    )
    with (
        mock.patch.object(session, "answers", answers),
        mock.patch.object(session.reading, "score", score),
    ):
        (record,) = Evaluation([request], loaded=loaded).run()
    assert record["status"] == "ok", record["reason"]
    assert asked
    return asked, record["value"], record["stderr"], record["windows"]


def today(folder: Path) -> dict[str, tuple[int, str]]:
    """The version and the digest of everything."""
    found, loaded = {}, Loaded()
    for name in patches.names():
        version = patches.REGISTRY.get(name).version
        found[f"method {name}"] = version, digest(table(name, folder))
    for name, (spec, data) in files(folder).items():
        (task,) = parse_tasks([spec])
        found[f"task {name}"] = task.version, digest(measured(spec, data, folder, loaded))
    return found


def test_numbers_do_not_change_without_a_version(tmp_path: Path) -> None:
    found, pinned = today(tmp_path), json.loads(PINNED.read_text())
    for name, (version, said) in found.items():
        assert name in pinned, f"{name} is new: {RENEW}"
        before, known = pinned[name]
        assert version > before or said == known, (
            f"what {name} measures has changed: raise its version above {before}, then {RENEW}"
        )
        assert [version, said] == [before, known], f"the version of {name} is {version}: {RENEW}"
    assert found.keys() == pinned.keys(), RENEW


def test_keys_of_first_versions_are_what_they_were() -> None:
    """A record that was committed before there were any."""
    packed = (ROOT / "results" / "tiny" / "records.jsonl").read_text("utf-8")
    record = next(
        one
        for one in map(json.loads, packed.splitlines())
        if (one["requested"], one["metric"], one["length"]) == ("ntk", "passkey", 512)
    )
    assert "version_of" not in record
    request = EvaluationRequest(
        Source("tiny", device="cpu", dtype=record["dtype"]),
        parse_methods([record["requested"]]),
        (record["length"],),
        parse_tasks([record["task"]]),
        limit=record["limit"],
        seeds=(record["seed"],),
    )
    assert record["key"] in plan.make(request).keys


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("owner", "name", "what", "count"),
    [
        (patches.REGISTRY.get("ntk"), "version", "method ntk", 1),
        (tasks.REGISTRY.get("acc"), "version", "task acc", 3),
        (engine, "VERSION", "the engine", 3),
    ],
    ids=["method", "task", "engine"],
)
def test_a_record_of_an_older_version_is_not_taken(
    owner: Any,
    name: str,
    what: str,
    count: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runner(monkeypatch, capsys)
    asked = ("eval", *PLAIN, "--method", "ntk:factor=2", "--task", "acc")
    asked = (*asked, "--method", "pi:factor=2")
    before = run(*asked)
    assert before.code == 0, before.err
    monkeypatch.setattr(owner, name, 2)
    said = f"records that are not taken, of version 1 of {what}, now 2: {count}"
    assert said in run(*asked, "--dry-run").err.splitlines()
    ran = run(*asked)
    assert ran.code == 0, ran.err
    assert said in ran.err.splitlines()
    assert len(list(here.glob("results/*.json"))) == 3 + count
    assert [record["version_of"].get(what) for record in ran.records].count(2) == count
    again = run(*asked)
    assert again.records == ran.records
    assert "not taken" not in again.err


@pytest.mark.parametrize("bad", [0, "2", 1.5, True, None])
def test_a_version_is_a_whole_number(bad: Any) -> None:
    for registry, base in ((patches.REGISTRY, Frequency), (tasks.REGISTRY, tasks.base.TokenTask)):
        odd = dataclasses.dataclass(frozen=True)(type("Odd", (base,), {"version": bad}))
        with pytest.raises(UsageError, match=r"'odd' has the version .*: give a whole number"):
            registry.register("odd")(odd)
        assert "odd" not in registry.names()


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as box:
        lines = [f"{json.dumps(key)}: {json.dumps(pin)}" for key, pin in today(Path(box)).items()]
        PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
