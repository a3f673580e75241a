"""The site: pages link to where files stand on it, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("hook", ROOT / "scripts" / "mkdocs_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("index.md", "docs/tasks.md#tasks", "tasks.md#tasks"),
        ("index.md", "results/real/tables.md", "results/real/tables.md"),
        ("records.md", "../ctxext/records/schema.json", "ctxext/records/schema.json"),
        ("records.md", "../README.md", "index.md"),
        ("examples/README.md", "../docs/paper.md", "../paper.md"),
        ("tasks.md", "https://a.b/c", "https://a.b/c"),
        ("tasks.md", "gone.md", "gone.md"),
    ],
)
def test_links_lead_to_where_files_stand(hook: Any, page: str, link: str, moved: str) -> None:
    at = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hook.on_page_markdown(f"[x]({link})", at, None, None) == f"[x]({moved})"


def test_each_page_has_a_place_in_the_menu(hook: Any) -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    nav = yaml.safe_load(text)
    config = hook.on_config(SimpleNamespace(nav=[*nav[:-1]]))
    assert config.nav == [*nav[:-1], *nav[-1].values()]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
    reason="needs ctxext[docs]; `make docs` and CI's job of that name build the site",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "which-method" / "index.html").exists()


def test_the_index_shows_where_links_and_images_lead() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    published = runpy.run_path(str(ROOT / "scripts" / "published.py"))
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = published["absolute"](readme, "some/where", "v1")
    before, after = (re.findall(r"(!?)\[[^]]*]\(([^)]*)\)", text) for text in (readme, shown))
    assert len(before) == len(after)
    for (image, path), (_, link) in zip(before, after, strict=True):
        assert (ROOT / path.partition("#")[0]).exists()
        start = (
            "raw.githubusercontent.com/some/where/v1" if image else "github.com/some/where/blob/v1"
        )
        assert link == f"https://{start}/{path}"
    project = (ROOT / "pyproject.toml").read_text("utf-8") + published["urls"]("some/where", "v1")
    assert (
        tomllib.loads(project)["project"]["urls"]["Repository"] == "https://github.com/some/where"
    )


def test_a_release_is_built_with_its_addresses() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
    steps = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert steps.index("python scripts/published.py") < steps.index("python -m build")
