"""Put methods on a tiny random model of every causal type, and write what each takes.

    python scripts/families.py      rewrites ctxext/models/families.json, in some minutes

The models and the checks are those of `make test-families`.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from commands import tried  # noqa: E402
from families import model_types  # noqa: E402

from ctxext.models.families import FILE  # noqa: E402


def main() -> None:
    """Write the file, and say how many types take what."""
    types = model_types()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = dict(zip(types, pool.map(tried, types, chunksize=1), strict=True))
    content = {"transformers": transformers.__version__, "types": dict(sorted(rows.items()))}
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name in ("frequency", "distance", "export"):
        count = sum(row[name] == "yes" for row in rows.values())
        print(f"{name}: {count} of {len(rows)} model types")


if __name__ == "__main__":
    main()
