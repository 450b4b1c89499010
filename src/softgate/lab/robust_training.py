"""Adversarial training of a small image classifier: three methods against the same attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice
from softgate.lab import data, seeds
from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig, fit
from softgate.losses import PGD, AdvCompSumLoss
from softgate.models import ResNet, ResNetConfig

__all__ = ["measure_robust"]

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


class _SmallNet(nn.Sequential):
    """Two strided convolutions and a hidden layer, no batch statistics: attacks and clean inputs see one network."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        left = (size + 3) // 4
        super().__init__(
            nn.Conv2d(channels, width, 5, 2, 2), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5, 2, 2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * left * left, 8 * width), nn.ReLU(), nn.Linear(8 * width, 10),
        )  # fmt: skip


def _plain(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return F.cross_entropy(model(x), y)


def _pgd_training(attack: PGD) -> Loss:
    """Cross-entropy at the point that PGD finds (Madry et al., arXiv 1706.06083)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        moved = attack(lambda z: F.cross_entropy(model(z), y, reduction="none"), x, generator)
        return F.cross_entropy(model(moved), y)

    return loss


def _trades(attack: PGD, beta: float) -> Loss:
    """Clean cross-entropy plus ``beta`` times the divergence under attack (Zhang et al., arXiv 1901.08573, eq. 5)."""

    def divergence(clean: Tensor, moved: Tensor) -> Tensor:
        log_p = clean.log_softmax(1)
        return F.kl_div(moved.log_softmax(1), log_p, reduction="none", log_target=True).sum(1)

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        logits = model(x)
        fixed = logits.detach()
        moved = attack(lambda z: divergence(fixed, model(z)), x, generator)
        return F.cross_entropy(logits, y) + beta * divergence(logits, model(moved)).mean()

    return loss


def _method(config: Any, attack: PGD) -> Loss:
    check_choice("method", config["method"], ("clean", "pgd", "trades", "adv-comp-sum"))
    if config["method"] == "pgd":
        return _pgd_training(attack)
    if config["method"] == "trades":
        return _trades(attack, config["beta"])
    if config["method"] == "adv-comp-sum":
        return AdvCompSumLoss(config["tau"], config["rho"], config["nu"], attack)
    return _plain


def measure_robust(run: CellRun) -> dict[str, Any]:
    """Train on images in [0, 1] by ``run.config["method"]`` and attack the result.

    The configuration holds ``method`` (``"clean"``, ``"pgd"``, ``"trades"`` with ``beta``, ``"adv-comp-sum"`` with
    ``tau``, ``rho`` and ``nu``), ``dataset``, ``eps``, ``attack_steps`` and ``step_size`` of training, ``ramp``
    (updates over which both lengths grow from 0: a network that knows nothing escapes attacks by ignoring its input),
    ``width`` or ``stages`` of the network, ``steps``, ``batch``, ``lr``, and ``tested`` and ``tested_steps`` of the
    final attack.

    Returns:
        ``accuracy`` of clean test images and ``robust_accuracy`` under PGD on the cross-entropy; ``train_loss``.
    """
    config, seed = run.config, run.seed
    load = {"mnist": data.mnist, "cifar10": data.cifar10}[config["dataset"]]
    train, test = (load(split, download=run.download) for split in ("train", "test"))
    seeds.seed_everything(seeds.derive(seed, "model"))
    channels, size = (1 if train.images.ndim == 3 else train.images.shape[1]), train.images.shape[-1]
    model: nn.Module = _SmallNet(channels, size, config.get("width", 8))
    if "stages" in config:
        stages = tuple((width, blocks) for width, blocks in config["stages"])
        model = ResNet(ResNetConfig(channels=channels, stages=stages))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(train), (config["batch"],), generator=seeds.generator(seed, "robust", step))
        return _pixels(train, rows), train.labels[rows], torch.full((config["batch"],), step)

    def step_loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, step = batch[0], batch[1], int(batch[2][0])
        share = min(1.0, step / max(config["ramp"], 1))
        attack = PGD(share * config["eps"], config["attack_steps"], share * config["step_size"])
        return _method(config, attack)(net, x, y, seeds.generator(seed, "attack", step, device=x.device.type))

    rows = torch.arange(config["tested"]) * len(test) // config["tested"]
    images, labels = _pixels(test, rows), test.labels[rows]
    strong = PGD(eps=config["eps"], steps=config["tested_steps"])
    training = TrainConfig(steps=config["steps"], lr=config["lr"], warmup=config["steps"] // 20)
    curves = fit(
        model, step_loss, training, batches=batch, run=run,
        evaluate=lambda net: _attacked(net, images, labels, strong, seed),
    )  # fmt: skip
    last = curves["loss"][-max(1, config["steps"] // 20) :]
    return {
        "accuracy": curves["accuracy"][-1],
        "robust_accuracy": curves["robust_accuracy"][-1],
        "train_loss": sum(last) / len(last),
        "step": curves["step"],
        "loss_curve": curves["loss"],
    }


def _pixels(images: data.ImageSet, rows: Tensor) -> Tensor:
    chosen = images.images[rows].float() / 255.0
    return chosen.unsqueeze(1) if chosen.ndim == 3 else chosen


def _attacked(model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, seed: int) -> dict[str, float]:
    device = next(model.parameters()).device
    stream = seeds.generator(seed, "final-attack", device=device.type)
    clean = robust = 0
    for x, y in zip(images.to(device).split(250), labels.to(device).split(250), strict=True):
        clean += int((model(x).argmax(1) == y).sum())
        moved = attack(lambda z, y=y: F.cross_entropy(model(z), y, reduction="none"), x, stream)  # type: ignore[misc]
        robust += int((model(moved).argmax(1) == y).sum())
    return {"accuracy": clean / len(labels), "robust_accuracy": robust / len(labels)}
