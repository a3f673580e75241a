"""`entropy-cap` beyond one plain forward, which `test_methods.py` holds to the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CACHE, TRAINED, random_model, tokens
from families import tiny_model
from torch import Tensor

import ctxext
from ctxext.engine import sharpened
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export.write import Order, check
from ctxext.methods import parse

SPEC, N = "entropy-cap:most=8", 3 * TRAINED + 1


def close(found: Tensor, wanted: Tensor) -> None:
    """Within what float32 rounds in other orders: logits are of some 10, seen are 3e-6 of them."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@torch.no_grad()
def test_steps_rows_and_chunks(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """Cached steps, padded and packed rows, and chunks of queries give what one forward gives."""
    model = random_model(attn_implementation=own)
    ids, short = tokens(N), tokens(57, seed=3)
    plain = model(ids).logits
    with ctxext.patched(model, SPEC):
        whole, alone = model(ids).logits, model(short).logits
        assert torch.equal(whole[:, :TRAINED], plain[:, :TRAINED])
        assert not torch.allclose(whole[:, TRAINED:], plain[:, TRAINED:], atol=1e-3)
        cache = model(ids[:, :50])[CACHE]
        steps = [model(x, **{CACHE: cache}).logits for x in ids[:, 50:].tensor_split((1, 9), 1)]
        close(torch.cat(steps, 1), whole[:, 50:])
        rows = torch.cat((ids, torch.nn.functional.pad(short, (N - 57, 0))))
        mask = torch.ones_like(rows)
        mask[1, : N - 57] = 0
        padded = model(rows, attention_mask=mask).logits
        close(padded[0], whole[0])
        close(padded[1, N - 57 :], alone[0])
        positions = torch.cat((torch.arange(N), torch.arange(57)))[None]
        packed = model(torch.cat((ids, short), 1), position_ids=positions, use_cache=False).logits
        close(packed[:, N:], alone)
        monkeypatch.setattr(sharpened, "SCORES_AT_ONCE", 1000)
        close(model(ids).logits, whole)


def entropy(logits: Tensor) -> float:
    log_p = logits.log_softmax(-1)
    return float(-(log_p.exp() * log_p).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_entropy_is_what_it_should_be(dtype: torch.dtype) -> None:
    """Of hard rows too: one key far above, all alike but some, hundreds of nats apart."""
    (method,) = parse(SPEC).methods
    torch.manual_seed(0)
    rows = torch.randn(6, 100, dtype=dtype) * torch.tensor([[0.01, 1, 3, 10, 1, 1]], dtype=dtype).T
    rows[4, 50] = 300
    rows[5, :32] = -200
    place = torch.arange(1, 101).expand(1, 1, 6, -1)
    gamma = method.sharper(rows[None, None], place, TRAINED)[0, 0, :, 0]
    for row, found in zip(rows.double(), gamma.double(), strict=True):
        goal = entropy(torch.cat((row[:4], row[4 - TRAINED :])))
        if found == 1:
            assert entropy(row) <= goal + 1e-6
        elif found == 8:
            assert entropy(8 * row) >= goal - 1e-6
        else:
            assert entropy(found * row) == pytest.approx(
                goal, abs=1e-3 if dtype == torch.float32 else 1e-9
            )
    assert gamma[0] == 8  # near-flat rows would ask for more
    assert gamma[1] > 1


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (SPEC, {"attn": "sdpa"}, "attention path 'sdpa' cannot run entropy-cap"),
        ("entropy-cap:sinks=32", {}, "sinks 32 is not below T, 32"),
        ("entropy-cap:most=0.5", {}, "'most': must be at least 1"),
        ("entropy-cap+rerope", {}, "entropy-cap .* not with rerope"),
        ("entropy-cap+entropy-cap", {}, "entropy-cap .* not with entropy-cap"),
    ],
)
def test_refused(spec: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ctxext.patch(random_model(), spec, **options)


def test_refused_by_a_model_or_a_config() -> None:
    model = tiny_model("gemma2", attn_logit_softcapping=5.0)
    with pytest.raises(UnsupportedModelError, match="capped"):
        ctxext.patch(model, SPEC)
    with pytest.raises(UsageError, match="entropy-cap changes attention itself"):
        check(Order(None, parse(SPEC), 64, None, native_only=True))
