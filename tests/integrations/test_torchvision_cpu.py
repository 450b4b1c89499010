"""The two operators that the import of a CUDA torchvision misses beside a CPU torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softgate.integrations import torchvision_cpu
from softgate.integrations.torchvision_cpu import _nms


def _nms_by_hand(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    def area(b: list[float]) -> float:
        return (b[2] - b[0]) * (b[3] - b[1])

    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        return width * height / (area(a) + area(b) - width * height)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms_is_greedy_suppression(threshold: float) -> None:
    corner, size = torch.rand(30, 2) * 4, torch.rand(30, 2) + 0.5
    boxes, scores = torch.cat([corner, corner + size], -1), torch.rand(30)
    expected = _nms_by_hand(boxes.tolist(), scores.tolist(), threshold)
    assert 1 < len(expected) < 30 or threshold == 0.9
    assert _nms(boxes, scores, threshold).tolist() == expected


def test_nms_of_no_boxes_is_empty() -> None:
    kept = _nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,) and kept.dtype is torch.int64


def test_nothing_is_done_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_cpu.importlib.util, "find_spec", lambda name: None)
    assert not torchvision_cpu.torchvision_needs_cuda()
    assert not torchvision_cpu.repair()


def test_nothing_is_done_beside_a_cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_cpu, "torchvision_needs_cuda", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not torchvision_cpu.repair()


@pytest.mark.skipif(
    torch.version.cuda is not None or not torchvision_cpu.torchvision_needs_cuda(),
    reason="only where torchvision is a CUDA build beside a CPU torch",
)
def test_torchvision_imports_after_the_repair_and_not_before() -> None:
    code = (
        "import importlib\n"
        "try: import torchvision\n"
        "except RuntimeError as error: print('before', 'nms' in str(error))\n"
        "from softgate.integrations.torchvision_cpu import repair\n"
        "print(repair(), repair())\n"
        "import torch, torchvision, torchvision.transforms, torchvision.models\n"
        "boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])\n"
        "print(torch.ops.torchvision.nms(boxes, torch.tensor([.1, .9, .5]), .5).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["before True", "True False", "[1, 2]"]
