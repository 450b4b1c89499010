"""A small one-stage detector of one kind of object, and how it is trained on scenes of digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data import DetectionScenes, crowded_digits
from softgate.lab.training import TrainConfig, fit

__all__ = ["DigitDetector", "detect", "train_detector"]

STRIDE = 4
#: A cell finds an object if it is nearer to its centre than this share of its sides.
_NEAR = 0.3
_FOCAL_WEIGHT, _FOCAL_POWER = 0.25, 2.0
#: Raw detections below it are not looked at.
LOWEST_SCORE = 0.02
#: Scenes that the training batches are drawn from.
_SCENES = 2000


class DigitDetector(nn.Module):
    """Convolutions with stride 4; each cell predicts a score and its distances to the four sides of a box.

    Shapes: images (B, 1, H, W) -> logits (B, H/4, W/4) and corners (B, H/4, W/4, 4) in pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (1, 16, 32, 48, 48, 48, 48), (2, 1, 2, 1, 1, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[i + 1])]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 5, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.01)
        # at first one cell in a hundred finds something, two strides from its centre to each side
        self.head.bias = nn.Parameter(torch.tensor([-math.log(99.0), *[math.log(2.0)] * 4]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of all cells."""
        found = self.head(self.body(images)).permute(0, 2, 3, 1)
        distance = STRIDE * found[..., 1:].clamp(max=6.0).exp()
        centre = cell_centres(found.shape[1], found.shape[2], found.device)
        return found[..., 0], torch.cat((centre - distance[..., :2], centre + distance[..., 2:]), -1)


def cell_centres(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows, columns, 2), x and y in pixels."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return STRIDE * (torch.stack((x, y), -1) + 0.5)


def assign(boxes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Box of the nearest object of every cell (…, 4), distances in sides of its box, and whether it is near enough."""
    middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    away = ((centres[..., None, :] - middle) / side).abs().amax(-1)
    nearest = away.argmin(-1)
    return boxes[nearest], away.amin(-1) < _NEAR


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """One minus the generalised overlap of corners (…, 4)."""
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    areas = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    union = sum(areas, start=-common)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return 1.0 - common / union + (hull - union) / hull


def detection_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Focal loss of the scores and GIoU loss of the boxes, both summed and divided by the number of cells that find."""
    images, target, near = batch
    logits, boxes = model(images)
    positives = near.sum().clamp(min=1)
    p = logits.sigmoid()
    wrong = torch.where(near, 1.0 - p, p)
    weight = torch.where(near, _FOCAL_WEIGHT, 1.0 - _FOCAL_WEIGHT) * wrong**_FOCAL_POWER
    entropy = F.binary_cross_entropy_with_logits(logits, near.to(logits.dtype), reduction="none")
    return ((weight * entropy).sum() + giou_loss(boxes[near], target[near]).sum()) / positives


class _Batches:
    """Batches of training scenes with the targets of all cells, through shuffled epochs."""

    def __init__(self, scenes: DetectionScenes, seed: int, size: int) -> None:
        self.scenes, self.seed, self.size = scenes, seed, size
        side = scenes.images.shape[-1] // STRIDE
        centres = cell_centres(side, side, scenes.images.device)
        assigned = [assign(boxes, centres) for boxes in scenes.boxes]
        self.targets = torch.stack([target for target, _ in assigned])
        self.near = torch.stack([near for _, near in assigned])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, place = divmod(step, len(self.scenes) // self.size)
        order = torch.randperm(len(self.scenes), generator=seeds.generator(self.seed, "detector-epoch", epoch))
        rows = order[place * self.size : (place + 1) * self.size]
        return self.scenes.images[rows], self.targets[rows], self.near[rows]


def train_detector(run: CellRun) -> tuple[DigitDetector, dict[str, list[float]]]:
    """Train a detector as ``run.config`` says: ``steps``, ``batch``, ``lr`` and optionally ``scenes``."""
    config = run.config
    seeds.seed_everything(seeds.derive(run.seed, "detector"))
    model = DigitDetector()
    scenes = crowded_digits("train", config.get("scenes", _SCENES), run.seed, download=run.download)
    training = TrainConfig(
        steps=config["steps"], lr=config["lr"], warmup=math.ceil(0.3 * config["steps"]), min_lr_ratio=0.0,
        betas=(0.9, 0.999), weight_decay=1e-2, clip=None,
    )  # fmt: skip
    curves = fit(model, detection_loss, training, run=run, batches=_Batches(scenes, run.seed, config["batch"]))
    return model.eval(), curves


@torch.no_grad()
def detect(model: nn.Module, images: Tensor, *, chunk: int = 50) -> list[tuple[Tensor, Tensor]]:
    """Raw detections of each image: boxes (K, 4) and scores (K,) of all cells above :data:`LOWEST_SCORE`."""
    found: list[tuple[Tensor, Tensor]] = []
    device = next(model.parameters()).device
    for part in images.split(chunk):
        logits, boxes = model(part.to(device))
        found += [_above(s, b) for s, b in zip(logits.sigmoid().cpu(), boxes.cpu(), strict=True)]
    return found


def _above(scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    chosen = scores > LOWEST_SCORE
    return boxes[chosen], scores[chosen]
