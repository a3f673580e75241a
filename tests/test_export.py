"""An exported folder, loaded by stock transformers, is the patched model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TRAINED, fitted, pairs_of, random_model, tokens
from families import tiny_model

import ctxext
from ctxext import patches
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import native as module
from ctxext.export.write import Exported, export

LENGTH = 4 * TRAINED
SPECS = {  # and how a config says them
    "rope": "unchanged",
    "pi": "linear",
    "ntk": "rope_theta",
    "ntk-old:factor=3": "rope_theta",
    "ntk-fixed": "longrope",
    "beta-radix": "longrope",
    "yarn": "yarn",
    "ntk+beta-radix": "longrope",
    "llama3": "longrope",
    "dynamic-ntk:factor=2": "longrope",
    "longrope+llama3:factor=2": "longrope",
}
FAMILIES = (
    "llama-gqa",
    "qwen3-qk-norm",
    "gpt_neox-partial-inside",
    "glm-interleaved-partial",
    "cohere-interleaved",
)


def saved(folder: Path, family: str = "llama-gqa", **changes: object) -> Path:
    """A random model's folder, with a tokenizer's files and others around it."""
    return around(random_model(family, **changes), folder)


def around(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "LICENSE", "chat_template.jinja"):
        (folder / name).write_bytes(name.encode() + b"\x00\xff\r\n")
    return folder


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: object) -> dict[str, object]:
    """Change keys of a folder's config.json."""
    raw = json.loads((folder / "config.json").read_text())
    raw = {k: v for k, v in raw.items() if k not in drop} | changes
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def load(folder: Path, **options: object) -> transformers.PreTrainedModel:
    options = {"dtype": "float32", **options}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def run(source: Path, spec: str, out: Path, length: int = LENGTH, **options: object) -> Exported:
    return export(source, patches.parse(spec), length, out, **options)


@torch.no_grad()
def assert_same(source: Path, spec: str, out: Path, **options: object) -> None:
    """Stock transformers on `out` gives the logits of the patched source.

    The tolerance is 1e-5 of the largest logit (5 to 10 here): a frequency may differ in its last
    bit, which is an angle of 1e-5 at position 128.
    """
    theirs, ours = load(out, **options), load(source, **options)
    ctxext.patch(ours, spec, LENGTH)
    for n in (TRAINED, TRAINED + 1, LENGTH):
        ids = tokens(n)
        want = ours(ids).logits
        top = float(want.abs().max())
        torch.testing.assert_close(theirs(ids).logits, want, rtol=0, atol=1e-5 * max(1, top))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "a 'quoted' \"llama\"")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_gives_the_patched_logits(family: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", family)
    pairs = pairs_of(random_model(family))
    for i, (name, expression) in enumerate(SPECS.items()):
        spec, out = fitted(name, pairs), tmp_path / str(i)
        assert run(source, spec, out).expression == expression
        assert_same(source, spec, out)
        assert load(out).config.max_position_embeddings == LENGTH


def test_parameters_and_trained_length_are_carried(llama: Path, tmp_path: Path) -> None:
    spec = "yarn:factor=6,beta_fast=8,beta_slow=2"
    done = run(llama, spec, tmp_path / "a")
    assert (done.spec, done.expression) == (spec, "yarn")
    assert_same(llama, spec, tmp_path / "a")
    assert run(llama, "pi", tmp_path / "b", train_len=16).spec == "pi:factor=8"
    assert run(llama, "pi", tmp_path / "c", length=TRAINED // 2).spec == "pi:factor=1"
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["max_position_embeddings"] == TRAINED


def test_files_are_copied_byte_for_byte(llama: Path, tmp_path: Path) -> None:
    hidden = (".cache/x", "checkpoint-1/model.safetensors", "optimizer.pt", "training_args.bin")
    for name in (*hidden, "pytorch_model.bin", "modeling_x.py", "trainer_state.json"):
        path = shutil.copytree(llama, tmp_path / "source", dirs_exist_ok=True) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    (source / "loop.json").symlink_to("loop.json")
    done = run(source, "ntk", tmp_path / "out")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert written - {"additional_chat_templates"} == set(done.files)
    assert set(done.files) == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer.model", "chat_template.jinja", "additional_chat_templates/rag.jinja"),
        "LICENSE",
    }
    for name in set(done.files) - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_snapshot_of_links_and_shards(llama: Path, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "blobs", max_shard_size="60KB")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    done = run(tmp_path / "links", "beta-radix", tmp_path / "out")
    assert sum(name.endswith(".safetensors") for name in done.files) > 1
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())
    assert_same(tmp_path / "blobs", "beta-radix", tmp_path / "out")
    (tmp_path / "links" / done.files[-1]).unlink()
    with pytest.raises(UsageError, match="no weights"):
        run(tmp_path / "links", "pi", tmp_path / "other")
    next((tmp_path / "blobs").glob("*.safetensors")).unlink()
    with pytest.raises(UsageError, match=r"1 of \d weight files are missing"):
        run(tmp_path / "blobs", "pi", tmp_path / "other")


