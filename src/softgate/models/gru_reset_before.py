"""The gated recurrent unit as first published: the reset gate acts on the state before it is multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_sizes
from softgate._math.compress import compute_dtype
from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, mode, transform_reason
from softgate.errors import ArgumentValueError

__all__ = ["GRUCellResetBefore"]

aten = torch.ops.aten


def step_reference(drive: Tensor, state: Tensor, weight_hh: Tensor) -> Tensor:
    """One step: ``r, u = sigmoid(. + U_ru h)``, ``c = tanh(. + U_c (r h))``, ``u h + (1 - u) c``."""
    width = state.shape[-1]
    gates = torch.sigmoid(drive[..., : 2 * width] + state @ weight_hh[: 2 * width].T)
    r, u = gates.split(width, -1)
    c = torch.tanh(drive[..., 2 * width :] + (r * state) @ weight_hh[2 * width :].T)
    return u * state + (1.0 - u) * c


def sequence_reference(drive_TBG: Tensor, state_BH: Tensor, weight_hh: Tensor) -> Tensor:
    """All states (T, B, H) for the input's share of the pre-activations (T, B, 3H), step by step."""
    states = []
    for drive in drive_TBG.unbind(0):
        state_BH = step_reference(drive, state_BH, weight_hh)
        states.append(state_BH)
    return torch.stack(states)


