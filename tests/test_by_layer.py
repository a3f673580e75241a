"""A factor for each attention layer: `pi:layers=…`, and whatever else stretches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import threads
import torch
import transformers
from conftest import FAMILIES, TRAINED, random_model, tokens
from families import tiny_model
from test_export import PROOF, saved
from torch import Tensor

import ctxext
from ctxext.errors import CtxextError, UnsupportedModelError, UsageError
from ctxext.export import write
from ctxext.export.write import CARRIED, Order, export
from ctxext.methods import parse
from ctxext.methods.base import Span

L = 3 * TRAINED + 1
SPEC = "pi:layers=4/1.5"


def read(model: Any, spec: str, **options: Any) -> Tensor:
    """The logits of two rows of L tokens."""
    with ctxext.patched(model, spec, L, **options), torch.no_grad():
        return model(tokens(L, 2)).logits


# What a patched model computes -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["pi", "yarn", "pi+logn"])
def test_layers_that_are_alike(family: str, spec: str) -> None:
    """Bit for bit as one factor for all, and another where one of them differs."""
    model, (first, plus, rest) = random_model(family), spec.partition("+")
    one = read(model, f"{first}:factor=4{plus}{rest}")
    assert torch.equal(read(model, f"{first}:layers=4/4{plus}{rest}"), one)
    assert not torch.allclose(read(model, f"{first}:layers=4/2{plus}{rest}"), one, atol=1e-3)


def test_one_layer_alone() -> None:
    """A factor of 1 leaves a layer as it is: what the first layer gives is not changed."""
    model, seen = random_model(), []
    hook = model.model.layers[0].register_forward_hook(lambda *args: seen.append(args[2]))
    plain = model(tokens(L, 2)).logits
    assert not torch.allclose(read(model, "pi:layers=1/4"), plain, atol=1e-3)
    hook.remove()
    assert torch.equal(seen[0], seen[-1])
    assert torch.equal(model(tokens(L, 2)).logits, plain)


def test_layers_that_are_left_alone() -> None:
    """Of two that share frequencies one has a window; its number is as good as any."""
    model = threads.model_of("shared")
    assert torch.equal(read(model, "pi:layers=7/4"), read(model, "pi:factor=4"))
    with pytest.raises(
        UsageError, match="pi:layers has 1 factor, and the model 2 attention layers"
    ):
        ctxext.patch(model, "pi:layers=4")


def test_two_sets_of_frequencies() -> None:
    """Gemma 3's layers with a window have their own."""
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny_model("gemma3_text", layer_types=kinds, sliding_window=2 * TRAINED)
    assert torch.equal(read(model, "pi:layers=4/4/4/4"), read(model, "pi:factor=4"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
def test_training_with_checkpoints() -> None:
    """Layers that run again in a backward have their own factor again."""
    model = random_model().train()

    def gradient() -> Tensor:
        model.zero_grad()
        with ctxext.patched(model, f"{SPEC}+logn", L):
            model(tokens(L, 2), labels=tokens(L, 2)).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    wanted = gradient()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(), wanted, rtol=1e-4, atol=1e-6)


def test_copied_and_removed() -> None:
    model, ids = random_model(), tokens(L)
    handle = ctxext.patch(model, SPEC)
    assert handle.spec.full() == SPEC
    copied = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(ids).logits
        handle.remove()
        assert torch.equal(copied(ids).logits, wanted)
        assert not torch.equal(model(ids).logits, wanted)


def test_threads() -> None:
    assert threads.differing("llama", SPEC, 24) == 0


# Files, what is exported, and what is refused ----------------------------------------------------


def test_a_file_is_read_once_for_all(tmp_path: Path) -> None:
    """A resolved spec says its numbers, which no later change of the file reaches."""
    file = tmp_path / "factors.json"
    file.write_text("[4, 1.5, 1e3]")
    resolved = parse(f"yarn:layers=@{file},beta_slow=2").resolve(Span(TRAINED, L))
    assert str(resolved) == "yarn:layers=4/1.5/1000,beta_slow=2"
    assert parse(str(resolved)).resolve(Span(TRAINED, L)) == resolved
    for content, said in (
        ("{", "is not JSON"),
        ("{}", "the list of .* must be a list of numbers"),
        ("[]", "bad value .* for 'layers'"),
        ("[1, 0.5]", r"the list\[1\] of .* is '0.5': give numbers of 1 … 1e\+06"),
        ("[NaN]", "is 'nan'"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=said):
            parse(f"pi:layers=@{file}").resolve(Span(TRAINED, L))
    with pytest.raises(UsageError, match=r"there is no file .*: give layers=@FILE.json"):
        parse(f"pi:layers=@{tmp_path}/none").resolve(Span(TRAINED, L))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pi:layers=2/0.5", "numbers of 1"),
        ("pi:layers=2/x", "numbers of 1"),
        ("pi:layers=2/inf", "numbers of 1"),
        ("pi:layers=@", "the name, of printable characters"),
        ("mrrope:layers=2/0", "numbers of 1"),
        ("pi:layers=2/4,factor=3", "given in place of factor"),
        ("pi:layers=2/4,ladder=1/2", "'ladder': must be given with factor=auto"),
        ("pi:layers=2/4+rerope", "pi:layers .* goes with fixed frequencies .* not with rerope"),
        ("pi:layers=2/4+yarn:factor=auto", "not with yarn:factor=auto"),
        ("pi:layers", "write name:key=value"),
    ],
)
def test_what_cannot_be(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(spec)


def test_a_model_whose_layers_are_not_known() -> None:
    with pytest.raises(UnsupportedModelError, match=r"bloom|rotary"):
        ctxext.patch(tiny_model("bloom"), SPEC)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(random_model().config)
    with pytest.raises(UnsupportedModelError, match="no weights in memory"):
        ctxext.patch(model, SPEC)


def test_carried_code_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the file, whose numbers the folder has."""
    monkeypatch.setattr(write, "prove", lambda *_, **__: PROOF)
    source, out, file = saved(tmp_path / "source"), tmp_path / "out", tmp_path / "factors.json"
    file.write_text("[4, 1.5]")
    done = export(Order(source, parse(f"pi:layers=@{file}"), L, out))
    file.unlink()
    assert (done.expression, done.spec) == (CARRIED, SPEC)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(tokens(L, 2)).logits, read(random_model(), SPEC))


@pytest.mark.parametrize("option", ["native_only", "gguf", "config_only"])
def test_no_config_says_it(tmp_path: Path, option: str) -> None:
    source = saved(tmp_path / "source")
    with pytest.raises(CtxextError, match=r"pi:layers has a factor|beside its weights"):
        export(Order(source, parse(SPEC), L, tmp_path / "out", **{option: True}))
    assert not (tmp_path / "out").exists()
