"""A temperature for every context: higher where the policy is unsure, and where it does badly though it is sure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError

__all__ = ["AdaptiveTau"]


@dataclass(frozen=True)
class AdaptiveTau:
    """``tau = clip(tau_0 (1 + alpha H + beta (1 - H)(1 - R)), low, high)`` with entropy H and reward R in [0, 1].

    At the optimum a larger tau allows a larger departure from the anchor; on the way there it makes gradients smaller
    (see :func:`softgate.policy.anchored_cross_entropy`).

    Attributes:
        tau: temperature of a sure policy with the best reward, positive.
        alpha: how much entropy adds, at least 0.
        beta: how much a low reward of a sure policy adds, at least 0.
        low: smallest temperature, positive.
        high: largest temperature, at least ``low``.

    Example:
        >>> import torch
        >>> AdaptiveTau()(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
        tensor([1.0000, 1.5000, 2.0000])

    Paper: ADPO, arXiv 2510.18913, adaptive temperature.
    """

    tau: float = 1.0
    alpha: float = 0.5
    beta: float = 1.0
    low: float = 0.1
    high: float = 5.0

    def __post_init__(self) -> None:
        check_number("tau", self.tau, low=0.0, low_open=True, high_open=True)
        check_number("alpha", self.alpha, low=0.0, high_open=True)
        check_number("beta", self.beta, low=0.0, high_open=True)
        check_number("low", self.low, low=0.0, low_open=True, high_open=True)
        check_number("high", self.high, low=self.low, high_open=True)

    def __call__(self, entropy: Tensor, rewards: Tensor, kept: Tensor | None = None) -> Tensor:
        """Temperatures of P contexts, without gradient.

        Args:
            entropy: (P,) mean token entropy over log V, in [0, 1].
            rewards: (P,) mean reward of every context; scaled to [0, 1] over the batch, ½ if all are equal.
            kept: (P,) bool, which contexts count for that scale; None for all.

        Returns:
            (P,) in float32 or wider.

        Raises:
            ArgumentTypeError: an argument is no floating-point tensor.
            ArgumentValueError: the shapes differ.
        """
        for name, tensor in (("entropy", entropy), ("rewards", rewards)):
            check_float_tensor(name, tensor)
        if entropy.shape != rewards.shape or entropy.ndim != 1:
            raise ArgumentValueError(
                f"entropy and rewards must have one shape (P,), got {tuple(entropy.shape)} and {tuple(rewards.shape)}"
            )
        check_same_device(entropy=entropy, rewards=rewards)
        dtype = compute_dtype(torch.promote_types(entropy.dtype, rewards.dtype))
        h, r = entropy.detach().to(dtype), rewards.detach().to(dtype)
        if r.numel() == 0:
            return h
        counted = torch.ones_like(r, dtype=torch.bool) if kept is None else kept
        lowest = r.masked_fill(~counted, float("inf")).amin()
        width = r.masked_fill(~counted, float("-inf")).amax() - lowest
        level = torch.where(width > 0, (r - lowest) / torch.where(width > 0, width, 1.0), 0.5)
        return (self.tau * (1 + self.alpha * h + self.beta * (1 - h) * (1 - level))).clamp(self.low, self.high)
