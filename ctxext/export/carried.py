"""A model folder that brings its own code: the engine's files, and two that name the model.

Transformers copies a folder's code file by file and follows `from .name import …` alone, so the
package's modules lie flat in the folder, `ctxext.engine.patch` as `ctxext_engine_patch.py`, with
their imports made relative.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from ctxext import __version__
from ctxext.errors import UnsupportedModelError
from ctxext.methods import Spec
from ctxext.models.contents import to_config

ROOT = "ctxext.engine.carried"
CONFIG, MODEL = "configuration_ctxext", "modeling_ctxext"
TOKENIZER_CONFIG = "tokenizer_config.json"
LENGTH = "max_position_embeddings"
# Rope scalings that read `max_position_embeddings` when a model runs.
BY_LENGTH = {"dynamic", "yarn", "longrope"}

HEADER = """\
# {module} of ctxext {version}, carried with this model: its imports are made relative.
# SPDX-License-Identifier: Apache-2.0
"""
CONFIG_FILE = '''\
# Written by ctxext {version} for the code {digest} beside it.
# SPDX-License-Identifier: Apache-2.0
"""The config of a {stock} model that is patched by the code beside it."""

from {module} import {stock}


class {own}({stock}):
    """A type of its own, so that no Auto class loads the model unpatched."""

    model_type = "{model_type}"
'''
MODEL_FILE = '''\
# Written by ctxext {version}.
# SPDX-License-Identifier: Apache-2.0
"""{stock} with attention changed as `config.json` says under `ctxext`.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model.ctxext.spec, model.ctxext.notes, model.ctxext.choice
    model.ctxext.remove()    # the model as it was
"""

from {module} import {stock}

from .{config_file} import {config}
from .{root} import Carried
{imports}


class {own}(Carried, {stock}):
    """{stock}, patched when it is loaded."""

    config_class = {config}
    methods = ({methods})  # imported, they are known by name
'''


def write_carried(
    stage: Path,
    raw: dict[str, Any],
    model_class: type,
    config_class: type,
    spec: Spec,
    length: int,
    trained: int,
    own_scaling: str = "keep",
) -> list[str]:
    """Write the config and the code of a model that patches itself when it is loaded.

    Args:
        stage: the new folder.
        raw: the config.json of the model.
        model_class, config_class: transformers' own for it.
        spec: resolved for T and L.
        length, trained: L and T in tokens.
        own_scaling: whether the spec keeps or replaces the model's own rope scaling.

    Returns:
        The names of the files, config.json first.

    Raises:
        UnsupportedModelError: the model, or a method, has code that transformers, or ctxext, has
            not, or a method reads a file.
    """
    kind = str(raw.get("model_type"))
    for cls in (model_class, config_class):
        if not cls.__module__.startswith("transformers."):
            raise UnsupportedModelError(
                f"{kind} brings its own code ({cls.__name__}), and a folder carries code for "
                "transformers' own models alone: use ctxext.patch at run time"
            )
    files = _code(spec) | _model_files(model_class, config_class, spec)
    digest = hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
    files[f"{CONFIG}.py"] = CONFIG_FILE.format(
        version=__version__,
        digest=digest[:16],
        module=config_class.__module__,
        stock=config_class.__name__,
        own=_own(config_class),
        model_type=_own_type(config_class),
    )
    carried = {
        "spec": spec.full(),
        "length": length,
        "trained": trained,
        "own_scaling": own_scaling,
        "version": __version__,
    }
    config = _config(raw, model_class, config_class, carried)
    files = {"config.json": json.dumps(config, indent=2) + "\n", **files}
    for name, text in files.items():
        (stage / name).write_text(text, encoding="utf-8")
    return list(files)


def _own(cls: type) -> str:
    return f"Ctxext{cls.__name__}"


def _own_type(config_class: Any) -> str:
    return f"ctxext_{config_class.model_type}"


# The code ----------------------------------------------------------------------------------------


def _code(spec: Spec) -> dict[str, str]:
    """The carried modules' files by name."""
    foreign = [m.name for m in spec.methods if not type(m).__module__.startswith("ctxext.")]
    if foreign:
        raise UnsupportedModelError(
            f"{foreign[0]!r} is no method of ctxext's own, so that a folder cannot carry its code: "
            "use ctxext.patch at run time"
        )
    if outside := [m.name for m in spec.methods if m.reads_file]:
        raise UnsupportedModelError(
            f"{outside[0]!r} reads a file of its own, which a folder that carries code does not "
            f"hold: leave out {outside[0]}, or use ctxext.patch at run time"
        )
    sources: dict[str, str] = {}
    wanted = [ROOT, *(type(method).__module__ for method in spec.methods)]
    while wanted:
        module = wanted.pop()
        if module not in sources:
            sources[module] = _source(module)
            wanted += [node.module or "" for node in _own_imports(sources[module])]
    return {f"{_flat(name)}.py": _carried(name, text) for name, text in sources.items()}


