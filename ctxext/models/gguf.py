"""GGUF files as models: transformers' own loader reads them, and what it leaves out is read here.

Of the rotation that loader takes the base alone, and that not of every architecture: a linear
factor, YaRN's and LongRoPE's parameters and a λ for each pair (`rope_freqs.weight`) are put into
the config here, as llama.cpp means them, and so is what else it leaves out and a config can say.
What a file says beside that is refused, since the model would be another one without it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import math
import mmap
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError, short
from ctxext.models.trained import ORIGINAL

if TYPE_CHECKING:
    pass

SUFFIX = ".gguf"
CLOSE = 1e-5  # relative: float32 metadata, computed in float32
# Tensors that say a rotation; they are no weights.
ROTATIONS = PER_PAIR, SHORT, LONG = "rope_freqs", "rope_factors_short", "rope_factors_long"
OUTPUT = "output"  # the tensor of a head that is not the embedding
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}  # of all Llama 3.x
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_BLOCK = re.compile(r"blk\.(\d+)\.")  # how the tensors of a layer begin
_WHOLE = ("F32", "F16", "BF16", "F64")  # types that are not quantised

# Metadata of an architecture that the loader takes, that shapes of weights say again, or that says
# how the weights lie. `_scaling`, `_check_width` and `complete` read the rest of these.
_SHAPES = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "tensor_data_layout",
        "use_parallel_residual",
        "shortconv.l_cache",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
    }
)
_ROTATION = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
_EPSILONS = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}
_CONFIGS = {  # other metadata, and what configs call it
    **dict.fromkeys(_EPSILONS, _EPSILON),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
_PATTERN = "attention.sliding_window_pattern"
_NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
_BASE = 10000.0  # llama.cpp's, where a file has none
_SCALAR = "query_pre_attn_scalar"
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the models that scale scores by hidden size
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of values, by type
_STRING, _ARRAY = 8, 9
_MOST = 2**23  # items of an array; vocabularies have less than a million


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(SUFFIX) and Path(name).is_file()


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself, but for its weights.

    Attributes:
        fields: its metadata by key, arrays of tokens and the like left out.
        blocks: how many layers its tensors are of.
        types: how many of its tensors are of each type, such as {"Q4_1": 210, "F32": 61}.
        numbers: in its weights, all together.
        factors: the tensors that say a rotation, by name without `.weight`.
        tied: whether no tensor is that of a head of its own.
        files: how many there are.
    """

    fields: dict[str, Any]
    blocks: int
    types: dict[str, int]
    numbers: int
    factors: dict[str, tuple[float, ...]]
    tied: bool
    files: int

    @property
    def own(self) -> dict[str, Any]:
        """The metadata under `<architecture>.`, without that."""
        start = f"{self.fields['general.architecture']}."
        found = {k: value for k, value in self.fields.items() if k.startswith(start)}
        return {key.removeprefix(start): value for key, value in found.items()}

    def of(self, key: str) -> Any:
        """The metadata under `<architecture>.<key>`, or None."""
        return self.own.get(key)

    def number(self, key: str) -> float | int | None:
        """The same of one that is a number; UsageError for another value."""
        found = self.of(key)
        if found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
            return found
        raise UsageError(f"the GGUF file's {key} is {short(found, 60)}, which is no number")

    @property
    def dequantised(self) -> str:
        """The types that the weights had, the most frequent first: "Q4_1 and Q8_0", or ""."""
        ordered = sorted(self.types, key=lambda kind: -self.types[kind])
        return " and ".join(kind for kind in ordered if kind not in _WHOLE)


def read_header(path: Path) -> Header:
    """The header of a model, in however many files.

    Raises:
        UsageError: no gguf package, a file that is missing, or one that it cannot read.
    """
    files = shards(path)
    return _read_header(files, tuple(map(_state, files)))


