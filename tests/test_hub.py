"""Push and download through huggingface_hub, against a small Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from ctxext.errors import UsageError
from ctxext.export.files import choose
from ctxext.export.hub import check_repository
from ctxext.models import contents
from ctxext.models.aliases import TINY

TOKEN = "hf_secretSECRETsecret0123456789"
COMMIT = "c0ffee" * 6 + "0000"
NAME = "me/llama-16k"


class Hub:
    """The Hub as huggingface_hub sees it: a repository to push to, and one to download.

    Attributes:
        asked: method and path of all requests, in order.
        repositories: what was asked for in creating one.
        commits: message and files {path: contents} of each.
        files: what the repository to download holds.
        answers: {(method, start of a path): (status, body)} in place of the usual answers.
        public: what it says of a repository that is asked for.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.repositories: list[dict[str, Any]] = []
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.files: dict[str, bytes] = {}
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.public = True
        self.url = ""
        self._large: dict[str, bytes] = {}

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers."""
        path = unquote(path.partition("?")[0])
        self.asked.append((method, path))
        for (how, start), (status, answer) in self.answers.items():
            if method in how.split() and path.startswith(start):
                code = answer.get("code") if isinstance(answer, dict) else None
                return status, answer, {"X-Error-Code": code} if code else {}
        if path == "/api/repos/create":
            self.repositories.append(json.loads(body))
            return 200, {"url": f"{self.url}/{NAME}"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == f"/api/models/{NAME}/preupload/main":
            return 200, {"files": [self._mode(f) for f in json.loads(body)["files"]]}, {}
        if path == f"/{NAME}.git/info/lfs/objects/batch":
            return 200, {"objects": [self._slot(o) for o in json.loads(body)["objects"]]}, {}
        if method == "PUT" and path.startswith("/large/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/large/")
            self._large[path.removeprefix("/large/")] = body
            return 200, {}, {}
        if path == f"/api/models/{NAME}/commit/main":
            self.commits.append(self._commit(body))
            url = f"{self.url}/{NAME}/commit/{COMMIT}"
            return 200, {"commitUrl": url, "commitOid": COMMIT}, {}
        if path.startswith("/api/models/") and "/tree/" in path:
            return 200, [self._entry(name) for name in self.files], {}
        if path.startswith("/api/models/"):
            return 200, {"id": NAME, "sha": COMMIT, "private": not self.public, "siblings": []}, {}
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name in self.files:
            content = self.files[name]
            etag = hashlib.sha256(content).hexdigest()
            return 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        return 404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }

    def _slot(self, item: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.url}/large/{item['oid']}?X-Amz-Signature=signed"
        return {**item, "actions": {"upload": {"href": href}}}

    def _commit(self, body: bytes) -> tuple[str, dict[str, bytes]]:
        message, files = "", {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self._large[value["oid"]]
        return message, files

    def _entry(self, name: str) -> dict[str, Any]:
        oid = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": oid}

    def downloaded(self) -> set[str]:
        gets = [path for method, path in self.asked if method == "GET"]
        return {p.partition(f"/resolve/{COMMIT}/")[2] for p in gets if "/resolve/" in p}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add(self.headers.get("Authorization"))
            status, answer, headers = hub.reply(self.command, self.path, body)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


PRELUDE = """
import json, sys
from pathlib import Path
from ctxext.errors import CtxextError, UsageError
"""
PUSH = (
    PRELUDE
    + """
from ctxext.export.hub import push
folder, name, private = sys.argv[1:]
try:
    print(push(Path(folder), name, private=private == "True", message="Stretched by ntk"))
except CtxextError as error:
    print(error)
    sys.exit(2 if isinstance(error, UsageError) else 1)
"""
)
FETCH = (
    PRELUDE
    + """
from ctxext.models.folder import local_folder
from ctxext.models.loading import Source
code, options = json.loads(sys.argv[2])
try:
    print(local_folder(Source(sys.argv[1], trust_remote_code=code), **options))
except CtxextError as error:
    print(error)
    sys.exit(2)
