"""Text that every CPython carries, split into what the tiny model trained on and what it never saw.

The standard library's source and the language topics behind ``help()`` are the corpus that is at
hand on any machine, offline. The shipped model was trained on the rest of it; the documents named
here were held out, so they are the honest text to measure it on. Names are fixed in this file, so
the split is the same on CPython 3.10 to 3.14, while the text follows the running version.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: Modules whose source the tiny model never saw, each one file in CPython 3.10 to 3.14.
HELD_OUT_MODULES = (
    "textwrap",
    "statistics",
    "shutil",
    "argparse",
    "difflib",
    "mailbox",
    "smtplib",
    "subprocess",
    "tarfile",
    "doctest",
    "unittest.mock",
)

#: Topics of ``pydoc_data.topics`` that the tiny model never saw.
HELD_OUT_TOPICS = (
    "formatstrings",
    "string-methods",
    "debugger",
    "typesseq",
    "typesmapping",
    "comparisons",
    "execmodel",
    "strings",
    "import",
    "operator-summary",
    "calls",
    "compound",
)

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
)
_SHARED_PARAGRAPH = 80  # characters from which an equal paragraph makes two topics overlap


def stdlib_documents(held_out: bool) -> list[tuple[str, str]]:
    """The (name, text) of the standard library's documents on one side of the split.

    Held out: the topics and modules named above, alternating, so that the first 200 KB are a fair
    mix of prose and code. Otherwise: every other topic and source file, in sorted order, without
    the topics that repeat paragraphs of a held-out one and without the library's own tests.
    Files that cannot be read or decoded are skipped.
    """
    topics = _topics()
    if held_out:
        return _held_out_documents(topics)
    held_paragraphs = {p for name in HELD_OUT_TOPICS for p in _paragraphs(topics.get(name, ""))}
    documents = [
        (f"topic:{name}", text)
        for name, text in sorted(topics.items())
        if name not in HELD_OUT_TOPICS and held_paragraphs.isdisjoint(_paragraphs(text))
    ]
    for module, path in _source_files():
        if module not in HELD_OUT_MODULES and (text := _read(path)):
            documents.append((f"module:{module}", text))
    return documents


def _held_out_documents(topics: dict[str, str]) -> list[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    documents: list[tuple[str, str]] = []
    for i in range(max(len(HELD_OUT_TOPICS), len(HELD_OUT_MODULES))):
        if i < len(HELD_OUT_TOPICS) and (text := topics.get(HELD_OUT_TOPICS[i])):
            documents.append((f"topic:{HELD_OUT_TOPICS[i]}", text))
        if i < len(HELD_OUT_MODULES):
            module = HELD_OUT_MODULES[i]
            if text := _read(library / (module.replace(".", "/") + ".py")):
                documents.append((f"module:{module}", text))
    return documents


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(topics)


def _paragraphs(text: str) -> set[str]:
    """The paragraphs long enough to tell, with their white space evened out."""
    blocks = (" ".join(block.split()) for block in text.split("\n\n"))
    return {block for block in blocks if len(block) >= _SHARED_PARAGRAPH}


def _source_files() -> Iterator[tuple[str, Path]]:
    """(dotted module, path) of the library's files, sorted; the build's own records left out."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda p: p.relative_to(library).as_posix()):
        relative = path.relative_to(library)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not path.name.startswith("_sysconfig"):
            yield ".".join(relative.with_suffix("").parts), path


def _read(path: Path) -> str:
    """The file's text, or nothing where it cannot be read or decoded."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
