"""The hash of a model folder, kept so that a later command need not read the weights for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ctxext.system import caches
from ctxext.system.files import seen

_HASHED = (".json", ".safetensors", ".bin", ".model", ".txt", ".py", ".jinja")
_VOCABULARIES = ("*.model.v*", "*.spm", "*.tiktoken", "*.bpe")
_found: dict[str, tuple[list[Any], str]] = {}  # by folder: the files as they were, and their hash


def folder_sha256(folder: Path) -> str:
    """The hash of the files in a folder that a model is made of; as for `files_sha256`."""
    files = sorted(p for p in folder.iterdir() if _is_hashed(p.name) and p.is_file())
    return files_sha256(files, folder)


def files_sha256(files: Sequence[Path], place: Path | None = None) -> str:
    """The hash of the files' names, sizes and bytes.

    It is taken from an earlier time where each file is as it was then: see `results.seen`.

    Args:
        place: what the hash is kept by, the first file if not given.
    """
    found = [seen(path) for path in files]
    states = [[path.name, *state] for path, (state, _) in zip(files, found, strict=True)]
    if not all(settled for _, settled in found):
        return _sha256(files, [state.size for state, _ in found])
    where = str((place or files[0]).resolve())
    known = _found.get(where) or _load(where)
    if known is None or known[0] != states:
        known = states, _sha256(files, [state.size for state, _ in found])
    _found[where] = known
    return known[1]


def keep() -> None:
    """Let later processes find what this one knows."""
    for where, known in _found.items():
        if _load(where) != known:
            caches.save(_place(where), json.dumps(known).encode())


def _is_hashed(name: str) -> bool:
    vocabulary = any(fnmatchcase(name.lower(), pattern) for pattern in _VOCABULARIES)
    return (vocabulary or Path(name).suffix in _HASHED) and name != "provenance.json"


def _load(where: str) -> tuple[list[Any], str] | None:
    try:
        states, sha256 = json.loads(caches.load(_place(where)) or b"")
    except (ValueError, TypeError):  # nothing, or the file of another version
        return None
    return states, sha256


def _place(where: str) -> Path | None:
    folder = caches.folder("models")
    name = hashlib.sha256(where.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return folder and folder / f"{name}.json"


def _sha256(files: Sequence[Path], sizes: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for path, size in zip(files, sizes, strict=True):
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
