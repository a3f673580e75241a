"""lm_eval's tasks: found by name, hashed, loaded, or refused in one line."""

from __future__ import annotations

import difflib
import functools
import glob
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError, short
from ctxext.system.extras import need
from ctxext.system.hub import why_offline
from ctxext.tasks.lm_eval.quiet import quiet

NEAR = 5  # names that a message offers
SHOWN = 100  # characters of a name that may be anything
GENERATED = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GENERATED_BY_DEFAULT = 256  # tokens; HFLM's


@functools.lru_cache(maxsize=4)
def manager(include: str | None) -> Any:
    """lm_eval's TaskManager, which reads its 13 000 files once; UsageError for a bad folder."""
    if include is not None and not Path(include).is_dir():
        raise UsageError(f"include={include!r} is not a folder: name one that holds tasks' YAML")
    need("lm_eval")
    with quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=include)


def find(task: str, include: str | None) -> Any:
    """lm_eval's entry of a task, group or tag, or of a YAML file's.

    Raises:
        UsageError: there is none of that name, or the file is none of a task.
    """
    need("lm_eval")
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    index = manager(include).task_index
    if task in index:
        return index[task]
    try:
        entry = TaskIndex.entry_from_path(Path(task))
        if entry is not None:
            entry.cfg = load_yaml(entry.yaml_path, resolve_func=False)
            return entry
    except Exception as error:
        text = short(error, 200)
        raise UsageError(f"lm-eval task {task[:SHOWN]!r} cannot be read: {text}") from None
    near = difflib.get_close_matches(task[:SHOWN], index, n=NEAR, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise UsageError(
        f"unknown lm-eval task {task[:SHOWN]!r}: {hint}`lm_eval ls tasks` lists all; "
        "for your own give the YAML file, or include=FOLDER"
    )


def nodes(entry: Any, include: str | None) -> Iterator[Any]:
    """The entry and all that it consists of, groups before their members, none twice."""
    yield from _nodes(entry, manager(include).task_index, set())


def _nodes(entry: Any, index: dict[str, Any], seen: set[str]) -> Iterator[Any]:
    if entry.name in seen:
        return
    seen.add(entry.name)
    yield entry
    for item in _members(entry):
        name = item if isinstance(item, str) else item.get("group") or item.get("task")
        if isinstance(name, str) and name in index:
            yield from _nodes(index[name], index, seen)
        elif isinstance(item, dict):
            yield from _nodes(_inline(item, entry), index, seen)


def _members(entry: Any) -> list[Any]:
    """What a group or tag lists: names, or objects that name one and change it."""
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    members = [members] if isinstance(members, str) else members
    return [item for item in members or [] if isinstance(item, (str, dict))]


def _inline(item: dict[str, Any], parent: Any) -> Any:
    from lm_eval.tasks._index import TaskIndex

    entry = TaskIndex.entry_from_config(item)
    entry.name, entry.yaml_path = f"{parent.name}::{entry.name}", parent.yaml_path
    return entry


def leaves(entry: Any, include: str | None) -> list[Any]:
    """The tasks that the entry consists of; itself where it is one."""
    return [node for node in nodes(entry, include) if "TASK" in node.kind.name]


def metric(entry: Any) -> str | None:
    """The metric named first; None where only the task's Python code knows."""
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    config = entry.cfg or {}
    named = config.get("aggregate_metric_list" if entry.kind.name == "GROUP" else "metric_list")
    named = [named] if isinstance(named, dict) else named
    if named:
        text = str(named[0]["metric"])
        return text.rpartition(".")[2] if "/" in text else text  # a !function, by its path
    usual = DEFAULT_METRIC_REGISTRY.get(config.get("output_type"), [None])
    return usual[0] if entry.kind.name == "TASK" else None


def generates(entry: Any) -> int | None:
    """The most tokens that a task has the model write; None where it has it write none."""
    config = entry.cfg or {}
    if config.get("output_type", "generate_until") != "generate_until" or "class" in config:
        return None
    options = config.get("generation_kwargs") or {}
    given = [options[key] for key in GENERATED if options.get(key) is not None]
    return int(given[0]) if given else GENERATED_BY_DEFAULT


def digest(entry: Any, include: str | None) -> str:
    """The hash of lm_eval's version, the configs, and for a user's own task its files.

    Those are the Python files beside the YAML and the data files that it names. Data on the Hub
    is known by its name alone.
    """
    import lm_eval
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    digest = hashlib.sha256(f"lm_eval {lm_eval.__version__}".encode())
    for node in nodes(entry, include):
        text = json.dumps([node.name, node.cfg, sorted(node.tags)], sort_keys=True, default=str)
        folder = node.yaml_path.parent if node.yaml_path else home
        digest.update(text.replace(str(folder), "").encode("utf-8", "surrogatepass"))
        if not folder.is_relative_to(home):
            for path in [*sorted(folder.glob("*.py")), *_data_files(node.cfg or {})]:
                digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _data_files(config: dict[str, Any]) -> list[Path]:
    """The files on this machine that a task's config names as its data."""
    options = config.get("dataset_kwargs") or {}
    given = options.get("data_files") or []
    groups = given.values() if isinstance(given, dict) else [given]
    names = [name for group in groups for name in ([group] if isinstance(group, str) else group)]
    base = Path(str(options.get("data_dir") or ""))
    found = {Path(path) for name in names for path in glob.glob(str(base / str(name)))}
    local = Path(str(config.get("dataset_path") or "?"))
    found |= {*local.rglob("*")} if local.is_dir() else set()
    return sorted(path for path in found if path.is_file())


@functools.lru_cache(maxsize=4)
def load(task: str, include: str | None, shots: int | None) -> dict[str, Any]:
    """lm_eval's dictionary of Task and Group objects, with their data and number of examples.

    Raises:
        UsageError: it cannot be loaded, and what data it needs; or it must not run here.
    """
    entry = find(task, include)
    hub = _hub_data(entry, include)
    offline = why_offline() if hub else None
    try:
        with quiet():
            loaded: dict[str, Any] = manager(include).load([task])
    except Exception as error:
        text = short(error, 250)
        if hub and isinstance(error, OSError):
            said = f": {offline}" if offline else ""
            raise UsageError(
                f"lm-eval task {task!r} needs data that could not be had from the Hub{said}; "
                f"download it where there is a network (`hf download --repo-type dataset "
                f"{hub[0]}`) and bring the Hugging Face cache along ({text})"
            ) from error
        raise UsageError(f"lm-eval task {task!r} cannot be loaded: {text}") from error
    for name, one in loaded["tasks"].items():
        _prepare(name, one, shots)
    return loaded


def _prepare(name: str, task: Any, shots: int | None) -> None:
    """Set how many examples stand before each question; refuse what must not run here."""
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"lm-eval task {name!r} shows pictures or sound: give one of text alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(
            f"lm-eval task {name!r} runs code that the model writes: use lm_eval's own command, "
            "`python -m ctxext.harness --model ctxext --confirm_run_unsafe_code …`"
        )
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise UsageError(f"lm-eval task {name!r} takes no examples: leave shots={shots} out")
    task.set_config("num_fewshot", (own or 0) if shots is None else shots)


def _hub_data(entry: Any, include: str | None) -> list[str]:
    """The Hub's names of the data that the entry's tasks read."""
    names = {str((leaf.cfg or {}).get("dataset_path")) for leaf in leaves(entry, include)}
    return sorted(name for name in names if "/" in name and not Path(name).exists())
