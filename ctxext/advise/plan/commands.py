"""The commands to go on with."""

from __future__ import annotations

import json
import shlex

from ctxext.advise.plan.study import Plan, Suggested
from ctxext.models.aliases import locate
from ctxext.notation import format_length
from ctxext.system.names import safe_name


def commands(plan: Plan, one: Suggested) -> dict[str, str]:
    """What measures, exports and serves the model with a method, by name; what cannot be is not
    there."""
    support, found = one.expressed.support, {"ctxext eval": _eval(plan, one)}
    if support["transformers"].takes and not one.expressed.spec.unpatched:
        found["ctxext export"] = _ours("export", plan, one, "--out", _folder(plan, one))
    for engine, serve in (("vLLM", _vllm), ("SGLang", _sglang), ("llama.cpp", _llama)):
        if support[engine].takes:
            found[engine] = serve(plan, one)
    return found


def _eval(plan: Plan, one: Suggested) -> str:
    tasks = [word for task in plan.request.tasks for word in ("--task", str(task))]
    rows = ["--batch-size", str(plan.request.rows)] if plan.request.rows > 1 else []
    return _ours("eval", plan, one, *tasks, *rows, *_how(plan))


def _ours(command: str, plan: Plan, one: Suggested, *more: str) -> str:
    source = plan.request.source
    words = ["ctxext", command, "--model", source.name]
    words += [] if one.choice.spec.unpatched else ["--method", str(one.choice.spec)]
    words += ["--len", format_length(plan.request.length), *more]
    if source.revision is not None:
        words += ["--revision", source.revision]
    if source.trust_remote_code:
        words += ["--trust-remote-code"]
    if source.train_len is not None:
        words += ["--train-len", str(source.train_len)]
    if source.own_scaling != "keep":
        words += ["--own-scaling", source.own_scaling]
    return shlex.join(words)


def _how(plan: Plan) -> list[str]:
    source = plan.request.source
    dtype = [] if source.dtype == "auto" else ["--dtype", source.dtype]
    return [*dtype, *([] if source.device == "auto" else ["--device", source.device])]


def _folder(plan: Plan, one: Suggested) -> str:
    name = plan.request.source.name.rstrip("/").rpartition("/")[2]
    parts = (name, str(one.choice.spec), format_length(plan.request.length))
    return "-".join(safe_name(part, 60) for part in parts)


def _place(plan: Plan, one: Suggested) -> tuple[str, list[str]]:
    """What vLLM and SGLang load: the model as it is, with what they are told; or what is exported,
    of a GGUF file."""
    source, changed = plan.request.source, one.expressed.overrides
    if source.file is not None and not one.expressed.spec.unpatched:
        return _folder(plan, one), []
    return locate(source.name), [json.dumps(changed)] if changed else []


def _trust(plan: Plan) -> list[str]:
    return ["--trust-remote-code"] if plan.request.source.trust_remote_code else []


def _vllm(plan: Plan, one: Suggested) -> str:
    place, told = _place(plan, one)
    words = ["vllm", "serve", place, *(["--hf-overrides", *told] if told else [])]
    return shlex.join([*words, "--max-model-len", str(plan.request.length), *_trust(plan)])


def _sglang(plan: Plan, one: Suggested) -> str:
    place, told = _place(plan, one)
    words = ["python", "-m", "sglang.launch_server", "--model-path", place]
    words += ["--json-model-override-args", *told] if told else []
    return shlex.join([*words, "--context-length", str(plan.request.length), *_trust(plan)])


def _llama(plan: Plan, one: Suggested) -> str:
    options, length = one.expressed.options, str(plan.request.length)
    file = plan.request.source.file
    if options is not None:
        words = ["llama-server", "-m", str(file or "MODEL.gguf"), "-c", length, *options]
        return shlex.join(words)
    folder = _folder(plan, one)
    made = _ours("export", plan, one, "--format", "gguf", "--out", f"{folder}-gguf")
    return f"{made} && llama-server -m {shlex.quote(folder)}-gguf/*.gguf -c {length}"
