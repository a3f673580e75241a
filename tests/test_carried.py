"""A folder that carries its own code is the patched model where ctxext is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import random_model, tokens
from families import TRAINED, tiny_model
from test_harness import write_tasks
from transformers import dynamic_module_utils

import ctxext
from ctxext import patches
from ctxext.engine import probe, seams
from ctxext.errors import CtxextError, UnsupportedModelError
from ctxext.export.carried import pin_tokenizer, write_carried
from ctxext.methods.base import Frequency, Rotary, Span

LENGTH = 4 * TRAINED
NEW = 20
SPECS = ("self-extend", "jet-long-freq", "rerope+logn", "beta-radix+logn", "ntk+rerope")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": TRAINED},
    "gemma2": {"sliding_window": 24, "attn_logit_softcapping": 5.0},  # every other layer
}
PROCESS = Path(__file__).with_name("carried_process.py")
TINY = Path(ctxext.__file__).parent / "models" / "shipped" / "tiny"


def carry(source: Path, out: Path, spec: str, length: int = LENGTH, **options: Any) -> list[str]:
    """A folder with the code for a spec; the weights and all else are the source's."""
    shutil.copytree(source, out)
    raw = json.loads((source / "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(source)
    trained = options.pop("trained", None) or ctxext.models.trained.trained_length(config)
    resolved = patches.parse(spec).resolve(Span(trained, length))
    model_class = getattr(transformers, raw["architectures"][0])
    classes = {"model_class": model_class, "config_class": type(config), **options}
    return write_carried(out, raw, spec=resolved, length=length, trained=trained, **classes)


def prompts() -> dict[str, dict[str, torch.Tensor]]:
    """One prompt, and three of several lengths, padded on the left."""
    lengths = (TRAINED + 9, TRAINED // 2, 2 * TRAINED)
    ids = torch.zeros(3, max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = tokens(length, seed=row)[0], 1
    one = tokens(TRAINED + 3, seed=5)
    return {
        "single": {"input_ids": one, "attention_mask": torch.ones_like(one)},
        "padded": {"input_ids": ids, "attention_mask": mask},
    }


@torch.no_grad()
def wanted(model: Any) -> dict[str, Any]:
    """What a patched model gives, to be found again elsewhere."""
    greedy = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    logits = {n: (tokens(n), model(tokens(n)).logits) for n in (TRAINED + 1, LENGTH)}
    written = {name: (ids, model.generate(**ids, **greedy)) for name, ids in prompts().items()}
    assert all(new.shape[1] == ids["input_ids"].shape[1] + NEW for ids, new in written.values())
    return {"logits": logits, "written": written, "greedy": greedy}


def fresh(arguments: list[str], box: Path) -> subprocess.CompletedProcess[str]:
    """A process that has no folder of ours on its path, and none of our dynamic modules."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(box / "modules"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=box, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the fresh process says of every folder."""
    root = tmp_path_factory.mktemp("carried")
    for family, changes in FAMILIES.items():
        tiny_model(family, **changes).save_pretrained(root / "source" / family)
        for spec in SPECS:
            out = root / f"{family} {spec}"
            carry(root / "source" / family, out, spec)
            model = transformers.AutoModelForCausalLM.from_pretrained(root / "source" / family)
            ctxext.patch(model, spec, LENGTH)
            torch.save(wanted(model), out / "want.pt")
    done = fresh([str(PROCESS), str(root)], root)
    assert done.returncode == 0, done.stderr
    return json.loads((root / "report.json").read_text())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_patched_model(report: dict[str, Any], family: str, spec: str) -> None:
    found = report[f"{family} {spec}"]
    assert {name for name, value in found.items() if value is True} == {
        f"written {name} {cache}" for name in prompts() for cache in (None, "static")
    }
    numbers = {name: value for name, value in found.items() if not isinstance(value, bool)}
    assert set(numbers) == {f"logits {TRAINED + 1}", f"logits {LENGTH}", "chunks"}
    assert max(numbers.values()) <= 1e-5, numbers


def test_every_way_to_a_model_is_patched(report: dict[str, Any]) -> None:
    found = report["ways"]
    ways = ("saved again", "from config", "from config, padded", "copied", "moved")
    assert max(found[way] for way in ways) <= 1e-5, found
    assert (found["missing"], found["spec"], found["length"]) == (
        0,
        "rerope:window=32+logn",
        LENGTH,
    )
    assert found["without weights"] == "None"
    assert found["chosen anew"]
    assert found["removed"] > 1e-3


def test_what_is_saved_again_says_the_same(report: dict[str, Any]) -> None:
    config = report["ways"]["saved config"]
    assert config["model_type"] == "ctxext_llama"
    assert config["architectures"] == ["CtxextLlamaForCausalLM"]
    assert config["ctxext"]["spec"] == "rerope:window=32+logn:clip=true"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_ctxext.CtxextLlamaConfig",
        "AutoModelForCausalLM": "modeling_ctxext.CtxextLlamaForCausalLM",
    }
    assert not [key for key in config if "implementation" in key]


def test_folders_of_one_name_do_not_disturb_each_other(report: dict[str, Any]) -> None:
    found = report["side by side"]
    assert len(found) == len(SPECS)
    assert max(max(figures) for figures in found.values()) <= 1e-5, found


def test_code_that_is_not_trusted_does_not_run(report: dict[str, Any]) -> None:
    assert report["untrusting"]["error"].startswith("ValueError: ")
    assert "trust_remote_code=True" in report["untrusting"]["error"]


# In this process ---------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


@torch.no_grad()
def test_beside_the_installed_package(llama: Path, tmp_path: Path) -> None:
    carry(llama, tmp_path / "out", "leaky-rerope+logn")
    plain = transformers.AutoModelForCausalLM.from_pretrained(llama)
    ids = tokens(LENGTH)
    ctxext.patch(plain, "leaky-rerope+logn", LENGTH)
    want = plain(ids).logits
    carried = load(tmp_path / "out")
    names = [m.config._attn_implementation for m in (plain, carried)]
    assert names[0] == "ctxext_distance_sdpa" != names[1]
    assert torch.equal(carried(ids).logits, want)
    assert torch.equal(plain(ids).logits, want)
    with pytest.raises(CtxextError, match="patched already"):
        ctxext.patch(carried, "rerope")
    here = {module.__name__ for module in (seams, probe)}
    assert not here & {type(m).__module__ for m in carried.modules()}


def test_only_what_is_needed_is_carried(llama: Path, tmp_path: Path) -> None:
    names = carry(llama, tmp_path / "out", "rerope")
    assert names[0] == "config.json"
    assert {*names} >= {"modeling_ctxext.py", "configuration_ctxext.py", "ctxext_methods_rerope.py"}
    assert all((tmp_path / "out" / name).is_file() for name in names)
    methods = {name for name in names if name.startswith("ctxext_methods_")}
    assert methods == {
        f"ctxext_methods_{name}.py" for name in ("base", "files", "parts", "rerope", "values")
    }
    folders = {
        name.split("_")[1].removesuffix(".py") for name in names if name.startswith("ctxext_")
    }
    assert folders == {"choices", "engine", "errors", "methods", "models"} | {
        *("notation", "registry", "text")
    }


def test_transformers_finds_all_that_each_file_needs(llama: Path, tmp_path: Path) -> None:
    """As from the Hub: it checks each file's imports, and fetches the files that it names."""
    names = carry(llama, tmp_path / "out", "+".join(("leaky-rerope", "logn", "yarn", "pi")))
    code = {name for name in names if name.endswith(".py")}
    known = {"torch", "transformers", "typing_extensions", *sys.stdlib_module_names}
    for name in code:
        path = tmp_path / "out" / name
        assert set(dynamic_module_utils.get_imports(path)) <= known, name
        needed = {f"{x}.py" for x in dynamic_module_utils.check_imports(path)}
        assert needed <= code, name
        lines = path.read_text().splitlines()
        assert f"ctxext {ctxext.__version__}" in lines[0]
        assert lines[1] == "# SPDX-License-Identifier: Apache-2.0"
    start = tmp_path / "out" / "modeling_ctxext.py"
    reached = {Path(x).name for x in dynamic_module_utils.get_relative_import_files(start)}
    assert reached | {"modeling_ctxext.py"} == code


def test_the_config_says_what_was_done(llama: Path, tmp_path: Path) -> None:
    before = json.loads((llama / "config.json").read_text())
    carry(llama, tmp_path / "out", "leaky-rerope")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert changed == {"architectures", "auto_map", "ctxext", "max_position_embeddings",
                       "model_type"}  # fmt: skip
    assert after["max_position_embeddings"] == LENGTH
    # w = T/4 and ⌈(L − 1 − w)/(T/2 − w)⌉, as the method's docstring has it
    assert after["ctxext"] == {
        "spec": "leaky-rerope:window=16,leak=15", "length": LENGTH, "trained": TRAINED,
        "own_scaling": "keep",
        "version": ctxext.__version__,
    }  # fmt: skip
    carry(llama, tmp_path / "short", "rerope", length=TRAINED // 2)
    assert (
        json.loads((tmp_path / "short" / "config.json").read_text())["max_position_embeddings"]
        == TRAINED
    )


SCALINGS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether the config's length may change
    "linear": ({"factor": 2.0}, True),
    "llama3": ({"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32}, True),
    "dynamic": ({"factor": 2.0}, False),
    "yarn": ({"factor": 2.0, "original_max_position_embeddings": 32}, False),
    "longrope": ({"short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                  "original_max_position_embeddings": 32}, False),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaling_of_the_models_own_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    scaling, may = SCALINGS[kind]
    rope = {"rope_type": kind, "rope_theta": 10000.0, **scaling}
    model = random_model(rope_parameters=rope, max_position_embeddings=64)
    model.save_pretrained(tmp_path / "in")
    trained = scaling.get("original_max_position_embeddings", 64)
    carry(tmp_path / "in", tmp_path / "out", "rerope:window=24", length=192, trained=trained)
    carried, ids = load(tmp_path / "out"), tokens(192)
    assert carried.config.max_position_embeddings == (192 if may else 64)
    ctxext.patch(model, "rerope:window=24", 192, train_len=trained)
    assert torch.equal(carried(ids).logits, model(ids).logits)


class Strange(Frequency):
    """A method from elsewhere."""

    name = "strange"

    def scales(self, rotary: Rotary) -> list[float]:
        return [1.0] * len(rotary.theta)


def test_what_cannot_be_carried_is_refused(llama: Path, tmp_path: Path) -> None:
    class OwnForCausalLM(transformers.LlamaForCausalLM):
        pass

    with pytest.raises(UnsupportedModelError, match=r"llama brings its own code \(OwnForCausalLM"):
        carry(llama, tmp_path / "a", "rerope", model_class=OwnForCausalLM)
    spec = patches.Spec((Strange(),))
    raw = json.loads((llama / "config.json").read_text())
    classes = (transformers.LlamaForCausalLM, transformers.LlamaConfig)
    (tmp_path / "b").mkdir()
    with pytest.raises(UnsupportedModelError, match="'strange' is no method of ctxext's own"):
        write_carried(tmp_path / "b", raw, *classes, spec, LENGTH, TRAINED)
    nested = transformers.Gemma3Config().to_dict()
    classes = (transformers.Gemma3ForConditionalGeneration, transformers.Gemma3Config)
    with pytest.raises(UnsupportedModelError, match="gemma3 nests the config"):
        write_carried(tmp_path / "b", nested, *classes, patches.parse("rerope:window=9"), 99, 64)
    assert not any((tmp_path / "b").iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "no 'ctxext' object"),
        ({"spec": 3}, "bad spec 3"),
        ({"length": "4k"}, "bad length '4k'"),
        ({"spec": "pi:factor=2"}, "unknown method 'pi'"),  # a method that was not carried
    ],
)
def test_a_broken_config_is_named(
    llama: Path, tmp_path: Path, changes: dict[str, Any] | None, words: str
) -> None:
    carry(llama, tmp_path / "out", "rerope")
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text())
    raw["ctxext"] = changes and {**raw["ctxext"], **changes}
    path.write_text(json.dumps(raw))
    with pytest.raises(Exception, match=words) as raised:
        load(tmp_path / "out")
    assert type(raised.value).__module__.endswith("ctxext_errors")


@torch.no_grad()
def test_offloaded_weights_never_run_unpatched(llama: Path, tmp_path: Path) -> None:
    """Accelerate leaves offloaded weights on the meta device, where no patch can be tried."""
    carry(llama, tmp_path / "out", "rerope")
    names = ("embed_tokens", "layers", "norm", "rotary_emb")
    places = {**{f"model.{name}": "cpu" for name in names}, "lm_head": "cpu"}
    for offloaded in ({"model.embed_tokens": "disk"}, dict.fromkeys(places, "disk")):
        model = load(
            tmp_path / "out", device_map=places | offloaded, offload_folder=tmp_path / "disk"
        )
        with pytest.raises(Exception, match="first weights are offloaded") as raised:
            model(tokens(LENGTH))
        assert type(raised.value).__module__.endswith("ctxext_errors")


@torch.no_grad()
def test_buffers_that_no_checkpoint_has(tmp_path: Path) -> None:
    """Falcon H1 fills those of its state-space layers from the model that holds them."""
    model, ids = tiny_model("falcon_h1"), tokens(LENGTH)
    model.save_pretrained(tmp_path / "in")
    carry(tmp_path / "in", tmp_path / "out", "rerope")
    ctxext.patch(model, "rerope", LENGTH)
    want = model(ids, use_cache=False).logits
    off = (load(tmp_path / "out")(ids, use_cache=False).logits - want).abs().max()
    assert off <= 1e-5 * want.abs().max()


@torch.no_grad()
def test_merged_weights_of_experts_are_found(tmp_path: Path) -> None:
    """Checkpoints have an expert's weights apart, and transformers merges them by model type."""
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "in")
    carry(tmp_path / "in", tmp_path / "out", "rerope")
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        assert any(".experts.0." in name for name in file.keys())  # noqa: SIM118
    carried = load(tmp_path / "out")
    ctxext.patch(model, "rerope", LENGTH)
    torch.testing.assert_close(carried(tokens(LENGTH)).logits, model(tokens(LENGTH)).logits)


# Tokenizers and lm_eval --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen2"])
def test_the_tokenizer_is_the_sources(kind: str, tmp_path: Path, capsys: Any) -> None:
    """Of a class that transformers may overrule for the stock type, which the new one is not."""
    source = tmp_path / "in"
    tiny_model(kind).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, source / name)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "LlamaTokenizerFast" if kind != "llama" else "TokenizersBackend"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    carry(source, tmp_path / "out", "rerope")
    os.unlink(tmp_path / "out" / "tokenizer_config.json")
    os.link(source / "tokenizer_config.json", tmp_path / "out" / "tokenizer_config.json")
    raw = json.loads((source / "config.json").read_text())
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    config_class = type(transformers.AutoConfig.from_pretrained(source))
    assert pin_tokenizer(tmp_path / "out", raw, config_class) == type(theirs).__name__
    assert json.loads((source / "tokenizer_config.json").read_text()) == settings
    text = "def f(x):\n    return  x * 3\n\n# 12345 ünïcode"
    for options in ({"trust_remote_code": True}, {"trust_remote_code": False}):
        ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", **options)
        assert (type(ours), ours.encode(text)) == (type(theirs), theirs.encode(text))


@pytest.mark.parametrize("code", [False, True])
def test_who_trusts_our_code_runs_no_other_tokenizer_code(code: bool, tmp_path: Path) -> None:
    """The folder needs trust_remote_code, which must not fetch what its tokenizer names."""
    source = tmp_path / "in"
    shutil.copytree(TINY, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["other/repo--code.Tokenizer", None]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    carry(source, tmp_path / "out", "rerope", length=1024)
    raw = json.loads((source / "config.json").read_text())
    pin_tokenizer(tmp_path / "out", raw, transformers.LlamaConfig, code=code)
    left = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert ("auto_map" in left) is code
    if not code:
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)


def test_a_folder_without_a_tokenizer_is_left_alone(llama: Path) -> None:
    raw = json.loads((llama / "config.json").read_text())
    before = sorted(llama.iterdir())
    assert pin_tokenizer(llama, raw, transformers.LlamaConfig) is None
    assert sorted(llama.iterdir()) == before


def test_lm_eval_reads_the_folder(tmp_path: Path) -> None:
    """As `lm_eval --model hf` does, for the numbers that `--model ctxext` gives."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    import ctxext.harness  # noqa: F401 - registers

    length, spec, names = 1024, "rerope:window=64+logn", ["my_choice", "my_text"]
    mine = TaskManager(include_path=str(write_tasks(tmp_path / "mine")), include_defaults=False)
    carry(TINY, tmp_path / "out", spec, length=length)
    arguments = {
        "hf": f"pretrained={tmp_path / 'out'},trust_remote_code=True,dtype=float32",
        "ctxext": f"pretrained={TINY},method={spec},length={length}",
        "plain": f"pretrained={TINY},method=rope,length={length}",
    }
    found = {
        name: lm_eval.simple_evaluate(
            model="hf" if name == "hf" else "ctxext", model_args=given, tasks=names,
            batch_size=2, device="cpu", task_manager=mine,
        )["results"]
        for name, given in arguments.items()
    }  # fmt: skip
    perplexity = {name: found[name]["my_text"]["word_perplexity,none"] for name in found}
    assert perplexity["hf"] == pytest.approx(perplexity["ctxext"], rel=1e-6)
    assert perplexity["hf"] != pytest.approx(perplexity["plain"], rel=1e-4)
    for metric in ("acc,none", "acc_norm,none"):
        assert found["hf"]["my_choice"][metric] == found["ctxext"]["my_choice"][metric]
