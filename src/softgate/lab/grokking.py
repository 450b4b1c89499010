"""Full-batch training of a small network on a small table: does it generalise long after it has memorised?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.diagnostics import nlm_alignment, softmax_collapse
from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.modular_arithmetic import modular_arithmetic
from softgate.lab.tasks.sparse_parity import sparse_parity
from softgate.lab.tasks.split import Split
from softgate.lab.training import TrainConfig, fit
from softgate.losses import collapse_free_cross_entropy, stablemax_cross_entropy
from softgate.models import MLP
from softgate.optim import OrthoGrad

__all__ = ["measure_grokking", "rounded_cross_entropy"]

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
LOSSES = ("softmax", "stablemax", "collapse-free")


def rounded_cross_entropy(logits: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """Row losses of softmax cross-entropy with every operation rounded to ``dtype``.

    ``F.cross_entropy`` on 16-bit logits sums in float32 on most devices, so it hides what the precision does.
    """
    scores = logits.to(dtype)
    below = scores - scores.amax(1, keepdim=True).detach()
    return below.exp().sum(1).log() - below.gather(1, target.unsqueeze(1)).squeeze(1)


def row_losses(logits: Tensor, target: Tensor, loss: str, dtype: torch.dtype) -> Tensor:
    """Loss of every row under the named loss in ``dtype``."""
    if loss == "stablemax":
        return stablemax_cross_entropy(logits.to(dtype), target, reduction="none")
    if loss == "collapse-free":
        return collapse_free_cross_entropy(logits.to(dtype), target, reduction="none")
    if dtype == torch.float16:
        return rounded_cross_entropy(logits, target, dtype)
    return F.cross_entropy(logits.to(dtype), target, reduction="none")


class _LastPosition(nn.Module):
    """One-layer transformer over the two residues, read at the last position."""

    def __init__(self, symbols: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.block = nn.TransformerEncoderLayer(width, heads, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.block(self.embedding(tokens))[:, -1])
        return output


def _task(config: Mapping[str, Any], seed: int) -> tuple[Split, nn.Module]:
    task = dict(config["task"])
    kind = task.pop("kind")
    check_choice("task", kind, ("modular", "parity"))
    hidden = config.get("hidden", (200, 200))
    if kind == "parity":
        split = sparse_parity(seed, **task)
        return split, MLP((split.train[0].shape[1], *hidden, 2), bias=True)
    if config.get("transformer"):
        return modular_arithmetic(seed, tokens=True, **task), _LastPosition(task.get("modulus", 113))
    split = modular_arithmetic(seed, **task)
    return split, MLP((split.train[0].shape[1], *hidden, task.get("modulus", 113)), bias=False)


def _optimizer(config: Mapping[str, Any]) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    options = {"lr": config["lr"], "weight_decay": config.get("weight_decay", 0.0)}
    base: type[torch.optim.Optimizer] = torch.optim.AdamW
    if config.get("momentum") is not None:
        base, options = torch.optim.SGD, {**options, "momentum": config["momentum"]}
    else:
        options |= {"betas": (0.9, config.get("beta2", 0.999)), "eps": config.get("eps", 1e-8)}
        options |= {"fused": True}
    if config.get("orthogonal"):
        return lambda parameters: OrthoGrad(parameters, base, **options)
    return lambda parameters: base(parameters, **options)  # type: ignore[arg-type]


def measure_grokking(run: CellRun) -> dict[str, float | list[float]]:
    """Train as ``run.config`` says and report accuracy, collapse and alignment along the way.

    The configuration holds ``task`` (``kind`` ``"modular"`` or ``"parity"`` and the arguments of the generator),
    ``epochs``, ``lr``, and optionally ``loss`` (``"softmax"``, ``"stablemax"``, ``"collapse-free"``), ``precision`` of
    the loss, ``orthogonal``, ``eps``, ``beta2``, ``momentum`` (SGD instead of AdamW), ``weight_decay``, ``hidden``,
    ``transformer`` and ``evaluations``.

    Returns:
        ``test_acc``, ``train_acc``, ``train_loss``, ``collapse`` (share of training rows in Softmax Collapse),
        ``zero_loss`` and ``zero_gradient`` (shares of rows whose loss, or whole logit gradient, is exactly 0), all at
        the end; ``best_test_acc``; ``mean_collapse`` over the run; curves over ``epoch`` of the same and of
        ``alignment``, the cosine of the applied gradient with naive loss minimisation.
    """
    config = run.config
    loss, dtype = config.get("loss", "softmax"), DTYPES[config.get("precision", "float32")]
    check_choice("loss", loss, LOSSES)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    split, model = _task(config, run.seed)
    split = Split(*((x.to(run.device), y.to(run.device)) for x, y in split))
    epochs = config["epochs"]
    every = max(1, epochs // config.get("evaluations", 60))
    curves = fit(
        model,
        lambda net, batch: row_losses(net(batch[0]), batch[1], loss, dtype).float().mean(),
        TrainConfig(steps=epochs, lr=config["lr"], schedule="constant", clip=None, eval_every=every),
        batches=lambda step: split.train,
        run=run,
        optimizer=_optimizer(config),
        evaluate=lambda net: _look(net, split, loss, dtype),
    )
    names = ("test_acc", "train_acc", "train_loss", "collapse", "zero_loss", "zero_gradient")
    final = {name: curves[name][-1] for name in names}
    series = {f"{name}_curve": curves[name] for name in (*names, "alignment")}
    final["mean_collapse"] = sum(curves["collapse"]) / len(curves["collapse"])
    return {**final, "best_test_acc": max(curves["test_acc"]), "epoch": curves["eval_step"], **series}


def _look(model: nn.Module, split: Split, loss: str, dtype: torch.dtype) -> dict[str, float]:
    alignment = float(nlm_alignment(model))
    train, target = split.train
    with torch.enable_grad():
        logits = model(train).detach().requires_grad_()
        rows = row_losses(logits, target, loss, dtype)
        (slopes,) = torch.autograd.grad(rows.float().sum(), logits)
    normalizer = "stablemax" if loss == "stablemax" else "softmax"
    tested = model(split.test[0]).argmax(1) == split.test[1]
    return {
        "test_acc": tested.float().mean().item(),
        "train_acc": (logits.argmax(1) == target).float().mean().item(),
        "train_loss": rows.double().mean().item(),
        "collapse": float(softmax_collapse(logits, dtype, normalizer=normalizer)),
        "zero_loss": (rows == 0).double().mean().item(),
        "zero_gradient": (slopes == 0).all(1).double().mean().item(),
        "alignment": alignment,
    }
