"""Looking at a model without changing it: eval mode for a while, and accuracy on batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def accuracy_of(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of rows whose largest logit is at the label; a row with NaN counts as wrong."""
    hits = rows = 0
    like = next(model.parameters(), None)
    for inputs, labels in loader:
        logits = model(inputs if like is None else inputs.to(like.device)).cpu()
        hits += int(((logits.argmax(-1) == labels.cpu()) & ~logits.isnan().any(-1)).sum())
        rows += len(labels)
    if not rows:
        raise ArgumentValueError("loader must give at least one batch, it gave none")
    return hits / rows
