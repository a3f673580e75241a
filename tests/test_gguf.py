"""A GGUF file holds the patched model, and llama.cpp runs it as such."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import random_model
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

import ctxext
from ctxext import patches
from ctxext.errors import UnsupportedModelError, UsageError
from ctxext.export import gguf as module
from ctxext.export import gguf_rope, gguf_vocab
from ctxext.export.gguf import write_gguf
from ctxext.methods.base import Rotary, Span
from ctxext.models.aliases import locate
from ctxext.models.frequency_sets import find_frequency_sets
from ctxext.models.loading import Source, load_config

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install 'ctxext[gguf]'")

TINY = Path(locate("tiny"))
LENGTH = 2048
VOCABULARY = 700
SPECS = {  # and how tiny's file says them
    "rope": "rope.freq_base",
    "pi": "linear",
    "ntk": "rope.freq_base",
    "ntk-old": "rope.freq_base",
    "ntk-fixed": "linear",
    "beta-radix": "rope_freqs",
    "yarn": "rope_freqs",
    "yarn+ntk": "rope_freqs",
}
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
QWEN2 = LLAMA3.replace("{1,3}", "")
TEXT = Path(shutil.__file__).read_text(encoding="utf-8")


def run(
    source: Path,
    spec: str,
    target: Path,
    length: int = LENGTH,
    own_scaling: str = "keep",
    hub_id: str | None = None,
) -> str:
    config = load_config(Source(str(source)))
    rotary = rotation_of(config, length, own_scaling)
    resolved = patches.parse(spec).resolve(Span(rotary.trained, length))
    return write_gguf(source, target, config, resolved, rotary, length, hub_id)


def rotation_of(config: Any, length: int, own_scaling: str = "keep") -> Any:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    for part in model.modules():
        if hasattr(part, "inv_freq"):
            part.__init__(config)
    return find_frequency_sets(model, None, own_scaling, length)[0]


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])


CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "smaug-bpe": lambda: split(LLAMA3),
    "llama-bpe": lambda: split(LLAMA3),
    "qwen2": lambda: split(QWEN2),
}


def bpe(name: str = "gpt-2", size: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE of size − 3 tokens that cuts text in one of the known ways."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = CUTS[name]()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 3,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(True), trainer)
    return tokenizer


def sentencepiece(prefix: str = "prepend") -> Tokenizer:
    """Pieces in the order in which BPE learnt them, and a merge for every way to build each."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        TEXT.splitlines(), trainers.BpeTrainer(vocab_size=600, show_progress=False)
    )
    learnt = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += [piece for piece, _ in learnt][: VOCABULARY - len(tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    ways = ((t[:i], t[i:]) for t in tokens[259:] for i in range(1, len(t)))
    merges = [way for way in ways if set(way) <= set(vocab)]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in tokens[:3]])
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    return tokenizer


def saved(
    folder: Path,
    family: str = "llama-gqa",
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **changes: object,
) -> Path:
    """A random model's folder whose tokenizer names <s> and </s>."""
    changes = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **changes}
    model = random_model(family, **changes)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or bpe(), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "a llama")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "qwen", "qwen3-qk-norm", bpe("qwen2"))


def edit(source: Path, name: str, folder: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of a model folder in which one JSON file is changed."""
    copy = shutil.copytree(source, folder)
    raw = json.loads((copy / name).read_text(encoding="utf-8"))
    change(raw)
    (copy / name).write_text(json.dumps(raw), encoding="utf-8")
    return copy


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(file)
    fields = {key: value.contents() for key, value in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def rotation(file: Path, pairs: int) -> tuple[np.ndarray, float]:
    """θ and the attention factor by llama.cpp's formula, from the metadata of a file."""
    fields, tensors = read(file)
    arch = fields["general.architecture"]
    rope = {k.removeprefix(f"{arch}.rope."): v for k, v in fields.items()}
    theta = rope["freq_base"] ** -(np.arange(pairs) / pairs)
    factor = rope.get("scaling.attn_factor", 1.0)
    if "rope_freqs.weight" in tensors:
        theta = theta / np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64)
    if rope["scaling.type"] == "linear":
        theta = theta / rope["scaling.factor"]
    if rope["scaling.type"] == "yarn":
        k, t = rope["scaling.factor"], rope["scaling.original_context_length"]
        low, high = (
            pairs * math.log(t / (turns * 2 * math.pi)) / math.log(rope["freq_base"])
            for turns in (32, 1)  # llama.cpp reads no others from a file
        )
        low, high = max(0, math.floor(low)), min(2 * pairs - 1, math.ceil(high))
        kept = 1 - np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
        theta, factor = theta * (kept + (1 - kept) / k), factor * (1 + 0.1 * math.log(k))
    return theta, factor


