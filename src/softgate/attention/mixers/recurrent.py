"""Gated recurrent layers without a path from the state to the gates: qLSTM and RG-LRU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate.attention.mixers.base import (
    CausalConv,
    CausalMixer,
    MixerState,
    check_sizes,
    inverse_softplus,
    only_kept,
)
from softgate.attention.scans.checks import ScanOutput
from softgate.attention.scans.gated import qlstm_scan, rglru_scan
from softgate.attention.scans.gates import RGLRU_POWER
from softgate.errors import bad_type

__all__ = ["QLSTM", "RGLRU"]

#: A logit whose sigmoid is 0 or 1 exactly, for tokens that are padding.
_FAR = 1e4


class _GatedRecurrence(CausalMixer):
    """W_out(gelu(gate) ⊙ recurrence(conv(x))), with gate and x linear maps of the token."""

    def __init__(self, dim: int, gates: int, expand: int, conv_width: int) -> None:
        super().__init__(dim)
        check_sizes(expand=expand, conv_width=conv_width)
        hidden = expand * dim
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.conv = CausalConv(hidden, conv_width)
        self.gates = nn.Linear(hidden, gates * hidden)
        self.out_proj = nn.Linear(hidden, dim, bias=False)

    def _mix(self, x: Tensor, state: MixerState | None, keep: Tensor | None) -> tuple[Tensor, MixerState]:
        gate, u = self.in_proj(x).chunk(2, -1)
        u, tail = self.conv(only_kept(u, keep), None if state is None else state[1])
        y, hidden = self._recur(u, self.gates(u), None if state is None else state[0], keep)
        return self.out_proj(F.gelu(gate) * y), (hidden, tail)

    def _recur(self, u: Tensor, gates: Tensor, hidden: Tensor | None, keep: Tensor | None) -> ScanOutput:
        raise NotImplementedError


class QLSTM(_GatedRecurrence):
    """qLSTM layer, see :func:`softgate.attention.qlstm_scan`: a state of one number per channel.

    Args:
        dim: width of the hidden states.
        reversed: forget with σ(-f)^relu(α), the form that S6 has, instead of σ(f); α is learned and starts at 1.
        expand: channels of the recurrence are expand times dim.
        conv_width: tokens of the causal convolution before it.

    Example:
        >>> import torch
        >>> QLSTM(8)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 4.
    """

    def __init__(self, dim: int, *, reversed: bool = True, expand: int = 2, conv_width: int = 4) -> None:
        super().__init__(dim, 3, expand, conv_width)
        if not isinstance(reversed, bool):
            bad_type("reversed", reversed, "a bool")
        self.alpha = nn.Parameter(torch.ones(())) if reversed else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices from N(0, 1 / inputs), α = 1."""
        super().reset_parameters()
        if self.alpha is not None:
            nn.init.ones_(self.alpha)

    def _recur(self, u: Tensor, gates: Tensor, hidden: Tensor | None, keep: Tensor | None) -> ScanOutput:
        forget, write, read = gates.chunk(3, -1)
        forget = only_kept(forget, keep, _FAR if self.alpha is None else -_FAR)
        alpha = None if self.alpha is None else self.alpha.to(u.dtype)
        return qlstm_scan(only_kept(u, keep), forget, write, read, alpha, hidden)


class RGLRU(_GatedRecurrence):
    """RG-LRU layer of Hawk and Griffin, see :func:`softgate.attention.rglru_scan`; gates are full matrices here.

    Args:
        dim: width of the hidden states.
        expand: channels of the recurrence are expand times dim.
        conv_width: tokens of the causal convolution before it.

    Example:
        >>> import torch
        >>> RGLRU(8)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Paper: arXiv 2405.15731, section 2 (RG-LRU as a dynamical system).
    """

    def __init__(self, dim: int, *, expand: int = 2, conv_width: int = 4) -> None:
        super().__init__(dim, 2, expand, conv_width)
        self.a = nn.Parameter(torch.empty(self.out_proj.in_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices from N(0, 1 / inputs); with an open recurrence gate the decays are uniform in [0.9, 0.999]."""
        super().reset_parameters()
        decay = 0.9 + 0.099 * torch.rand(self.a.shape)
        self.a.copy_(inverse_softplus(-decay.log() / RGLRU_POWER))

    def _recur(self, u: Tensor, gates: Tensor, hidden: Tensor | None, keep: Tensor | None) -> ScanOutput:
        recurrence, write = gates.chunk(2, -1)
        return rglru_scan(only_kept(u, keep), only_kept(recurrence, keep, -_FAR), write, self.a.to(u.dtype), hidden)
