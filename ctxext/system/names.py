"""Names that come from outside, made harmless for files and terminals."""

from __future__ import annotations

import re

from ctxext.system.digests import sha256_of_text

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # by Windows


def safe_name(text: str, limit: int = 64) -> str:
    """A part of a file name: only [A-Za-z0-9._+=-], no "--", at most `limit` characters."""
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", text)
    name = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", name)).lstrip("-.")
    name = f"_{name}" if _RESERVED.match(name) else name
    return name[:limit].rstrip("-.") or "_"


def told_apart(text: str, limit: int = 64) -> str:
    """`safe_name`, with a digest at the end of one that was cut."""
    whole = safe_name(text, len(text) + 1)
    if len(whole) <= limit:
        return whole
    digest = sha256_of_text(text)
    return f"{whole[: limit - 9].rstrip('-.')}-{digest[:8]}"


def printable(text: str) -> str:
    """One line that is safe to print: control and other unprintable characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def encodable(text: str) -> str:
    """As UTF-8 has it: half a surrogate pair, as in the name of a file whose bytes are not of the
    locale's encoding, becomes "?"."""
    return text.encode("utf-8", "replace").decode()
