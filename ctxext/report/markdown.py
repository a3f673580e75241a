"""Tables and words in Markdown, in which every name is plain text."""

from __future__ import annotations

from collections.abc import Sequence

from ctxext.system.names import printable

_TEXT = {ord(c): f"\\{c}" for c in "`*_[]~$"} | {ord(c): f"&#{ord(c)};" for c in "&<>|\\"}


def escape(text: str) -> str:
    """One line in which nothing is Markdown's or HTML's."""
    return printable(text).translate(_TEXT)


def table(
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (0,),
) -> str:
    """A GitHub table under a heading; its cells are Markdown already.

    Args:
        left: the columns that are aligned to the left.
    """
    sides = ["---" if number in left else "---:" for number in range(len(header))]
    body = "\n".join(f"| {' | '.join(line)} |" for line in (header, sides, *rows))
    return f"### {escape(title)}\n\n{body}\n\n{escape(caption)}\n"
