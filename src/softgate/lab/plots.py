"""Pictures of a reproduction: deterministic SVG, drawn from the figures that the cells measured."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import ScalarFormatter

from softgate.lab.paper import Plot
from softgate.lab.verdicts import Rows

#: Okabe-Ito: eight colours that stay apart for colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STYLE: Any = {
    "svg.hashsalt": "softgate",
    "svg.fonttype": "none",  # text stays text: small files, selectable, searchable
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
}


def draw(plot: Plot, rows: Rows) -> str | None:
    """Draw ``plot`` from the measured ``rows``.

    Returns:
        The SVG element as text (byte-identical for equal input), or None if no cell has the figure.
    """
    with rc_context(_STYLE):
        figure = {"lines": _lines, "bars": _bars, "heatmaps": _heatmaps, "frames": _frames}[plot.kind](plot, rows)
        if figure is None:
            return None
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": "softgate"})
    text = buffer.getvalue()
    return text[text.index("<svg") :].rstrip()


def colours(cells: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each cell; the same in every picture of a paper, distinct beyond eight cells."""
    styles = ("-", "--", ":", "-.")
    size = len(PALETTE)
    return {cell: (PALETTE[i % size], styles[i // size % len(styles)]) for i, cell in enumerate(cells)}


def matching(rows: Rows, cell: str, pattern: str) -> list[str]:
    """Figures of ``cell`` called ``pattern``, starting with it where it ends in ``*``, or one of several (``a|b``)."""
    names = rows[cell][0] if rows.get(cell) else ()
    if pattern.endswith("*"):
        return [name for name in names if name.startswith(pattern[:-1])]
    return [name for name in pattern.split("|") if name in names]


def _several(plot: Plot) -> bool:
    """Whether ``plot`` shows more than one figure of a cell, which must then be named beside the cell."""
    return plot.y.endswith("*") or "|" in plot.y


def _short(plot: Plot, name: str) -> str:
    return name.removeprefix(plot.y[:-1]) if plot.y.endswith("*") else name


def _series(plot: Plot, rows: Rows) -> list[tuple[str, str]]:
    cells = plot.cells or tuple(rows)
    return [(cell, name) for cell in cells if cell in rows for name in matching(rows, cell, plot.y)]


def _new(plot: Plot, width: float = 6.4, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.set(title=plot.title, xlabel=plot.xlabel, ylabel=plot.ylabel)
    if "x" in plot.log:
        axes.set_xscale("log")
    if "y" in plot.log:
        axes.set_yscale("log")
    return figure, axes


def _lines(plot: Plot, rows: Rows) -> Figure | None:
    series = _series(plot, rows)
    if not series:
        return None
    figure, axes = _new(plot)
    colour = colours(list(rows))
    for index, (cell, name) in enumerate(series):
        curves = [_curve(row[name]) for row in rows[cell]]
        length = min(map(len, curves))
        xs = _abscissa(rows[cell][0], plot.x, length)
        mean = [_mean([curve[i] for curve in curves]) for i in range(length)]
        shade, style = (PALETTE[index % len(PALETTE)], "-") if _several(plot) else colour[cell]
        label = f"{cell} {_short(plot, name)}" if _several(plot) else cell
        marker = "o" if length < 12 else ""
        axes.plot(xs, mean, color=shade, linestyle=style, label=label, linewidth=1.6, marker=marker, markersize=3)
        if len(curves) > 1:
            low = [min(curve[i] for curve in curves) for i in range(length)]
            high = [max(curve[i] for curve in curves) for i in range(length)]
            axes.fill_between(xs, low, high, color=shade, alpha=0.15, linewidth=0)
        elif (ends := _interval(rows[cell][0], name)) is not None:
            low, high = (_curve(end)[:length] for end in ends)
            axes.fill_between(xs, low, high, color=shade, alpha=0.15, linewidth=0)
    # Before the reference lines, whose ends are no places that were measured.
    _plain_log_ticks(axes, plot, {x for line in axes.lines for x in np.asarray(line.get_xdata())})
    _reference(axes, plot)
    _legend(axes, len(series))
    return figure


def _plain_log_ticks(axes: Axes, plot: Plot, xs: set[float]) -> None:
    """Label a logarithmic axis with plain numbers: x at the few places that were measured, y below a decade too."""
    if "x" in plot.log and 0 < len(xs) <= 10:
        axes.set_xticks(sorted(xs), [f"{x:g}" for x in sorted(xs)], fontsize=8)
        axes.set_xticks([], minor=True)
    low, high = axes.get_ylim()
    if "y" in plot.log and high < 10 * low:
        axes.yaxis.set_minor_formatter(ScalarFormatter())


def _bars(plot: Plot, rows: Rows) -> Figure | None:
    """One bar a cell; where a cell has several figures, they stand side by side, told apart by colour."""
    series = _series(plot, rows)
    if not series:
        return None
    cells = list(dict.fromkeys(cell for cell, _ in series))
    names = list(dict.fromkeys(name for _, name in series))
    figure, axes = _new(plot, width=max(5.0, 1.0 + 0.7 * max(len(series), len(cells))))
    width = 0.8 / len(names)
    colour = _bar_colours(plot, rows, cells, names)
    for cell, name in series:
        values = [value for row in rows[cell] if isinstance(value := row[name], int | float)]
        if not values:
            continue
        position = cells.index(cell) + width * (names.index(name) - (len(names) - 1) / 2)
        mean = _mean(values)
        axes.bar(position, mean, color=colour[cell, name], width=0.9 * width)
        axes.annotate(f"{mean:.3g}", (position, mean), ha="center", va="bottom", fontsize=8)
        if len(values) > 1:
            axes.vlines(position, min(values), max(values), color="black", linewidth=1)
        elif (ends := _interval(rows[cell][0], name)) is not None:
            axes.vlines(position, *ends, color="black", linewidth=1)
    crowded = len(cells) > 4 or len(cells) * max(map(len, cells)) > 56  # characters that fit under the axis
    axes.set_xticks(range(len(cells)), cells, rotation=30 * crowded, ha="right" if crowded else "center")
    axes.grid(axis="x", visible=False)
    _reference(axes, plot)
    if _several(plot):
        keys = [Patch(color=PALETTE[i % len(PALETTE)], label=_short(plot, name)) for i, name in enumerate(names)]
        axes.legend(handles=keys, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    elif plot.reference:
        _legend(axes, len(plot.reference))
    return figure


def _bar_colours(plot: Plot, rows: Rows, cells: Sequence[str], names: Sequence[str]) -> dict[tuple[str, str], str]:
    """By figure where a cell has several, else by cell; one colour where there are more cells than colours."""
    if _several(plot):
        return {(cell, name): PALETTE[i % len(PALETTE)] for i, name in enumerate(names) for cell in cells}
    if len(cells) > len(PALETTE):
        return {(cell, name): PALETTE[0] for cell in cells for name in names}
    colour = colours(list(rows))
    return {(cell, name): colour[cell][0] for cell in cells for name in names}


def _heatmaps(plot: Plot, rows: Rows) -> Figure | None:
    series = _series(plot, rows)
    if not series:
        return None
    columns = min(4, len(series))
    height = math.ceil(len(series) / columns)
    figure = Figure(figsize=(2.7 * columns + 0.6, 2.7 * height + 0.4))
    figure.suptitle(plot.title, fontsize=11, fontweight="bold")
    for index, (cell, name) in enumerate(series):
        axes = figure.add_subplot(height, columns, index + 1)
        norm = PowerNorm(0.5, vmin=0)  # weights of a few percent must be seen beside one of nearly 1
        image = axes.imshow(rows[cell][0][name], cmap="viridis", norm=norm, interpolation="nearest", aspect="auto")
        suffix = _short(plot, name) if _several(plot) else ""
        axes.set_title(f"{cell} {suffix}".strip(), fontsize=9)
        axes.grid(visible=False)
        axes.set(xlabel=plot.xlabel, ylabel=plot.ylabel if index % columns == 0 else "")
        figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    figure.tight_layout()
    return figure


def _frames(plot: Plot, rows: Rows) -> Figure | None:
    """Matrices that change: a row of panels per figure and a column per place, one scale of signed colours a row.

    White is zero and the scale is symmetric, so that a pattern and its negative look alike but for the colour.
    """
    series = _series(plot, rows)
    if not series:
        return None
    columns = max(len(rows[cell][0][name]) for cell, name in series)
    figure = Figure(figsize=(1.25 * columns + 1.1, 1.3 * len(series) + 0.7), layout="constrained")
    figure.suptitle(plot.title, fontsize=11, fontweight="bold")
    panels = figure.subplots(len(series), columns, squeeze=False)
    for index, (line, (cell, name)) in enumerate(zip(panels, series, strict=True)):
        frames = rows[cell][0][name]
        places = _abscissa(rows[cell][0], plot.x, len(frames))
        most = max(abs(value) for frame in frames for row in frame for value in row) or 1.0
        for axes, frame, place in zip(line, frames, places, strict=False):
            image = axes.imshow(frame, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set_visible(True)
            if index == 0:
                axes.set_title(f"{plot.xlabel} {place:g}".strip(), fontsize=8, fontweight="normal")
        for axes in line[len(frames) :]:
            axes.set_visible(False)
        line[0].set_ylabel(_short(plot, name) if _several(plot) else cell, fontsize=9)
        figure.colorbar(image, ax=list(line), fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    return figure


def _interval(row: Any, name: str) -> tuple[Any, Any] | None:
    """The spread of figure ``name`` by its figures ``name_low`` and ``name_high``, which a seed measured itself."""
    ends = row.get(f"{name}_low"), row.get(f"{name}_high")
    return None if None in ends else ends


def _curve(value: Any) -> list[float]:
    items = value if isinstance(value, list | tuple) else [value]
    return [math.nan if item is None else float(item) for item in items]


def _abscissa(row: Any, name: str | None, length: int) -> list[float]:
    return _curve(row[name])[:length] if name is not None and name in row else [float(i) for i in range(length)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _reference(axes: Axes, plot: Plot) -> None:
    for label, value in plot.reference.items():
        axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=label)


def _legend(axes: Axes, entries: int) -> None:
    if entries > 6:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)
    else:
        axes.legend(fontsize=8, frameon=False)
