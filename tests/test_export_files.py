"""Which files an export takes, and that it appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxext.errors import UsageError
from ctxext.export import files as module
from ctxext.export.files import choose, put, read_config
from ctxext.export.staging import staged

SUPPORT = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"),
    *("merges.txt", "vocab.json", "chat_template.jinja", "LICENSE", "Notice.TXT", "USE_POLICY.md"),
)
NOT_TAKEN = (
    *(".env", "README.md", "optimizer.pt", "optimizer.json", "training_args.bin", "scheduler.pt"),
    *("trainer_state.json", "all_results.json", "params.json", "consolidated.00.pth", "a.gguf"),
    *("tokenizer.model\n.json", ".cache/x.json", "checkpoint-1/model.safetensors", "pic.png"),
    *("licenses/a.txt", "consolidated.safetensors", "adapter_model.safetensors"),
)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def fill(folder: Path, *names: str) -> Path:
    """A folder with a config.json and files of these names, each with its name for content."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() + b"\x00\xff\r\n")
    return folder


def sharded(folder: Path, shards: object, weights: str = "model.safetensors") -> Path:
    """The same with an index; `shards` are file names, or another thing in place of the map."""
    fill(folder)
    names = {f"w{i}": s for i, s in enumerate(shards)} if isinstance(shards, tuple) else shards
    (folder / f"{weights}.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def names(source: Path, **options: bool) -> tuple[set[str], set[str]]:
    chosen = choose(source, **{"code": False, "allow_pickle": False, **options})
    weights, others = (
        {p.relative_to(source.absolute()).as_posix() for p in paths}
        for paths in (chosen.weights, chosen.others)
    )
    assert len(weights) == len(chosen.weights)
    assert len(others) == len(chosen.others)
    return weights, others


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 1000
    return text


# what is taken


def test_what_belongs_to_a_model_is_taken(tmp_path: Path) -> None:
    templates = ("additional_chat_templates/rag.jinja", "additional_chat_templates/x.py")
    code = ("modeling_x.py", "sub/y.py")
    source = fill(
        tmp_path, "model.safetensors", "pytorch_model.bin", *SUPPORT, *NOT_TAKEN, *templates, *code
    )
    others = {*SUPPORT, "additional_chat_templates/rag.jinja"}
    assert names(source) == ({"model.safetensors"}, others)
    assert names(source, allow_pickle=True) == ({"model.safetensors"}, others)
    assert names(source, weights=False) == (set(), others)
    assert names(source, code=True) == ({"model.safetensors"}, {*others, "modeling_x.py"})


def test_shards_are_taken_with_their_index(tmp_path: Path) -> None:
    shards = ("model-1.safetensors", "model-2.safetensors", "model-1.safetensors")
    source = fill(sharded(tmp_path, shards), *shards, "other.safetensors", "pytorch_model.bin")
    assert names(source) == ({"model.safetensors.index.json", *shards}, set())
    (source / "model-2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 weight files are missing .*model-2"):
        names(source)
    assert names(source, weights=False) == (set(), set())


def test_pickles_only_where_allowed(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", "pytorch_model.bin", "optimizer.bin")
    many = fill(sharded(tmp_path / "many", ("a.bin", "b.bin"), "pytorch_model.bin"), "a.bin")
    fill(many, "b.bin")
    for source in (one, many):
        with pytest.raises(
            UsageError, match=r"can run code .*--allow-pickle.*save_pretrained"
        ) as e:
            names(source)
        one_line(e)
    assert names(one, allow_pickle=True) == ({"pytorch_model.bin"}, set())
    index = "pytorch_model.bin.index.json"
    assert names(many, allow_pickle=True) == ({index, "a.bin", "b.bin"}, set())


def test_no_weights(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", "consolidated.00.pth", "tf_model.h5", "a.gguf", "tokenizer.json")
    with pytest.raises(UsageError, match=r"no weights .*model\.safetensors.*--allow-pickle"):
        names(source)
    assert names(source, weights=False) == (set(), {"tokenizer.json"})
    fill(source, "model.safetensors", "mine.safetensors")
    (source / "config.json").write_text('{"transformers_weights": "mine.safetensors"}')
    with pytest.raises(UsageError, match=r"mine\.safetensors.*transformers_weights"):
        names(source)
    for bad in ("none", "a/config.json", "a\0b", "x" * 300):
        with pytest.raises(UsageError):
            choose(tmp_path / bad, code=False, allow_pickle=False)
        with pytest.raises(UsageError):
            read_config(tmp_path / bad)


INDEXES = {
    "parent": ("../model.safetensors",),
    "absolute": ("/etc/x.safetensors",),
    "folder": ("a/b.safetensors",),
    "windows": ("a\\b.safetensors",),
    "drive": ("c:x.safetensors",),
    "pickle": ("model.safetensors", "evil.bin"),
    "code": ("modeling_x.py",),
    "empty": ("",),
    "hidden": (".x.safetensors",),
    "control": ("a\n\x1b[31m.safetensors",),
    "long": ("/" + "x" * 10_000,),
    "number": (1, 2),
    "none": (None,),
    "nested": ({"a": "b"},),
    "list": ["model.safetensors"],
    "text": "model.safetensors",
    "no shards": {},
    "null": None,
}


@pytest.mark.parametrize("shards", INDEXES.values(), ids=INDEXES)
def test_an_index_names_files_of_its_folder(shards: object, tmp_path: Path) -> None:
    source = fill(sharded(tmp_path / "m", shards), "evil.bin", "modeling_x.py", "a.safetensors")
    with pytest.raises(
        UsageError, match=r"index\.json.*(no index of weights|names the weight)"
    ) as e:
        names(source, code=True)
    one_line(e)


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"[]", b"\xff\xfe", b"1" * 5000])
def test_an_index_that_is_no_json(text: bytes, tmp_path: Path) -> None:
    index = fill(tmp_path) / "model.safetensors.index.json"
    index.write_bytes(text)
    with pytest.raises(UsageError, match=r"no readable JSON|holds a (list|int)") as error:
        names(tmp_path)
    one_line(error)
    os.truncate(index, 2**40)  # holes only
    with pytest.raises(UsageError, match="too large"):
        names(tmp_path)


# links and what else is no file


def look(source: Path) -> None:
    read_config(source)
    choose(source, code=True, allow_pickle=False)


LINKED = (
    *("config.json", "model.safetensors", "tokenizer.json", "LICENSE", "modeling_x.py"),
    *("additional_chat_templates", "additional_chat_templates/x.jinja"),
)


@pytest.mark.parametrize("name", LINKED)
def test_links_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    secret = fill(tmp_path / "home", "id_rsa", "x.jinja")
    source = fill(tmp_path / "m", "model.safetensors", "tokenizer.json", "LICENSE", "modeling_x.py")
    templates = fill(source, "additional_chat_templates/x.jinja") / "additional_chat_templates"
    (templates / "config.json").unlink(missing_ok=True)
    shutil.rmtree(source / name, ignore_errors=True)
    (source / name).unlink(missing_ok=True)
    inner = source / "hop"
    inner.symlink_to(secret if name == LINKED[-2] else secret / "id_rsa")
    (source / name).symlink_to(inner)
    with pytest.raises(UsageError, match=rf"{name}' is a link that leads out") as error:
        look(source)
    one_line(error)


def test_a_shard_or_its_index_may_not_lead_out_either(tmp_path: Path) -> None:
    outside = fill(sharded(tmp_path / "other", ("a.safetensors",)), "a.safetensors")
    for name in ("a.safetensors", "model.safetensors.index.json"):
        source = fill(sharded(tmp_path / name, ("a.safetensors",)), "a.safetensors")
        (source / name).unlink()
        (source / name).symlink_to(outside / name)
        with pytest.raises(UsageError, match=rf"{name}' is a link that leads out"):
            names(source)


def test_a_link_that_changes_its_mind(tmp_path: Path) -> None:
    """What was a file when it was chosen is looked at again before it is copied."""
    source = fill(tmp_path / "m", "model.safetensors")
    chosen = choose(source, code=False, allow_pickle=False)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(fill(tmp_path / "home", "id_rsa") / "id_rsa")
    (tmp_path / "stage").mkdir()
    for link in (False, True):
        with pytest.raises(UsageError, match="leads out"):
            put(chosen, source, tmp_path / "stage", link=link)
    assert tree(tmp_path / "stage") == {}


def snapshot(model: Path, *names: str) -> Path:
    """A model in the layout of the Hub's cache."""
    fill(model / "blobs", *names)
    folder = model / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    for name in ("config.json", *names):
        (folder / name).symlink_to(Path("../../blobs") / name)
    return folder


def test_links_inside_the_folder_or_the_hubs_cache(tmp_path: Path) -> None:
    cached = snapshot(tmp_path / "models--me--m", "model.safetensors", "tokenizer.json")
    source = fill(tmp_path / "m", "weights", "tokenizer.json")
    (source / "model.safetensors").symlink_to(source / "weights")
    (tmp_path / "link").symlink_to(cached)
    for folder in (cached, source, tmp_path / "link"):
        assert read_config(folder) == {}
        assert names(folder) == ({"model.safetensors"}, {"tokenizer.json"})
        (tmp_path / "stage").mkdir()
        put(choose(folder, code=False, allow_pickle=False), folder, tmp_path / "stage", link=False)
        assert not any(p.is_symlink() for p in (tmp_path / "stage").iterdir())
        assert (tmp_path / "stage" / "model.safetensors").stat().st_nlink == 1
        shutil.rmtree(tmp_path / "stage")


def test_a_cache_that_only_looks_like_one(tmp_path: Path) -> None:
    other = snapshot(tmp_path / "models--me--other", "model.safetensors")
    cached = snapshot(tmp_path / "models--me--m", "model.safetensors", "tokenizer.json")
    (cached / "tokenizer.json").unlink()
    (cached / "tokenizer.json").symlink_to(other / "model.safetensors")
    with pytest.raises(UsageError, match=r"tokenizer\.json' is a link that leads out"):
        names(cached)
    home = fill(tmp_path / "home", "model.safetensors", "tokenizer.json")
    blobs = snapshot(tmp_path / "models--me--x", "model.safetensors").parent.parent / "blobs"
    shutil.rmtree(blobs)
    blobs.symlink_to(home)
    for folder in (blobs.parent / "snapshots" / "0123abc", snapshot(tmp_path / "mine", "x.json")):
        with pytest.raises(UsageError, match="is a link that leads out"):
            look(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "broken", "loop", "device"])
