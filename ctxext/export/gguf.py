"""A patched model as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctxext.errors import UnsupportedModelError, UsageError, short
from ctxext.export import gguf_rope, gguf_vocab
from ctxext.export.card import source_metadata
from ctxext.export.files import check_room
from ctxext.export.gguf_rope import Expression, Rotation
from ctxext.export.gguf_vocab import Vocabulary
from ctxext.methods import Spec
from ctxext.methods.base import Rotary
from ctxext.models.contents import SAFETENSORS, index_name, shard_names
from ctxext.models.frequency_sets import FrequencySet
from ctxext.models.layout import head_dim

# Transformers' model types, and llama.cpp's architectures that compute the same.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
TURNED = frozenset({"llama"})  # the architectures that rotate neighbours, not halves of a head
TYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # safetensors' names, and GGUF's
FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Weight:
    """One tensor: its name in GGUF and in the model folder's `file`, shape and GGUF type.

    `heads` is how many heads its rows are, where these are to be turned, else 0.
    """

    name: str
    source: str
    file: Any
    shape: tuple[int, ...]
    kind: str
    heads: int

    def values(self) -> Tensor:
        """What is written, as it is written; only this tensor is read."""
        tensor = self.file.get_tensor(self.source)
        if self.heads:
            halves = (self.heads, 2, self.shape[0] // self.heads // 2, *self.shape[1:])
            tensor = tensor.reshape(halves).transpose(1, 2).reshape(self.shape)
        return self._stored(tensor.contiguous())

    def row(self, i: int) -> Tensor:
        """Row i of what is to be written, by where it stands in the source."""
        if self.heads:
            size = self.shape[0] // self.heads
            head, place = divmod(i, size)
            i = head * size + place % 2 * (size // 2) + place // 2
        return self._stored(self.file.get_slice(self.source)[i : i + 1])

    def _stored(self, tensor: Tensor) -> Tensor:
        tensor = tensor.float() if self.kind == "F32" else tensor
        return tensor.view(torch.int16) if self.kind == "BF16" else tensor


def write_gguf(
    source: Path,
    target: Path,
    config: Any,
    spec: Spec,
    rotary: FrequencySet,
    length: int,
    hub_id: str | None = None,
) -> str:
    """Write a model folder with the spec in force as a GGUF file, and read it back.

    Weights keep their dtype, but norms and biases, which llama.cpp wants in float32; one tensor
    is in memory at a time.

    Args:
        source: the model folder, weights in safetensors.
        target: the file to write; nothing is left of it after an error.
        config: the folder's transformers config.
        spec: resolved; frequency methods only.
        rotary: the model's only set of frequencies, of its config, T and L.
        length: L in tokens, which becomes the file's context length where it exceeds T.
        hub_id: where on the Hub the folder was fetched from, if it was.

    Returns:
        How the file says it: "rope.freq_base", "linear", "yarn" or "rope_freqs".

    Raises:
        UsageError: no gguf package, a spec or a file that does not do.
        UnsupportedModelError: llama.cpp has no such model, rotation or tokenizer.
        OSError: the file cannot be written.
    """
    _check_usable(spec)
    context = max(length, rotary.facts.trained)
    architecture, rotation, expression = expression_of(config, spec, rotary, context)
    with contextlib.ExitStack() as stack:
        weights = _find_weights(source, config, architecture, stack)
        vocabulary = gguf_vocab.read_vocabulary(source, config)
        try:
            writer = _describe(source, config, architecture, context, spec, hub_id)
            gguf_rope.add_to(writer, expression)
            vocabulary.add_to(writer)
            _write(writer, target, weights, expression)
            _check_written(target, architecture, weights, rotation, vocabulary)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return expression.name


def expression_of(
    config: Any, spec: Spec, rotary: FrequencySet, context: int
) -> tuple[str, Rotation, Expression]:
    """llama.cpp's architecture for a model, the rotation that a resolved spec of frequency methods
    gives it, and how a file says that.

    Args:
        context: the longest length, in tokens.

    Raises:
        UnsupportedModelError: llama.cpp has no such model or rotation.
    """
    own = rotary.facts
    architecture = _architecture(config, own, context)
    rotation = gguf_rope.wanted(rotary, spec)
    kept = rotary.scaled and not rotary.replaced
    scaling = f" whose own {rotary.rope['rope_type']} rope scaling stays" if kept else ""
    what = f"{spec} for a {config.model_type} model{scaling}"
    return architecture, rotation, gguf_rope.express(architecture, rotation, own, what)


def _check_usable(spec: Spec) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("--format gguf needs the gguf package: pip install 'ctxext[gguf]'")
    if others := [method.name for method in spec.methods if method.changes != "frequency"]:
        raise UsageError(
            f"{str(spec)!r} cannot be written as GGUF, since {' and '.join(others)} changes "
            "attention itself, which llama.cpp cannot: give frequency methods, or --format hf"
        )


def _architecture(config: Any, own: Rotary, context: int) -> str:
    """llama.cpp's architecture for a model; UnsupportedModelError, with the reason, for none."""
    kind, known = config.model_type, ", ".join(ARCHITECTURES)
    if kind not in ARCHITECTURES or not type(config).__module__.startswith("transformers."):
        raise UnsupportedModelError(
            f"{kind} models cannot be written as GGUF: valid: {known}; use --format hf"
        )
    heads, size = config.num_attention_heads, head_dim(config)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    wrong = {
        f"its activation {config.hidden_act!r}": config.hidden_act != "silu",
        "its quantized weights": getattr(config, "quantization_config", None) is not None,
        f"its window of {window} tokens": "sliding_attention" in kinds and window
        and window < context,
        f"its layers of {', '.join(sorted(kinds))}": kinds
        - {"sliding_attention", "full_attention"},
        f"a rotation of {own.dim} of a head's {size} dimensions": own.dim != size,
        "heads that are not its width together": kind == "qwen2" and heads * size
        != config.hidden_size,
        "biases in its attention": kind == "qwen3" and config.attention_bias,
    }  # fmt: skip
    if reasons := [reason for reason, holds in wrong.items() if holds]:
        raise UnsupportedModelError(
            f"this {kind} model cannot be written as GGUF: llama.cpp's {ARCHITECTURES[kind]} has "
            f"no place for {' and '.join(reasons)}; use --format hf"
        )
    return ARCHITECTURES[kind]


