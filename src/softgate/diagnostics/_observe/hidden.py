"""Figures of hidden states, routers and logits, summed over batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softgate.diagnostics._observe.attention import DTYPES, dtype_name, spread
from softgate.diagnostics.activation_outliers import kurtosis
from softgate.diagnostics.collapse import softmax_collapse

__all__: list[str] = []


def _finite_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of finite numbers, and how many others there were."""
    finite = rows.isfinite().all(-1)
    return rows[finite], int((~finite).sum())


@dataclass
class ActivationSums:
    """Sums over the tokens that a module gave out.

    Attributes:
        name: the module's name.
        width: features of a token.
        tokens: tokens looked at.
        largest: largest absolute feature of any token.
        median: sum over batches of the median absolute feature.
        batches: how many.
        inf_norm: sum over tokens of the largest absolute feature.
        kurtosis: sum over tokens of the kurtosis.
        peak: largest kurtosis of a token.
        broken: tokens with a feature that is no finite number; they count nowhere else.
    """

    name: str
    width: int = 0
    tokens: int = 0
    largest: float = 0.0
    median: float = 0.0
    batches: int = 0
    inf_norm: float = 0.0
    kurtosis: float = 0.0
    peak: float = 0.0
    broken: int = 0

    def add(self, hidden: Tensor, keep: Tensor | None, limit: int) -> None:
        """Take in hidden states (…, features); ``keep`` (bool, …) says which tokens count."""
        tokens = hidden.detach().flatten(0, -2)
        if keep is not None and keep.shape == hidden.shape[:-1]:
            tokens = tokens[keep.flatten().to(tokens.device)]
        tokens, broken = _finite_rows(tokens)
        self.broken += broken
        if not len(tokens) or tokens.shape[-1] < 2:
            return
        self.largest = max(self.largest, float(tokens.abs().amax()))
        tokens = tokens[spread(len(tokens), limit)].float()
        sizes, found = tokens.abs(), kurtosis(tokens)
        self.width, self.tokens, self.batches = tokens.shape[-1], self.tokens + len(tokens), self.batches + 1
        self.median += float(sizes.median())
        self.inf_norm += float(sizes.amax(-1).double().sum())
        self.kurtosis += float(found.double().sum())
        self.peak = max(self.peak, float(found.amax()))


@dataclass
class RouterSums:
    """Sums over the tokens that a router sent to its experts.

    Attributes:
        name: the module's name.
        load: (E,) assignments of each expert.
        tokens: tokens routed.
        entropy: sum over tokens of the entropy of softmax(logits), in nats.
    """

    name: str
    load: Tensor | None = None
    tokens: int = 0
    entropy: float = 0.0

    def add(self, logits_NE: Tensor, indices_NK: Tensor, keep: Tensor | None) -> None:
        """Take in router logits and the chosen experts; E counts as "none"."""
        experts = logits_NE.shape[-1]
        logits, indices = logits_NE.detach().float(), indices_NK.detach()
        if keep is not None and keep.numel() == len(logits):
            flat = keep.flatten().to(logits.device)
            logits, indices = logits[flat], indices[flat]
        load = torch.bincount(indices.flatten(), minlength=experts + 1)[:experts].cpu()
        self.load = load if self.load is None else self.load + load
        self.tokens += len(logits)
        self.entropy += float(torch.distributions.Categorical(logits=logits).entropy().sum()) if len(logits) else 0.0


def routed(output: Any) -> tuple[Tensor, Tensor] | None:
    """Logits (N, E) and indices (N, K) in what a router returns; None if it is no router's answer.

    Known are the gates of this library (a tuple with names) and the routers of transformers (logits, scores, indices).
    """
    if not isinstance(output, tuple) or len(output) < 3:
        return None
    logits = getattr(output, "logits", output[0])
    indices = getattr(output, "indices", output[2])
    if not (isinstance(logits, Tensor) and isinstance(indices, Tensor)):
        return None
    fits = logits.ndim == indices.ndim == 2 and len(logits) == len(indices) and logits.shape[1] >= indices.shape[1]
    whole = indices.dtype in (torch.int64, torch.int32) and logits.is_floating_point()
    return (logits, indices) if fits and whole else None


@dataclass
class LogitSums:
    """Sums over rows of logits.

    Attributes:
        dtype: dtype of the logits as the model gave them.
        classes: how many.
        rows: rows looked at.
        deviation: sum of the standard deviations over the classes.
        largest: largest absolute logit.
        margins: each row's largest logit minus the second largest.
        collapsed: dtype name -> rows in which the largest has absorbed all others.
        broken: rows with a logit that is no finite number; they count nowhere else.
    """

    dtype: str = ""
    classes: int = 0
    rows: int = 0
    deviation: float = 0.0
    largest: float = 0.0
    margins: list[Tensor] = field(default_factory=list)
    collapsed: dict[str, float] = field(default_factory=dict)
    broken: int = 0

    def add(self, logits: Tensor, keep: Tensor | None, limit: int) -> None:
        """Take in logits (…, C)."""
        rows = logits.detach().flatten(0, -2)
        if keep is not None and keep.shape == logits.shape[:-1]:
            rows = rows[keep.flatten().to(rows.device)]
        rows, broken = _finite_rows(rows[spread(len(rows), limit)].float())
        self.broken += broken
        if not len(rows):
            return
        self.dtype, self.classes, self.rows = dtype_name(logits.dtype), rows.shape[-1], self.rows + len(rows)
        self.deviation += float(rows.std(-1, correction=0).sum())
        self.largest = max(self.largest, float(rows.abs().amax()))
        best = rows.topk(2, -1).values
        self.margins.append((best[:, 0] - best[:, 1]).cpu())
        for dtype in DTYPES:
            name = dtype_name(dtype)
            self.collapsed[name] = self.collapsed.get(name, 0.0) + float(softmax_collapse(rows, dtype)) * len(rows)


def logits_of(output: Any) -> Tensor | None:
    """The logits in a model's output: its field ``logits``, or the output itself if it is a tensor of rows."""
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    fits = isinstance(found, Tensor) and found.is_floating_point() and found.ndim >= 2 and found.shape[-1] >= 2
    return found if fits else None
