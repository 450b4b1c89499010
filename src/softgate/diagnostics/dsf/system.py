"""A causal token mixer as a linear time-varying system with a diagonal transition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate._math.recurrence import chunked_recurrence, log2, segment_products
from softgate._math.scan import linear_scan
from softgate.errors import ArgumentValueError, StateError, bad_type, bad_value

__all__ = ["System", "SystemState"]


class SystemState(NamedTuple):
    """Where a system stands between two tokens.

    Attributes:
        hidden: (…, d, n).
        position: number of tokens seen, the index of the next one.
    """

    hidden: Tensor
    position: int


class System:
    """The system ``h_i = Λ_i ⊙ h_{i-1} + u_i B_iᵀ``, ``y_i = h_i C_i + D_i ⊙ u_i`` with states h of shape (d, n).

    Every causal token mixer is such a system for the stream u of its values, and two mixers are equal if and only if
    their matrices Φ are, y = Φ u. This class is for looking and testing: it favours clarity over speed.

    Args:
        Lambda: (…, T, d or 1, n or 1) decays, not negative; above 1 the state grows.
        B: (…, T, d or 1, n), how a token is written.
        C: (…, T, d or 1, n), how the state is read.
        D: (…, T or 1, d or 1), direct path; None for none.
        u: (…, T, d), the stream that the methods take where none is given.

    Raises:
        ArgumentTypeError: not floating-point tensors.
        ArgumentValueError: shapes that do not fit, or a negative decay.

    Example:
        >>> import torch
        >>> system = System(torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1), torch.ones(3, 1, 1))
        >>> system.matrix()[0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 1.0000, 0.0000],
                [0.2500, 0.5000, 1.0000]])

    Paper: Understanding the Differences in Foundation Models, arXiv 2405.15731, section 2.
    """

    def __init__(
        self, Lambda: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, u: Tensor | None = None
    ) -> None:
        check_float_tensor("Lambda", Lambda)
        if bool((Lambda < 0).any()):
            bad_value("Lambda", float(Lambda.min()), "free of negative decays")
        # The logarithm of a decay of 0 would send NaN backwards; the smallest number forgets as completely.
        self._set_up(Lambda.clamp_min(torch.finfo(Lambda.dtype).tiny).log(), B, C, D, u)

    @classmethod
    def from_log_decay(
        cls, log_decay: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, u: Tensor | None = None
    ) -> System:
        """The system with ``Λ = exp(log_decay)``, for decays that are known as logarithms."""
        check_float_tensor("log_decay", log_decay)
        system = cls.__new__(cls)
        system._set_up(log_decay, B, C, D, u)
        return system

    def _set_up(self, log_decay: Tensor, B: Tensor, C: Tensor, D: Tensor | None, u: Tensor | None) -> None:
        for name, tensor in (("B", B), ("C", C), ("D", D), ("u", u)):
            if tensor is not None:
                check_float_tensor(name, tensor)
        if B.ndim < 3 or C.ndim < 3 or log_decay.ndim < 3:
            shapes = [tuple(x.shape) for x in (log_decay, B, C)]
            raise ArgumentValueError(f"Lambda, B and C must have shape (..., length, d or 1, n), got {shapes}")
        length, states = B.shape[-3], B.shape[-1]
        if C.shape[-3] != length or C.shape[-1] != states:
            raise ArgumentValueError(
                f"C must have the length {length} and state {states} of B, got {tuple(C.shape)} beside {tuple(B.shape)}"
            )
        if log_decay.shape[-3] != length or log_decay.shape[-1] not in (1, states):
            raise ArgumentValueError(
                f"Lambda must have shape (..., {length}, d or 1, {states} or 1), got {tuple(log_decay.shape)}"
            )
        widths = {x.shape[-2] for x in (log_decay, B, C)} | {x.shape[-1] for x in (D, u) if x is not None}
        if len(widths - {1}) > 1:
            raise ArgumentValueError(f"Lambda, B, C, D and u must agree in channels d, got {sorted(widths)}")
        self.log_decay, self.B, self.C, self.D, self.u = log_decay, B, C, D, u
        self.length, self.channels, self.states = length, max(widths), states

    @property
    def state_size(self) -> int:
        """Numbers in the state of one head: channels d times n (d is 1 where nothing tells it)."""
        return self.channels * self.states

    @property
    def Lambda(self) -> Tensor:
        """The decays (…, T, d or 1, n or 1)."""
        return self.log_decay.exp()

    def step(self, u_t: Tensor, state: SystemState | None = None) -> tuple[Tensor, SystemState]:
        """Process one token: the recurrent form, whose cost does not depend on the position.

        Args:
            u_t: (…, d).
            state: what the step before returned; None before the first token.

        Returns:
            y_t (…, d) and the new state.
        """
        t = 0 if state is None else state.position
        if t >= self.length:
            raise StateError(f"the system has {self.length} tokens, all of which have been processed")
        written = u_t[..., :, None] * self.B[..., t, :, :]
        before = torch.zeros_like(written) if state is None else state.hidden
        hidden = self.log_decay[..., t, :, :].exp() * before + written
        y_t = (hidden * self.C[..., t, :, :]).sum(-1)
        if self.D is not None:
            y_t = y_t + self.D[..., min(t, self.D.shape[-2] - 1), :] * u_t
        return y_t, SystemState(hidden, t + 1)

    def scan(self, u: Tensor | None = None) -> Tensor:
        """Outputs (…, T, d) of the stream ``u`` (…, T, d), token by token."""
        u = self._stream(u)
        outputs: list[Tensor] = []
        state: SystemState | None = None
        for t in range(self.length):
            y_t, state = self.step(u[..., t, :], state)
            outputs.append(y_t)
        return torch.stack(outputs, -2) if outputs else torch.zeros_like(u)

    def chunked(self, u: Tensor | None = None, chunk: int = 64) -> Tensor:
        """The outputs of :meth:`scan`, ``chunk`` tokens at a time; one decay per token makes it matrix products."""
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            bad_type("chunk", chunk, "a positive int")
        if chunk < 1:
            bad_value("chunk", chunk, "a positive int")
        u = self._stream(u)
        if all(x.shape[-2] == 1 for x in (self.log_decay, self.B, self.C)) and self.log_decay.shape[-1] == 1:
            lead = torch.broadcast_shapes(self.B.shape[:-3], u.shape[:-2])
            state = torch.zeros(*lead, self.states, u.shape[-1], dtype=u.dtype, device=u.device)
            read, write, log_decay = (x[..., 0, :].expand(*lead, -1, -1) for x in (self.C, self.B, self.log_decay))
            y_RTD, _ = chunked_recurrence(
                read[..., None, :, :], write, u.expand(*lead, -1, -1), log_decay, state, chunk=chunk
            )
            return self._add_direct(y_RTD[..., 0, :, :], u)
        outputs, hidden = [], torch.zeros_like(u[..., :1, :, None] * self.B[..., :1, :, :])[..., 0, :, :]
        for start in range(0, self.length, chunk):
            tokens = slice(start, start + chunk)
            added = u[..., tokens, :, None] * self.B[..., tokens, :, :]
            decay = self.log_decay[..., tokens, :, :].exp().expand_as(added)
            states = linear_scan(decay.movedim(-3, 0), added.movedim(-3, 0), hidden).movedim(0, -3)
            outputs.append((states * self.C[..., tokens, :, :]).sum(-1))
            hidden = states[..., -1, :, :]
        return self._add_direct(torch.cat(outputs, -2) if outputs else torch.zeros_like(u), u)

    def quadratic(self, u: Tensor | None = None) -> Tensor:
        """The outputs of :meth:`scan` as Φ u."""
        u = self._stream(u)
        return (self.matrix() @ u.transpose(-1, -2)[..., None])[..., 0].transpose(-1, -2)

    def matrix(self) -> Tensor:
        """Φ, (…, d or 1, T, T): entry (i, j) is what token j contributes to the output i, per unit of u_j."""
        read, write = self.C.transpose(-3, -2), self.B.transpose(-3, -2)
        if self.log_decay.shape[-1] == 1:
            kept = segment_products(log2(self.log_decay[..., 0].transpose(-1, -2)))
            matrix = (read @ write.transpose(-1, -2)) * kept
        else:
            kept = segment_products(log2(self.log_decay.movedim(-3, -1)))
            pairs = read.transpose(-1, -2)[..., None] * write.transpose(-1, -2)[..., None, :]
            matrix = (pairs * kept).sum(-3)
        if self.D is None:
            return matrix
        direct = self.D.transpose(-1, -2).expand(*self.D.shape[:-2], self.D.shape[-1], self.length)
        return matrix + torch.diag_embed(direct)

    def _stream(self, u: Tensor | None) -> Tensor:
        u = self.u if u is None else u
        if u is None:
            raise ArgumentValueError("u must be given: the system was made without a stream of its own")
        check_float_tensor("u", u)
        if u.ndim < 2 or u.shape[-2] != self.length or self.channels not in (1, u.shape[-1]):
            raise ArgumentValueError(
                f"u must have shape (..., {self.length}, {self.channels if self.channels > 1 else 'd'}), "
                f"got {tuple(u.shape)}"
            )
        return u

    def _add_direct(self, y: Tensor, u: Tensor) -> Tensor:
        return y if self.D is None else y + self.D * u

    def __repr__(self) -> str:
        """Sizes."""
        return f"System(length={self.length}, channels={self.channels}, n={self.states})"