def test_what_is_no_file(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "model.safetensors", "tokenizer.json")
    (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "folder":
        os.mkdir(name)
    elif kind == "device":
        os.symlink("/dev/zero", name)
    else:
        os.symlink("nowhere" if kind == "broken" else name, name)
    if (kind, name) == ("folder", "tokenizer.json"):  # folders are not taken, as LICENSES
        assert names(tmp_path) == ({"model.safetensors"}, set())
        return
    with pytest.raises(
        UsageError, match=rf"{name}'.*(regular file|leads out|: No such|: Too many)"
    ) as e:
        look(tmp_path)
    one_line(e)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path, "model.safetensors", "tokenizer.json")
    (source / "tokenizer.json").chmod(0)

    def refuse(path: object, *args: object, **options: object) -> object:
        if str(path).endswith("tokenizer.json"):  # root reads anything
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(module, "open", refuse, raising=False)
    with pytest.raises(UsageError, match=r"cannot read .*tokenizer\.json': Permission denied"):
        names(source)


# how files get there


def everything(source: Path, stage: Path, link: bool = False) -> list[str]:
    return put(choose(source, code=False, allow_pickle=False), source, stage, link=link)


def test_copies_have_contents_and_time_but_their_own_modes(tmp_path: Path) -> None:
    template = "additional_chat_templates/rag.jinja"
    source, stage = fill(tmp_path / "m", "model.safetensors", "LICENSE", template), tmp_path / "s"
    for name in ("model.safetensors", "LICENSE", template):
        os.utime(source / name, (1e9, 1e9 + 0.5))
        (source / name).chmod(0o444)
    (source / "additional_chat_templates").chmod(0o555)
    stage.mkdir()
    with umask(0o027):
        written = everything(source, stage)
    assert written == ["LICENSE", template, "model.safetensors"]
    for name in written:
        assert (stage / name).read_bytes() == (source / name).read_bytes()
        assert (stage / name).stat().st_mtime == 1e9 + 0.5
        assert (stage / name).stat().st_mode & 0o777 == 0o640
    assert (stage / template).parent.stat().st_mode & 0o777 == 0o750
    assert "config.json" not in written


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    old = os.umask(value)
    yield
    os.umask(old)


