"""Write the generated parts of README.md and docs/ from the registry, the command line, the package
and the records, and the JSON schema of a record.

python scripts/readme.py            rewrite them
python scripts/readme.py --check    exit 1 where they are out of date
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

import engines_table
import real_table
import seed_table

from ctxext import methods as registry
from ctxext import report
from ctxext import tasks as all_tasks
from ctxext.advise.tune.unseen import compare
from ctxext.cli.bench import bench
from ctxext.cli.eval import evaluate
from ctxext.cli.patch import patch
from ctxext.cli.plan import plan
from ctxext.cli.tune import tune
from ctxext.models import families as model_families
from ctxext.models.aliases import ALIASES, ASSETS, SHIPPED
from ctxext.notation import format_length
from ctxext.records import Record, Store, schema
from ctxext.report import tables
from ctxext.tasks.ppl_tail import PerplexityOfTails

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "ctxext/records/schema.json"
MARK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGE = ROOT / "ctxext"
#: In the order that data takes.
FOLDERS = ("cli", "request", "methods", "tasks", "models", "engine", "measure", "records",
           "report", "advise", "export", "system")  # fmt: skip
ORDER = ["rope", "pi", "ntk-old", "ntk", "ntk-fixed", "beta-radix", "yarn"]


def methods() -> str:
    """What the letters mean, and one row for each method, from its docstring."""
    lines = [
        registry.NOTATION,
        "",
        "| method | parameters | formula | source |",
        "|---|---|---|---|",
    ]
    for name in registry.names():
        entry = registry.REGISTRY.get(name).describe()
        cells = [f"`{name}`", entry.get("parameters", "–"), entry["formula"], entry["source"]]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def tasks() -> str:
    """One row for each task, from its docstring."""
    lines = ["| task | what | metric |", "|---|---|---|"]
    for name in all_tasks.names():
        task = all_tasks.REGISTRY.get(name)
        entry, label = task.describe(), task.positional or ""
        more = f" Parameters: {entry['parameters']}." if "parameters" in entry else ""
        start = f"`{name}:{label.upper()}`" if label else f"`{name}`"
        cells = [start, entry["summary"] + more, entry["metric"]]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def options(command: Any) -> str:
    """One row for each option of a command."""
    hints = typing.get_type_hints(command, include_extras=True)
    lines = ["| option | meaning | default |", "|---|---|---|"]
    for name, parameter in inspect.signature(command).parameters.items():
        if not hasattr(hints[name], "__metadata__"):  # the context that Typer hands in
            continue
        info: Any = hints[name].__metadata__[0]
        flags = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
        flag = flags[0] if flags else f"--{name.replace('_', '-')}"
        said = f"{info.help} {_words(info)}".strip().replace("[", r"\[")  # is no link
        lines.append(f"| `{flag}` | {said} | {_default(parameter.default)} |")
    return "\n".join(lines)


def _words(info: Any) -> str:
    """The words that an option takes, where it takes no others and its help does not name them."""
    *some, last = (info.metavar or "").split("|")
    if not some or all(re.search(rf"\b{word}\b", info.help) for word in (*some, last)):
        return ""
    return f"One of {', '.join(some)} and {last}."


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, list):
        return ", ".join(f"`{v}`" for v in value) or "–"
    return "–" if value is None or value is False else f"`{value}`"


def models() -> str:
    """The aliases in one line."""
    return ", ".join(f"`{name}` ({a.hub_id}, {a.trained})" for name, a in ALIASES.items()) + "."


def shipped() -> str:
    """One row for each model in the package, from its provenance."""
    lines = [
        "| model | trained under | tokens seen | held-out loss (nats per token) |",
        "|---|---|---:|---:|",
    ]
    for name in SHIPPED:
        made = json.loads((ASSETS / name / "provenance.json").read_text(encoding="utf-8"))
        loss = f"{made['checks']['held_out_loss']:.3f}"
        lines.append(f"| `{name}` | `{made['method']}` | {made['tokens'] / 1e6:.1f} M | {loss} |")
    return "\n".join(lines)


def families() -> str:
    """What model types take, the types that take the same in one row."""
    lines = [
        "| frequency methods | distance methods | decoding | export | model types |",
        "|---|---|---|---|---|",
    ]
    for facts, types in model_families.grouped().items():
        names = f"{len(types)}: " + ", ".join(f"`{name}`" for name in types)
        said = facts if len(set(facts)) > 1 else (facts[0], *"–" * (len(facts) - 1))
        lines.append(f"| {' | '.join(said)} | {names} |")
    return "\n".join([*lines, "", f"Found with transformers {model_families.tried()}."])


def results() -> str:
    """The rows of the committed comparison on tiny that are picked, the best at the longest length
    first, and `rope` above them."""
    made = {table.group.metric: table for table in tables.build(_records("tiny"))}
    loss, right = made["perplexity"], made["accuracy"]
    share = {row.method: row for row in right.rows}
    lengths = [format_length(column.length) for column in loss.columns]
    header = ["method", f"perplexity at {lengths[0]}", *lengths[1:], "tax (nats)"]
    header.append(f"accuracy at {lengths[-1]} (%)")
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    rows = sorted(loss.rows, key=lambda r: (r.method != "rope", r.cells[-1].value))
    shown = real_table.picked([row.method for row in rows])
    for row in rows:
        if row.method not in shown:
            continue
        last = share[row.method].cells[-1]
        cells = [_bold(loss, cell) for cell in row.cells]
        cells += [*loss.tax_texts(row), _bold(right, last)]
        lines.append(f"| `{row.method}` | {' | '.join(cells)} |")
    left = len(rows) - len(shown)
    lines += ["", f"{left} more are in [tables.md](results/tiny/tables.md)."] if left else []
    return "\n".join(lines)


def _bold(table: tables.Table, cell: tables.Cell) -> str:
    return f"**{table.cell_text(cell)}**" if cell.best else table.cell_text(cell)


LOSS = ("ppl", "perplexity")
#: Of which the decision table tells, by kind.
DECIDED = ("yarn", "ntk", "llama3", "rerope", "rerope+logn", "leaky-rerope+logn", "self-extend",
           "dca", "streaming", "lm-infinite", "window")  # fmt: skip


def decision() -> str:
    """What methods gain and cost on the two models, by the committed records."""
    tiny, real = _records("tiny"), [r for r in _records("real") if r["length"] == 16384]
    lines = [
        "| method | tax on tiny (nats) | change at 4k (nats) | pass keys at 4k, 16k (%) | "
        "tax on SmolLM2-135M (nats) | change at 16k (nats) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method in DECIDED:
        small, large = _apart(tiny, method, 4096), _apart(real, method, 16384)
        cells = [small[0], small[1], _keys(tiny, method, (4096, 16384)), large[0], large[1]]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _apart(records: list[Record], method: str, length: int) -> tuple[str, str]:
    """A method's tax and its paired change in loss against rope, in nats per token."""
    found = [t for t in tables.build(records) if (t.group.task, t.group.metric) == LOSS]
    table = next(t for t in found if length in [column.length for column in t.columns])
    rows = {row.method: row for row in table.rows}
    if method not in rows:
        return "–", "–"
    place = [column.length for column in table.columns].index(length)
    cell, rope = (rows[name].cells[place].record for name in (method, "rope"))
    if cell is None or rope is None:
        return "–", "–"
    paired = real_table.apart(cell, rope)
    plain = f"{math.log(cell['value'] / rope['value']):+.3f}"
    return table.tax_texts(rows[method])[0], str(paired) if paired else plain


