"""Training a network that restores images, and the plain U-Net that MAXIM is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from softgate.errors import check_choice
from softgate.lab.cell import CellRun
from softgate.lab.image_metrics import psnr, ssim
from softgate.lab.tasks.restoration import RestorationTask
from softgate.lab.training import TrainConfig, fit
from softgate.losses import MaximLoss
from softgate.models import MAXIM, restore

__all__ = ["PlainUNet", "make_restorer", "train_restorer"]


class PlainUNet(nn.Module):
    """Two 3×3 convolutions with ReLU at every level, pooling between levels, and the image added to the result.

    Args:
        base: channels of the first level; they double at the second, and the bottom has those of the last level.
        depth: levels above the bottom.

    Shapes: (B, 3, H, W), H and W multiples of ``size_multiple`` -> the same.
    """

    def __init__(self, base: int = 19, depth: int = 2) -> None:
        super().__init__()
        self.size_multiple = 2**depth
        widths = [base * 2**level for level in range(depth)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        self.bottom = _double(widths[-1], widths[-1])
        below = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, w, 2, 2) for b, w in zip(below, widths, strict=True))
        self.merge = nn.ModuleList(_double(2 * w, w) for w in widths)
        self.head = nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """The restored images."""
        x, kept = images, []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(kept), strict=True):
            x = merge(torch.cat((up(x), skip), 1))
        return images + self.head(x)


def _double(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
    )


def make_restorer(config: Mapping[str, Any]) -> nn.Module:
    """The network that ``config`` describes.

    Args:
        config: ``network`` (``"maxim"`` or ``"unet"``) and its arguments as ``options``.
    """
    check_choice("network", config["network"], ("maxim", "unet"))
    return MAXIM(**config["options"]) if config["network"] == "maxim" else PlainUNet(**config["options"])


def train_restorer(run: CellRun, model: nn.Module, task: RestorationTask) -> dict[str, Any]:
    """Train ``model`` on ``task`` as ``run.config`` says, with AdamW and a rate that rises and then falls.

    Args:
        run: its ``config`` holds ``steps``, ``batch`` and ``lr``, and optionally ``precision``.
        model: a network (B, 3, H, W) -> the same.
        task: degraded and clean images.

    Returns:
        ``psnr`` and ``ssim`` of the test images, ``input_psnr`` of the degraded ones, the curve ``curve_psnr`` over
        ``step``, ``first_loss`` and ``last_loss`` (means of a tenth of the updates), ``parameters`` and ``mflops``, the
        operations of one image.
    """
    config, loss_of = run.config, MaximLoss()
    deep = isinstance(model, MAXIM)

    def step_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(model(batch[0], return_all=True) if deep else model(batch[0]), batch[1])

    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        warmup=math.ceil(0.3 * config["steps"]),
        min_lr_ratio=0.0,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        eval_every=max(1, config["steps"] // 5),
        precision=config.get("precision", "fp32"),
    )
    curves = fit(
        model,
        step_loss,
        training,
        run=run,
        batches=lambda step: task.batch(step, config["batch"]),
        evaluate=lambda model: {"psnr": test_figures(model, task)["psnr"]},
    )
    model.eval()
    tenth = max(1, config["steps"] // 10)
    return {
        **test_figures(model, task),
        "step": curves["eval_step"],
        "curve_psnr": curves["psnr"],
        "first_loss": sum(curves["loss"][:tenth]) / tenth,
        "last_loss": sum(curves["loss"][-tenth:]) / tenth,
        **size_figures(model, task.batch(0, 1)[0]),
    }


@torch.no_grad()
def test_figures(model: Any, task: RestorationTask) -> dict[str, float]:
    """Means over all test images, in decibels and as similarity."""
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "input_psnr": []}
    for degraded, clean in task.test():
        restored = restore(getattr(model, "module", model), degraded.to(device)).float().cpu()
        found["psnr"].append(psnr(restored, clean))
        found["ssim"].append(ssim(restored, clean))
        found["input_psnr"].append(psnr(degraded, clean))
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


@torch.no_grad()
def size_figures(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Number of parameters, and millions of operations (two for each multiplication and addition) of one image."""
    with FlopCounterMode(display=False) as counter:
        model(image.to(next(model.parameters()).device))
    parameters = float(sum(p.numel() for p in model.parameters()))
    return {"parameters": parameters, "mflops": counter.get_total_flops() / 1e6}