def test_relative_paths_and_what_stands_in_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill(tmp_path / "m", "model.safetensors", "tokenizer.json").parent)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "tokenizer.json").write_text("the export's own")
    assert everything(Path("m"), tmp_path / "s") == ["model.safetensors"]
    assert (tmp_path / "s" / "tokenizer.json").read_text() == "the export's own"


def test_weights_are_hard_links(tmp_path: Path) -> None:
    shards = ("a.safetensors", "b.safetensors")
    source = fill(sharded(tmp_path / "m", shards), *shards, "tokenizer.json")
    (tmp_path / "s").mkdir()
    written = everything(source, tmp_path / "s", link=True)
    assert written == [*shards, "model.safetensors.index.json", "tokenizer.json"]
    same = {name: os.path.samefile(source / name, tmp_path / "s" / name) for name in written}
    assert same == {name: name in shards for name in written}
    assert not any(p.is_symlink() for p in (tmp_path / "s").iterdir())
    cached = snapshot(tmp_path / "models--me--m", "model.safetensors")
    (tmp_path / "t").mkdir()
    everything(cached, tmp_path / "t", link=True)
    assert not (tmp_path / "t" / "model.safetensors").is_symlink()
    assert os.path.samefile(tmp_path / "t" / "model.safetensors", cached / "model.safetensors")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_symbolic_links_where_there_are_no_hard_ones(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    cached = snapshot(tmp_path / "models--me--m", "model.safetensors", "tokenizer.json")
    with staged(cached, tmp_path / "out", force=False) as stage:
        everything(cached, stage, link=True)
    weights = tmp_path / "out" / "model.safetensors"
    blob = tmp_path / "models--me--m" / "blobs" / "model.safetensors"
    assert os.readlink(weights) == str(blob)
    assert weights.read_bytes() == blob.read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system")
def test_links_across_file_systems(tmp_path: Path) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system")
    source = fill(tmp_path / "m", "model.safetensors")
    other = Path("/dev/shm") / f"ctxext-test-{os.getpid()}"
    try:
        with staged(source, other, force=False) as stage:
            everything(source, stage, link=True)
        assert os.readlink(other / "model.safetensors") == str(source / "model.safetensors")
    finally:
        shutil.rmtree(other, ignore_errors=True)


# complete or not at all


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", "model.safetensors", "tokenizer.json")


def export(source: Path, out: Path, text: str = "new", force: bool = False) -> None:
    with staged(source, out, force=force) as stage:
        (stage / "config.json").write_text(text)


def test_it_appears_at_the_end(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("new", "empty", "a/b/c", "link"):
        with umask(0o027), staged(source, tmp_path / name, force=False) as stage:
            assert os.path.samefile(stage.parent.parent, tmp_path)
            assert stage.parent.name.startswith(".")
            assert stage.parent.stat().st_mode & 0o077 == 0
            (stage / "config.json").write_text("x")
            assert not (tmp_path / name / "config.json").exists()
        assert (tmp_path / name / "config.json").read_text() == "x"
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a", "elsewhere", "empty", "link", "new", "source")
    ]
    assert (tmp_path / "link").is_symlink()


FAILURES = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    "reading": (FileNotFoundError(2, "No such file", "/x/y"), r"No such file \('/x/y'\)"),
    "interrupt": (KeyboardInterrupt(), None),
    "exit": (SystemExit(1), None),
    "ours": (UsageError("as it is"), None),
    "bug": (ValueError("as it is"), None),
}