"""
)


def python(
    hub: Hub, home: Path, code: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env = {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        **environment,
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert "secretSECRET" not in done.stdout + done.stderr
    for path in home.rglob("*") if home.exists() else ():
        assert not path.is_file() or b"secretSECRET" not in path.read_bytes()
    return done


FILES = {
    "config.json": b"{}\n",
    "README.md": b"---\nlicense: mit\n---\n",
    "additional_chat_templates/rag.jinja": b"{{ rag }}",
    "model.safetensors": bytes(range(256)) * 5000,
    "model-2.safetensors": b"small",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "it's out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "it's out"


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("private", [False, True])
def test_a_folder_is_one_commit(private: bool, hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.public = not private
    done = python(hub, tmp_path / "home", PUSH, str(folder), NAME, str(private))
    assert (done.stdout, done.stderr, done.returncode) == (f"{hub.url}/{NAME}\n", "", 0)
    [repository] = hub.repositories
    assert (repository["organization"], repository["name"]) == ("me", "llama-16k")
    assert repository.get("visibility") == ("private" if private else None)
    assert hub.commits == [("Stretched by ntk", FILES)]
    assert f"Bearer {TOKEN}" in hub.tokens
    assert contents_of(folder) == FILES


def test_the_command_exports_and_pushes(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = "import sys; from ctxext.cli.app import main; main()"
    asked = ("patch", "--model", "tiny", "--method", "ntk", "--len", "1k", "--out", str(out))
    done = python(hub, tmp_path / "home", command, *asked, "--push-to-hub", NAME, "--config-only")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{out}: tiny with ntk:factor=2, ")
    trained = "tiny: trained length 512, from max_position_embeddings\n"
    assert done.stderr == f"{trained}pushed to {hub.url}/{NAME}\n"
    assert hub.commits == [("tiny with ntk:factor=2", contents_of(out))]
    assert "model.safetensors" not in contents_of(out)


def test_a_card_names_the_repository_that_a_model_is_from(hub: Hub, tmp_path: Path) -> None:
    """Of a folder of the same name, or of an alias's, it does not."""
    serve(hub, {path.name: path.read_bytes() for path in TINY.iterdir()})
    shutil.copytree(TINY, tmp_path / "smollm2")
    command = "import sys; from ctxext.cli.app import main; main()"
    for model, base in ((NAME, NAME), (str(tmp_path / "smollm2"), None), ("tiny", None)):
        out = tmp_path / "out"
        asked = ("patch", "--model", model, "--method", "ntk", "--len", "1k", "--out", str(out))
        done = python(hub, tmp_path / "home", command, *asked, "--config-only", "--force")
        assert done.returncode == 0, done.stderr
        front = (out / "README.md").read_text().split("---\n")[1]
        assert yaml.safe_load(front).get("base_model") == base


