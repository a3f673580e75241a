"""lm_eval's model, in whose batches are only rows that read by the same frequencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM

from ctxext.engine.pinned import alike, pinned, unswitched

_MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class SequenceLM(HFLM):  # type: ignore[misc]
    """HFLM, but that each sequence has one length where an unpatched model's own scaling goes by
    it: what is read for a likelihood, or the prompt with the longest answer."""

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[Any]:
        def read(request: Any) -> int:
            return min(len(request[1]) + len(request[2]) - 1, int(self.max_length))

        return self._apart(requests, read, super()._loglikelihood_tokens, options)

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        """The answers, in the order of the requests."""

        def held(request: Any) -> int:
            prompt, given = request.args
            most = next((given[key] for key in _MOST if given.get(key)), self.max_gen_toks)
            return min(len(self.tok_encode(prompt)) + int(most), int(self.max_length))

        answer = super().generate_until

        def written(some: list[Any], **options: Any) -> list[str]:
            with unswitched(self.model):
                found: list[str] = answer(some, **options)
                return found

        return self._apart(requests, held, written, options)

    def _apart(
        self,
        requests: list[Any],
        length: Callable[[Any], int],
        answer: Callable[..., list[Any]],
        options: dict[str, Any],
    ) -> list[Any]:
        """What is answered to the requests, those together that are alike."""
        found: dict[int, Any] = {}
        numbers = range(len(requests))
        for tokens, some in alike(self.model, numbers, lambda n: length(requests[n])):
            with pinned(self.model, tokens):
                answers = answer([requests[n] for n in some], **options)
            found.update(zip(some, answers, strict=True))
        return [found[n] for n in numbers]