def shards(path: Path) -> tuple[Path, ...]:
    """All files of a model by its first; UsageError for another of them, or where one lacks."""
    named = _SHARD.fullmatch(path.name)
    if named is None:
        return (path,)
    start, number, count = named[1], int(named[2]), int(named[3])
    names = [f"{start}-{n:05}-of-{count:05}{path.suffix}" for n in range(1, count + 1)]
    if number != 1:
        raise UsageError(f"{str(path)!r} is one of {count} files: give the first, {names[0]!r}")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise UsageError(f"{str(path)!r} is one of {count} files, and {missing[0]!r} is missing")
    return tuple(path.parent / name for name in names)


@functools.cache
def _read_header(files: tuple[Path, ...], states: tuple[tuple[int, ...], ...]) -> Header:
    """The header; read anew where the files' sizes or times differ."""
    from gguf import GGUFValueType

    fields: dict[str, Any] = {}
    factors, types, numbers, tied = dict[str, tuple[float, ...]](), Counter[str](), 0, True
    blocks = set[str]()
    for path in files:
        with _readable(path) as reader:
            said = reader.fields.values()
            plain = [
                field
                for field in said
                if field.types[:1] != [GGUFValueType.ARRAY] or not _is_vocabulary(field.name)
            ]
            fields = fields or {field.name: field.contents() for field in plain}
            for tensor in reader.tensors:
                name = tensor.name.removesuffix(".weight")
                if name in ROTATIONS:
                    factors[name] = tuple(map(float, tensor.data))
                else:
                    types[tensor.tensor_type.name] += 1
                    numbers += int(tensor.n_elements)
                    tied &= name != OUTPUT
                    if block := _BLOCK.match(name):
                        blocks.add(block[1])
    if not isinstance(fields.get("general.architecture"), str):
        raise UsageError(f"{str(files[0])!r} names no architecture: it holds no model")
    return Header(fields, len(blocks), dict(types), numbers, factors, tied, len(files))


def _is_vocabulary(key: str) -> bool:
    return key.startswith(("tokenizer.", "general.", "split."))


def _check_counts(path: Path) -> None:
    """ValueError where a count is more than the file has room for: the reader goes on counting."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        order = ">" if struct.unpack_from("<I", data, 4)[0] & 65535 == 0 else "<"
        at = 8

        def take(form: str) -> int:
            nonlocal at
            (found,) = struct.unpack_from(order + form, data, at)
            at += struct.calcsize(form)
            return int(found)

        def skip(size: int) -> None:
            nonlocal at
            at += size
            if at > len(data):
                raise ValueError("it ends too early, or a count in it is wrong")

        def value(kind: int, count: int = 1) -> None:
            if count > _MOST:
                raise ValueError(f"an array in it has {count} items")
            if kind == _STRING:
                for _ in range(count):
                    skip(take("Q"))
            elif kind in _SIZES:
                skip(_SIZES[kind] * count)
            else:
                raise ValueError(f"a value in it is of the unknown type {kind}")

        tensors, values = take("Q"), take("Q")
        for _ in range(values):
            skip(take("Q"))
            kind = take("I")
            value(*(take("I"), take("Q")) if kind == _ARRAY else (kind,))
        for _ in range(tensors):
            skip(take("Q"))
            skip(8 * take("I") + 4 + 8)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """A reader of a file; what goes wrong with it is one UsageError."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{str(path)!r} takes the gguf package: pip install 'ctxext[gguf]'")
    from gguf import GGUFReader

    try:
        _check_counts(path)
        yield GGUFReader(path)
    except Exception as error:  # the reader trusts its file
        why = short(error, 200)
        raise UsageError(
            f"{str(path)!r} is no GGUF file that can be read ({why}): download it anew"
        ) from error


