"""The hook of mkdocs.yml: README is the site's first page, and what pages link to outside docs/
comes along, so that one text serves the repository and the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
WEB = re.compile(r"[a-z]+:")


def place(path: Path) -> str:
    """Where a file of the repository stands on the site."""
    if path == ROOT / "README.md":
        return "index.md"
    return path.relative_to(DOCS if DOCS in path.parents else ROOT).as_posix()


def source(page: str) -> Path:
    """The file of the repository that a page of the site is."""
    if page == "index.md":
        return ROOT / "README.md"
    return DOCS / page if (DOCS / page).exists() else ROOT / page


def linked(path: Path) -> list[Path]:
    """The files that a page links to."""
    found = LINK.findall(CODE.sub("", path.read_text(encoding="utf-8")))
    targets = ((path.parent / link).resolve() for _, link, _ in found if not WEB.match(link))
    return [target for target in targets if target.is_file()]


def on_config(config: Any) -> Any:
    """Put pages that mkdocs.yml gives no place in the menu at its end."""
    placed = {str(*entry.values()) if isinstance(entry, dict) else entry for entry in config.nav}
    config.nav += [page.name for page in sorted(DOCS.glob("*.md")) if page.name not in placed]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add README, and whatever is linked to outside docs/, with what that links to."""
    from mkdocs.structure.files import File

    new, seen = {ROOT / "README.md", *DOCS.glob("*.md")}, set[Path]()
    while new:
        seen |= new
        pages = [path for path in new if path.suffix == ".md"]
        new = {target for path in pages for target in linked(path)} - seen
    for path in sorted(path for path in seen if DOCS not in path.parents):
        files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to where files stand on the site."""
    path = source(page.file.src_uri)
    folder = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        head, link, anchor = match.groups()
        target = (path.parent / link).resolve()
        if WEB.match(link) or not target.exists():
            return match[0]  # which mkdocs checks
        return f"{head}{os.path.relpath(place(target), folder or '.')}{anchor or ''}"

    return LINK.sub(moved, markdown)
