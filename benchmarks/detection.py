"""Soft-NMS and hard NMS beside loops in numpy and torch, and torchvision's operator where it loads.

    python benchmarks/detection.py [--boxes 100 300 1000 4000] [--batch 32,80,100] [--seconds S] [--out DIR]
    python benchmarks/detection.py --device cuda [--groups 80,100 80,1000] [--seconds S] [--out DIR]

Crowds of twenty boxes around each object. One thread for single images; the batch (images, classes, boxes) also with
two. ``numpy loop`` and ``torch loop`` are the definition with vectorised overlaps, as published Python codes write it.
Figures go to DIR/benchmark-detection.json, those of a GPU, where torchvision's hard NMS of all classes is the peer and
``lockstep`` is the loop over picks in torch operations, to DIR/benchmark-detection-cuda.json.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.detection import batched_soft_nms, nms, soft_nms, soft_nms_padded
from softgate.lab.timing import interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
PER_OBJECT = 20
SIGMA, LOWEST, HARD = 0.5, 1e-3, 0.5


def crowd(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    objects = max(1, count // PER_OBJECT)
    centre = torch.rand(objects, 2, generator=generator) * torch.tensor([1280.0, 760.0])
    side = 30 + 100 * torch.rand(objects, 2, generator=generator)
    which = torch.arange(count) % objects
    shift = 0.12 * torch.randn(count, 4, generator=generator)
    middle, half = centre[which] + shift[:, :2] * side[which], side[which] * shift[:, 2:].exp() / 2
    return torch.cat((middle - half, middle + half), 1), torch.rand(count, generator=generator)


def numpy_overlap(box: Any, boxes: Any) -> Any:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.maximum(sides, 0).prod(1)
    return common / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)


def numpy_soft(boxes: Any, scores: Any) -> list[int]:
    scores, alive, keep = scores.copy(), np.arange(len(scores)), []
    while len(alive):
        pick = alive[scores[alive].argmax()]
        keep.append(int(pick))
        alive = alive[alive != pick]
        scores[alive] *= np.exp(-(numpy_overlap(boxes[pick], boxes[alive]) ** 2) / SIGMA)
        alive = alive[scores[alive] >= LOWEST]
    return keep


def numpy_hard(boxes: Any, scores: Any) -> list[int]:
    order, keep = scores.argsort()[::-1], []
    while len(order):
        keep.append(int(order[0]))
        order = order[1:][numpy_overlap(boxes[order[0]], boxes[order[1:]]) <= HARD]
    return keep


def torch_soft(boxes: Tensor, scores: Tensor) -> list[int]:
    index, keep = torch.arange(len(scores)), []
    while len(index):
        best = int(scores.argmax())
        keep.append(int(index[best]))
        box, rest = boxes[best], torch.arange(len(index)) != best
        boxes, scores, index = boxes[rest], scores[rest], index[rest]
        sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
        common = sides.prod(1)
        union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
        scores = scores * torch.exp(-(common / union).square() / SIGMA)
        high = scores >= LOWEST
        boxes, scores, index = boxes[high], scores[high], index[high]
    return keep


def torchvision_nms() -> Callable[..., Tensor] | None:
    """torchvision's own operator; None where its library does not load, as beside a CPU torch."""
    try:
        operator = importlib.import_module("torchvision").ops.nms
        operator(torch.zeros(1, 4), torch.zeros(1), HARD)
    except (ImportError, RuntimeError, OSError):
        return None
    return operator


def measure(count: int, seconds: float) -> dict[str, Any]:
    boxes, scores = crowd(count)
    arrays = boxes.numpy(), scores.numpy()
    runs: dict[str, Callable[[], object]] = {
        "gaussian": lambda: soft_nms(boxes, scores),
        "linear": lambda: soft_nms(boxes, scores, method="linear"),
        "hard": lambda: nms(boxes, scores, HARD),
        "numpy loop": lambda: numpy_soft(*arrays),
        "torch loop": lambda: torch_soft(boxes, scores),
        "numpy hard": lambda: numpy_hard(*arrays),
    }
    theirs = torchvision_nms()
    if theirs is not None:
        runs["torchvision hard"] = lambda: theirs(boxes, scores, HARD)
    assert soft_nms(boxes, scores).keep.tolist() == numpy_soft(*arrays)
    times = interleaved(runs, turns=5, seconds=seconds, most=200)
    return {
        "boxes": count,
        "kept": len(soft_nms(boxes, scores).keep),
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "best_ms": {name: 1e3 * timing.best for name, timing in times.items()},
    }


