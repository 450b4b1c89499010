"""The anchor of a policy: a copy that stays, follows, or is refreshed."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice

__all__ = ["Anchor"]

MODES = ("fixed", "on_policy", "ema", "refresh", "kl")


class Anchor(nn.Module):
    """A frozen copy of a policy, and the rule by which :meth:`update` moves it.

    ``"fixed"`` never moves; ``"on_policy"`` becomes the policy at every update (call it where answers are sampled);
    ``"ema"`` goes the share ``rate`` of the way in parameters; ``"refresh"`` becomes the policy at every
    ``every``-th update; ``"kl"`` does so once the mean of |logp - anchor_logp| has passed ``threshold``.

    The copy is in evaluation mode, its parameters ask for no gradient, and calling the anchor runs it without
    gradients. ``state_dict`` holds the copy and the number of updates.

    Args:
        model: the policy; it is copied, not kept.
        mode: ``"fixed"``, ``"on_policy"``, ``"ema"``, ``"refresh"`` or ``"kl"``.
        rate: share of the way at every update, in [0, 1] (``"ema"``): 0 is ``"fixed"``, 1 is ``"on_policy"``.
        every: updates between two refreshes, at least 1 (``"refresh"``).
        threshold: mean absolute log-ratio that triggers a refresh, positive (``"kl"``).

    Shapes: those of the model.

    Raises:
        ArgumentTypeError: ``model`` is no module, or an option has the wrong type.
        ArgumentValueError: an option is not allowed.

    Example:
        >>> policy = nn.Linear(2, 1)
        >>> anchor = Anchor(policy, "ema", rate=0.5)
        >>> before = float(anchor.model.bias)
        >>> _ = policy.bias.data.add_(1.0)
        >>> anchor.update(policy)
        True
        >>> round(float(anchor.model.bias) - before, 6)
        0.5

    Paper: ADPO, arXiv 2510.18913, fixed and dynamic anchors.
    """

    updates: Tensor

    def __init__(
        self, model: nn.Module, mode: str = "fixed", *, rate: float = 0.05, every: int = 100, threshold: float = 0.1
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            bad_type("model", model, "a torch.nn.Module")
        check_choice("mode", mode, MODES)
        check_sizes(every=every)
        self.mode, self.every = mode, every
        self.rate = check_number("rate", rate, low=0.0, high=1.0)
        self.threshold = check_number("threshold", threshold, low=0.0, low_open=True)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Self:
        """Leave the copy in evaluation mode, whatever a surrounding module is set to."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy gives for these arguments, without a gradient."""
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def update(self, model: nn.Module, log_ratio: Tensor | None = None) -> bool:
        """Count one update of the policy and move the anchor if it is due.

        Args:
            model: the policy as it is now, with the parameters of the one that was copied.
            log_ratio: log-probabilities of the policy minus those of the anchor, any shape; needed by ``"kl"``.

        Returns:
            Whether the anchor was moved.

        Raises:
            ArgumentTypeError: ``"kl"`` got no ``log_ratio``.
            ArgumentValueError: ``model`` has other parameters than the copy, or ``log_ratio`` is empty or not finite.
        """
        share = self._share(log_ratio)
        pairs = list(self._pairs(model)) if share else []
        self.updates += 1
        for own, new in pairs:
            if share == 1.0 or not own.is_floating_point():
                own.copy_(new)
            else:
                own.lerp_(new.to(own.dtype), share)
        return bool(pairs)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        used = {"ema": f", rate={self.rate}", "refresh": f", every={self.every}", "kl": f", threshold={self.threshold}"}
        return f"mode={self.mode!r}{used.get(self.mode, '')}"

    def _share(self, log_ratio: Tensor | None) -> float:
        """How much of the way to the policy this update goes."""
        if self.mode == "kl":
            if not isinstance(log_ratio, Tensor):
                raise ArgumentTypeError(f"log_ratio must be a tensor with mode='kl', got {type(log_ratio).__name__}")
            distance = float(log_ratio.detach().abs().mean()) if log_ratio.numel() else float("nan")
            if not distance < float("inf"):
                raise ArgumentValueError("log_ratio must hold finite numbers, at least one of them")
            return float(distance > self.threshold)
        if self.mode == "refresh":
            return float((int(self.updates) + 1) % self.every == 0)
        return {"fixed": 0.0, "on_policy": 1.0, "ema": self.rate}[self.mode]

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        if not isinstance(model, nn.Module):
            bad_type("model", model, "a torch.nn.Module")
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        new = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        different = [n for n in {**own, **new} if n not in own or n not in new or own[n].shape != new[n].shape]
        if different:
            raise ArgumentValueError(f"model must have the parameters of the anchor; {different[0]!r} differs")
        if any(tensor.is_meta for tensor in new.values()):
            raise StateError("the anchor cannot follow a model on the meta device")
        return [(own[name], new[name].detach()) for name in own]
