"""The Triton kernel of Soft-NMS in the interpreter, against the plain-torch loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from softgate._triton import interpreting
from softgate.detection import batched_soft_nms, soft_nms, soft_nms_padded
from softgate.errors import StateError

pytestmark = [
    pytest.mark.skipif(not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, in lanes whose value is not taken
]
DEVICE = "cpu" if interpreting() else "cuda"
RULES = (
    {},
    {"method": "linear", "convention": "official"},
    {"method": "hard", "iou_threshold": 0.5},
    {"method": "hard", "iou_threshold": 0.0, "convention": "mmcv"},
    {"method": "linear", "convention": "effdet", "score_threshold": 0.3},
    {"sigma": 0.1, "convention": "mmcv_offset1", "max_output": 4},
    {"method": "hard", "convention": "torchvision"},
    {"score_threshold": 0.0},
)


def scene(*shape: int) -> tuple[Tensor, Tensor]:
    """Boxes around a few centres; some scores are equal."""
    centre = 40.0 * torch.randint(3, (*shape, 2)) + 6.0 * torch.randn(*shape, 2)
    half = 8.0 + 8.0 * torch.rand(*shape, 2)
    scores = torch.randint(1, 12, shape) / 12.0
    return torch.cat((centre - half, centre + half), -1).to(DEVICE), scores.to(DEVICE)


def same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_group_is_that_of_the_loop(rule: dict[str, Any]) -> None:
    boxes, scores = scene(21)
    scores[3] = torch.inf
    same(soft_nms(boxes, scores, backend="triton", **rule), soft_nms(boxes, scores, backend="reference", **rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_groups_are_those_of_the_loop(rule: dict[str, Any]) -> None:
    boxes, scores = scene(30)
    classes, images = torch.randint(4, (30,)).to(DEVICE), torch.randint(3, (30,)).to(DEVICE)
    found, expected = (
        batched_soft_nms(boxes, scores, classes, images, backend=b, **rule) for b in ("triton", "reference")
    )
    same(found, expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_padded_groups_share_boxes(rule: dict[str, Any]) -> None:
    boxes, scores = scene(2, 11)
    scores = torch.stack((scores, scores.flip(1), scores.square()), 1)
    valid = (torch.arange(11) < torch.tensor([[11], [7]])).to(DEVICE)
    found, expected = (soft_nms_padded(boxes, scores, valid, backend=b, **rule) for b in ("triton", "reference"))
    same(found, expected)


def test_boxes_with_nan_are_dropped_and_nothing_gives_nothing() -> None:
    boxes, scores = scene(9)
    boxes[2, 1] = torch.nan
    scores[5] = torch.nan
    same(*(soft_nms(boxes, scores, nan="drop", backend=b) for b in ("triton", "reference")))
    none = soft_nms(boxes[:0], scores[:0], backend="triton")
    assert none.keep.shape == none.scores.shape == (0,)
    padded = soft_nms_padded(boxes[None, :0], scores[None, :0], backend="triton")
    assert padded.keep.shape == (1, 0)


def test_scores_carry_gradients() -> None:
    boxes, scores = scene(12)
    boxes.requires_grad_()
    scores.requires_grad_()
    seed = torch.randn(12, device=DEVICE)
    gradients = []
    for backend in ("triton", "reference"):
        found = soft_nms(boxes, scores, backend=backend).scores
        gradients.append(torch.autograd.grad(found, (boxes, scores), seed[: len(found)]))
    same(*gradients)


def test_it_says_what_it_cannot_run() -> None:
    boxes, scores = scene(5)
    with pytest.raises(StateError, match="float64"):
        soft_nms(boxes.double(), scores.double(), backend="triton")
    with pytest.raises(StateError, match="function of tensors"):
        soft_nms(boxes, scores, method=lambda o: 1 - o, backend="triton")
    many = torch.zeros(1, 9000, 4), torch.zeros(1, 9000)
    with pytest.raises(StateError, match="8,192"):
        soft_nms_padded(*many, backend="triton")
