"""Layers that predict how their weights respond to hyper-parameters: every output unit has a gate.

Shape suffixes: B rows of a batch, O outputs, H hyper-parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.optim.hyper_context import resolve
from softgate.registry import method

__all__ = ["BestResponseConv2d", "BestResponseEmbedding", "BestResponseLinear", "best_response_linear"]

#: Standard deviation of the gates' first weights.
GATE_STD = 0.01
GATES = ("linear", "sigmoid")


def gate_values(lam: Tensor, gates: Tensor, gate_bias: Tensor | None, rows: int, dims: int) -> Tensor:
    """``λ gatesᵀ``, (B or 1, 1, …, outputs of the gates) with ``dims`` dimensions; in float32 also under autocast."""
    if lam.ndim not in (1, 2) or lam.shape[-1] != gates.shape[1]:
        raise ArgumentValueError(
            f"lam must have shape (H,) or (B, H) with H = {gates.shape[1]}, got {tuple(lam.shape)}"
        )
    if lam.ndim == 2 and len(lam) not in (1, rows):
        raise ArgumentValueError(f"lam must have 1 or {rows} rows, as the input has, got {len(lam)}")
    # autocast knows no meta tensors
    with nullcontext() if lam.is_meta else torch.autocast(lam.device.type, enabled=False):
        found = F.linear(torch.atleast_2d(lam).to(gates.dtype), gates, gate_bias)
    return found.reshape(len(found), *[1] * (dims - 2), found.shape[1])


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (normal(4, 3), normal(4, 2), normal(10, 3), normal(10, 2), normal(10)), {}
    yield (normal(4, 3, 3), normal(2), normal(6, 3), normal(6, 2), normal(6)), {}  # one λ for all rows
    yield (normal(0, 3), normal(0, 2), normal(4, 3), normal(4, 2)), {}


def _bad() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, lam, weights, biases, gates = (
        torch.ones(4, 3),
        torch.ones(4, 2),
        torch.ones(10, 3),
        torch.ones(10),
        torch.ones(10, 2),
    )
    yield (x, lam[:3], weights, gates, biases), {}, ArgumentValueError, "lam"
    yield (x, lam[:, :1], weights, gates, biases), {}, ArgumentValueError, "lam"
    yield (x[:, :2], lam, weights, gates, biases), {}, ArgumentValueError, "x"
    yield (x.long(), lam, weights, gates, biases), {}, ArgumentTypeError, "x"
    yield (x, lam, weights[:9], gates, biases), {}, ArgumentValueError, "weights"
    yield (x, lam, weights, gates, biases[:5]), {}, ArgumentValueError, "biases"
    yield (x, lam, weights, gates[:5], biases), {}, ArgumentValueError, "gates"


@method(
    site="optim",
    family="custom",
    paper="self-tuning-networks",
    source="best-response layer: s (W x + b) + (U λ) ∘ (V x) + (C λ) ∘ c",
    samples=_samples,
    bad_inputs=_bad,
    error_scale="tensor",
)
def best_response_linear(
    x: Tensor, lam: Tensor, weights: Tensor, gates: Tensor, biases: Tensor | None = None
) -> Tensor:
    r"""A linear layer whose weights respond to hyper-parameters λ, a different λ per row if wanted.

    .. math:: y = W x + b + (U \lambda) \odot (V x) + (C \lambda) \odot c

    Both products with x are one. Linear in λ, and at λ = 0 the plain layer of W and b.

    Args:
        x: inputs, (B, …, in).
        lam: unconstrained hyper-parameters, (B, H), or (1, H) or (H,) for all rows alike.
        weights: W above V, (2 · out, in).
        gates: U above C, (2 · out, H).
        biases: b before c, (2 · out,), or None.

    Returns:
        (B, …, out), in the dtype of ``x``.

    Raises:
        ArgumentTypeError: an argument is not a real floating-point tensor.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> x, weights, gates = torch.ones(1, 1), torch.tensor([[2.0], [5.0]]), torch.ones(2, 1)
        >>> [float(best_response_linear(x, torch.tensor([lam]), weights, gates)) for lam in (0.0, 1.0, -0.1)]
        [2.0, 7.0, 1.5]

    Paper: Self-Tuning Networks, arXiv 1903.03088, structured best-response approximation.
    """
    for name, value in (("x", x), ("lam", lam), ("weights", weights), ("gates", gates)):
        check_float_tensor(name, value)
    if weights.ndim != 2 or len(weights) % 2:
        raise ArgumentValueError(f"weights must have shape (2 * out, in), got {tuple(weights.shape)}")
    if x.ndim < 2 or x.shape[-1] != weights.shape[1]:
        raise ArgumentValueError(f"x must have shape (B, ..., {weights.shape[1]}), got {tuple(x.shape)}")
    if biases is not None and check_float_tensor("biases", biases).shape != weights.shape[:1]:
        raise ArgumentValueError(f"biases must have shape ({len(weights)},), got {tuple(biases.shape)}")
    if gates.ndim != 2 or len(gates) != len(weights):
        raise ArgumentValueError(f"gates must have shape ({len(weights)}, H), got {tuple(gates.shape)}")
    gate = gate_values(lam, gates, None, len(x), x.ndim)
    return combine(F.linear(x, weights), biases, gate, None)


def combine(both: Tensor, biases: Tensor | None, gate: Tensor, elem_scale: Tensor | None) -> Tensor:
    """The response from the products ``[W x, V x]`` and the gates ``[U λ, C λ]``, both along the last dimension."""
    gate = gate.to(both.dtype)
    elementary, response = both.chunk(2, -1)
    of_weight, of_bias = gate.chunk(2, -1)
    if biases is None:
        return (elementary if elem_scale is None else elem_scale * elementary) + of_weight * response
    b, c = biases.to(both.dtype).chunk(2)
    elementary = elementary + b
    return (elementary if elem_scale is None else elem_scale * elementary) + of_weight * response + of_bias * c


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Parameter drawn evenly from ``±1/√fan_in``."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class BestResponseLinear(nn.Module):
    r"""Linear layer with a best response to hyper-parameters, in the place of ``nn.Linear``.

    ``gate="linear"`` is :func:`best_response_linear` times a learned scale of its plain part if ``elem_scale``;
    ``gate="sigmoid"`` is ``σ(U λ + u) ∘ (W x) + σ(C λ + c) ∘ b``, which is exact for linear networks with a penalty
    on their input-output Jacobian. Parameters ``weights`` and ``biases`` hold both layers, the plain one first.

    Args:
        in_features: inputs.
        out_features: outputs.
        n_hyper: H, the number of hyper-parameters.
        bias: whether there are biases.
        gate: ``"linear"`` or ``"sigmoid"``.
        elem_scale: whether the plain part has a learned scale, from 1, as in the authors' convolutional networks.

    Raises:
        ArgumentTypeError: a size is not an int.
        ArgumentValueError: a size is not positive, or an unknown gate.

    Example:
        >>> import torch
        >>> layer = BestResponseLinear(3, 2, n_hyper=4)
        >>> lam = torch.randn(4)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x, lam), layer.materialize(lam)(x), atol=1e-6)
        True

    Paper: Self-Tuning Networks, arXiv 1903.03088.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_hyper: int,
        bias: bool = True,
        gate: str = "linear",
        elem_scale: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features, n_hyper=n_hyper)
        check_choice("gate", gate, GATES)
        self.in_features, self.out_features, self.n_hyper, self.gate = in_features, out_features, n_hyper, gate
        copies = 2 if gate == "linear" else 1
        self.weights = uniform((copies * out_features, in_features), in_features)
        self.biases = uniform((copies * out_features,), in_features) if bias else None
        self.gates = nn.Parameter(GATE_STD * torch.randn(2 * out_features, n_hyper))
        self.gate_bias = nn.Parameter(torch.zeros(2 * out_features)) if gate == "sigmoid" else None
        self.elem_scale = nn.Parameter(torch.ones(1)) if elem_scale else None

    def forward(self, x: Tensor, lam: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, …, in).
            lam: (B, H), (1, H) or (H,); None takes that of :func:`softgate.optim.hyper` around the call, and without
                one the response is off.

        Returns:
            (B, …, out).
        """
        lam = resolve(lam)
        if lam is None:
            return self._plain(x)
        gate = gate_values(lam, self.gates, self.gate_bias, len(x), x.ndim)
        if self.gate == "linear":
            return combine(F.linear(x, self.weights), self.biases, gate, self.elem_scale)
        of_weight, of_bias = gate.sigmoid().to(x.dtype).chunk(2, -1)
        y = of_weight * F.linear(x, self.weights)
        y = y if self.elem_scale is None else self.elem_scale * y
        return y if self.biases is None else y + of_bias * self.biases

    def _plain(self, x: Tensor) -> Tensor:
        out = self.out_features
        y = F.linear(x, self.weights[:out], None if self.biases is None else self.biases[:out])
        return y if self.elem_scale is None else self.elem_scale * y

    @torch.no_grad()
    def materialize(self, lam: Tensor) -> nn.Linear:
        """The plain layer for one λ, (H,)."""
        plain = nn.Linear(self.in_features, self.out_features, self.biases is not None,
                          device=self.weights.device, dtype=self.weights.dtype)  # fmt: skip
        plain.weight.copy_(self(torch.eye(self.in_features).to(self.weights), lam).T)
        if self.biases is not None:
            zero = torch.zeros(1, self.in_features).to(self.weights)
            plain.bias.copy_(self(zero, lam)[0])
            plain.weight.sub_(plain.bias[:, None])
        return plain

    def extra_repr(self) -> str:
        """Sizes and gate."""
        return f"{self.in_features}, {self.out_features}, n_hyper={self.n_hyper}, gate={self.gate!r}"


class BestResponseConv2d(nn.Module):
    """Convolution with a best response: a gate per output channel and example, the same at all positions.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: size of the kernel.
        n_hyper: H.
        stride: as ``nn.Conv2d``, and so the next four.
        padding: zeros around the image.
        dilation: distance between the kernel's points.
        groups: groups of channels.
        bias: whether there are biases.
        elem_scale: whether the plain part has a learned scale.

    Raises:
        ArgumentTypeError: a size is not an int.
        ArgumentValueError: a size is not positive.

    Example:
        >>> import torch
        >>> layer = BestResponseConv2d(3, 6, 3, n_hyper=2, padding=1)
        >>> layer(torch.randn(4, 3, 8, 8), torch.randn(4, 2)).shape
        torch.Size([4, 6, 8, 8])

    Paper: Self-Tuning Networks, arXiv 1903.03088, convolutional layers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        n_hyper: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        elem_scale: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, n_hyper=n_hyper, groups=groups)
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.out_channels, self.in_channels, self.kernel_size, self.n_hyper = out_channels, in_channels, kernel, n_hyper
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        fan_in = in_channels // groups * kernel[0] * kernel[1]
        self.weights = uniform((2 * out_channels, in_channels // groups, *kernel), fan_in)
        self.biases = uniform((2 * out_channels,), fan_in) if bias else None
        self.gates = nn.Parameter(GATE_STD * torch.randn(2 * out_channels, n_hyper))
        self.elem_scale = nn.Parameter(torch.ones(1)) if elem_scale else None

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Tensor, lam: Tensor | None = None) -> Tensor:
        """Apply the layer to (B, C, height, width); ``lam`` as for :class:`BestResponseLinear`."""
        lam = resolve(lam)
        out = self.out_channels
        if lam is None:
            y = self._conv(x, self.weights[:out])
            y = y if self.biases is None else y + self.biases[:out, None, None]
            return y if self.elem_scale is None else self.elem_scale * y
        if self.groups == 1:
            both = self._conv(x, self.weights)
        else:  # one convolution of both would share its groups out otherwise
            both = torch.cat([self._conv(x, weight) for weight in self.weights.chunk(2)], 1)
        gate = gate_values(lam, self.gates, None, len(x), both.ndim)
        return combine(both.movedim(1, -1), self.biases, gate, self.elem_scale).movedim(-1, 1)

    @torch.no_grad()
    def materialize(self, lam: Tensor) -> nn.Conv2d:
        """The plain layer for one λ, (H,)."""
        kernel: Any = self.kernel_size
        plain = nn.Conv2d(
            self.in_channels, self.out_channels, kernel, self.stride, self.padding, self.dilation, self.groups,
            self.biases is not None, device=self.weights.device, dtype=self.weights.dtype,
        )  # fmt: skip
        of_weight, of_bias = (self.gates @ lam.to(self.gates)).chunk(2)
        scale = 1.0 if self.elem_scale is None else self.elem_scale
        elementary, response = self.weights.chunk(2)
        plain.weight.copy_(scale * elementary + of_weight[:, None, None, None] * response)
        if plain.bias is not None and self.biases is not None:
            b, c = self.biases.chunk(2)
            plain.bias.copy_(scale * b + of_bias * c)
        return plain

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, n_hyper={self.n_hyper}"


class BestResponseEmbedding(nn.Module):
    """Embedding with a best response, ``E[i] + (U λ) ∘ F[i]``.

    A decoder that is tied to the embedding must use :attr:`elem_weight`, the plain one.

    Args:
        num_embeddings: rows of the tables.
        embedding_dim: numbers per row.
        n_hyper: H.
        padding_idx: a row that stays zero and gets no gradient.
        batch_first: whether indices are (B, …); False for (T, B), where λ belongs to the second dimension.

    Raises:
        ArgumentTypeError: a size is not an int.
        ArgumentValueError: a size is not positive.

    Example:
        >>> import torch
        >>> layer = BestResponseEmbedding(10, 4, n_hyper=2)
        >>> layer(torch.zeros(3, 7, dtype=torch.long), torch.randn(3, 2)).shape
        torch.Size([3, 7, 4])

    Paper: Self-Tuning Networks, arXiv 1903.03088, recurrent networks.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        n_hyper: int,
        padding_idx: int | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim, n_hyper=n_hyper)
        self.embedding_dim, self.n_hyper = embedding_dim, n_hyper
        self.padding_idx, self.batch_first = padding_idx, batch_first
        self.elem_weight = uniform((num_embeddings, embedding_dim), 100)
        self.response_weight = uniform((num_embeddings, embedding_dim), 100)
        self.gates = nn.Parameter(GATE_STD * torch.randn(embedding_dim, n_hyper))
        if padding_idx is not None:
            with torch.no_grad():
                self.elem_weight[padding_idx] = self.response_weight[padding_idx] = 0.0

    def forward(self, indices: Tensor, lam: Tensor | None = None) -> Tensor:
        """Look up (B, …) or, unless ``batch_first``, (T, B); ``lam`` as for :class:`BestResponseLinear`."""
        lam = resolve(lam)
        elementary = F.embedding(indices, self.elem_weight, self.padding_idx)
        if lam is None:
            return elementary
        rows = indices.shape[0 if self.batch_first else 1]
        gate = gate_values(lam, self.gates, None, rows, elementary.ndim)
        gate = gate if self.batch_first else gate.transpose(0, 1)
        return elementary + gate.to(elementary.dtype) * F.embedding(indices, self.response_weight, self.padding_idx)

    @torch.no_grad()
    def materialize(self, lam: Tensor) -> nn.Embedding:
        """The plain layer for one λ, (H,)."""
        table = self.elem_weight + (self.gates @ lam.to(self.gates)) * self.response_weight
        return nn.Embedding.from_pretrained(table, freeze=False, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.elem_weight)}, {self.embedding_dim}, n_hyper={self.n_hyper}"
