"""Networks as linear maps and activations in float64, and the problems that bound them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softgate.diagnostics.lipschitz.chain import Chain
from softgate.diagnostics.lipschitz.forms import Form
from softgate.diagnostics.lipschitz.increments import Activation, Increments

__all__: list[str] = []


@dataclass(frozen=True)
class Network:
    """Matrices and activations of a network.

    Attributes:
        kind: ``"feedforward"``: weights with activations between them; ``"residual"``: x + outer φ(weight x) for every
            weight, between the maps ``first`` and ``last``; ``"implicit"``: z = φ(W z + U x), y = ``last`` z, with the
            weights W, U.
        weights: matrices (out, in).
        activations: of the layers; one less than the weights of a feed-forward network.
        outer: the maps behind the activations of residual blocks.
        first: linear map before residual blocks, None for none.
        last: linear map at the end, None for none.
        function: (batch, in) -> (batch, out), with the biases that the bounds need not know.
    """

    kind: str
    weights: tuple[Tensor, ...]
    activations: tuple[Activation, ...]
    outer: tuple[Tensor, ...] = ()
    first: Tensor | None = None
    last: Tensor | None = None
    function: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.weights[-1] if self.last is None else self.last)


def form_of(network: Network, multiplier: str, norm: str, row: int | None) -> Form:
    """The quadratic form of ``network`` (or of its output ``row``), in as few inputs as its norm allows."""
    known = [
        activation.increments(len(weight), multiplier)
        for activation, weight in zip(network.activations, network.weights, strict=False)
    ]
    build = {"feedforward": _feedforward, "residual": _residual, "implicit": _implicit}[network.kind]
    seen, output, inputs = build(network, known, rotate=norm == "l2")
    groups, offset = [torch.zeros(0, dtype=torch.long)], 0
    for each in known:
        groups.append(each.group + offset)
        offset += int(each.group.max()) + 1
    layers = tuple(len(each.group) for each in known)
    chosen = output if row is None else output[row : row + 1]
    return Form(seen, chosen, inputs, torch.cat(groups), layers)


def _rotated(first: Tensor) -> Tensor:
    """A map with the same singular values and at most as many inputs as outputs: lengths of the input are kept."""
    return torch.linalg.qr(first.mT).R.mT if first.shape[1] > first.shape[0] else first


def _state(inputs: int, known: list[Increments]) -> tuple[Tensor, list[slice]]:
    ends = torch.tensor([len(each.group) for each in known] or [0]).cumsum(0).tolist() if known else []
    places = [slice(inputs + end - len(each.group), inputs + end) for end, each in zip(ends, known, strict=True)]
    width = inputs + (ends[-1] if ends else 0)
    return torch.eye(inputs, width, dtype=torch.float64), places


def _feedforward(network: Network, known: list[Increments], rotate: bool) -> tuple[Tensor, Tensor, int]:
    first, *others = network.weights
    first = _rotated(first) if rotate else first
    state, places = _state(first.shape[1], known)
    seen = [state[:0]]
    for weight, each, place in zip((first, *others), known, places, strict=False):
        before = weight @ state
        seen.append(each.look @ before)
        state = each.through @ before
        state[:, place] += each.carry
    last = others[-1] if others else first
    return torch.cat(seen), last @ state, first.shape[1]


def _residual(network: Network, known: list[Increments], rotate: bool) -> tuple[Tensor, Tensor, int]:
    width = network.weights[0].shape[1]
    first = torch.eye(width, dtype=torch.float64) if network.first is None else network.first
    first = _rotated(first) if rotate else first
    state, places = _state(first.shape[1], known)
    state = first @ state
    seen = []
    for weight, outer, each, place in zip(network.weights, network.outer, known, places, strict=True):
        before = weight @ state
        seen.append(each.look @ before)
        state = state + outer @ each.through @ before
        state[:, place] += outer @ each.carry
    return torch.cat(seen), state if network.last is None else network.last @ state, first.shape[1]


def _implicit(network: Network, known: list[Increments], rotate: bool) -> tuple[Tensor, Tensor, int]:
    loop, enter = network.weights
    enter = _rotated(enter) if rotate else enter
    (each,) = known
    inputs = enter.shape[1]
    # z = through (W z + U x) + carry δ
    solve = torch.eye(len(loop), dtype=torch.float64) - each.through @ loop
    state = torch.linalg.solve(solve, torch.cat((each.through @ enter, each.carry), 1))
    before = loop @ state
    before[:, :inputs] += enter
    output = state if network.last is None else network.last @ state
    return each.look @ before, output, inputs


def chain_of(network: Network, norm: str, row: int | None) -> Chain:
    """The layers of a feed-forward network as factors between which multipliers stand."""
    known = [
        activation.increments(len(weight), "diagonal")
        for activation, weight in zip(network.activations, network.weights, strict=False)
    ]
    factors = [network.weights[0], *(w @ k.carry for w, k in zip(network.weights[1:], known, strict=True))]
    factors = [*(k.look @ f for k, f in zip(known, factors, strict=False)), factors[-1]]
    if row is not None:
        factors[-1] = factors[-1][row : row + 1]
    if norm == "l2":
        factors[0] = _rotated(factors[0])
    else:
        factors[0] = factors[0][:, factors[0].ne(0).any(0)]
    return Chain(tuple(factors), tuple(each.group for each in known), norm == "linf")


def product_bound(network: Network, norm: str, row: int | None) -> float:
    """What the norms of the layers alone give; infinite where they give nothing."""

    def size(matrix: Tensor | None) -> float:
        if matrix is None:
            return 1.0
        return float(matrix.abs().sum(1).max() if norm == "linf" else torch.linalg.matrix_norm(matrix, 2))

    def last(matrix: Tensor | None) -> float:
        return size(matrix if matrix is None or row is None else matrix[row : row + 1])

    stretch = [a.stretch_of_largest if norm == "linf" else a.stretch for a in network.activations]
    if network.kind == "feedforward":
        return math.prod(stretch) * math.prod(map(size, network.weights[:-1])) * last(network.weights[-1])
    if network.kind == "residual":
        blocks = zip(network.outer, network.weights, stretch, strict=True)
        return size(network.first) * math.prod(1.0 + size(g) * s * size(w) for g, w, s in blocks) * last(network.last)
    loop = stretch[0] * size(network.weights[0])
    return last(network.last) * stretch[0] * size(network.weights[1]) / (1.0 - loop) if loop < 1.0 else math.inf
