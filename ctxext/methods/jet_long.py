"""Jet-Long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between


@register("jet-long")
@dataclass(frozen=True)
class JetLong(Distance):
    """Jet-Long: exact positions for the last keys, those of whole groups of tokens beyond.

    Formula: relative position δ if δ ≤ w, else ⌊q/G⌋ − ⌊k/G⌋ (q and k counted from 0)

    Source: Jet-Long, arXiv 2607.07740, its jetlong, with L in place of the length so far

    Parameters: window (w, tokens, at least 1, the last near distance; default T/16), group (G,
    tokens, at least 1; default ⌈L/T⌉)

    Inside T: identity at G = 1; above, keys more than w back are seen G times nearer, by early
    queries too.

    Beyond T: relative positions stay below T up to G·T; keys just beyond w come nearer than those
    at w.
    """

    absolute = True

    window: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        require(self.group is None or self.group >= 1, "group", self.group, "at least 1")

    def resolve(self, span: Span) -> JetLong:
        """w = T/16 and G = ⌈L/T⌉ by default."""
        group = self.group or -(-span.need_length("group") // span.trained)
        window = self.window or max(1, span.trained // 16)
        return dataclasses.replace(self, window=window, group=group)

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/64 to T, G up to four times as large as L/T."""
        return {
            "window": tokens_between(span.trained / 64, span.trained),
            "group": tokens_between(1, 4 * span.stretch()),
        }

    def parts(self) -> tuple[Part, ...]:
        """Far queries stand at ⌊q/G⌋, far keys at ⌊k/G⌋."""
        window, group = self.resolved("window", "group")
        near = window + 1
        return (
            Part(0, near, identity, identity),
            Part(near, None, lambda q: q // group, lambda k: k // group),
        )