def _find_weights(
    source: Path, config: Any, architecture: str, stack: contextlib.ExitStack
) -> list[Weight]:
    """Every tensor of the model, in its order; UsageError where one is missing or not as it is."""
    import gguf

    files = {key: file for file in _open(source, stack) for key in file.keys()}  # noqa: SIM118
    if 2 * config.num_hidden_layers > len(files):
        raise UsageError(
            f"the weights in {str(source)!r} are {len(files)} tensors, too few for "
            f"{config.num_hidden_layers} layers: download them anew"
        )
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights, shapes = [], _shapes(config)
    for key, shape in shapes.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedModelError(f"llama.cpp's {architecture} has no tensor for {key!r}")
        if key not in files:
            raise UsageError(f"the weights in {str(source)!r} lack {key!r}: download them anew")
        view = files[key].get_slice(key)
        if tuple(view.get_shape()) != shape or view.get_dtype() not in TYPES:
            raise UsageError(
                f"tensor {key!r} in {str(source)!r} is {view.get_dtype()} {view.get_shape()}, "
                f"not {' or '.join(TYPES)} {list(shape)}: give a plain checkpoint"
            )
        kind = TYPES[view.get_dtype()] if len(shape) > 1 else "F32"
        rows = heads.get(key.split(".")[-2], 0) if architecture in TURNED else 0
        weights.append(Weight(name, key, files[key], shape, kind, rows))
    left = sorted(k for k in files.keys() - shapes.keys() if not _is_spare(k, config))
    if left:
        raise UsageError(f"tensor {left[0]!r} in {str(source)!r} has no place in the model")
    return weights


def _is_spare(key: str, config: Any) -> bool:
    """Whether a checkpoint may hold a tensor that the model does not read."""
    tied = config.tie_word_embeddings and key == "lm_head.weight"
    return tied or key.endswith("rotary_emb.inv_freq")


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The model's tensors and their shapes, without the tied ones."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            state = AutoModelForCausalLM.from_config(config).state_dict()
    except Exception as error:
        raise UnsupportedModelError(
            f"transformers builds no {config.model_type} model of this config: "
            f"{type(error).__name__} {short(error, 200)}"
        ) from error
    return {k: tuple(w.shape) for k, w in state.items() if not _is_spare(k, config)}


