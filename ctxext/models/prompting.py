"""Text → the token ids of a prompt: what the tokenizer opens a text with, and nothing after it.

A tokenizer that closes every text, with an EOS or a separator, would have a model answer after an
end: a prompt ends as its task says. What a tokenizer adds is found by what it makes of a word with
and without, and by no name.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from ctxext.errors import ENDS_RUN, UsageError, short

_WORDS = ("a", "of 1", "的")  # one of which every vocabulary has
THINKING = "enable_thinking"  # the word by which templates are told
_MESSAGE = "Where does the river Inn rise?"


class Frame(NamedTuple):
    """The token ids that a tokenizer puts before and after a text by itself."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def frame(tokenizer: Any) -> Frame:
    """What the tokenizer adds; nothing where it takes the text itself apart in another way then."""
    for word in _WORDS:
        bare = encode(tokenizer, word, add_special_tokens=False)
        whole = encode(tokenizer, word)
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            end = start + len(bare)
            if whole[start:end] == bare:
                return Frame(tuple(whole[:start]), tuple(whole[end:]))
    return Frame()


def encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """The text's token ids; UsageError where the tokenizer fails, panics of its core included."""
    return list(encoding(tokenizer, text, **options).input_ids)


def encoding(tokenizer: Any, text: str, **options: Any) -> Any:
    """What the tokenizer makes of the text; errors as for `encode`."""
    try:
        return tokenizer(text, verbose=False, **options)
    except ENDS_RUN:
        raise
    except BaseException as error:
        name = getattr(tokenizer, "name_or_path", "")
        raise UsageError(
            f"the tokenizer of {name!r} ({type(tokenizer).__name__}) cannot encode the data: "
            f"{error}"
        ) from error


class Prompter:
    """Makes prompts of texts.

    Args:
        chat: whether a text is the one message of a user, put into the tokenizer's chat template,
            and answered from its generation prompt on; None for where there is a template.
        asked: what is told to leave out chat=true where there is none.

    Raises:
        UsageError: there is no template.
    """

    def __init__(self, tokenizer: Any, chat: bool | None = False, asked: object = "") -> None:
        has = bool(getattr(tokenizer, "chat_template", None))
        if chat and not has:
            raise UsageError(f"{asked}: the tokenizer has no chat template: leave chat=true out")
        self.tokenizer, self.chat = tokenizer, has and chat is not False

    @cached_property
    def frame(self) -> Frame:
        """What the tokenizer adds to a text."""
        return frame(self.tokenizer)

    @property
    def facts(self) -> dict[str, bool]:
        """What a sample's row says of the template: whether it is used, and, where it has a
        thinking mode, that this is off."""
        off = {"thinking": False} if self.chat and self._options else {}
        return {"chat": self.chat, **off}

    def ids(self, text: str, answer: str = "") -> list[int]:
        """The prompt's token ids.

        Args:
            answer: how the answer begins: it is told so, and goes on from there.

        Raises:
            UsageError: the template cannot be used, or leaves the text out or changes it.
        """
        if not self.chat:
            return self.plain(text + answer)
        ids = encode(self.tokenizer, self._wrap(text) + answer, add_special_tokens=False)
        return [*self._opening, *ids]

    def plain(self, text: str) -> list[int]:
        """The token ids of the text by itself, whether or not there is a template."""
        before, after = self.frame
        if not after:
            return encode(self.tokenizer, text)
        return [*before, *encode(self.tokenizer, text, add_special_tokens=False)]

    @cached_property
    def _opening(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text, where the template does not itself."""
        before = self.frame.before
        head = self._wrap(_MESSAGE).partition(_MESSAGE)[0]
        written = tuple(encode(self.tokenizer, head, add_special_tokens=False)) if head else ()
        places = range(len(written) - len(before) + 1)
        return () if any(written[n : n + len(before)] == before for n in places) else before

    @cached_property
    def _options(self) -> dict[str, bool]:
        """What the template is given: no thinking, where that makes a difference."""
        modes = ({THINKING: mode} for mode in (False, True))
        try:
            off, on = (self._render(_MESSAGE, **mode) for mode in modes)
        except Exception:  # its own rendering takes no such word, or fails without it too
            return {}
        return {} if off == on else {THINKING: False}

    def _wrap(self, text: str) -> str:
        """The text as a user's one message, up to where the answer starts."""
        try:
            wrapped = self._render(text, **self._options)
            if text.strip() not in wrapped:
                raise ValueError("it leaves the prompt out, or changes it")
            return wrapped
        except Exception as error:
            reason = short(error, 200)
            raise UsageError(
                f"the tokenizer's chat template cannot be used: {reason}: give chat=false"
            ) from error

    def _render(self, text: str, **options: Any) -> str:
        message = [{"role": "user", "content": text}]
        return str(
            self.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, **options
            )
        )
