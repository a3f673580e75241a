"""What was explained, as figures: maps of angles, and curves by pair, distance and position."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxext.advise.explain.study import Block, Run, Study
from ctxext.advise.explain.tables import amount, heading, percent
from ctxext.notation import format_length
from ctxext.report.plots import look, set_text, wrapped

_ACROSS = 3  # maps in a row, at most
_SEEN = "#EDF2F5"
_AWAY = ("#F8D488", "#E69F00", "#D55E00", "#7A2E00", "#2B0F00")  # ever darker: also in print
_TRAINED = {"color": "0.3", "linestyle": (0, (4, 3)), "linewidth": 1.1}


def maps(study: Study, kind: int) -> Any:
    """A map for each method: distances across, pairs down, dark where training never was."""
    from matplotlib.figure import Figure

    blocks = {str(one.requested): one.blocks[kind] for one in study.explained}
    down = -(-len(blocks) // _ACROSS)
    across = -(-len(blocks) // down)
    titles = {method: wrapped(method, 34) for method in blocks}
    lines = max(title.count("\n") for title in titles.values())
    size = (3.3 * across + 1.5, (2.7 + 0.17 * lines) * down + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    top = max(float(np.nanmax(b.angles.off, initial=0.0)) for b in blocks.values())
    image: Any = None
    for number, panel in enumerate(panels.flat):
        if number >= len(blocks):
            panel.set_axis_off()
            continue
        method, block = list(blocks.items())[number]
        image = _map(panel, study, block, top or 1.0)
        share = percent(block.angles.outside.sum(), block.angles.seen * len(block.angles.theta))
        set_text(panel.set_title("", fontsize=10, loc="left"), f"{titles[method]}\n{share} outside")
        if number % across == 0:
            panel.set_ylabel("rotary pair, by its\nwavelength in training (tokens)")
        if number + across >= len(blocks):
            panel.set_xlabel("distance to the key (tokens)")
            panel.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=panels, fraction=0.04, pad=0.02, extend="min")
    bar.set_label("how far from all that training\nsaw (radians; pale: seen)")
    text = f"{heading(study, kind)}: angles that training at {study.trained} tokens never saw"
    key = (
        f"dashed: distance {study.trained}; dotted: the pairs above it turn fully within "
        f"{study.trained} tokens"
    )
    if any(np.isnan(block.angles.off).any() for block in blocks.values()):
        key += "; white: keys that the last query does not see"
    text = f"{wrapped(text, 36 * across)}\n{wrapped(key, 40 * across)}"
    set_text(figure.suptitle("", x=0.01, ha="left", fontsize=11), text)
    return figure


def _map(panel: Any, study: Study, block: Block, top: float) -> Any:
    """One method's map, on a scale from 0 to `top` radians."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("away", _AWAY).with_extremes(
        bad="white", under=_SEEN
    )
    angles, pairs = block.angles, len(block.angles.theta)
    rows = np.arange(pairs + 1) - 0.5
    away = np.ma.masked_invalid(angles.off)
    image = panel.pcolormesh(
        angles.edges, rows, away, cmap=colours, vmin=top * 1e-9, vmax=top, rasterized=True
    )
    panel.set_ylim(pairs - 0.5, -0.5)
    _length_axis(panel, study, int(angles.edges[-1]))
    marks = np.unique(np.linspace(0, pairs - 1, min(7, pairs)).round().astype(int))
    with np.errstate(divide="ignore"):
        wavelengths = 2 * np.pi / block.kind.trained_theta[marks]
    panel.set_yticks(marks, [amount(w) for w in wavelengths], fontsize=8)
    turning = int((block.kind.trained_theta * study.trained >= 2 * np.pi).sum())
    panel.axhline(turning - 0.5, color="0.3", linestyle=(0, (1, 2)), linewidth=1.1)
    return image


