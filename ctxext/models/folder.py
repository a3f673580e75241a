"""A model's folder on this machine, with what an export takes of it."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.aliases import locate
from ctxext.models.contents import WEIGHTS, index_name, shard_names, support_patterns
from ctxext.models.loading import Source, explained


def local_folder(source: Source, *, weights: bool = True, allow_pickle: bool = False) -> Path:
    """The model's folder on this machine; from the Hub comes only what an export takes.

    Args:
        source: where it is a Hub id, `trust_remote_code` says whether its code is fetched too.
        weights: whether to fetch the weights: safetensors where there are any.
        allow_pickle: whether to fetch pickles where there are no safetensors.

    Raises:
        UsageError: no such model, or an index of weights that is not sound.
    """
    where = locate(source.name)
    if Path(where).is_dir():
        if source.revision is not None:
            raise UsageError(
                f"--revision {source.revision} is for models on the Hub, and {source.name!r} is a "
                "folder: leave it out"
            )
        return Path(where)
    folder = _fetch(source, *support_patterns(source.trust_remote_code))
    pinned = replace(source, revision=folder.name)  # the commit, whatever is pushed meanwhile
    for name in WEIGHTS[: (1 + allow_pickle) * weights]:
        index = folder / index_name(name)
        names = shard_names(index) if index.is_file() else [name]
        _fetch(pinned, [glob.escape(shard) for shard in names], [])
        if any((folder / shard).is_file() for shard in names):
            break
    return folder


def _fetch(source: Source, wanted: list[str], unwanted: list[str]) -> Path:
    """The Hub cache's folder of a model, with the files of these patterns in it."""
    from huggingface_hub import snapshot_download

    def fetch(pretrained_model_name_or_path: str, revision: str | None, **_: Any) -> str:
        return str(
            snapshot_download(
                pretrained_model_name_or_path,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
            )
        )

    return Path(explained(source, fetch, progress=True))
