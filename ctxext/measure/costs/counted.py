"""The memory of a model's forward, counted without weights and without computing anything.

The model stands on torch's meta device, where tensors have shapes and no data, and each block that
its operators make is counted as long as it lives. What attention kernels that keep no scores take
for themselves is left out; on a CPU the count has been the peak of torch's allocator to the byte
wherever such a kernel ran.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ctxext.errors import UnsupportedModelError, short
from ctxext.measure.bench.timed import Generation
from ctxext.models.frequency_sets import LENGTH_DEPENDENT, SCALING_KEYS
from ctxext.models.outline import outline
from ctxext.models.small import quiet


class NotCountedError(UnsupportedModelError):
    """A forward goes by values, and not by shapes alone."""


class Counted(NamedTuple):
    """Bytes.

    Attributes:
        weights: parameters and buffers, tied ones once.
        cache: what is kept of the tokens that were read, for those to come.
        activations: all else at the highest point, beside these two.
    """

    weights: int
    cache: int
    activations: int

    @property
    def together(self) -> int:
        """The highest point."""
        return sum(self)


def count(
    config: Any,
    tokens: int,
    rows: int = 1,
    *,
    dtype: str = "float32",
    attn: str = "sdpa",
    trust_remote_code: bool = False,
) -> Counted:
    """What a model takes to read rows of tokens at once, as a prompt, and predict the next one.

    Args:
        config: a causal language model's; it is left as it is.
        dtype: of weights, activations and cache, a word of Dtype.
        attn: transformers' attention implementation.

    Raises:
        UnsupportedModelError: transformers builds no such model.
        NotCountedError: its forward goes by values, and not by shapes alone.
    """
    config, kind = _by_shapes(config), config.model_type
    model = outline(config, trust_remote_code, dtype=getattr(torch, dtype), attn=attn).eval()
    model.to("meta")  # its frequencies too
    blocks = _Blocks()
    held = {id(t.untyped_storage()): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    try:
        with torch.no_grad(), torch.device("meta"), quiet(), _Kernels(), blocks.but(held):
            forward = Generation(model, torch.zeros(rows, tokens, dtype=torch.long))
            forward()
    except Exception as error:
        raise NotCountedError(
            f"{kind}: what its forward takes cannot be counted without values ({short(error, 120)})"
        ) from error
    kept = sum({id(t): t.nbytes for t in _tensors(forward.cache, set())}.values())
    return Counted(weights, kept, max(0, blocks.peak - kept))


def _by_shapes(config: Any) -> Any:
    """The config, but for scalings of the rotation that go by the values of positions; no size
    depends on them."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict):
        kinds = {key: _unscaled(part) for key, part in rope.items() if isinstance(part, dict)}
        text.rope_parameters = {**_unscaled(rope), **kinds}
    return config


def _unscaled(rope: dict[str, Any]) -> dict[str, Any]:
    if rope.get("rope_type") not in LENGTH_DEPENDENT:
        return rope
    kept = {key: value for key, value in rope.items() if key not in SCALING_KEYS}
    return {**kept, "rope_type": "default"}


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in a cache, wherever it has them."""
    if id(value) in seen or isinstance(value, type | nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain(*(_tensors(part, seen) for part in value.values()))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain(*(_tensors(part, seen) for part in value))
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)


class _Blocks(TorchDispatchMode):
    """The bytes of the blocks that operators have made and that live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._live: dict[int, int] = {}

    def but(self, held: dict[int, Tensor]) -> _Blocks:
        """Itself; what holds these is not counted."""
        self._live = dict.fromkeys((id(t.untyped_storage()) for t in held.values()), 0)
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:  # on meta it takes one dtype alone
            out = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, block: Any) -> None:
        name = id(block)
        if name not in self._live:
            self._live[name] = block.nbytes()
            self.now += self._live[name]
            self.peak = max(self.peak, self.now)
            weakref.finalize(block, self._free, name)

    def _free(self, name: int) -> None:
        self.now -= self._live.pop(name, 0)


class _Kernels(TorchFunctionMode):
    """Attention as kernels compute it that keep no scores: their output, and its log-sum-exp."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, value = args[0], args[2]
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        query.new_empty(query.shape[:-1], dtype=torch.float32)
        return out
