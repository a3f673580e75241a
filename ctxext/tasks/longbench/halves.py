"""LongBench's truncation: a prompt that is too long loses its middle.

The rule of pred.py (github.com/THUDM/LongBench): of a prompt of more than `budget` tokens the
first and the last half budget are kept and put back into text, the chat template is wrapped
around that text, and the result is tokenised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctxext.models.prompting import Prompter

_LEAST = 2  # tokens: one of each half


class TooShort(Exception):
    """No cut of the prompt fits; `need` is the tokens of the shortest."""

    def __init__(self, need: int) -> None:
        super().__init__(need)
        self.need = need


@dataclass(frozen=True)
class Cutter:
    """Prompts as token ids of at most `budget`."""

    prompter: Prompter
    budget: int

    def cut(self, text: str) -> tuple[Sequence[int], bool]:
        """The prompt's ids, and whether it lost its middle.

        Where the template, or tokenising anew, makes the result longer than the budget, halves
        are taken again from the original ids with the budget less the excess.

        Raises:
            TooShort: not even a token of each half fits.
        """
        whole = self.prompter.plain(text)
        if len(whole) <= self.budget:
            ids = self.prompter.ids(text) if self.prompter.chat else whole
            if len(ids) <= self.budget:
                return ids, False
            keep = len(whole) - (len(ids) - self.budget)
        else:
            keep = self.budget
        opened = len(self.prompter.frame.before)
        while True:
            half = max(keep, _LEAST) // 2
            ids = self.prompter.ids(self._decode(whole[opened:half]) + self._decode(whole[-half:]))
            if len(ids) <= self.budget:
                return ids, True
            if keep <= _LEAST:
                raise TooShort(len(ids))
            keep -= len(ids) - self.budget

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.prompter.tokenizer.decode(ids, skip_special_tokens=True))