def assert_rotates_like(file: Path, model: Any) -> None:
    rotary = model.model.rotary_emb
    theta, factor = rotation(file, len(rotary.inv_freq))
    np.testing.assert_allclose(theta, rotary.inv_freq.double().numpy(), rtol=1e-6)
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-6)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@pytest.mark.parametrize("spec", SPECS)
def test_the_rotation_is_the_patched_models(spec: str, tmp_path: Path) -> None:
    assert run(TINY, spec, tmp_path / "m.gguf") == SPECS[spec]
    model = load(TINY)
    ctxext.patch(model, spec, LENGTH)
    assert_rotates_like(tmp_path / "m.gguf", model)


QWEN_SPECS = {
    "rope": "rope.freq_base",
    "pi:factor=3": "linear",
    "ntk": "rope.freq_base",
    "ntk+pi": "linear",
    "yarn": "yarn",
    "yarn:factor=6": "yarn",
}


@pytest.mark.parametrize("spec", QWEN_SPECS)
def test_qwen_takes_what_metadata_express(spec: str, qwen: Path, tmp_path: Path) -> None:
    assert run(qwen, spec, tmp_path / "m.gguf", 128) == QWEN_SPECS[spec]
    model = load(qwen)
    ctxext.patch(model, spec, 128)
    assert_rotates_like(tmp_path / "m.gguf", model)


