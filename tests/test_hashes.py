"""The hash of a model folder: found again without reading the weights, and never a stale one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_eval import letters, runner, save_model

from ctxext.models import adapter, hashes, identity, loading
from ctxext.models.hashes import folder_sha256, keep
from ctxext.system import caches, files

pytestmark = pytest.mark.quick


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for caches, in a process that has hashed nothing."""
    monkeypatch.setenv("CTXEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_found", {})
    return tmp_path / "cache" / "models"


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every file was written long ago."""
    monkeypatch.setattr(files, "COARSEST", -(10**12))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    hashed, sha256 = list[str](), hashes._sha256

    def watched(paths: list[Path], sizes: list[int]) -> str:
        hashed.extend(path.name for path in paths)
        return sha256(paths, sizes)

    monkeypatch.setattr(hashes, "_sha256", watched)
    return hashed


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("not hashed")
    return folder


def later() -> None:
    """Another process begins."""
    hashes._found.clear()


def test_a_later_process_does_not_read_the_weights(
    cache: Path, old: None, reads: list[str], tmp_path: Path
) -> None:
    folder = model(tmp_path / "model")
    first = folder_sha256(folder)
    assert not cache.exists()  # by a hash alone
    keep()
    later()
    assert folder_sha256(tmp_path / "." / "model") == first
    assert reads == ["config.json", "model.safetensors"]
    assert len(list(cache.iterdir())) == 1


CHANGES: dict[str, Callable[[Path], Any]] = {
    "content": lambda weights: weights.write_bytes(b"changed"),
    "another in its place": lambda weights: (
        weights.with_suffix(".new").write_bytes(b"changed"),
        os.replace(weights.with_suffix(".new"), weights),
    ),
    "one more": lambda weights: weights.with_name("generation_config.json").write_text("{}"),
    "one less": lambda weights: weights.unlink(),
}


if sys.platform != "win32":  # where nothing tells of a change but a time that anyone can set
    CHANGES["as it was, by its time"] = lambda weights: (
        weights.write_bytes(b"changed"),
        os.utime(weights, ns=(0, 0)),
    )


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_folder_is_hashed_anew(
    change: Callable[[Path], Any], cache: Path, old: None, tmp_path: Path
) -> None:
    folder = model(tmp_path / "model")
    os.utime(folder / "model.safetensors", ns=(0, 0))
    before = folder_sha256(folder)
    keep()
    later()
    change(folder / "model.safetensors")
    assert folder_sha256(folder) not in (before, "")


@pytest.mark.parametrize("name", ["tokenizer.model.v3", "qwen.tiktoken", "source.SPM", "x.jinja"])
def test_what_makes_tokens_is_hashed(name: str, cache: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    before = folder_sha256(folder)
    (folder / name).write_text("a")
    first = folder_sha256(folder)
    (folder / name).write_text("b")
    assert len({before, first, folder_sha256(folder)}) == 3


def test_an_adapter_is_told_by_its_base_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_require_peft", lambda source: None)
    base, folder = model(tmp_path / "base"), tmp_path / "adapter"
    folder.mkdir()
    settings = {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    found = set()
    for weights in (b"weights", b"changed"):
        (base / "model.safetensors").write_bytes(weights)
        found.add(identity._model_sha256(loading.Source(str(folder)), None))
    assert len(found - {folder_sha256(base), folder_sha256(folder)}) == 2


def test_a_file_that_may_change_unseen_is_not_kept(
    cache: Path, reads: list[str], tmp_path: Path
) -> None:
    """What was written a moment ago may be written once more within one tick of the clock."""
    folder = model(tmp_path / "model")
    first = folder_sha256(folder)
    keep()
    assert not cache.exists()
    assert folder_sha256(folder) == first
    assert len(reads) == 4


@pytest.mark.parametrize("spoil", ["", "{", "cut", "flipped", '[["x"], 3, 4]', "null", "folder"])
def test_a_broken_file_is_ignored_and_made_anew(
    spoil: str, cache: Path, old: None, reads: list[str], tmp_path: Path
) -> None:
    folder = model(tmp_path / "model")
    first = folder_sha256(folder)
    keep()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    later()
    if spoil == "cut":
        path.write_bytes(whole[:-5])
    elif spoil == "flipped":
        path.write_bytes(whole.replace(first.encode(), b"0" * 64))
    elif spoil == "folder":
        path.unlink()
        path.mkdir()
    else:  # whole, but of another version
        caches.save(path, spoil.encode())
    assert folder_sha256(folder) == first
    assert len(reads) == 4
    keep()
    assert spoil == "folder" or path.read_bytes() == whole


def test_a_killed_writer_leaves_what_was_there(cache: Path, old: None, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    first = folder_sha256(folder)
    program = (
        "import os, sys; from pathlib import Path; from ctxext.system import files;"
        "from ctxext.models.hashes import folder_sha256, keep;"
        "files.COARSEST = -10**12; os.fsync = lambda _: os._exit(9);"
        "folder_sha256(Path(sys.argv[1])); keep()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert done.returncode == 9
    assert [path.suffix for path in cache.iterdir()] == [".tmp"]
    later()
    assert folder_sha256(folder) == first


def test_only_what_measures_keeps_hashes(
    cache: Path,
    old: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runner(monkeypatch, capsys)
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters(300))
    monkeypatch.chdir(tmp_path)
    asked = ("--model", "plain", "--data", "t.txt", "--len", "32", "--limit", "1", "--json")
    assert run("eval", *asked, "--dry-run").code == 0
    assert not cache.exists()
    ran = run("eval", *asked)
    assert ran.code == 0, ran.err
    (path,) = cache.iterdir()
    assert json.loads(caches.load(path) or b"")[1] == ran.records[0]["model_sha256"]
