"""The shipped model: what it is, and that on it each method does what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import by_window, whole

import ctxext
from ctxext.measure import tokens as reading
from ctxext.models.aliases import ASSETS, SHIPPED
from ctxext.tasks.data import HELD_OUT_MODULES, HELD_OUT_TOPICS, load_text

TRAINED, LONG, COUNT = 512, 4096, 16
TAIL = slice(LONG - TRAINED // 2 - 1, None)  # of nll [windows, length−1]: tokens 3840 … 4095


@pytest.fixture(scope="module")
def tiny() -> tuple[object, object]:
    """The model and its tokenizer."""
    return ctxext.load("tiny")


@pytest.fixture(scope="module")
def ids(tiny: tuple[object, object]) -> torch.Tensor:
    """The first tokens of the held-out text."""
    return reading.tokenise(load_text("stdlib"), tiny[1], COUNT * LONG)


def tail_loss(tiny: tuple[object, object], ids: torch.Tensor, method: str) -> np.ndarray:
    """Mean loss of each 4k window's last 256 tokens, in nats per token [windows]."""
    with ctxext.patched(tiny[0], method, LONG):
        found = reading.score(tiny[0], whole(ids.view(-1, LONG)), batch=1).nll
        return by_window(found, COUNT)[:, TAIL].mean(1)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_is_small_trained_at_512_and_stored_in_16_bits(name: str) -> None:
    model, tokenizer = ctxext.load(name)
    assert sum(path.stat().st_size for path in (ASSETS / name).iterdir()) <= 8 * 2**20
    assert model.config.max_position_embeddings == TRAINED
    assert model.config.head_dim == 64
    assert model.dtype == torch.float32
    assert 2000 <= len(tokenizer) <= 4096
    assert json.loads((ASSETS / name / "config.json").read_text())["dtype"] == "float16"


def test_its_tokenizer_gives_back_any_text(tiny: tuple[object, object]) -> None:
    for text in ("  def f(x):\n\treturn x  \n", "naïve 北京 🙂 \x00", "12345", " a  b ,  c"):
        assert tiny[1].decode(tiny[1](text).input_ids) == text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_provenance_names_what_was_held_out(name: str) -> None:
    provenance = json.loads((ASSETS / name / "provenance.json").read_text())
    text = json.dumps(provenance)
    assert all(word in text for word in (*HELD_OUT_MODULES, *HELD_OUT_TOPICS))
    assert str(Path.home()) not in text
    assert provenance["finished"]


@pytest.mark.parametrize("name", SHIPPED[1:])
def test_the_family_differs_in_what_it_was_trained_under_alone(name: str) -> None:
    made, tiny = (json.loads((ASSETS / n / "provenance.json").read_text()) for n in (name, "tiny"))
    alike = ("seed", "tokens", "steps", "context", "model", "optimizer", "phases", "corpus")
    assert [made[field] for field in alike] == [tiny[field] for field in alike]
    assert made["method"] != tiny["method"] == "rope"
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (ASSETS / name / file).read_bytes() == (ASSETS / "tiny" / file).read_bytes()
    weights = [ctxext.load(n)[0].state_dict() for n in (name, "tiny")]
    assert any(not weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_methods_rank_as_published_beyond_the_trained_length(
    tiny: tuple[object, object], ids: torch.Tensor
) -> None:
    """Losses on the same tokens, read at 4k by each method and at 512 by the unpatched model.

    Each Python has a text of its own, so ReRoPE's bound of 0.05 nat has two standard errors of the
    paired differences (0.03 nat over 16 windows) added.
    """
    short = reading.score(tiny[0], whole(ids.view(-1, TRAINED)), batch=8).nll
    same = short.reshape(COUNT, LONG // TRAINED, -1)[:, -1, TRAINED // 2 - 1 :].mean(1)
    names = ("rope", "ntk", "rerope", "rerope+logn")
    tails = {name: tail_loss(tiny, ids, name) for name in names}
    loss = {name: tail.mean() for name, tail in tails.items()}
    excess = tails["rerope"] - same
    assert loss["rope"] > loss["ntk"] > loss["rerope"]
    assert loss["rope"] >= same.mean() + 0.3
    assert excess.mean() <= 0.05 + 2 * excess.std(ddof=1) / COUNT**0.5
    assert loss["rerope+logn"] <= loss["rerope"]
