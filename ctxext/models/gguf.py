"""GGUF files as models: transformers' own loader reads them, and what it leaves out is read here.

Of the rotation that loader takes the base alone: a linear factor, YaRN's and LongRoPE's parameters
and a λ for each pair (`rope_freqs.weight`) are put into the config here, as llama.cpp means them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError, short
from ctxext.models.trained import LONGEST, ORIGINAL

if TYPE_CHECKING:
    from ctxext.models.loading import Source

SUFFIX = ".gguf"
CLOSE = 1e-5  # relative: float32 metadata, computed in float32
# Tensors that say a rotation; they are no weights.
ROTATIONS = PER_PAIR, SHORT, LONG = "rope_freqs", "rope_factors_short", "rope_factors_long"
OUTPUT = "output"  # the tensor of a head that is not the embedding
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}  # of all Llama 3.x
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_WHOLE = ("F32", "F16", "BF16", "F64")  # types that are not quantised


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(SUFFIX) and Path(name).is_file()


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself, but for its weights.

    Attributes:
        fields: its metadata by key, arrays of tokens and the like left out.
        types: how many of its tensors are of each type, such as {"Q4_1": 210, "F32": 61}.
        numbers: in its weights, all together.
        factors: the tensors that say a rotation, by name without `.weight`.
        tied: whether no tensor is that of a head of its own.
        files: how many there are.
    """

    fields: dict[str, Any]
    types: dict[str, int]
    numbers: int
    factors: dict[str, tuple[float, ...]]
    tied: bool
    files: int

    def of(self, key: str) -> Any:
        """The metadata under `<architecture>.<key>`, or None."""
        return self.fields.get(f"{self.fields['general.architecture']}.{key}")

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
    for path in files:
        with _readable(path) as reader:
            plain = [f for f in reader.fields.values() if f.types[:1] != [GGUFValueType.ARRAY]]
            fields = fields or {field.name: field.contents() for field in plain}
            for tensor in reader.tensors:
                name = tensor.name.removesuffix(".weight")
                if name in ROTATIONS:
                    factors[name] = tuple(map(float, tensor.data))
                else:
                    types[tensor.tensor_type.name] += 1
                    numbers += int(tensor.n_elements)
                    tied &= name != OUTPUT
    if not isinstance(fields.get("general.architecture"), str):
        raise UsageError(f"{str(files[0])!r} names no architecture: it holds no model")
    return Header(fields, dict(types), numbers, factors, tied, len(files))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """A reader of a file; what goes wrong with it is one UsageError."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{str(path)!r} takes the gguf package: pip install 'ctxext[gguf]'")
    from gguf import GGUFReader

    try:
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


def complete(config: Any, header: Header) -> dict[str, Any]:
    """Put what the file says of its rotation into the config that transformers made of it.

    Returns:
        The settings that a config.json would have for it.

    Raises:
        UsageError: it says what a config cannot.
    """
    text = config.get_text_config()
    size = header.of("attention.key_length")
    if size is not None and getattr(text, "head_dim", size) != size:
        text.head_dim = int(size)
    if header.files > 1:  # transformers has seen the tensors of one
        config.tie_word_embeddings = text.tie_word_embeddings = header.tied
    rope = text.rope_parameters
    scaling = _scaling(header, rope.get("rope_theta"), getattr(text, LONGEST, None))
    if scaling is not None:
        if not isinstance(rope.get("rope_theta"), float | int):
            raise UsageError(f"a {text.model_type} GGUF file with a rope scaling is not understood")
        text.rope_parameters = {"rope_theta": rope["rope_theta"], **scaling}
    _check_width(header, text)
    return {"rope_parameters": text.rope_parameters}


def _scaling(header: Header, base: Any, context: Any) -> dict[str, Any] | None:
    """The rope parameters of a scaling, or None where the file has none."""
    kind, factors = header.of("rope.scaling.type") or "none", header.factors
    factor = header.of("rope.scaling.factor") or header.of("rope.scale_linear")
    original = header.of("rope.scaling.original_context_length") or context
    carried = float(header.of("rope.scaling.attn_factor") or 1)
    if header.fields["general.architecture"] == "gpt-oss":  # whose scaling transformers reads
        return None
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UsageError(f"the GGUF file's rope scaling {kind!r} is not understood")
    if SHORT in factors and LONG in factors:
        lists = {"short_factor": [*factors[SHORT]], "long_factor": [*factors[LONG]]}
        own = {} if carried == 1 else {"attention_factor": carried}
        return {"rope_type": "longrope", ORIGINAL: int(original), **lists, **own}
    if PER_PAIR in factors and kind == "none":
        return _per_pair(factors[PER_PAIR], float(base), int(context), carried)
    if factors or kind == "longrope" or (carried != 1 and kind != "yarn"):
        raise UsageError(f"the GGUF file mixes rope scalings ({kind}) that no config says together")
    if kind == "none" or factor is None or factor == 1:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    carried *= 0.1 * math.log(factor) + 1
    yarn = {"factor": float(factor), ORIGINAL: int(original), "attention_factor": carried}
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
    said = header.of("rope.dimension_count")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shares = [text.rope_parameters.get("partial_rotary_factor")]
    turned = int(head * (shares[0] or 1))
    if said is not None and int(said) != turned:
        raise UsageError(
            f"the GGUF file turns {said} of {head} dimensions of a head, and transformers would "
            f"turn {turned}: take the model's own folder"
        )


def check_whole(header: Header, model: Any) -> None:
    """UsageError where the file has weights that transformers left out, or lacks some."""
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


@contextlib.contextmanager
def unpacked(source: Source, beside: Path) -> Iterator[tuple[Path, str]]:
    """The model as a folder, in float32, which is removed afterwards; and what was done, in a line.

    Args:
        source: whose name means a GGUF file.
        beside: what the folder is made beside.

    Raises:
        UsageError: the file cannot be read.
    """
    from dataclasses import replace

    from ctxext.models.loading import load_model, load_tokenizer

    assert source.file is not None
    header = read_header(source.file)
    model = load_model(replace(source, dtype="float32", device="cpu"))
    tokenizer = load_tokenizer(source)
    parent = beside.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=parent) as name:
        folder = Path(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        licence = header.fields.get("general.license")
        if isinstance(licence, str):
            (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", "utf-8")
        had = header.dequantised
        done = f"dequantised from {had} to" if had else "written as"
        yield folder, f"the weights were {done} float32"