def curves(study: Study, kind: int) -> Any:
    """Wavelengths, shares outside, effective positions and entropy, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    panels = figure.subplots(2, 2).flatten().tolist()
    drawn = _wavelengths(panels[0], study, kind)
    _shares(panels[1], study, kind)
    _positions(panels[2], study, kind)
    names = [wrapped(str(one.requested), 34) for one in study.explained]
    style = {"frameon": False, "handlelength": 4, "labelspacing": 0.9}
    if study.run is not None:
        _entropies(panels[3], study, study.run)
        legend = figure.legend(drawn, ["-"] * len(names), loc="outside right center", **style)
    else:
        panels[3].set_axis_off()
        legend = panels[3].legend(drawn, ["-"] * len(names), loc="center left", **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        set_text(text, name)
    about = f"{heading(study, kind)}, trained at {study.trained}: what the methods change"
    set_text(figure.suptitle("", x=0.01, ha="left", fontsize=12), wrapped(about, 90))
    return figure


def _looks(study: Study, points: int) -> list[dict[str, Any]]:
    """Each method's colour, marker and dashes; at most a dozen markers on a line."""
    every = max(1, points // 12)
    methods = [str(one.requested) for one in study.explained]
    return [
        {**look(i - 1, method), "markevery": (i * every // len(methods), every)}
        for i, method in enumerate(methods)
    ]


def _wavelengths(axes: Any, study: Study, kind: int) -> list[Any]:
    blocks, drawn = [one.blocks[kind] for one in study.explained], []
    for block, style in zip(blocks, _looks(study, len(blocks[0].angles.theta)), strict=True):
        wavelength = np.where(block.angles.theta > 0, block.angles.wavelength, np.nan)
        drawn += axes.plot(wavelength, **style)
    axes.set_yscale("log", base=10)
    _mark(axes, "trained length", study.trained, below=True)
    if study.request.length >= 2 * study.trained:
        _mark(axes, "length", study.request.length, below=True)
    _decorate(axes, "a  wavelength", "rotary pair, fastest first", "wavelength (tokens)")
    return drawn


def _shares(axes: Any, study: Study, kind: int) -> None:
    blocks = [one.blocks[kind] for one in study.explained]
    for block, style in zip(blocks, _looks(study, len(blocks[0].angles.theta)), strict=True):
        share = 100 * block.angles.outside / max(1, block.angles.seen)
        axes.plot(share, **style)
    axes.set_ylim(-3, 103)
    title = "b  angles outside what training saw"
    _decorate(axes, title, "rotary pair, fastest first", "share of the keys seen (%)")


def _positions(axes: Any, study: Study, kind: int) -> None:
    """Effective over true distance: of the middle pair, and a band from the least to the most."""
    blocks = [one.blocks[kind] for one in study.explained]
    reach = int(blocks[0].angles.edges[-1])
    bounds = [d + step for block in blocks for d in block.bounds for step in (-1, 0)]
    far = max(1, reach - 1)
    coarse, fine = (np.unique(np.geomspace(1, far, n).round()) for n in (120, 4000))
    distances = np.unique(np.clip([*fine, *coarse, *bounds], 1, far))
    for block, style in zip(blocks, _looks(study, len(coarse)), strict=True):
        middle = block.effective(distances)[1]
        first, every = style["markevery"]
        begins = np.isnan(middle[:-1]) & ~np.isnan(middle[1:])  # a few keys are a dot, or nothing
        marked = {*np.searchsorted(distances, coarse[first::every]), *np.flatnonzero(begins) + 1}
        axes.plot(distances, middle, **{**style, "markevery": sorted(map(int, marked))})
        least, _, most = block.effective(coarse)
        if not np.allclose(least, most, equal_nan=True):
            axes.fill_between(coarse, least, most, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _mark(axes, "trained length", study.trained)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: _tokens(value))
    y = "effective relative position\n(tokens; band: over the pairs)"
    _decorate(axes, "c  distance map", "distance to the key (tokens)", y)


def _mark(axes: Any, name: str, tokens: int, below: bool = False) -> None:
    """A level line with its name and length: at the left above it, or at the right below it."""
    axes.axhline(tokens, **_TRAINED)
    where = {"va": "top", "ha": "right"} if below else {"va": "bottom", "ha": "left"}
    spot, off = (0.985 if below else 0.015, tokens), (0, -2 if below else 1)
    axes.annotate(
        f"{name} {format_length(tokens)}", spot, off, xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9, color="0.25", **where,
    )  # fmt: skip


def _entropies(axes: Any, study: Study, run: Run) -> None:
    first, bins = run.entropies[0], study.bins()
    far, centres = first.far(study.trained), [(a + z) / 2 for a, z in bins]
    ceiling = first.ceiling[far].mean(0)
    even = [ceiling[a:z].mean() for a, z in bins]
    axes.plot(centres, even, color="0.5", linewidth=1.4, linestyle=(0, (1, 1.5)))
    right = {"textcoords": "offset points", "ha": "right", "va": "top", "color": "0.35"}
    axes.annotate("spread evenly: ln n", (centres[-1], even[-1]), (0, -12), fontsize=9, **right)
    for entropy, style in zip(run.entropies, _looks(study, len(bins)), strict=True):
        nats = entropy.nats[far].mean(0)
        axes.plot(centres, [nats[a:z].mean() for a, z in bins], **style)
    axes.set_ylim(0, max(1.06 * even[-1], axes.get_ylim()[1]))
    if study.trained < study.request.length:
        inside = {"xycoords": ("data", "axes fraction"), "color": "0.25"}
        name = f" trained length {format_length(study.trained)}"
        axes.annotate(name, (study.trained, 0.02), fontsize=9, **inside)
    _length_axis(axes, study, study.request.length)
    title = f"d  entropy of attention on {study.request.data}, {run.about}"
    _decorate(axes, title, "position of the query (tokens)", "nats, mean over layers and heads")


def _decorate(axes: Any, title: str, x: str, y: str) -> None:
    set_text(axes.set_title("", loc="left", fontsize=10.5), wrapped(title, 60))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _length_axis(axes: Any, study: Study, length: int) -> None:
    """Tokens from 0 to the length, with T marked."""
    axes.set_xlim(0, length)
    ticks = sorted({length * part // 4 for part in range(5)})
    axes.set_xticks(ticks, [format_length(tick) for tick in ticks])
    if study.trained < length:
        axes.axvline(study.trained, **_TRAINED)


def _tokens(value: float) -> str:
    """A number of tokens, short: 62.8, 1.3k, 4k, 2.1m."""
    for unit, letter in ((2**20, "m"), (2**10, "k")):
        if value >= unit and np.isfinite(value):
            return f"{amount(value / unit) if value < 100 * unit else round(value / unit)}{letter}"
    return amount(value)