def _keys(records: list[Record], method: str, lengths: tuple[int, ...]) -> str:
    """How many of the pass keys are found, in percent."""
    found = {
        r["length"]: f"{100 * r['value']:.0f}"
        for r in records
        if (r["requested"], r["metric"], r["status"]) == (method, "passkey", "ok")
    }
    return ", ".join(found.get(length, "–") for length in lengths) if found else "–"


def seed() -> str:
    """What the seed's methods keep, which orderings held, and each method's row."""
    records = _records("seed-table")
    found = seed_table.Found(records)
    return "\n\n".join(
        part(found)
        for part in (seed_table.keeps, seed_table.windowed, seed_table.held, seed_table.summary)
    )


def tuned() -> str:
    """The finals of the committed search on tiny, and what they came to."""
    folder, task = "tune-tiny", PerplexityOfTails()
    records = _records(folder)
    read: dict[int, dict[str, Record]] = {}
    for r in sorted(records, key=lambda r: float(r["value"])):
        if r["task"] == str(task):
            read.setdefault(r["windows"], {})[r["requested"]] = r
    unfit = SystemExit(f"results/{folder} does not hold one whole search: begin it again there")
    if len(read) != 3:
        raise unfit
    seen = sorted(read)
    first, final, whole = (read[windows] for windows in seen)
    trials = {r["method"]: r["value"] for r in first.values()}
    compared = [spec for spec in final if spec in whole]  # the winner, then the best default
    if len(compared) != 2 or len(whole) != 2 or {r["method"] for r in final.values()} - set(trials):
        raise unfit
    lines = [
        f"| finalist | perplexity, {seen[0]} windows | {seen[1]} windows |",
        "|---|---:|---:|",
    ]
    for spec, r in final.items():
        lines.append(f"| `{spec}` | {trials[r['method']]:.3f} | {r['value']:.3f} |")
    found = compare(*(whole[spec] for spec in compared), seen[1])
    if found is None or found[0].stderr is None:
        raise unfit
    (value, error, _), count = found
    seconds = sum(r["seconds"] for r in records)
    said = (
        f"So went the search above: {len(first)} specs, {seconds:.0f} s on "
        f"{records[0]['device']}. On the {count} windows after the finals' the perplexity of the "
        f"winner, less that of the best default, `{compared[1]}`, is {value:+.3f} ± {error:.3f}."
    )
    return "\n".join([said, "", *lines])


