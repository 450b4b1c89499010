"""What a comparison runs, checked before anything is trained."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice
from softgate.lab.compare.dataset import FILE, Dataset
from softgate.lab.compare.scores import Metric, metric_of
from softgate.lab.compare.sites import SITES, check_name
from softgate.lab.compare.sizes import GRID, SIZES, Size
from softgate.lab.compare.sources import Source, load_source
from softgate.lab.compare.training import Setup, step_loss
from softgate.lab.compare.tuning import TUNING_SEED, parse_grid
from softgate.lab.compare.variants import Variant, parse_variants
from softgate.lab.files import write_json
from softgate.lab.task import CellTask

__all__ = ["CELLS", "Plan", "Running", "check_folder", "make_plan", "prepare_folder"]

CELLS, PLAN = "cells", "plan.json"
_MODULE = "softgate.lab.compare.cell"


@dataclass(frozen=True)
class Plan:
    """A checked comparison.

    Attributes:
        site: where the methods stand.
        variants: the methods; the first is the baseline.
        data: what they are compared on.
        size: name of the size.
        steps: updates of every training.
        seeds: how many seeds, 0, 1, ….
        grid: learning rates that every variant is tried with.
    """

    site: str
    variants: tuple[Variant, ...]
    data: Dataset
    size: str
    steps: int
    seeds: int
    grid: tuple[float, ...]

    @property
    def metric(self) -> Metric:
        """The figure that decides."""
        return metric_of(self.site, self.data.kind)

    @property
    def sizes(self) -> Size:
        """Sizes of network and batch."""
        return SIZES[self.size][self.data.kind]

    @property
    def kept(self) -> dict[str, Any]:
        """What a run that continues this one must have in common with it."""
        return {"site": self.site, "data": self.data.digest, "size": self.size, "steps": self.steps}


@dataclass(frozen=True)
class Running:
    """How cells run: what their results do not depend on.

    Attributes:
        folder: of the comparison.
        resume: keep finished cells, continue unfinished ones.
        threads: torch threads of a cell.
        device: where it computes.
    """

    folder: Path
    resume: bool
    threads: int
    device: str

    def tuning(self, plan: Plan) -> Iterator[CellTask]:
        """One cell per variant and learning rate."""
        for rate in plan.grid:
            for variant in plan.variants:
                name = f"{variant.label}-lr{rate:g}-tuning"
                config = {"role": "tuning", "variant": asdict(variant), "lr": rate}
                yield self._task(plan, f"{variant.label} lr {rate:g}", TUNING_SEED, name, config)

    def seeds(self, plan: Plan, rates: dict[str, float]) -> Iterator[CellTask]:
        """One cell per variant and seed; seeds outside, so that the first figures of every variant come early."""
        for seed in range(plan.seeds):
            for variant in plan.variants:
                rate = rates[variant.label]
                config = {"role": "seed", "variant": asdict(variant), "lr": rate}
                yield self._task(plan, variant.label, seed, f"{variant.label}-lr{rate:g}-s{seed}", config)

    def cost(self, plan: Plan) -> CellTask:
        """The cell that measures time and memory of a step of every variant."""
        config = {"role": "cost", "variants": [asdict(variant) for variant in plan.variants]}
        return self._task(plan, "time and memory", 0, "cost", config)

    def _task(self, plan: Plan, cell: str, seed: int, name: str, config: dict[str, Any]) -> CellTask:
        return CellTask(
            f"compare-{plan.site}",
            plan.size,
            cell,
            seed,
            str(self.folder / CELLS / name),
            resume=self.resume,
            threads=self.threads,
            device=self.device,
            module=_MODULE,
            config={**plan.kept, **config},
        )


def make_plan(
    site: str,
    variants: str,
    source: Source,
    *,
    size: str = "tiny",
    steps: int | None = None,
    seeds: int = 3,
    lr_grid: str | None = None,
) -> Plan:
    """Check everything a user can get wrong, and try one step of every variant.

    Raises:
        ArgumentValueError: says what to type instead.
    """
    check_choice("SITE", site, tuple(SITES))
    check_choice("--size", size, tuple(SIZES))
    for name, count in (("--steps", steps), ("--seeds", seeds)):
        if count is not None and count < 1:
            bad_value(name, count, "at least 1")
    if seeds > TUNING_SEED:
        bad_value("--seeds", seeds, f"at most {TUNING_SEED}")
    chosen = parse_variants(variants)
    for variant in chosen:  # before the data is read, which may take its time
        check_name(site, variant)
    grid = GRID if lr_grid is None else parse_grid(lr_grid)
    data = load_source(source, site, SITES[site].kinds, size)
    plan = Plan(site, chosen, data, size, steps or SIZES[size][data.kind].steps, seeds, grid)
    for variant in chosen:
        _try(plan, variant)
    return plan


def _try(plan: Plan, variant: Variant) -> None:
    """One backward pass on two rows: options that a method does not take fail now, not in a worker."""
    try:
        setup = Setup(plan.data, plan.site, variant, plan.sizes, plan.steps, 0)
        inputs, targets = setup.task.batch(0)
        step_loss(setup.method.loss)(setup.model, (inputs[:2], targets[:2])).backward()
    except ArgumentValueError as error:
        if str(error).startswith("--"):
            raise
        raise ArgumentValueError(f"--variants: {variant.label}: {error}") from error
    except (ArgumentTypeError, TypeError) as error:
        raise ArgumentValueError(f"--variants: {variant.label}: {error}") from error


def check_folder(folder: Path) -> None:
    """Raise unless ``folder`` is new, empty, or that of a comparison: what lies in it may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ArgumentValueError(f"--out: {folder} is no folder; choose another name")
    ours = _earlier(folder) is not None
    if not ours and folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir()):
        raise ArgumentValueError(f"--out: {folder} holds files that are not of a comparison; choose a new folder")


def prepare_folder(plan: Plan, folder: Path, resume: bool) -> None:
    """Make ``folder``, which :func:`check_folder` has accepted, ready for ``plan``.

    Raises:
        ArgumentValueError: the comparison that is to be resumed is another one.
    """
    earlier = _earlier(folder)
    if resume and earlier is not None and earlier != plan.kept:
        differing = [name for name in plan.kept if earlier.get(name) != plan.kept[name]]
        raise ArgumentValueError(
            f"--resume: {folder} was made with another {' and '.join(differing)}; give the same options as then (new "
            "variants, seeds and learning rates may be added), or another --out"
        )
    if not resume:
        shutil.rmtree(folder / CELLS, ignore_errors=True)
    if not (resume and earlier is not None and (folder / FILE).is_file()):
        plan.data.save(folder)
    write_json(folder / PLAN, plan.kept)


def _earlier(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def figure_or_nan(figures: dict[str, Any], name: str) -> float:
    """A figure of a finished cell; NaN for one that failed."""
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
