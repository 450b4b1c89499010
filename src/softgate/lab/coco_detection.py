"""Raw boxes of torchvision's detectors on COCO, computed once, and what every suppression makes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.detection import batched_soft_nms, coco_results
from softgate.lab.cell import CellRun
from softgate.lab.data import MissingDataError
from softgate.lab.data.store import data_folders
from softgate.lab.detection_metrics import coco_data_set, evaluate_coco

__all__ = ["measure_coco"]

_ANNOTATIONS, _IMAGES = "annotations/instances_val2017.json", "val2017"
#: Best boxes that the evaluation takes of each image; the authors keep 400 before it.
_MOST = 400
_SUPPRESSIONS: dict[str, dict[str, Any]] = {
    **{f"hard_{t}": {"method": "hard", "iou_threshold": t / 10} for t in (3, 5, 6, 7)},
    "linear_3": {"method": "linear", "iou_threshold": 0.3},
    "linear_5": {"method": "linear", "iou_threshold": 0.5},
    **{f"gaussian_{s}": {"method": "gaussian", "sigma": s / 10} for s in (3, 5, 7)},
}


def measure_coco(run: CellRun) -> dict[str, float]:
    """Average precision on COCO val2017 of the detector ``run.config["model"]`` after each suppression.

    Without the photographs in a data folder it says ``data_was_missing``.
    """
    try:
        folder = _folder()
    except MissingDataError as error:
        run.log(0, 1, missing=str(error))
        return {"data_was_missing": 1.0}
    coco = coco_data_set(str(folder / _ANNOTATIONS))
    ids = sorted(coco.getImgIds())
    paths = [folder / _IMAGES / coco.imgs[i]["file_name"] for i in ids]
    raw = list(_raw_boxes(run, paths))
    figures: dict[str, float] = {}
    for name, options in _SUPPRESSIONS.items():
        found = [_soft(one, options) for one in raw]
        statistics = evaluate_coco(coco, coco_results(found, ids))
        figures |= {f"ap_{name}": statistics["ap"], f"ap50_{name}": statistics["ap50"]}
    best = max(figures["ap_gaussian_5"], figures["ap_linear_3"])
    return {**figures, "gain": best - figures["ap_hard_5"]}


def _soft(raw: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    keep, scores = batched_soft_nms(raw["boxes"], raw["scores"], raw["labels"], max_per_image=_MOST, **options)
    return {"boxes": raw["boxes"][keep], "scores": scores, "labels": raw["labels"][keep]}


def _folder() -> Path:
    for folder in data_folders():
        if (folder / "coco" / _ANNOTATIONS).is_file():
            return folder / "coco"
    raise MissingDataError(
        f"COCO was not found: put {_ANNOTATIONS} and {_IMAGES}/ into a folder coco of $SOFTGATE_DATA"
    )


def _raw_boxes(run: CellRun, paths: list[Path]) -> Iterator[dict[str, Tensor]]:
    """Boxes of each photograph above 1e-3 before any suppression, kept in the cell's folder."""
    import torchvision

    model: Any = getattr(torchvision.models.detection, run.config["model"])(weights="DEFAULT")
    part = getattr(model, "roi_heads", model)
    part.nms_thresh, part.detections_per_img, part.score_thresh = 1.0, sys.maxsize, 1e-3
    model.to(run.device).eval()
    kept = run.folder / "raw"
    kept.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        file = kept / f"{path.stem}.npz"
        if not (run.resume and file.is_file()):
            image = torchvision.io.read_image(str(path), torchvision.io.ImageReadMode.RGB).to(run.device) / 255.0
            with torch.inference_mode():
                found = model([image])[0]
            np.savez(file, **{name: found[name].cpu().numpy() for name in ("boxes", "scores", "labels")})
            run.log(number + 1, len(paths))
        with np.load(file, allow_pickle=False) as stored:
            yield {name: torch.from_numpy(stored[name]) for name in ("boxes", "scores", "labels")}
