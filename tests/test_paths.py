"""Every attention path against a dense float64 reference written from r(δ) alone.

Float32 outputs are within 2e-5 of it: sums of at most 200 products whose terms are below 10 err by
200·10·2^-24 = 1e-4 at the very worst, and by a tenth of that where roundings average out.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import CACHE, random_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import (
    ALIKE,
    KINDS,
    NARROW,
    Largest,
    close,
    logits,
    padded,
    parts_of,
    rotated,
    shown,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

import ctxext
from ctxext.engine import PATHS, merged, paths, single
from ctxext.engine.chunked import chunked_attention
from ctxext.engine.merged import merged_attention
from ctxext.engine.operators import TORCH, CpuFlash, CudaEfficient, CudaFlash, Pattern
from ctxext.engine.paths import attend, choose
from ctxext.engine.positions import Positions
from ctxext.engine.runs import FEW, Run, attend_runs, find_runs
from ctxext.errors import UsageError
from ctxext.methods.base import Part

D = 16
THETA = 100.0 ** (-torch.arange(D // 2, dtype=torch.float64) / (D // 2))
SCALE = 0.3
ROUNDED = 0.03  # of the largest logit: a few roundings by 2^-9 in each of two layers
BY_DISTANCE = [*(name for name in ALIKE if not KINDS[name].absolute), "three"]


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """x [b, *, l, d] rotated by positions [l] or [b, l], halves paired, rounded once."""
    angle = positions.double()[..., None] * THETA.to(positions.device)
    angle = angle[:, None] if angle.ndim == 3 else angle
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    a, b = x.to(wide).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def truth(
    q: Tensor, k: Tensor, v: Tensor, kind: str, window: int, leak: float, first: list[int]
) -> Tensor:
    """float64 attention [b, h, n, d] of a method over rows that begin at `first`."""
    return weighed(q, k, v, *shown(kind, window, leak, k.shape[2]), first)


def weighed(
    q: Tensor, k: Tensor, v: Tensor, relative: Tensor, visible: Tensor, first: list[int]
) -> Tensor:
    """Score Σ_i Re[q_i·conj(k_i)·exp(j·r·θ_i)] for r, and where it counts, [m, m]; 0 unseen."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    n, m = q.shape[2], k.shape[2]
    angle = relative[m - n :, :, None] * THETA
    a, b = torch.complex(*q.chunk(2, -1)), torch.complex(*k.chunk(2, -1))
    scores = torch.einsum(
        "bhni,bhmi,nmi->bhnm", a, b.conj(), torch.polar(angle * 0 + 1, angle)
    ).real
    slots = torch.arange(m)
    seen = torch.stack([visible[m - n :] & (slots >= start) for start in first])[:, None]
    weights = (scores * SCALE).masked_fill(~seen, -torch.inf).softmax(-1)
    return weights.nan_to_num() @ v


def inputs(
    b: int, h: int, g: int, n: int, m: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, h, n, D), (b, g, m, D), (b, g, m, D))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return q, k, v


class DenseWindows:
    """FlashAttention's calls, computed densely: what `CudaFlash` is taken to do."""

    windows, row_masks = True, False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        assert pattern.mask is None
        n, m, r = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
        dtype, wide = v.dtype, torch.promote_types(v.dtype, torch.float32)
        q, k, v = q.to(wide), *(x.repeat_interleave(r, 1).to(wide) for x in (k, v))
        delta = torch.arange(m - n, m)[:, None] - torch.arange(m)
        seen = (delta >= 0) & (delta < (pattern.window or m)) if pattern.causal else delta == delta
        scores = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
        assert seen.any(-1).all()
        return (scores.softmax(-1) @ v).to(dtype), scores.logsumexp(-1)

    def backward(self, *args: Any) -> Any:
        raise NotImplementedError


def windows_path(*args: Any) -> Tensor:
    return merged_attention(*args, operator=DenseWindows())


