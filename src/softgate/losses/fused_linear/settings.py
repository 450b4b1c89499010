"""What a fused linear loss computes: every option that is not a tensor, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.losses import _comp_sum_phi as comp_sum
from softgate.losses._targets import REDUCTIONS

#: Loss and gradient weight ``-d loss / d log p`` of rows from their log-probabilities.
Phi = Callable[[Tensor], tuple[Tensor, Tensor]]

LOSSES = ("ce", "comp_sum", "focal", "stablemax", "svm", "zloss")
BACKENDS = ("auto", "eager", "cpu", "triton", "reference")
#: Losses that are minus the log-probability of the target, for which smoothing is a term of its own.
_LOGARITHMIC = ("ce", "stablemax")


@dataclass(frozen=True)
class Settings:
    """Options of one call; see :func:`softgate.losses.fused_linear_loss`."""

    loss: str | Phi = "ce"
    tau: float = 1.0
    gamma: float = 2.0
    temperature: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0
    z_penalty: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    shift: int = 0
    chunk: int | str | None = None
    accum_dtype: torch.dtype | None = None
    grad_filter_eps: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            check_choice("loss", self.loss, LOSSES)
        check_number("tau", self.tau, low=0.0, high_open=True)
        check_number("gamma", self.gamma, low=0.0, high_open=True)
        check_number("temperature", self.temperature, low=0.0, low_open=True, high_open=True)
        if self.softcap is not None:
            check_number("softcap", self.softcap, low=0.0, low_open=True, high_open=True)
        check_number("label_smoothing", self.label_smoothing, low=0.0, high=1.0)
        check_number("z_penalty", self.z_penalty, low=0.0, high_open=True)
        _check_int("ignore_index", self.ignore_index)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if _check_int("shift", self.shift) < 0:
            bad_value("shift", self.shift, "0 or larger")
        if self.chunk not in (None, "auto") and (isinstance(self.chunk, str) or _check_int("chunk", self.chunk) < 1):
            bad_value("chunk", self.chunk, "None, 'auto' or a positive number of rows")
        if self.accum_dtype not in (None, torch.float32, torch.float64):
            bad_value("accum_dtype", self.accum_dtype, "None, torch.float32 or torch.float64")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.grad_filter_eps is not None:
            check_number("grad_filter_eps", self.grad_filter_eps, low=0.0, high_open=True)
            if self.loss != "ce":
                raise ArgumentValueError(f"grad_filter_eps needs loss='ce': with {self.loss!r} the gradient is not "
                                         "concentrated on few classes")  # fmt: skip
        if self.loss in ("svm", "zloss"):
            for name in ("label_smoothing", "z_penalty"):
                if getattr(self, name):
                    bad_value(name, getattr(self, name), f"0 with loss={self.loss!r}, which has no probabilities")
        if self.loss == "zloss" and self.softcap is not None:
            bad_value("softcap", self.softcap, "None with loss='zloss', which needs no logits but their sums")

    @property
    def smooths_every_class(self) -> bool:
        """Whether smoothing sums another loss than ``-log p`` over all classes, which needs whole rows of logits."""
        return self.label_smoothing > 0.0 and self.loss not in _LOGARITHMIC

    @property
    def compressed(self) -> bool:
        """Whether the logits pass through the signed logarithm of StableMax."""
        return self.loss == "stablemax"

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype of logits, row statistics and gradient sums for operands of ``dtype``."""
        return torch.promote_types(compute_dtype(dtype), self.accum_dtype or torch.float32)

    def phi(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each row and ``w = -d loss / d log p``."""
        if callable(self.loss):
            return self.loss(log_p)
        if self.loss == "comp_sum":
            return comp_sum.phi(log_p, self.tau), comp_sum.phi_weight(log_p, self.tau)
        if self.loss == "focal":
            return _focal(log_p, self.gamma)
        return -log_p, torch.ones_like(log_p)


def _focal(log_p: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """``-(1 - p)^gamma log p``; ``1 - p`` without cancellation, and 0 for p = 1 whatever the exponent."""
    if gamma == 0.0:
        return -log_p, torch.ones_like(log_p)
    certain = log_p == 0.0
    rest = -torch.expm1(torch.where(certain, -1.0, log_p))
    power = rest**gamma
    impossible = torch.isneginf(log_p)  # p log p -> 0
    p_log_p = torch.where(impossible, 0.0, log_p.exp() * torch.where(impossible, 0.0, log_p))
    weight = power - gamma * rest ** (gamma - 1.0) * p_log_p
    return torch.where(certain, 0.0, -power * log_p), torch.where(certain, 0.0, weight)


def _check_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        bad_type(name, value, "an int")
    return value
