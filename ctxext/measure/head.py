"""A model's head by itself: what enters it in a forward, and the logits of what is put into it.

It is found by what a forward of a few tokens does, and by no name: wrappers, tuples, scaled and
capped logits are as each family has them. Where there is none apart, logits are computed whole.

Dimensions: b windows, n tokens, d of a hidden state, v vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctxext.engine.switch import replaced
from ctxext.errors import UnsupportedModelError

TOKENS = 4
SAME = 2**-5  # of the largest logit, by which rounding in 16 bits stays below


@dataclass(eq=False)
class _Call:
    """A module that ran, and the call in which it did."""

    module: nn.Module
    caller: _Call | None
    given: Any = None
    output: Any = None

    def maps(self, tokens: int, vocabulary: int) -> bool:
        """Whether it made logits [1, n, v] of what is none [1, n, d]."""
        x, y = self.given, self.output
        return (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and x.is_floating_point()
            and x.shape[:-1] == (1, tokens)
            and x.shape[-1] != vocabulary
            and y.shape == (1, tokens, vocabulary)
        )


class Head:
    """The last module of a causal language model that makes logits of hidden states.

    Args:
        model: patched or not, in evaluation mode.
        ids: some tokens [1, n] that it can read.

    Attributes:
        vocabulary: how many logits a token has; 1 where the model does not read the tokens.
        apart: whether there is one; else `read` gives logits, and `logits` what it is given.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._model, self._ids, self.vocabulary = model, ids[:, :TOKENS], 1
        try:
            self.apart = self._find()
        except Exception:  # where the model itself fails, its own reading says so
            self.apart = False

    def _find(self) -> bool:
        """Find the head; whether it does by itself what it does in the model."""
        with _watched(self._model) as calls:
            whole = _logits(self._model(input_ids=self._ids, use_cache=False))[0]
        n, self.vocabulary = whole.shape
        found = [call for call in calls if call.maps(n, self.vocabulary)]
        if not found or sum(call.module is found[-1].module for call in calls) > 1:
            return False
        self._head, around, caller = found[-1].module, list[_Call](), found[-1].caller
        while caller is not None:
            around.append(caller)
            caller = caller.caller
        self._others = dict[nn.Module, list[Any]]()
        for call in calls[: calls.index(found[-1])]:
            if call.caller in around and call not in around:
                self._others.setdefault(call.module, []).append(call.output)
        self.apart = True
        hidden = self.read(input_ids=self._ids, use_cache=False)[0]
        found_again = self.logits(torch.cat((hidden.flip(0), hidden)))
        off = (found_again - torch.cat((whole.flip(0), whole))).abs().max()
        return bool(off <= SAME * whole.abs().max())

    def read(self, **inputs: Any) -> Tensor:
        """What enters the head in a forward of the model: hidden states [b, n, d].

        Raises:
            UnsupportedModelError: they are not one for each token.
        """
        found = self._entering(inputs) if self.apart else _logits(self._model(**inputs))
        if found.shape[:2] != inputs["input_ids"].shape:
            kind = self._model.config.model_type
            raise UnsupportedModelError(f"{kind} does not give logits for each token")
        return found

    def _entering(self, inputs: dict[str, Any]) -> Tensor:
        """The hidden states; logits are computed for the first token alone."""
        own, seen = self._head.forward, list[Tensor]()

        def first(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(hidden)
            return own(hidden[:, :1], *args, **kwargs)

        with replaced(self._head, "forward", first):
            self._model(**inputs)
        return seen[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [n, v] of hidden states [n, d]: its own forward, of which only the
        head and what stands about it run."""
        if not self.apart:
            return hidden
        own = self._head.forward
        with contextlib.ExitStack() as undo:
            for module, outputs in self._others.items():
                undo.enter_context(replaced(module, "forward", _repeating(outputs)))
            inner = lambda _, *args, **kwargs: own(hidden[None], *args, **kwargs)  # noqa: E731
            undo.enter_context(replaced(self._head, "forward", inner))
            return _logits(self._model(input_ids=self._ids, use_cache=False))[0]


def _logits(output: Any) -> Tensor:
    """Those of a model's output [b, n, v], which may be a tuple."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def _repeating(outputs: list[Any]) -> Any:
    """A forward that gives these again, one a call."""
    left = iter(outputs)
    return lambda *args, **kwargs: next(left)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Call]]:
    """The calls of a model's modules in the block, in the order in which they end."""
    running, ended = list[_Call](), list[_Call]()

    def begin(module: nn.Module, args: Any) -> None:
        running.append(_Call(module, running[-1] if running else None, args[0] if args else None))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        call.output = output
        ended.append(call)

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield ended
    finally:
        for hook in hooks:
            hook.remove()
