"""Measure what the regression gate compares, and write it to pins.json.

python tests/regression/pin.py    all shipped models, two minutes each; or `make pins`
"""

from __future__ import annotations

import json
import platform
from typing import Any

import gate
import torch
import transformers


def pinned(name: str) -> dict[str, Any]:
    """Everything that the gate holds a model to, and what it was measured with."""
    reader = gate.Reader(name)
    found: dict[tuple[str, int, bool], dict[str, gate.Reading]] = {}

    def read(spec: str, length: int, repeated: bool) -> dict[str, gate.Reading]:
        if (spec, length, repeated) not in found:
            found[spec, length, repeated] = reader.read(spec, length, repeated)
        return found[spec, length, repeated]

    return {
        "weights": gate.weights(name),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "windows": reader.texts(),
        "keys": {spec: reader.keys_found(spec) for spec in gate.RETRIEVAL[name]},
        "differences": {str(pair): gate.differences(pair, read) for pair in gate.COMPARISONS[name]},
    }


if __name__ == "__main__":
    pins = {name: pinned(name) for name in gate.COMPARISONS}
    gate.PINS.write_text(json.dumps(pins, indent=1, ensure_ascii=False) + "\n")