class _Sequence(torch.autograd.Function):
    """The loop over time without a graph of its own: a handful of in-place operations per step.

    Forward keeps states, gates and candidates; backward runs the recursion on them and forms the gradient of the
    weights once, from two matrix products over all steps.
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, state: Tensor, weight: Tensor) -> Tensor:
        steps = drive.shape[0]
        batch, width = state.shape
        recurrent, candidate = weight[: 2 * width].T.contiguous(), weight[2 * width :].T.contiguous()
        states = drive.new_empty(steps + 1, batch, width)
        states[0] = state
        gates = drive.new_empty(steps, batch, 2 * width)
        candidates, reset = drive.new_empty(steps, batch, width), drive.new_empty(steps, batch, width)
        for t in range(steps):
            h, g, c = states[t], gates[t], candidates[t]
            torch.addmm(drive[t, :, : 2 * width], h, recurrent, out=g).sigmoid_()
            torch.mul(g[:, :width], h, out=reset[t])
            torch.addmm(drive[t, :, 2 * width :], reset[t], candidate, out=c).tanh_()
            torch.lerp(c, h, g[:, width:], out=states[t + 1])
        ctx.save_for_backward(drive, state, weight, states, gates, candidates, reset)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, state, weight, states, gates, candidates, reset = ctx.saved_tensors
        grad = grads[0]
        if torch.is_grad_enabled() or transform_reason(grad) is not None or is_batched_gradient(grad):
            wanted = ctx.needs_input_grad
            return differentiable_gradients(sequence_reference, (drive, state, weight), wanted, grad)
        steps, width = drive.shape[0], state.shape[1]
        recurrent, candidate = weight[: 2 * width], weight[2 * width :]
        slopes = torch.empty_like(drive, memory_format=torch.contiguous_format)
        carried, kept, through = (torch.zeros_like(state) for _ in range(3))
        pair = torch.empty_like(gates[0])
        for t in range(steps - 1, -1, -1):
            h, g, c = states[t], gates[t], candidates[t]
            r, u = g[:, :width], g[:, width:]
            slope_g, slope_c = slopes[t, :, : 2 * width], slopes[t, :, 2 * width :]
            carried += grad[t]
            torch.mul(carried, u, out=kept)
            torch.sub(carried, kept, out=through)
            aten.tanh_backward.grad_input(through, c, grad_input=slope_c)
            torch.mm(slope_c, candidate, out=through)
            torch.mul(through, h, out=pair[:, :width])
            torch.sub(h, c, out=pair[:, width:]).mul_(carried)
            aten.sigmoid_backward.grad_input(pair, g, grad_input=slope_g)
            kept.addcmul_(through, r).addmm_(slope_g, recurrent)
            carried, kept = kept, carried
        flat = slopes.flatten(0, 1)
        by_weight = torch.empty_like(weight)
        torch.mm(flat[:, : 2 * width].T, states[:-1].flatten(0, 1), out=by_weight[: 2 * width])
        torch.mm(flat[:, 2 * width :].T, reset.flatten(0, 1), out=by_weight[2 * width :])
        return slopes, carried, by_weight


def gru_sequence(drive_TBG: Tensor, state_BH: Tensor, weight_hh: Tensor) -> Tensor:
    """All states (T, B, H) of the cell, by the fast loop where nothing forbids it."""
    same = drive_TBG.dtype == state_BH.dtype == weight_hh.dtype
    plain = same and drive_TBG.dtype == compute_dtype(drive_TBG.dtype) and drive_TBG.numel() > 0
    if plain and mode() != "reference" and transform_reason(drive_TBG, state_BH, weight_hh) is None:
        states: Tensor = _Sequence.apply(drive_TBG, state_BH, weight_hh)
        return states
    return sequence_reference(drive_TBG, state_BH, weight_hh)


class GRUCellResetBefore(nn.Module):
    r"""Gated recurrent unit whose reset gate acts *before* the recurrent product, as TensorFlow's ``GRUCell`` does.

    .. math:: r, u = \sigma(W_{ru} x + U_{ru} h + b_{ru}), \quad c = \tanh(W_c x + U_c (r \odot h) + b_c), \quad
              h' = u \odot h + (1 - u) \odot c

    ``nn.GRUCell`` computes :math:`r \odot (U_c h + b)` instead, which is another function of the same parameters, and
    has two biases. The order of the gates is that of torch: reset, update, candidate. Weights start Glorot-uniform
    (over input and state together, as in TensorFlow), the bias of both gates at 1, that of the candidate at 0.

    Args:
        input_size: width of the inputs.
        hidden_size: width H of the state.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: inputs ``(B, input_size)`` and state ``(B, H)`` -> ``(B, H)``; :meth:`scan` takes ``(B, T, input_size)``.

    Example:
        >>> cell = GRUCellResetBefore(3, 5)
        >>> cell(torch.zeros(2, 3)).shape, cell.scan(torch.zeros(2, 7, 3)).shape
        (torch.Size([2, 5]), torch.Size([2, 7, 5]))

    Paper: arXiv 1709.03082, eqs. 1 to 4; Cho et al. 2014.
    """

    def __init__(self, input_size: int, hidden_size: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(3 * hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        inputs, width = self.input_size, self.hidden_size
        for rows in (slice(2 * width), slice(2 * width, None)):
            outputs = self.bias[rows].shape[0]
            bound = (6.0 / (inputs + width + outputs)) ** 0.5
            for weight in (self.weight_ih, self.weight_hh):
                weight[rows].uniform_(-bound, bound)
        self.bias[: 2 * width] = 1.0
        self.bias[2 * width :] = 0.0

    def forward(self, input: Tensor, state: Tensor | None = None) -> Tensor:
        """The next state ``(B, H)`` after ``input`` ``(B, input_size)``; ``state`` is zero if None."""
        self._check("input", input, 2)
        drive = nn.functional.linear(input, self.weight_ih, self.bias)
        return step_reference(drive, self.initial(drive, state), self.weight_hh)

    def scan(self, inputs: Tensor, state: Tensor | None = None) -> Tensor:
        """All states ``(B, T, H)`` over ``inputs`` ``(B, T, input_size)``, T at least 1."""
        self._check("inputs", inputs, 3)
        drive = nn.functional.linear(inputs, self.weight_ih, self.bias)
        return self.scan_drive(drive.transpose(0, 1), state).transpose(0, 1)

    def scan_drive(self, drive: Tensor, state: Tensor | None = None) -> Tensor:
        """All states ``(T, B, H)`` for ``W x + b`` of all steps, ``(T, B, 3H)``."""
        if drive.shape[0] == 0:
            raise ArgumentValueError("inputs must have at least one step, got a sequence of length 0")
        return gru_sequence(drive, self.initial(drive, state), self.weight_hh)

    def initial(self, drive: Tensor, state: Tensor | None) -> Tensor:
        """``state`` if it fits, zeros if it is None."""
        shape = (drive.shape[-2], self.hidden_size)
        if state is None:
            return drive.new_zeros(shape)
        check_float_tensor("state", state)
        if state.shape != shape:
            raise ArgumentValueError(f"state must have shape {shape}, got {tuple(state.shape)}")
        return state

    @torch.no_grad()
    def load_tensorflow(
        self, gates_kernel: Tensor, gates_bias: Tensor, candidate_kernel: Tensor, candidate_bias: Tensor
    ) -> None:
        """Take over the variables of TensorFlow's cell, whose kernels have shape ``(input_size + H, ...)``."""
        inputs, width = self.input_size, self.hidden_size
        given = (gates_kernel, gates_bias, candidate_kernel, candidate_bias)
        wanted = ((inputs + width, 2 * width), (2 * width,), (inputs + width, width), (width,))
        for name, tensor, shape in zip(("gates_kernel", "gates_bias", "candidate_kernel", "candidate_bias"), given,
                                       wanted, strict=True):  # fmt: skip
            if tensor.shape != shape:
                raise ArgumentValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        kernels = torch.cat((gates_kernel, candidate_kernel), dim=1).T
        self.weight_ih.copy_(kernels[:, :inputs])
        self.weight_hh.copy_(kernels[:, inputs:])
        self.bias.copy_(torch.cat((gates_bias, candidate_bias)))

    def _check(self, name: str, value: Any, ndim: int) -> None:
        check_float_tensor(name, value)
        if value.ndim != ndim or value.shape[-1] != self.input_size:
            axes = ("B", "T")[: ndim - 1]
            raise ArgumentValueError(f"{name} must have shape ({', '.join(axes)}, {self.input_size}), "
                                     f"got {tuple(value.shape)}")  # fmt: skip

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"{self.input_size}, {self.hidden_size}"
