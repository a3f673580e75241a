"""Maps by length and depth as the page shows them: small tables with coloured cells."""

from __future__ import annotations

from typing import Any, NamedTuple

from ctxext.notation import format_length
from ctxext.report.heatmaps import DARK, Heatmap
from ctxext.report.page.plot import short


class Square(NamedTuple):
    """A coloured cell of a map and what it tells."""

    text: str
    tip: str
    ground: str
    ink: str


def of_maps(figure: Heatmap) -> dict[str, Any]:
    """What the template needs: depths down, lengths across, None where nothing was measured."""
    maps = figure.maps.values()
    lengths = sorted({length for shares in maps for length in shares})
    depths = sorted({depth for shares in maps for column in shares.values() for depth in column})
    return {
        "kind": "maps",
        "title": short(figure.title),
        "about": figure.about,
        "corner": "depth",
        "across": [format_length(length) for length in lengths],
        "down": [f"{depth:.3g}" for depth in depths],
        "maps": [
            {
                "method": short(method),
                "rows": [
                    [_square(method, n, d, shares.get(n, {}).get(d)) for n in lengths]
                    for d in depths
                ],
            }
            for method, shares in figure.maps.items()
        ],
        "scale": ", ".join(_colour(part / 8) for part in range(9)),
        "unit": "% found",
    }


def _square(method: str, length: int, depth: float, share: float | None) -> Square | None:
    if share is None:
        return None
    tip = f"{short(method)}\nlength {format_length(length)}, depth {depth:.3g}: "
    ink = "#000" if share >= DARK else "#fff"
    return Square(f"{100 * share:.0f}", f"{tip}{100 * share:.1f} % found", _colour(share), ink)


def _colour(share: float) -> str:
    """On the scale of the pictures: cividis, which the colour-blind read as well."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["cividis"](min(max(float(share), 0.0), 1.0)))
