"""Folders read in the order that data takes, and import in one direction, without cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import ctxext

PACKAGE = Path(ctxext.__file__).parent
HEAVY = {"torch", "transformers", "accelerate", "datasets", "pandas", "matplotlib"}

# Each imports none that comes later.
ORDER = (
    *("errors", "text", "choices", "notation", "registry", "system", "records"),
    *("methods", "models", "engine", "tasks"),
    *("request", "measure", "report", "export", "advise", "cli"),
    *("patches", "results", "harness"),  # public names
    *("__init__", "__main__"),
)

# Libraries that a folder must do without, even inside functions; others import them as they like.
WITHOUT = {
    "errors": {*HEAVY, "typer", "rich"},
    "text": {*HEAVY, "typer", "rich"},
    "choices": {*HEAVY, "typer", "rich"},
    "notation": {*HEAVY, "typer", "rich"},
    "registry": {*HEAVY, "typer", "rich"},
    "system": {*HEAVY, "typer", "rich"},
    "records": {*HEAVY, "typer", "rich"} - {"pandas"},
    "methods": {*HEAVY, "typer", "rich"} - {"torch"},
    "models": {"typer", "rich", "datasets"},
    "engine": {"typer", "rich", "datasets"},
    "tasks": {"typer", "matplotlib"},
    "tasks/scoring": {*HEAVY, "typer"},
    "tasks/ruler": {*HEAVY, "typer", "rich"},
    "tasks/longbench": {*HEAVY, "typer", "rich"},
    "tasks/data": {*HEAVY, "typer", "rich"} - {"datasets"},
    "measure": {"typer", "rich", "datasets"},
    "report": {*HEAVY, "typer"} - {"matplotlib", "pandas"},
    "export": {"typer", "rich"},
    "advise": {"typer", "datasets"},
    "advise/tune": {*HEAVY, "typer"},
    "advise/progress.py": {*HEAVY, "typer"},
}

# What runs a model imports torch or transformers at its head; all else inside functions alone.
RUNS_MODELS = ("engine", "models", "measure", "export", "advise/explain", "tasks/lm_eval",
               "tasks/windows.py")  # fmt: skip
LIGHT = ("measure/workers.py", "measure/predictions.py", "measure/run.py", "measure/launch.py",
         "measure/found.py", "measure/measurer.py", "measure/record.py", "measure/results.py",
         "measure/machine.py", "measure/memory.py", "measure/meter.py", "measure/failure.py",
         "measure/monitor.py")  # fmt: skip
LATE = {"datasets", "matplotlib", "accelerate", "pandas"}  # never at a head


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, but for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def files() -> dict[str, ast.Module]:
    """Each file of the package, from its root, as code."""
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(paths[name].read_text("utf-8")) for name in sorted(paths)}


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def test_folders_import_in_one_direction() -> None:
    found = files()
    tops = {name.partition("/")[0].removesuffix(".py") for name in found}
    assert tops == set(ORDER)
    wrong, used = [], set()
    for name, tree in found.items():
        own = name.partition("/")[0].removesuffix(".py")
        for imported in imports(tree):
            top, _, rest = imported.partition(".")
            other = rest.partition(".")[0]
            if top == "ctxext" and other not in (own, "__version__", ""):
                used.add((own, other))
                if ORDER.index(other) > ORDER.index(own):
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []
    assert {("cli", "measure"), ("measure", "engine"), ("engine", "methods")} <= used


def test_no_file_imports_itself_round_a_corner() -> None:
    found = files()
    modules = {
        f"ctxext/{name}".removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
        for name, tree in found.items()
    }
    graph = {
        module: {
            next(filter(modules.__contains__, (imported, imported.rpartition(".")[0])), "")
            for imported in imports(tree)
        }
        & {*modules} - {"ctxext"}
        for module, tree in modules.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)  # CycleError names it
    assert "ctxext.engine.state" in graph["ctxext.engine.patch"]


def test_folders_do_without_the_libraries_that_are_not_theirs() -> None:
    used = {(name, imported.partition(".")[0])
            for name, tree in files().items() for imported in imports(tree)}  # fmt: skip
    wrong = [
        (name, library)
        for place, without in WITHOUT.items()
        for name, library in used
        if within(name, (place,)) and library in without
    ]
    assert wrong == []
    assert ("engine/seams.py", "torch") in used


def test_heavy_libraries_are_imported_late() -> None:
    for name, tree in files().items():
        top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
        names = {imported.partition(".")[0] for imported in imports(top)}
        assert names.isdisjoint(LATE), name
        if not within(name, RUNS_MODELS) or within(name, LIGHT):
            assert names.isdisjoint(HEAVY), name
