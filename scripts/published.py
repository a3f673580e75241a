"""README's links and images absolute, and the project's URLs in pyproject.toml, for the page on the
package index: the publish workflow runs this in its own checkout, where the address is known."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def absolute(readme: str, repository: str, tag: str) -> str:
    """README with links to a repository's files at a tag, and images as they are served."""
    at = rf"{repository}/{tag}/"
    readme = re.sub(
        r"(!\[[^]]*]\()(?!https?:|#)", rf"\g<1>https://raw.githubusercontent.com/{at}", readme
    )
    links = rf"\g<1>https://github.com/{repository}/blob/{tag}/"
    return re.sub(r"(\[[^]]*]\()(?!https?:|#)", links, readme)


def urls(repository: str, tag: str) -> str:
    """A table for pyproject.toml."""
    home = f"https://github.com/{repository}"
    return f"""
[project.urls]
Repository = "{home}"
Issues = "{home}/issues"
Changelog = "{home}/blob/{tag}/CHANGELOG.md"
Documentation = "{home}/tree/{tag}/docs"
"""


def main() -> None:
    """Write both in place."""
    where = os.environ["GITHUB_REPOSITORY"], os.environ["GITHUB_REF_NAME"]
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(absolute(readme.read_text("utf-8"), *where), "utf-8")
    project.write_text(project.read_text("utf-8") + urls(*where), "utf-8")


if __name__ == "__main__":
    main()
