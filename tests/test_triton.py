"""The fused kernel against the dense reference in float64: on a GPU, or by Triton's interpreter.

What torch leaves uninitialised is NaN here, and so is the storage around queries, keys and values.

In float32 an output is off by 2e-5 at most, as that of chunks is: sums of up to 256 products of
size 10 and 150 weights err by (256 + 150)·10·2^-24 = 2.4e-4 at the very worst, and by a tenth of
that where roundings average out. In 16 bits, with u the unit roundoff (2^-11, 2^-8), roundings of
turned queries and keys make a score, d^-1/2 times a sum of d products that are each off by
√(2/3)·u, off by 0.8 u, or 3 u in the worst of hundreds; an output moves by that times the spread
of its values, at most 3. Roundings of weights and of outputs, with values up to 4, make 4 u and
2 u at most. Together 15 u.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
pytest.importorskip("triton", reason="triton is not installed")

import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctxext.engine import fused
from ctxext.engine.fused import fused_attention, why_not
from ctxext.engine.reference import dense_attention
from ctxext.errors import UnsupportedModelError
from ctxext.patches import REGISTRY
from ctxext.patches.base import Part, as_held, identity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]
KINDS = ["rerope", "leaky-rerope", "self-extend", "three"]
TILINGS = [(16, 16), (32, 16), (16, 32), (64, 32)]


@pytest.fixture(autouse=True)
def _uninitialised_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def tiled(rows: int, slots: int) -> Any:
    """The kernel in small blocks, so that short inputs have many."""
    return mock.patch.object(fused, "_tiling", return_value=fused._Tiling(rows, slots, 4, 2))


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """x [b, *, l, d] rotated by positions [l], halves paired, rounded once."""
    half = x.shape[-1] // 2
    angle = (positions[:, None] * 100.0 ** (-torch.arange(half) / half)).to(x.device)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.double().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def method(kind: str, window: int) -> tuple[Part, ...]:
    """A method's parts as seen from keys that are turned as the last part needs them."""
    if kind == "three":
        parts = (
            Part(0, window, identity, identity),
            Part(window, 2 * window, lambda q: window + (q - window) / 2.5, lambda k: k / 2.5),
            Part(2 * window, None, lambda q: q * 0 + 1.5 * window, lambda k: k * 0),
        )
    else:
        more = {"leaky-rerope": {"leak": 2.5}, "self-extend": {"group": 3}}.get(kind, {})
        parts = REGISTRY.get(kind)(window=window, **more).parts()
    done = parts[-1].key

    def left(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: own(x) - done(x)

    return tuple(
        Part(p.start, p.stop, left(p.query), as_held if p.key is done else left(p.key))
        for p in parts
    )


def inputs(
    b: int, h: int, g: int, n: int, m: int, d: int, v: int, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """Queries [b, h, n, d], keys [b, g, m, d] and values [b, g, m, v], amid NaN."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, h, n, d), (b, g, m, d), (b, g, m, v))
    return [surrounded(torch.randn(s, generator=generator).to(DEVICE, dtype)) for s in shapes]


def surrounded(x: Tensor) -> Tensor:
    """x [b, h, l, d] in NaN storage, laid out as a model's projections are: [b, l, h, d]."""
    b, h, length, d = x.shape
    storage = x.new_full((b, length + 6, h, d + 8), torch.nan)
    return storage[:, 3 : length + 3, :, :d].transpose(1, 2).copy_(x)


def check(
    q: Tensor, k: Tensor, v: Tensor, parts: tuple[Part, ...], first: Tensor | None = None
) -> None:
    """The kernel gives what the reference gives in float64, and 0 before a row's first token."""
    b, m, scaling = len(q), k.shape[2], q.shape[3] ** -0.5
    start = torch.zeros(b, dtype=torch.long) if first is None else first
    token = (torch.arange(m) >= start[:, None])[:, None, :, None]  # [b, 1, m, 1]
    asked = token[:, :, m - q.shape[2] :]
    seen = token.mT.expand(-1, -1, q.shape[2], -1)
    truth = dense_attention(*(x.cpu().double() for x in (q, k, v)), parts, turn, scaling, seen)
    q, k, v = (
        surrounded(x.masked_fill(~here.to(DEVICE), torch.nan)) if first is not None else x
        for x, here in ((q, asked), (k, token), (v, token))
    )
    ours = fused_attention(q, k, v, parts, turn, scaling, first)
    assert (ours.dtype, ours.shape) == (q.dtype, truth.shape)
    assert ours.transpose(1, 2).is_contiguous()
    tolerance = 2e-5 if q.dtype == torch.float32 else 15 * torch.finfo(q.dtype).eps / 2
    expected = truth.masked_fill(~asked, 0.0)
    torch.testing.assert_close(ours.cpu().double(), expected, rtol=0, atol=tolerance)


def test_the_kernel_runs_here() -> None:
    """It does not where Triton was imported before its interpreter was asked for."""
    assert why_not(DEVICE, torch.float32, 64) is None


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_fused_is_dense(data: st.DataObject) -> None:
    draw = data.draw
    b, (h, g) = draw(st.integers(1, 2)), draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2)]))
    m = draw(st.integers(1, 150 if b * h < 4 else 60))
    n = draw(st.one_of(st.just(m), st.just(1), st.integers(1, m)))
    window = draw(st.one_of(st.just(1), st.just(m), st.integers(1, m + 5)))
    parts = method(draw(st.sampled_from(KINDS)), window)
    q, k, v = inputs(b, h, g, n, m, 32, 34, torch.float32, draw(st.integers(0, 99)))
    first = draw(st.none() | st.lists(st.integers(0, m), min_size=b, max_size=b).map(torch.tensor))
    with tiled(*draw(st.sampled_from(TILINGS))):
        check(q, k, v, parts, first)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("d", "v"), [(32, 32), (40, 40), (64, 32), (80, 80), (34, 97), (128, 128), (256, 256)]
)
def test_head_dimensions(d: int, v: int, dtype: torch.dtype) -> None:
    with tiled(32, 16):
        check(*inputs(1, 2, 1, 70, 90, d, v, dtype), method("rerope", 21))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_16_bits(kind: str, dtype: torch.dtype) -> None:
    with tiled(32, 32):
        check(
            *inputs(2, 2, 1, 110, 120, 64, 64, dtype),
            method(kind, 37),
            torch.tensor([0, 9, 50])[::2],
        )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("n", [150, 1])
