"""The norm of the gradient at every update, before clipping, without a second pass over the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class GradientNorm:
    """Sums up the squares of gradients as backward delivers them.

    Call :meth:`next` at the beginning of every step function; hand the object to ``fit(state=...)`` so that a resumed
    run has the same figures. It counts each backward of a step once: without gradient accumulation only.

    Args:
        model: whose parameters are watched.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> norm = GradientNorm(layer)
        >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> norm.next(), norm.largest
        (5.0, 5.0)
    """

    def __init__(self, model: nn.Module) -> None:
        self._square: Tensor | float = 0.0
        self.largest = 0.0
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._add)

    def _add(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._square = self._square + parameter.grad.detach().square().sum()

    def next(self) -> float:
        """Norm of the gradient of the step that ended, 0 before the first; begins a new one."""
        norm = float(torch.as_tensor(self._square).sqrt())
        self._square, self.largest = 0.0, max(self.largest, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"square": torch.as_tensor(self._square), "largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._square, self.largest = state["square"], state["largest"]
