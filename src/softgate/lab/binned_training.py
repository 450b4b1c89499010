"""Heads for ordered bins, trained on distributions whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.binned_densities import BinnedDensities
from softgate.lab.training import TrainConfig, fit
from softgate.losses import FourierHead, pmf_smoothness
from softgate.models import MLP

__all__ = ["GaussianMixtureHead", "measure_binned_density"]

HEADS = ("linear", "fourier", "gmm")
_WIDTH = 32


class GaussianMixtureHead(nn.Module):
    """Log-probabilities of bins of [-1, 1] from a mixture of Gaussians with equal weights: the paper's baseline.

    Args:
        in_features: size of the hidden states.
        num_bins: m.
        components: number of Gaussians; their means are ``tanh`` of a linear map, their widths learnt constants that
            start at the width of a bin.
    """

    centres: Tensor

    def __init__(self, in_features: int, num_bins: int, components: int = 2) -> None:
        super().__init__()
        self.means = nn.Linear(in_features, components)
        self.widths = nn.Parameter(torch.full((components,), math.log(math.expm1(2.0 / num_bins))))
        self.register_buffer("centres", (2 * torch.arange(num_bins) + 1 - num_bins) / num_bins, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``log(density + 1e-5)`` (…, m); not normalised over the bins."""
        scale = F.softplus(self.widths)[:, None]
        offset = (self.centres - torch.tanh(self.means(hidden))[..., None]) / scale
        density = torch.exp(-0.5 * offset.square()) / (scale * math.sqrt(2.0 * math.pi))
        return (density.mean(-2) + 1e-5).log()


def _network(config: Mapping[str, Any], bins: int) -> tuple[nn.Module, nn.Module]:
    """2 - 64 - 32 - head, with ReLU; and the head."""
    kind = config["head"]
    check_choice("head", kind, HEADS)
    head: nn.Module = nn.Linear(_WIDTH, bins)
    if kind == "fourier":
        options = {name: config[name] for name in ("gamma", "init_scale") if name in config}
        head = FourierHead(_WIDTH, bins, config.get("frequencies", 12), **options)
    if kind == "gmm":
        head = GaussianMixtureHead(_WIDTH, bins)
    return nn.Sequential(MLP((2, 64, _WIDTH)), nn.ReLU(), head), head


def measure_binned_density(run: CellRun) -> dict[str, float | list[float]]:
    """Train one head by cross-entropy and compare its distributions with the true ones on the test rows.

    The configuration holds ``dataset``, ``head`` (``"linear"``, ``"fourier"``, ``"gmm"``), ``epochs``, ``batch``, and
    for the Fourier head ``frequencies``, ``gamma`` and ``init_scale``.

    Returns:
        ``kl``, the mean of KL(truth || prediction) in nats, ``smoothness``, the mean of :func:`pmf_smoothness`,
        ``mse`` of the expectation against the target; ``true_smoothness``; the curve ``curve_kl`` over ``epoch``; and
        ``truth`` and ``prediction`` of the first test row.
    """
    config = run.config
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    task = BinnedDensities(config["dataset"], run.seed)
    model, head = _network(config, task.bins)
    inputs, targets = (part.to(run.device) for part in task.test)
    truth = task.truth.to(run.device)

    def step_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(net(batch[0]), batch[1])
        return loss + head.regularization() if isinstance(head, FourierHead) and head.gamma else loss

    def evaluate(net: nn.Module) -> dict[str, float]:
        pmf = net(inputs).double().softmax(1)
        # as the authors measure it, with their floor
        divergence = (torch.special.xlogy(truth, truth) - truth * (pmf + 1e-10).log()).sum(1)
        expected = (pmf * torch.arange(task.bins, device=pmf.device)).sum(1) - targets
        return {
            "kl": float(divergence.mean()),
            "smoothness": float(pmf_smoothness(pmf).mean()),
            "mse": float((expected * (2.0 / task.bins)).square().mean()),
        }

    per_epoch = math.ceil(len(task.train[1]) / config["batch"])
    curves = fit(
        model,
        step_loss,
        TrainConfig(
            steps=config["epochs"] * per_epoch,
            lr=1e-3,
            schedule="constant",
            clip=None,
            eval_every=max(1, config["epochs"] // 20) * per_epoch,
        ),
        batches=lambda step: task.batch(step, config["batch"]),
        run=run,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        evaluate=evaluate,
    )
    with torch.no_grad():
        prediction = model.eval()(inputs[:1]).double().softmax(1)[0]
    return {
        **{name: curves[name][-1] for name in ("kl", "smoothness", "mse")},
        "true_smoothness": float(pmf_smoothness(truth).mean()),
        "curve_kl": curves["kl"],
        "epoch": [step / per_epoch for step in curves["eval_step"]],
        "truth": truth[0].tolist(),
        "prediction": prediction.tolist(),
    }
