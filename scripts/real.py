"""The comparison on SmolLM2-135M: measure what has no record yet, or one cell again.

python scripts/real.py            work off results/real/grids/ in order; what has a record stays
python scripts/real.py --report   tables, plots and a page of the records, beside them
python scripts/real.py --check    rope and rerope over the first window of 16,384 tokens, against
                                  the committed records; exit 1 where they do not agree

The report leaves out speed and memory: the records are of a machine that did other work besides.
Nothing is fetched: without the model one line says how to have it. The text is the standard
library's, which follows the running Python: where it is not that of the records, the check allows
for what windows differ by.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from ctxext.models.packages import kept
from ctxext.notation import format_length
from ctxext.records import MEASURES, SPENT, Record, Store
from ctxext.report import chosen, write_files
from ctxext.tasks.data import load_text

FOLDER = Path("results/real")
MODEL, DTYPE, LENGTH, METHODS = "smollm2-135m", "bfloat16", 16384, ("rope", "rerope")
ORDER = ("rerope", "rerope+logn", "ntk", "ntk+logn", "yarn", "window")  # others follow
PICTURE = ("rerope", "ntk", "yarn", "dca", "window")  # in README's, beside rope
ROUNDING = 0.005  # nats per token that bfloat16 may differ by from machine to machine
SURE = 3  # standard deviations of the loss of a window


def main() -> int:
    """The exit code."""
    if sys.argv[1:] == ["--report"]:
        return report()
    if kept(MODEL) is None:
        print(f"no {MODEL}: `ctxext models --fetch {MODEL}` downloads it, 93 MB", file=sys.stderr)
        return 2
    return check() if sys.argv[1:] == ["--check"] else measure()


def evaluate(*options: object, out: Path) -> int:
    """Run `ctxext eval`; its exit code."""
    command = [sys.executable, "-m", "ctxext", "eval", *options, "--out", out]
    return subprocess.run(list(map(str, command)), check=False).returncode


def measure() -> int:
    """Work off the grids; the worst exit code of all, or that of an interruption at once."""
    worst = 0
    for grid in sorted((FOLDER / "grids").glob("*.yaml")):
        data = yaml.safe_load(grid.read_text(encoding="utf-8")).get("data")
        if data is not None and not Path(data).is_file():
            print(f"{grid.name}: left out, there is no {data}", file=sys.stderr)
            continue
        print(grid.name, file=sys.stderr)
        code = evaluate("--grid", grid, out=FOLDER)
        if code > 1:
            return code
        worst = max(worst, code)
    return worst


def report() -> int:
    """Write tables, plots and the page; the exit code."""
    costs = dict.fromkeys(("tokens_per_second", "peak_memory_bytes", *MEASURES, *SPENT))
    records, problems = Store(FOLDER).read_all()
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    shown = [{name: record[name] for name in record if name not in costs} for record in records]
    unknown = {"tokens_per_second": None, "peak_memory_bytes": None, "seconds": 0}
    shown = [{**record, **unknown} for record in shown]
    written = write_files(FOLDER, shown, ORDER, format="html")
    some = [record for record in shown if (record["task"], record["length"]) == ("ppl", LENGTH)]
    written += write_files(FOLDER, chosen(some, PICTURE), ORDER, methods=PICTURE)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def check() -> int:
    """Measure both methods again, and compare; the exit code."""
    committed = find(Store(FOLDER).read_all()[0])
    if missing := [method for method in METHODS if method not in committed]:
        print(f"{FOLDER} has no record of {' and '.join(missing)}", file=sys.stderr)
        return 2
    with TemporaryDirectory() as box:
        length = format_length(LENGTH)
        asked = ("--model", MODEL, "--dtype", DTYPE, "--len", length, "--limit", 1)
        if code := evaluate(*asked, "--method", METHODS[1], out=Path(box)):
            return code
        found = find(Store(Path(box)).read_all()[0])
    same = load_text("stdlib").sha256 == committed[METHODS[0]]["data"]["sha256"]
    ours = [losses(found[method])[:1] for method in METHODS]
    theirs = [losses(committed[method]) for method in METHODS]
    if not same:
        print(
            "the standard library's text is not that of the records, which tell how windows differ"
        )
    good = [
        agree(method, mine[0], other, same)
        for method, mine, other in zip(METHODS, ours, theirs, strict=True)
    ]
    apart = [[b - a for a, b in zip(*some, strict=True)] for some in (ours, theirs)]
    good.append(agree(f"{METHODS[1]} − {METHODS[0]}", apart[0][0], apart[1], same))
    return 0 if all(good) else 1


def find(records: list[Record]) -> dict[str, Record]:
    """Those of the cell that is measured again, by method."""
    return {
        record["requested"]: record
        for record in records
        if (record["task"], record["length"], record["dtype"]) == ("ppl", LENGTH, DTYPE)
        and (record["model"], record["data"]["name"]) == (MODEL, "stdlib")
        and record["status"] == "ok"
    }


def losses(record: Record) -> list[float]:
    """Mean losses of the windows, in nats per token."""
    kept = record["by_window"]
    return [total / count for total, count in zip(kept["nll"], kept["n"], strict=True)]


def agree(what: str, ours: float, theirs: list[float], same: bool) -> bool:
    """Whether the loss of a window is that of the record's first, or near those of all its windows;
    told in a line."""
    count = len(theirs)
    spread = statistics.stdev(theirs) * math.sqrt(1 + 1 / count)
    wanted, within = (theirs[0], ROUNDING) if same else (statistics.fmean(theirs), SURE * spread)
    good = abs(ours - wanted) <= within
    verdict = "agree" if good else "DO NOT AGREE"
    print(f"{what}: {ours:.4f} nats per token, committed {wanted:.4f} ± {within:.4f}: {verdict}")
    return good


if __name__ == "__main__":
    sys.exit(main())
