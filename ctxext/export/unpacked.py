"""A GGUF file as a model folder, for as long as it is exported from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ctxext.models.gguf_header import read_header
from ctxext.models.loading import Source, load_model, load_tokenizer


@contextlib.contextmanager
def unpacked(source: Source, beside: Path) -> Iterator[tuple[Path, str]]:
    """The model as a folder, in float32, which is removed afterwards; and what was done, in a line.

    Args:
        source: whose name means a GGUF file.
        beside: what the folder is made beside.

    Raises:
        UsageError: the file cannot be read.
    """
    assert source.file is not None
    header = read_header(source.file)
    tokenizer = load_tokenizer(source)
    model = load_model(replace(source, dtype="float32", device="cpu"))
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
