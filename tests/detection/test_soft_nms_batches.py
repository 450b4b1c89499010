"""Many images and classes: the same as one after the other."""

import sys
from pathlib import Path

import pytest
import torch

from softgate import native
from softgate.detection import batched_soft_nms, soft_nms, soft_nms_padded

sys.path.append(str(Path(__file__).resolve().parent))
from box_cases import scene

BACKENDS = ("reference", *(("native",) if native.available() else ()))


def flat(count=150, seed=0):
    boxes, scores = scene(count, seed)
    generator = torch.Generator().manual_seed(seed)
    return boxes - 150, scores, *(torch.randint(3, (count,), generator=generator) for _ in range(2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_groups_do_not_see_each_other(method, backend):
    boxes, scores, classes, images = flat()
    keep, final = batched_soft_nms(boxes, scores, classes, images, method=method, backend=backend)
    assert bool((images[keep].diff() >= 0).all())
    for image in range(3):
        mine = images[keep] == image
        assert bool((final[mine].diff() <= 0).all())
        for label in range(3):
            rows = ((images == image) & (classes == label)).nonzero()[:, 0]
            alone = soft_nms(boxes[rows], scores[rows], method=method, backend=backend)
            chosen = mine & (classes[keep] == label)
            assert torch.equal(keep[chosen], rows[alone.keep])
            assert torch.equal(final[chosen], alone.scores)


def test_the_best_of_every_image():
    boxes, scores, classes, images = flat()
    keep, _ = batched_soft_nms(boxes, scores, classes, images)
    cut, _ = batched_soft_nms(boxes, scores, classes, images, max_per_image=7)
    for image in range(3):
        assert torch.equal(cut[images[cut] == image], keep[images[keep] == image][:7])
    apart = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    level = torch.tensor([0.5, 0.9, 0.5])
    ids = torch.zeros(3, dtype=torch.int64)
    assert batched_soft_nms(apart, level, ids, max_per_image=2).keep.tolist() == [1, 0]
    official = batched_soft_nms(apart, level, ids, max_per_image=2, convention="official")
    assert official.keep.tolist() == [1, 0, 2]  # ties at the cut stay


@pytest.mark.parametrize("backend", BACKENDS)
def test_class_agnostic_is_one_group_an_image(backend):
    boxes, scores, classes, images = flat(60)
    together = batched_soft_nms(boxes, scores, classes, images, class_agnostic=True, backend=backend)
    other = batched_soft_nms(boxes, scores, torch.zeros_like(classes), images, backend=backend)
    assert torch.equal(together.keep, other.keep)


def test_gradients_reach_boxes_of_groups_of_all_sizes():
    boxes, scores, classes, images = flat(60)
    classes = torch.where(classes == 0, 0, 7)  # groups of different sizes
    wide = boxes.double().requires_grad_()
    keep, final = batched_soft_nms(wide, scores.double(), classes, images)
    gradient = torch.autograd.grad(final.square().sum(), wide)[0]
    expected = torch.zeros_like(gradient)
    for pair in (images * 8 + classes).unique():
        rows = ((images * 8 + classes) == pair).nonzero()[:, 0]
        alone = boxes[rows].double().requires_grad_()
        found = soft_nms(alone, scores[rows].double())
        torch.testing.assert_close(found.scores, final[(images * 8 + classes)[keep] == pair])
        expected[rows] = torch.autograd.grad(found.scores.square().sum(), alone)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend):
    boxes = torch.stack([scene(20, seed)[0] for seed in range(3)])
    scores = torch.stack([torch.stack([scene(20, 10 * seed + label)[1] for label in range(2)]) for seed in range(3)])
    lengths = torch.tensor([20, 11, 0])
    valid = torch.arange(20) < lengths[:, None]
    boxes = torch.where(valid[..., None], boxes, float("nan"))
    found = soft_nms_padded(boxes, scores, valid, backend=backend)
    assert found.keep.shape == found.scores.shape == (3, 2, 20) and found.counts.shape == (3, 2)
    for image in range(3):
        for label in range(2):
            size, count = int(lengths[image]), int(found.counts[image, label])
            alone = soft_nms(boxes[image, :size], scores[image, label, :size], backend=backend)
            assert torch.equal(found.keep[image, label, :count], alone.keep)
            assert torch.equal(found.scores[image, label, :count], alone.scores)
            assert bool((found.keep[image, label, count:] == -1).all())
            assert bool((found.scores[image, label, count:] == 0).all())


def test_padding_with_nan_sends_no_nan_back():
    boxes, scores = scene(6)
    boxes[4:] = float("nan")
    boxes, scores = boxes[None].requires_grad_(), scores[None].requires_grad_()
    valid = torch.tensor([[True] * 4 + [False] * 2])
    soft_nms_padded(boxes, scores, valid).scores.sum().backward()
    assert not bool(boxes.grad.isnan().any()) and bool((boxes.grad[0, 4:] == 0).all())


def test_one_program_for_all_values():
    class Head(torch.nn.Module):
        def forward(self, boxes, scores):
            return tuple(soft_nms_padded(boxes, scores, max_output=5))

    def batch(seed):
        pairs = [scene(16, seed + i) for i in range(2)]
        return torch.stack([b for b, _ in pairs]), torch.stack([s for _, s in pairs])

    program = torch.export.export(Head(), batch(0)).module()
    for seed in (0, 5):
        for found, expected in zip(program(*batch(seed)), Head()(*batch(seed)), strict=True):
            torch.testing.assert_close(found, expected)
