"""A fresh process in which ctxext is not to be had reads the folders that test_carried.py wrote.

python carried_process.py ROOT     # writes ROOT/report.json: {folder: {what: figure}}
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

CHUNK = 50


class Blocked:
    """No ctxext, wherever it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "ctxext":
            raise ModuleNotFoundError(f"No module named {name!r}")


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def in_chunks(model: Any, ids: torch.Tensor) -> torch.Tensor:
    takes = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"
    cache, logits = None, []
    for start in range(0, ids.shape[1], CHUNK):
        out = model(ids[:, start : start + CHUNK], use_cache=True, **{name: cache})
        cache = out[name]
        logits.append(out.logits)
    return torch.cat(logits, 1)


@torch.no_grad()
def figures(folder: Path) -> dict[str, Any]:
    """How far a folder is off what the patched model gave."""
    want = torch.load(folder / "want.pt")
    model = load(folder)
    found = {f"logits {n}": off(model(ids).logits, x) for n, (ids, x) in want["logits"].items()}
    ids, whole = want["logits"][max(want["logits"])]
    found["chunks"] = off(in_chunks(model, ids), whole)
    for name, (given, tokens) in want["written"].items():
        for how in (None, "static"):
            written = model.generate(**given, **want["greedy"], cache_implementation=how)
            found[f"written {name} {how}"] = torch.equal(written, tokens)
    return found


@torch.no_grad()
def ways(folder: Path, box: Path) -> dict[str, Any]:
    """The other ways to have the model of a folder."""
    want = torch.load(folder / "want.pt")
    ids, whole = want["logits"][max(want["logits"])]
    model, info = load(folder, output_loading_info=True)
    weights, found = model.state_dict(), {"missing": len(info["missing_keys"])}
    found["spec"], found["length"] = str(model.ctxext.spec), model.config.max_position_embeddings
    model.save_pretrained(box / "again")
    found["saved again"] = off(load(box / "again")(ids).logits, whole)
    found["saved config"] = json.loads((box / "again" / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    made = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    made.load_state_dict(weights)
    hidden = made.base_model(ids).last_hidden_state  # its first forward is not the whole model's
    found["from config"] = off(made.lm_head(hidden), whole)
    made = AutoModelForCausalLM.from_config(config, trust_remote_code=True).eval()
    made.load_state_dict(weights)
    pad = torch.zeros(1, 7, dtype=torch.long)
    padded, mask = torch.cat((pad, ids), 1), torch.cat((pad, torch.ones_like(ids)), 1)
    found["from config, padded"] = off(made(padded, attention_mask=mask).logits[:, 7:], whole)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    found["without weights"] = repr(bare.ctxext)
    copied = copy.deepcopy(model)
    found["copied"] = off(copied(ids).logits, whole)
    before = copied.ctxext.choice
    found["moved"] = off(copied.double()(ids).logits, whole)
    found["chosen anew"] = copied.ctxext.choice is not before
    model.ctxext.remove()
    found["removed"] = off(model(ids).logits, whole)
    return found


def side_by_side(folders: list[Path], box: Path) -> dict[str, Any]:
    """Folders of one name and several specs, loaded before any of them runs."""
    models = [(load(shutil.copytree(f, box / str(i) / "model")), f) for i, f in enumerate(folders)]
    found = {}
    for model, folder in models:
        want = torch.load(folder / "want.pt")
        found[str(model.ctxext.spec)] = [
            off(model(ids).logits, whole) for ids, whole in want["logits"].values()
        ]
    return found


def untrusting(folder: Path) -> str:
    """What a load says that does not trust the folder's code; nobody can be asked."""
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


@contextlib.contextmanager
def without_ctxext() -> Iterator[None]:
    sys.meta_path.insert(0, Blocked())
    yield
    assert not any(name.partition(".")[0] == "ctxext" for name in sys.modules)


def main(root: Path) -> None:
    transformers.utils.logging.set_verbosity_error()
    folders = sorted(path.parent for path in root.glob("*/want.pt"))
    with without_ctxext():
        report = {folder.name: figures(folder) for folder in folders}
        some = [f for f in folders if f.name.startswith("llama")]
        report["ways"] = ways(root / "llama rerope+logn", root / "box")
        report["side by side"] = side_by_side(some, root / "box")
        report["untrusting"] = {"error": untrusting(folders[0])}
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
