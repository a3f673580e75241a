"""LongBench's truncation: a prompt that is too long loses its middle.

The rule of pred.py (github.com/THUDM/LongBench): of a prompt of more than `budget` tokens the
first and the last half budget are kept and put back into text, the chat template is wrapped
around that text, and the result is tokenised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxext.errors import UsageError, short

_LEAST = 2  # tokens: one of each half


class TooShort(Exception):
    """No cut of the prompt fits; `need` is the tokens of the shortest."""

    def __init__(self, need: int) -> None:
        super().__init__(need)
        self.need = need


@dataclass(frozen=True)
class Cutter:
    """Prompts as token ids of at most `budget`, with the chat template where `chat`."""

    tokenizer: Any
    budget: int
    chat: bool

    def cut(self, text: str) -> tuple[Sequence[int], bool]:
        """The prompt's ids, and whether it lost its middle.

        Where the template, or tokenising anew, makes the result longer than the budget, halves
        are taken again from the original ids with the budget less the excess.

        Raises:
            TooShort: not even a token of each half fits.
        """
        whole = self._encode(text)
        if len(whole) <= self.budget:
            ids = self._prompt(text) if self.chat else whole
            if len(ids) <= self.budget:
                return ids, False
            keep = len(whole) - (len(ids) - self.budget)
        else:
            keep = self.budget
        while True:
            half = max(keep, _LEAST) // 2
            ids = self._prompt(self._decode(whole[:half]) + self._decode(whole[-half:]))
            if len(ids) <= self.budget:
                return ids, True
            if keep <= _LEAST:
                raise TooShort(len(ids))
            keep -= len(ids) - self.budget

    def _prompt(self, text: str) -> Sequence[int]:
        if not self.chat:
            return self._encode(text)
        wrapped = self._wrap(text)
        start = self.tokenizer.bos_token
        return self._encode(wrapped, special=not (start and wrapped.startswith(start)))

    def _encode(self, text: str, special: bool = True) -> Sequence[int]:
        ids: Sequence[int] = self.tokenizer(
            text, add_special_tokens=special, verbose=False
        ).input_ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _wrap(self, text: str) -> str:
        """The text as a user's one message, up to where the answer starts."""
        message = [{"role": "user", "content": text}]
        try:
            wrapped = str(
                self.tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True
                )
            )
            if text.strip() not in wrapped:
                raise ValueError("it leaves the prompt out, or changes it")
            return wrapped
        except Exception as error:
            reason = short(error, 200)
            raise UsageError(
                f"the tokenizer's chat template cannot be used: {reason}: give chat=false"
            ) from error
