"""Folders that hold a PEFT adapter, alone or beside a whole model's weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctxext.errors import UsageError
from ctxext.models.aliases import locate
from ctxext.models.contents import ADAPTER, CONFIG, MAX_CONFIG_BYTES, read_object

if TYPE_CHECKING:
    from ctxext.models.loading import Source

MERGE = "PEFT's merge_and_unload() and save_pretrained() make one model of both"


def check_adapter(source: Source, note: Callable[[str], None]) -> None:
    """UsageError where a model has an adapter and PEFT is not there, without which it is not read.

    Args:
        note: told, in a line, of an adapter that is loaded.
    """
    from transformers.utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(locate(source.name), revision=source.revision)
    except OSError:  # of the Hub; what it is, loading tells
        return
    if found is not None:
        _require_peft(source)
        note(f"model {source.name!r} is loaded with its PEFT adapter ({ADAPTER})")


def with_base(source: Source, own: tuple[str, ...] = (CONFIG,)) -> Source:
    """The model that an adapter is for, where a folder has one and none of its `own` files.

    Raises:
        UsageError: PEFT is not there, or the adapter names no such model.
    """
    folder = Path(locate(source.name))
    if not (folder / ADAPTER).is_file() or any((folder / name).is_file() for name in own):
        return source
    _require_peft(source)
    settings = read_object(folder / ADAPTER, MAX_CONFIG_BYTES, "an adapter's config")
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"model {source.name!r} is a PEFT adapter that does not name what it is for: give "
            f"base_model_name_or_path in its {ADAPTER}"
        )
    name = os.path.abspath(base) if os.path.isdir(base) else base
    return replace(source, name=name, revision=None)


def _require_peft(source: Source) -> None:
    from transformers.utils import is_peft_available

    if not is_peft_available():
        raise UsageError(
            f"model {source.name!r} has a PEFT adapter ({ADAPTER}), which takes PEFT to load: pip "
            f"install peft; or merge it where that is ({MERGE}), and give the result"
        )
