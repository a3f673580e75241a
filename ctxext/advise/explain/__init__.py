"""Why a method works: what it does to angles, to distances, and to the entropy of attention.

angles.py    which angles rotary pairs take, and which training never saw: arithmetic alone
layers.py    which frequencies turn which layers, from a config without weights
entropy.py   the entropy of attention by position, measured
study.py     all of it for some methods at a length, and its JSON records
tables.py    as tables
figures.py   as figures
"""

from __future__ import annotations

import functools
from pathlib import Path

from ctxext.advise.explain import figures, tables
from ctxext.advise.explain.study import ExplainRequest, Study, explain, records
from ctxext.notation import format_length
from ctxext.report.plots import save
from ctxext.system.digests import sha256_of_text
from ctxext.system.files import write_atomically
from ctxext.system.names import safe_name

__all__ = ["ExplainRequest", "Study", "explain", "records", "write_files"]


def write_files(study: Study) -> list[Path]:
    """Write the tables as Markdown and the figures as PNG and SVG; their paths.

    `explain--MODEL--LENGTH--METHODS.md`, `….angles.png` and `….curves.png` (and .svg), with the
    layer type before the ending where a model has several kinds of layers that methods change.
    """
    request, out = study.request, study.request.out
    out.mkdir(parents=True, exist_ok=True)
    methods = "--".join(safe_name(str(one.requested)) for one in study.explained[1:]) or "rope"
    asked = repr([str(one.requested) for one in study.explained])
    if len(methods) > 80 or any(c not in asked for c in methods.split("--")):
        methods = f"{methods[:70].rstrip('-')}--{sha256_of_text(asked)[:8]}"
    model = safe_name(request.source.name, 40)
    stem = f"explain--{model}--{format_length(request.length)}--{methods}"
    written = [out / f"{stem}.md"]
    texts = [*map(tables.to_markdown, tables.sheets(study)), *tables.left_alone(study)]
    write_atomically(written[0], "\n".join(texts).encode("utf-8", "replace"))
    shown = [i for i, kind in enumerate(study.kinds) if not kind.alone] or [0]
    for number in shown:
        kind = f"--{safe_name(study.kinds[number].name)}" if len(shown) > 1 else ""
        for name, draw in (("angles", figures.maps), ("curves", figures.curves)):
            for ending in ("png", "svg"):
                path = out / f"{stem}{kind}--{name}.{ending}"
                save(path, functools.partial(draw, study, number))
                written.append(path)
    return written
