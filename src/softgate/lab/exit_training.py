"""The reproduction of jointly learned exits: backbone, exits for several prices, thresholds at equal cost, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate.dynamic import (
    ConformalExit,
    EarlyExit,
    ExitFeatures,
    ExitOutput,
    JEITrainer,
    ThresholdPolicy,
    cache_features,
    exit_inference_loss,
    expected_calibration_error,
)
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.exit_networks import cnn, network, plan_gates
from softgate.lab.tasks.exit_images import PARTS, ExitImages, exit_images
from softgate.lab.timing import interleaved
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_exits", "measure_speed"]

#: Ratios of the thresholds' exit budgets that make up a curve; beyond them all samples leave first or last.
_RATIOS = tuple(float(r) for r in np.geomspace(0.02, 50.0, 61))
_ALPHA = 0.05

Parts = Mapping[str, tuple[ExitFeatures, Tensor]]


class Judged(NamedTuple):
    """Figures of test samples at their exits."""

    cost: float
    accuracy: float
    ece: float


def measure_exits(run: CellRun) -> dict[str, Any]:
    """Exits for every price in the configuration, beside thresholds on the confidence of heads trained alone.

    Args:
        run: its ``config`` holds ``dataset``, ``sizes`` and ``side`` of :func:`softgate.lab.tasks.exit_images`, those
            of :func:`softgate.lab.exit_networks.network`, ``backbone`` (``steps``, ``batch``, ``lr``), ``lams``,
            ``epochs``, ``warmup_epochs``, ``swap_every``, ``batch``.

    Returns:
        ``final_accuracy`` and ``exit_accuracy`` (heads alone) on test images; over the prices: ``lam``, ``cost``,
        ``accuracy``, ``ece``, ``set_size`` of the gates, and the same of the thresholds at equal cost, with heads
        trained evenly (``…_thresholds``) and with the weights of deep supervision (``…_supervised``); their means and
        differences; ``modes_differ``, the largest difference of logits between the modes of inference.
    """
    config = run.config
    task = exit_images(config["dataset"], run.seed, config["sizes"], side=config["side"], download=run.download)
    seeds.seed_everything(seeds.derive(run.seed, "backbone"))
    backbone, with_exits = network(config, task)
    _train_backbone(run, backbone, task)
    model = with_exits().eval()
    parts = {part: cache_features(model, task.parts[part]) for part in PARTS}
    baselines = {
        "thresholds": _baseline(run, with_exits, parts, supervised=False),
        "supervised": _baseline(run, with_exits, parts, supervised=True),
    }
    figures: dict[str, Any] = {}
    for lam in config["lams"]:
        model = _train_exits(run, with_exits, parts, lam)
        for name, value in _compared(model, parts, baselines).items():
            figures.setdefault(name, []).append(value)
        figures.setdefault("modes_differ", []).append(modes_differ(model, task.parts["test"][0][:200]))
    outputs, target = _judged_part(baselines["thresholds"], parts, "test")
    accuracies = (outputs.logits.argmax(-1) == target).float().mean(1).tolist()
    return {
        **figures,
        **_summary(figures),
        "lam": list(config["lams"]),
        "final_accuracy": accuracies[-1],
        "exit_accuracy": accuracies,
        "exit_cost": model.costs.tolist(),
        "modes_differ": max(figures["modes_differ"]),
        "overhead": model.measured.overhead if model.measured else float("nan"),
    }


def _summary(figures: Mapping[str, list[float]]) -> dict[str, float]:
    """Means over the prices, and how cost follows them."""
    means = {f"mean_{name}": sum(values) / len(values) for name, values in figures.items() if name != "modes_differ"}
    drops = [a - b for a, b in zip(figures["cost"], figures["cost"][1:], strict=False)]
    return {**means, "cost_span": figures["cost"][0] - figures["cost"][-1], "smallest_drop": min(drops)}


def _train_backbone(run: CellRun, backbone: nn.Module, task: ExitImages) -> None:
    settings = run.config["backbone"]
    fit(
        backbone,
        lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        TrainConfig(steps=settings["steps"], lr=settings["lr"], warmup=settings["steps"] // 20, weight_decay=0.05),
        batches=lambda step: task.batch(step, settings["batch"]),
        run=run,
        name="backbone",
    )
    backbone.eval()


def _train_exits(run: CellRun, with_exits: Any, parts: Parts, lam: float) -> EarlyExit:
    """Heads and gates for one price, by the schedule of :class:`softgate.dynamic.JEITrainer`."""
    config = run.config
    seeds.seed_everything(seeds.derive(run.seed, "exits"))  # the same start for every price
    model = with_exits()
    trainer = JEITrainer(
        model, lam, config["swap_every"], epochs=config["epochs"], warmup_epochs=config["warmup_epochs"],
        batch_size=config["batch"], seed=run.seed,
    )  # fmt: skip
    trainer.prepare(parts["train"], parts["validation"])

    def evaluate(_: nn.Module) -> dict[str, float]:
        return {name: value for name, value in trainer.end_epoch().items() if name in ("accuracy", "cost")}

    fit(
        trainer.learned,
        lambda _, batch: trainer.loss_of(batch),
        TrainConfig(steps=trainer.steps, lr=0.01, min_lr_ratio=trainer.min_lr_ratio, clip=None,
                    eval_every=trainer.epoch_steps),
        batches=trainer.batch,
        run=run,
        optimizer=trainer.make_optimizer,
        evaluate=evaluate,
        state={"warm_up": trainer.warm_up},
        name=f"exits-{lam:g}",
    )  # fmt: skip
    return model.eval()


def _baseline(run: CellRun, with_exits: Any, parts: Parts, *, supervised: bool) -> EarlyExit:
    """Heads trained as long without gates: all alike, or the earlier ones with larger weights."""
    config = run.config
    seeds.seed_everything(seeds.derive(run.seed, "exits"))
    model = with_exits()
    trainer = JEITrainer(
        model, 0.0, epochs=config["epochs"], warmup_epochs=0, batch_size=config["batch"], seed=run.seed
    )
    trainer.prepare(parts["train"], parts["validation"])

    def step_loss(_: nn.Module, batch: Any) -> Tensor:
        _, features, labels = batch
        output = model.exits(features)
        if supervised:
            return trainer.loss(output, labels, "warmup")
        return exit_inference_loss(output.logits, labels, output.P, "uniform")

    fit(
        model.heads,
        step_loss,
        TrainConfig(steps=trainer.steps, lr=0.01, min_lr_ratio=trainer.min_lr_ratio, clip=None),
        batches=trainer.batch,
        run=run,
        optimizer=trainer.make_optimizer,
        name="supervised" if supervised else "even",
    )
    return model.eval()


@torch.no_grad()
def _judged_part(model: EarlyExit, parts: Parts, part: str) -> tuple[ExitOutput, Tensor]:
    features, target = parts[part]
    return model.exits(features), target


def judge(output: ExitOutput, target: Tensor, level: Tensor) -> Judged:
    """Cost, accuracy and calibration of samples that leave at ``level``."""
    logits = output.at(level)
    accuracy = float((logits.argmax(-1) == target).float().mean())
    return Judged(float(output.costs[level].mean()), accuracy, expected_calibration_error(logits, target))


def _compared(model: EarlyExit, parts: Parts, baselines: Mapping[str, EarlyExit]) -> dict[str, float]:
    """Gates of one price beside thresholds at the same cost."""
    (validation, _), (calibration, known), (test, target) = (_judged_part(model, parts, p) for p in PARTS[1:])
    own = judge(test, target, test.level)
    figures = {**own._asdict()}
    sets = ConformalExit().fit(calibration, known, _ALPHA).predict(test.y_logits, test.level)
    figures |= _set_figures(sets, target, "")
    for name, baseline in baselines.items():
        (chosen, _), (calibration, known), (test, target) = (_judged_part(baseline, parts, p) for p in PARTS[1:])
        at = at_cost(threshold_curve(chosen, test, target), own.cost)
        figures |= {f"accuracy_{name}": at.accuracy, f"ece_{name}": at.ece}
        figures[f"gain_{name}"] = own.accuracy - at.accuracy
        policy = ThresholdPolicy().fit(chosen, max(float(chosen.costs[0]), validation.mean_cost))
        level = policy.level(test)
        conformal = ConformalExit().fit(calibration, known, _ALPHA, policy.level(calibration))
        figures |= _set_figures(conformal.predict(test.at(level), level), target, f"_{name}")
    return figures


def _set_figures(sets: Tensor, target: Tensor, suffix: str) -> dict[str, float]:
    covered = sets.gather(1, target.unsqueeze(1)).float().mean()
    return {f"set_size{suffix}": float(sets.sum(1).float().mean()), f"coverage{suffix}": float(covered)}


def threshold_curve(chosen: ExitOutput, test: ExitOutput, target: Tensor) -> list[Judged]:
    """What thresholds that were chosen on validation samples reach on test samples, by rising cost."""
    return sorted(judge(test, target, ThresholdPolicy().fit(chosen, ratio=r).level(test)) for r in _RATIOS)


def at_cost(curve: Sequence[Judged], cost: float) -> Judged:
    """What lies at ``cost`` between two points of a curve."""
    costs, accuracies, errors = zip(*curve, strict=True)
    return Judged(cost, float(np.interp(cost, costs, accuracies)), float(np.interp(cost, costs, errors)))


def modes_differ(model: EarlyExit, x: Tensor) -> float:
    """Largest difference between the logits of the three modes of inference, 1 where they disagree on an exit."""
    (first, level), *others = (model.infer(x, mode, min_compact=0.01) for mode in ("masked", "compact", "sequential"))
    same = all(torch.equal(other, level) for _, other in others)
    return max(float((found - first).abs().max()) for found, _ in others) if same else 1.0


def measure_speed(run: CellRun) -> dict[str, float]:
    """Seconds of inference with and without leaving, at exits that let out given shares of a batch.

    Args:
        run: its ``config`` holds ``width``, ``side``, ``shares``, ``batches`` and ``turns``.

    Returns:
        ``ideal``, one over the mean cost; for every batch size B ``speedup_B`` of the compact mode over all stages with
        one head, ``of_ideal_B``, their ratio, and ``masked_B``, the speed-up without dropping rows.
    """
    config = run.config
    torch.manual_seed(run.seed)
    seq, cuts = cnn(3, config["width"], 10)
    largest = max(config["batches"])
    x = torch.randn(largest, 3, config["side"], config["side"], generator=torch.Generator().manual_seed(run.seed))
    model = EarlyExit.from_sequential(seq, cuts, x[:1]).eval()
    for head in model.heads:
        nn.init.normal_(head.weight)  # type: ignore[arg-type]
    figures: dict[str, float] = {}
    for size in config["batches"]:
        plan_gates(model, x[:size], config["shares"])
        figures |= speed_at(model, seq, x[:size], config["turns"])
    return figures


@torch.no_grad()
def speed_at(model: EarlyExit, dense: nn.Module, x: Tensor, turns: int) -> dict[str, float]:
    """Times of one batch, in turns, as ratios."""
    ideal = 1.0 / model(x).mean_cost
    runs = {"dense": lambda: dense(x), "compact": lambda: model.infer(x), "masked": lambda: model.infer(x, "masked")}
    times = interleaved(runs, turns=turns)
    found = {name: times["dense"].best / timing.best for name, timing in times.items() if name != "dense"}
    size = len(x)
    return {
        f"ideal_{size}": ideal,
        f"speedup_{size}": found["compact"],
        f"of_ideal_{size}": found["compact"] / ideal,
        f"masked_{size}": found["masked"],
    }
