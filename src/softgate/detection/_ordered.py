"""Groups of boxes, picked by the reference or the kernel, with scores that carry gradients where they are wanted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softgate.detection._final_scores import final_scores
from softgate.detection._picks import Picks, for_every_group, pick
from softgate.detection._rules import Rule

#: ``(corners (B, N, 4), scores (G, N), valid (G, N) or None, rule) -> Picks``
Picker = Callable[[Tensor, Tensor, Tensor | None, Rule], Picks]


def order_of(scores_GN: Tensor) -> Tensor:
    """Ranks of the scores as numbers of their dtype: the best one gets N, the worst 1, the first of equals more."""
    places = scores_GN.detach().argsort(dim=1, descending=True, stable=True).argsort(1)
    return (scores_GN.shape[1] - places).to(scores_GN.dtype)


def suppress(boxes_BN4: Tensor, scores_GN: Tensor, valid_GN: Tensor | None, rule: Rule, picker: Picker = pick) -> Picks:
    """Picks of every group with their final scores; beyond ``counts`` indices are -1 and scores 0.

    Args:
        boxes_BN4: corners; B divides G, and so many groups in sequence share their boxes.
        scores_GN: of the same dtype.
        valid_GN: bool; None if there is a box at every place.
        rule: what to do.
        picker: what runs the loop.
    """
    ranked = order_of(scores_GN) if rule.ranks_only else scores_GN
    keep, scores, count = picker(boxes_BN4, ranked, valid_GN, rule)
    picked, place = keep >= 0, keep.clamp(min=0)
    if rule.ranks_only:
        scores = torch.where(picked, scores_GN.gather(1, place), 0.0)
    elif wants_derivative(boxes_BN4, scores_GN):
        boxes_GN4 = for_every_group(boxes_BN4, len(scores_GN))
        # what was not picked must send no NaN back, not even one times zero
        boxes = torch.where(picked[..., None], boxes_GN4.gather(1, place[..., None].expand(*place.shape, 4)), 0.0)
        scores = final_scores(boxes, torch.where(picked, scores_GN.gather(1, place), 0.0), rule)
        scores = torch.where(picked, scores, 0.0)
    return Picks(keep, scores, count)


def wants_derivative(*tensors: Tensor) -> bool:
    """Whether the scores must be made of operations that autograd or a transform sees."""
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if tracked or torch.compiler.is_compiling():
        return tracked
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0
