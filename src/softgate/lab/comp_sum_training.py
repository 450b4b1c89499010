"""Training classifiers under comp-sum losses: tables with wrong labels or many classes, and images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.image_training import train_classifier
from softgate.lab.tasks.image_patches import ImageClassification
from softgate.lab.tasks.noisy_labels import digits, gaussian_classes, with_label_noise
from softgate.lab.tasks.split import Split
from softgate.lab.training import TrainConfig, fit
from softgate.losses import comp_sum_loss
from softgate.models import MLP, ResNet, ResNetConfig

__all__ = ["measure_images", "measure_table"]

_TABLES: dict[str, Callable[[int], Split]] = {"digits": digits, "gaussian-classes": gaussian_classes}


def measure_table(run: CellRun) -> dict[str, Any]:
    """Train an MLP on a small table under the comp-sum loss of ``run.config["tau"]``.

    The configuration holds ``table`` (``"digits"`` or ``"gaussian-classes"``), ``tau``, ``noise`` (share of redrawn
    training labels), ``hidden`` (one width), ``epochs``, ``batch``, ``lr``, and ``momentum`` where SGD (with Nesterov's
    momentum) takes the place of Adam.

    Returns:
        ``accuracy`` on test rows, its best value and curve over ``epoch``; ``train_accuracy`` against the right labels
        and ``fitted_noise``, the share of wrongly labelled training rows whose wrong label was learned (if any).
    """
    config = run.config
    check_choice("table", config["table"], tuple(_TABLES))
    clean = _TABLES[config["table"]](run.seed)
    inputs, labels = with_label_noise(clean, config["noise"], run.seed).train
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = MLP((inputs.shape[1], config["hidden"], int(labels.max()) + 1))
    size = config["batch"]
    per_epoch = len(labels) // size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(labels), generator=seeds.generator(run.seed, "order", epoch))
        rows = order[place * size : (place + 1) * size]
        return inputs[rows], labels[rows]

    steps = per_epoch * config["epochs"]
    curves = fit(
        model,
        lambda net, pair: comp_sum_loss(net(pair[0]), pair[1], tau=config["tau"]),
        TrainConfig(steps=steps, lr=config["lr"], schedule="constant", clip=None, betas=(0.9, 0.999),
                    eval_every=max(per_epoch, steps // 20)),
        batches=batch,
        run=run,
        optimizer=None if "momentum" not in config else partial(
            torch.optim.SGD, lr=config["lr"], momentum=config["momentum"], nesterov=True
        ),
        evaluate=lambda net: _table_figures(net, clean.train, labels, clean.test),
    )  # fmt: skip
    return {
        **{name: curves[name][-1] for name in ("accuracy", "train_accuracy", "fitted_noise")},
        "best_accuracy": max(curves["accuracy"]),
        "curve_accuracy": curves["accuracy"],
        "epoch": [step / per_epoch for step in curves["eval_step"]],
    }


def _table_figures(
    model: nn.Module, train: tuple[Tensor, Tensor], given: Tensor, test: tuple[Tensor, Tensor]
) -> dict[str, float]:
    device = next(model.parameters()).device
    learned = model(train[0].to(device)).argmax(1).cpu()
    wrong = given != train[1]
    return {
        "accuracy": float((model(test[0].to(device)).argmax(1).cpu() == test[1]).float().mean()),
        "train_accuracy": float((learned == train[1]).float().mean()),
        "fitted_noise": float((learned == given)[wrong].float().mean()) if bool(wrong.any()) else 0.0,
    }


def measure_images(run: CellRun) -> dict[str, Any]:
    """Train a small residual network on images under the comp-sum loss of ``run.config["tau"]``.

    The configuration holds ``dataset``, ``tau``, ``stages`` of the network and what
    :func:`softgate.lab.image_training.train_classifier` reads.
    """
    task = ImageClassification(run.config["dataset"], run.seed, download=run.download)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    stages = tuple((width, blocks) for width, blocks in run.config["stages"])
    model = ResNet(ResNetConfig(channels=task.channels, num_classes=task.classes, stages=stages,
                                stem_stride=run.config.get("stem_stride", 1)))  # fmt: skip
    return train_classifier(run, model, task, loss=partial(comp_sum_loss, tau=run.config["tau"]))
