"""How long the forwards of a model take: those that read prompts apart from decoding steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from ctxext.measure.meter import synchronize


@dataclass
class Spent:
    """Seconds and tokens of forwards, padding included.

    Attributes:
        prefill_seconds: of forwards over more than one token of a sequence.
        prefill_tokens: that these read; what a cache already held is not among them.
        decode_seconds: of forwards over one token of each sequence.
        decode_tokens: those tokens, also of sequences in a batch that had ended.
    """

    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0

    def record(self) -> dict[str, float | int | None]:
        """The fields of a record; None where there was no such forward."""
        ran = {"prefill": self.prefill_tokens, "decode": self.decode_tokens}
        some = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value if ran[name.partition("_")[0]] else None for name, value in some}

    @classmethod
    def together(cls, several: Iterable[Spent]) -> Spent:
        """Of processes that run beside each other: the mean of seconds, the sum of tokens."""
        some = list(several)
        sums = {f.name: sum(getattr(one, f.name) for one in some) for f in fields(cls)}
        return cls(**{n: x / len(some) if n.endswith("seconds") else x for n, x in sums.items()})


class Forwards:
    """Adds the forwards of a model, and those of its base model alone, to what is spent."""

    def __init__(self, model: Any, spent: Spent) -> None:
        self._modules = {id(module): module for module in (model, model.base_model)}
        self._device, self._spent = model.device, spent
        self._outermost: Any = None
        self._start = 0.0

    def __enter__(self) -> None:
        with contextlib.ExitStack() as hooks:
            for module in self._modules.values():
                before = module.register_forward_pre_hook(self._begin)
                hooks.callback(before.remove)
                after = module.register_forward_hook(
                    self._end, with_kwargs=True, always_call=True, prepend=True
                )
                hooks.callback(after.remove)
            self._hooks = hooks.pop_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()

    def _begin(self, module: Any, *_: Any) -> None:
        if self._outermost is None:
            self._outermost = module
            synchronize(self._device)
            self._start = time.perf_counter()

    def _end(self, module: Any, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        if self._outermost is not module:
            return
        self._outermost = None
        if out is None:  # it failed
            return
        synchronize(self._device)
        seconds = time.perf_counter() - self._start
        read = next(x for x in (*given[:1], *map(named.get, _READ)) if x is not None)
        rows, tokens = read.shape[:2]
        if tokens > 1:
            self._spent.prefill_seconds += seconds
            self._spent.prefill_tokens += rows * tokens
        else:
            self._spent.decode_seconds += seconds
            self._spent.decode_tokens += rows


_READ = ("input_ids", "inputs_embeds")
