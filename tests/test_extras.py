"""Packages that only some tasks need: imported where they are used, and named where they lack."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import ctxext
from ctxext import tasks
from ctxext.system import extras
from ctxext.tasks.ruler import lexicon
from ctxext.tasks.scoring import metrics

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.quick

ROOT = Path(ctxext.__file__).parent
ROW = {"input": "", "context": "", "answers": ["a"], "all_classes": ["a"], "length": 1}


@pytest.mark.parametrize(
    ("package", "spec"),
    [
        ("jieba", "longbench:dureader"),
        ("rouge", "longbench:gov_report"),
        ("rapidfuzz", "longbench:lcc"),
        ("wonderwords", "ruler:cwe"),
        ("lm_eval", "lm-eval:hellaswag"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    package: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in (metrics._segment, metrics._segmenter, lexicon.lexicon):
        cache.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    task: Any = tasks.parse(spec)
    (tmp_path / f"{task.task}.jsonl").write_text(json.dumps(ROW))
    extra = spec.partition(":")[0]
    with pytest.raises(extras.NotInstalledError) as error:
        task.read(str(tmp_path))
    assert str(error.value).endswith(f" needs {package}: pip install 'ctxext[{extra}]'")
    assert "\n" not in str(error.value)


def test_none_is_imported_before_it_is_used() -> None:
    """But where lm_eval's own model is made another, which lm_eval imports."""
    found = {}
    for file in ROOT.rglob("*.py"):
        for node in ast.parse(file.read_text("utf-8")).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            heads = {str(name).partition(".")[0] for name in names}
            if heads & {*extras.NEEDS}:
                found[file.relative_to(ROOT).as_posix()] = heads
    assert set(found) == {"tasks/lm_eval/model.py", "tasks/lm_eval/sequences.py"}


def test_extras_bring_what_their_messages_say() -> None:
    file = ROOT.parent / "pyproject.toml"
    if not file.is_file():
        pytest.skip("ctxext is installed without its pyproject.toml")
    project = tomllib.loads(file.read_text("utf-8"))["project"]
    some = project["optional-dependencies"]
    brought = {name: {Requirement(one).name for one in of} for name, of in some.items()}
    plain = {Requirement(one).name for one in project["dependencies"]}
    (whole,) = map(Requirement, some["all"])
    assert "ctxext[all]" in some["dev"]
    for package, (_, extra) in extras.NEEDS.items():
        assert package in brought[extra]
        assert package not in plain
        assert extra in whole.extras
