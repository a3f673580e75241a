"""Methods and tasks from files outside the package, their types written as text and as they are."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_eval import Run, letters, runner, save_model

from ctxext import patches, tasks
from ctxext.errors import UsageError

FUTURE = "from __future__ import annotations\n"
METHOD = """
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Optional, Union

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, identity
from ctxext.notation import Count

if TYPE_CHECKING:
    from nowhere import Nothing


@dataclass(frozen=True)
class Local(Distance):
    note: ClassVar["Nothing | None"] = None

    window: Optional[int] = None

    def parts(self) -> "tuple[Nothing, ...]":
        return (Part(0, self.window, identity, identity),)


@register("local")
@dataclass(frozen=True)
class Given(Local):
    \"\"\"The last keys alone.\"\"\"

    leak: float = 1.0
    sinks: Annotated[Count, "keys"] = 4
    share: "float | None" = None
    flag: bool = False
    label: Union[str, None] = None
    mode: Literal["near", "far", 3, True] = "near"
"""
TASK = """
from dataclasses import dataclass
from typing import Optional

from ctxext.notation import Count
from ctxext.tasks import register
from ctxext.tasks.ppl import Perplexity


@register("ppl-late")
@dataclass(frozen=True)
class Late(Perplexity):
    first: Optional[int] = None
    skip: Count = 1
    flag: bool = False

    def windows(self, *given):
        found = super().windows(*given)
        found.first[:] = self.first if self.flag else 1
        return found
"""
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a file of this text; what it registers is forgotten after the test."""

    def imported(text: str) -> Any:
        name = f"plugin_{len(list(tmp_path.glob('plugin_*.py')))}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield imported
    for known in (patches.REGISTRY._found, tasks.REGISTRY._found):
        for name in [n for n, cls in known.items() if cls.__module__.startswith("plugin_")]:
            del known[name]
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


