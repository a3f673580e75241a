"""A dry run leaves everything as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ASKED = ("--len", "512", "--method", "ntk", "--task", "ppl,passkey:samples=1,ruler:niah_single_1")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Into none of the folders that a process may write to; the run itself does."""
    places = {name: tmp_path / name for name in ("home", "work", "tmp")}
    for place in places.values():
        place.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "CTXEXT_"))}
    env = {**kept, "HOME": str(places["home"]), "TMPDIR": str(places["tmp"])}
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "ctxext", "eval", *ASKED, "--limit", "1", "--out", "out"]

    def written(*more: str) -> list[str]:
        done = subprocess.run(
            [*command, *more], cwd=places["work"], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))

    assert written("--dry-run") == ["home", "tmp", "work"]
    after = written()
    assert any(path.startswith("home/.cache/ctxext/ruler/") for path in after)
