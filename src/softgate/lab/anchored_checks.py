"""The special cases of the anchored loss, each measured against the loss that it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.policy import anchored_cross_entropy, dpo_loss, preference_target

__all__ = ["measure_identities"]

#: ``(logits, other, scores) -> (anchored loss, the loss it equals up to a constant)``
_Case = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _fine_tuning(logits: Tensor, other: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    label = scores.argmax(-1)
    one_hot = functional.one_hot(label, logits.shape[-1]).to(logits.dtype)
    return anchored_cross_entropy(logits, torch.zeros_like(logits), one_hot), functional.cross_entropy(logits, label)


def _distillation(logits: Tensor, other: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    heat = 2.5
    teacher = (other / heat).softmax(-1)
    ours = anchored_cross_entropy(logits, torch.zeros_like(logits), teacher, tau=heat)
    return ours, functional.kl_div((logits / heat).log_softmax(-1), teacher, reduction="batchmean")


def _maximum_entropy(logits: Tensor, other: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    alpha = 0.7
    ours = anchored_cross_entropy(logits, torch.zeros_like(logits), preference_target(scores, beta=alpha))
    boltzmann = (scores / alpha).softmax(-1)
    return ours, functional.kl_div(logits.log_softmax(-1), boltzmann, reduction="batchmean")


def _preferences(smoothing: float) -> _Case:
    def case(logits: Tensor, other: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        beta, logp, anchor = 0.3, logits[:, :2], other[:, :2]
        q = torch.tensor([1 - smoothing, smoothing], dtype=logits.dtype).expand_as(logp)
        pair = (*logp.unbind(-1), *anchor.unbind(-1))
        return anchored_cross_entropy(logp, anchor, q, tau=1 / beta), dpo_loss(
            *pair, beta=beta, label_smoothing=smoothing
        )

    return case


def _reinforce(logits: Tensor, other: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """On the first step after sampling: only gradients are compared."""
    tau, logp = 0.8, logits.log_softmax(-1)
    q = preference_target(scores, "zscore", 0.5)
    advantages = (q - 1 / q.shape[-1]) / tau
    ours = anchored_cross_entropy(logp, logp.detach(), q, tau=tau)
    return ours, -(advantages * logp).sum(-1).mean()


_CASES: dict[str, _Case] = {
    "fine_tuning": _fine_tuning,
    "distillation": _distillation,
    "maximum_entropy": _maximum_entropy,
    "dpo": _preferences(0.0),
    "smoothed_dpo": _preferences(0.2),
    "reinforce": _reinforce,
}


def measure_identities(run: CellRun) -> dict[str, Any]:
    """Largest differences of gradients between the anchored loss and its special cases, in float64.

    The configuration holds ``contexts`` and ``candidates``.

    Returns:
        ``error_NAME`` for every case, ``largest_error``; and for the optimum ``pi_ref * q ** tau``: the gradient there
        (``optimum_error``) and the largest error of the Hessian ``(diag p - p p') / tau ** 2`` (``curvature_error``).
    """
    stream = seeds.generator(run.seed, "anchored-identities")
    shape = (run.config["contexts"], run.config["candidates"])
    logits, other, scores = torch.randn(3, *shape, dtype=torch.float64, generator=stream)
    logits.requires_grad_()
    errors = {}
    for name, case in _CASES.items():
        ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in case(logits, other, scores))
        errors[f"error_{name}"] = float((ours - theirs).abs().max())
    return {**errors, "largest_error": max(errors.values()), **_shape_of_the_valley(other, scores)}


def _shape_of_the_valley(anchor: Tensor, scores: Tensor) -> dict[str, float]:
    tau, q = 0.6, preference_target(scores)
    optimum = (anchor + tau * q.log()).log_softmax(-1).requires_grad_()
    (gradient,) = torch.autograd.grad(anchored_cross_entropy(optimum, anchor, q, tau=tau, reduction="sum"), optimum)
    hessian = torch.func.hessian(lambda x: anchored_cross_entropy(x, anchor[0], q[0], tau=tau))(optimum[0].detach())
    expected = (q[0].diag() - q[0].outer(q[0])) / tau**2
    return {
        "optimum_error": float(gradient.abs().max()),
        "curvature_error": float((hessian - expected).abs().max()),
    }