def fail_halfway(stage: Path, error: BaseException) -> None:
    (stage / "inner").mkdir()
    (stage / "inner" / "half").write_text("x")
    (stage / "inner").chmod(0o500)
    raise error


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_nothing(name: str, force: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "full" if force else tmp_path / "unrelated", "mine")
    before = tree(tmp_path)
    error, text = FAILURES[name]
    for out in ("a/b/c", "empty", "full"):
        path = tmp_path / out
        expected = UsageError if text else type(error)
        with (
            pytest.raises(expected, match=text and rf"cannot write '{path}': {text}$") as caught,
            staged(source, path, force=force) as stage,
        ):
            fail_halfway(stage, error)
        assert text or caught.value is error
        assert tree(tmp_path) == before


def test_a_folder_with_something_in_it_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "full", "mine")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(source)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    refused = {
        **dict.fromkeys(("source", "source/inner", "link/inner", "./full/../source/x"), "lies in"),
        **dict.fromkeys(("full", "", "."), "exists already: give --force"),
        **dict.fromkeys(("file",), "no folder"),
        **dict.fromkeys(("file/inner", "a\0b", "x" * 300, "x/" + "y" * 300), "cannot write"),
    }
    for out, reason in refused.items():
        for force in (False, True):
            if force and "--force" in reason:
                continue
            with pytest.raises(UsageError, match=reason) as error:
                export(source, Path(out), force=force)
            one_line(error)
    for bad in ("file", "none"):
        with pytest.raises(UsageError, match="no model folder"):
            export(tmp_path / bad, tmp_path / "out")
    assert tree(tmp_path) == before


