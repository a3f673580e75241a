"""requirements.lock has one version of every package that pyproject.toml names."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.quick

LOCK = Path(__file__).parents[1] / "requirements.lock"
LEFT_OUT = re.compile("torch|triton|nvidia-.*|cuda-.*")  # which build it is, the machine decides


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_range_is_met(python: str, system: str) -> None:
    """What `make lock` would write anew is found here before an install that follows no lock."""
    at = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": system}
    at |= {"platform_machine": "x86_64"}
    lines = [line for line in LOCK.read_text("utf-8").splitlines() if not line.startswith("#")]
    pins: dict[str, Version] = {}
    for line in lines:
        pin = Requirement(line)
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; .*)?", line), "no address, no build of a place"
        assert not LEFT_OUT.fullmatch(pin.name)
        if pin.marker is None or pin.marker.evaluate({**at, "extra": ""}):
            assert pin.name not in pins
            (version,) = pin.specifier
            pins[pin.name] = Version(version.version)
    asked = [Requirement(text) for text in metadata.requires("ctxext") or ()]
    needed, extras = list[Requirement](), ["dev"]
    for extra in extras:  # which may name others
        found = [r for r in asked if r.marker is None or r.marker.evaluate({**at, "extra": extra})]
        extras += [one for r in found if r.name == "ctxext" for one in r.extras]
        needed += found
    assert len(needed) > 20
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        if not LEFT_OUT.fullmatch(name) and name != "ctxext":
            assert requirement.specifier.contains(pins[name]), f"{requirement}: run `make lock`"
