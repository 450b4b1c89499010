"""Many small networks that differ only in their initial weights, trained at once.

Shape suffixes: K networks, B rows, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice
from softgate.lab import seeds

__all__ = ["ACTIVATIONS", "MLPEnsemble"]

_LN2 = 0.6931471805599453


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


#: Name -> function and its factor of 1/√inputs in the standard deviation of the initial weights.
ACTIVATIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "tanh": (torch.tanh, 1.0),
    "relu": (F.relu, 2.0),
    "elu": (F.elu, 2.0),
    "swish": (F.silu, 2.0),
    "prelu": (F.relu, 2.0),  # its slope is a parameter: MLPEnsemble sees to it
    "abs": (torch.abs, 1.0),
    "softplus": (F.softplus, 2.0),
    "centred_softplus": (lambda x: F.softplus(x) - _LN2, 2.0),
}


class MLPEnsemble(nn.Module):
    """K multilayer perceptrons of one shape.

    Weights come from a normal distribution cut at two standard deviations, biases are zero. Network k has the same
    initial weights in ensembles of every size. Features stand before rows, which makes the products of many small
    matrices twice as fast on a CPU.

    Args:
        sizes: inputs, units of the hidden layers, classes.
        activation: one of :data:`ACTIVATIONS`, in every hidden layer.
        nets: K.
        seed: of the weights.
    """

    def __init__(self, sizes: Sequence[int], activation: str, nets: int, seed: int) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(ACTIVATIONS))
        self.activation, factor = ACTIVATIONS[activation]
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        drawn: list[list[Tensor]] = [[] for _ in shapes]
        for net in range(nets):
            generator = seeds.generator(seed, "net", net)
            for (outputs, inputs), weights in zip(shapes, drawn, strict=True):
                sd = factor / inputs**0.5
                weights.append(nn.init.trunc_normal_(torch.empty(outputs, inputs), 0.0, sd, -2 * sd, 2 * sd, generator))
        self.weights = nn.ParameterList(torch.stack(weights) for weights in drawn)
        self.biases = nn.ParameterList(torch.zeros(nets, outputs, 1) for outputs, _ in shapes)
        self.slopes = nn.ParameterList(torch.zeros(nets, 1, 1) for _ in shapes[1:]) if activation == "prelu" else None

    def layers(self, x_BI: Tensor) -> list[Tensor]:
        """Outputs of all layers, (K, O, B) each, the logits last."""
        nets = len(self.biases[0])
        h_KIB = x_BI.T.expand(nets, -1, -1)
        found: list[Tensor] = []
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h_KIB = torch.baddbmm(bias, weight, h_KIB)
            if i < last:
                h_KIB = self.activation(h_KIB) if self.slopes is None else _prelu(h_KIB, self.slopes[i])
            found.append(h_KIB)
        return found

    def forward(self, x_BI: Tensor) -> Tensor:
        """Logits, (K, classes, B)."""
        return self.layers(x_BI)[-1]

    def penalty(self) -> Tensor:
        """``Σ |W|² / 2`` over the weights of all networks but those of the output layers."""
        return 0.5 * torch.stack([weight.square().sum() for weight in list(self.weights)[:-1]]).sum()