@pytest.mark.parametrize("spec", ["beta-radix", "yarn+ntk", "yarn:beta_fast=8"])
def test_qwen_refuses_the_rest(spec: str, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot express .* for a qwen3 model.*yarn"):
        run(qwen, spec, tmp_path / "m.gguf", 128)
    assert list(tmp_path.iterdir()) == []


OWN: dict[str, tuple[dict[str, Any], str, str]] = {
    "linear": ({"factor": 4.0}, "linear", "linear"),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "rope_freqs",
        "",
    ),
    "yarn": ({"factor": 4.0}, "rope_freqs", "yarn"),
    "yarn with its own factor": ({"factor": 4.0, "attention_factor": 1.5}, "rope_freqs", "yarn"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_models_own_scaling_is_kept_or_replaced(
    name: str, llama: Path, qwen: Path, tmp_path: Path
) -> None:
    own, *names = OWN[name]
    rope = {"rope_type": name.split()[0], "original_max_position_embeddings": 16, **own}
    for source, expected in zip((llama, qwen), names, strict=True):
        folder = edit(
            source,
            "config.json",
            tmp_path / source.name,
            lambda raw: raw["rope_parameters"].update(rope),
        )
        target = tmp_path / f"{source.name}.gguf"
        if expected:
            assert run(folder, "rope", target, 128) == expected
            assert_rotates_like(target, load(folder))
        else:
            with pytest.raises(UnsupportedModelError, match="cannot express rope"):
                run(folder, "rope", target, 128)
        if name == "linear" or source == llama:
            run(folder, "ntk:factor=2", target, 128)
            with ctxext.patched(model := load(folder), "ntk:factor=2", 128):
                assert_rotates_like(target, model)
        else:
            with pytest.raises(UnsupportedModelError, match=r"cannot express ntk.* whose own"):
                run(folder, "ntk:factor=2", target, 128)
        assert run(folder, "pi:factor=2", target, 128, "replace") == "linear"
        theta, factor = rotation(target, 8)
        np.testing.assert_allclose(theta, 10000.0 ** -(np.arange(8) / 8) / 2, rtol=1e-6)
        assert factor == 1


@pytest.mark.parametrize("length", [64, 128])  # T and beyond
def test_a_scaling_by_the_length_is_that_of_the_length(
    length: int, llama: Path, tmp_path: Path
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0}
    folder = edit(
        llama, "config.json", tmp_path / "m", lambda raw: raw["rope_parameters"].update(rope)
    )
    for spec in ("rope", "beta-radix:factor=2"):
        run(folder, spec, target := tmp_path / "m.gguf", length)
        with ctxext.patched(model := load(folder), spec, length):
            assert_rotates_like(target, model)


def source_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {k: w for f in sorted(folder.glob("*.safetensors")) for k, w in load_file(f).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "head_dim": 8}
    folder = saved(tmp_path / "m", dtype=dtype, shard="100KB", tie_word_embeddings=tied, **options)
    assert len(list(folder.glob("*.safetensors"))) > 1
    run(folder, "beta-radix", tmp_path / "m.gguf", 128)
    fields, tensors = read(tmp_path / "m.gguf")
    weights = source_weights(folder)
    assert fields["llama.rope.dimension_count"] == 8
    assert len(tensors) == len(weights) + 1
    assert ("output.weight" in tensors) is not tied
    named = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blk.0.ffn_up.bias": "model.layers.0.mlp.up_proj.bias",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.1.attn_output.bias": "model.layers.1.self_attn.o_proj.bias",
    }
    for name, key in named.items():
        assert torch.equal(values(tensors[name]), weights[key].float()), name
    for name, heads in (("q", 4), ("k", 2)):
        for part in ("weight", "bias"):
            got = values(tensors[f"blk.1.attn_{name}.{part}"])
            want = weights[f"model.layers.1.self_attn.{name}_proj.{part}"].float()
            for head in range(heads):
                for j in range(4):  # pair j: dimensions j and j + 4 become neighbours
                    at = 8 * head
                    assert torch.equal(got[at + 2 * j], want[at + j])
                    assert torch.equal(got[at + 2 * j + 1], want[at + j + 4])
    kinds = {t.tensor_type.name for t in tensors.values() if t.data.ndim > 1}
    assert kinds == {{2: "F16", 4: "F32"}[dtype.itemsize] if dtype != torch.bfloat16 else "BF16"}
    assert {t.tensor_type.name for t in tensors.values() if t.data.ndim == 1} == {"F32"}


def values(tensor: Any) -> Tensor:
    data = torch.from_numpy(tensor.data.copy())
    return (data.view(torch.bfloat16) if tensor.tensor_type.name == "BF16" else data).float()


def test_metadata(tmp_path: Path) -> None:
    run(TINY, "pi", tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    tokens = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.description": "tiny with pi:factor=4, for 2048 tokens (ctxext)",
        "general.base_model.0.name": "tiny",
        "general.file_type": 1,
        "llama.context_length": LENGTH,
        "llama.block_count": 4,
        "llama.embedding_length": 192,
        "llama.feed_forward_length": 576,
        "llama.attention.head_count": 3,
        "llama.attention.head_count_kv": 3,
        "llama.attention.key_length": 64,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.vocab_size": 2048,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": sorted(tokens, key=tokens.get),
        "tokenizer.ggml.token_type": [3] + [1] * 2047,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: fields[key] for key in expected} == expected
    run(TINY, "rope", tmp_path / "short.gguf", 100)
    assert read(tmp_path / "short.gguf")[0]["llama.context_length"] == 512


def test_card_and_chat_template_come_along(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "models--org--other" / "snapshots" / "abc")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    run(folder, "pi", tmp_path / "m.gguf", 128, hub_id="org/name")
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.name"] == "name"
    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/org/name"
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    for bad in ("---\n: [\n---\n", "---\nlicense: [1, 2]\n---\n", "---\n- a\n---\n", "\x00"):
        (folder / "README.md").write_text(bad)
        run(folder, "pi", tmp_path / "m.gguf", 128)
        fields, _ = read(tmp_path / "m.gguf")
        assert "general.license" not in fields
        assert "general.base_model.0.repo_url" not in fields  # the folder's place is no claim


@pytest.mark.parametrize("name", CUTS)
def test_byte_level_tokenizers_by_their_cut(name: str, tmp_path: Path) -> None:
    tokenizer = bpe(name)
    tokenizer.add_tokens(["<tool>"])
    folder = saved(tmp_path / "m", tokenizer=tokenizer)
    run(folder, "pi", tmp_path / "m.gguf", 128)
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.pre"] == name
    assert fields["tokenizer.ggml.token_type"][-3:] == [4, 5, 5]
    assert fields["tokenizer.ggml.tokens"][-3:] == ["<tool>", "[PAD698]", "[PAD699]"]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 1)


