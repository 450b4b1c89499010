"""Soft-NMS as the authors' code and mmcv's compute it, and average precision as COCOeval does."""

import numpy as np
import pytest
import torch

from softgate import native
from softgate.detection import nms, soft_nms
from softgate.lab.detection_metrics import STATISTICS, coco_statistics

SLUG = "soft-nms"
NAMES = ("small", "crowd", "integer", "lowscore")
SETTINGS = ((0.5, 0.3, 0.001), (0.3, 0.5, 0.05))
CODES = {"official": "official", "mmcv_off0": "mmcv", "mmcv_off1": "mmcv_offset1"}


def load(golden, name):
    return np.load(golden(SLUG) / f"{name}.npz", allow_pickle=False)


BACKENDS = ("reference", *(("native",) if native.available() else ()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", NAMES)
def test_other_codes_keep_the_same_boxes(golden, name, code, backend):
    arrays = load(golden, f"boxes_{name}")
    boxes, scores = (torch.from_numpy(arrays[part]).float() for part in ("boxes", "scores"))
    for method in ("hard", "linear", "gaussian"):
        for sigma, overlap, threshold in SETTINGS:
            key = f"{code}_{method}_sigma{sigma}_nt{overlap}_thr{threshold}"
            found = soft_nms(
                boxes, scores, method=method, sigma=sigma, iou_threshold=overlap, score_threshold=threshold,
                convention=CODES[code], backend=backend,
            )  # fmt: skip
            assert found.keep.tolist() == arrays[f"{key}_keep"].tolist(), key
            expected = torch.from_numpy(arrays[f"{key}_scores"])
            torch.testing.assert_close(found.scores, expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", NAMES)
def test_hard_nms_has_the_order_of_torchvision(golden, name):
    arrays = load(golden, f"boxes_{name}")
    keep = nms(torch.from_numpy(arrays["boxes"]).float(), torch.from_numpy(arrays["scores"]).float(), 0.5)
    assert keep.tolist() == arrays["mmcv_hardnms_off0_nt0.5_keep"].tolist()


VARIANTS = {
    "none": None,
    **{f"hard_nt{t}": {"method": "hard", "iou_threshold": t} for t in (0.3, 0.5, 0.7)},
    **{f"linear_nt{t}": {"method": "linear", "iou_threshold": t} for t in (0.3, 0.5)},
    **{f"gaussian_s{s}": {"sigma": s} for s in (0.5, 0.7)},
}


def test_average_precision_of_stored_detections(golden):
    pytest.importorskip("pycocotools")
    arrays = load(golden, "crowd_detections")
    detections = torch.from_numpy(arrays["det"]).float().split(arrays["det_count"].tolist())
    truth = torch.from_numpy(arrays["gt"]).float().split(arrays["gt_count"].tolist())
    ap = {}
    for name, options in VARIANTS.items():
        found = []
        for rows in detections:
            keep, scores = (
                (torch.arange(len(rows)), rows[:, 4])
                if options is None
                else soft_nms(rows[:, :4], rows[:, 4], convention="official", **options)
            )
            found.append((rows[keep, :4], scores))
        statistics = coco_statistics(found, truth)
        ap[name] = statistics["ap"]
        for key, expected in zip(STATISTICS, arrays[f"stats_{name}"].tolist(), strict=True):
            if expected > -1:
                assert abs(statistics[key] - expected) < 1e-6, (name, key)
    assert ap["gaussian_s0.5"] > ap["linear_nt0.3"] > max(ap[name] for name in ap if name.startswith("hard"))
