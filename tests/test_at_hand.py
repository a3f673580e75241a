"""`factor=auto`: each sequence that a patched model reads has the factor that its length needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import threads
import torch
import transformers
from conftest import CACHE, TRAINED, random_model, tokens
from families import tiny_model
from test_export import PROOF, saved
from torch import Tensor

import ctxext
from ctxext.errors import CtxextError, UnsupportedModelError, UsageError
from ctxext.export import write
from ctxext.export.write import CARRIED, Order, export
from ctxext.methods import parse
from ctxext.methods.base import Span, rung

AUTO = "yarn:factor=auto"
LENGTHS, FACTORS = (10, 40, 100), (1, 2, 4)  # of rows, and what the ladder has for them


def fixed(factor: float, spec: str = AUTO) -> str:
    """The spec with a factor in place of auto; plain rope where it does nothing."""
    return "rope" if factor == 1 and spec == AUTO else spec.replace("auto", str(factor))


def under(model: Any, spec: str, function: Callable[[], Any]) -> Any:
    """What a function gives on the patched model."""
    with ctxext.patched(model, spec), torch.no_grad():
        return function()


def read(model: Any, spec: str, n: int) -> Tensor:
    """The logits of two rows of n tokens."""
    return under(model, spec, lambda: model(tokens(n, 2)).logits)


def padded() -> dict[str, Tensor]:
    """Rows of LENGTHS tokens, padded on the left."""
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(LENGTHS):
        ids[row, -n:], mask[row, -n:] = tokens(n, seed=row)[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def model() -> Any:
    """A Llama that writes as many tokens as it may."""
    made = random_model()
    made.generation_config.eos_token_id = None
    return made


# Which factor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("pi:factor=auto", {31: 1, 32: 1, 33: 2, 65: 4, 1000: 32}),
        ("ntk:factor=auto,ladder=1/3/40", {32: 1, 33: 3, 96: 3, 97: 40}),
        ("self-extend:group=auto", {32: 1, 33: 2, 100: 4}),
        ("leaky-rerope:leak=auto", {32: 1, 33: 4, 200: 32}),
    ],
)
def test_the_ladder(spec: str, wanted: dict[int, float]) -> None:
    """Resolved for a length, as `ctxext eval` does, it is the method with that number."""
    found = parse(spec)
    assert str(parse(str(found))) == str(found)
    (method,) = found.methods
    for length, number in wanted.items():
        plain = spec.partition(",")[0].replace("auto", str(number))
        assert found.resolve(Span(TRAINED, length)) == parse(plain).resolve(Span(TRAINED, length))
    assert found.at_hand == (f"{method.name}:{method.autos[0]}=auto",)
    assert found.settle(Span(TRAINED)) == found


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("yarn:factor=aut", "a finite number such as 8 or 0.625, or auto"),
        ("yarn:factor=auto,ladder=4/2", "rising numbers from 1 on"),
        ("yarn:factor=auto,ladder=1/x", "rising numbers from 1 on"),
        ("yarn:factor=4,ladder=1/2", "given with factor=auto"),
        ("self-extend:group=auto,ladder=1/2.5", "whole numbers"),
    ],
)
def test_what_is_no_ladder(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(spec)


def test_a_ladder_ends() -> None:
    assert (rung(0.1), rung(1), rung(1.01), rung(3, "1/4")) == (1, 1, 2, 4)
    with pytest.raises(UsageError, match="the ladder 1/4 ends at 4, and the sequence needs 5"):
        rung(5, "1/4")


# What a patched model computes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [AUTO, "ntk:factor=auto", "pi:factor=2+beta-radix:factor=auto+logn"]
)
def test_each_length(model: Any, spec: str) -> None:
    """Bit for bit as unpatched up to T, and as the ladder's factor beyond."""
    for n, factor in ((TRAINED, 1), (TRAINED + 1, 2), (100, 4)):
        assert torch.equal(read(model, spec, n), read(model, fixed(factor, spec), n))


def test_rows_of_several_lengths(model: Any) -> None:
    rows = padded()

    def read() -> Tensor:
        return model(**rows).logits

    found = under(model, AUTO, read)
    for row, (n, factor) in enumerate(zip(LENGTHS, FACTORS, strict=True)):
        assert torch.equal(found[row, -n:], under(model, fixed(factor), read)[row, -n:])


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 30}],
    ids=str,
)
def test_what_is_written(model: Any, how: dict[str, Any]) -> None:
    """With room for what may follow: with 22 tokens more the rows just need their factors."""
    rows, factors = padded(), FACTORS

    def write_on() -> Tensor:
        return model.generate(**rows, max_new_tokens=22, do_sample=False, **how)

    found = under(model, AUTO, write_on)
    for row, factor in enumerate(factors):
        assert torch.equal(found[row], under(model, fixed(factor), write_on)[row])