def test_blocks_of_its_own_choice(n: int, dtype: torch.dtype) -> None:
    check(*inputs(1, 2, 1, n, 150, 64, 64, dtype), method("three", 30))


@pytest.mark.parametrize("layout", ["odd rows", "columns apart", "one row for both"])
def test_strides(layout: str) -> None:
    tensors = inputs(2, 4, 2, 40, 50, 32, 32, torch.float32)
    if layout == "odd rows":
        tensors = [x.new_zeros(*x.shape[:3], 37)[..., 2:34].copy_(x) for x in tensors]
    elif layout == "columns apart":
        tensors = [x.mT.contiguous().mT for x in tensors]
    else:
        tensors = [x[:1].expand(2, -1, -1, -1) for x in tensors]
    with tiled(16, 16):
        check(*tensors, method("rerope", 11))


@pytest.mark.parametrize("cache", [1, 2**15])
def test_the_order_of_blocks_is_free(cache: int) -> None:
    """Heads go side by side by twos, or by four and the two that are left."""
    with tiled(16, 16), mock.patch.object(fused, "CACHE", cache):
        check(*inputs(1, 6, 3, 33, 33, 32, 32, torch.float32), method("rerope", 11))


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
@pytest.mark.parametrize("n", [97, 40, 34, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_work_done(kind: str, n: int) -> None:
    """A part visits a tile if it shows it to the block, and masks it if not to all of the block."""
    m, rows, slots, first = 97, 32, 16, [0, 19]
    parts = method(kind, 23)
    expected: Counter[str] = Counter()
    for low, part, start in itertools.product(range(m - n, m, rows), parts, first):
        delta = torch.arange(low, min(low + rows, m))[:, None] - torch.arange(m)
        seen = (delta >= part.start) & (delta < (part.stop or m)) & (torch.arange(m) >= start)
        tiles = seen[:, seen.any(0)].split(slots, 1) if seen.any() else ()
        expected["products"] += 2 * len(tiles)
        expected["masks"] += sum(not tile.all() or tile.shape[1] < slots for tile in tiles)
    done: Counter[str] = Counter()
    builder = triton.runtime.interpreter.interpreter_builder
    dot, select = builder.create_dot, builder.create_select

    def counted_dot(*args: Any) -> Any:
        done["products"] += 1
        return dot(*args)

    def counted_select(seen: Any, *args: Any) -> Any:
        done["masks"] += seen.data.shape == (rows, slots)
        return select(seen, *args)

    tensors = inputs(2, 1, 1, n, m, 32, 32, torch.float32)
    with (
        tiled(rows, slots),
        mock.patch.object(builder, "create_dot", counted_dot),
        mock.patch.object(builder, "create_select", counted_select),
    ):
        fused_attention(*tensors, parts, turn, 0.2, torch.tensor(first))
    assert done == expected


@pytest.mark.parametrize(("window", "lengths"), [(23, [23, 1, 1]), (97, [97, 1])])
def test_only_what_is_seen_is_turned(window: int, lengths: list[int]) -> None:
    """Near keys within the window, and the query once for each part that has keys."""
    turned = []

    def recorded(x: Tensor, positions: Tensor) -> Tensor:
        turned.append(len(positions))
        return turn(x, positions)

    fused_attention(
        *inputs(1, 1, 1, 1, 97, 32, 32, torch.float32), method("rerope", window), recorded, 0.2
    )
    assert turned == lengths


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("shared", [99, 163, 227])
def test_tilings_fit(shared: int, itemsize: int) -> None:
    """Queries, and keys and values at each stage, in shared KiB; powers of two, as dots need."""
    for width, n in itertools.product((32, 64, 128, 256), (1, 17, 64, 65, 4096)):
        rows, slots, _, stages = fused._tiling(width, itemsize, n, shared * 2**10)
        assert (rows + 2 * stages * slots) * width * itemsize <= shared * 2**10
        assert {rows, slots} <= {16, 32, 64, 128}
        assert stages >= 1


def test_it_compiles_for_an_h100(tmp_path: Path) -> None:
    """In a process of its own, since this one may interpret; compiling needs no GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", "import test_triton; test_triton.compile_for_an_h100()"],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


def compile_for_an_h100() -> None:
    """Compile what calls of 4096 tokens launch: tensor cores, asynchronous copies, and room."""
    compiled = []
    kernel = fused._forward
    driver = mock.Mock()
    driver.get_current_target.return_value = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    driver.get_current_device.return_value = 0
    triton.runtime.driver.set_active(driver)

    def compiler(grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: compiled.append(
            kernel.run(*args, grid=grid, warmup=True, **kwargs)
        )

    cases = [("rerope", 128, torch.bfloat16, None), ("three", 40, torch.float16, torch.tensor([3]))]
    with (
        mock.patch.object(
            fused, "_forward", mock.MagicMock(__getitem__=lambda _, grid: compiler(grid))
        ),
        mock.patch.object(fused, "why_not", return_value=None),
    ):
        for kind, d, dtype, first in cases:
            q, kv = torch.zeros(1, 4, 4096, d, dtype=dtype), torch.zeros(1, 2, 4096, d, dtype=dtype)
            fused_attention(q, kv, kv, method(kind, 1000), turn, 0.1, first)
    for each in compiled:
        assert each.metadata.shared <= fused.SHARED
        assert "wgmma.mma_async" in each.asm["ptx"]
        assert "cp.async.cg.shared.global" in each.asm["ptx"]
    assert len(compiled) == len(cases)


def test_what_it_cannot_take() -> None:
    parts = method("rerope", 5)
    q, k, v = inputs(1, 1, 1, 4, 4, 32, 32, torch.float32)
    wide = [torch.zeros(1, 1, 4, 320, device=DEVICE)] * 3
    refused: list[tuple[str, list[Tensor], tuple[Part, ...], float]] = [
        ("float64 is not served", [q.double(), k.double(), v.double()], parts, 0.5),
        ("a head dimension of 320 is not in 32 … 256", wide, parts, 0.5),
        ("a head dimension of 16 is not in 32 … 256", [q, k, v[..., :16]], parts, 0.5),
        ("its dtypes differ", [q, k.half(), v], parts, 0.5),
        ("6 parts are more than 3", [q, k, v], method("three", 5) * 2, 0.5),
        ("a scaling of 0.0 is not above 0", [q, k, v], parts, 0.0),
        ("no gradient", [q, k, v.clone().requires_grad_()], parts, 0.5),
    ]
    for message, tensors, given_parts, scaling in refused:
        with pytest.raises(UnsupportedModelError, match=message) as error:
            fused_attention(*tensors, given_parts, turn, scaling)
        assert str(error.value).isprintable()
    with torch.no_grad():
        fused_attention(q, k, v.clone().requires_grad_(), parts, turn, 0.5)


def test_why_not() -> None:
    assert why_not("mps", torch.float16, 64) == "it needs a CUDA device"
    assert why_not(DEVICE, torch.float64, 64) == "float64 is not served"
    assert why_not(DEVICE, torch.float16, 20) == "a head dimension of 20 is not in 32 … 256"
    bfloat16 = "bfloat16 is not served by Triton's interpreter" if DEVICE == "cpu" else None
    assert why_not(DEVICE, torch.bfloat16, 64) == bfloat16


def test_without_triton() -> None:
    spec = importlib.util.spec_from_file_location("bare", fused.__file__)
    bare = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"triton": None}):
        spec.loader.exec_module(bare)
    reason = "triton is not installed (pip install 'ctxext[triton]')"
    assert bare.why_not("cuda", torch.float16, 64) == reason
    tensors = inputs(1, 1, 1, 4, 4, 32, 32, torch.float32)
    with pytest.raises(UnsupportedModelError, match="triton is not installed"):
        bare.fused_attention(*tensors, method("rerope", 5), turn, 0.5)
