"""Suppress the boxes of a detector in a crowd, once by deleting and once by lowering scores, and let a loss see it.

    python examples/crowded_boxes.py [--objects 8] [--guesses 12] [--sigma 0.5]

Objects stand closely in a row; a detector makes several guesses for each. Hard NMS deletes neighbours, Soft-NMS keeps
them with lower scores. The last line moves the boxes a step along the gradient of their final scores.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from softgate.detection import coco_results, nms, soft_nms


def row_of_objects(count: int) -> Tensor:
    """Boxes of 20 × 40 pixels, each hidden by the next by more than half."""
    left = 9.0 * torch.arange(count)
    return torch.stack((left, torch.zeros(count), left + 20.0, torch.full((count,), 40.0)), 1)


def guesses(objects: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Boxes near the objects; the nearer, the higher the score."""
    truth = objects.repeat_interleave(each, 0)
    noise = torch.randn(truth.shape)
    return truth + noise, (1.0 - 0.2 * noise.abs().mean(1) - 0.1 * torch.rand(len(truth))).clamp(0.05, 1.0)


def found(boxes: Tensor, objects: Tensor) -> int:
    """Objects of which some box covers nearly all and little else."""
    low, high = torch.maximum(boxes[:, None, :2], objects[:, :2]), torch.minimum(boxes[:, None, 2:], objects[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area, areas = (objects[:, 2:] - objects[:, :2]).prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return int((common / (area + areas[:, None] - common) > 0.8).any(0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--guesses", type=int, default=12)
    parser.add_argument("--sigma", type=float, default=0.5)
    options = parser.parse_args()
    torch.manual_seed(0)
    objects = row_of_objects(options.objects)
    boxes, scores = guesses(objects, options.guesses)

    hard = nms(boxes, scores, 0.3)
    print(f"hard NMS at 0.3: {found(boxes[hard], objects)} of {len(objects)} objects among {len(hard)} boxes")
    keep, final = soft_nms(boxes, scores, sigma=options.sigma)
    best = keep[: 3 * len(objects)]
    print(f"Soft-NMS: {found(boxes[best], objects)} of {len(objects)} objects among the best {len(best)} boxes")

    line = coco_results([{"boxes": boxes[keep], "scores": final, "labels": torch.ones_like(keep)}], [1])[0]
    print(f"for COCO: score {line['score']:.3f}, box {[round(side, 1) for side in line['bbox']]}")

    moving = boxes.clone().requires_grad_()
    before = soft_nms(moving, scores, sigma=options.sigma).scores.sum()
    before.backward()
    after = soft_nms(boxes + 0.5 * moving.grad.sign(), scores, sigma=options.sigma).scores.sum()
    print(f"sum of final scores {float(before):.3f} -> {float(after):.3f} after a step along its gradient")


if __name__ == "__main__":
    main()