@pytest.mark.parametrize(("given", "factor"), [({"max_new_tokens": 2}, 1), ({"max_length": 33}, 2)])
def test_a_limit(model: Any, given: dict[str, int], factor: int) -> None:
    def write_on() -> Tensor:
        out = model.generate(
            tokens(30), do_sample=False, output_logits=True, return_dict_in_generate=True, **given
        )
        return torch.stack(out.logits)

    assert torch.equal(under(model, AUTO, write_on), under(model, fixed(factor), write_on))


def test_a_cache_keeps_what_it_began_with(model: Any) -> None:
    ids = tokens(TRAINED + 20)

    def read() -> Tensor:
        cache = model(ids[:, :TRAINED])[CACHE]
        steps = ids[:, TRAINED:].tensor_split((4, 5), 1)
        return torch.cat([model(x, **{CACHE: cache}).logits for x in steps], 1)

    assert torch.equal(under(model, AUTO, read), under(model, "rope", read))
    cache = model(ids[:, :TRAINED])[CACHE]
    rows = padded()
    with ctxext.patched(model, AUTO):
        with pytest.raises(
            UnsupportedModelError, match=r"not written under this patch.*factor=auto"
        ):
            model(ids[:, :3], **{CACHE: cache})
        mixed = model(**rows)[CACHE]
        with pytest.raises(UnsupportedModelError, match="began with 3 rows of several lengths"):
            model(ids[:, :1], **{CACHE: mixed})
        with pytest.raises(UnsupportedModelError, match="positions begin at 7 without a cache"):
            model(ids[:, :1], position_ids=torch.tensor([[7]]))


def test_packed_rows(model: Any) -> None:
    lengths = (20, 50)
    both = torch.cat([tokens(n, seed=n) for n in lengths], 1)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]

    def read() -> Tensor:
        return model(both, position_ids=positions, use_cache=False).logits

    found = under(model, AUTO, read)
    assert torch.equal(found[:, :20], under(model, "rope", read)[:, :20])
    assert torch.equal(found[:, 20:], under(model, fixed(2), read)[:, 20:])


def test_layers_that_are_left_alone() -> None:
    model = threads.model_of("shared")
    for n, factor in ((20, 1), (100, 4)):
        assert torch.equal(read(model, AUTO, n), read(model, fixed(factor), n))


def test_threads_read_texts_of_several_lengths() -> None:
    assert threads.differing("llama", AUTO, 24) == 0


def test_copied_and_removed(model: Any) -> None:
    ids = tokens(100)
    handle = ctxext.patch(model, AUTO)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(ids).logits
        handle.remove()
        assert torch.equal(copied(ids).logits, wanted)
        assert not torch.equal(model(ids).logits, wanted)
    assert "generate" not in vars(model)


# What is exported, and what is refused -----------------------------------------------------------


def test_carried_code_writes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    monkeypatch.setattr(write, "prove", lambda *_, **__: PROOF)
    source, out = saved(tmp_path / "source"), tmp_path / "out"
    done = export(Order(source, parse(AUTO), 4 * TRAINED, out))
    assert (done.expression, done.spec) == (CARRIED, "yarn:factor=auto,beta_fast=32,beta_slow=1")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    theirs.generation_config.eos_token_id = None
    for n in (10, 60):
        with ctxext.patched(model, AUTO):
            wanted = model.generate(tokens(n), max_new_tokens=9, do_sample=False)
        found = theirs.generate(tokens(n), max_new_tokens=9, do_sample=False)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("option", ["native_only", "gguf", "config_only"])
def test_no_config_says_it(tmp_path: Path, option: str) -> None:
    source = saved(tmp_path / "source")
    with pytest.raises(CtxextError, match=r"factor=auto|beside its weights"):
        export(Order(source, parse(AUTO), 4 * TRAINED, tmp_path / "out", **{option: True}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["self-extend:group=auto", "rerope+yarn:factor=auto"])
def test_not_with_distance(model: Any, spec: str) -> None:
    with pytest.raises(UsageError, match="=auto goes with frequency methods and query scales"):
        ctxext.patch(model, spec)


def test_not_with_a_scaling_that_goes_by_the_length() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = tiny_model("llama", rope_parameters=dynamic)
    with pytest.raises(UsageError, match="the model's own dynamic rope scaling goes by the length"):
        ctxext.patch(model, AUTO, 100)