@pytest.mark.parametrize(
    ("prefix", "space"), [("prepend", True), ("always", True), ("first", True), ("never", False)]
)
def test_sentencepiece(prefix: str, space: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", tokenizer=sentencepiece(prefix))
    run(folder, "pi", tmp_path / "m.gguf", 128)
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is space
    assert fields["tokenizer.ggml.token_type"][:259] == [2, 3, 3] + [6] * 256
    long = [i for i, t in enumerate(fields["tokenizer.ggml.tokens"]) if i > 258 and len(t) > 1]
    scores = [fields["tokenizer.ggml.scores"][i] for i in long]
    assert len(scores) > 50
    assert scores == sorted(scores, reverse=True)  # in the order in which they were learnt


def change_model(**changes: object) -> Callable[[Any], None]:
    return lambda raw: raw["model"].update(changes)


def change(**changes: object) -> Callable[[Any], None]:
    return lambda raw: raw.update(changes)


def add(token: str, i: int, **traits: object) -> Callable[[Any], None]:
    base = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return lambda raw: raw["added_tokens"].append({"id": i, "content": token, **base, **traits})


def rename(old: str, new: str) -> Callable[[Any], None]:
    return lambda raw: raw["model"]["vocab"].update({new: raw["model"]["vocab"].pop(old)})


LAST = VOCABULARY - 3
REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "dropout": (change_model(dropout=0.5), "dropout 0.5"),
    "prefix": (change_model(continuing_subword_prefix="##", merges=[]), "continuing_subword"),
    "panic in Rust": (change_model(continuing_subword_prefix="###"), "cannot load.*Panic"),
    "merges": (change_model(merges=[]), "no merges"),
    "lower": (change(normalizer={"type": "Lowercase"}), "normalized by Lowercase"),
    "whitespace": (change(pre_tokenizer={"type": "Whitespace"}), "cuts text by.*Whitespace"),
    "none": (change(pre_tokenizer=None), "cuts text by nothing"),
    "space": (
        change(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True,
                              "trim_offsets": True}),
        "cuts text by.*add_prefix_space",
    ),
    "fallback": (change_model(byte_fallback=True), "not each byte"),
    "lstrip": (add("<x>", LAST, lstrip=True), "<x>.*stripped on its left"),
    "word": (add("<x>", LAST, single_word=True), "<x>.*whole word"),
    "nul": (add("a\0b", LAST), "cannot hold"),
    "empty": (rename("Ġt", ""), "cannot hold|cannot be loaded"),
    "pad": (add(f"[PAD{VOCABULARY - 1}]", LAST), "stands there 2 times"),
    "shared id": (
        lambda raw: raw["model"]["vocab"].update({"zzz": raw["model"]["vocab"]["!"]}), "same id",
    ),
    "around": (
        change(post_processor={"type": "TemplateProcessing",
               "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                          {"Sequence": {"id": "A", "type_id": 0}}],
               "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                        {"Sequence": {"id": "B", "type_id": 0}}],
               "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}),
        "adds its bos and eos",
    ),
    "nothing": (
        change(post_processor={"type": "TemplateProcessing", "single": [], "special_tokens": {},
               "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                        {"Sequence": {"id": "B", "type_id": 0}}]}),
        "adds its bos and eos",
    ),
    "unigram": (
        change(model={"type": "Unigram", "unk_id": 0, "vocab": [["<s>", 0.0], ["</s>", -1.0]]}),
        "Unigram",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_cannot_be_expressed(name: str, llama: Path, tmp_path: Path) -> None:
    folder = edit(llama, "tokenizer.json", tmp_path / "m", REFUSED[name][0])
    with pytest.raises(UsageError, match=REFUSED[name][1]) as error:
        run(folder, "pi", tmp_path / "m.gguf", 128)
    assert_one_line(error.value)
    assert not (tmp_path / "m.gguf").exists()


def two_ways(raw: Any) -> int:
    """The index of a late merge into a piece that another one builds too."""
    pieces = ["".join(way) for way in raw["model"]["merges"]]
    return next(i for i, p in enumerate(pieces) if i > 9 and pieces.count(p) > 1)


SPM_REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "whole words": (change_model(ignore_merges=True), "whole words"),
    "a way missing": (
        lambda raw: raw["model"]["merges"].pop(len(raw["model"]["merges"]) // 2),
        "do not merge, but",
    ),
    "apart": (
        lambda raw: raw["model"]["merges"].insert(0, raw["model"]["merges"].pop(two_ways(raw))),
        "stand apart",
    ),
    "front": (change(normalizer={"type": "Prepend", "prepend": "▁"}), "treats text by"),
    "normalized": (add("<x>", LAST + 1, normalized=True), "looked for in normalized text"),
}


@pytest.mark.parametrize("name", SPM_REFUSED)
def test_sentencepiece_that_cannot_be_expressed(name: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tokenizer=sentencepiece(), vocab_size=VOCABULARY + 9)
    folder = edit(source, "tokenizer.json", tmp_path / "m", SPM_REFUSED[name][0])
    with pytest.raises(UnsupportedModelError, match=SPM_REFUSED[name][1]) as error:
        run(folder, "pi", tmp_path / "m.gguf", 128)
    assert_one_line(error.value)


def assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 800


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"\x80\x00", b"[" * 100_000, b'{"model": 1}', b'{"version": "1.0"}']
)
def test_hostile_tokenizer_files(text: bytes, llama: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        folder = shutil.copytree(llama, tmp_path / name)
        (folder / name).write_bytes(text)
        if name == "tokenizer_config.json" and text.startswith(b"{"):
            continue
        with pytest.raises(UsageError) as error:
            run(folder, "pi", tmp_path / "m.gguf", 128)
        assert_one_line(error.value)
        assert not (tmp_path / "m.gguf").exists()


def test_a_model_smaller_than_its_tokenizer(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", vocab_size=300)
    with pytest.raises(UnsupportedModelError, match="has id 300, and the model has 300 embeddings"):
        run(folder, "pi", tmp_path / "m.gguf", 128)


def test_a_config_of_which_no_model_is_built(llama: Path, tmp_path: Path) -> None:
    config = load_config(Source(str(llama)))
    own = rotation_of(config, 128)
    config.intermediate_size = -1
    with pytest.raises(UnsupportedModelError, match="builds no llama model") as error:
        write_gguf(llama, tmp_path / "m.gguf", config, patches.parse("rope"), own, 128)
    assert_one_line(error.value)


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", eos_token_id=None)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UnsupportedModelError, match="no token for the end"):
        run(folder, "pi", tmp_path / "m.gguf", 128)


def test_hostile_weights(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = source_weights(llama)
    key = "model.layers.1.mlp.up_proj.weight"
    bad: dict[str, tuple[dict[str, Tensor], str]] = {
        "missing": ({k: w for k, w in weights.items() if k != key}, "lack '" + key),
        "shape": ({**weights, key: weights[key][:-1].clone()}, "is F32 .*not F32 or"),
        "type": ({**weights, key: weights[key].to(torch.int8)}, "is I8 "),
        "spare": ({**weights, "spare": torch.zeros(1)}, "'spare'.*no place"),
        "few": ({"spare": torch.zeros(1)}, "too few for 2 layers"),
    }
    folder = shutil.copytree(llama, tmp_path / "m")
    for tensors, message in bad.values():
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UsageError, match=message) as error:
            run(folder, "pi", tmp_path / "m.gguf", 128)
        assert_one_line(error.value)
    for content in (b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=r"readable weights|too few"):
            run(folder, "pi", tmp_path / "m.gguf", 128)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        run(folder, "pi", tmp_path / "m.gguf", 128)
    for content in ("", "[]", '{"weight_map": {"a": "../m/x.safetensors"}}', "[" * 10**5,
                    '{"weight_map": {"a": 1}}', '{"weight_map": {}}'):  # fmt: skip
        index.write_text(content)
        with pytest.raises(UsageError, match=r"no index of|JSON|holds a|names the"):
            run(folder, "pi", tmp_path / "m.gguf", 128)
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(UsageError, match="no readable weights"):
        run(folder, "pi", tmp_path / "m.gguf", 128)
    assert not (tmp_path / "m.gguf").exists()


MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma": ("Gemma", {}, "gemma models cannot.*valid: llama, mistral, qwen2, qwen3"),
    "gelu": ("Llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
    "mistral": ("Mistral", {"sliding_window": 32}, "window of 32 tokens"),
    "qwen3": ("Qwen3", {"attention_bias": True, "head_dim": 16}, "biases"),
    "width": ("Qwen2", {"head_dim": 8}, "not its width together"),
    "quantized": ("Llama", {"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_llama_cpp_does_not_compute(name: str, tmp_path: Path) -> None:
    kind, changes, message = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=1, hidden_size=64, num_attention_heads=4, **changes
    )
    theta = tuple(10000.0 ** (-i / 8) for i in range(changes.get("head_dim", 16) // 2))
    own = SimpleNamespace(facts=Rotary(theta, 10000.0, 64))
    with pytest.raises(UnsupportedModelError, match=message) as error:
        write_gguf(tmp_path, tmp_path / "m.gguf", config, patches.parse("rope"), own, 128)
    assert_one_line(error.value)


def test_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    config = transformers.MistralConfig(sliding_window=None, hidden_size=64, num_attention_heads=4)
    own = Rotary(tuple(10000.0 ** (-i / 8) for i in range(8)), 10000.0, 64)
    assert module._architecture(config, own, 128) == "llama"


@pytest.mark.parametrize("spec", ["rerope:window=16", "logn", "pi:factor=2+logn"])
def test_what_changes_attention_is_refused(spec: str, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(rerope|logn) changes attention itself.*frequency"):
        run(llama, spec, tmp_path / "m.gguf", 128)


def test_without_the_gguf_package(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ctxext\[gguf\]'"):
        run(llama, "pi", tmp_path / "m.gguf", 128)


@pytest.mark.parametrize("what", ["a row", "the rotation", "the vocabulary"])
def test_a_wrong_file_is_found_and_removed(
    what: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "a row":
        values = module.Weight.values
        monkeypatch.setattr(module.Weight, "values", lambda self: values(self) + 1)
    elif what == "the rotation":
        add = gguf.GGUFWriter.add_rope_freq_base
        monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda w, b: add(w, b * 1.001))
    else:
        add = gguf.GGUFWriter.add_token_list
        monkeypatch.setattr(gguf.GGUFWriter, "add_token_list", lambda w, t: add(w, [*t[1:], "x"]))
    with pytest.raises(UnsupportedModelError, match=f"does not hold {what.removeprefix('a ')}"):
        run(llama, "pi", tmp_path / "m.gguf", 128)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="No space"):
        run(llama, "pi", tmp_path / "m.gguf", 128)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_float32_cannot_hold(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot express"):
        run(llama, "pi:factor=1e39", tmp_path / "m.gguf", 128)


def test_yarn_sets_in_where_ggml_says() -> None:
    """T = 4096, base 10000, d = 128: pairs 20 and 46 by the paper's formula."""
    kept = gguf_rope._kept(gguf_rope.Ramp(4.0, 4096), 10000.0, 64)
    assert [round(kept[i], 9) for i in (0, 20, 33, 46, 63)] == [1, 1, 0.5, 0, 0]


def test_types_are_those_of_gguf() -> None:
    names = ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")
    for name in names:
        assert getattr(gguf_vocab, name) == gguf.TokenType[name]


# With llama.cpp itself, `make test-gguf`.


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: make test-gguf")


def opened(llama_cpp: Any, file: Path, **options: Any) -> Any:
    """A file in llama.cpp, with a float32 cache."""
    return llama_cpp.Llama(
        str(file), n_ctx=LENGTH, n_batch=LENGTH, logits_all=True, n_threads=1, type_k=0, type_v=0,
        verbose=False, **options,
    )  # fmt: skip


def their_logits(llama_cpp: Any, file: Path, ids: list[int]) -> Tensor:
    model = opened(llama_cpp, file)
    model.eval(ids)
    scores = torch.tensor(np.array(model.scores[: len(ids)]))
    model.close()
    return scores


def perplexity(logits: Tensor, ids: list[int]) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])))


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_perplexity_in_llama_cpp(spec: str, llama_cpp: Any, tmp_path: Path) -> None:
    run(TINY, spec, tmp_path / "m.gguf")
    model, tokenizer = ctxext.load("tiny")
    ids = tokenizer(TEXT)["input_ids"][:LENGTH]
    ctxext.patch(model, spec, LENGTH)
    ours = perplexity(model(torch.tensor([ids])).logits[0], ids)
    theirs = perplexity(their_logits(llama_cpp, tmp_path / "m.gguf", ids), ids)
    assert theirs == pytest.approx(ours, rel=5e-4)


FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama with biases": (
        "llama-gqa", {"attention_bias": True, "mlp_bias": True, "head_dim": 8},
        ["rope", "beta-radix", "yarn"],
    ),
    "qwen2": ("qwen2", {}, ["rope", "ntk", "pi", "ntk+pi", "yarn"]),
    "qwen3": ("qwen3-qk-norm", {}, ["rope", "ntk", "pi", "yarn"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_in_llama_cpp(
    name: str, llama_cpp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import conftest

    qwen2 = ("Qwen2ForCausalLM", "Qwen2Config", {})
    monkeypatch.setitem(conftest.FAMILIES, "qwen2", qwen2)
    family, changes, specs = FAMILIES[name]
    folder = saved(tmp_path / "m", family, bpe("qwen2"), **changes)
    ids = random.Random(0).choices(range(VOCABULARY), k=200)
    unpatched = load(folder)(torch.tensor([ids])).logits[0]
    for spec in specs:
        run(folder, spec, tmp_path / "m.gguf", 256)
        model = load(folder)
        ctxext.patch(model, spec, 256)
        want = model(torch.tensor([ids])).logits[0]
        assert spec == "rope" or float((want - unpatched).abs().max()) > 0.1
        got = their_logits(llama_cpp, tmp_path / "m.gguf", ids)
        assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max()), spec


TEXTS = (
    TEXT[:3000], "don't I'LL 'S ''s We'Ve", " a  b   c\n\n \t\n  d \r\n e  ", "1234567 3.14 ²³½ ٣٤",
    "naïve Ångström 日本語 한국어 हिन्दी 🧑‍💻👍🏽", "a\u00a0b\u2003c\u3000d", "<s>x</s> <tool>y",
    "\t", "...!!", "▁x",
)  # fmt: skip


@pytest.mark.parametrize("name", [*CUTS, "tiny", "prepend", "never"])
def test_tokens_in_llama_cpp(name: str, llama_cpp: Any, tmp_path: Path) -> None:
    folder = TINY
    if name != "tiny":
        tokenizer = bpe(name) if name in CUTS else sentencepiece(name)
        size = VOCABULARY + 2
        folder = saved(tmp_path / "m", tokenizer=tokenizer, vocab_size=size)
    run(folder, "rope", tmp_path / "m.gguf", 128)
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        got = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert got == ours(text)["input_ids"], text
