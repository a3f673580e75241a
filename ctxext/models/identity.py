"""What a model is, known without its weights: a hash of its files, and its trained length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.adapter import with_base
from ctxext.models.aliases import locate
from ctxext.models.gguf_header import shards
from ctxext.models.hashes import files_sha256, folder_sha256
from ctxext.models.loading import Source
from ctxext.models.rope import is_scaled
from ctxext.models.trained import Trained, explain_trained
from ctxext.system.digests import sha256_of_text


@dataclass(frozen=True)
class Identity:
    """What a model is, known without loading its weights."""

    sha256: str  # of the folder's files, or of the Hub commit
    trained: int  # T in tokens
    why: str  # what says so
    scaled: bool  # whether the config has a rope scaling of its own

    def facts(self, source: Source) -> dict[str, str | None]:
        """What a record has of them beside T."""
        own = source.own_scaling if self.scaled else None
        return {"trained_from": self.why, "own_scaling": own}


def tell_trained(source: Source, config: Any) -> str:
    """Which T was taken and from what, in a line; errors as for `load`."""
    trained = explain_trained(config, source.own_scaling, source.train_len)
    return told(source.name, trained, source.own_scaling if is_scaled(config) else None)


def told(name: str, trained: Trained, own_scaling: str | None) -> str:
    """The same of a model by name; `own_scaling` is None where it has none."""
    own = "" if own_scaling is None else f"; its own rope scaling: {own_scaling}"
    return f"{name}: trained length {trained.tokens}, from {trained.why}{own}"


def identify(source: Source, config: Any) -> Identity:
    """The model's hash and trained length; errors as for `load_model`."""
    trained = explain_trained(config, source.own_scaling, source.train_len)
    facts = (*trained, is_scaled(config))
    try:
        return Identity(_model_sha256(source, config), *facts)
    except OSError as error:
        raise UsageError(
            f"model {source.name!r} cannot be read: {error.strerror or error} ({error.filename!r})"
        ) from error


def _model_sha256(source: Source, config: Any) -> str:
    """The hash of a folder's files, that of its base with an adapter's, or of a Hub commit; of a
    loaded model that of its weights."""
    if source.held is not None:
        return source.held.sha256
    folder, base = Path(locate(source.name)), with_base(source)
    if folder.is_dir():
        found = folder_sha256(folder)
        if base is source:
            return found
        return sha256_of_text(f"{found} on {_model_sha256(base, config)}")
    if source.file is not None:
        return files_sha256(shards(source.file))
    commit = getattr(config, "_commit_hash", None) or source.revision or "main"
    return sha256_of_text(f"{folder}@{commit}")