COMPUTED: dict[str, Callable[..., Tensor]] = {
    "sdpa": lambda *args: attend("sdpa", *args),
    "eager": lambda *args: attend("eager", *args),
    "merged": lambda *args: merged_attention(*args, operator=TORCH["cpu"]),
    "windows": windows_path,
}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is not written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(9).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("path", COMPUTED)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_path_is_the_reference(path: str, data: st.DataObject) -> None:
    draw = data.draw
    b, g, r = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    m = draw(st.integers(1, 200))
    n = draw(st.one_of(st.just(m), st.integers(1, m)))
    window = draw(st.one_of(st.just(1), st.just(m), st.integers(1, m + 5)))
    kind, leak = draw(st.sampled_from([*ALIKE, "three"])), draw(st.sampled_from([1.0, 2.5, 8.0]))
    q, k, v = inputs(b, g * r, g, n, m, seed=draw(st.integers(0, 99)))
    sizes = {
        "BLOCK": draw(st.sampled_from([1, 7, 64])),
        "BLOCKS_AT_ONCE": draw(st.sampled_from([1, 32])),
        "WIDE": draw(st.sampled_from([2, 1024])),
    }
    parts = parts_of(kind, window, leak)
    expected = truth(q, k, v, kind, window, leak, [0] * b)
    q, k, left = rotated_by(q, k, parts)
    if draw(st.booleans()):  # d is not the last in memory
        q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
    with mock.patch.multiple(merged, **sizes), poisoned():
        ours = COMPUTED[path](q, k, v, left, turn, SCALE)
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 2e-5


def test_queries_that_are_not_turned_may_lie_as_they_like() -> None:
    q, k, v = (torch.randn(1, 2, 20, D) for _ in range(3))
    parts = (Part(0, 5, torch.zeros_like, torch.zeros_like),)
    args = (k, v, parts, lambda x, positions: x, SCALE)
    ours = attend("sdpa", q.mT.contiguous().mT, *args)
    torch.testing.assert_close(ours, attend("dense", q, *args))


def rotated_by(q: Tensor, k: Tensor, parts: tuple[Part, ...]) -> tuple[Tensor, Tensor, Any]:
    with mock.patch("test_engine.turn", turn):
        return rotated(q, k, parts)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_left_padded_rows(path: str, data: st.DataObject) -> None:
    """Rows start where they start, whatever stands before; NaN there reaches nothing."""
    draw = data.draw
    m = draw(st.integers(FEW, 120))
    n = draw(st.one_of(st.just(m), st.integers(FEW, m)))
    first = [draw(st.integers(0, m - 1)) for _ in range(3)]
    window, kind = draw(st.integers(1, m)), draw(st.sampled_from(BY_DISTANCE))
    q, k, v = inputs(3, 4, 2, n, m)
    parts = parts_of(kind, window, 2.5)
    expected = truth(q, k, v, kind, window, 2.5, first)
    q, k, left = rotated_by(q, k, parts)
    mask = torch.arange(m) >= torch.tensor(first)[:, None, None, None]
    if path == "sdpa":
        hidden = ~mask.mT.expand(3, 2, m, D)
        k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
    begins = torch.tensor(first)[:, None]
    positions = torch.arange(m - n, m) - begins
    runs = find_runs(positions, mask, None, 3, n, m, None, False)

    def run(at: Run, *tensors: Tensor) -> Tensor:
        return attend(path, *tensors, left, turn, SCALE, at.at, mask=at.mask)

    ours = attend_runs(run, runs, q, k, v)
    real = mask[..., m - n :].mT.expand_as(ours)
    assert float((ours - expected)[real].abs().max()) <= 2e-5
    if path == "sdpa":
        assert not ours[~real].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["sdpa", "eager", "windows"])
@pytest.mark.parametrize("kind", ALIKE)
def test_half_precision_errs_no_more_than_plain_attention(
    kind: str, path: str, dtype: torch.dtype
) -> None:
    """Mean error against float64 on the same 16-bit inputs, by that of sdpa on the same keys.

    Plain attention is given q and k that were rotated and rounded; so are ours, and the near ones
    are rotated and rounded once more, which adds at most its own share: √2 in a mean.
    """
    parts = parts_of(kind, 37, 2.5)
    q, k, v = inputs(2, 4, 2, 150, 150, dtype)
    position = torch.arange(150, dtype=torch.float64)
    turned_q, turned_k = turn(q, position), turn(k, position)
    visible, delta = shown(kind, 37, 2.5, 150)[1], shown("rerope", 150, 1.0, 150)[0]
    plain = scaled_dot_product_attention(
        turned_q, turned_k, v, attn_mask=visible, scale=SCALE, enable_gqa=True
    )
    expected = truth(q, k, v, kind, 37, 2.5, [0, 0])
    exact = weighed(q, k, v, delta, visible, [0, 0])  # plain RoPE
    q, k, left = rotated_by(q, k, parts)
    ours = COMPUTED[path](q, k, v, left, turn, SCALE)
    assert ours.dtype == dtype
    own = (plain.double() - exact).abs().mean()
    assert (ours.double() - expected).abs().mean() <= 1.5 * own


