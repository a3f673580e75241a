"""GGUF files as models: transformers' own loader reads them."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.gguf_header import SUFFIX, Header, shards, state

_kept: dict[Path, tuple[tuple[int, ...], Any]] = {}  # readers, with the states of their files
_settings: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}


def settings_once(path: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` makes of a file, read once in a process unless the file changes."""
    now = state(path)
    if path not in _settings or _settings[path][0] != now:
        _settings[path] = now, read()
    return copy.deepcopy(_settings[path][1])


@contextlib.contextmanager
def one_reader() -> Iterator[None]:
    """Let the gguf package's reader, which takes seconds for a vocabulary, be made once for a file.

    It is kept until `forget_readers`.
    """
    import gguf

    made: Any = gguf.GGUFReader

    def reader(path: Any, mode: str = "r") -> Any:
        if mode != "r":
            return made(path, mode)
        place, now = Path(path).absolute(), state(Path(path))
        if place not in _kept or _kept[place][0] != now:
            _kept[place] = now, made(path)
        return _kept[place][1]

    gguf.GGUFReader = reader
    try:
        yield
    finally:
        gguf.GGUFReader = made


def forget_readers() -> None:
    """Let go of the readers, which hold several objects for each token."""
    _kept.clear()


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


def architectures() -> list[str]:
    """The architectures that transformers' loader knows, by llama.cpp's names or its own."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    return sorted({*GGUF_CONFIG_MAPPING} - {"general", "tokenizer"})


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