def _source(module: str) -> str:
    """The text of a module's file as it is installed."""
    found = importlib.util.find_spec(module)
    get = getattr(found and found.loader, "get_source", None)
    text = get(module) if get else None
    if not isinstance(text, str):
        raise UnsupportedModelError(f"the source of {module} is not installed: install ctxext anew")
    return text


@functools.cache
def _own_imports(source: str) -> list[ast.ImportFrom]:
    """The imports of ctxext's modules, inside functions too."""
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return [node for node in found if (node.module or "").partition(".")[0] == "ctxext"]


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _carried(module: str, source: str) -> str:
    """A module's text with its imports made relative, under a line that says whence it is."""
    lines = source.splitlines(keepends=True)
    for node in _own_imports(source):
        name, at = node.module or "", node.lineno - 1
        lines[at] = lines[at].replace(f"from {name} import", f"from .{_flat(name)} import", 1)
    return HEADER.format(module=module, version=__version__) + "".join(lines)


def _model_files(model_class: type, config_class: type, spec: Spec) -> dict[str, str]:
    """The file with the model's class."""
    methods = sorted({(type(m).__module__, type(m).__name__) for m in spec.methods})
    text = MODEL_FILE.format(
        version=__version__,
        module=model_class.__module__,
        stock=model_class.__name__,
        own=_own(model_class),
        config_file=CONFIG,
        config=_own(config_class),
        root=_flat(ROOT),
        imports="\n".join(f"from .{_flat(module)} import {name}" for module, name in methods),
        methods=", ".join(name for _, name in methods) + "," * (len(methods) == 1),
    )
    return {f"{MODEL}.py": text}


# The config --------------------------------------------------------------------------------------


def _config(
    raw: dict[str, Any],
    model_class: type,
    config_class: Any,
    carried: dict[str, Any],
) -> dict[str, Any]:
    """The config's JSON under the new type, with what its model is patched with."""
    own = to_config(config_class, raw)
    if own.get_text_config() is not own:
        raise UnsupportedModelError(
            f"{raw.get('model_type')} nests the config of its language model, which a folder with "
            "code of its own does not serve: use ctxext.patch at run time"
        )
    maps = {
        "AutoConfig": f"{CONFIG}.{_own(config_class)}",
        "AutoModelForCausalLM": f"{MODEL}.{_own(model_class)}",
    }
    return {
        **raw,
        **_longest(raw, config_class, max(carried["length"], carried["trained"])),
        "architectures": [_own(model_class)],
        "model_type": _own_type(config_class),
        "auto_map": maps,
        "ctxext": carried,
    }


def _longest(raw: dict[str, Any], config_class: Any, longest: int) -> dict[str, int]:
    """The key that holds the longest length, or nothing where the model computes with that."""
    own = to_config(config_class, raw)
    rope = getattr(own, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    key = (own.attribute_map or {}).get(LENGTH, LENGTH)
    changed = to_config(config_class, {**raw, key: longest})
    others = [{**config.to_dict(), key: None} for config in (own, changed)]
    if others[0] != others[1] or any(part.get("rope_type") in BY_LENGTH for part in parts):
        return {}
    return {key: longest}


# The tokenizer -----------------------------------------------------------------------------------


def pin_tokenizer(
    folder: Path, raw: dict[str, Any], config_class: Any, *, code: bool = False
) -> str | None:
    """Name in tokenizer_config.json the class that transformers takes for the model's own type.

    It overrules that file for some types (phi3, qwen2, …), which the new type is not, so that the
    folder might otherwise have another tokenizer than the model it is made of. What it says of
    code of its own is taken out: who lets our code run must not let that run too.

    Args:
        folder: has the tokenizer's files; the one that is changed may be a link.
        raw, config_class: as for `write_carried`.
        code: leave in what it says of code of its own.

    Returns:
        The class's name; None where the folder has no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer

    path = folder / TOKENIZER_CONFIG
    try:
        given = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError):  # the model's own does not load either
        return None
    if not code and isinstance(given, dict) and given.pop("auto_map", None) is not None:
        _replace(path, given)
    try:
        config = to_config(config_class, raw)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception:  # the model's own may not load either
        return None
    name = type(tokenizer).__name__
    if isinstance(given, dict) and given.get("tokenizer_class") != name:
        _replace(path, {**given, "tokenizer_class": name})
    return name


def _replace(path: Path, settings: dict[str, Any]) -> None:
    """Write a file anew; what it is linked to stays as it is."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)
