"""The files of a model folder: which are taken along, and how they get into the new one.

A model folder is not trusted: a link in it that leads out of it would copy what belongs to the
user, and a device or a pipe in it would never end. Both are refused by name.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError
from ctxext.models.contents import (
    CODE,
    MAX_CONFIG_BYTES,
    PICKLES,
    SAFETENSORS,
    TEMPLATES,
    WEIGHTS,
    index_name,
    is_support,
    read_object,
    shard_names,
)

POINTER = b"version https://git-lfs.github.com/spec/"  # which Git LFS has in place of a file


@dataclass(frozen=True)
class Chosen:
    """What to take of a model folder, as absolute paths in it.

    Attributes:
        weights: the weight files and their index, in one format.
        others: tokenizer, generation config, licence and templates; code where it is wanted.
    """

    weights: tuple[Path, ...]
    others: tuple[Path, ...]


def read_config(source: Path) -> dict[str, Any]:
    """The config.json of a model folder; UsageError where there is none that can be read."""
    path = source / "config.json"
    try:
        if not os.path.lexists(path):
            raise UsageError(f"no config.json in {str(source)!r}: give a model folder")
    except ValueError as error:
        raise UsageError(f"model folder {str(source)!r} is no usable path") from error
    return read_object(_real(path, source), MAX_CONFIG_BYTES, "a config")


def choose(source: Path, *, code: bool, allow_pickle: bool, weights: bool = True) -> Chosen:
    """The files of a model folder to take along as they are.

    Args:
        source: the folder; config.json and README.md are left out, an export writes its own.
        code: whether to take *.py.
        allow_pickle: whether weights may be pickles, where there are no safetensors.
        weights: whether to take weights at all.

    Raises:
        UsageError: no weights, or only pickles; a file that is not there, cannot be read, is no
            file, is a Git LFS pointer, or is a link that leads out of the folder.
    """
    root = source.absolute()
    names = _listing(root)
    taken = _weights(root, names, allow_pickle) if weights else []
    support = [n for n in names if is_support(n) or (code and fnmatch(n, CODE))]
    others = [root / n for n in support if n not in taken and not os.path.isdir(root / n)]
    others += _templates(root)
    chosen = Chosen(tuple(root / n for n in taken), tuple(others))
    for path in (*chosen.weights, *chosen.others):
        _real(path, root)
    return chosen


def _listing(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the folder {str(folder)!r}: {_why(error)}") from error
    return sorted(n for n in names if not n.startswith(".") and n.isprintable())


def _weights(root: Path, names: list[str], allow_pickle: bool) -> list[str]:
    """The names of the weight files in the first format that is there, and of their index."""
    for weights in WEIGHTS:
        index = index_name(weights)
        if weights not in names and index not in names:
            continue
        if weights == PICKLES and not allow_pickle:
            raise UsageError(
                f"the weights in {str(root)!r} are a pickle ({weights}), which can run code when "
                "it is loaded: give --allow-pickle if you trust it, or load it where it may run "
                "and write safetensors with save_pretrained"
            )
        _check_default(root)
        if weights in names:
            return [weights]
        shards = shard_names(_real(root / index, root))
        if missing := [shard for shard in shards if shard not in names]:
            raise UsageError(
                f"{len(missing)} of {len(shards)} weight files are missing in {str(root)!r}, such "
                f"as {missing[0]!r}: download them"
            )
        return [index, *shards]
    raise UsageError(
        f"no weights in {str(root)!r}: it needs {SAFETENSORS}, or an index of shards; or, with "
        f"--allow-pickle, {PICKLES}"
    )


def _check_default(root: Path) -> None:
    """UsageError where the config sends transformers to other weights than the usual ones."""
    if other := read_config(root).get("transformers_weights"):
        raise UsageError(
            f"{str(root / 'config.json')!r} keeps the weights in {str(other)[:100]!r} "
            f"(transformers_weights): rename that to {SAFETENSORS} and drop the key"
        )


def _templates(root: Path) -> list[Path]:
    folder = root / TEMPLATES
    if not folder.is_dir():
        return []
    if not _within(os.path.realpath(folder), root):
        raise _outside(folder)
    return [folder / name for name in _listing(folder) if fnmatch(name, "*.jinja")]


def _real(path: Path, root: Path) -> Path:
    """Where a file of the folder `root` really is: one that can be read, and is not outside."""
    try:
        real = os.path.realpath(path, strict=True)
        if not _within(real, root):
            raise _outside(path)
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise UsageError(f"{str(path)!r} is no regular file: put the file itself there")
        with open(real, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UsageError(
                    f"{str(path)!r} is a Git LFS pointer and not the file itself: run `git lfs "
                    "pull` in the folder, or download it anew"
                )
        return Path(real)
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {_why(error)}") from error


def _within(real: str, root: Path) -> bool:
    """Whether a path free of links is in the folder, or of the same model in the Hub's cache.

    The cache keeps files in models--ORG--NAME/blobs, and links to them in
    models--ORG--NAME/snapshots/COMMIT.
    """
    home = Path(os.path.realpath(root))
    model = home.parent.parent
    cached = home.parent.name == "snapshots" and model.name.startswith("models--")
    return Path(real).is_relative_to(home) or (
        cached and Path(real).is_relative_to(model / "blobs")
    )


def _outside(path: Path) -> UsageError:
    return UsageError(
        f"{str(path)!r} is a link that leads out of the model folder: put there what you want taken"
    )


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def put(chosen: Chosen, source: Path, stage: Path, *, link: bool) -> list[str]:
    """Bring the chosen files of `source` into `stage`, each but what stands there already.

    Args:
        link: hard links for the weight files, which then take no space and no time; where the
            file system has none to offer, such as across disks, symbolic links. What changes
            such a file changes the source's.

    Returns:
        The names written, relative to the stage, with "/".

    Raises:
        UsageError: as `choose`.
        OSError: the stage cannot be written, or the disk has no room for it all.
    """
    root = source.absolute()
    linked = [p for p in chosen.weights if link and p.suffix != ".json"]
    copied = [p for p in (*chosen.weights, *chosen.others) if p not in linked]
    files = {
        target: (_real(path, root), path in linked)
        for path in (*copied, *linked)
        if not os.path.lexists(target := stage / path.relative_to(root))
    }
    check_room(stage, sum(real.stat().st_size for real, linked in files.values() if not linked))
    for target, (real, is_linked) in files.items():
        target.parent.mkdir(exist_ok=True)
        (_link if is_linked else _copy)(real, target)
    return sorted(target.relative_to(stage).as_posix() for target in files)


def check_room(stage: Path, needed: int) -> None:
    """OSError unless the folder's disk has room for so many bytes."""
    disk = shutil.disk_usage(stage)
    if disk.total and needed > disk.free:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: it takes {needed / 1e9:.3g} GB, and "
            f"{disk.free / 1e9:.3g} GB are free",
        )


def _copy(real: Path, target: Path) -> None:
    """The contents and the time of change; who may read it, the umask says."""
    shutil.copyfile(real, target)
    times = real.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _link(real: Path, target: Path) -> None:
    try:
        os.link(real, target)
    except OSError:
        os.symlink(real, target)
