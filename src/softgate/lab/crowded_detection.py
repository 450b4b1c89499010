"""What every suppression makes of the raw boxes of one trained detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from softgate.detection import soft_nms
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data import DetectionScenes, crowded_digits
from softgate.lab.detection_metrics import coco_statistics
from softgate.lab.digit_detector import detect, train_detector

__all__ = ["SUPPRESSIONS", "measure_crowded_digits", "score_suppressions", "suppressed"]

Detections = Sequence[tuple[Tensor, Tensor]]

_HARD = (0.3, 0.5, 0.6, 0.7, 0.8)
_LINEAR = (0.3, 0.5)
SIGMAS = (0.3, 0.4, 0.5, 0.7, 1.0)


def _named(kind: str, value: float) -> str:
    return f"{kind}_{round(10 * value):02d}"


#: Name -> options of :func:`softgate.detection.soft_nms`; thresholds and sigmas in tenths.
SUPPRESSIONS: dict[str, dict[str, Any]] = {
    **{_named("hard", t): {"method": "hard", "iou_threshold": t} for t in _HARD},
    **{_named("linear", t): {"method": "linear", "iou_threshold": t} for t in _LINEAR},
    **{_named("gaussian", s): {"method": "gaussian", "sigma": s} for s in SIGMAS},
}


def suppressed(raw: Detections, options: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Boxes and scores of each image after a suppression."""
    found = []
    for boxes, scores in raw:
        keep, final = soft_nms(boxes, scores, **options)
        found.append((boxes[keep], final))
    return found


def score_suppressions(raw: Detections, truth: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """COCO's numbers of no suppression and of every one in :data:`SUPPRESSIONS`."""
    softened = {name: suppressed(raw, options) for name, options in SUPPRESSIONS.items()}
    return {name: coco_statistics(found, truth) for name, found in {"none": raw, **softened}.items()}


def measure_crowded_digits(run: CellRun) -> dict[str, Any]:
    """Train a detector; choose each family's parameter on validation scenes and report all of them on test scenes.

    ``run.config`` holds what :func:`softgate.lab.digit_detector.train_detector` needs, ``val`` and ``test`` (scenes),
    and optionally ``sparse`` (test scenes with one digit a cluster, for the same detector).

    Returns:
        ``ap_NAME`` for every suppression, ``ap50_NAME`` and ``ar100_NAME`` for some; ``ap_best_hard``,
        ``ap_best_linear`` and ``ap_best_gaussian``, chosen on validation scenes; ``gain_*`` over the best hard one; the
        curve ``curve_gaussian`` over ``sigma``; the same with ``sparse_`` in front; ``raw_boxes`` and ``objects``, an
        image.
    """
    config = run.config
    model, curves = train_detector(run)

    def scenes(split: str, count: int, **options: Any) -> DetectionScenes:
        drawn = seeds.derive(run.seed, "scenes", split, *options)
        return crowded_digits(split, count, drawn, download=run.download, **options)

    val, test = scenes("val", config["val"]), scenes("test", config["test"])
    raw = detect(model, test.images)
    chosen = score_suppressions(detect(model, val.images), val.boxes)
    figures: dict[str, Any] = _figures(chosen, score_suppressions(raw, test.boxes))
    if config.get("sparse"):
        sparse = scenes("test", config["sparse"], cluster=(1, 1))
        found = score_suppressions(detect(model, sparse.images), sparse.boxes)
        # the parameters for sparse scenes are chosen on them: that favours hard suppression
        figures |= {f"sparse_{name}": value for name, value in _figures(found, found).items()}
    return {
        **figures,
        "raw_boxes": sum(len(boxes) for boxes, _ in raw) / len(raw),
        "objects": sum(map(len, test.boxes)) / len(test),
        "first_loss": curves["loss"][0],
        "last_loss": sum(curves["loss"][-20:]) / len(curves["loss"][-20:]),
    }


def _figures(val: Mapping[str, Mapping[str, float]], test: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {f"ap_{name}": found["ap"] for name, found in test.items()}
    for kind in ("hard", "linear", "gaussian"):
        family = [name for name in SUPPRESSIONS if name.startswith(kind)]
        best = max(family, key=lambda name: val[name]["ap"])
        figures |= {f"{what}_best_{kind}": test[best][what] for what in ("ap", "ap50", "ar100")}
        figures[f"chosen_{kind}"] = int(best[-2:]) / 10
    for name in ("gaussian_05", "linear_03"):
        figures |= {f"{what}_{name}": test[name][what] for what in ("ap50", "ar100")}
        figures[f"gain_{name}"] = test[name]["ap"] - figures["ap_best_hard"]
    curve = [test[_named("gaussian", sigma)]["ap"] for sigma in SIGMAS]
    hard = [figures["ap_best_hard"]] * len(SIGMAS)
    return {**figures, "sigma": list(SIGMAS), "curve_gaussian": curve, "curve_best_hard": hard}