@pytest.mark.parametrize("kind", [*ALIKE, "three"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (2, 1)])
@pytest.mark.parametrize("wide", [2, 1024])
def test_gradients(
    kind: str, heads: tuple[int, int], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged backward by finite differences, and against autograd through the dense truth."""
    monkeypatch.setattr(merged, "WIDE", wide)
    monkeypatch.setattr(merged, "BLOCK", 3)
    monkeypatch.setattr(merged, "BLOCKS_AT_ONCE", 2)
    parts = parts_of(kind, 4, 2.5)
    for n, m in ((17, 17), (9, 20), (1, 20)):
        leaves = [x.requires_grad_() for x in inputs(2, *heads, n, m, torch.float64)]

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, left = rotated_by(q, k, parts)
            return merged_attention(q, k, v, left, turn, SCALE, TORCH["cpu"])

        assert torch.autograd.gradcheck(ours, leaves, fast_mode=True)
        cotangent = inputs(2, heads[0], 1, n, 1, torch.float64, 3)[0]
        got = torch.autograd.grad(ours(*leaves), leaves, cotangent)
        want = torch.autograd.grad(truth(*leaves, kind, 4, 2.5, [0, 0]), leaves, cotangent)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        single = [x.detach().float().requires_grad_() for x in leaves]
        for a, b in zip(
            torch.autograd.grad(ours(*single), single, cotangent.float()), want, strict=True
        ):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5)


def test_second_derivatives_are_refused_or_right() -> None:
    leaves = [x.requires_grad_() for x in inputs(1, 2, 1, 20, 20, torch.float64)]
    for path in ("sdpa", "eager"):
        parts = parts_of("rerope", 4, 1.0)
        q, k, left = rotated_by(*leaves[:2], parts)
        out = attend(path, q, k, leaves[2], left, turn, SCALE)
        (first,) = torch.autograd.grad(out.square().sum(), leaves[2], create_graph=True)
        if path == "sdpa":
            with pytest.raises(RuntimeError, match="once_differentiable"):
                first.sum().backward()
        else:
            assert torch.autograd.grad(first.sum(), leaves[2])[0].any()


def test_a_mask_that_hides_the_newest_keys_of_one_query() -> None:
    """In 16 bits, where a query alone takes the fast path, whatever the mask [b, 1, 1, m] says."""
    model, ids = random_model().to(torch.bfloat16), tokens(40, 2)
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[1, ..., 25:] = False
    steps, cache = [], None
    for attn in ("sdpa", "eager"):
        with ctxext.patched(model, "rerope:window=5", attn=attn), torch.no_grad():
            cache = cache or model(ids[:, :-1])[CACHE]
            given = {"attention_mask": mask, CACHE: copy.deepcopy(cache)}
            steps.append(model(ids[:, -1:], **given).logits)
    assert steps[0].isfinite().all()
    close(*steps, ROUNDED)
    plain = logits(model, ids)[:, -1:]
    assert (steps[0] - plain).abs().max() > 4 * ROUNDED * plain.abs().max()


@pytest.mark.parametrize("spec", NARROW.values())
def test_rows_of_one_query_in_half_precision(spec: str) -> None:
    """All rows of a padded batch in one call of torch's operator, some with no far keys at all."""
    model = random_model().to(torch.bfloat16)
    ids, mask, positions = padded([tokens(n, seed=n)[0] for n in (60, 33, 4, 1)])
    found = []
    for attn in ("sdpa", "eager"):
        with ctxext.patched(model, spec, 200, attn=attn), torch.no_grad():
            cache, steps = DynamicCache(config=model.config), []
            for a, b in itertools.pairwise((0, 56, 57, 58, 59, 60)):
                given = {"attention_mask": mask[:, :b], "position_ids": positions[:, a:b]}
                steps.append(model(ids[:, a:b], **given, **{CACHE: cache}).logits)
        found.append(torch.cat(steps[1:], 1))
    real = mask[:, 56:].bool()
    assert found[0].isfinite().all()
    close(found[0][real], found[1][real], ROUNDED)


@pytest.mark.parametrize("kind", ALIKE)
def test_rows_of_one_query_read_the_keys_that_they_see(kind: str) -> None:
    """Each row by a call of its own, where that spares more than calls cost; else all by one."""
    first, m = [0, 30, 30, 57, 99], 100
    parts = parts_of(kind, 17, 2.5)
    q, k, v = inputs(5, 4, 2, 1, m, torch.float64)
    rows = [(q[i, None], k[i, None, :, f:], v[i, None, :, f:]) for i, f in enumerate(first)]
    expected = torch.cat([truth(*row, kind, 17, 2.5, [0]) for row in rows])
    left, begins = rotated_by(q, k, parts)[2], torch.tensor(first)
    position = torch.arange(m) - begins[:, None]
    exact = position.double()
    q, k = (turn(x, parts[-1].key(exact[:, -x.shape[2] :])) for x in (q, k))
    mask = (position >= 0)[:, None, None]
    seen = sum(int(shown(kind, 17, 2.5, m - f)[1][-1].sum()) for f in first)
    read, plain = [], CpuFlash.forward

    def forward(self: CpuFlash, q: Tensor, k: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        read[-1] += len(k) * k.shape[2]
        return plain(self, q, k, *more)

    for cost in (0, 2**40):
        read.append(0)
        at = Positions.by_row(1, m, -begins)
        with (
            mock.patch.object(single, "CALL", cost),
            mock.patch.object(CpuFlash, "forward", forward),
        ):
            ours = merged_attention(q, k, v, left, turn, SCALE, CpuFlash(), at, mask=mask)
        assert float((ours - expected).abs().max()) <= 1e-12
    assert read[0] == seen < read[1]


@pytest.mark.parametrize("operator", [CudaEfficient(), CudaFlash()])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("wide", [2, 1024])
def test_cuda_operators_take_what_they_are_given(
    operator: Any, heads: tuple[int, int], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's shape functions of the CUDA operators, both ways: no number is computed."""
    monkeypatch.setattr(merged, "WIDE", wide)
    monkeypatch.setattr(CudaFlash, "_package", None, raising=False)
    h, g = heads
    q = torch.empty(2, 300, h, 64, device="meta", dtype=torch.float16).transpose(1, 2)
    k = torch.empty(2, 400, g, 64, device="meta", dtype=torch.float16).transpose(1, 2)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, torch.empty_like(k)))
    parts = parts_of("rerope", 70, 1)
    out = merged_attention(q, k, v, parts, lambda x, p: x * 1.0, SCALE, operator)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert grad.shape == x.shape


# Which path is taken -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "head_dim", "name", "reasons"),
    [
        ("auto", "cpu", torch.float32, 64, "sdpa", {"flash"}),
        ("auto", "cuda:1", torch.bfloat16, 64, "flash", set()),
        ("auto", "cuda", torch.float32, 64, "sdpa", {"flash"}),
        ("auto", "cuda", torch.bfloat16, 20, "sdpa", {"flash"}),
        ("auto", "cuda", torch.float64, 64, "eager", {"flash", "sdpa"}),
        ("auto", "mps", torch.float32, 64, "eager", {"flash", "sdpa"}),
        ("eager", "cpu", torch.float64, 20, "eager", set()),
        ("dense", "cuda", torch.float32, 64, "dense", set()),
    ],
)
def test_the_choice(
    asked: str,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    name: str,
    reasons: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CudaFlash, "available", lambda: True)  # as where there is CUDA
    choice = choose(asked, device, dtype, head_dim)
    assert choice.name == name
    assert {reason.partition(":")[0] for reason in choice.reasons} == reasons
    assert str(choice).startswith(name)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "words"),
    [
        ("flash", "cpu", torch.float32, "needs a CUDA device"),
        ("flash", "cuda", torch.float32, "float16 or bfloat16, not float32"),
        ("sdpa", "cuda", torch.float64, "float64"),
        ("fast", "cpu", torch.float32, "unknown attention path 'fast'"),
        ("triton", "cpu", torch.float32, "unknown attention path 'triton': valid: auto"),
        ("flex", "cpu", torch.float32, "unknown attention path 'flex': .*valid: auto"),
    ],
)
def test_a_path_that_cannot_run(asked: str, device: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        choose(asked, device, dtype, 64)
    assert "eager" in str(caught.value)
    model, ids = random_model(), tokens(20)
    if device == "cpu":
        plain = logits(model, ids)
        with pytest.raises(UsageError, match=words):
            ctxext.patch(model, "rerope", attn=asked)
        assert torch.equal(logits(model, ids), plain)


def test_every_path_has_a_line() -> None:
    assert paths.__doc__
    assert [line.split()[0] for line in paths.__doc__.splitlines()[2:]] == [*PATHS, "dense"]


# Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", [*NARROW.values(), "leaky-rerope:window=5,leak=3+logn"])
def test_prefill_in_chunks_of_padded_rows(spec: str, attn: str) -> None:
    """Left-padded rows read in long chunks, short ones and single steps, each as it is alone."""
    model, rows = random_model(), [tokens(n, seed=n)[0] for n in (90, 61, 20)]
    ids, mask, positions = padded(rows)
    with ctxext.patched(model, spec, 200, attn="dense"):
        alone = [logits(model, row[None])[0] for row in rows]
    with ctxext.patched(model, spec, 200, attn=attn) as handle:
        assert handle.attention == attn
        whole = logits(model, ids, attention_mask=mask, position_ids=positions)
        cache, given = DynamicCache(config=model.config), []
        for a, b in itertools.pairwise((0, 40, 75, 80, *range(81, 91))):
            part = positions[:, a:b]
            given.append(
                logits(model, ids[:, a:b], attention_mask=mask[:, :b], position_ids=part,
                       **{CACHE: cache})
            )  # fmt: skip
        for out in (whole, torch.cat(given, 1)):
            for i, want in enumerate(alone):
                close(out[i][mask[i].bool()], want)


def test_a_padded_batch_has_no_quadratic_mask() -> None:
    """Neither of two rows' padding nor of a chunk on a cache; packed rows keep theirs."""
    model = random_model(num_hidden_layers=1)
    ids, mask, _ = padded([tokens(1024)[0], tokens(700)[0]])
    with ctxext.patched(model, "rerope"), torch.no_grad():
        with Largest() as largest:
            model.model(ids, attention_mask=mask)
        assert largest.size <= 2 * 1024 * 128
        config, embeds = model.config, torch.zeros(2, 1024, 64)
        assert create_causal_mask(config, embeds, mask, None).shape == (2, 1, 1, 1024)
        assert create_causal_mask(config, embeds, torch.ones_like(mask), None) is None
        packed = torch.arange(1024)[None] % 512
        assert create_causal_mask(config, embeds, None, None, packed).shape == (2, 1, 1024, 1024)


def test_compiled_models_give_the_same() -> None:
    """torch.compile breaks its graph at what we put in; prefill and decoding stay right."""
    model, ids = random_model(num_hidden_layers=1), tokens(40)
    with ctxext.patched(model, "rerope:window=5+logn", 64), torch.no_grad():
        plain = logits(model, ids)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        cache = DynamicCache(config=model.config)
        given = [
            compiled(ids[:, a:b], **{CACHE: cache}).logits
            for a, b in itertools.pairwise((0, 38, 39, 40))
        ]
        close(torch.cat(given, 1), plain)
    torch.compiler.reset()


@pytest.mark.parametrize("layers", [1, 4])
def test_query_scales_break_no_layers_graph(layers: int) -> None:
    """As many graphs for any number of layers: what a scale is of is found in one operation."""
    model, graphs = random_model(num_hidden_layers=layers), []
    ids, mask, positions = padded([tokens(n, seed=n)[0] for n in (40, 33)])
    given = {"attention_mask": mask, "position_ids": positions}

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with ctxext.patched(model, "logn", 64), torch.no_grad():
        plain = logits(model, ids, **given)
        ours = torch.compile(model, backend=backend)(ids, **given).logits
        close(ours[mask.bool()], plain[mask.bool()])
        assert len(graphs) <= 4
    torch.compiler.reset()


def test_chunked_masks_stay_linear() -> None:
    """A mask that nothing else serves goes to the chunked reference from every path."""
    q, k, v = inputs(1, 2, 2, 40, 40)
    mask = (torch.rand(1, 1, 40, 40) < 0.5) | torch.eye(40, dtype=torch.bool)
    parts = parts_of("rerope", 5, 1)
    want = chunked_attention(q, k, v, parts, turn, SCALE, mask)
    for path in PATHS:
        assert torch.equal(attend(path, q, k, v, parts, turn, SCALE, mask=mask), want)
