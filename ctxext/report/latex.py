"""Tables for a paper: LaTeX with booktabs, in which every name is plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ctxext.system.names import printable

NEEDS = "% \\usepackage{booktabs,graphicx}"  # stands above tables
_FITTED = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}"
_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "varsigma", "sigma", "tau"),
    *("upsilon", "phi", "chi", "psi", "omega"),
)
_MATHS = {"Δ": "Delta", "±": "pm", "×": "times", "≈": "approx", "·": "cdot", "−": "-", "µ": "mu"}
_MATHS |= {chr(0x3B1 + place): name for place, name in enumerate(_GREEK) if name != "omicron"}
_NAMES = {"\\": "textbackslash", "^": "textasciicircum", "~": "textasciitilde"}
_NAMES |= {"<": "textless", ">": "textgreater", "|": "textbar", "`": "textasciigrave"}
_NAMES |= {'"': "char34", "…": "ldots"}
_TEXT = {"–": "\\textendash{}", "ο": "o"}
_TEXT |= {c: f"\\{c}" for c in "{}$&#_%"}
_TEXT |= {c: f"{{{c}}}" for c in "[]*"}  # \\ would take them as its argument
_TEXT |= {c: f"\\{name}{{}}" for c, name in _NAMES.items()}
_TEXT |= {c: f"$\\{name}$" if name.isalpha() else f"${name}$" for c, name in _MATHS.items()}
_KEPT = re.compile(r"[\x20-\x7e\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f]")  # of any LaTeX


def escape(text: str) -> str:
    """One line in which nothing is LaTeX's; Greek as mathematics, what it may lack as "?"."""
    shown = [_TEXT.get(c) or (c if _KEPT.match(c) else "?") for c in printable(text)]
    return re.sub(r"([-,'])(?=\1)", r"\1{}", "".join(shown))  # each twice is another sign


def table(
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[tuple[str, bool]]],
    left: Sequence[int] = (0,),
) -> str:
    """A `table` with a booktabs `tabular`; cells are a text and whether it is bold.

    Args:
        left: the columns that are aligned to the left.
    """
    sides = "".join("l" if number in left else "r" for number in range(len(header)))
    lines = [" & ".join(map(escape, header)), *(" & ".join(map(_cell, row)) for row in rows)]
    head, *body = [f"{line} \\\\" for line in lines]
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{escape(title)}. {escape(caption)}}}",
            f"{_FITTED}{{%",
            f"\\begin{{tabular}}{{{sides}}}",
            *("\\toprule", head, "\\midrule", *body, "\\bottomrule"),
            "\\end{tabular}}",
            "\\end{table}\n",
        ]
    )


def figure(name: str, caption: str) -> str:
    """A `figure` with a picture, whose name is without its ending."""
    return "\n".join(
        [
            "\\begin{figure}",
            "\\centering",
            f"\\includegraphics{{{name}}}",
            f"\\caption{{{escape(caption)}}}",
            f"\\label{{fig:{name}}}",
            "\\end{figure}\n",
        ]
    )


def _cell(cell: tuple[str, bool]) -> str:
    text = re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escape(cell[0]))
    return f"\\textbf{{{text}}}" if cell[1] else text