def _open(source: Path, stack: contextlib.ExitStack) -> list[Any]:
    """The folder's safetensors files; UsageError, in a line, where there are none to be read."""
    from safetensors import SafetensorError, safe_open

    paths = [source / name for name in _shards(source)]
    opened = []
    for path in paths:
        try:
            opened.append(stack.enter_context(safe_open(path, framework="pt")))
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{str(path)!r} holds no readable weights ({error})") from error
    return opened


def _shards(source: Path) -> list[str]:
    if (source / SAFETENSORS).is_file():
        return [SAFETENSORS]
    index = source / index_name(SAFETENSORS)
    if not index.is_file():
        raise UsageError(f"no {SAFETENSORS} in {str(source)!r}, nor an index of shards")
    return shard_names(index)


def _describe(
    source: Path, config: Any, architecture: str, context: int, spec: Spec, hub_id: str | None
) -> Any:
    """A writer that has the model's metadata, but for its rotation and vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(None, architecture)
    name = Path(hub_id or os.path.realpath(source)).name.encode(errors="replace").decode()
    licence = source_metadata(source).get("license")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_description(f"{name} with {spec.full()}, for {context} tokens (ctxext)")
    writer.add_license(licence if isinstance(licence, str) else "")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, name)
    if hub_id:
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{hub_id}")
    size = head_dim(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    return writer


def _write(writer: Any, target: Path, weights: list[Weight], expression: Expression) -> None:
    """The whole file, tensor after tensor."""
    import gguf

    kinds = {weight.kind for weight in weights if len(weight.shape) > 1}
    main = "BF16" if "BF16" in kinds else "F16" if "F16" in kinds else "F32"
    types = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(types.get(main, gguf.LlamaFileType.MOSTLY_BF16))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    factors = torch.tensor(expression.factors, dtype=torch.float32)
    shapes = [(FACTORS, tuple(factors.shape), "F32")] if len(factors) else []
    shapes += [(weight.name, weight.shape, weight.kind) for weight in weights]
    sizes = [torch.Size(shape).numel() * (4 if kind == "F32" else 2) for _, shape, kind in shapes]
    check_room(target.parent, sum(sizes))
    for (name, shape, kind), size in zip(shapes, sizes, strict=True):
        kind_number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, size, kind_number)
    try:
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in _tensors(factors, weights):
            writer.write_tensor_data(values.numpy())
    finally:
        writer.close()


def _tensors(factors: Tensor, weights: list[Weight]) -> Iterator[Tensor]:
    if len(factors):
        yield factors
    for weight in weights:
        yield weight.values()


def _check_written(
    target: Path,
    architecture: str,
    weights: list[Weight],
    rotation: Rotation,
    vocabulary: Vocabulary,
) -> None:
    """UnsupportedModelError unless what stands in the file is the patched model."""
    import gguf

    reader = gguf.GGUFReader(target)

    def field(key: str) -> Any:
        found = reader.get_field(f"{architecture}.rope.{key}")
        return None if found is None else found.contents()

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop(FACTORS, None)
    held = () if factors is None else tuple(map(float, factors.data))
    pairs = len(rotation.theta)
    if not gguf_rope.read_back(field, held).rotation(pairs).is_close(rotation):
        raise _not_kept("the rotation")
    if reader.get_field("tokenizer.ggml.tokens").contents() != vocabulary.tokens:
        raise _not_kept("the vocabulary")
    if list(tensors) != [weight.name for weight in weights]:
        raise _not_kept("the list of tensors")
    for weight in weights:
        _check_tensor(weight, tensors[weight.name])


def _check_tensor(weight: Weight, tensor: Any) -> None:
    """Shape, type, and the first, second, middle and last row."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if (shape, tensor.tensor_type.name) != (weight.shape, weight.kind):
        raise _not_kept(f"{weight.name} as {weight.kind} {list(weight.shape)}")
    for i in {0, 1, shape[0] // 2, shape[0] - 1} & set(range(shape[0])):
        if tensor.data[i].tobytes() != weight.row(i).numpy().tobytes():
            raise _not_kept(f"row {i} of {weight.name}")


def _not_kept(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the GGUF file read back does not hold {what} as it should: is the disk sound, and the "
        "gguf package recent? (pip install --upgrade gguf)"
    )
