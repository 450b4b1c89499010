"""What the pictures of a reproduction show."""

from __future__ import annotations

import re
from typing import Any

import pytest

from softgate.lab.paper import Plot
from softgate.lab.plots import PALETTE, draw


def rows(**cells: Any) -> dict[str, list[dict[str, Any]]]:
    return {name: [figures] if isinstance(figures, dict) else figures for name, figures in cells.items()}


def colours_of(svg: str) -> set[str]:
    """Colours of series; black also draws the axes."""
    return {colour.upper() for colour in re.findall(r"#[0-9a-fA-F]{6}", svg)} & set(PALETTE) - {"#000000"}


def test_equal_figures_give_equal_bytes() -> None:
    plot = Plot("loss", "lines", y="loss", title="Loss")
    measured = rows(a=[{"loss": [2.0, 1.0]}, {"loss": [3.0, 1.5]}], b={"loss": [1.0, 0.5]})
    svg = draw(plot, measured)
    assert svg is not None and svg == draw(plot, measured)
    assert ">a<" in svg and ">b<" in svg and {PALETTE[0], PALETTE[1]} <= colours_of(svg)


@pytest.mark.parametrize("kind", ["lines", "bars", "heatmaps", "frames"])
def test_nothing_is_drawn_of_a_figure_that_no_cell_has(kind: Any) -> None:
    assert draw(Plot("p", kind, y="missing", title="t"), rows(a={"loss": 1.0})) is None


def test_few_places_on_a_logarithmic_axis_are_labelled_with_plain_numbers() -> None:
    plot = Plot("context", "lines", y="loss", x="n", title="Contexts", log="x", reference={"chance": 4.0})
    svg = draw(plot, rows(a={"loss": [3.0, 2.0, 1.0], "n": [128, 256, 512]}))
    assert svg is not None and all(f">{n}<" in svg for n in (128, 256, 512)) and "×" not in svg
    assert ">chance<" in svg and ">0<" not in svg


def test_bars_of_several_figures_stand_side_by_side_and_are_named_once() -> None:
    plot = Plot("ratio", "bars", y="ratio|ratio_wide", title="Ratios")
    svg = draw(plot, rows(short={"ratio": 1.0, "ratio_wide": 2.0}, long={"ratio": 3.0, "ratio_wide": 4.0}))
    assert svg is not None and colours_of(svg) == {PALETTE[0], PALETTE[1]}
    assert [svg.count(f">{text}<") for text in ("ratio", "ratio_wide", "short", "long")] == [1, 1, 1, 1]


def test_more_bars_than_colours_share_one() -> None:
    plot = Plot("grid", "bars", y="loss", title="Grid")
    few = draw(plot, rows(**{f"cell{i}": {"loss": float(i)} for i in range(3)}))
    many = draw(plot, rows(**{f"cell{i}": {"loss": float(i)} for i in range(9)}))
    assert few is not None and colours_of(few) == set(PALETTE[:3])
    assert many is not None and colours_of(many) == {PALETTE[0]}


def test_frames_show_one_row_a_matrix_and_one_column_a_step() -> None:
    plot = Plot("emergence", "frames", y="kq|ov", x="step", title="Emergence", xlabel="step")
    measured = {"kq": [[[0.0, 0.1]], [[1.0, -1.0]], [[2.0, -2.0]]], "ov": [[[0.0]], [[3.0]], [[4.0]]]}
    svg = draw(plot, rows(model={**measured, "step": [0.0, 10.0, 500.0]}))
    assert svg is not None and svg.count("<image") == 3 * 2 + 2  # the panels and the two colour bars
    assert all(svg.count(f">{text}<") == 1 for text in ("step 0", "step 10", "step 500", "kq", "ov"))
    assert svg == draw(plot, rows(model={**measured, "step": [0.0, 10.0, 500.0]}))


def test_frames_that_are_all_zero_or_alone_are_drawn() -> None:
    plot = Plot("emergence", "frames", y="kq", title="Emergence")
    svg = draw(plot, rows(model={"kq": [[[0.0, 0.0]]]}))
    assert svg is not None and ">model<" in svg
