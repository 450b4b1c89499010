"""Smooth adversarial comp-sum loss: fit the clean input, and keep the margins where they are under perturbation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentValueError, bad_type, check_choice
from softgate.losses._targets import REDUCTIONS
from softgate.losses.comp_sum import check_tau, comp_sum_loss
from softgate.losses.pgd import PGD

__all__ = ["AdvCompSumLoss", "margin_shift"]


def margin_shift(logits: Tensor, shifted: Tensor, target: Tensor) -> Tensor:
    r"""How far the margins of a sample move, ``||Delta(x', y) - Delta(x, y)||_2``.

    ``Delta(x, y)`` holds ``h(x, y) - h(x, y')`` for all other classes ``y'``.

    Args:
        logits: scores at x, ``(N, C)``.
        shifted: scores at x', ``(N, C)``.
        target: labels, ``(N,)``.

    Returns:
        ``(N,)``, at least 0; the gradient is 0 where it is 0.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a shape does not fit.

    Example:
        >>> margin_shift(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([1.])

    Paper: arXiv 2304.07288, sec. 6.
    """
    check_float_tensor("logits", logits)
    check_float_tensor("shifted", shifted)
    if logits.ndim != 2 or shifted.shape != logits.shape:
        raise ArgumentValueError(
            f"logits and shifted must have one shape (N, C), got {tuple(logits.shape)} and {tuple(shifted.shape)}"
        )
    if not isinstance(target, Tensor) or target.is_floating_point():
        bad_type("target", target, "a tensor of class indices")
    if target.shape != logits.shape[:1]:
        raise ArgumentValueError(f"target must have shape ({len(logits)},), got {tuple(target.shape)}")
    move = shifted - logits
    # the entry of the class itself is 0, so that the norm over all classes is that over the others
    return torch.linalg.vector_norm(move.gather(1, target.long().unsqueeze(1)) - move, dim=1)


class AdvCompSumLoss(nn.Module):
    r"""Smooth adversarial comp-sum loss (ADV-COMP-SUM), for training a classifier that resists perturbations.

    .. math:: L = \Phi_\tau\Big(\sum_{y' \ne y} e^{-(h(x, y) - h(x, y')) / \rho}\Big) +
              \nu \max_{\|x' - x\| \le \gamma} \| \Delta(x', y) - \Delta(x, y) \|_2

    The first term is :func:`softgate.losses.comp_sum_loss` of the clean input at temperature ``rho``; the second is
    approached by a PGD attack on :func:`margin_shift` and keeps the margins in place. Gradients flow through both
    inputs of the second term, not through the attack. With ``nu >= sqrt(n - 1) / rho`` (n classes) the loss is an upper
    bound of the adversarial rho-margin loss; in practice ``nu`` is tuned.

    Args:
        tau: order of the comp-sum loss.
        rho: margin, positive.
        nu: weight of the second term, at least 0; 0 leaves the clean loss and runs no attack.
        attack: settings of the search for x'; it must start at random, because the norm has no slope at x.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shapes: ``loss(model, input, target)`` with samples first in ``input``, ``target`` ``(N,)`` class indices, and
    ``model(input)`` logits ``(N, C)``. The model keeps its mode during the attack.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> loss = AdvCompSumLoss(nu=0.5, attack=PGD(eps=0.1, steps=3, bounds=None))
        >>> model = torch.nn.Linear(4, 3)
        >>> loss(model, torch.zeros(2, 4), torch.tensor([0, 2])).backward()

    Paper: arXiv 2304.07288, sec. 6 (the constant of the bound is derived again).
    """

    def __init__(
        self, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0, attack: PGD | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.tau = check_tau(tau)
        self.rho = check_number("rho", rho, low=0.0, low_open=True, high_open=True)
        self.nu = check_number("nu", nu, low=0.0, high_open=True)
        self.attack = PGD() if attack is None else attack
        if not isinstance(self.attack, PGD):
            bad_type("attack", attack, "a softgate.losses.PGD or None")
        if not self.attack.random_start:
            raise ArgumentValueError("attack must have random_start=True: the norm has no slope at the input itself")
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(
        self,
        model: Callable[[Tensor], Tensor],
        input: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of ``model`` on ``input`` and ``target``.

        Args:
            model: inputs -> logits ``(N, C)``.
            input: clean inputs, samples first.
            target: class indices ``(N,)``.
            generator: source of randomness of the attack's start.

        Returns:
            0-d tensor, or ``(N,)`` with ``reduction="none"``.

        Raises:
            ArgumentTypeError: an argument has the wrong type.
            ArgumentValueError: an argument is not allowed.
        """
        check_float_tensor("input", input)
        logits = model(input)
        rows = comp_sum_loss(logits, target, reduction="none", tau=self.tau, temperature=self.rho)
        if self.nu > 0.0:
            fixed = logits.detach()
            moved = self.attack(lambda x: margin_shift(fixed, model(x), target), input, generator)
            rows = rows + self.nu * margin_shift(logits, model(moved), target)
        return rows if self.reduction == "none" else rows.sum() if self.reduction == "sum" else rows.mean()

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"tau={self.tau}, rho={self.rho}, nu={self.nu}, attack={self.attack}, reduction={self.reduction!r}"