def test_weights_in_torchs_format(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save(random_model().state_dict(), source / "pytorch_model.bin")
    (source / "optimizer.bin").write_text("x")
    done = run(source, "pi", tmp_path / "out")
    assert {name for name in done.files if name.endswith(".bin")} == {"pytorch_model.bin"}
    assert_same(source, "pi", tmp_path / "out")


def test_nothing_of_the_config_is_lost(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    new = {"torch_dtype": "bfloat16", "mine": {"a": [1]}, "auto_map": {"x": "y.Z"}}
    before = edit(source, drop=("dtype",), **new)
    run(source, "beta-radix", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {"rope_parameters", "max_position_embeddings", "auto_map"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert "auto_map" not in after  # its code is not copied
    assert load(tmp_path / "out").config.dtype == torch.float32


def test_code_of_the_model(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    ran = f"open({str(tmp_path / 'ran')!r}, 'a').write(__file__ + chr(10))\n"
    config = "from transformers import LlamaConfig\nclass X(LlamaConfig):\n    model_type = 'x'\n"
    (source / "configuration_x.py").write_text(ran + config)
    (source / "modeling_x.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_x import X\n"
        "class XForCausalLM(LlamaForCausalLM):\n    config_class = X\n"
    )
    code = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit(source, model_type="x", auto_map=code)
    with pytest.raises(UsageError, match="--trust-remote-code"):
        run(source, "pi", tmp_path / "out")
    assert not (tmp_path / "ran").exists()

    cache = tmp_path / "cache"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)
    for spec in ("pi", "beta-radix"):
        done = run(source, spec, tmp_path / spec, trust_remote_code=True)
        assert {"configuration_x.py", "modeling_x.py"} < set(done.files)
        assert_same(source, spec, tmp_path / spec, trust_remote_code=True)
    assert "ctxext-" not in (tmp_path / "ran").read_text()


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}])
def test_a_config_of_transformers_4(scaling: object, llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    edit(source, drop=("rope_parameters",), rope_theta=5000.0, rope_scaling=scaling)
    for spec in ("rope", "ntk", "pi", "yarn", "beta-radix"):
        run(source, spec, tmp_path / spec)
        assert_same(source, spec, tmp_path / spec)
        raw = json.loads((tmp_path / spec / "config.json").read_text())
        if spec == "rope":
            assert raw["rope_scaling"] == scaling
            continue
        assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
        assert raw["rope_scaling"] in (None, raw["rope_parameters"])
        assert (raw["rope_scaling"] is None) == (spec == "ntk")


def test_old_names_of_gpt_neox(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "gpt_neox-partial-inside")
    edit(source, drop=("rope_parameters",), rotary_emb_base=3000, rotary_pct=0.5)
    done = run(source, "ntk-old:factor=2", tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["rotary_emb_base"], raw["rotary_pct"], done.expression) == (6000, 0.5, "rope_theta")
    assert_same(source, "ntk-old:factor=2", tmp_path / "out")


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "own",
    [
        {**LLAMA3, "original_max_position_embeddings": 16},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "truncate": False},
    ],
    ids=lambda own: own["rope_type"],
)
def test_the_models_own_scaling_is_replaced(own: dict[str, object], tmp_path: Path) -> None:
    source = saved(tmp_path / "source", rope_parameters={"rope_theta": 10000.0, **own})
    for spec in ("rope", "pi", "ntk", "yarn", "beta-radix"):
        run(source, spec, tmp_path / spec)
        assert_same(source, spec, tmp_path / spec)


