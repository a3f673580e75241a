"""The examples do what they say, on the shipped model."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SHELL = shutil.which("sh") if os.name == "posix" else None

needs_shell = pytest.mark.skipif(SHELL is None, reason="there is no POSIX shell")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples to run in, where `ctxext` is this one."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    tool = tmp_path / "bin" / "ctxext"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ctxext "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def sh(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SHELL), script.name],
        cwd=script.parent,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=280,
    )


@needs_shell
def test_a_comparison_is_a_table_and_plots(place: Path) -> None:
    done = sh(place / "compare.sh", LENGTHS="512", TOKENS="1k")
    assert done.returncode == 0, done.stderr
    assert "rerope+logn" in done.stdout
    made = {path.name for path in (place / "comparison").iterdir()}
    assert {"tables.md", "loss-by-position--tiny--stdlib.png"} <= made


@needs_shell
def test_a_plan_tells_memory_engines_commands_and_cells(place: Path) -> None:
    done = sh(place / "plan.sh", LENGTH="1k", METHODS="yarn")
    assert done.returncode == 0, done.stderr
    assert "memory for 1 sequence of 1k, of 24.0 GiB (--gpu)" in done.stdout
    assert "vllm serve" in done.stdout
    assert "2 cells: 2 compute" in done.stdout.splitlines()[-1]
    assert not (place / "results").exists()


@needs_shell
def test_an_export_loads_without_code(place: Path) -> None:
    done = sh(place / "export.sh")
    assert done.returncode == 0, done.stderr
    assert (place / "exported" / "model.safetensors").exists()
    assert not list((place / "exported").glob("*.py"))
    assert "yarn" in done.stdout


@needs_shell
def test_a_gate_passes_twice_and_its_pytest_file_with_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sh(place / "gate.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("8 cells: 8 same\n")
    monkeypatch.setenv("BASELINE", str(place / "baseline"))
    runpy.run_path(str(place / "ci" / "test_regression.py"))["test_the_model_measures_as_it_did"]()


@needs_shell
def test_a_paper_has_its_table_and_figures(place: Path) -> None:
    done = sh(place / "paper" / "make.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    taken = re.findall(r"\\input\{(.*)\}", (place / "paper" / "paper.tex").read_text())
    assert taken
    for name in taken:
        assert (place / "paper" / f"{name}.tex").exists()
    if shutil.which("pdflatex") or shutil.which("tectonic"):
        assert (place / "paper" / "paper.pdf").stat().st_size > 10_000


def test_the_library_gives_tables_plots_and_a_loaded_model_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"OUT": str(tmp_path), "LENGTHS": "512", "METHODS": "rerope"}.items():
        monkeypatch.setenv(name, value)
    names = runpy.run_path(str(EXAMPLES / "evaluate.py"))
    assert "the best at 512 is r" in capsys.readouterr().out
    assert list(tmp_path.glob("loss-by-position--*.png"))
    by_name, loaded = (names[kind].to_dataframe()["value"] for kind in ("results", "loaded"))
    assert list(by_name) == list(loaded)


def test_the_page_on_papers_shows_the_example() -> None:
    page = (ROOT / "docs" / "paper.md").read_text("utf-8")
    [grid] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    ours = yaml.safe_load((EXAMPLES / "paper" / "grid.yaml").read_text("utf-8"))
    assert yaml.safe_load(grid) == ours


def test_the_workflow_is_one() -> None:
    workflow = yaml.safe_load((EXAMPLES / "ci" / "regression.yml").read_text("utf-8"))
    steps = workflow["jobs"]["check"]["steps"]
    assert any("ctxext check --baseline" in step.get("run", "") for step in steps)


def test_each_example_is_told_of() -> None:
    told = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or re.search(rf"]\({path.name}[/)]", told), path.name


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code in order, in this process; CI runs it in Jupyter too."""
    notebook = json.loads((EXAMPLES / "tiny.ipynb").read_text("utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "with rerope+logn" in capsys.readouterr().out
    assert len(names["frame"]) == 4  # type: ignore[arg-type]
