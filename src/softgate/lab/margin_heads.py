"""Training a classifier with a margin or a softmax head alike, and looking at its decisions by every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig, fit

__all__ = ["Classifier", "decisions", "scores_of", "train_head"]

Rows = tuple[Tensor, Tensor]


class Classifier(Protocol):
    """A model with the loss and the decision rule of its own head."""

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of scores and class indices."""

    def decide(self, scores: Tensor, rule: Any = "argmax") -> Tensor:
        """Class indices of scores."""


@torch.no_grad()
def scores_of(model: nn.Module, inputs: Tensor, chunk: int = 500) -> Tensor:
    """Scores of all ``inputs`` in eval mode, ``chunk`` at a time; the model's mode is put back."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    scores = torch.cat([model(part.to(device)).cpu() for part in inputs.split(chunk)])
    model.train(was_training)
    return scores


def decisions(scores: Tensor, labels: Tensor, *, signs: bool, prefix: str = "") -> dict[str, float]:
    """Accuracy of the largest score and, for a margin head, what the authors' rule on signs makes of the same scores.

    Args:
        scores: (N, C).
        labels: (N,).
        signs: look at signs too.
        prefix: put in front of the names.

    Returns:
        ``accuracy``; with ``signs`` also ``sign_accuracy`` (argmax over signs, the first of several positive classes
        and class 0 if there is none), ``sign_accuracy_last`` (the last instead: which one a framework takes is its own
        affair) and the shares of rows with ``none_positive`` and ``several_positive``.
    """
    figures = {"accuracy": _share(scores.argmax(1) == labels)}
    if signs:
        sign, positive = scores.sign(), (scores > 0).sum(1)
        last = scores.shape[1] - 1 - sign.flip(1).argmax(1)
        figures |= {
            "sign_accuracy": _share(sign.argmax(1) == labels),
            "sign_accuracy_last": _share(last == labels),
            "none_positive": _share(positive == 0),
            "several_positive": _share(positive > 1),
        }
    return {prefix + name: value for name, value in figures.items()}


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def train_head(
    run: CellRun, model: nn.Module, batches: Callable[[int], Rows], watched: Rows, *, steps: int, lr: float,
    signs: bool, name: str = "fit", precision: str = "fp32",
) -> dict[str, list[float]]:  # fmt: skip
    """Train with Adam at a constant rate, as both papers do, and no weight decay but the head's own penalty.

    Args:
        run: where it runs.
        model: a :class:`Classifier`.
        batches: step -> inputs and labels.
        watched: inputs and labels whose accuracy is followed.
        steps: updates.
        lr: learning rate.
        signs: follow the accuracy by signs too.
        name: tells apart several trainings of one run.
        precision: ``"fp32"`` or ``"bf16"``.

    Returns:
        Curves ``loss``, ``eval_step``, ``accuracy`` and those of :func:`decisions`.
    """
    inputs, labels = watched

    def step_loss(model: Any, batch: Rows) -> Tensor:
        return _unwrapped(model).loss(model(batch[0]), batch[1])

    def evaluate(model: nn.Module) -> dict[str, float]:
        return decisions(scores_of(model, inputs), labels, signs=signs)

    config = TrainConfig(
        steps=steps,
        lr=lr,
        schedule="constant",
        betas=(0.9, 0.999),
        clip=None,
        eval_every=max(1, steps // 10),
        precision=precision,
    )
    return fit(model, step_loss, config, run=run, batches=batches, evaluate=evaluate, name=name)


def _unwrapped(model: Any) -> Classifier:
    """The model inside the wrapper of distributed training, whose parameters are the same tensors."""
    return getattr(model, "module", model)
