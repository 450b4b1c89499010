"""Groups of different sizes in flat tensors.

Shape suffixes: N boxes, G groups, K picks of all groups together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softgate.detection import _picks
from softgate.detection._final_scores import final_scores
from softgate.detection._rules import Rule

#: ``(corners (N, 4), scores (N,), order (N,), sizes (G,), rule) -> (keep (K,), scores (K,), count (G,))``
FlatPicker = Callable[[Tensor, Tensor, Tensor, Tensor, Rule], tuple[Tensor, Tensor, Tensor]]


def groups_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Indices sorted by group, each group in its old order, and the sizes of the groups."""
    if len(ids) > 1 and bool((ids[1:] >= ids[:-1]).all()):
        order = torch.arange(len(ids), device=ids.device)
    else:
        ids, order = ids.sort(stable=True)
    return order, ids.unique_consecutive(return_counts=True)[1]


def padded_places(sizes_G: Tensor) -> tuple[Tensor, Tensor]:
    """(G, largest) places in a flat tensor of groups in sequence, and which of them exist."""
    steps = torch.arange(int(sizes_G.max()) if len(sizes_G) else 0, device=sizes_G.device)
    exists = steps < sizes_G[:, None]
    return torch.where(exists, (sizes_G.cumsum(0) - sizes_G)[:, None] + steps, 0), exists


def pick_flat(
    boxes_N4: Tensor, scores_N: Tensor, order_N: Tensor, sizes_G: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the lockstep loop on groups padded to the largest.

    Args:
        boxes_N4: corners.
        scores_N: of the same dtype.
        order_N: boxes sorted by group.
        sizes_G: boxes of each group.
        rule: what to do.

    Returns:
        Picked boxes and their final scores, group after group, and the number of picks of each.
    """
    places_GN, exists_GN = padded_places(sizes_G)
    rows_GN = order_N[places_GN]
    keep, scores, count = _picks.pick(boxes_N4[rows_GN], scores_N[rows_GN], exists_GN, rule)
    picked = keep >= 0
    return rows_GN.gather(1, keep.clamp(min=0))[picked], scores[picked], count


def written(keep_N: Tensor, scores_N: Tensor, count_G: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`pick_flat` returns, from picks that a kernel wrote from the start of each group on.

    Args:
        keep_N: picked boxes.
        scores_N: their final scores.
        count_G: picks of each group.
        offsets: (G + 1,), where the groups begin, and the end.
    """
    sizes = offsets.diff()
    places = torch.arange(len(keep_N), device=keep_N.device) - offsets[:-1].repeat_interleave(sizes)
    found = places < count_G.repeat_interleave(sizes)
    return keep_N[found], scores_N[found], count_G


def final_scores_flat(boxes_K4: Tensor, scores_K: Tensor, count_G: Tensor, rule: Rule) -> Tensor:
    """Differentiable final scores (K,) of picks in order, group after group.

    Groups of similar size are computed together, so that padding costs little.
    """
    starts, found, where = count_G.cumsum(0) - count_G, [], []
    buckets = count_G.clamp(min=1).log2().ceil()
    for bucket in buckets.unique():
        chosen = (buckets == bucket) & (count_G > 0)
        if not bool(chosen.any()):
            continue
        sizes = count_G[chosen]
        steps = torch.arange(int(sizes.max()), device=sizes.device)
        exists = steps < sizes[:, None]
        places = torch.where(exists, starts[chosen][:, None] + steps, 0)
        boxes = torch.where(exists[..., None], boxes_K4[places], 0.0)
        scores = final_scores(boxes, torch.where(exists, scores_K[places], 0.0), rule)
        found.append(scores[exists])
        where.append(places[exists])
    if not found:
        return scores_K
    return torch.cat(found)[torch.cat(where).argsort()]
