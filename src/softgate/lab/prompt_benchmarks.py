"""Prompts for a pretrained CLIP on the data sets of prompt learning: from base to new classes with 16 shots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softgate.errors import MissingExtraError
from softgate.integrations.clip_loading import load_clip
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.coop_splits import CoopSplit, load_coop_split
from softgate.lab.prompt_training import TestBatch, learn_prompts
from softgate.lab.training import TrainConfig

__all__ = ["FolderShots", "measure_benchmark"]

# channel means and standard deviations of CLIP's training images
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
_TESTED_AT_ONCE = 100


class FolderShots:
    """Base and new halves of a data set's classes; ``shots`` training images of every base class.

    Args:
        split: files and labels.
        seed: of shots and batches.
        shots: per class; fewer where a class has fewer.
        size: height and width of the images.
    """

    def __init__(self, split: CoopSplit, seed: int, shots: int, size: int) -> None:
        self.seed, self.size, half = seed, size, math.ceil(len(split.classes) / 2)
        self._names = {"base": split.classes[:half], "new": split.classes[half:]}
        self._tests = {
            "base": [(file, label) for file, label in split.test if label < half],
            "new": [(file, label - half) for file, label in split.test if label >= half],
        }
        self.train: list[tuple[Path, int]] = []
        for label in range(half):
            files = [file for file, own in split.train if own == label]
            order = torch.randperm(len(files), generator=seeds.generator(seed, "shots", label))
            self.train += [(files[place], label) for place in order[:shots].tolist()]

    def names(self, part: str) -> Sequence[str]:
        """Class names of ``"base"`` or ``"new"``."""
        return self._names[part]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch ``step`` of shuffled epochs: random crops, half of them mirrored."""
        epoch, place = divmod(step, self.batches(size))
        order = torch.randperm(len(self.train), generator=seeds.generator(self.seed, "epoch", epoch)).tolist()
        rows = [self.train[row] for row in order[place * size : (place + 1) * size]]
        generator = seeds.generator(self.seed, "crops", step)
        images = [read_image(file, self.size, generator) for file, _ in rows]
        return torch.stack(images), torch.tensor([label for _, label in rows])

    def batches(self, size: int) -> int:
        """Batches of ``size`` in an epoch."""
        return math.ceil(len(self.train) / size)

    def test(self, part: str) -> Iterator[TestBatch]:
        """Test images of a part, a hundred at a time."""
        tests = self._tests[part]
        for start in range(0, len(tests), _TESTED_AT_ONCE):
            rows = tests[start : start + _TESTED_AT_ONCE]
            images = torch.stack([read_image(file, self.size) for file, _ in rows])
            yield images, torch.tensor([label for _, label in rows]), None


def read_image(file: Path, size: int, generator: torch.Generator | None = None) -> Tensor:
    """(3, ``size``, ``size``) as CLIP expects it: the middle square, or with a generator a random crop and flip.

    A crop holds 8 to 100 % of the area with sides in the ratio 3/4 to 4/3.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data", "reading images") from error
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    mirrored = False
    if generator is not None:
        area, ratio, x, y, mirror = torch.rand(5, generator=generator).tolist()
        surface, aspect = (0.08 + 0.92 * area) * width * height, (3 / 4) * (16 / 9) ** ratio
        wide, high = min(width, math.sqrt(surface * aspect)), min(height, math.sqrt(surface / aspect))
        left, top = x * (width - wide), y * (height - high)
        box, mirrored = (left, top, left + wide, top + high), mirror < 0.5
    scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
    return (pixels.flip(-1) if mirrored else pixels).float().div(255.0).sub(_MEAN).div(_STD)


def measure_benchmark(run: CellRun) -> dict[str, Any]:
    """Learn prompts for ``clip`` on ``dataset`` and test them on its base and new classes.

    The configuration holds ``clip`` (a folder or a name on the hub), ``dataset`` (one of
    :data:`softgate.lab.data.coop_splits.COOP_DATASETS`), ``options`` of the mixture with its ``templates``, ``shots``,
    ``epochs``, ``batch``, ``lr`` and ``warmup`` (epochs).

    Returns:
        What :func:`softgate.lab.prompt_training.learn_prompts` returns.
    """
    config = run.config
    split = load_coop_split(config["dataset"])
    seeds.seed_everything(seeds.derive(run.seed, "prompts"))
    clip, tokenizer = load_clip(config["clip"])
    clip.to(run.device)
    shots = FolderShots(split, run.seed, config["shots"], clip.config.vision_config.image_size)
    per_epoch = shots.batches(config["batch"])
    training = TrainConfig(
        steps=config["epochs"] * per_epoch,
        lr=config["lr"],
        warmup=config["warmup"] * per_epoch,
        min_lr_ratio=0.0,
        clip=1.0,
        precision="bf16" if run.device == "cuda" else "fp32",
    )
    return learn_prompts(
        run, clip, tokenizer, shots, config["options"], training, batch=config["batch"], weight_decay=5e-4
    )
