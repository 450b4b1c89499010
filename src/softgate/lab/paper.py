"""What a paper claims and how it is measured, as records; a file in ``softgate.papers`` is made of these."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from softgate.errors import ArgumentValueError, did_you_mean

if TYPE_CHECKING:
    from softgate.lab.cell import CellRun

SCALES = ("smoke", "laptop", "paper")

#: What a cell measures: name -> number, or name -> list of numbers (a curve or a row of a table).
Figures = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class Cell:
    """One configuration to measure; the grid runs every cell once per seed.

    Attributes:
        name: short name of the variant, used as folder name and in relations, e.g. ``"headwise"``.
        config: everything the measuring function needs, JSON-able.
        measure: overrides the paper's measuring function (papers with several experiments).
        seeds: overrides the number of seeds of the scale (1 for measurements without randomness).
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[CellRun], Figures] | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Claim:
    """One statement of the paper and the relation that decides whether it came out.

    Relations are expressions over measured figures, ``figure["cell"]`` (``softgate.lab.relation``): the text that the
    report prints is the text that is evaluated, on the mean over seeds, and on each seed alone.

    Attributes:
        id: short name, unique within the paper.
        statement: the claim in our own words.
        paper_figure: the paper's own number with its set-up, e.g. ``"46.7 % -> 4.8 %"``.
        source: table, figure or section it stands in.
        relation: must hold for the verdict "reproduced", e.g. ``'share["gated"] < 0.5 * share["softmax"]'``.
        direction: weaker relation for "reproduced in direction"; None if there is none.
        scales: at which scales it can be measured; elsewhere the verdict is "needs hardware" (or "not measured").
        per_scale: relation of a scale where it differs from ``relation``.
        timing: True if it compares times: a miss on a loaded machine is then "inconclusive", not a failure.
        note: what a reader must know beside the figure (other data, smaller set-up).
    """

    id: str
    statement: str
    paper_figure: str
    source: str
    relation: str
    direction: str | None = None
    scales: tuple[str, ...] = ("smoke", "laptop", "paper")
    per_scale: Mapping[str, str] = field(default_factory=dict)
    timing: bool = False
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture drawn from the cells' results.

    Attributes:
        name: file name without suffix.
        kind: ``lines`` draws curve ``y`` over curve ``x`` for every cell; ``bars`` draws scalar ``y`` of every cell
            with its spread; ``heatmaps`` draws matrix ``y`` (a list of rows) of every cell; ``frames`` draws matrices
            that change, one row of panels per figure ``y``, a list of matrices, over the places ``x``. The spread is
            that over seeds or, with one seed, reaches from figure ``y_low`` to ``y_high`` where a cell has these.
        y: figure name; for several a prefix ending in ``*``, or names joined by ``|``.
        x: figure name of the abscissa for ``lines`` and ``frames``; None counts 0, 1, 2, ….
        title: what one sees.
        xlabel: with unit.
        ylabel: with unit.
        cells: names to draw; all that have the figure if empty.
        log: axes in logarithmic scale, ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        reference: horizontal lines, label -> value (the paper's figure, a limit).
    """

    name: str
    kind: Literal["lines", "bars", "heatmaps", "frames"]
    y: str
    title: str
    x: str | None = None
    xlabel: str = ""
    ylabel: str = ""
    cells: tuple[str, ...] = ()
    log: Literal["", "x", "y", "xy"] = ""
    reference: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """What one scale runs.

    Attributes:
        cells: the variants.
        seeds: how many seeds, 0, 1, ….
        minutes: expected wall-clock time on two CPU cores (GPU-hours belong in ``note``).
        exclusive: cells run one at a time with all cores (they measure time).
        hardware: what it needs beyond a laptop, e.g. ``"8 GPUs"``; empty if nothing.
        note: what differs from the paper's set-up.
    """

    cells: tuple[Cell, ...]
    seeds: int = 1
    minutes: float = 1.0
    exclusive: bool = False
    hardware: str = ""
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper: what it is, what it claims, how each scale measures it.

    Attributes:
        slug: name used everywhere, equal to the module name with hyphens.
        title: full title.
        arxiv: identifier such as ``"2505.06708"``.
        date: ``"YYYY-MM"`` of the first version.
        summary: two to four sentences in our own words.
        claims: what is checked.
        scales: name -> :class:`Scale`.
        measure: measuring function of the cells: gets a :class:`softgate.lab.cell.CellRun`, returns figures.
        plots: pictures of the page.
        methods: qualified names of the methods that implement it.
        code: the authors' code, ``owner/name`` or a sentence.
        notes: known deviations and caveats, printed on the page.
        venue: where it was published, if known.
    """

    slug: str
    title: str
    arxiv: str
    date: str
    summary: str
    claims: tuple[Claim, ...]
    scales: Mapping[str, Scale]
    measure: Callable[[CellRun], Figures]
    plots: tuple[Plot, ...] = ()
    methods: tuple[str, ...] = ()
    code: str = ""
    notes: tuple[str, ...] = ()
    venue: str = ""

    def scale(self, name: str) -> Scale:
        """The scale called ``name``, or an error that lists the available ones."""
        if name not in self.scales:
            hint = did_you_mean(name, self.scales)
            raise ArgumentValueError(
                f"scale must be one of {', '.join(self.scales)} for {self.slug}, got {name!r}{hint}"
            )
        return self.scales[name]


@dataclass(frozen=True)
class PlannedPaper:
    """A paper without a file yet: enough to say that it is missing.

    Attributes:
        slug: the name its file will have.
        title: full title.
        arxiv: identifier.
        date: ``"YYYY-MM"`` of the first version.
        sites: rooms its methods will stand in.
        summary: what it claims, in our own words.
        venue: where it was published, if known.
    """

    slug: str
    title: str
    arxiv: str
    date: str
    sites: tuple[str, ...]
    summary: str
    venue: str = ""


def paper_slugs() -> list[str]:
    """Slugs of all papers, found by listing ``softgate.papers``; nothing is imported but that package."""
    package = importlib.import_module("softgate.papers")
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def load_paper(slug: str, module: str = "") -> Paper:
    """Import the paper called ``slug``; an unknown one raises with the known slugs.

    Args:
        slug: name of the paper.
        module: importable module to take ``PAPER`` from, for a paper that is not one of softgate's.
    """
    if not module and slug not in paper_slugs():
        hint = did_you_mean(slug, paper_slugs()) or "; `softgate papers` says what each is about"
        raise ArgumentValueError(f"paper must be one of {', '.join(paper_slugs())}, got {slug!r}{hint}")
    module = module or f"softgate.papers.{slug.replace('-', '_')}"
    paper = importlib.import_module(module).PAPER
    if not isinstance(paper, Paper) or paper.slug != slug:
        raise ArgumentValueError(f"{module}.PAPER must be a Paper with slug {slug!r}")
    return paper
