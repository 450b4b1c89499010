"""Figures of attention weights from a few rows: never the whole T × T matrix, which long inputs have no room for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.diagnostics.collapse import softmax_collapse

__all__: list[str] = []

#: The arithmetics in which a softmax is asked whether it has collapsed.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Attention that can be asked for whole matrices only is looked at up to this many entries (256 MiB in float32).
LARGEST_WEIGHTS = 1 << 26


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices of 0, …, ``count - 1``, evenly spread from the first on."""
    return [i * count // wanted for i in range(wanted)] if count > wanted else list(range(count))


def query_rows(queries: int, wanted: int) -> list[int]:
    """The sampled queries, the middle of equal stretches; never the first, which a causal model lets see itself alone.

    Both ends would count too much: the first queries of a causal model see few keys.
    """
    first = min(1, queries - 1)
    span = queries - first
    return (
        [first + int((i + 0.5) * span / wanted) for i in range(wanted)]
        if span > wanted
        else list(range(first, queries))
    )


@dataclass
class AttentionSums:
    """Sums over the sampled rows of one attention module; a row counts if it sees at least two keys.

    Attributes:
        name: the module's name.
        square: whether queries and keys are the same tokens.
        keys: the largest number of keys seen.
        rows: rows that counted, over all sequences.
        sequences: sequences with such rows.
        sink: (H,) sum of the weights on the first visible key.
        uniform: sum of what equal weights would have put there.
        top: (H,) sum over sequences of the largest mean weight of any key.
        top_key: (H,) that key in the last sequence.
        entropy: (H,) sum of the entropies, each divided by the logarithm of the number of visible keys.
        largest: (H,) largest absolute score; None where only weights were seen.
        deviation: sum over rows and heads of the scores' standard deviation over the visible keys.
        collapsed: dtype name -> rows and heads in which one key has absorbed all others.
    """

    name: str
    square: bool = True
    keys: int = 0
    rows: int = 0
    sequences: int = 0
    sink: Tensor | None = None
    uniform: float = 0.0
    top: Tensor | None = None
    top_key: list[int] = field(default_factory=list)
    entropy: Tensor | None = None
    largest: Tensor | None = None
    deviation: float = 0.0
    collapsed: dict[str, float] = field(default_factory=dict)

    def add_scores(self, scores_HRS: Tensor, allowed_HRS: Tensor, rows: list[int], square: bool) -> None:
        """Take in the scores of the queries ``rows`` of one sequence, before softmax."""
        allowed_HRS = allowed_HRS & ~scores_HRS.isnan().any(-1, keepdim=True)  # such a row counts nowhere
        scores = scores_HRS.float().masked_fill(~allowed_HRS, float("-inf"))
        weights = scores.softmax(-1).nan_to_num(0.0)
        keep = self.add_weights(weights, allowed_HRS, rows, square)
        if not bool(keep.any()):
            return
        kept, visible = scores[:, keep], allowed_HRS[:, keep]
        sizes = kept.masked_fill(~visible, 0.0)
        largest = sizes.abs().amax((1, 2)).cpu()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        count = visible.sum(-1)
        mean = sizes.sum(-1) / count
        centred = (sizes - mean[..., None]).masked_fill(~visible, 0.0)
        self.deviation += float((centred.square().sum(-1) / count).sqrt().sum())
        for dtype in DTYPES:
            share = float(softmax_collapse(kept, dtype))
            name = dtype_name(dtype)
            self.collapsed[name] = self.collapsed.get(name, 0.0) + share * kept.shape[0] * kept.shape[1]

    def add_weights(self, weights_HRS: Tensor, allowed_HRS: Tensor, rows: list[int], square: bool) -> Tensor:
        """Take in the weights of the queries ``rows`` of one sequence; returns which rows counted (R,) bool."""
        self.square, self.keys = square, max(self.keys, weights_HRS.shape[-1])
        weights = weights_HRS.double()
        seen_RS = allowed_HRS.any(0)
        keep = allowed_HRS.sum(-1).amin(0) >= 2
        if square:  # a padded query does not see its own key
            index = torch.tensor(rows, device=weights.device)
            keep &= seen_RS.gather(-1, index[:, None])[:, 0]
        first = int(seen_RS[keep].any(0).int().argmax()) if bool(keep.any()) else 0
        keep &= seen_RS[:, first]
        if square:
            keep &= index != first
        count = int(keep.sum())
        if not count:
            return keep
        kept, visible = weights[:, keep], allowed_HRS[:, keep].sum(-1).double()
        mass = kept.sum(1) / count
        total = kept.sum(-1, keepdim=True).clamp_min(1e-300)
        entropy = -torch.special.xlogy(kept / total, kept / total).sum(-1) / visible.log()
        self.rows, self.sequences = self.rows + count, self.sequences + 1
        self.uniform += float((1 / visible).mean(0).sum())
        self.sink = _plus(self.sink, kept[..., first].sum(-1))
        self.entropy = _plus(self.entropy, entropy.sum(-1))
        self.top = _plus(self.top, mass.amax(-1))
        self.top_key = mass.argmax(-1).tolist()
        return keep


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more.cpu() if total is None else total + more.cpu()


def score_rows(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    sequence: int,
    rows: list[int],
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (H, R, S) of some queries of one sequence and which keys they may see; arguments as for torch's SDPA."""
    q_HRD, k_GSD = query_BHTD[sequence][:, rows].float(), key_BGSD[sequence].float()
    heads, groups = q_HRD.shape[0], k_GSD.shape[0]
    factor = 1.0 / math.sqrt(max(q_HRD.shape[-1], 1)) if scale is None else scale
    q_GPRD = q_HRD.unflatten(0, (groups, heads // groups))
    scores = (q_GPRD @ k_GSD.mT.unsqueeze(1)).flatten(0, 1) * factor
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if is_causal:
        index = torch.tensor(rows, device=scores.device)
        allowed &= torch.arange(scores.shape[-1], device=scores.device) <= index[:, None]
    if mask is not None:
        part = mask_rows(mask, sequence, rows)
        allowed &= not_hidden(part)
        scores = scores if part.dtype is torch.bool else scores + part.float()
    return scores, allowed


def not_hidden(mask: Tensor) -> Tensor:
    """What a mask lets be seen: True, or more than -inf and the most negative number that stands for it."""
    return mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min / 2


def mask_rows(mask: Tensor, sequence: int, rows: list[int]) -> Tensor:
    """The part of an attention mask, broadcastable to (B, H, T, S), that belongs to some queries of one sequence."""
    mask_BHTS = mask[(None,) * (4 - mask.ndim)]
    mask_HTS = mask_BHTS[sequence if mask_BHTS.shape[0] > 1 else 0]
    return mask_HTS[:, rows] if mask_HTS.shape[1] > 1 else mask_HTS


def visible_keys(weights_HRS: Tensor, rows: Iterable[int]) -> Tensor:
    """Which keys the queries may see, (H, R, S), where only weights are known: those that ever have some, and causally.

    A weight may be 0 where the key is visible (clipped softmax has exact zeros), so single zeros say nothing.
    """
    some = (weights_HRS != 0).any(0)
    index = torch.tensor(list(rows), device=weights_HRS.device)
    keys = torch.arange(weights_HRS.shape[-1], device=weights_HRS.device)
    past = keys <= index[:, None]
    allowed = some.any(0).expand_as(past)
    if not bool((some & ~past).any()):
        allowed = allowed & past
    return allowed.expand_as(weights_HRS)
