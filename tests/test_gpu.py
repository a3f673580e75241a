"""Every path that can run on this machine's CUDA device, against the float64 truth on its CPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import CACHE, random_model, tokens
from test_engine import ALIKE
from test_paths import SCALE, D, attend, parts_of, rotated_by, truth, turn

import ctxext
from ctxext.engine import PATHS
from ctxext.engine.paths import choose
from ctxext.errors import UsageError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
SHAPES = ((300, 300), (150, 400), (1, 300), (200, 201))
ROUNDING = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of outputs up to 4


def inputs(
    b: int, h: int, g: int, n: int, m: int, d: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, h, n, d), (b, g, m, d), (b, g, m, d))
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)


def able(path: str, dtype: torch.dtype, head_dim: int) -> None:
    try:
        choose(path, "cuda", dtype, head_dim)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", [*ALIKE, "three"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("path", PATHS)
def test_paths_on_cuda(
    path: str,
    dtype: torch.dtype,
    kind: str,
) -> None:
    able(path, dtype, D)
    for (n, m), g, window in itertools.product(SHAPES, (4, 2, 1), (1, 129, 5000)):
        q, k, v = inputs(2, 4, g, n, m, D, dtype)
        expected = truth(q, k, v, kind, window, 2.5, [0, 0])
        q, k, left = rotated_by(q, k, parts_of(kind, window, 2.5))
        ours = attend(path, q.cuda(), k.cuda(), v.cuda(), left, turn, SCALE)
        off = float((ours.double().cpu() - expected).abs().max())
        assert off <= ROUNDING[dtype], (n, m, g, window)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("path", PATHS)
def test_gradients_on_cuda(path: str, dtype: torch.dtype) -> None:
    """Mean errors of the gradients, which are sums of a few hundred rounded terms below 4."""
    able(path, dtype, 16)
    q, k, v = inputs(2, 4, 2, 300, 400, 16, torch.float64)
    q, k, left = rotated_by(q, k, parts_of("leaky-rerope", 130, 2.5))
    exact = [x.requires_grad_() for x in (q, k, v)]
    given = [x.detach().cuda().to(dtype).requires_grad_() for x in exact]
    cotangent = inputs(2, 4, 2, 300, 400, 16, torch.float64)[0]
    want = torch.autograd.grad(attend("dense", *exact, left, turn, SCALE), exact, cotangent)
    ours = attend(path, *given, left, turn, SCALE)
    got = torch.autograd.grad(ours, given, cotangent.cuda().to(dtype))
    for a, b in zip(got, want, strict=True):
        assert float((a.double().cpu() - b).abs().mean()) <= ROUNDING[dtype]


@pytest.mark.parametrize("path", PATHS)
def test_models_on_cuda(path: str) -> None:
    """Prefill, a padded batch and decoding in bfloat16: closer to float32 than 5% of its size."""
    able(path, torch.bfloat16, 32)
    model, ids = random_model(hidden_size=128), tokens(300, 2)
    mask = torch.ones_like(ids)
    mask[1, :77] = 0
    with ctxext.patched(model, "rerope:window=20+logn", 512, attn="dense"), torch.no_grad():
        want = model(ids, attention_mask=mask).logits
    model.to("cuda", torch.bfloat16)
    with ctxext.patched(model, "rerope:window=20+logn", 512, attn=path), torch.no_grad():
        whole = model(ids.cuda(), attention_mask=mask.cuda()).logits
        first = model(ids[:, :290].cuda(), attention_mask=mask[:, :290].cuda())
        cache, steps = first[CACHE], [first.logits]
        for i in range(290, 300):
            given = {"attention_mask": mask[:, : i + 1].cuda(), CACHE: cache}
            steps.append(model(ids[:, i : i + 1].cuda(), **given).logits)
    real = mask.bool()
    for out in (whole, torch.cat(steps, 1)):
        off = (out.float().cpu() - want)[real].abs().mean()
        assert off <= 0.05 * want[real].abs().mean()