def measure_batch(images: int, classes: int, count: int, seconds: float) -> dict[str, Any]:
    boxes = torch.stack([crowd(count, seed)[0] for seed in range(images)])
    scores = torch.rand(images, classes, count, generator=torch.Generator().manual_seed(0))

    def on(threads: int) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(threads)
            return soft_nms_padded(boxes, scores)

        return run

    arrays = boxes.numpy(), scores.numpy()

    def loop() -> object:  # one class of every image: the rest takes as long
        return [numpy_soft(arrays[0][image], arrays[1][image, 0]) for image in range(images)]

    times = interleaved({"1": on(1), "2": on(2), "loop": loop}, turns=5, seconds=seconds, most=50)
    torch.set_num_threads(1)
    return {
        "images": images, "classes": classes, "boxes": count,
        "ms": {"one thread": 1e3 * times["1"].median, "two threads": 1e3 * times["2"].median,
               "numpy loop": 1e3 * times["loop"].median * classes},
    }  # fmt: skip


def measure_groups(classes: int, count: int, seconds: float, device: str) -> dict[str, Any]:
    """Classes of one image, on a GPU."""
    drawn = [crowd(count, seed) for seed in range(classes)]
    boxes, scores = (torch.stack(part).to(device) for part in zip(*drawn, strict=True))
    flat, ids = boxes.flatten(0, 1), torch.arange(classes, device=device).repeat_interleave(count)
    ranks = scores.flatten()
    runs: dict[str, Callable[[], object]] = {
        "padded": lambda: soft_nms_padded(boxes, scores, validate=False),
        "batched": lambda: batched_soft_nms(flat, ranks, ids, validate=False),
        "lockstep": lambda: soft_nms_padded(boxes, scores, validate=False, backend="reference"),
    }
    if torchvision_nms() is not None:
        theirs = importlib.import_module("torchvision").ops.batched_nms
        runs["torchvision hard"] = lambda: theirs(flat, ranks, ids, HARD)
    found, exact = soft_nms_padded(boxes, scores), soft_nms_padded(boxes, scores, backend="reference")
    assert torch.equal(found.keep, exact.keep)
    times = interleaved(runs, turns=5, seconds=seconds, most=100, device=device)
    return {"classes": classes, "boxes": count, "ms": {name: 1e3 * timing.median for name, timing in times.items()}}


def measure_gpu(options: argparse.Namespace) -> None:
    sizes = [tuple(int(part) for part in group.split(",")) for group in options.groups]
    groups = [measure_groups(*size, options.seconds, options.device) for size in sizes]
    table("all classes of an image, ms (median)", ["classes", "boxes", *groups[0]["ms"]],
          [[f["classes"], f["boxes"], *f["ms"].values()] for f in groups])  # fmt: skip
    write_record(options.out / "benchmark-detection-cuda.json", {"groups": groups})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[100, 300, 1000, 4000])
    parser.add_argument("--batch", default="32,80,100")
    parser.add_argument("--groups", nargs="+", default=["80,100", "80,1000"], metavar="C,N", help="on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda":
        return measure_gpu(options)
    single = [measure(count, options.seconds) for count in options.boxes]
    images, classes, count = (int(part) for part in options.batch.split(","))
    batch = [measure_batch(images, classes, count, options.seconds)]
    table("one image, ms (median)", ["boxes", "kept", *single[0]["ms"]],
          [[f["boxes"], f["kept"], *f["ms"].values()] for f in single])  # fmt: skip
    table("batch, ms (median)", ["images", "classes", "boxes", *batch[0]["ms"]],
          [[f["images"], f["classes"], f["boxes"], *f["ms"].values()] for f in batch])  # fmt: skip
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-detection.json", {"single": single, "batch": batch})


if __name__ == "__main__":
    main()
