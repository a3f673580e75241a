"""stdout and stderr that are closed, or close on the way; what -v and --version show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctxext import __version__
from ctxext.cli import app as cli
from ctxext.errors import short

COMMAND = f"{sys.executable} -m ctxext"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A command line; it ends with the exit code of a pipe's first command."""
    line = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize("way", ["| true", ">&-", ">&- 2>&-", "2>&-", "2>&1 | true"])
def test_who_does_not_listen_misses_what_is_printed_alone(way: str, tmp_path: Path) -> None:
    asked = "eval --len 64 --limit 1 --method ntk:factor=2 --json"
    done = shell(f"{COMMAND} {asked} --out {tmp_path / 'out'} {way}")
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_has_no_room_is_lost_in_one_line() -> None:
    done = shell(f"{COMMAND} methods > /dev/full")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line) == (
        1,
        "error: cannot write the result: No space left on device",
    )


def ended(monkeypatch: pytest.MonkeyPatch, *argv: str) -> object:
    monkeypatch.setattr(sys, "argv", ["ctxext", *argv])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, "--version") == 0
    assert capsys.readouterr() == (f"ctxext {__version__}\n", "")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "x"), TypeError("odd")])
def test_an_error_that_nobody_met_is_one_line_and_its_traceback_with_v(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ctxext.cli.console.print_entries", fail)
    for argv in (["methods"], ["-v", "methods"], ["methods", "-v"], ["methods"]):
        assert ended(monkeypatch, *argv) == 1
        out, err = capsys.readouterr()
        *trace, line = err.splitlines()
        assert out == ""
        assert "cannot write" not in line
        assert line.startswith("error: ")
        assert str(error.args[-1]) in line
        assert bool(trace) == ("-v" in argv)
        assert ("Traceback" in err) == ("-v" in argv)


def test_what_is_too_long_is_cut_between_words() -> None:
    assert short("a  b\nc") == "a b c"
    assert short(ValueError()) == "ValueError"
    assert short("x" * 300) == "x" * 300
    words = " ".join(f"word{i:03}" for i in range(100))
    for most in range(60, 90):
        cut = short(words, most)
        assert len(cut) <= most + 1
        assert words.startswith(cut.removesuffix(" …"))
        assert cut.removesuffix(" …").split() == words.split()[: len(cut.split()) - 1]
    assert short("x" * 301) == "x" * 299 + "…"
