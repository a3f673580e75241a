"""STRING."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.errors import UsageError
from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between


@register("string")
@dataclass(frozen=True)
class String(Distance):
    """STRING: far keys come nearer by a constant, to distances that training has seen more often.

    Formula: relative position δ if δ < S, else δ − S + W

    Source: STRING, arXiv 2410.18745, as its vLLM port has it; its code for transformers sharpens
    logits, as `string+mscale:factor=2` does, and sees the key at δ = S twice in a prefill

    Parameters: shift (S, tokens, at least 1; default 0.33 L, or L − T + W where that is more, but
    T at most), local (W, tokens, 1 to S; default 128, but T/4 and S
    at most)

    Inside T: identity up to S; keys from there on are seen nearer, where others are as well.

    Beyond T: its authors stay within T; here S grows with L, up to T, so that relative positions
    stay within T up to 2T − W tokens. Further on they leave it, and loss climbs with them.
    """

    shift: int | None = None
    local: int | None = None

    def __post_init__(self) -> None:
        require(self.shift is None or self.shift >= 1, "shift", self.shift, "at least 1")
        require(self.local is None or self.local >= 1, "local", self.local, "at least 1")
        if self.shift is not None and self.local is not None:
            require(self.local <= self.shift, "local", self.local, f"at most shift, {self.shift}")

    def resolve(self, span: Span) -> String:
        """W = 128, where T has room for it, and S = 0.33 L, or as much as L needs, by default."""
        third = max(1, min(33 * (span.length or span.trained) // 100, span.trained))
        local = self.local or max(1, min(128, span.trained // 4, self.shift or third))
        needed = (span.length or 0) - span.trained + local
        shift = self.shift or max(third, min(needed, span.trained))
        if local > shift:
            raise UsageError(f"local {local} is above {shift}: give a smaller local, or shift")
        return dataclasses.replace(self, shift=shift, local=local)

    def search(self, span: Span) -> dict[str, Range] | None:
        """S from T/4 to T, W up to T/4."""
        return {
            "shift": tokens_between(span.trained / 4, span.trained),
            "local": tokens_between(1, span.trained / 4),
        }

    def parts(self) -> tuple[Part, ...]:
        """Far queries stand S − W before where they are, keys where they are."""
        shift, local = self.resolved("shift", "local")
        return (
            Part(0, shift, identity, identity),
            Part(shift, None, lambda q: q - (shift - local), identity),
        )
