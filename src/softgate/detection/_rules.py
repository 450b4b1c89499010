"""What a suppression does, as one value: the decay, its parameters, and the habits of a code that it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

Decay = Callable[[Tensor], Tensor]
Method = Literal["hard", "linear", "gaussian"]
METHODS = ("hard", "linear", "gaussian")
FIRST = ("dropped", "kept", "untested")
FORMATS = ("xyxy", "xywh", "cxcywh")
NAN = ("raise", "drop")


@dataclass(frozen=True)
class Convention:
    """How a code measures boxes and drops those with low scores.

    Attributes:
        offset: added to widths and heights; 1 where coordinates are those of the first and the last pixel.
        inclusive: an overlap that equals the threshold counts as above it.
        keep_equal: a score that equals the threshold is kept.
        first: which boxes are dropped before the first pick: those below the threshold (``"dropped"``), these but the
            best one (``"kept"``), or none (``"untested"``): then only boxes that overlap a pick are ever tested.
    """

    offset: float = 0.0
    inclusive: bool = False
    keep_equal: bool = True
    first: Literal["dropped", "kept", "untested"] = "dropped"


#: ``torchvision`` stands for hard suppression without any threshold on scores, see :func:`softgate.detection.nms`.
CONVENTIONS = {
    "default": Convention(),
    "official": Convention(offset=1.0, first="untested"),
    "mmcv": Convention(inclusive=True, first="kept"),
    "mmcv_offset1": Convention(offset=1.0, inclusive=True, first="kept"),
    "effdet": Convention(keep_equal=False, first="kept"),
    "torchvision": Convention(),
}


@dataclass(frozen=True)
class Rule:
    """A validated suppression.

    Attributes:
        method: name of the decay, or a function of the overlap that gives the factor.
        sigma: of the Gaussian.
        iou_threshold: of hard and linear decay.
        score_threshold: below it boxes are dropped; -1 if they never are.
        max_output: most picks of a group; None for all.
        convention: see :class:`Convention`.
        ranks_only: hard suppression where only the order of the scores counts.
    """

    method: Method | Decay
    sigma: float
    iou_threshold: float
    score_threshold: float
    max_output: int | None
    convention: Convention
    ranks_only: bool

    def steps(self, boxes: int) -> int:
        """Most picks among so many boxes."""
        return boxes if self.max_output is None else min(boxes, self.max_output)


def make_rule(
    method: Any = "gaussian",
    sigma: Any = 0.5,
    iou_threshold: Any = 0.3,
    score_threshold: Any = 1e-3,
    max_output: Any = None,
    convention: Any = "default",
) -> Rule:
    """Check the options of a suppression.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: an option is not allowed.
    """
    if not callable(method):
        if not isinstance(method, str):
            raise ArgumentTypeError(
                f"method must be one of {', '.join(map(repr, METHODS))} or a function of the overlap, got "
                f"{type(method).__name__}"
            )
        check_choice("method", method, METHODS)
    sigma = check_number("sigma", sigma, low=0.0, low_open=True)
    threshold = check_number("iou_threshold", iou_threshold, low=0.0, high=1.0)
    score = check_number("score_threshold", score_threshold)
    if max_output is not None:
        if isinstance(max_output, bool) or not isinstance(max_output, int):
            bad_type("max_output", max_output, "a positive int or None")
        if max_output < 1:
            bad_value("max_output", max_output, "a positive int or None")
    check_choice("convention", convention, tuple(CONVENTIONS))
    if convention == "torchvision" and method != "hard":
        raise ArgumentValueError(f"convention 'torchvision' has method 'hard' only, got method {method!r}")
    ranks_only = convention == "torchvision"
    if ranks_only:  # ranks begin at 1: what is left of one is 0 or passes
        score = 0.5
    lowest = score if score > 0.0 else -1.0
    return Rule(method, sigma, threshold, lowest, max_output, CONVENTIONS[convention], ranks_only)
