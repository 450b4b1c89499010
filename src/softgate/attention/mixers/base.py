"""What the causal token mixers share: the call with a state, projections of heads, a causal convolution."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

#: State of a mixer after a sequence: tensors whose shapes (but for softmax) do not depend on its length.
MixerState = tuple[Tensor, ...]


class CausalMixer(nn.Module):
    """A layer (B, T, dim) -> (B, T, dim) in which a token sees itself and earlier ones; subclasses define ``_mix``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.dim = dim

    @overload
    def forward(self, x: Tensor, state: MixerState | None = None, *, keep: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, state: MixerState | None = None, return_state: bool = False, *, keep: Tensor | None = None
    ) -> Any: ...
    def forward(
        self, x: Tensor, state: MixerState | None = None, return_state: bool = False, *, keep: Tensor | None = None
    ) -> Tensor | tuple[Tensor, MixerState]:
        """Mix the tokens of ``x``, which continue those that led to ``state``.

        Args:
            x: (B, T, dim).
            state: what an earlier call returned; None at the start of a sequence.
            return_state: also return the state after the last token.
            keep: (B, T) bool, True = real token. Padding adds nothing to the state and lets nothing decay; it must
                stand at the ends of a sequence, not inside. Outputs of padding mean nothing.

        Returns:
            (B, T, dim), or that and the state.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ArgumentValueError(f"x must have shape (batch, length, {self.dim}), got {tuple(x.shape)}")
        if keep is not None:
            if not isinstance(keep, Tensor) or keep.dtype is not torch.bool:
                raise ArgumentTypeError(
                    f"keep must be a bool tensor, got {getattr(keep, 'dtype', type(keep).__name__)}"
                )
            if keep.shape != x.shape[:2]:
                raise ArgumentValueError(f"keep must have shape {tuple(x.shape[:2])}, got {tuple(keep.shape)}")
        y, after = self._mix(x, state, keep)
        return (y, after) if return_state else y

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the matrices from N(0, 1 / inputs), zero the biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class CausalConv(nn.Module):
    """Depth-wise convolution over the last ``width`` tokens, (B, T, channels) -> the same."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, width, groups=channels)

    def forward(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Result, and the last ``width - 1`` tokens, which the next call needs as ``tail``."""
        earlier = self.conv.kernel_size[0] - 1
        if tail is None:
            tail = x.new_zeros(x.shape[0], earlier, x.shape[2])
        extended = torch.cat((tail.to(x.dtype), x), 1)
        return self.conv(extended.mT).mT, extended[:, extended.shape[1] - earlier :]


def check_sizes(**sizes: Any) -> None:
    """Raise unless all are positive ints."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "a positive int")
        if size < 1:
            bad_value(name, size, "a positive int")


def heads_of(flat: Tensor, heads: int) -> Tensor:
    """(B, T, heads·F) -> (B, heads, T, F)."""
    return flat.unflatten(-1, (heads, -1)).transpose(1, 2)


def inverse_softplus(value: Tensor) -> Tensor:
    """The number whose softplus is ``value``."""
    return value + torch.log(-torch.expm1(-value))


def only_kept(x: Tensor, keep: Tensor | None, fill: float = 0.0) -> Tensor:
    """``x`` (B, T, …) with ``fill`` at padding."""
    return x if keep is None else x.masked_fill(~keep.reshape(*keep.shape, *(1,) * (x.ndim - 2)), fill)
