"""Patched models inside real programs: PEFT, accelerate, Trainer, FSDP, torch.compile, and saved.

Where the same numbers are multiplied in the same order, logits are equal to the last bit; merged
LoRA weights are rounded once more, 2^-24 of each of 96 products a row: `close` allows 1e-5.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from conftest import random_model, tokens
from families import tiny_model
from test_engine import close, logits
from test_eval import letters, runner, save_model, save_tokenizer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ctxext
from ctxext.engine import operators
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.models.loading import Source, load_model
from ctxext.models.mark import MARK

LENGTH = 200
SPECS = ("ntk:factor=4", "rerope:window=8+logn", "dca:chunk=16,local=4")
DEEP = SPECS[1]
IDS = tokens(50)
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    """The logits of the model under each spec, and of the plain one."""
    found = {"plain": logits(random_model(), IDS)}
    for spec in SPECS:
        with ctxext.patched(model := random_model(), spec, LENGTH):
            found[spec] = logits(model, IDS)
    return found


# PEFT --------------------------------------------------------------------------------------------


def adapted(model: Any) -> Any:
    """The model under a LoRA that changes it."""
    names = ["q_proj", "k_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM")
    found = peft.get_peft_model(model, config).eval()
    torch.manual_seed(3)
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return found


@pytest.mark.parametrize("before", [True, False], ids=["patch-lora", "lora-patch"])
@pytest.mark.parametrize("spec", SPECS)
def test_lora(spec: str, before: bool, wanted: dict[str, Tensor]) -> None:
    merged = copy.deepcopy(adapted(random_model())).merge_and_unload()
    with ctxext.patched(merged, spec, LENGTH):
        want, written = logits(merged, IDS), merged.generate(IDS, **GREEDY)
    plain = logits(adapted(random_model()), IDS)
    model = random_model()
    handle = ctxext.patch(model, spec, LENGTH) if before else None
    model = adapted(model)
    handle = handle or ctxext.patch(model, spec, LENGTH)
    close(logits(model, IDS), want)
    assert torch.equal(model.generate(input_ids=IDS, **GREEDY), written)
    with model.disable_adapter():
        assert torch.equal(logits(model, IDS), wanted[spec])
    if spec == DEEP:
        holes = torch.ones_like(IDS)
        holes[:, 20:23] = 0
        with pytest.raises(UnsupportedModelError, match="padding between the tokens"):
            model(IDS, attention_mask=holes)
    handle.remove()
    assert torch.equal(logits(model, IDS), plain)


def test_an_attention_set_under_lora_is_noticed() -> None:
    model = adapted(random_model())
    ctxext.patch(model, DEEP, LENGTH)
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModelError, match="attention implementation was changed"):
        model(IDS)


def test_a_model_is_patched_in_what_wraps_it(wanted: dict[str, Tensor]) -> None:
    with ctxext.patched(wrapped := nn.DataParallel(random_model()), DEEP, LENGTH):
        assert torch.equal(logits(wrapped, IDS), wanted[DEEP])
    pair = nn.ModuleList([random_model(), tiny_model("qwen2")])
    with pytest.raises(UsageError, match="a LlamaForCausalLM and a Qwen2ForCausalLM"):
        ctxext.patch(pair, DEEP, LENGTH)
    with pytest.raises(UnsupportedModelError, match="Linear is not a transformers model"):
        ctxext.patch(nn.Linear(2, 2), DEEP, LENGTH)


# Hooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["model.rotary_emb", "model.layers.0.self_attn", "model", ""])
@pytest.mark.parametrize("order", ["phru", "phur", "hpru", "hpur"])
@pytest.mark.parametrize("spec", SPECS)
def test_hooks_come_and_go(spec: str, order: str, place: str, wanted: dict[str, Tensor]) -> None:
    """patch, hook, remove, unhook in any order: the model is patched while the patch is on."""
    model = random_model()
    module, on = model.get_submodule(place), False
    for step in order + "pr":
        if step == "p":
            handle = ctxext.patch(model, spec, LENGTH)
        elif step == "r":
            handle.remove()
        elif step == "h":
            add_hook_to_module(module, ModelHook())
        else:
            remove_hook_from_module(module)
        on = step == "p" or (on and step != "r")
        assert torch.equal(logits(model, IDS), wanted[spec if on else "plain"]), step


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_offloaded_later(spec: str, wanted: dict[str, Tensor]) -> None:
    model = random_model()
    handle = ctxext.patch(model, spec, LENGTH)
    cpu_offload(model, execution_device="cpu")
    assert torch.equal(logits(model, IDS), wanted[spec])
    handle.remove()
    assert torch.equal(logits(model, IDS), wanted["plain"])
    if spec == DEEP:
        with pytest.raises(UnsupportedModelError, match="patch it before they are offloaded"):
            ctxext.patch(model, spec, LENGTH)


def test_layers_on_another_device() -> None:
    """A last layer on the device without data, which takes no tensor of another with its own."""
    model = random_model()
    handle = ctxext.patch(model, DEEP, LENGTH, attn="eager")

    def there(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(there, x))
        return x.to("meta") if isinstance(x, Tensor) else x

    def move(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return there(args), {name: there(x) for name, x in kwargs.items()}

    for module in (model.model.layers[1], model.model.norm, model.lm_head):
        module.to("meta").register_forward_pre_hook(move, with_kwargs=True)
    assert logits(model, IDS, use_cache=False).is_meta
    model.to_empty(device="meta")
    handle.remove()
    assert model.model.rotary_emb.inv_freq.is_meta


@pytest.mark.parametrize("way", ["whole", "layers"])
def test_compiled_before_it_is_patched(way: str) -> None:
    """torch.compile does not look for hooks that come later; half of the layers are left alone."""
    specs = ("ntk:factor=4", "rerope:window=8", "pi:factor=8", "rerope:window=3")
    model = tiny_model("gemma2", sliding_window=24)
    truth, plain = {}, logits(model, IDS)
    for spec in specs:
        with ctxext.patched(model, spec, LENGTH):
            truth[spec] = logits(model, IDS)
    torch.compiler.reset()
    for module in [model] if way == "whole" else [*model.model.layers, model.model.rotary_emb]:
        module.compile(backend="eager")
    close(logits(model, IDS), plain)
    for spec in specs:
        with ctxext.patched(model, spec, LENGTH):
            close(logits(model, IDS), truth[spec])
        close(logits(model, IDS), plain)


# Configs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_edited_while_patched_stays(spec: str) -> None:
    model = random_model()
    own, sister = model.config, transformers.LlamaForCausalLM(model.config)
    handle = ctxext.patch(model, spec, LENGTH)
    model.config.use_cache, model.config.pad_token_id = False, 5
    model.config.id2label[7] = "seven"
    model.config.added = {"a": [1]}
    model.resize_token_embeddings(120)
    assert sister.config.vocab_size == 97
    handle.remove()
    assert model.config is own
    assert (own.use_cache, own.pad_token_id, own.vocab_size) == (False, 5, 120)
    assert (own.id2label[7], own.added) == ("seven", {"a": [1]})
    assert own._attn_implementation == "sdpa"
    assert MARK not in vars(own)


def test_configs_within_configs_stay_one() -> None:
    """A wrapper's language model has the very config that is in the wrapper's."""
    model = tiny_model("gemma3")
    text = model.base_model.language_model
    own = model.config
    assert own.text_config is text.config
    handle = ctxext.patch(model, "rerope:window=8", LENGTH)
    assert model.config.text_config is text.config
    assert model.config is not own
    text.config.use_cache = False
    model.config.text_config = copy.deepcopy(text.config)  # one of the user's own
    model.config.text_config.pad_token_id = 3
    handle.remove()
    assert (model.config, text.config.use_cache) == (own, False)
    assert own.text_config.pad_token_id == 3


def test_a_config_that_is_set_while_patched_stays() -> None:
    model = random_model()
    handle = ctxext.patch(model, DEEP, LENGTH)
    model.config = new = copy.deepcopy(model.config)
    handle.remove()
    assert model.config is new
    assert new._attn_implementation == "sdpa"
    assert MARK not in vars(new)


# Saved models ------------------------------------------------------------------------------------


def folder(path: Path) -> Path:
    """A folder with the tokenizer of a model of 97 tokens."""
    save_model(path)
    return path


@pytest.mark.parametrize("spec", SPECS)
def test_a_patched_model_is_saved_as_one(
    spec: str, tmp_path: Path, wanted: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model()
    handle = ctxext.patch(model, spec, LENGTH)
    model.save_pretrained(folder(tmp_path / "a"))
    loaded, _ = ctxext.load(str(tmp_path / "a"))
    assert f"is patched with {loaded.ctxext.spec}, as it was when it was saved" in caplog.text
    assert loaded.ctxext.spec.full() == handle.spec.full()
    assert torch.equal(logits(loaded, IDS), wanted[spec])
    for of in (handle, loaded.ctxext):
        of.remove()
    for number, one in enumerate((model, loaded)):
        assert torch.equal(logits(one, IDS), wanted["plain"])
        one.save_pretrained(tmp_path / str(number))
        assert MARK not in json.loads((tmp_path / str(number) / "config.json").read_text())


def test_a_saved_patch_is_told_of() -> None:
    """Loaded by transformers the model is the plain one, and a patch says what it was saved as."""
    model = random_model()
    with ctxext.patched(model, DEEP, LENGTH):
        raw = json.loads(model.config.to_json_string())
    config = transformers.LlamaConfig.from_dict(raw)
    model = transformers.LlamaForCausalLM(config).eval()
    said = "the model was saved while it was patched with rerope:window=8+logn, not rope"
    assert ctxext.patch(model, "rope").notes == [said]


def test_commands_take_a_saved_patch_for_the_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder(tmp_path / "plain"))
    save_model(tmp_path / "saved")
    with ctxext.patched(model, DEEP, LENGTH):
        model.save_pretrained(tmp_path / "saved")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    run = runner(monkeypatch, capsys)
    told = (
        "was saved while it was patched with rerope:window=8+logn: here `rope` is the plain model"
    )
    values = {}
    for name in ("plain", "saved"):
        ran = run("eval", "--model", name, "--data", "t.txt", "--limit", 2, "--len", 48, "--json",
                  "--method", "ntk", "--out", name)  # fmt: skip
        assert ran.code == 0
        assert ran.err.count(told) == (name == "saved")
        values[name] = [record["value"] for record in ran.records]
    assert values["plain"] == values["saved"]
    ran = run("patch", "--model", "saved", "--method", "ntk", "--len", 64, "--out", "out")
    assert ran.code == 0
    assert ran.err.count(told) == 1
    assert MARK not in (tmp_path / "out" / "config.json").read_text()


GOOD = {"spec": "ntk:factor=4", "length": 64, "trained": 32}
HOSTILE = (
    7, [], {}, "ntk", True, {**GOOD, "spec": ["ntk"]}, {**GOOD, "spec": "no-such"},
    {**GOOD, "spec": "ntk:factor=\x1b[31m4"}, {**GOOD, "spec": "ntk+" * 9999},
    {**GOOD, "spec": "ntk:factor=1e999"}, {**GOOD, "trained": None}, {**GOOD, "trained": 1e9},
    {**GOOD, "length": "64"}, {**GOOD, "length": -1}, {**GOOD, "trained": 2**80},
    {**GOOD, "spec": "longrope:factors=@/dev/zero"},
)  # fmt: skip


def test_hostile_marks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One printable line each, and the plain model where that is meant."""
    path = folder(tmp_path / "a") / "config.json"
    raw = json.loads(path.read_text())
    for given in HOSTILE:
        path.write_text(json.dumps({**raw, MARK: given}))
        with pytest.raises(UsageError) as error:
            ctxext.load(str(tmp_path / "a"))
        caplog.clear()
        load_model(Source(str(tmp_path / "a")))
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        with ctxext.patched(model, "rope") as handle:
            (note,) = handle.notes
        for line in (str(error.value), note, caplog.messages[-1]):
            assert line.isprintable(), given
            assert len(line) < 700


