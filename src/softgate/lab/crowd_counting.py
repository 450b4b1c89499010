"""Counting crowds with one encoder and several ways to merge what it sees at three scales."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softgate.errors import check_choice
from softgate.lab.cell import CellRun
from softgate.lab.tasks.crowd_counting import CrowdTask
from softgate.lab.training import TrainConfig, fit
from softgate.losses import grid_count_error
from softgate.models import HMoDE, VGGPyramid
from softgate.models._density_experts import DensityExperts, density_head, init_normal, padded
from softgate.models.hmode import make_backbone, to_image
from softgate.routing import MixtureOutput, PixelwiseGate, pixelwise_mixture

__all__ = ["MERGES", "Merged", "make_counter", "train_counter"]

#: Ways to merge: the finest map alone, features concatenated, maps averaged, one gate over three maps, the hierarchy.
MERGES = ("single", "concat", "average", "flat_gate", "hmode")
_COARSEST = 16
#: Widths of a small encoder's blocks, as multiples of the first.
_SMALL = (1, 1, 2, 3, 4)


class Counter(Protocol):
    """A network that predicts density maps, the last of them final."""

    def loss(self, output: Any, density: Tensor) -> Tensor:
        """Loss of what the network returned, for the true density."""

    def count(self, output: Any) -> Tensor:
        """Number of persons in each image."""


class Merged(nn.Module):
    """The encoder, decoder and heads of HMoDE with a simpler merge, for comparison.

    Every map is trained with squared errors summed over pixels, the final one with weight 4, as in HMoDE.

    Args:
        merge: one of :data:`MERGES` but ``"hmode"``.
        backbone: as of :class:`softgate.models.HMoDE`, coarsest stride 16.
        channels: of its last three feature maps.
        head_width: hidden channels of the heads.
        density_scale: the maps predict density times this number.
        init_std: as of :class:`softgate.models.HMoDE`.

    Shapes: images (B, channels, H, W) -> maps (B, 1, H, W), the last one final.
    """

    def __init__(
        self,
        merge: str,
        backbone: nn.Module,
        channels: tuple[int, ...],
        head_width: int,
        density_scale: float,
        init_std: float | None,
    ) -> None:
        super().__init__()
        check_choice("merge", merge, MERGES[:-1])
        self.merge, self.density_scale = merge, density_scale
        self.experts = DensityExperts(backbone, channels, head_width)
        if merge == "concat":
            self.head = density_head(sum(self.experts.widths), head_width)
        if merge == "flat_gate":
            self.gate = PixelwiseGate(channels[-1], 3, hidden=(max(1, channels[-1] // 2),))
        if init_std is not None:
            for name, part in (*self.experts.named_children(), *self.named_children()):
                if name not in ("backbone", "experts"):
                    init_normal(part, init_std)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """All maps of ``images`` that are trained."""
        found = self.experts(padded(images, _COARSEST))
        size = found.maps[0].shape[-2:]
        fine = [nn.functional.interpolate(m, size, mode="nearest-exact") for m in found.maps]
        if self.merge == "single":
            maps = [fine[0]]
        elif self.merge == "concat":
            features = [nn.functional.interpolate(f, size, mode="nearest-exact") for f in found.features]
            maps = [self.head(torch.cat(features, 1))]
        elif self.merge == "average":
            maps = [*fine, torch.cat(fine, 1).mean(1, keepdim=True)]
        else:
            maps = [*fine, pixelwise_mixture(torch.cat(fine, 1), self.gate(found.coarse)[:, 0])]
        return tuple(to_image(m, images, _COARSEST) for m in maps)

    def loss(self, output: tuple[Tensor, ...], density: Tensor) -> Tensor:
        """Squared errors of all maps, divided by the batch."""
        errors = [(m - self.density_scale * density).square().sum() for m in output]
        return (torch.stack(errors).sum() + 3.0 * errors[-1]) / len(density)

    def count(self, output: tuple[Tensor, ...]) -> Tensor:
        """Number of persons in each image."""
        return output[-1].float().sum((1, 2, 3)) / self.density_scale


class _WithRelativeLoss(HMoDE):
    """HMoDE whose loss has the relative term with a given weight."""

    relative = 0.0

    def loss(self, output: MixtureOutput, density: Tensor, **weights: Any) -> Tensor:
        return super().loss(output, density, **{"relative": self.relative, **weights})


def make_counter(config: Any, channels: int) -> nn.Module:
    """The network that ``config`` describes.

    Args:
        config: ``merge`` (one of :data:`MERGES`), ``width`` (channels of a small encoder's first block, None for
            VGG-16 with ImageNet weights), ``head_width``, ``density_scale``, and for HMoDE ``relative`` (weight of the
            relative counting loss).
        channels: of the images.
    """
    width = config["width"]
    options = {
        "head_width": config["head_width"],
        "density_scale": config["density_scale"],
        "init_std": 0.01 if width is None else None,
    }
    if width is None:
        backbone = make_backbone("vgg16_bn", pretrained=True)
        widths: tuple[int, ...] = (256, 512, 512)
    else:
        backbone = VGGPyramid(channels, [width * factor for factor in _SMALL], [1] * len(_SMALL))
        widths = tuple(backbone.widths[-3:])
    if config["merge"] != "hmode":
        return Merged(config["merge"], backbone, widths, **options)
    model = _WithRelativeLoss(backbone, **options)
    model.relative = config.get("relative", 0.0)
    return model


def train_counter(run: CellRun, model: nn.Module, task: CrowdTask) -> dict[str, Any]:
    """Train ``model`` on ``task`` as ``run.config`` says, with Adam and a rate that rises and then falls.

    Args:
        run: its ``config`` holds ``steps``, ``batch`` and ``lr``, and optionally ``schedule`` and ``precision``.
        model: a counter, see :func:`make_counter`.
        task: images and densities.

    Returns:
        ``mae``, ``rmse``, ``game2`` and ``correlation`` of the counts of test images, the curve ``curve_mae`` over
        ``step``, ``first_loss`` and ``last_loss`` (means of a tenth of the updates), ``parameters``, and for HMoDE the
        figures of its gates.
    """
    config = run.config
    schedule = config.get("schedule", "one_cycle")
    one_cycle = schedule == "one_cycle"

    def step_loss(model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(batch[0])
        figures = {"importance": output.importance.detach()} if isinstance(output, MixtureOutput) else {}
        return _unwrapped(model).loss(output, batch[1]), figures

    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        warmup=math.ceil(0.3 * config["steps"]) if one_cycle else 0,
        schedule="cosine" if one_cycle else schedule,
        min_lr_ratio=0.0,
        betas=(0.9, 0.999),
        clip=None,
        eval_every=max(1, config["steps"] // 4),
        precision=config.get("precision", "fp32"),
    )
    curves = fit(
        model,
        step_loss,
        training,
        run=run,
        batches=lambda step: task.batch(step, config["batch"]),
        evaluate=lambda model: {"mae": test_figures(model, task)["mae"]},
    )
    model.eval()
    tenth = max(1, config["steps"] // 10)
    figures = {
        **test_figures(model, task),
        "step": curves["eval_step"],
        "curve_mae": curves["mae"],
        "first_loss": _mean(curves["loss"][:tenth]),
        "last_loss": _mean(curves["loss"][-tenth:]),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    if "importance" in curves:
        figures |= {
            "first_importance": curves["importance"][0],
            "last_importance": _mean(curves["importance"][-tenth:]),
        }
    return figures


@torch.no_grad()
def test_figures(model: nn.Module, task: CrowdTask) -> dict[str, float]:
    """Errors of the counts of all test images, in persons, and how HMoDE's gates share them out."""
    device, counter = next(model.parameters()).device, _unwrapped(model)
    found, true, cells = [], [], []
    gates: list[tuple[float, Tensor]] = []
    for images, density in task.test():
        output = model(images.to(device))
        found.append(counter.count(output).cpu())
        true.append(density.sum((1, 2, 3)))
        final = (output.final if isinstance(output, MixtureOutput) else output[-1]).float().cpu()
        cells.append(grid_count_error(final / counter.density_scale, density, level=2))
        if isinstance(output, MixtureOutput):
            off = max(float((w.sum(dim) - 1).abs().max()) for w, dim in ((output.pair_weights, 2), (output.weights, 1)))
            gates.append((off, output.weights.float().mean((2, 3)).cpu()))
    counts, truth = torch.cat(found), torch.cat(true)
    error = counts - truth
    figures = {
        "mae": float(error.abs().mean()),
        "rmse": float(error.square().mean().sqrt()),
        "game2": float(torch.cat(cells).mean()),
        "correlation": _correlation(counts, truth),
    }
    if gates:
        shares = torch.cat([share for _, share in gates]).mean(0)
        figures["weights_off"] = max(off for off, _ in gates)
        figures |= {f"share_pair{place + 1}": float(share) for place, share in enumerate(shares)}
    return figures


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; 0 where one side does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0.0 else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _unwrapped(model: Any) -> Any:
    """The model inside the wrapper of distributed training, whose parameters are the same tensors."""
    return getattr(model, "module", model)
