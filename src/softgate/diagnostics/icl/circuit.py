"""Reading the circuit out of a trained layer: which heads do what, and how far they are from the ideal pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softgate.diagnostics.icl.attention import AttentionICL
from softgate.diagnostics.icl.prompts import check_tasks
from softgate.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["CircuitReport", "circuit_report"]


@dataclass(frozen=True)
class CircuitReport:
    """The circuit of an :class:`AttentionICL`; every figure is one of the merged matrices KQ and OV.

    Attributes:
        omega: key-query scale of each head on each task's coordinates, (H, N): mean of the diagonal of KQ there.
        mu: output weight of each head for each label, (H, N): the label block of OV, its diagonal.
        eta: (N,), Σ_h μ ω of each task: the step of the gradient descent that the heads amount to.
        off_diagonal: largest off-diagonal entry, in size, of the covariate blocks of KQ of active heads.
        homogeneity: largest relative spread, (max - min)/|mean|, of the diagonal of KQ over a task that the head
            serves; active heads only.
        zero_sum: largest |Σ_h μ| / Σ_h |μ| over the tasks. All heads count: a head with ω = 0 predicts the mean of
            the labels, which is part of the balance.
        label_row: largest entry, in size, of the label rows of KQ (which would let labels attract attention); active
            heads only.
        other_output: largest entry, in size, of the label rows of OV outside the diagonal of their label block.
        roles: what each head does: ``"positive"``, ``"negative"``, ``"opposed"`` (μ and ω of opposite sign) or
            ``"dummy"``; with several tasks the sign and number of those it serves, as ``"+0"`` or ``"+0 -1"``.
    """

    omega: Tensor
    mu: Tensor
    eta: Tensor
    off_diagonal: float
    homogeneity: float
    zero_sum: float
    label_row: float
    other_output: float
    roles: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["head  role        omega -> mu, task by task"]
        for h, role in enumerate(self.roles):
            pairs = zip(self.omega[h].tolist(), self.mu[h].tolist(), strict=True)
            lines.append(f"{h:4d}  {role:10s}  " + "   ".join(f"{w:+.3f} -> {m:+.3f}" for w, m in pairs))
        steps = ", ".join(f"{eta:.3f}" for eta in self.eta.tolist())
        lines.append(
            f"step eta {steps}; off-diagonal {self.off_diagonal:.3f}, spread of the diagonal {self.homogeneity:.1%}, "
            f"|sum mu|/sum |mu| {self.zero_sum:.3f}, label rows of KQ {self.label_row:.3f}"
        )
        return "\n".join(lines)


@torch.no_grad()
def circuit_report(
    model: AttentionICL, tasks: Sequence[Sequence[int]] | None = None, *, dummy_below: float = 0.05
) -> CircuitReport:
    """Read the circuit of ``model``.

    It depends on KQ and OV alone: exchanging heads permutes the rows of the report, and (K, Q) -> (MK, M⁻ᵀQ) changes
    nothing.

    Args:
        model: a layer, trained or not.
        tasks: coordinates of each task, as in :class:`LinearRegressionPrompts`; None: all coordinates for every task.
        dummy_below: a head serves a task if its |μ ω| is at least this share of the largest head's.

    Raises:
        ArgumentTypeError: ``model`` is no :class:`AttentionICL`.
        ArgumentValueError: ``tasks`` are not N disjoint lists of coordinates.

    Example:
        >>> model = AttentionICL(d=3, n_heads=3).set_circuit(omega=[0.2, -0.2, 0.0], mu=[2.0, -2.0, 0.0])
        >>> circuit_report(model).roles
        ('positive', 'negative', 'dummy')

    Paper: In-Context Linear Regression Demystified, arXiv 2503.12734, sec. 3 (emergent patterns).
    """
    if not isinstance(model, AttentionICL):
        raise ArgumentTypeError(f"model must be an AttentionICL, got {type(model).__name__}")
    d, n_tasks = model.d, model.n_tasks
    check_tasks(tasks, d)
    supports = [list(range(d))] * n_tasks if tasks is None else [list(task) for task in tasks]
    if len(supports) != n_tasks:
        raise ArgumentValueError(f"tasks must name the coordinates of {n_tasks} tasks, got {len(supports)}")
    kq, ov = model.kq(), model.ov()
    block, labels = kq[:, :d, :d], ov[:, d:, d:]
    diagonal = block.diagonal(dim1=-2, dim2=-1)
    omega = torch.stack([diagonal[:, support].mean(-1) for support in supports], -1)
    mu = labels.diagonal(dim1=-2, dim2=-1)
    strength = (omega * mu).abs()
    serves = (strength >= dummy_below * strength.amax(0)) & (strength > 0)
    active = serves.any(-1)
    off = block - torch.diag_embed(diagonal)
    spreads = [
        (diagonal[h, support].amax() - diagonal[h, support].amin()) / omega[h, n].abs()
        for n, support in enumerate(supports)
        for h in range(len(kq))
        if serves[h, n]
    ]
    rest = ov[:, d:].clone()
    rest[:, :, d:] -= torch.diag_embed(mu)
    return CircuitReport(
        omega=omega,
        mu=mu,
        eta=(mu * omega).sum(0),
        off_diagonal=_largest(off[active]),
        homogeneity=_largest(torch.stack(spreads)) if spreads else 0.0,
        zero_sum=_largest(mu.sum(0).abs() / mu.abs().sum(0).clamp(min=torch.finfo(mu.dtype).tiny)),
        label_row=_largest(kq[active, d:, :d]),
        other_output=_largest(rest),
        roles=tuple(_role(mu[h], omega[h], serves[h]) for h in range(len(kq))),
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _role(mu: Tensor, omega: Tensor, serves: Tensor) -> str:
    if not bool(serves.any()):
        return "dummy"
    signs = [("+" if m > 0 else "-") if m * w > 0 else "!" for m, w in zip(mu.tolist(), omega.tolist(), strict=True)]
    if len(signs) == 1:
        return {"+": "positive", "-": "negative", "!": "opposed"}[signs[0]]
    return " ".join(f"{sign}{n}" for n, sign in enumerate(signs) if serves[n])
