"""The arithmetic of a model's forwards, from what it is made of.

An operation is a multiplication or an addition. A token costs two for each parameter that it
meets, of a mixture of experts those of the experts it is sent to; a query and a key that it sees
cost four for each dimension of each head. Norms, activations and rotations are left out: what is
measured at a length holds them.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import nn

from ctxext.engine.pinned import alike
from ctxext.errors import CtxextError
from ctxext.measure.answers import common, schedule
from ctxext.measure.failure import Failure
from ctxext.measure.inputs import Inputs, place
from ctxext.measure.tokens import LOGITS_AT_ONCE
from ctxext.methods import Spec
from ctxext.models import loading
from ctxext.models.layout import WINDOWS, head_dim, layer_configs, layer_windows
from ctxext.models.outline import outline
from ctxext.request.cells import Cell, Plan
from ctxext.tasks.base import Sample, SampleTask, TokenTask
from ctxext.tasks.windows import Windows

T = TypeVar("T")
STEP = 16  # tokens that are read in about the time of a decoding step, where nothing is measured
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
_ATTENTION = (*WINDOWS, "full_attention", "attention")
Bounds = tuple[int, int | None, int, int | None]  # a Part's start, stop, unit and first


@dataclass(frozen=True)
class Shape:
    """What a model's forward is made of.

    Attributes:
        parameters: all of them, tied ones once.
        active: those between embeddings and head that one token meets.
        head: those of the head, vocabulary × hidden size.
        hidden: dimensions of a hidden state.
        heads: dimensions of all query heads of a layer together.
        windows: of each attention layer, how many keys a query sees at most; None for all.
        layers: how many there are, of any kind.
        bounds: which keys a distance method shows, in layers whose window is beyond `trained`.
        trained: T in tokens.
    """

    parameters: int
    active: int
    head: int
    hidden: int
    heads: int
    windows: tuple[int | None, ...]
    layers: int
    bounds: tuple[Bounds, ...] = ()
    trained: int = 0

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a causal language model, which may be on the meta device."""
        configs, layers = layer_configs(model.config), layer_windows(model.config)
        output = (model.get_output_embeddings() or model.get_input_embeddings()).weight
        heads = max(getattr(config, "num_attention_heads", 1) for config in configs)
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        body = model.base_model if model.get_decoder() is None else model.get_decoder()
        some = [
            (name.split("."), weight)
            for name, weight in body.named_parameters()
            if weight.ndim > 1 and id(weight) not in tables and weight is not output
        ]
        routed = sum(weight.numel() for name, weight in some if "experts" in name)
        dense = sum(weight.numel() for name, weight in some) - routed
        return cls(
            parameters=sum(weight.numel() for weight in model.parameters()),
            active=dense + int(routed * statistics.fmean(map(_share, configs))),
            head=output.numel(),
            hidden=output.shape[-1],
            heads=head_dim(model.config) * heads,
            windows=tuple(window for kind, window in layers if kind in _ATTENTION),
            layers=len(layers),
        )

    @classmethod
    def guessed(cls, model: Any) -> Shape:
        """The same; where a model is not understood, one by which tokens alone cost."""
        try:
            return cls.of(model)
        except Exception:
            return cls(0, 1, 0, 1, 0, (), 0)

    def under(self, spec: Spec, trained: int) -> Shape:
        """The shape under a resolved method, which may hide keys."""
        parts = spec.distance.parts() if spec.distance else ()
        bounds = tuple((part.start, part.stop, part.unit, part.first) for part in parts)
        return replace(self, bounds=bounds, trained=trained)

    @property
    def vocabulary(self) -> int:
        """Tokens that the head tells apart."""
        return self.head // self.hidden

    def read(self, tokens: int, after: int = 0) -> int:
        """Operations of a forward over so many tokens after those in the cache, without head."""
        seen = 0
        for window, count in Counter(self.windows).items():
            if self.bounds and (window is None or window > self.trained):
                end = after + tokens
                known = _pairs_shown(self.bounds, window, 1 << end.bit_length())
                seen += count * int(known[end] - known[after])
            else:
                seen += count * _pairs(tokens, after, window)
        return 2 * self.active * tokens + 4 * self.heads * seen

    def scored(self, tokens: int) -> int:
        """Operations of the head on so many tokens."""
        return 2 * self.head * tokens

    def scoring(self, tokens: int, itemsize: int) -> int:
        """Bytes of scoring all tokens of windows after their forward: hidden states, some logits.

        Args:
            itemsize: bytes of a number in the model.
        """
        wide = 4 if itemsize < 4 else 0  # a copy in float32 beside the logarithms
        logits = min(tokens, LOGITS_AT_ONCE // self.vocabulary) * self.vocabulary
        return 2 * tokens * self.hidden * itemsize + logits * (itemsize + 4 + wide)


def _share(text: Any) -> float:
    """The share of the experts that a token is sent to; 1 where the config does not say."""
    total = next((n for name in _EXPERTS if (n := getattr(text, name, None))), None)
    active = next((n for name in _ACTIVE if (n := getattr(text, name, None))), None)
    known = isinstance(total, int) and isinstance(active, int) and 0 < active <= total
    return active / total if known else 1.0  # type: ignore[operator]


def _pairs(tokens: int, after: int, window: int | None) -> int:
    """How many keys the queries see together: those before them, and themselves."""
    whole = tokens if window is None else min(tokens, max(0, window - after))
    seen = whole * after + whole * (whole + 1) // 2
    return seen + (tokens - whole) * (window or 0)


@functools.lru_cache(maxsize=4)
def _pairs_shown(bounds: tuple[Bounds, ...], window: int | None, most: int) -> Any:
    """How many keys the first 0 … most queries see together under a method [most + 1]."""
    query = np.arange(most)
    seen = np.zeros(most + 1, np.int64)
    for start, stop, unit, first in bounds:
        high = np.minimum(query + 1, (query // unit - start + 1) * unit)
        low = np.zeros_like(query) if stop is None else (query // unit - stop + 1) * unit
        low = np.maximum(low, 0 if window is None else query + 1 - window)
        high = high if first is None else np.minimum(high, first)
        seen[1:] += np.maximum(0, high - np.maximum(low, 0))
    return seen.cumsum()


class Work(NamedTuple):
    """What a cell takes.

    Attributes:
        tokens: those it reads, also those that prompts have in common.
        reading: operations of all its forwards over more than one token, head included.
        steps: decoding steps, at most: an answer may end before.
        rows: windows or prompts that are read at once.
    """

    tokens: int
    reading: int
    steps: int
    rows: int

    def relative(self, shape: Shape) -> float:
        """Its cost beside other cells of the same model, in operations."""
        return self.reading + 2.0 * self.steps * STEP * (shape.active + shape.head)


def relative_costs(plan: Plan, inputs: Inputs) -> dict[str, tuple[str, float]]:
    """The kind of each cell by its key, and what it takes beside others of its kind.

    It is 0 for a cell that reads what one before it reads, and NaN where that is not known.

    Raises:
        UnsupportedModelError: transformers builds no such model.
    """
    config = loading.load_config(plan.request.source)
    whole = outline(config, plan.source.trust_remote_code)
    shape = Shape.guessed(whole)
    costs, seen = dict[str, tuple[str, float]](), set[object]()
    trained, batch = plan.identity.trained, plan.request.batch
    for cell, work in zip(
        inputs.cells, works(shape, whole, inputs, trained, batch, sharing=None), strict=True
    ):
        kind = "tokens" if isinstance(cell.task, TokenTask) else cell.task.name
        cost = math.nan if work is None else work.relative(shape)
        again = inputs.shared(cell) in seen
        seen.add(inputs.shared(cell))
        costs.setdefault(plan.key(cell), (kind, 0.0 if again else cost))
    return costs


def works(
    shape: Shape,
    model: Any,
    inputs: Inputs,
    trained: int,
    batch: Callable[[int], int],
    sharing: bool | None,
) -> list[Work | None]:
    """What each cell of the inputs takes; None where that is not known.

    Args:
        model: the model without weights.
        trained: T in tokens.
        batch: tells how many windows or prompts are read at once at a length.
        sharing: whether what prompts have in common is read once, as it is where the model's
            cache can be cut back; None to make no prompts for this, and go by their sizes.
    """
    known: dict[tuple[object, bool, Shape], Work | None] = {}
    found: list[Work | None] = []
    for cell in inputs.cells:
        rows, own = batch(cell.length), shape.under(cell.method, trained)
        if isinstance(cell.task, TokenTask):
            found.append(_windows_work(own, inputs.windows(cell), rows))
        elif isinstance(cell.task, SampleTask):
            key = place(cell), cell.method.unpatched, own
            if key not in known:
                known[key] = _answers_work(own, model, inputs, cell, rows, sharing)
            found.append(known[key])
        else:
            found.append(None)
    return found


def _answers_work(
    shape: Shape, model: Any, inputs: Inputs, cell: Cell, batch: int, sharing: bool | None
) -> Work | None:
    """What answering takes: by the sizes of the prompts, or where that does not tell by some of
    them; None where all would have to be made and `sharing` is None, or they cannot be."""
    task: Any = cell.task
    most, sizes = task.generates - 1, inputs.sizes(cell)  # the first token comes with the prompt

    def groups(items: Sequence[T], size: Callable[[T], int]) -> list[Sequence[T]]:
        """Those that the unpatched model may read together."""
        if not cell.method.unpatched:
            return [items]
        return [some for _, some in alike(model, items, lambda item: size(item) + task.generates)]

    if sizes is not None and (sharing is None or not task.typical):
        return _apart(shape, groups(sizes, int), most, batch)
    if sharing is None:
        return None
    samples: Any = None
    with inputs.refusals.guard(place(cell)):
        samples = _some(inputs, cell, None if sizes is None else task.typical, batch)
    if samples is None:
        return None
    by_size = groups(samples, lambda sample: len(sample.ids))
    work = _answers(shape, by_size, most, batch, sharing)
    more = 1.0 if sizes is None else len(sizes) / len(samples)
    tokens, reading, steps = (int(part * more) for part in work[:3])
    return Work(tokens, reading, steps, work.rows)


def _some(inputs: Inputs, cell: Cell, typical: int | None, batch: int) -> list[Sample]:
    """The prompts, or the first of them, of which a batch can be made; CtxextError for why not."""
    if typical is not None:
        return inputs.first(cell, -(-batch // typical) * typical)
    made = inputs.samples(cell)
    if isinstance(made, Failure):
        raise CtxextError(made.fields["reason"])
    return made


def _apart(shape: Shape, groups: Sequence[Sequence[int]], most: int, batch: int) -> Work:
    """Prompts of these sizes that are read apart, those nearest in length together."""
    reading = steps = rows = 0
    for group in groups:
        sizes = sorted(group, reverse=True)
        for some in (sizes[i : i + batch] for i in range(0, len(sizes), batch)):
            reading += len(some) * (shape.read(some[0]) + shape.scored(1))
            steps, rows = steps + most, max(rows, len(some))
    return Work(sum(map(sum, groups)), reading, steps, rows)


def _windows_work(shape: Shape, windows: Windows, batch: int) -> Work:
    scored = int((windows.length - windows.first).sum())
    reading = len(windows) * shape.read(windows.length) + shape.scored(scored)
    return Work(windows.tokens, reading, 0, min(batch, len(windows)))


def _answers(
    shape: Shape, groups: Sequence[Sequence[Sample]], most: int, batch: int, sharing: bool
) -> Work:
    reading = steps = rows = 0
    for some, shares in (one for group in groups for one in schedule(group, batch, sharing)):
        longest = max(len(sample.ids) for sample in some)
        if shares:
            before: Sequence[int] = ()
            for sample in some:
                kept = min(common(before, sample.ids), len(sample.ids) - 1)
                reading += shape.read(len(sample.ids) - kept, kept) + shape.scored(1)
                before = sample.ids
        else:
            reading += len(some) * (shape.read(longest) + shape.scored(1))
        steps += most * (len(some) if shares else 1)
        rows = max(rows, 1 if shares else len(some))
    prompts = sum(len(sample.ids) for group in groups for sample in group)
    return Work(prompts, reading, steps, rows)
