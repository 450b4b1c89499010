"""Prompts learnt from a few shots of some classes, and tested on these and on new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig, fit
from softgate.routing import PromptMixture

__all__ = ["FewShots", "evaluate_prompts", "harmonic", "learn_prompts"]

#: Images, labels within the part, and the number of each image's group of templates where it is known.
TestBatch = tuple[Tensor, Tensor, Tensor | None]


class FewShots(Protocol):
    """Base classes with a few training images each, and new classes with none."""

    def names(self, part: str) -> Sequence[str]:
        """Class names of ``"base"`` or ``"new"``."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Training images and labels of the base classes."""

    def test(self, part: str) -> Iterator[TestBatch]:
        """Test images of a part."""


def harmonic(base: float, new: float) -> float:
    """Harmonic mean of two accuracies, 0 if both are."""
    return 2.0 * base * new / (base + new) if base + new else 0.0


@torch.no_grad()
def evaluate_prompts(model: PromptMixture, shots: FewShots) -> dict[str, float]:
    """``base``, ``new`` and ``harmonic``: accuracies in each part among its own classes, and their mean.

    Where images have a group and the model a choice, also the shares of those whose first group (``top1``) or one of
    whose chosen groups (``routed``) is that one.
    """
    model.eval()
    device = model.router.weight.device
    counts = {"base": [0, 0], "new": [0, 0], "top1": [0, 0], "routed": [0, 0]}

    def count(name: str, hits: Tensor) -> None:
        counts[name][0] += int(hits.sum())
        counts[name][1] += len(hits)

    for part in ("base", "new"):
        model.set_classes(shots.names(part))
        for images, labels, groups in shots.test(part):
            out = model(images.to(device))
            count(part, out.logits.argmax(-1) == labels.to(device))
            if groups is not None and model.bank.n_groups > 1:
                hits = out.topk_indices == groups.to(device)[:, None]
                count("top1", hits[:, 0])
                count("routed", hits.any(1))
    model.set_classes(shots.names("base"))
    found = {name: right / images for name, (right, images) in counts.items() if images}
    return {**found, "harmonic": harmonic(found["base"], found["new"])}


def learn_prompts(
    run: CellRun,
    clip: nn.Module,
    tokenizer: Any,
    shots: FewShots,
    options: Mapping[str, Any],
    training: TrainConfig,
    *,
    batch: int,
    weight_decay: float = 0.0,
    name: str = "prompts",
) -> dict[str, Any]:
    """Learn prompts by stochastic gradient descent with momentum 0.9, and test them.

    Args:
        run: the cell.
        clip: frozen in place, as :class:`PromptMixture` says.
        tokenizer: its tokenizer.
        shots: the task.
        options: ``templates`` and other arguments of :class:`PromptMixture`.
        training: how long and how fast.
        batch: images per update.
        weight_decay: of the optimizer.
        name: of the training within the run.

    Returns:
        What :func:`evaluate_prompts` finds; the curve ``curve_cls`` over ``step``; and for several groups the curve
        ``curve_gate`` and its means ``gate_loss_first`` and ``gate_loss_last`` over a tenth of the updates.
    """
    base, new = shots.names("base"), shots.names("new")
    model = PromptMixture(clip, tokenizer, classnames=base, all_classnames=[*base, *new], **options)

    def step_loss(net: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        out = net(*pair)
        return out["loss"], {part: out[part].detach() for part in ("loss_cls", "loss_gate")}

    def optimizer(_: Any) -> torch.optim.Optimizer:
        groups = model.trainable_parameters(training.lr)
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=weight_decay)

    curves = fit(
        model, step_loss, training,
        batches=lambda step: shots.batch(step, batch), run=run, name=name, optimizer=optimizer,
    )  # fmt: skip
    found = {**evaluate_prompts(model, shots), "curve_cls": curves["loss_cls"], "step": curves["step"]}
    if model.bank.n_groups == 1:
        return found
    gate, tail = curves["loss_gate"], max(1, training.steps // 10)
    means = {"gate_loss_first": sum(gate[:tail]) / tail, "gate_loss_last": sum(gate[-tail:]) / tail}
    return {**found, **means, "curve_gate": gate}