@pytest.fixture(params=[FUTURE, ""], ids=["text", "types"])
def future(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_value_is_read_as_its_field_declares(load: Load, future: str) -> None:
    given = load(future + METHOD).Given
    spec = "local:window=4k,leak=2,sinks=0,share=8,flag=true,label=8,mode=far"
    (found,) = patches.parse(spec).methods
    assert repr(found) == repr(given(4096, 2.0, 0, 8.0, True, "8", "far"))
    for text in (str(found), found.full()):
        assert repr(patches.parse(text).methods[0]) == repr(found)
    modes = [patches.parse(f"local:mode={m}").methods[0].mode for m in ("near", "3", "true")]
    assert repr(modes) == repr(["near", 3, True])
    for bad, need in {
        "window=0": "whole number of tokens",
        "window=8.0": "whole number of tokens",
        "leak=4k": "finite number",
        "sinks=-1": "whole number such as 5",
        "share=inf": "finite number",
        "flag=1": "true or false",
        "mode=2": "one of: near, far, 3, true",
        "wide=2": "valid: flag, label, leak, mode, share, sinks, window",
    }.items():
        with pytest.raises(UsageError, match=need):
            patches.parse(f"local:{bad}")


def test_a_plugin_through_the_command_line(
    load: Load, future: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load(future + METHOD)
    load(future + TASK)
    save_model(tmp_path / "plain")
    (tmp_path / "t.txt").write_text(letters())
    monkeypatch.chdir(tmp_path)
    run: Run = runner(monkeypatch, capsys)
    asked = ("eval", "--model", "plain", "--len", 64, "--data", "t.txt", "--limit", 2, "--json")
    task = "ppl,ppl-late,ppl-late:first=16,ppl-late:first=16,flag=true,skip=0"
    ran = run(
        *asked,
        "--task",
        task,
        "--method",
        "local:window=8,flag=true",
        "--method",
        "window:window=8",
    )
    assert ran.code == 0, ran.err
    values = ran.values
    assert len({r["task"] for r in ran.records}) == 4
    late = "ppl-late:first=16,skip=0,flag=true"
    for name in ("ppl", late):
        ours, theirs, plain = (
            values[method, 64, name]
            for method in ("local:window=8,flag=true", "window:window=8", "rope")
        )
        assert ours == theirs != plain
    assert values["rope", 64, "ppl"] == values["rope", 64, "ppl-late:first=16"]
    assert values["rope", 64, "ppl"] != values["rope", 64, late]
    for name in ("methods", "tasks"):
        assert run(name).code == 0
    ran = run(*asked, "--method", "local:flag=1")
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert "'1'" in line
    assert "true or false" in line


HEAD = """
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from {room} import register
from {room}.base import {base}

if TYPE_CHECKING:
    from nowhere import Nothing


class Mode(enum.Enum):
    A = 1


@register("odd")
@dataclass(frozen=True)
class Odd({base}):
    near: int = 1
"""
REFUSED = {
    "far: list[int] = field(default_factory=list)": r"list\[int\], whose values no spec",
    "far: int | float = 1": r"int \| float, whose values no spec",
    "far: Mode = Mode.A": "Mode, whose values no spec",
    "far: Any = 1": "Any, whose values no spec",
    "far: Literal[Mode.A] = Mode.A": "Literal.*, whose values no spec",
    "far: None = None": "None, whose values no spec",
    "far: int = field(init=False, default=1)": "int, but is not in __init__",
    "far: 'Nothing | None' = None": "Nothing | None.*, which cannot be evaluated.*'Nothing'",
    "far: 'int |' = 1": "cannot be evaluated",
}


@pytest.mark.parametrize("line", REFUSED)
@pytest.mark.parametrize(("what", "room", "base"), [
    ("method", "ctxext.methods", "Frequency"), ("task", "ctxext.tasks", "TokenTask"),
])  # fmt: skip
def test_a_type_that_no_spec_can_write_is_refused_when_it_registers(
    load: Load, future: str, line: str, what: str, room: str, base: str
) -> None:
    with pytest.raises(UsageError, match=f"field 'far' of {what} 'odd' has .*{REFUSED[line]}") as e:
        load(f"{future}{HEAD.format(room=room, base=base)}    {line}\n")
    assert "\n" not in str(e.value)
    assert "odd" not in [*patches.names(), *tasks.names()]


def test_a_parameter_without_a_default_is_asked_for(load: Load, future: str) -> None:
    load(future + HEAD.format(room="ctxext.methods", base="Frequency").replace("int = 1", "int"))
    with pytest.raises(
        UsageError, match="'odd' needs a near: write odd:near=VALUE, a whole number"
    ):
        patches.parse("odd")
    assert patches.parse("odd:near=1k").methods[0].near == 1024


# Packages that are installed.

INSTALLED = {
    "good": METHOD.replace('"local"', '"far-off"'),
    "late": TASK,
    "broken": "import nothing_of_that_name",
    "leaves": "raise SystemExit(3)",
    "silent": "",
    "other": """
from dataclasses import dataclass
from ctxext.methods import register

@register("other")
@dataclass
class Other:
    near: int = 1
""",
}
POINTS = """
[ctxext.methods]
far-off = plugin_good
broken = plugin_broken
leaves = plugin_leaves
silent = plugin_silent
other = plugin_other:Other
ntk = plugin_silent

[ctxext.tasks]
ppl-late = plugin_late
"""
BROKEN = {
    "broken": "cannot be loaded .*nothing_of_that_name.*: mend or uninstall it",
    "leaves": "cannot be loaded .*SystemExit: 3",
    "silent": "is not registered by plugin_silent: .*@register\\('silent'\\)",
    "other": "is not registered by plugin_other:Other: derive a class from a kind",
}


def install(folder: Path, name: str, points: str) -> None:
    """What pip leaves of a package that has these entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def installed(load: Load, tmp_path: Path) -> Path:
    install(tmp_path, "plugins", POINTS)
    for name, text in INSTALLED.items():
        (tmp_path / f"plugin_{name}.py").write_text(text)
    return tmp_path


def test_an_installed_package_brings_methods_and_tasks(installed: Path) -> None:
    assert {"far-off", "broken"} < {*patches.names()}
    assert "ppl-late" in tasks.names()
    assert "plugin_good" not in sys.modules
    assert str(patches.parse("far-off:window=1k+logn")) == "far-off:window=1024+logn"
    assert tasks.parse("ppl-late:first=16").metric == "perplexity"
    assert "plugin_broken" not in sys.modules
    assert type(patches.parse("ntk").methods[0]).__module__ == "ctxext.methods.ntk"


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_is_broken_is_told_in_a_line(installed: Path, name: str) -> None:
    for _ in range(2):
        with pytest.raises(
            UsageError, match=f"method '{name}' of the package plugins {BROKEN[name]}"
        ):
            patches.parse(f"rope+{name}")
    with pytest.raises(UsageError, match="did you mean 'broken'"):
        patches.parse("brokn")
    assert name not in [cls.name for cls in patches.REGISTRY.classes()]


def test_two_packages_with_one_name_are_told(installed: Path) -> None:
    install(installed, "rival", "[ctxext.methods]\nfar-off = plugin_silent\n")
    with pytest.raises(UsageError, match="too: uninstall all but one"):
        patches.parse("far-off")


def test_the_command_line_finds_them_and_goes_on_without_the_broken(installed: Path) -> None:
    def command(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ctxext", *argv],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *sys.path])},
        )

    listed = command("methods", "--json")
    names = [json.loads(line)["name"] for line in listed.stdout.splitlines()]
    assert listed.returncode == 0
    assert "far-off" in names
    assert not {*BROKEN} & {*names}
    said = sorted(line.split("'")[1] for line in listed.stderr.splitlines())
    assert said == sorted([*BROKEN, "ntk"])
    assert "ppl-late" in command("tasks").stdout