def speed() -> str:
    """The tables of the committed benchmarks."""
    return report.render(_records("bench"), "md", ORDER)


def folders() -> str:
    """What there is in the package, and each folder's sentence and imports."""
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    if found != {*FOLDERS}:
        raise SystemExit(f"scripts/readme.py does not know of {', '.join(found ^ {*FOLDERS})}")
    lines = ["| folder | what it is | imports |", "|---|---|---|"]
    for name in FOLDERS:
        others = [other for other in FOLDERS if other in _imported(name) and other != name]
        said = ", ".join(f"`{other}`" for other in others) or "–"
        lines.append(f"| `{name}/` | {_sentence(PACKAGE / name / '__init__.py')} | {said} |")
    lines += ["", "Files beside them:", ""]
    files = [path for path in sorted(PACKAGE.glob("*.py")) if path.name != "__init__.py"]
    return "\n".join([*lines, *(f"- `{path.name}`: {_sentence(path)}" for path in files)])


def listing() -> str:
    """The names in the package."""
    names = sorted([*FOLDERS, "py.typed", *(path.name for path in PACKAGE.glob("*.py"))])
    lines = ["$ ls ctxext", *textwrap.wrap("  ".join(names), 90)]
    return "\n".join(f"    {line}" for line in lines)


def _sentence(file: Path) -> str:
    """The first line of what a file says of itself."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _imported(folder: str) -> set[str]:
    """What of the package the files of a folder import."""
    texts = (file.read_text(encoding="utf-8") for file in (PACKAGE / folder).rglob("*.py"))
    return {
        name
        for text in texts
        for name in re.findall(r"^\s*from ctxext(?:\.| import )(\w+)", text, re.M)
    }


def _records(folder: str) -> list[Record]:
    records, problems = Store(ROOT / "results" / folder).read_all()
    if problems := seed_table.strange(problems):
        raise SystemExit(f"results/{folder}: {problems[0]}")
    if not records:
        raise SystemExit(f"results/{folder} has no records")
    return records


def main() -> None:
    """Rewrite, or check."""
    parts = {
        "folders": folders,
        "listing": listing,
        "methods": methods,
        "tasks": tasks,
        "options": lambda: options(evaluate),
        "bench_options": lambda: options(bench),
        "patch_options": lambda: options(patch),
        "plan_options": lambda: options(plan),
        "tune_options": lambda: options(tune),
        "tuned": tuned,
        "models": models,
        "families": families,
        "shipped": shipped,
        "real": lambda: real_table.part(_records("real")),
        "real_said": lambda: real_table.said(_records("real")),
        "real_tails": lambda: real_table.tails(_records("real")),
        "real_windows": lambda: real_table.windows([*_records("tiny"), *_records("real")]),
        "real_hidden": lambda: real_table.hidden(_records("real")),
        "entropy_cap": lambda: real_table.entropy_cap([*_records("tiny"), *_records("real")]),
        "results": results,
        "decision": decision,
        "seed": seed,
        "speed": speed,
        "engines": lambda: engines_table.part(ROOT / "results/engines/cells.jsonl"),
    }
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    texts = {
        page: MARK.sub(lambda m: f"{m[1]}{parts.pop(m[2])()}\n{m[3]}", text)
        for page, text in texts.items()
    }
    if parts:
        raise SystemExit(f"no page shows {', '.join(parts)}")
    fields = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    for file, text in {**texts, SCHEMA: fields}.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            if "--check" in sys.argv:
                raise SystemExit(f"{file.name} is out of date: run `make format`")
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
