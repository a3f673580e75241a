"""From a model folder and a spec to a new folder, complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ctxext import patches
from ctxext.engine.patch import patch
from ctxext.errors import UsageError
from ctxext.export.files import check_paths, choose_files, read_config
from ctxext.export.native import Patched, only_source, skeleton, write_config
from ctxext.models.loading import Source, load_config
from ctxext.patches import Spec


@dataclass(frozen=True)
class Exported:
    """What was written: the resolved spec, how the config says it, and the files' names."""

    spec: str
    expression: str
    files: tuple[str, ...]


def export(
    source: Path,
    spec: Spec,
    length: int,
    out: Path,
    *,
    train_len: int | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a copy of a model folder that stock transformers loads with the spec in force.

    Args:
        source: a local model folder.
        spec: frequency methods only; a config can say nothing else.
        length: L in tokens, which becomes the config's `max_position_embeddings`.
        out: the new folder; it must not exist, or be empty. It appears complete or not at all.
        train_len: T in tokens where the config's is not right.
        trust_remote_code: whether code that comes with the model may run, and is copied.

    Raises:
        UsageError: a spec, folder or file that does not do; the message says what would.
        UnsupportedModelError: transformers cannot express the spec for this model.
    """
    _check_spec(spec)
    target = check_paths(source, out)
    raw, files = read_config(source), choose_files(source, trust_remote_code)
    config = load_config(Source(os.path.realpath(source), trust_remote_code=trust_remote_code))
    config.name_or_path = str(source)
    model = skeleton(config, trust_remote_code)
    rotary = only_source(model, train_len)
    own = rotary.facts  # before the patch changes what they are read from
    resolved = patch(model, spec, length, train_len=train_len).spec
    if not trust_remote_code:
        raw.pop("auto_map", None)
    patched = Patched(model, raw, rotary, own, max(length, rotary.trained), trust_remote_code)
    try:
        near = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".ctxext-", dir=near) as box:
            stage = Path(box) / "model"
            stage.mkdir()
            expression = write_config(stage, patched, resolved)
            for file in files:
                copy = stage / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy2(file, copy)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(stage, target)
    except OSError as error:
        raise UsageError(f"cannot write {str(out)!r}: {error}") from error
    names = ["config.json", *(str(file.relative_to(source)) for file in files)]
    return Exported(resolved.full(), expression, tuple(sorted(names)))


def _check_spec(spec: Spec) -> None:
    others = [method.name for method in spec.methods if method.kind != "frequency"]
    if others:
        can = [n for n in patches.names() if patches.REGISTRY.get(n).kind == "frequency"]
        raise UsageError(
            f"{str(spec)!r} cannot be expressed in a config, since {' and '.join(others)} changes "
            f"attention itself: use ctxext.patch at run time; a config can carry {', '.join(can)}"
        )
