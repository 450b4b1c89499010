"""Dropout with a rate of its own for every row of a batch, from tuned hyper-parameters or from a schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice
from softgate.optim.hyper_context import current_value

__all__ = ["HyperDropout", "ScheduledDropout", "per_example_dropout"]


def per_example_dropout(
    x: Tensor,
    p: Tensor | float,
    mask_dims: str | None = None,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set entries of every row to zero with the row's own probability, and scale the others by ``1 / (1 - p)``.

    Args:
        x: (B, …).
        p: probabilities in [0, 1), (B,), or one for all rows.
        mask_dims: None for a mask entry per number, ``"channel"`` for one per entry of the second dimension.
        training: False returns ``x`` as it is.
        generator: of the mask, on the device of ``x``.

    Returns:
        Tensor like ``x``; the mean over masks is ``x``.

    Raises:
        ArgumentTypeError: ``x`` or ``p`` has the wrong type.
        ArgumentValueError: shapes that do not fit, or a probability outside [0, 1).

    Example:
        >>> import torch
        >>> x = torch.ones(2, 1000)
        >>> y = per_example_dropout(x, torch.tensor([0.0, 0.75]))
        >>> torch.equal(y[0], x[0]), sorted(set(y[1].tolist()))
        (True, [0.0, 4.0])

    Paper: Self-Tuning Networks, arXiv 1903.03088, dropout with perturbed rates.
    """
    check_float_tensor("x", x)
    check_choice("mask_dims", "none" if mask_dims is None else mask_dims, ("none", "channel"))
    if not training:
        return x
    if x.ndim < (1 if mask_dims is None else 2):
        raise ArgumentValueError(f"x must have shape (B, ...), with channels (B, C, ...), got {tuple(x.shape)}")
    rates = torch.as_tensor(p, device=x.device)
    if not rates.is_floating_point():
        rates = rates.to(torch.float32)
    if rates.ndim > 1 or (rates.ndim == 1 and len(rates) not in (1, len(x))):
        raise ArgumentValueError(f"p must be a number or have shape ({len(x)},), got shape {tuple(rates.shape)}")
    if not bool(((rates >= 0) & (rates < 1)).all()):
        bad_value("p", rates.tolist(), "in [0, 1)")
    shape = x.shape if mask_dims is None else (*x.shape[:2], *[1] * (x.ndim - 2))
    rates = rates.reshape(-1, *[1] * (x.ndim - 1))
    kept = torch.rand(shape, device=x.device, dtype=torch.float32, generator=generator) >= rates
    return x * (kept / (1.0 - rates)).to(x.dtype)


class HyperDropout(nn.Module):
    """Dropout whose rate is a hyper-parameter of the context (:func:`softgate.optim.hyper`); the identity in eval mode.

    Args:
        name: of the hyper-parameter.
        mask_dims: as :func:`per_example_dropout`.

    Example:
        >>> import torch
        >>> from softgate.optim import hyper
        >>> layer = HyperDropout("p")
        >>> with hyper(None, {"p": torch.tensor([0.0, 0.5])}):
        ...     layer(torch.ones(2, 3))[0]
        tensor([1., 1., 1.])
    """

    def __init__(self, name: str, mask_dims: str | None = None) -> None:
        super().__init__()
        self.name, self.mask_dims = name, mask_dims

    def forward(self, x: Tensor) -> Tensor:
        """Drop, in training mode."""
        return per_example_dropout(x, current_value(self.name), self.mask_dims) if self.training else x

    def extra_repr(self) -> str:
        """Name of the rate."""
        return repr(self.name)


class ScheduledDropout(nn.Module):
    """Dropout that replays a schedule of rates that was found, in a network without responses.

    Args:
        steps: ascending numbers of finished steps at which a rate begins; before the first the first one holds.
        rates: as many, in [0, 1).

    Attributes:
        step: number of finished steps, to be counted by the training loop; kept in the state of the module.

    Raises:
        ArgumentTypeError: numbers of the wrong type.
        ArgumentValueError: lengths that differ, no entry, steps that do not ascend, or a rate outside [0, 1).

    Example:
        >>> layer = ScheduledDropout([0, 10], [0.1, 0.4])
        >>> layer.step.fill_(12)
        tensor(12)
        >>> round(layer.rate, 3)
        0.4
    """

    step: Tensor

    def __init__(self, steps: Sequence[int], rates: Sequence[float]) -> None:
        super().__init__()
        if not len(steps) or len(steps) != len(rates) or list(steps) != sorted(set(steps)):
            raise ArgumentValueError(f"steps must ascend, as many as rates, at least one, got {len(steps)} steps")
        if not all(isinstance(rate, int | float) for rate in rates):
            raise ArgumentTypeError("rates must be numbers")
        if not all(0.0 <= rate < 1.0 for rate in rates):
            bad_value("rates", list(rates), "in [0, 1)")
        self.steps, self.rates = tuple(steps), tuple(rates)
        self.register_buffer("step", torch.tensor(0))

    @property
    def rate(self) -> float:
        """The rate that holds now."""
        passed = sum(start <= int(self.step) for start in self.steps)
        return float(self.rates[max(passed - 1, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Drop, in training mode."""
        return per_example_dropout(x, self.rate) if self.training else x