def test_force_replaces_the_whole(source: Path, tmp_path: Path) -> None:
    out = fill(tmp_path / "out", "mine", "inner/x", ".hidden")
    (out / "to-source").symlink_to(source)
    (out / "inner").chmod(0o500)
    kept = tree(source)
    export(source, out, force=True)
    assert tree(out) == {"config.json": b"new"}
    export(source, out, "newer", force=True)
    export(source, tmp_path / "other", force=True)
    assert tree(out) == {"config.json": b"newer"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out", "source"]
    assert tree(source) == kept


def test_what_force_does_not_replace(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = fill(tmp_path / "home" / "me", "mine"), fill(tmp_path / "work" / "here", "mine")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    disk, git = fill(tmp_path / "disk", "inner/x"), fill(tmp_path / "git", "deep/.git/HEAD")
    worktree = fill(tmp_path / "worktree", ".git")
    inner = fill(tmp_path / "models" / "m", "model.safetensors")
    (tmp_path / "empty").mkdir()
    ismount = os.path.ismount
    mounts = {str(disk / "inner"), str(tmp_path / "empty")}
    monkeypatch.setattr(os.path, "ismount", lambda p: str(p) in mounts or ismount(p))
    before = tree(tmp_path)
    refused = {
        home: "the home directory",
        home.parent: "the home directory",
        work: "the current directory",
        work.parent: "the current directory",
        git: "a git repository",
        worktree: "a git repository",
        disk: "'inner', a file system of its own",
        tmp_path / "empty": "a file system of its own",
        Path("/"): "a file system of its own",
        tmp_path: "is or holds",
    }
    for out, reason in refused.items():
        with pytest.raises(UsageError, match=reason) as error:
            export(source, out, force=True)
        one_line(error)
    with pytest.raises(UsageError, match="the model folder"):
        export(inner, inner.parent, force=True)
    assert tree(tmp_path) == before


def test_the_former_folder_is_put_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = fill(tmp_path / "out", "mine")
    before, rename = tree(tmp_path), os.rename

    def fail(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            assert not out.exists()
            raise OSError(errno.EIO, "Input/output error", str(old))
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UsageError, match=r"cannot write .*: Input/output error$"):
        export(source, out, force=True)
    assert tree(tmp_path) == before


def overtake(stage: Path, source: Path, out: Path, force: bool) -> None:
    fill(stage, "loser")
    export(source, out, "winner", force=force)


@pytest.mark.parametrize("standing", [None, "empty", "full"])
@pytest.mark.parametrize("force", [False, True])
def test_two_at_once(force: bool, standing: str | None, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if standing:
        fill(out, "mine") if standing == "full" else out.mkdir(parents=True)
    if standing == "full" and not force:
        return
    with (
        pytest.raises(UsageError, match="by another process meanwhile") as error,
        staged(source, out, force=force) as stage,
    ):
        overtake(stage, source, out, force)
    one_line(error)
    assert tree(out) == {"config.json": b"winner"}
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_folder_that_goes_meanwhile(source: Path, tmp_path: Path) -> None:
    out = fill(tmp_path / "out", "mine")
    with pytest.raises(UsageError, match="meanwhile"), staged(source, out, force=True):
        shutil.rmtree(out)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_many_processes_at_once(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom ctxext.errors import UsageError\n"
        "from ctxext.export.staging import staged\n"
        "source, out, mine = sys.argv[1:]\n"
        "try:\n"
        "    with staged(pathlib.Path(source), pathlib.Path(out), force=False) as stage:\n"
        "        for name in 'ab':\n"
        "            (stage / name).write_text(mine)\n"
        "except UsageError as error:\n    sys.exit(str(error))\n"
    )
    out = tmp_path / "a" / "out"
    runs = [python(code, source, out, i, stderr=subprocess.PIPE) for i in range(6)]
    lines = [run.communicate(timeout=60)[1].decode() for run in runs]
    won = [i for i, run in enumerate(runs) if run.returncode == 0]
    assert len(won) == 1
    assert tree(out) == dict.fromkeys("ab", str(won[0]).encode())
    assert all(line.count("\n") == 1 for i, line in enumerate(lines) if i not in won)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "source"]


# killed


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


HOLD = """
import sys, pathlib, signal, time
from ctxext.export.staging import staged
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
with staged(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), force=True) as stage:
    (stage / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(100)
"""
KILLED_HALFWAY = """
import os, sys, pathlib, signal
from ctxext.export.staging import staged
rename = os.rename
def kill(old, new):
    if pathlib.Path(old).name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
os.rename = kill
with staged(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), force=True) as stage:
    (stage / "half").write_text("half")
"""


def boxes(folder: Path) -> list[Path]:
    return sorted(folder.glob(".ctxext-*"))


def test_what_a_killed_export_left_is_removed(source: Path, tmp_path: Path) -> None:
    run = python(HOLD, source, tmp_path / "a" / "out", stdout=subprocess.PIPE)
    assert run.stdout
    assert run.stdout.readline() == b"ready\n"
    before = boxes(tmp_path)
    export(source, tmp_path / "live")
    assert boxes(tmp_path) == before  # it is in use
    run.kill()
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert [tree(box)["new/half"] for box in boxes(tmp_path)] == [b"half"]
    export(source, tmp_path / "next")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["live", "next", "source"]


def test_killed_between_the_former_and_the_new(source: Path, tmp_path: Path) -> None:
    out = fill(tmp_path / "out", "mine")
    before = tree(out)
    assert python(KILLED_HALFWAY, source, out).wait(timeout=60) == -signal.SIGKILL
    assert not out.exists()
    export(source, tmp_path / "next")
    assert tree(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["next", "out", "source"]

    assert python(KILLED_HALFWAY, source, out).wait(timeout=60) == -signal.SIGKILL
    (tmp_path / "out").mkdir()
    export(source, tmp_path / "out" / "inner")
    assert len(boxes(tmp_path)) == 1
    export(source, tmp_path / "third")  # its place is taken: it had to go anyway
    assert boxes(tmp_path) == []
    assert tree(out) == {"inner": None, "inner/config.json": b"new"}


def test_terminated(source: Path, tmp_path: Path) -> None:
    run = python(HOLD, source, tmp_path / "a" / "out", stdout=subprocess.PIPE, stderr=-1)
    assert run.stdout
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_boxes_that_are_not_known_to_be_abandoned_stay(source: Path, tmp_path: Path) -> None:
    mine = platform.node().encode()
    for name, text in {"no-lock": None, "elsewhere": b"another-" + mine, "pipe": None}.items():
        fill(tmp_path / f".ctxext-{name}", "new/x")
        if text is not None:
            (tmp_path / f".ctxext-{name}" / "lock").write_bytes(text)
    os.mkfifo(tmp_path / ".ctxext-pipe" / "lock")
    target = fill(tmp_path / "mine", "x")
    (target / "lock").write_bytes(mine)
    (tmp_path / ".ctxext-link").symlink_to(target)
    (tmp_path / ".ctxext-file").write_bytes(mine)
    linked = fill(tmp_path / ".ctxext-linked-lock")
    (linked / "lock").symlink_to(target / "lock")
    before = set(os.listdir(tmp_path))
    export(source, tmp_path / "out")
    assert set(os.listdir(tmp_path)) == {*before, "out"}
    assert (target / "x").exists()


# full disks


def test_no_room_is_told_before_copying(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(source / "model.safetensors", 3_000_000_000)  # holes only
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    text = r"cannot write .*No space left on device: it takes 3 GB, and 1 GB are free"
    began = time.monotonic()
    with (
        pytest.raises(UsageError, match=text) as error,
        staged(source, tmp_path / "out", force=False) as stage,
    ):
        everything(source, stage)
    one_line(error)
    assert time.monotonic() - began < 1
    with staged(source, tmp_path / "linked", force=False) as stage:
        everything(source, stage, link=True)
    assert (tmp_path / "linked" / "model.safetensors").stat().st_size == 3_000_000_000


LIMITED = """
import resource, sys, pathlib
from ctxext.errors import UsageError
from ctxext.export.files import choose, put
from ctxext.export.staging import staged
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
source, out = map(pathlib.Path, sys.argv[1:])
try:
    with staged(source, out, force=True) as stage:
        put(choose(source, code=False, allow_pickle=False), source, stage, link=False)
except UsageError as error:
    print(error)
"""


def test_a_file_that_may_not_grow(source: Path, tmp_path: Path) -> None:
    """The limit on a file's size fails in the midst of a write, as a full disk does."""
    (source / "model.safetensors").write_bytes(bytes(3 * 2**20))
    fill(tmp_path / "full", "mine")
    before = tree(tmp_path)
    for out in ("a/b", "full"):
        run = python(LIMITED, source, tmp_path / out, stdout=subprocess.PIPE)
        line = run.communicate(timeout=60)[0].decode()
        assert line == f"cannot write {str(tmp_path / out)!r}: File too large\n"
        assert tree(tmp_path) == before


def fill_up(_: Path, stage: Path) -> None:
    (stage / "config.json").write_bytes(bytes(3 * 2**20))


def test_a_full_disk(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        (source / "model.safetensors").write_bytes(os.urandom(3 * 2**20))
        for write in (everything, fill_up):
            with (
                pytest.raises(UsageError, match=r"cannot write .*No space left on device") as error,
                staged(source, disk / "a" / "out", force=False) as stage,
            ):
                write(source, stage)
            one_line(error)
            assert list(disk.iterdir()) == []
        with pytest.raises(UsageError, match="a file system of its own"):
            export(source, disk, force=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_memory_stays_small(source: Path, tmp_path: Path) -> None:
    """Copying 128 MB takes less than 30 MB more than copying nothing."""
    code = (
        "import resource, sys, pathlib\nfrom ctxext.export.files import choose, put\n"
        "source, stage = map(pathlib.Path, sys.argv[1:])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "chosen = choose(source, code=False, allow_pickle=False)\nbefore = peak()\n"
        "put(chosen, source, stage, link=False)\nprint(peak() - before)\n"
    )
    os.truncate(source / "model.safetensors", 2**27)
    (tmp_path / "stage").mkdir()
    run = python(code, source, tmp_path / "stage", stdout=subprocess.PIPE)
    assert int(run.communicate(timeout=60)[0]) < 30e6
    assert (tmp_path / "stage" / "model.safetensors").stat().st_size == 2**27


def test_a_relative_place_in_a_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with (
        pytest.raises(UsageError, match="cannot write 'out'"),
        staged(source, Path("out"), force=False),
    ):
        pass
    monkeypatch.chdir(tmp_path)
