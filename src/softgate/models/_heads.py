"""The last layer of a small classifier: a support vector machine or the softmax twin it is compared with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice
from softgate.losses.svm_head import SVMHead

__all__: list[str] = []

HEADS = ("svm", "softmax")
Head = Literal["svm", "softmax"]


class SoftmaxHead(nn.Linear):
    """A linear layer trained with cross-entropy, with the methods of :class:`softgate.losses.SVMHead`."""

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of ``scores`` (N, classes) and class indices ``target`` (N,)."""
        return F.cross_entropy(scores, target)

    def decide(self, scores: Tensor, rule: str = "argmax") -> Tensor:
        """Class indices of the largest score; softmax has no other rule."""
        check_choice("rule", rule, ("argmax",))
        return scores.argmax(-1)


def make_head(
    kind: str, features: int, classes: int, std: float, cut: float | None, **options: Any
) -> SVMHead | SoftmaxHead:
    """A head with normal weights (cut off at ``cut`` standard deviations) and biases of 0.1, as both papers start.

    Args:
        kind: ``"svm"`` or ``"softmax"``.
        features: width of its input.
        classes: number of classes.
        std: of the weights.
        cut: in standard deviations; None for none.
        options: of :class:`SVMHead`.
    """
    check_choice("head", kind, HEADS)
    head = SVMHead(features, classes, **options) if kind == "svm" else SoftmaxHead(features, classes)
    with torch.no_grad():
        if cut is None:
            nn.init.normal_(head.weight, std=std)
        else:
            nn.init.trunc_normal_(head.weight, std=std, a=-cut * std, b=cut * std)
        nn.init.constant_(head.bias, 0.1)
    return head
