"""Training an image classifier in a cell: loss, accuracy curve, largest gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from softgate.lab.cell import CellRun
from softgate.lab.gradient_norm import GradientNorm
from softgate.lab.tasks.image_patches import ImageClassification, accuracy
from softgate.lab.training import TrainConfig, fit

__all__ = ["train_classifier"]


class _Resized(nn.Module):
    """The model on images resized to the side it was made for."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear")
        logits: Tensor = self.model(images)
        return logits


def train_classifier(
    run: CellRun,
    model: nn.Module,
    task: ImageClassification,
    *,
    image_size: int | None = None,
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> dict[str, Any]:
    """Train ``model`` on ``task`` as ``run.config`` says.

    Args:
        run: its ``config`` holds ``steps``, ``batch``, ``lr``, ``warmup`` and ``tested`` (test images looked at, None
            for all), and optionally ``weight_decay``, ``smoothing`` (of labels), ``precision``.
        model: images -> logits.
        task: images and labels.
        image_size: side to resize the images to; their own if None.
        loss: called like ``F.cross_entropy``.

    Returns:
        ``accuracy`` on test images, its curve ``curve_accuracy`` over ``step``, ``train_loss`` (mean of the last
        twentieth), ``max_gradient_norm`` before clipping, ``parameters``.
    """
    config = run.config
    resized, watch = _Resized(model, image_size or task.size), GradientNorm(model)
    images, labels = task.test(config["tested"])

    def step_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        watch.next()
        return loss(model(batch[0]), batch[1], label_smoothing=config.get("smoothing", 0.0))

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        return {"accuracy": accuracy(model, images.to(device), labels.to(device), chunk=250)}

    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        warmup=config["warmup"],
        weight_decay=config.get("weight_decay", 0.0),
        eval_every=max(1, config["steps"] // 10),
        precision=config.get("precision", "fp32"),
    )
    curves = fit(
        resized,
        step_loss,
        training,
        run=run,
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        evaluate=evaluate,
        state={"gradient_norm": watch},
    )
    watch.next()
    last = curves["loss"][-max(1, config["steps"] // 20) :]
    return {
        "accuracy": curves["accuracy"][-1],
        "curve_accuracy": curves["accuracy"],
        "step": curves["eval_step"],
        "train_loss": sum(last) / len(last),
        "max_gradient_norm": watch.largest,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
