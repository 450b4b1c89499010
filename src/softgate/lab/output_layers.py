"""Output layers of very many classes as whole SGD steps, and the n-gram network they stand on: for timing and training.

Every layer is trained the way it is meant to be: a dense weight by ``torch.optim.SGD``, the others by the step that is
their own. What is timed is what a training loop does: forward, backward and update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.losses import FactoredSphericalLinear, HierarchicalSoftmax, z_loss_from_stats
from softgate.models import MLP

__all__ = ["LAYERS", "NgramNetwork", "OutputLayer", "head_step", "network_step", "output_layer"]

#: Names that :func:`output_layer` understands.
LAYERS = ("factored", "log_softmax", "adaptive", "hierarchical")


@dataclass(frozen=True)
class OutputLayer:
    """One output layer in training.

    Attributes:
        module: its weights.
        loss: ``(h, target) -> loss``, the sum over the rows.
        update: what is left to do after the backward pass.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    update: Callable[[], None]


def output_layer(name: str, classes: int, features: int, lr: float, device: str = "cpu") -> OutputLayer:
    """Build the layer called ``name``, one of :data:`LAYERS`; losses are summed over the batch."""
    check_choice("name", name, LAYERS)
    if name == "factored":
        head = FactoredSphericalLinear(features, classes, lr=lr, refactor_every=None, device=device)

        def spherical(h: Tensor, target: Tensor) -> Tensor:
            a, q, s = head(h, target)
            return z_loss_from_stats(a, q, s, classes, reduction="sum")

        return OutputLayer(head, spherical, lambda: None)
    if name == "hierarchical":
        tree = HierarchicalSoftmax(features, classes, lr=lr, device=device)
        return OutputLayer(tree, lambda h, t: tree(h, t).sum(), lambda: None)
    module: Any
    if name == "log_softmax":
        module = nn.Linear(features, classes, bias=False, device=device)
        loss = lambda h, t: F.cross_entropy(module(h), t, reduction="sum")  # noqa: E731
    else:
        # frequent words in the head, three clusters of falling width for the tail
        cutoffs = sorted({max(1, classes // 100), max(2, classes // 20), max(3, classes // 4)})
        module = nn.AdaptiveLogSoftmaxWithLoss(features, classes, cutoffs, device=device)
        loss = lambda h, t: module(h, t).output.sum().neg()  # noqa: E731
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return OutputLayer(module, loss, update)


def head_step(layer: OutputLayer, classes: int, features: int, rows: int, device: str = "cpu") -> Callable[[], None]:
    """One SGD step of ``layer`` alone on the next of a cycle of random batches; its rows ask for their gradient too."""
    source = _batches(classes, rows, device, features)

    def step() -> None:
        h, target = next(source)
        layer.loss(h.detach().requires_grad_(), target).backward()
        layer.update()

    return step


def network_step(
    body: nn.Module, layer: OutputLayer | None, batches: Sequence[tuple[Tensor, Tensor]], lr: float
) -> Callable[[], None]:
    """One SGD step of a network: ``body`` and the output layer, or ``body`` alone with a sum in place of a loss."""
    source = cycle(batches)
    optimizer = torch.optim.SGD(body.parameters(), lr=lr)

    def step() -> None:
        x, target = next(source)
        h = body(x)
        (h.sum() if layer is None else layer.loss(h, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if layer is not None:
            layer.update()

    return step


def _batches(classes: int, rows: int, device: str, features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Many batches of targets, so that the rows of weights they select are not in a cache from the last time."""
    generator = seeds.generator(0, "output-layer")
    hidden = torch.randn(rows, features, generator=generator).to(device)
    targets = torch.randint(classes, (64, rows), generator=generator).to(device)
    return cycle([(hidden, target) for target in targets])


class NgramNetwork(nn.Module):
    """Embeddings of the words before, a ReLU network on them, and a constant appended in place of an output bias.

    Args:
        vocabulary: number of words.
        context: words before.
        embedding: width of a word's embedding.
        hidden: widths of the layers after it, the last being what the output layer sees (less the constant).
        sparse: give the embeddings a sparse gradient, for plain SGD on a large vocabulary.
    """

    def __init__(
        self, vocabulary: int, *, context: int, embedding: int, hidden: Sequence[int], sparse: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, sparse=sparse)
        self.layers = MLP((context * embedding, *hidden))

    def forward(self, words: Tensor) -> Tensor:
        """Hidden rows ``(N, hidden[-1] + 1)`` of word indices ``(N, context)``."""
        h = torch.relu(self.layers(self.embedding(words).flatten(1)))
        return F.pad(h, (0, 1), value=1.0)
