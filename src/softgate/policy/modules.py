"""Module forms of the objectives: settings in the constructor, one call signature for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from softgate.policy.clipped_objectives import cispo_loss, grpo_loss, gspo_loss
from softgate.policy.gates import Gate
from softgate.policy.objective_options import LossOptions
from softgate.policy.soft_adaptive import sapo_loss

__all__ = ["CISPOLoss", "GRPOLoss", "GSPOLoss", "PolicyLoss", "SAPOLoss"]


class PolicyLoss(nn.Module):
    """An objective with its settings; subclasses say which.

    Settings are plain attributes and are read at every call, so a schedule assigns them between updates. Values are
    checked (``check=True``) unless the options say otherwise: one synchronisation per call.

    Args:
        function: the objective.
        settings: its own keyword arguments.
        options: those of every objective.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.
    """

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any], options: LossOptions) -> None:
        super().__init__()
        self._function, self._names = function, tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)
        self.options: dict[str, Any] = {"check": True, **options}

    def forward(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, **options: Unpack[LossOptions]
    ) -> Any:
        """The loss of a batch, see the function.

        Args:
            logp: ``(B, T)``.
            old_logp: ``(B, T)``.
            advantages: ``(B,)``, ``(B, 1)`` or ``(B, T)``.
            mask: ``(B, T)``.
            **options: replace those of the constructor, such as ``ref_logp`` or ``num_tokens`` of this batch.
        """
        settings = {name: getattr(self, name) for name in self._names}
        return self._function(logp, old_logp, advantages, mask, **settings, **{**self.options, **options})

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        values = {name: getattr(self, name) for name in self._names} | self.options
        return ", ".join(f"{name}={value!r}" for name, value in values.items())


class SAPOLoss(PolicyLoss):
    """Module form of :func:`sapo_loss`.

    Args:
        tau_pos: temperature where the advantage is positive.
        tau_neg: temperature elsewhere.
        gate: name of the gate, or a function.
        level: ``"token"`` or ``"sequence"``.
        centered: subtract the value at ratio 1.
        **options: those of every objective, :class:`LossOptions`.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.

    Example:
        >>> import torch
        >>> loss = SAPOLoss(tau_neg=1.1)
        >>> logp = torch.tensor([[-1.0, -2.0]])
        >>> loss(logp, logp, torch.tensor([0.5]), torch.ones(1, 2))
        tensor(-1.)

    Paper: arXiv 2511.20347, sec. 3.
    """

    def __init__(
        self,
        tau_pos: float | Tensor = 1.0,
        tau_neg: float | Tensor = 1.05,
        *,
        gate: str | Gate = "sapo",
        level: Literal["token", "sequence"] = "token",
        centered: bool = False,
        **options: Unpack[LossOptions],
    ) -> None:
        settings = {"tau_pos": tau_pos, "tau_neg": tau_neg, "gate": gate, "level": level, "centered": centered}
        super().__init__(sapo_loss, settings, options)


class GRPOLoss(PolicyLoss):
    """Module form of :func:`grpo_loss`.

    Args:
        eps_low: lower clip.
        eps_high: upper clip.
        dual_clip: cap of the loss for negative advantages, or None.
        delta: cap of the unclipped ratio, or None.
        **options: those of every objective, :class:`LossOptions`.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.

    Paper: the baseline of arXiv 2511.20347.
    """

    def __init__(
        self,
        eps_low: float = 0.2,
        eps_high: float = 0.2,
        dual_clip: float | None = None,
        delta: float | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        settings = {"eps_low": eps_low, "eps_high": eps_high, "dual_clip": dual_clip, "delta": delta}
        super().__init__(grpo_loss, settings, options)


class GSPOLoss(PolicyLoss):
    """Module form of :func:`gspo_loss`.

    Args:
        eps_low: lower clip.
        eps_high: upper clip.
        level: ``"sequence"`` or ``"token"``.
        **options: those of every objective, :class:`LossOptions`.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.

    Paper: the baseline of arXiv 2511.20347.
    """

    def __init__(
        self,
        eps_low: float = 3e-4,
        eps_high: float = 4e-4,
        *,
        level: Literal["sequence", "token"] = "sequence",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(gspo_loss, {"eps_low": eps_low, "eps_high": eps_high, "level": level}, options)


class CISPOLoss(PolicyLoss):
    """Module form of :func:`cispo_loss`.

    Args:
        eps_max: cap of the ratio.
        **options: those of every objective, :class:`LossOptions`.

    Raises:
        ArgumentTypeError: at the first call, if a setting has the wrong type.
        ArgumentValueError: at the first call, if a setting is not allowed.

    Paper: a baseline beside arXiv 2511.20347.
    """

    def __init__(self, eps_max: float = 5.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(cispo_loss, {"eps_max": eps_max}, options)
