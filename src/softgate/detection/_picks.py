"""The greedy loop, in lockstep over groups: every step picks the best living box of each and weakens its neighbours.

Shape suffixes: G groups, N boxes of a group (padded), K picks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from softgate.detection import _overlap
from softgate.detection._rules import Rule
from softgate.dispatch import transform_reason


class Picks(NamedTuple):
    """Outcome of the loop.

    Attributes:
        keep: (G, K) int64, the picked boxes in order, -1 beyond ``counts``.
        scores: (G, K), their final scores, 0 beyond ``counts``.
        counts: (G,) int64, number of picks.
    """

    keep: Tensor
    scores: Tensor
    counts: Tensor


#: Scores (G, N), who may still be picked (G, N), and at which step each box was (G, N), N for never.
State = tuple[Tensor, Tensor, Tensor]


def pick(boxes_BN4: Tensor, scores_GN: Tensor, valid_GN: Tensor | None, rule: Rule) -> Picks:
    """Run the loop on detached tensors: the order is constant almost everywhere.

    Args:
        boxes_BN4: corners, in the dtype of the scores; B divides G, and so many groups in sequence share their boxes.
        scores_GN: not negative where valid.
        valid_GN: bool; the other places hold no box. None: all do.
        rule: what happens to the neighbours of a pick.
    """
    scores = scores_GN.detach()
    boxes = for_every_group(boxes_BN4.detach(), len(scores))
    size = scores.shape[1]
    steps = rule.steps(size)
    if steps == 0:
        nothing = torch.zeros_like(scores, dtype=torch.int64)
        return Picks(nothing, torch.zeros_like(scores), nothing.sum(1))
    valid = ~(scores.isnan() | boxes.isnan().any(-1))
    if valid_GN is not None:
        valid = valid & valid_GN
    alive = valid & _overlap.passes(scores, rule) if rule.convention.first == "dropped" else valid
    state = _run(boxes, (scores, alive, torch.full_like(scores, size, dtype=torch.int64)), rule, steps)
    position = state[2]
    keep = position.argsort(dim=1, stable=True)[:, :steps]
    picked = position.gather(1, keep) < size
    scores = torch.where(picked, state[0].gather(1, keep), 0.0)
    return Picks(torch.where(picked, keep, -1), scores, (position < size).sum(1))


def for_every_group(boxes_BN4: Tensor, groups: int) -> Tensor:
    """(G, N, 4): the boxes of each group."""
    batch = len(boxes_BN4)
    return boxes_BN4 if batch in (0, groups) else boxes_BN4.repeat_interleave(groups // batch, 0)


def _best(scores: Tensor, alive: Tensor) -> Tensor:
    """True at the best living box of each group, the first of several, and nowhere in a group without one."""
    place = torch.where(alive, scores, -1.0).argmax(1, keepdim=True)
    return (torch.arange(scores.shape[1], device=scores.device) == place) & alive


def _run(boxes: Tensor, state: State, rule: Rule, steps: int) -> State:
    if torch.compiler.is_compiling():
        rule = _with_tensors(rule, state[0])
        first = torch.zeros((), dtype=torch.int64, device=boxes.device)
        _, *last = while_loop(
            lambda step, scores, alive, position: (step < steps) & alive.any(),
            lambda step, scores, alive, position: (step + 1, *_step(step, boxes, (scores, alive, position), rule)),
            # a loop may not hand back what it was given
            (first, *(part.clone() for part in state)),
        )
        return last[0], last[1], last[2]
    concrete = transform_reason(boxes, state[0]) is None
    for step in range(steps):
        if concrete and not bool(state[1].any()):
            break
        state = _step(step, boxes, state, rule)
    return state


def _with_tensors(rule: Rule, like: Tensor) -> Rule:
    """The same rule with tensors for numbers: a compiled loop cannot take in a number that is not fixed."""
    sigma: Any = like.new_full((), rule.sigma)
    overlap: Any = like.new_full((), rule.iou_threshold)
    score: Any = like.new_full((), rule.score_threshold)
    return Rule(rule.method, sigma, overlap, score, rule.max_output, rule.convention, rule.ranks_only)


def _step(step: Tensor | int, boxes_GN4: Tensor, state: State, rule: Rule) -> State:
    scores, alive, position = state
    picked = _best(scores, alive)
    # an exact way to gather that also vmaps: all terms but one are zero
    box_G14 = torch.where(picked[..., None], boxes_GN4, 0.0).sum(1, keepdim=True)
    position = torch.where(picked, step, position)
    alive = alive & ~picked
    offset = rule.convention.offset
    common = _overlap.intersection(box_G14, boxes_GN4, offset)
    overlap = _overlap.iou(common, _overlap.area(box_G14, offset), _overlap.area(boxes_GN4, offset))
    weaker = _overlap.weakened(scores, _overlap.factor(overlap, rule))
    scores = torch.where(alive & picked.any(1, keepdim=True), weaker, scores)
    tested = common > 0 if rule.convention.first == "untested" else torch.ones_like(alive)
    return scores, alive & (_overlap.passes(scores, rule) | ~tested), position
