"""The files of a model folder: which are taken along, and where they are put."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError

MAX_CONFIG_BYTES = 2**24
# What transformers looks for, in its order, and the files that belong to it.
WEIGHTS = {"model.safetensors": "*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}
SUPPORT = (
    *("*.json", "*.txt", "*.jinja", "*.model", "*.model.v*", "*.tiktoken", "*.bpe", "*.md"),
    *("licen[cs]e*", "notice*", "readme*", "use_policy*"),
)
TEMPLATES = "additional_chat_templates"


def check_paths(source: Path, out: Path) -> Path:
    """The folder to write, free of symbolic links."""
    target, origin = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if not source.is_dir():
        raise UsageError(f"no model folder {str(source)!r}: give one that holds config.json")
    if target.is_relative_to(origin):
        raise UsageError(f"{str(out)!r} lies in the model folder {str(source)!r}: give another")
    try:
        if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
            raise UsageError(f"{str(out)!r} exists already: give a new or an empty folder")
    except OSError as error:
        raise UsageError(f"cannot write {str(out)!r}: {error}") from error
    return target


def read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        if not path.is_file():
            raise UsageError(f"no config.json in {str(source)!r}: give a model folder")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{str(path)!r} is too large for a config: is it the right file?")
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is no readable JSON ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{str(path)!r} holds a {type(raw).__name__}, not an object of settings")
    return raw


def choose_files(source: Path, code: bool) -> list[Path]:
    """The files to copy as they are: weights in one format, tokenizer, texts, code if wanted."""
    files = [p for p in sorted(source.iterdir()) if p.is_file() and not p.name.startswith(".")]
    names = {p.name for p in files}
    weights = next((w for w in WEIGHTS if names & {w, f"{w}.index.json"}), None)
    if weights is None:
        raise UsageError(
            f"no weights in {str(source)!r}: it needs {' or '.join(WEIGHTS)}, or an index of shards"
        )
    if weights not in names:
        _check_shards(source / f"{weights}.index.json", names)
    patterns = (*SUPPORT, WEIGHTS[weights], *(["*.py"] if code else []))
    others = {"config.json", "trainer_state.json"}
    others |= {f"{w}.index.json" for w in WEIGHTS if w != weights}
    wanted = [p for p in files if any(fnmatch(p.name.lower(), x) for x in patterns)]
    templates = sorted((source / TEMPLATES).glob("*.jinja"))
    return [p for p in [*wanted, *templates] if p.name not in others and p.is_file()]


def _check_shards(index: Path, names: set[str]) -> None:
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        raise UsageError(f"{str(index)!r} is no index of weights: download it anew") from None
    if missing := sorted(str(shard) for shard in shards - names):
        raise UsageError(
            f"{len(missing)} of {len(shards)} weight files are missing in {str(index.parent)!r}, "
            f"such as {missing[0]!r}: download them"
        )