# Training ----------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Eight times the same rows of tokens, to be learnt by heart."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = tokens(50, seed=i % 2)[0]
        return {"input_ids": row, "labels": row}


def train(model: Any, out: Path, checkpointing: bool) -> tuple[list[float], Path]:
    """The losses of a few steps of Trainer, and its last checkpoint."""
    arguments = transformers.TrainingArguments(
        output_dir=str(out), max_steps=6, per_device_train_batch_size=4, learning_rate=3e-3,
        logging_steps=1, save_steps=6, report_to=[], use_cpu=True, disable_tqdm=True,
        gradient_checkpointing=checkpointing, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, out / "checkpoint-6"


@pytest.mark.parametrize("spec", SPECS)
def test_trainer(spec: str, tmp_path: Path) -> None:
    """Its checkpoint is the patched model, and recomputed activations give the same losses."""
    losses = {}
    for checkpointing in (False, True):
        model = random_model()
        handle = ctxext.patch(model, spec, LENGTH)
        losses[checkpointing], checkpoint = train(model, tmp_path / "t", checkpointing)
    save_tokenizer(checkpoint, False)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[False][-1] < 0.9 * losses[False][0]
    want = logits(model.eval(), IDS)
    loaded, _ = ctxext.load(str(checkpoint))
    assert torch.equal(logits(loaded, IDS), want)
    handle.remove()
    loaded.ctxext.remove()
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    assert not torch.equal(logits(loaded, IDS), want)


def test_trainer_with_lora(tmp_path: Path) -> None:
    """An adapter's folder names its base alone: that is loaded as it was saved, patched."""
    base = random_model()
    ctxext.patch(base, DEEP, LENGTH)
    base.save_pretrained(folder(tmp_path / "base"))
    model = adapted(base)
    losses, checkpoint = train(model, tmp_path / "t", False)
    assert losses[-1] < losses[0]
    want = logits(model.eval(), IDS)
    loaded = peft.PeftModel.from_pretrained(ctxext.load(str(tmp_path / "base"))[0], checkpoint)
    assert torch.equal(logits(loaded.eval(), IDS), want)
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (checkpoint / "adapter_config.json").write_text(json.dumps(settings))
    assert torch.equal(logits(ctxext.load(str(checkpoint))[0], IDS), want)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "base")
    close(logits(ctxext.load(str(tmp_path / "base"))[0], IDS), want)


# Copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_a_patched_model_is_not_pickled(spec: str, wanted: dict[str, Tensor]) -> None:
    model = random_model()
    handle = ctxext.patch(model, spec, LENGTH)
    for dump in (lambda: torch.save(model, io.BytesIO()), lambda: pickle.dumps(model)):
        with pytest.raises(UsageError, match="cannot be pickled: save_pretrained it"):
            dump()
    copied = copy.deepcopy(model)
    handle.remove()
    assert torch.equal(logits(copied, IDS), wanted[spec])
    torch.save(model, io.BytesIO())


def replica(module: nn.Module) -> nn.Module:
    """A copy as DataParallel makes one for each device."""
    made = module._replicate_for_data_parallel()
    made.__dict__.update(module._parameters)
    made._buffers = dict(module._buffers)
    made._modules = {name: child and replica(child) for name, child in module._modules.items()}
    return made


def test_replicas(wanted: dict[str, Tensor]) -> None:
    """Those of frequency methods are patched models; others' states would be each other's."""
    for spec in SPECS:
        model = random_model()
        ctxext.patch(model, spec, LENGTH)
        if spec == SPECS[0]:
            assert torch.equal(logits(replica(model), IDS), wanted[spec])
            continue
        with pytest.raises(UnsupportedModelError, match="as DataParallel makes them: run one"):
            logits(replica(model), IDS)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'm'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_fully_sharded(mesh: Any, wanted: dict[str, Tensor]) -> None:
    """FSDP2, which gives modules classes of its own, before and after the patch."""
    with ctxext.patched(model := random_model(), "logn", LENGTH):
        truth = {**wanted, "logn": logits(model, IDS)}
    for spec in (*SPECS, "logn"):  # which leaves scores to the family's own eager attention
        for before in (True, False):
            model = random_model()
            model.set_attn_implementation("eager")
            handle = ctxext.patch(model, spec, LENGTH) if before else None
            layers = model.model.layers
            for module in (*(layer.self_attn for layer in layers), *layers, model):
                fully_shard(module, mesh=mesh)
            handle = handle or ctxext.patch(model, spec, LENGTH)
            close(logits(model, IDS), truth[spec])
            handle.remove()
            close(logits(model, IDS), wanted["plain"])


def test_a_flash_attn_without_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 4 alone is a package of the same name: torch's own copy is taken."""
    package = types.ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(operators, "_flash_attn", operators._flash_attn.__wrapped__)
    assert operators._flash_attn() is None
    with mock.patch.object(torch.ops.aten, "_flash_attention_forward", create=True) as own:
        own.return_value = (torch.zeros(1, 2, 4, 8), torch.zeros(1, 4, 2))
        q = torch.zeros(1, 4, 2, 8)
        operators.CudaFlash().forward(q, q, q, 1.0, operators.Pattern(causal=True))
    assert own.called
    package.flash_attn_func = print
    assert operators._flash_attn() is print
