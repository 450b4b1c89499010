"""Soft-NMS in detectors of torchvision and after those of transformers."""

import pytest
import torch
from torch import nn

from softgate.detection import batched_soft_nms, nms
from softgate.errors import ArgumentTypeError, StateError
from softgate.integrations.object_detection import soften_detections
from softgate.integrations.torchvision import remove_soft_nms, use_soft_nms


def image(seed=0, count=40):
    generator = torch.Generator().manual_seed(seed)
    low = 60 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat((low, low + 20 + 30 * torch.rand(count, 2, generator=generator)), 1)
    return boxes, torch.rand(count, generator=generator), torch.randint(1, 3, (count,), generator=generator)


def test_further_tensors_follow_their_boxes():
    boxes, scores, labels = image()
    raw = {"boxes": boxes, "scores": scores, "labels": labels, "masks": torch.arange(40)[:, None, None], "id": 7}
    (soft,) = soften_detections([raw], max_per_image=12)
    keep, final = batched_soft_nms(boxes, scores, labels, max_per_image=12)
    assert torch.equal(soft["masks"][:, 0, 0], keep) and torch.equal(soft["scores"], final) and soft["id"] == 7
    assert torch.equal(soft["boxes"], boxes[keep]) and torch.equal(soft["labels"], labels[keep])
    with pytest.raises(ArgumentTypeError, match="labels"):
        soften_detections([{"boxes": boxes, "scores": scores}])


class Part(nn.Module):
    """The part of a detector of torchvision that suppresses boxes, in the two forms it has there."""

    def __init__(self, as_lists: bool) -> None:
        super().__init__()
        self.nms_thresh, self.detections_per_img, self.score_thresh, self.as_lists = 0.5, 10, 0.05, as_lists

    def postprocess_detections(self, images):
        found = []
        for boxes, scores, labels in images:
            high = scores > self.score_thresh
            boxes, scores, labels = boxes[high], scores[high], labels[high]
            keep = nms(boxes + 1000.0 * labels[:, None], scores, self.nms_thresh)[: self.detections_per_img]
            found.append((boxes[keep], scores[keep], labels[keep]))
        if self.as_lists:
            return tuple(list(part) for part in zip(*found, strict=True))
        return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]


@pytest.mark.parametrize("as_lists", [True, False])
def test_a_detector_changes_its_suppression_and_back(as_lists):
    model = nn.Module()
    if as_lists:
        model.roi_heads = part = Part(True)
    else:
        model = part = Part(False)
    images = [image(0), image(1)]
    before, state = part.postprocess_detections(images), dict(vars(part))
    assert use_soft_nms(model, score_thresh=0.01, sigma=0.7) is model
    soft = part.postprocess_detections(images)
    rows = (
        [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in zip(*soft, strict=True)]
        if as_lists
        else soft
    )
    for (boxes, scores, labels), found in zip(images, rows, strict=True):
        high = scores > 0.01
        expected = batched_soft_nms(boxes[high], scores[high], labels[high], sigma=0.7, max_per_image=10)
        assert torch.equal(found["scores"], expected.scores) and torch.equal(found["boxes"], boxes[high][expected.keep])
    with pytest.raises(StateError, match="already"):
        use_soft_nms(model)
    assert remove_soft_nms(model) is model and vars(part).keys() == state.keys()
    again = part.postprocess_detections(images)
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(again), strict=True))
    with pytest.raises(StateError, match="does not use"):
        remove_soft_nms(model)


def tensors(found):
    parts = found if isinstance(found, tuple) else [one.values() for one in found]
    return [tensor for part in parts for tensor in part]


def test_other_models_are_refused():
    with pytest.raises(ArgumentTypeError, match="Linear"):
        use_soft_nms(nn.Linear(2, 2))


def test_the_detectors_of_torchvision_have_what_is_changed():
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    own = model.detections_per_img
    use_soft_nms(model)
    assert model.nms_thresh == 1.0 and model.postprocess_detections.options["max_per_image"] == own
    remove_soft_nms(model)
    assert model.detections_per_img == own
