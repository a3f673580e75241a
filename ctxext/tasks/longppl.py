"""Perplexity of the tokens that a long context helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ctxext.errors import UsageError
from ctxext.tasks import register
from ctxext.tasks.base import Helped, Score, TokenScores, TokenTask
from ctxext.tasks.ppl import perplexity

_MOST = 4096  # tokens of short context of the published script
_PARTS = 4  # strides of a short context, as there


@register("longppl")
@dataclass(frozen=True)
class LongPerplexity(TokenTask):
    """Perplexity of those tokens of the windows of `ppl` that a long context helps (LongPPL, arXiv
    2410.23771): an evaluator gains more than `alpha` nats on such a token from all that stands
    before it in its window over the last `short` to `short` + `stride` − 1 tokens of that, and
    loses less than `beta` nats then. The evaluator is the model itself, as loaded and without a
    method, or another; beyond its own trained length T it reads the last T − `stride` to T − 1
    tokens, so that what only a longer context would help does not count.
    """

    metric = "perplexity"
    higher_is_better = False
    evaluator: str | None = field(
        default=None,
        metadata={"help": "evaluator (alias, Hub id, folder or GGUF file; default the model)"},
    )
    short: int | None = field(
        default=None,
        metadata={"help": f"short (tokens of short context; default T/2, at most {_MOST})"},
    )
    stride: int | None = field(
        default=None,
        metadata={"help": "stride (tokens that share a short context; default short/4)"},
    )
    alpha: float = field(default=2.0, metadata={"help": "alpha (nats gained; default 2)"})
    beta: float = field(default=2.0, metadata={"help": "beta (nats lost at most; default 2)"})

    def resolve(self, trained: int, lengths: Sequence[int]) -> LongPerplexity:
        """Short contexts settled; UsageError where a window has nothing more."""
        short = self.short or max(1, min(_MOST, trained // 2))
        if short >= min(lengths):
            raise UsageError(
                f"{self} cannot be measured at length {min(lengths)}: no token has more before it "
                f"than the short context of {short}: give a smaller short, or longer lengths"
            )
        return replace(self, short=short, stride=self.stride or max(1, short // _PARTS))

    def reads(self, length: int, limit: int) -> int:
        """As for `ppl`."""
        return limit * length

    @property
    def helped(self) -> Helped:
        """How the tokens that count are found."""
        assert self.short is not None
        assert self.stride is not None
        return Helped(self.evaluator, self.short, self.stride, self.alpha, self.beta)

    def summarise(self, scores: TokenScores) -> Score:
        """exp of the mean loss over the tokens that count."""
        return perplexity(scores)
