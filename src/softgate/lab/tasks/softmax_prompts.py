"""Softmax regression in context: rows with their softmax weights, and a row whose weight is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.diagnostics import softmax_regression as sr

__all__ = ["SoftmaxPrompts"]


@dataclass(frozen=True)
class SoftmaxPrompts:
    """Prompts (a_1, b_1 - 1), …, (a_n, b_n - 1), (a_q, 0), asking for log b_q.

    a ~ N(0, I), x ~ scale·N(0, I), b_i = exp(a_iᵀx) divided by its mean over the *labelled* rows: with the query among
    them its label would be what the others leave. The logarithm is asked for because a layer's read-out is linear.

    Attributes:
        n: labelled rows.
        d: features of a row.
        scale: size of x; the larger, the further the softmax is from linear.
    """

    n: int = 19
    d: int = 4
    scale: float = 0.15

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (batch, n + 1, d + 1) and targets (batch, 1)."""
        rows = torch.randn(batch, self.n + 1, self.d, generator=generator)
        x = self.scale * torch.randn(batch, self.d, 1, generator=generator)
        scores = (rows @ x)[..., 0]
        log_b = scores - (scores[:, :-1].logsumexp(-1, keepdim=True) - torch.tensor(float(self.n)).log())
        labels = log_b.exp() - 1.0
        target = log_b[:, -1:].clone()
        labels[:, -1] = 0.0
        return torch.cat((rows, labels[..., None]), -1), target

    def descend(self, tokens: Tensor, steps: int, rate: float) -> Tensor:
        """What gradient descent on softmax regression over the labelled rows predicts, (batch,).

        Args:
            tokens: as drawn.
            steps: number of steps from x = 0.
            rate: step size in units of n: in those the best single step is near 1.
        """
        rows, query = tokens[:, :-1, :-1], tokens[:, -1, :-1]
        b = (tokens[:, :-1, -1] + 1.0) / self.n
        x = sr.gradient_descent(rows, b, steps=steps, lr=rate * self.n)
        scores = (rows @ x[..., None])[..., 0]
        return (query * x).sum(-1) - scores.logsumexp(-1) + torch.tensor(float(self.n)).log()
