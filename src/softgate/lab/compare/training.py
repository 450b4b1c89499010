"""One training of one variant: the same data, order, budget and start as every other variant's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate.diagnostics import report
from softgate.lab.cell import CellRun
from softgate.lab.compare.dataset import Dataset
from softgate.lab.compare.networks import build_with_shared_start
from softgate.lab.compare.scores import Loss, flat, held_out_figures
from softgate.lab.compare.sites import Method, resolve
from softgate.lab.compare.sizes import SIZES, Size
from softgate.lab.compare.tasks import Task, make_task
from softgate.lab.compare.variants import Variant
from softgate.lab.optimizers import adamw
from softgate.lab.training import TrainConfig, fit
from softgate.routing import balance_after

__all__ = ["DIAGNOSIS", "Setup", "make_optimizer", "set_up", "step_loss", "train"]

#: Prefix of the figures of ``softgate.diagnostics.report``.
DIAGNOSIS = "diagnosis_"
#: Rows that the diagnostics look at.
_LOOKED_AT = 32
_BETAS, _EPS, _WEIGHT_DECAY = (0.9, 0.95), 1e-8, 0.01


class _Live(CellRun):
    """A run whose every event carries the figures of the newest evaluation, for the row of its variant."""

    def log(self, step: int, total: int | None = None, **figures: float | str) -> None:
        """Report live figures."""
        newest = vars(self).setdefault("newest", {})
        newest.update(figures)
        super().log(step, total, **newest)


class Setup:
    """A variant ready to train.

    Attributes:
        size: of the network and its training.
        task: the data with the batches of the seed.
        method: the variant as code.
        model: the network at its start.
    """

    def __init__(self, data: Dataset, site: str, variant: Variant, size: Size, steps: int, seed: int) -> None:
        self.size = size
        self.task: Task = make_task(data, size, seed)
        self.method: Method = resolve(site, variant, self.task.shape, size, steps)
        parts, common = self.method.parts, self.method.common
        self.model = build_with_shared_start(parts, common, self.task.shape, size, seed)


def set_up(config: Any, data: Dataset, seed: int, variant: Variant | None = None) -> Setup:
    """What a cell's configuration describes; ``variant`` in the place of the cell's own."""
    variant = variant or Variant(**config["variant"])
    return Setup(data, config["site"], variant, SIZES[config["size"]][data.kind], config["steps"], seed)


def step_loss(loss: Loss) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """What ``fit`` minimises."""

    def compute(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss.train(*flat(model(batch[0]), batch[1]))

    return compute


def make_optimizer(model: nn.Module, lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """AdamW, the same for all variants, that tells routers when a step is over."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = adamw(parameters, lr=lr, betas=_BETAS, eps=_EPS, weight_decay=_WEIGHT_DECAY)
        balance_after(optimizer, model)
        return optimizer

    return make


def train(run: CellRun, data: Dataset) -> dict[str, Any]:
    """Train as ``run.config`` says.

    Returns:
        Figures of the validation part (``validation_…``), their curves over ``step`` (``curve_…``), and, unless the run
        only tries a learning rate, those of the test part (``test_…``), of the diagnostics (``diagnosis_…``) and
        ``parameters``.
    """
    config = run.config
    setup = set_up(config, data, run.seed)
    model, task, loss = setup.model, setup.task, setup.method.loss
    steps = config["steps"]
    curves = fit(
        model,
        step_loss(loss),
        TrainConfig(steps=steps, lr=config["lr"], warmup=steps // 20, eval_every=max(1, steps // 10)),
        batches=task.batch,
        run=_Live(**vars(run)),
        optimizer=make_optimizer(model, config["lr"]),
        evaluate=lambda model: held_out_figures(model, task.validation, loss, data.kind),
    )
    names = [name for name in ("accuracy", "bits_per_byte", "log_loss") if name in curves]
    figures: dict[str, Any] = {f"validation_{name}": curves[name][-1] for name in names}
    figures |= {"step": curves["eval_step"], **{f"curve_{name}": curves[name] for name in names}}
    if config["role"] == "tuning":
        return figures
    model.eval()
    tested = held_out_figures(model, task.test, loss, data.kind)
    figures |= {f"test_{name}": value for name, value in tested.items()}
    figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        inputs = task.validation[0][:_LOOKED_AT].to(next(model.parameters()).device)
        figures |= {f"{DIAGNOSIS}{name}": value for name, value in report(model, [inputs]).summary().items()}
    return figures