@contextlib.contextmanager
def one_file(path: Path) -> Iterator[Path]:
    """The model as one file, which transformers takes: itself, or a copy that is then removed."""
    files = shards(path)
    if len(files) == 1:
        yield path
        return
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    first = GGUFReader(files[0])
    with tempfile.TemporaryDirectory(prefix="ctxext-") as folder:
        target = Path(folder) / f"model{SUFFIX}"
        writer = GGUFWriter(target, first.fields["general.architecture"].contents())
        for field in first.fields.values():
            if field.name.startswith(("GGUF.", "split.")) or field.name == "general.architecture":
                continue
            inner = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        for path in files:
            for tensor in GGUFReader(path).tensors:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield target


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def architectures() -> list[str]:
    """The architectures that transformers' loader knows, by llama.cpp's names or its own."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    return sorted({*GGUF_CONFIG_MAPPING} - {"general", "tokenizer"})


def check_header(header: Header) -> None:
    """UsageError where it lacks what a model needs, or says more layers than it has."""
    if lacking := [key for key in _NEEDED if header.number(key) is None]:
        raise UsageError(f"the GGUF file has no {lacking[0]}: download it anew")
    if header.blocks != (said := header.number("block_count")):
        raise UsageError(
            f"the GGUF file says {said} layers and has {header.blocks}: download it anew"
        )


def complete(config: Any, header: Header) -> dict[str, Any]:
    """Put what the file says of its rotation into the config that transformers made of it.

    Returns:
        The settings that a config.json would have for it.

    Raises:
        UsageError: it says what a config cannot.
    """
    text = config.get_text_config()
    size = header.number("attention.key_length")
    if size is not None and getattr(text, "head_dim", size) != size:
        text.head_dim = int(size)
    if header.files > 1:  # transformers has seen the tensors of one
        config.tie_word_embeddings = text.tie_word_embeddings = header.tied
    _set_others(header, text)
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):  # it has no rotation
        return {}
    flat = "rope_theta" in rope
    _set_bases(header, {"full_attention": rope} if flat else rope)
    scaling = _scaling(header, rope.get("rope_theta"))
    if scaling is not None:
        if not flat:
            raise UsageError(f"a {text.model_type} GGUF file with a rope scaling is not understood")
        text.rope_parameters = {"rope_theta": rope["rope_theta"], **scaling}
    _check_width(header, text)
    return {"rope_parameters": text.rope_parameters}


def _set_others(header: Header, text: Any) -> None:
    """Put what is not of the rotation into the config; UsageError for what has no place in it."""
    for key, value in header.own.items():
        names = [name for name in _CONFIGS.get(key, ()) if hasattr(text, name)]
        if names:
            _set(text, names[0], key, header.number(key), header)
        elif key == _PATTERN:
            kinds = getattr(text, "layer_types", None) or []
            if value != [kind == "sliding_attention" for kind in kinds]:
                raise _left_out(key, value)
        elif key not in _SHAPES | _ROTATION and value:  # 0 and false are as if absent
            raise _left_out(key, value)
    if any(hasattr(text, name) for name in _EPSILON) and not _EPSILONS & header.own.keys():
        raise UsageError("the GGUF file has no epsilon of its norms: download it anew")
    if header.of("attention.head_count_kv") is None and hasattr(text, "num_key_value_heads"):
        raise UsageError(
            "the GGUF file has no attention.head_count_kv: take the model's own folder"
        )
    if hasattr(text, _SCALAR):
        heads, layers = text.num_attention_heads, text.num_hidden_layers
        largest = layers == _LARGEST.get(header.fields["general.architecture"])
        setattr(text, _SCALAR, text.hidden_size // heads if largest else text.head_dim)


def _set(text: Any, name: str, key: str, value: Any, header: Header) -> None:
    """One setting; UsageError for a window that the layers of a config are not made for."""
    had = getattr(text, name)
    if had == value or (not had and not value):
        return
    if name == "sliding_window" and "sliding_attention" not in getattr(text, "layer_types", [""]):
        if hasattr(text, "layer_types") and value < header.of("context_length"):
            raise _left_out(key, value)
        if hasattr(text, "layer_types"):
            return
    setattr(text, name, value)


def _set_bases(header: Header, rope: dict[str, Any]) -> None:
    """The bases: one, or one for each type of layer."""
    for kind, key in (("full_attention", "freq_base"), ("sliding_attention", "freq_base_swa")):
        if isinstance(settings := rope.get(kind), dict):
            settings["rope_theta"] = float(header.number(f"rope.{key}") or _BASE)


def _left_out(key: str, value: Any) -> UsageError:
    return UsageError(
        f"the GGUF file says {key} = {short(value, 60)}, which transformers would leave out: take "
        "the model's own folder"
    )


def _scaling(header: Header, base: Any) -> dict[str, Any] | None:
    """The rope parameters of a scaling, or None where the file has none."""
    context = header.number("context_length")
    assert context is not None
    factor = header.number("rope.scaling.factor") or header.number("rope.scale_linear")
    kind = header.of("rope.scaling.type") or ("linear" if factor else "none")
    factors = header.factors
    original = header.number("rope.scaling.original_context_length") or context
    carried = float(header.number("rope.scaling.attn_factor") or 1)
    if header.fields["general.architecture"] == "gpt-oss":  # whose scaling transformers reads
        return None
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UsageError(f"the GGUF file's rope scaling {kind!r} is not understood")
    if SHORT in factors and LONG in factors:
        lists: dict[str, Any] = {"short_factor": [*factors[SHORT]], "long_factor": [*factors[LONG]]}
        lists["attention_factor"] = carried  # llama.cpp computes none from the lengths
        return {"rope_type": "longrope", ORIGINAL: int(original), **lists}
    if PER_PAIR in factors and kind == "none":
        return _per_pair(factors[PER_PAIR], float(base), int(context), carried)
    if factors or kind == "longrope" or (carried != 1 and kind != "yarn"):
        raise UsageError(f"the GGUF file mixes rope scalings ({kind}) that no config says together")
    if kind == "none" or factor is None or factor == 1:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    carried *= 0.1 * math.log(factor) + 1
    ends = {name: header.number(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    given = {name: float(end) for name, end in ends.items() if end is not None}
    yarn = {"factor": float(factor), ORIGINAL: int(original), "attention_factor": carried, **given}
    return {"rope_type": "yarn", **yarn}


def _per_pair(
    scales: tuple[float, ...], base: float, context: int, carried: float
) -> dict[str, Any]:
    """A λ for each pair: Llama 3's, which goes by three numbers, or any, as LongRoPE lists them."""
    low, high = (_LLAMA3[ORIGINAL] / _LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    factor = max(scales)

    def llama3(i: int) -> float:
        wave = 2 * math.pi * base ** (i / len(scales))
        if wave < high:
            return 1.0
        if wave > low:
            return factor
        smooth = (_LLAMA3[ORIGINAL] / wave - 1.0) / 3.0
        return float(1 / ((1 - smooth) / factor + smooth))

    if carried == 1 and all(
        math.isclose(x, llama3(i), rel_tol=CLOSE) for i, x in enumerate(scales)
    ):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    lists = {key: [*scales] for key in ("short_factor", "long_factor")}
    return {"rope_type": "longrope", ORIGINAL: context, "attention_factor": carried, **lists}


def _check_width(header: Header, text: Any) -> None:
    """UsageError where the config turns more dimensions of a head than the file says."""
    said = header.number("rope.dimension_count")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shares = [text.rope_parameters.get("partial_rotary_factor")]
    turned = int(head * (shares[0] or 1))
    if said is not None and int(said) != turned:
        raise UsageError(
            f"the GGUF file turns {said} of {head} dimensions of a head, and transformers would "
            f"turn {turned}: take the model's own folder"
        )


def check_whole(header: Header, config: Any) -> None:
    """UsageError where the file has weights that transformers would leave out, or lacks some."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if numbers != header.numbers:
        raise UsageError(
            f"the GGUF file has {header.numbers:,} numbers in its weights and the model that "
            f"transformers makes of it {numbers:,}: take the model's own folder"
        )


def forget_file(model: Any) -> None:
    """Make of a model that was read from a GGUF file one like any other."""
    vars(model.config).pop("quantization_config", None)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
