"""A few tokens through a model, with noise in place of most of its matrix products.

These are nearly all that a forward of a few tokens costs, and say nothing of rotations and masks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from ctxext.engine.rotary import kept
from ctxext.errors import CtxextError, UnsupportedModelError, short
from ctxext.models.frequency_sets import FrequencySet

TOKENS = 8  # at least
ROWS = 4  # of different tokens: in one head of one, a quarter turn may change next to nothing
_NUMBERS = 65521  # of noise: a prime, so that rows of one product differ
# Of what is given [·, i] by weights [o, i], or of grouped experts [e, i, o].
_GROUPED = (getattr(torch, "_grouped_mm", None), getattr(nn.functional, "grouped_mm", None))
PRODUCTS = {nn.functional.linear, *filter(None, _GROUPED)}


class WithoutProducts(TorchFunctionMode):
    """Linear layers and experts give noise, the same in each forward, but inside some modules.

    Attributes:
        given: a sum of what each product was to be taken of, in order.
    """

    def __init__(self, real: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.given: list[float] = []
        self._real, self._inside = real, 0
        self._noise = torch.randn(_NUMBERS, generator=torch.Generator().manual_seed(0))
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Any:
        for module in self._real:
            before = module.register_forward_pre_hook(self._enter, prepend=True)
            after = module.register_forward_hook(self._leave, always_call=True)
            self._undo.callback(before.remove)
            self._undo.callback(after.remove)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._undo.close()

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Other tensors than torch's own have products of their own."""
        if function in PRODUCTS and not self._inside and len(args) > 1:
            given, weight = args[:2]
            plain = type(given) is Tensor and type(weight) in (Tensor, nn.Parameter)
            if plain and given.ndim >= weight.ndim - 1:
                return self._stand_in(given, weight.shape[0 if weight.ndim == 2 else -1])
        return function(*args, **(kwargs or {}))

    def _stand_in(self, given: Tensor, width: int) -> Tensor:
        """Noise of the shape of a product [·, width]."""
        self.given.append(float(given.double().sum()))
        shape = (*given.shape[:-1], width)
        first, count = 1009 * len(self.given) % _NUMBERS, math.prod(shape)
        if first + count > len(self._noise):
            self._noise = self._noise.repeat(1 + (first + count) // len(self._noise))
        noise = self._noise[first : first + count].view(shape)
        return noise.to(given.device, given.dtype, copy=True)


def forward(
    model: Any,
    length: int,
    freq_sets: Iterable[FrequencySet],
    products: contextlib.AbstractContextManager[Any] | None = None,
) -> None:
    """A few tokens through the model in evaluation mode, without a cache.

    What that does to rotary modules whose frequencies depend on the length is undone. The tokens
    are from the middle of the vocabulary: special ones may embed as zeros.

    Args:
        products: what stands in for products, if anything.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        weight = model.get_input_embeddings().weight
        pad = model.config.get_text_config().pad_token_id
        some = torch.arange(ROWS * length + 1, device=weight.device) + len(weight) // 3
        some = some % len(weight)
        some[some == (pad % len(weight) if isinstance(pad, int) else -1)] += 1
        ids = some[: ROWS * length].view(ROWS, length) % len(weight)
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            contextlib.ExitStack() as undo,
        ):
            for module in {id(freqs.module): freqs.module for freqs in freq_sets}.values():
                undo.enter_context(kept(module))
            if products is not None:
                undo.enter_context(products)
            run = model if isinstance(weight, DTensor) else model.base_model  # sharded from outside
            run(input_ids=ids, use_cache=False)
    except CtxextError:
        raise
    except Exception as error:
        why = short(error)
        raise UnsupportedModelError(
            f"{kind_of(model)} does not run on a few tokens: {why}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def kind_of(model: Any) -> str:
    return str(model.config.get_text_config().model_type)