def test_weights_may_be_links(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert python(hub, tmp_path / "home", PUSH, str(folder), NAME, "False").returncode == 0
    assert hub.commits == [("Stretched by ntk", FILES)]


def test_a_repository_that_is_there(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.answers["POST", "/api/repos/create"] = (409, {"url": f"{hub.url}/{NAME}", "error": "taken"})
    done = python(hub, tmp_path / "home", PUSH, str(folder), NAME, "False")
    assert (done.stdout, done.returncode) == (f"{hub.url}/{NAME}\n", 0)
    assert len(hub.commits) == 1
    done = python(hub, tmp_path / "home", PUSH, str(folder), NAME, "True")
    assert done.returncode == 1
    assert "is there already and public" in done.stdout
    assert len(hub.commits) == 1
    hub.public = False
    done = python(hub, tmp_path / "home", PUSH, str(folder), NAME, "True")
    assert (done.returncode, len(hub.commits)) == (0, 2)


CREATE, COMMITS = "/api/repos/create", f"/api/models/{NAME}/commit"
ECHO = f"bad token {TOKEN},\n\tBearer {TOKEN} of https://u:{TOKEN}@x.y/z?Signature={TOKEN} \x1b[31m"
FAILURES = {
    "401": ("POST", CREATE, 401, ECHO, "not logged in.*`hf auth login`.*bad token …"),
    "401 later": ("POST", COMMITS, 401, "no", "not logged in.*`hf auth login`"),
    "403": ("POST", CREATE, 403, ECHO, "may not write to me: .*`hf auth login`.*bad token …"),
    "404": ("POST", COMMITS, 404, "no", "there is no me, or the token may not see it"),
    "409": ("POST", COMMITS, 409, "a commit has happened since", "changed at the same time.*since"),
    "412": ("POST", COMMITS, 412, "no", r"did not take it \(HTTP 412\)"),
    "429": ("POST", CREATE, 429, "slow down", "too many requests: wait.*slow down"),
    "500": ("POST", CREATE, 500, ECHO, r"in trouble \(HTTP 500\): wait a little"),
    "503 later": ("POST", COMMITS, 503, "no", r"in trouble \(HTTP 503\): wait a little"),
    "400 of the card": ("POST", "/api/validate-yaml", 400, "no", "did not take it .HTTP 400"),
    "large file": ("PUT", "/large/", 403, "no", "may not write to me"),
    "no JSON": ("POST", CREATE, 200, b"<html>", "did not take it"),
    "other JSON": ("POST", CREATE, 200, "no", "did not take it"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_one_line(name: str, hub: Hub, folder: Path, tmp_path: Path) -> None:
    method, path, status, said, reason = FAILURES[name]
    hub.answers[method, path] = (status, said if isinstance(said, bytes) else {"error": said})
    if status in (401, 403):  # the client asks whether it is there nevertheless
        hub.answers["GET", "/api/models/"] = (status, {"error": said})
    done = python(hub, tmp_path / "home", PUSH, str(folder), NAME, "False")
    assert (done.returncode, done.stderr) == (1, "")
    assert_line(done.stdout, folder, reason)
    assert hub.commits == []


def assert_line(text: str, folder: Path, reason: str) -> None:
    """One line with the reason, and how to go on: the folder is as it was."""
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert len(text) < 800
    assert re.search(reason, text), text
    again = shlex.split(text.rpartition("then send it with: ")[2])
    assert again == ["hf", "upload", NAME, str(folder)]
    assert contents_of(folder) == FILES


def test_no_connection(hub: Hub, folder: Path, tmp_path: Path) -> None:
    home, push = tmp_path / "home", (PUSH, str(folder), NAME, "False")
    done = python(hub, home, *push, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (1, "")
    assert_line(done.stdout, folder, r"could not be reached.*\(.*Connection refused")
    done = python(hub, home, *push, HF_HUB_OFFLINE="1")
    assert_line(done.stdout, folder, "switched off here: unset HF_HUB_OFFLINE")
    done = python(hub, home, *push, HF_TOKEN=f"{TOKEN}é")
    assert (done.returncode, done.stderr) == (1, "")
    assert_line(done.stdout, folder, "did not take it")
    assert hub.asked == []


def test_a_full_name_is_needed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    done = python(hub, tmp_path / "home", PUSH, str(folder), "llama", "False")
    assert (done.returncode, hub.asked) == (2, [])


def test_names_of_repositories() -> None:
    for good in ("me/llama", "My_Org-2/a.b_C-16k", "a/" + "b" * 96):
        assert check_repository(good) == good
    bad = ("", "llama", "/", "a/", "/b", "a/b/c", "a//b", "me/..", "../b", "a/b--c", "a/b..c")
    bad += ("a/-b", "a/b.", "a/b c", "a/b\n", "a/b\n\x1b[31m", "a/é", "a/b.git", "a/" + "b" * 97)
    bad += ("https://huggingface.co/a/b", "a\\b", "a/b@main")
    for name in bad:
        with pytest.raises(UsageError, match="give ORG/NAME") as error:
            check_repository(name)
        assert str(error.value).isprintable()


# downloads


SMALL = ("config.json", "tokenizer.json", "LICENSE.txt", "Notice", "chat_template.jinja")
SMALL += ("additional_chat_templates/rag.jinja", "generation_config.json", "tokenizer.model")
NEVER = ("README.md", "consolidated.00.pth", "consolidated.safetensors", "a.gguf", "params.json")
NEVER += ("onnx/model.onnx", "onnx/config.json", "original/tokenizer.model", "tf_model.h5")
NEVER += ("sub/model.safetensors", "optimizer.bin", "pic.png", "x.safetensors", "sub/x.py")
NEVER += ("training_args.bin", "trainer_state.json", "adapter_model.safetensors")
INDEX = json.dumps({"weight_map": {"a": "m[1].safetensors", "b": "m-2.safetensors"}}).encode()
SAFE = {"model.safetensors": b"weights"}
SHARDS = {
    "model.safetensors.index.json": INDEX,
    "m[1].safetensors": b"1",
    "m-2.safetensors": b"2",
    "m1.safetensors": b"not this one",
}
PICKLES = {"pytorch_model.bin": b"pickle"}


def serve(hub: Hub, *more: dict[str, bytes]) -> None:
    names = (*SMALL, *NEVER, "modeling_x.py")
    hub.files = {name: name.encode() for name in names} | {"config.json": b"{}"}
    for files in more:
        hub.files |= files


def fetch(
    hub: Hub, home: Path, code: bool = False, **options: bool
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = python(hub, home, FETCH, NAME, json.dumps([code, options]))
    return Path(done.stdout.removesuffix("\n")), done


def test_only_what_an_export_takes_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    serve(hub, SAFE, PICKLES)
    cases: dict[str, tuple[bool, dict[str, bool], set[str]]] = {
        "all": (False, {}, {"model.safetensors"}),
        "code": (True, {}, {"model.safetensors", "modeling_x.py"}),
        "config": (False, {"weights": False}, set()),
        "pickle": (False, {"allow_pickle": True}, {"model.safetensors"}),
    }
    for name, (code, options, extra) in cases.items():
        hub.asked.clear()
        folder, done = fetch(hub, tmp_path / name, code, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert hub.downloaded() == {*SMALL, *extra}
        assert contents_of(folder) == {n: hub.files[n] for n in (*SMALL, *extra)}
        assert folder.name == COMMIT
        chosen = choose(folder, code=code, allow_pickle=False, weights=options.get("weights", True))
        taken = {p.relative_to(folder).as_posix() for p in (*chosen.weights, *chosen.others)}
        assert {*taken, "config.json"} == {*SMALL, *extra}


def test_shards_are_what_the_index_names(hub: Hub, tmp_path: Path) -> None:
    serve(hub, SHARDS, PICKLES)
    folder, done = fetch(hub, tmp_path / "home", allow_pickle=True)
    assert done.returncode == 0
    shards = {"model.safetensors.index.json", "m[1].safetensors", "m-2.safetensors"}
    assert hub.downloaded() == {*SMALL, *shards}
    hub.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../x.safetensors"}}'
    folder, done = fetch(hub, tmp_path / "other")
    assert done.returncode == 2
    assert "names the weight file '../../x.safetensors'" in str(folder)


def test_pickles_are_downloaded_only_where_allowed(hub: Hub, tmp_path: Path) -> None:
    serve(hub, PICKLES)
    fetch(hub, tmp_path / "home")
    assert hub.downloaded() == set(SMALL)
    fetch(hub, tmp_path / "home", allow_pickle=True)
    assert hub.downloaded() == {*SMALL, "pytorch_model.bin"}


def test_what_was_downloaded_serves_offline(hub: Hub, tmp_path: Path) -> None:
    serve(hub, SAFE)
    folder, _ = fetch(hub, tmp_path / "home")
    count = len(hub.asked)
    arguments = (FETCH, NAME, json.dumps([False, {}]))
    done = python(hub, tmp_path / "home", *arguments, HF_HUB_OFFLINE="1")
    assert (done.stdout, len(hub.asked)) == (f"{folder}\n", count)
    done = python(hub, tmp_path / "empty", *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "could not be had from the Hub: HF_HUB_OFFLINE is set; offline, download" in done.stdout
    hub.answers["GET", "/api/models/"] = (401, {"error": "no"})
    done = python(hub, tmp_path / "none", *arguments)
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1


WHY = {  # the Hub's answer to who asks for a file, and what the user is told
    "gated": ((403, {"error": "no", "code": "GatedRepo"}), "is gated: accept its licence at http"),
    "unknown": ((404, {"error": "no", "code": "RepoNotFound"}), "is not on the Hub, or is private"),
    "revision": ((404, {"error": "no", "code": "RevisionNotFound"}), "has no such --revision"),
    "trouble": ((500, {"error": "on fire"}), r"could not be had from the Hub: look at the reason"),
}
EVAL = "import sys; from ctxext.cli.app import main; main()"
ASKED = ("eval", "--len", "64", "--limit", "1", "--model")


@pytest.mark.parametrize("kind", WHY)
def test_why_a_model_could_not_be_had(kind: str, hub: Hub, tmp_path: Path) -> None:
    answer, said = WHY[kind]
    for path in (f"/{NAME}/", "/api/models/"):
        hub.answers["GET HEAD", path] = answer
    done = python(hub, tmp_path / "home", EVAL, *ASKED, NAME, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: model '{NAME}' ({NAME}) {said}")
    assert "network:" not in line


def test_without_a_network_a_gated_model_is_not_to_blame(hub: Hub, tmp_path: Path) -> None:
    """The Hub is tried once; what is in the cache serves all the same."""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": ""}
    asked = (EVAL, *ASKED, "llama", "--out", str(tmp_path / "out"))
    done = python(hub, tmp_path / "home", *asked, **nowhere)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "there is no network: http://127.0.0.1:9 does not answer (" in line
    assert "licence" not in line
    serve(hub, {path.name: path.read_bytes() for path in TINY.iterdir()})
    for where in ({}, nowhere):
        done = python(
            hub, tmp_path / "home", EVAL, *ASKED, NAME, "--out", str(tmp_path / "out"), **where
        )
        assert done.returncode == 0, done.stderr


def test_patterns_of_the_hub_say_what_the_names_say() -> None:
    """fnmatch of huggingface_hub knows upper case; both must choose the same files."""
    from huggingface_hub.utils import filter_repo_objects

    names = [*SMALL, *NEVER, "modeling_x.py", "LICENCE", "Use_Policy.MD", "readme.txt", "a.JSON"]
    names += ["merges.txt", "x.model.v3", "All_Results.json", "qwen.tiktoken", "license"]
    wanted, unwanted = contents.support_patterns(code=False)
    got = set(filter_repo_objects(names, allow_patterns=wanted, ignore_patterns=unwanted))
    own = {n for n in names if "/" not in n and contents.is_support(n)}
    assert got == {*own, "config.json", "additional_chat_templates/rag.jinja"}
