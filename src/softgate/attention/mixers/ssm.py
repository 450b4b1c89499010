"""State space layers: S6 (Mamba) and SSD (Mamba-2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate.attention.mixers.base import (
    CausalConv,
    CausalMixer,
    MixerState,
    check_sizes,
    heads_of,
    inverse_softplus,
    only_kept,
)
from softgate.attention.scans.selective import selective_scan, ssd_scan
from softgate.errors import bad_value

__all__ = ["SSD", "SelectiveSSM"]

#: Steps Δ start log-uniformly between these.
_STEPS = (1e-3, 1e-1)


def _initial_steps(count: int) -> Tensor:
    """Biases whose softplus is log-uniform in ``_STEPS``."""
    low, high = (math.log(step) for step in _STEPS)
    return inverse_softplus((low + (high - low) * torch.rand(count)).exp())


class SelectiveSSM(CausalMixer):
    """The S6 layer of Mamba: convolution, selective scan, gate; see :func:`softgate.attention.selective_scan`.

    Args:
        dim: width of the hidden states.
        state_dim: state per channel n.
        expand: channels of the scan are expand times dim.
        conv_width: tokens of the causal convolution before the scan.
        step_rank: rank of the map from a token to its steps Δ, dim / 16 (rounded up) if None.

    Example:
        >>> import torch
        >>> SelectiveSSM(8, state_dim=4)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 2 (S6 as a dynamical system).
    """

    def __init__(
        self, dim: int, state_dim: int = 16, *, expand: int = 2, conv_width: int = 4, step_rank: int | None = None
    ) -> None:
        super().__init__(dim)
        step_rank = -(-dim // 16) if step_rank is None else step_rank
        check_sizes(state_dim=state_dim, expand=expand, conv_width=conv_width, step_rank=step_rank)
        hidden = expand * dim
        self.state_dim, self.step_rank = state_dim, step_rank
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.conv = CausalConv(hidden, conv_width)
        self.select_proj = nn.Linear(hidden, step_rank + 2 * state_dim, bias=False)
        self.step_proj = nn.Linear(step_rank, hidden)
        self.log_A = nn.Parameter(torch.empty(hidden, state_dim))
        self.D = nn.Parameter(torch.empty(hidden))
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices from N(0, 1 / inputs), A = 1, 2, … along the state, steps between 0.001 and 0.1."""
        super().reset_parameters()
        self.step_proj.bias.copy_(_initial_steps(len(self.step_proj.bias)))
        self.log_A.copy_(torch.arange(1.0, self.state_dim + 1).log().expand_as(self.log_A))
        nn.init.ones_(self.D)

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        u, gate = self.in_proj(x).chunk(2, -1)
        u, tail = self.conv(only_kept(u, keep), None if state is None else state[1])
        u = F.silu(u)
        steps, B, C = self.select_proj(u).split((self.step_rank, self.state_dim, self.state_dim), -1)
        delta = only_kept(F.softplus(self.step_proj(steps)), keep)
        y, hidden = selective_scan(
            u, delta.to(u.dtype), self.log_A.exp(), B, C, self.D, None if state is None else state[0]
        )
        return self.out_proj(y * F.silu(gate)), (hidden, tail)


class SSD(CausalMixer):
    """The SSD layer of Mamba-2: convolution, scan with one decay per head, gated norm; see :func:`ssd_scan`.

    Args:
        dim: width of the hidden states.
        state_dim: state per channel n.
        num_heads: heads, each with its own decay; must divide expand times dim. All share B and C.
        expand: channels of the scan are expand times dim.
        conv_width: tokens of the causal convolution before the scan.

    Example:
        >>> import torch
        >>> SSD(8, state_dim=4, num_heads=2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 2 (SSD as linear attention with decay).
    """

    def __init__(
        self, dim: int, state_dim: int = 64, num_heads: int = 1, *, expand: int = 2, conv_width: int = 4
    ) -> None:
        super().__init__(dim)
        check_sizes(state_dim=state_dim, num_heads=num_heads, expand=expand, conv_width=conv_width)
        hidden = expand * dim
        if hidden % num_heads:
            bad_value("num_heads", num_heads, f"a divisor of expand * dim = {hidden}")
        self.state_dim, self.num_heads, self.hidden = state_dim, num_heads, hidden
        self.in_proj = nn.Linear(dim, 2 * hidden + 2 * state_dim + num_heads, bias=False)
        self.conv = CausalConv(hidden + 2 * state_dim, conv_width)
        self.step_bias = nn.Parameter(torch.empty(num_heads))
        self.log_A = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices from N(0, 1 / inputs), A uniform in [1, 16], steps between 0.001 and 0.1."""
        super().reset_parameters()
        self.step_bias.copy_(_initial_steps(self.num_heads))
        self.log_A.copy_((1.0 + 15.0 * torch.rand(self.num_heads)).log())
        nn.init.ones_(self.D)
        self.norm.reset_parameters()

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        sizes = (self.hidden, self.hidden + 2 * self.state_dim, self.num_heads)
        gate, u, steps = self.in_proj(x).split(sizes, -1)
        u, tail = self.conv(only_kept(u, keep), None if state is None else state[1])
        value, B, C = F.silu(u).split((self.hidden, self.state_dim, self.state_dim), -1)
        delta = only_kept(F.softplus(steps + self.step_bias), keep).transpose(1, 2).to(value.dtype)
        y_BHTD, hidden = ssd_scan(
            heads_of(value, self.num_heads), delta, self.log_A.exp(), B[:, None], C[:, None], self.D,
            None if state is None else state[0],
        )  # fmt: skip
        y = y_BHTD.transpose(1, 2).flatten(2) * F.silu(gate)
        return self.out_proj(self.norm(y.to(self.norm.weight.dtype)).to(x.dtype)), (hidden, tail)
