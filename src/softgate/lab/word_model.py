"""A word model under any loss of the spherical family or softmax, and the places it gives the true words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab.output_layers import NgramNetwork
from softgate.losses import (
    SphericalLinear,
    spherical_softmax_loss_from_stats,
    taylor_softmax_loss_from_stats,
    z_loss_from_stats,
)

__all__ = ["WordModel", "ranks"]


class WordModel(nn.Module):
    """An n-gram network under an output layer that any optimizer can train.

    Args:
        vocabulary: number of words.
        config: ``loss`` (``"z"`` with ``alpha`` and ``b``, ``"taylor"``, ``"spherical"``, ``"squared"`` or
            ``"log-softmax"``) and the sizes ``context``, ``embedding`` and ``hidden`` of the network.
    """

    def __init__(self, vocabulary: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = NgramNetwork(
            vocabulary, context=config["context"], embedding=config["embedding"], hidden=config["hidden"]
        )
        self.head = SphericalLinear(config["hidden"][-1] + 1, vocabulary)
        losses: dict[str, Callable[..., Tensor] | None] = {
            "z": partial(z_loss_from_stats, alpha=config.get("alpha", 1.0), b=config.get("b", 0.0)),
            "taylor": taylor_softmax_loss_from_stats,
            "spherical": spherical_softmax_loss_from_stats,
            "squared": _squared_error,
            "log-softmax": None,
        }
        self.loss_from_stats = losses[config["loss"]]
        self.vocabulary = vocabulary

    def forward(self, words: Tensor) -> Tensor:
        """Logits ``(N, vocabulary)`` of the word after ``words`` ``(N, context)``."""
        return self.head.logits(self.body(words))

    def loss(self, words: Tensor, target: Tensor) -> Tensor:
        """Mean loss of the next words ``(N,)``; a spherical one forms no logits."""
        if self.loss_from_stats is None:
            return F.cross_entropy(self(words), target)
        a, q, s = self.head(self.body(words), target)
        return self.loss_from_stats(a, q, s, self.vocabulary)


def _squared_error(a: Tensor, q: Tensor, s: Tensor, num_classes: int) -> Tensor:
    """Squared distance of the logits from the one-hot target."""
    return (q - 2.0 * a + 1.0).mean()


def ranks(model: WordModel, words: Tensor, target: Tensor, chunk: int = 1024) -> Tensor:
    """Place ``(N,)`` of the true word among all words, 1 for the first; words that tie with it come before it."""
    places = []
    for context, word in zip(words.split(chunk), target.split(chunk), strict=True):
        logits = model(context)
        places.append((logits >= logits.gather(1, word[:, None])).sum(1))
    return torch.cat(places).double()
