"""The header of a GGUF file: its metadata and what its tensors are, read once and without a
vocabulary.

The gguf package's reader makes several objects of every token, which takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.errors import UsageError, short

SUFFIX = ".gguf"
# Tensors that say a rotation; they are no weights.
ROTATIONS = PER_PAIR, SHORT, LONG = "rope_freqs", "rope_factors_short", "rope_factors_long"
OUTPUT = "output"  # the tensor of a head that is not the embedding
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_BLOCK = re.compile(r"blk\.(\d+)\.")  # how the tensors of a layer begin
_WHOLE = ("F32", "F16", "BF16", "F64")  # types that are not quantised
_FORMS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # of values
_FLOATS = {"F32": "f", "F16": "e"}
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
    return _read_header(files, tuple(map(state, files)))


def state(path: Path) -> tuple[int, ...]:
    """Size and times of a file, by which it is known to be the same."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


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
    parts = [_read(path) for path in files]
    fields = parts[0].fields
    if not isinstance(fields.get("general.architecture"), str):
        raise UsageError(f"{str(files[0])!r} names no architecture: it holds no model")
    weights = [each for part in parts for each in part.tensors if each.name not in ROTATIONS]
    blocks = {block[1] for each in weights if (block := _BLOCK.match(each.name))}
    types = Counter(each.type for each in weights)
    numbers = sum(each.numbers for each in weights)
    tied = all(each.name != OUTPUT for each in weights)
    factors = {name: row for part in parts for name, row in part.factors.items()}
    return Header(fields, len(blocks), dict(types), numbers, factors, tied, len(files))


class _Tensor(NamedTuple):
    name: str  # without `.weight`
    type: str  # such as "F32"
    numbers: int


class _Part(NamedTuple):
    """What one file says."""

    fields: dict[str, Any]
    tensors: list[_Tensor]
    factors: dict[str, tuple[float, ...]]


def _read(path: Path) -> _Part:
    """What a file says; what goes wrong with it is one UsageError."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{str(path)!r} takes the gguf package: pip install 'ctxext[gguf]'")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).read()
    except Exception as error:  # it may hold anything
        why = short(error, 200)
        raise UsageError(
            f"{str(path)!r} is no GGUF file that can be read ({why}): download it anew"
        ) from error


class _Cursor:
    """Goes through a file's bytes; any exception where they are no such file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 8
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin as one")
        self._order = ">" if struct.unpack_from("<I", data, 4)[0] & 65535 == 0 else "<"

    def read(self) -> _Part:
        """All but vocabularies and weights."""
        (count, values), fields = self._take("QQ"), dict[str, Any]()
        for _ in range(values):
            key = self._text()
            if key in fields:
                raise ValueError(f"it says {short(key, 60)} twice")
            kind, items, single = self._take("I")[0], 1, True
            if kind == _ARRAY:
                (kind, items), single = self._take("IQ"), False
            found = self._array(kind, items, single or not _is_vocabulary(key))
            if found is not None:
                fields[key] = found[0] if single else found
        infos = [self._tensor_info() for _ in range(count)]
        align = fields.get("general.alignment", 32)
        start = -(-self._at // align) * align
        factors, tensors = dict[str, tuple[float, ...]](), []
        for name, kind, numbers, offset in infos:
            tensor, size = _of_type(name.removesuffix(".weight"), kind, numbers)
            self._at = start + offset
            self._skip(size)
            if tensor.name in ROTATIONS:
                self._at = start + offset
                factors[tensor.name] = self._take(f"{numbers}{_FLOATS[tensor.type]}")
            tensors.append(tensor)
        return _Part(fields, tensors, factors)

    def _take(self, form: str) -> tuple[Any, ...]:
        form = self._order + form
        return struct.unpack_from(form, self._data, self._skip(struct.calcsize(form)))

    def _skip(self, size: int) -> int:
        """Go on; where it was before."""
        at = self._at
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends too early, or a count in it is wrong")
        return at

    def _text(self) -> str:
        size = self._take("Q")[0]
        at = self._skip(size)
        return self._data[at : at + size].decode("utf-8")

    def _array(self, kind: int, count: int, wanted: bool = True) -> list[Any] | None:
        """Values of one kind; None for those that are passed over."""
        if count > _MOST:
            raise ValueError(f"an array in it has {count} items")
        if kind == _STRING and wanted:
            return [self._text() for _ in range(count)]
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._take("Q")[0])
            return None
        if kind not in _FORMS:
            raise ValueError(f"a value in it is of the unknown type {kind}")
        found = self._take(f"{count}{_FORMS[kind]}")
        return list(found) if wanted else None

    def _tensor_info(self) -> tuple[str, int, int, int]:
        """A tensor's name, type, how many numbers it has, and where it is among them."""
        name, dimensions = self._text(), self._take("I")[0]
        sizes, (kind, offset) = self._take(f"{dimensions}Q"), self._take("IQ")
        return name, kind, math.prod(sizes), offset


def _of_type(name: str, kind: int, numbers: int) -> tuple[_Tensor, int]:
    """A tensor, and its size in bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[known]
    return _Tensor(name, known.name, numbers), numbers // block * size


def _is_vocabulary(key: str) -> bool:
    return key.startswith(("tokenizer.", "general.", "split."))