def small(name: str, **settings: object) -> transformers.PreTrainedModel:
    """A random model of a family that conftest has not."""
    shared = random_model().config.to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "pad_token_id")
    keep += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    config = getattr(transformers, f"{name}Config")(
        **{key: shared[key] for key in keep}, max_position_embeddings=TRAINED, **settings
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def test_phi3_takes_no_linear_or_yarn(tmp_path: Path) -> None:
    model = small("Phi3", original_max_position_embeddings=TRAINED, partial_rotary_factor=0.5)
    source = around(model, tmp_path / "source")
    for spec, how in (("pi", "longrope"), ("yarn", "longrope"), ("ntk", "rope_theta")):
        assert run(source, spec, tmp_path / spec).expression == how
        assert_same(source, spec, tmp_path / spec)


def test_mixtral_has_no_head_dim_in_its_config(tmp_path: Path) -> None:
    source = around(small("Mixtral", num_local_experts=2), tmp_path / "source")
    for spec, how in (("yarn", "yarn"), ("beta-radix", "longrope")):
        assert run(source, spec, tmp_path / spec).expression == how
        assert_same(source, spec, tmp_path / spec)


def test_one_pair_of_dimensions(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", head_dim=2)
    for spec in ("ntk", "ntk-old", "pi", "beta-radix", "dynamic-ntk", "llama3"):
        run(source, spec, tmp_path / spec)
        assert_same(source, spec, tmp_path / spec)


def test_what_a_config_cannot_express(llama: Path, tmp_path: Path) -> None:
    for spec in ("rerope:window=8", "logn", "ntk+logn"):
        with pytest.raises(
            UsageError, match=r"ctxext\.patch at run time.*beta-radix, .*, ntk"
        ) as error:
            run(llama, spec, tmp_path / "out")
        assert "rerope" not in str(error.value).partition("can carry")[2]
    deepseek = {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    sizes = {"qk_rope_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    own = {"rope_theta": 10000.0, **deepseek}
    source = around(small("DeepseekV3", rope_parameters=own, **sizes), tmp_path / "deepseek")
    with pytest.raises(UnsupportedModelError, match="more than the rotary module"):
        run(source, "pi", tmp_path / "out")
    for name, reads in (("Ministral3", "llama_4_scaling_beta"), ("Bloom", "no rotary embeddings")):
        source = around(small(name, head_dim=16), tmp_path / name)
        with pytest.raises(UnsupportedModelError, match=reads):
            run(source, "pi", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_expression_is_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ({"rope_theta": 10001.0}, {"rope_type": "dynamic", "factor": 4.0}):
        monkeypatch.setitem(module.DIRECT, "pi", lambda *_, wrong=wrong: ("wrong", wrong))
        assert run(llama, "pi", tmp_path / str(len(wrong))).expression == "longrope"
    monkeypatch.setattr(module, "_expressions", lambda *_: [("wrong", {"rope_theta": 9.0})])
    with pytest.raises(UnsupportedModelError, match="cannot express"):
        run(llama, "pi", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "window"), [("gemma3_text", 16), ("mistral", 16), ("gemma2", 16)])
def test_layers_that_a_config_cannot_change_alone(kind: str, window: int, tmp_path: Path) -> None:
    tiny_model(kind, sliding_window=window).save_pretrained(tmp_path / "source")
    with pytest.raises(
        UnsupportedModelError, match="several kinds of rotation, or layers that see"
    ):
        run(tmp_path / "source", "pi", tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD = {
    b"": "no readable JSON",
    b"\x80\x02binary\x00": "no readable JSON",
    b"[" * 100_000: "no readable JSON",
    b"[1]": "holds a list",
    b'{"model_type": "no-such"}': "cannot be loaded.*no-such",
    b'{"model_type": "llama", "hidden_size": "x"}': "cannot be loaded",
    b'{"model_type": "clip_vision_model"}': "no causal language model of type clip",
    b" " * 2**25: "too large",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_bad_configs(text: bytes, llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "config.json").write_bytes(text)
    with pytest.raises(UsageError, match=BAD[text]) as error:
        run(source, "pi", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert not (tmp_path / "out").exists()


def test_bad_folders(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for out in ("source", "source/inner", "link/inner", "full", "file", "file/inner"):
        with pytest.raises(UsageError, match=r"lies in|exists already|cannot write"):
            run(source, "pi", tmp_path / out)
    for bad in ("file", "none"):
        with pytest.raises(UsageError, match="no model folder"):
            run(tmp_path / bad, "pi", tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        (source / name).unlink()
        with pytest.raises(UsageError, match=r"no (weights|config\.json)"):
            run(source, "pi", tmp_path / "out")
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.parent != source)
    assert left == ["file", "full", "full/mine", "link", "source"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_failure_leaves_nothing(
    error: BaseException, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        Path(target).write_text("half")
        raise error

    monkeypatch.setattr(shutil, "copy2", fail)
    with pytest.raises(UsageError if isinstance(error, OSError) else KeyboardInterrupt):
        run(llama, "pi", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_new_and_empty_folders_are_filled(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        run(llama, "pi", tmp_path / name)
        assert os.stat(tmp_path / name).st_mode & 0o777 == 0o777 & ~umask()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


def umask() -> int:
    os.umask(old := os.umask(0))
    return old
