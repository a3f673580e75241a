"""A model's head by itself, for models of other shapes than transformers' plain ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from ctxext.errors import UnsupportedModelError
from ctxext.measure import tokens as reading
from ctxext.measure.head import TOKENS, Head

V = 97
IDS = conftest.tokens(30, batch=3)


class Odd(nn.Module):
    """A causal model whose parts have names of their own."""

    config = SimpleNamespace(model_type="odd")

    def __init__(self, output: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body = nn.Embedding(V, 16), nn.GRU(16, 24, batch_first=True)
        self.scores, self.output = nn.Linear(24, V), output

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        hidden, _ = self.body(self.table(input_ids))
        return self.output(self, hidden)


def named(logits: Tensor) -> Any:
    return SimpleNamespace(logits=logits)


# A model's last lines, and whether its head stands apart.
ODD: dict[str, tuple[Callable[[Odd, Tensor], Any], bool]] = {
    "tuple": (lambda m, h: (m.scores(h), None), True),
    "capped": (lambda m, h: named(30 * (m.scores(h / 3) / 30).tanh()), True),
    "twice": (lambda m, h: named(m.scores(h) + m.scores(h.tanh())), False),
    "no-module": (lambda m, h: named(h @ m.scores.weight.T), False),
    "cut": (lambda m, h: named(m.scores(h)[..., : V - 1]), False),
    "by-place": (
        lambda m, h: named(m.scores(h) * torch.linspace(1, 2, h.shape[1])[:, None]), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ODD)
def test_odd_models_are_scored_as_by_all_their_logits(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, apart = ODD[shape]
    model, ids = Odd(output).eval(), IDS % (V - 1)
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 7 * V)
    with torch.inference_mode():
        assert Head(model, ids[:1]).apart is apart
    check(model, ids)


# What an own base, or one head for all, got wrong: wrappers, a head inside a causal model, others.
KINDS = ["gemma3", "gemma4_text", "llama4", "mixtral", "modernbert-decoder", "minicpm3"]


@pytest.mark.parametrize("kind", KINDS)
def test_families_are_scored_as_by_all_their_logits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = tiny_model(kind), list[int]()
    size = model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 10 * size)
    hook = model.get_output_embeddings().register_forward_hook(
        lambda *args: rows.append(args[2].numel() // size)
    )
    reading.score(model, conftest.whole(IDS), 3)
    hook.remove()
    assert max(rows) == 10  # at once
    assert sum(rows) <= IDS[:, 1:].numel() + len(IDS) + 4 * TOKENS
    check(model, IDS)


def check(model: Any, ids: Tensor) -> None:
    """Scores against the log-softmax of one forward's logits, in float64."""
    scores = reading.score(model, conftest.whole(ids), 2)
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False)
    logits = (out[0] if isinstance(out, tuple) else out.logits)[:, :-1].double()
    nll = -logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(scores.nll, nll.flatten(), rtol=1e-5, atol=1e-5)
    assert (scores.hit == (logits.argmax(-1) == ids[:, 1:]).flatten().numpy()).all()


def test_a_model_that_scores_fewer_tokens_than_it_reads_is_refused() -> None:
    model = Odd(lambda m, h: named(m.scores(h[:, -1:])))
    with pytest.raises(UnsupportedModelError, match="odd does not give logits for each token"):
        reading.score(model, conftest.whole(IDS), 2)
