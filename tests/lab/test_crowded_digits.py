"""Scenes of crowded digits, the detector that is trained on them, and its average precision."""

import math

import pytest
import torch

from softgate.detection import soft_nms
from softgate.errors import ArgumentValueError
from softgate.lab.crowded_detection import SUPPRESSIONS, suppressed
from softgate.lab.data import MissingDataError, crowded_digits
from softgate.lab.detection_metrics import coco_statistics
from softgate.lab.digit_detector import DigitDetector, assign, cell_centres, detect, detection_loss, giou_loss


def scenes(*args, **options):
    try:
        return crowded_digits(*args, **options)
    except MissingDataError as error:
        pytest.skip(str(error))


def test_scenes_are_those_of_the_seed_and_hold_clusters():
    found, again = scenes("test", 30, 1), scenes("test", 30, 1)
    assert torch.equal(found.images, again.images) and found.images.shape == (30, 1, 96, 96)
    counts = [len(boxes) for boxes in found.boxes]
    assert 6 < sum(counts) / 30 < 9 and max(counts) <= 12
    for boxes, labels in zip(found.boxes, found.labels, strict=True):
        assert len(boxes) == len(labels) and bool((boxes >= 0).all()) and bool((boxes <= 96).all())
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    other = scenes("val", 30, 1)
    assert not torch.equal(found.images, other.images)
    sparse = scenes("test", 30, 1, cluster=(1, 1))
    assert sum(map(len, sparse.boxes)) / 30 < 4.1


def test_ink_lies_in_the_boxes():
    found = scenes("test", 8, 2)
    for image, boxes in zip(found.images[:, 0], found.boxes, strict=True):
        outside = torch.ones(96, 96, dtype=torch.bool)
        for x1, y1, x2, y2 in boxes.int().tolist():
            assert float(image[y1:y2, x1:x2].max()) > 0.5
            outside[y1:y2, x1:x2] = False
        assert float(image[outside].abs().max()) < 0.3  # the noise has a standard deviation of 0.05


def test_clusters_of_one_label():
    found = scenes("test", 20, 3, one_label=True)
    kinds = [len(labels.unique()) for labels in found.labels]
    assert max(kinds) <= 4  # at most four clusters
    with pytest.raises(ArgumentValueError, match="split"):
        crowded_digits("all", 1)


def test_cells_near_a_centre_find_the_object():
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 80.0, 60.0]])
    target, near = assign(boxes, cell_centres(24, 24, torch.device("cpu")))
    assert bool(near[2, 2]) and torch.equal(target[2, 2], boxes[0])
    assert bool(near[12, 17]) and torch.equal(target[12, 17], boxes[1]) and not bool(near[0, 0])
    # as many as there are centres, four pixels apart, within 0.3 of the sides: 4 * 4 and 6 * 4 at most
    assert 2 * 2 <= int(near[:6, :6].sum()) <= 4 * 4


def test_losses_of_the_detector():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert float(giou_loss(a, a)) == 0.0
    apart = torch.tensor([[4.0, 0.0, 6.0, 2.0]])
    assert float(giou_loss(a, apart)) == pytest.approx(1.0 + 4.0 / 12.0)
    model = DigitDetector()
    images = torch.zeros(2, 1, 32, 32)
    target, near = torch.zeros(2, 8, 8, 4), torch.zeros(2, 8, 8, dtype=torch.bool)
    loss = detection_loss(model, (images, target, near))  # nothing to find: a small loss, no NaN
    loss.backward()
    assert math.isfinite(float(loss.detach())) and float(loss.detach()) < 0.1
    assert [len(boxes) for boxes, _ in detect(model.eval(), images)] == [0, 0]


def test_average_precision_of_right_and_wrong_boxes():
    pytest.importorskip("pycocotools")
    truth = [torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([[10.0, 10.0, 60.0, 60.0]])]
    perfect = [(boxes, torch.tensor([0.9])) for boxes in truth]
    assert coco_statistics(perfect, truth)["ap"] == pytest.approx(1.0)
    half = [(truth[0], torch.tensor([0.9])), (truth[0] + 200, torch.tensor([0.8]))]
    assert coco_statistics(half, truth)["ar100"] == pytest.approx(0.5)
    shifted = [(boxes + torch.tensor([0.0, 0.0, 10.0, 0.0]), scores) for boxes, scores in perfect]  # overlap 5/6
    assert coco_statistics(shifted, truth)["ap"] == pytest.approx(0.7)  # seven of the ten thresholds
    nothing = [(torch.zeros(0, 4), torch.zeros(0))] * 2
    assert coco_statistics(nothing, truth)["ap"] == 0.0
    ones, twos = [torch.tensor([1])] * 2, [torch.tensor([2])] * 2
    assert coco_statistics(perfect, truth, labels=twos, truth_labels=ones)["ap"] == 0.0
    with pytest.raises(ArgumentValueError, match="labels"):
        coco_statistics(perfect, truth, labels=ones)


def test_suppressions_are_those_of_their_names():
    boxes, scores = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.5]]), torch.tensor([0.9, 0.8])
    ((_, kept),) = suppressed([(boxes, scores)], SUPPRESSIONS["hard_07"])
    assert len(kept) == 2
    ((_, final),) = suppressed([(boxes, scores)], SUPPRESSIONS["gaussian_04"])
    assert torch.equal(final, soft_nms(boxes, scores, sigma=0.4).scores)
