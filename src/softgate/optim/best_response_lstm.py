"""LSTM whose input and recurrent weights respond to hyper-parameters.

Shape suffixes: T steps, B rows, I inputs, H hidden units (4H for its four gates).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentValueError, StateError
from softgate.optim.best_response import BestResponseLinear, combine, gate_values
from softgate.optim.hyper_context import resolve

__all__ = ["BestResponseLSTM"]

#: Gates stand in the order forget, input, output, candidate; torch's is input, forget, candidate, output.
_TO_TORCH = (1, 0, 3, 2)


class _Recurrence(NamedTuple):
    """What stays the same over the steps of a layer."""

    weights: Tensor
    biases: Tensor | None
    gate: Tensor | None


class BestResponseLSTM(nn.Module):
    """LSTM of best-response layers; every row of the batch has its own λ.

    The inputs of all steps pass through their layer at once, and both recurrent products of a step are one.

    Args:
        input_size: inputs.
        hidden_size: units of a layer.
        num_layers: layers.
        n_hyper: number of hyper-parameters.
        proj_tied: the last layer has ``input_size`` units, for a decoder that is tied to the embedding.

    Raises:
        ArgumentTypeError: a size is not an int.
        ArgumentValueError: a size is not positive.

    Example:
        >>> import torch
        >>> net = BestResponseLSTM(3, 5, 2, n_hyper=4)
        >>> outputs, (hidden, cells) = net(torch.randn(7, 2, 3), lam=torch.randn(2, 4))
        >>> outputs.shape, hidden[0].shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))

    Paper: Self-Tuning Networks, arXiv 1903.03088, recurrent networks.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, n_hyper: int, proj_tied: bool = False
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, n_hyper=n_hyper)
        sizes = [input_size, *[hidden_size] * (num_layers - 1), input_size if proj_tied else hidden_size]
        pairs = list(itertools.pairwise(sizes))
        self.sizes, self.n_hyper = sizes, n_hyper
        self.i2h = nn.ModuleList(BestResponseLinear(inputs, 4 * units, n_hyper) for inputs, units in pairs)
        self.h2h = nn.ModuleList(BestResponseLinear(units, 4 * units, n_hyper) for _, units in pairs)

    def forward(
        self,
        x_TBI: Tensor,
        state: tuple[list[Tensor], list[Tensor]] | None = None,
        lam: Tensor | None = None,
        drop_connect: float = 0.0,
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        """Run over a sequence.

        Args:
            x_TBI: inputs, (T, B, in), T at least 1.
            state: hidden states and cells, per layer (1, B, units); None is zero.
            lam: (B, H), (1, H) or (H,); None takes that of the context, and without one the responses are off.
            drop_connect: in training mode the probability with which recurrent weights are zero for this call; plain
                and response weights share the mask.

        Returns:
            Outputs of the last layer, (T, B, units), and the state after the last step.
        """
        if x_TBI.ndim != 3 or not len(x_TBI) or x_TBI.shape[2] != self.sizes[0]:
            raise ArgumentValueError(f"x must have shape (T, B, {self.sizes[0]}), got {tuple(x_TBI.shape)}")
        rate = check_number("drop_connect", drop_connect, low=0.0, high=1.0, high_open=True)
        lam, rows = resolve(lam), x_TBI.shape[1]
        hidden, cells = [], []
        for i, (of_input, of_hidden) in enumerate(zip(self.i2h, self.h2h, strict=True)):
            zero = x_TBI.new_zeros(rows, self.sizes[i + 1])
            h_BH, c_BH = (zero, zero) if state is None else (state[0][i][0], state[1][i][0])
            from_input = of_input(x_TBI.transpose(0, 1), lam).transpose(0, 1)
            outputs = []
            recurrence = self._recurrence(of_hidden, lam, rows, rate)
            for step in from_input.unbind(0):
                h_BH, c_BH = _step(step + _recurrent(h_BH, recurrence), c_BH)
                outputs.append(h_BH)
            x_TBI = torch.stack(outputs)
            hidden.append(h_BH[None])
            cells.append(c_BH[None])
        return x_TBI, (hidden, cells)

    def _recurrence(self, layer: nn.Module, lam: Tensor | None, rows: int, rate: float) -> _Recurrence:
        assert isinstance(layer, BestResponseLinear)
        weights: Tensor = layer.weights
        if self.training and rate:
            mask = torch.rand(layer.out_features, layer.in_features, device=weights.device) >= rate
            weights = weights * (mask / (1.0 - rate)).to(weights.dtype).repeat(2, 1)
        if lam is not None:
            return _Recurrence(weights, layer.biases, gate_values(lam, layer.gates, None, rows, 2))
        out = layer.out_features
        return _Recurrence(weights[:out], None if layer.biases is None else layer.biases[:out], None)

    @torch.no_grad()
    def materialize(self, lam: Tensor) -> nn.LSTM:
        """The plain LSTM of torch for one λ, (H,).

        Raises:
            StateError: with ``proj_tied`` the last layer has another size, which torch's LSTM cannot have.
        """
        if len(set(self.sizes[1:])) > 1:
            raise StateError("an LSTM whose last layer has another size has no counterpart in torch.nn")
        plain = nn.LSTM(self.sizes[0], self.sizes[1], len(self.i2h)).to(next(self.parameters()))
        for i, layers in enumerate(zip(self.i2h, self.h2h, strict=True)):
            for name, layer in zip(("ih", "hh"), layers, strict=True):
                assert isinstance(layer, BestResponseLinear)
                found = layer.materialize(lam)
                for kind, value in (("weight", found.weight), ("bias", found.bias)):
                    parts = value.chunk(4)
                    getattr(plain, f"{kind}_{name}_l{i}").copy_(torch.cat([parts[j] for j in _TO_TORCH]))
        return plain


def _recurrent(h_BH: Tensor, recurrence: _Recurrence) -> Tensor:
    weights, biases, gate = recurrence
    if gate is None:
        return F.linear(h_BH, weights, biases)
    return combine(F.linear(h_BH, weights), biases, gate, None)


def _step(gates_B4H: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor]:
    units = c_BH.shape[1]
    opened, candidate = gates_B4H[:, : 3 * units].sigmoid(), gates_B4H[:, 3 * units :].tanh()
    forget, write, out = opened.chunk(3, 1)
    c_BH = forget * c_BH + write * candidate
    return out * c_BH.tanh(), c_BH
