"""CRReLU: ReLU with a learned correction near 0."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_dim, check_float_tensor, check_number, check_same_device, check_sizes
from softgate.activations._closed_form import run
from softgate.activations._rational_parts import broadcasts
from softgate.activations.corrected import native_passes, triton_passes
from softgate.activations.corrected.native_passes import NativePasses
from softgate.activations.corrected.reference import TorchPasses, crrelu_reference
from softgate.activations.corrected.triton_passes import TritonPasses
from softgate.dispatch import call
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.registry import Kernel, method, record_of

__all__ = ["CRReLU", "crrelu"]


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int, scale: float = 2.0) -> Tensor:
        return (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)

    yield (draw(4, 3), draw()), {}
    yield (draw(), draw()), {}
    yield (draw(5), draw(1)), {}
    yield (draw(2, 5, 3, 4).contiguous(memory_format=torch.channels_last), draw(5, 1, 1)), {}
    yield (draw(2, 5, 3, 4).contiguous(memory_format=torch.channels_last), draw()), {}
    yield (draw(9, 14).t()[::2], draw()), {}
    yield (draw(3, 7, scale=30.0), draw()), {}
    yield (draw(9001), draw()), {}
    yield (draw(0, 3), draw()), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, eps = torch.ones(2, 3), torch.tensor(0.01)
    yield (x.long(), eps), {}, TypeError, "x"
    yield (x.to(torch.complex64), eps), {}, TypeError, "x"
    yield (x.tolist(), eps), {}, TypeError, "x"
    yield (x, eps.long()), {}, TypeError, "eps"
    yield (x, 0.01), {}, TypeError, "eps"
    yield (x, torch.ones(2)), {}, ArgumentValueError, "eps"
    yield (x, torch.ones(1, 2, 3)), {}, ArgumentValueError, "eps"
    yield (x.sum(), torch.ones(1)), {}, ArgumentValueError, "eps"


@method(
    site="activations",
    family="custom",
    paper="crrelu",
    source="the correction of ReLU for a Gaussian input, max(0, x) + eps x exp(-x²/2)",
    reference=crrelu_reference,
    kernels=(
        Kernel("native", partial(run, NativePasses()), native_passes.refuses),
        Kernel("triton", partial(run, TritonPasses()), triton_passes.refuses),
        Kernel("recompute", partial(run, TorchPasses()), lambda *_: None),
    ),
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
    deviations=("eps may have one entry per channel; the paper has one for the whole layer",),
)
def crrelu(x: Tensor, eps: Tensor) -> Tensor:
    r"""Correction regularised ReLU, entry by entry.

    .. math:: f(x) = \max(0, x) + \varepsilon\, x\, e^{-x^2/2}, \qquad
              f'(x) = [x > 0] + \varepsilon (1 - x^2) e^{-x^2/2}, \qquad
              \frac{\partial f}{\partial \varepsilon} = x\, e^{-x^2/2}

    It stays within ``0.6066 |eps|`` of ReLU and equals it in float32 for ``|x| > 6``, unless eps is huge; negative
    inputs down to about -3 keep a gradient. For positive inputs it increases iff ``-1 <= eps <= 2.2408``. Its Lipschitz
    constant is ``max(1 + max(eps, 0), 1 + 0.4463 max(-eps, 0), |eps|)``. Gradients keep ``x`` and nothing else of its
    size; that of eps is summed in float32 at least.

    The paper derives the correction as one that lowers the entropy of the output. At first order it does so for
    ``eps < 0``; the paper's start, 0.01, raises it. Since eps is learned, the network chooses its sign.

    Args:
        x: any shape, real floating point.
        eps: (), or a shape that broadcasts against ``x`` without enlarging it: (C, 1, 1) gives every channel of images
            (N, C, H, W) its own. Real floating point.

    Returns:
        Of the shape and dtype of ``x``; 16-bit types are computed in float32. ``f(inf) = inf``, ``f(-inf) = 0``; NaN
        gives NaN.

    Raises:
        ArgumentTypeError: ``x`` or ``eps`` is not a real floating-point tensor.
        ArgumentValueError: ``eps`` does not fit the shape of ``x``.

    Example:
        >>> import torch
        >>> crrelu(torch.tensor([-1.0, 0.0, 1.0, 3.0]), torch.tensor(0.01))
        tensor([-0.0061,  0.0000,  1.0061,  3.0003])

    Paper: A Method on Searching Better Activation Functions, arXiv 2405.12954, CRReLU.
    """
    check_float_tensor("x", x)
    check_float_tensor("eps", eps)
    check_same_device(x=x, eps=eps)
    if not broadcasts(eps.shape, x.shape):
        bad_value("eps", tuple(eps.shape), f"of shape () or of one that broadcasts to that of x, {tuple(x.shape)}")
    result: Tensor = call(record_of(crrelu), x, eps)
    return result


class CRReLU(nn.Module):
    """CRReLU with a learned eps, in the place of any activation.

    Put it into a model before the optimizer is made, which must know its parameter, and leave eps out of weight decay:
    like biases and norms it has less than two dimensions. A module that is called in two places has one eps for both.

    Args:
        init: what eps starts as; the paper takes 0.01.
        num_parameters: 1 for one eps in all, as in the paper, or the number of channels, for one each.
        dim: where the channels are, if there are several eps.
        learnable: False keeps eps as a buffer.
        device: of eps.
        dtype: of eps.

    Attributes:
        eps: (num_parameters,), a parameter, or a buffer if it is not learnable.

    Shapes: any -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: ``init`` is not finite, ``num_parameters`` not positive; at the call, an input without
            ``num_parameters`` channels.

    Example:
        >>> import torch
        >>> CRReLU(-0.02)(torch.tensor([-1.0, 2.0])).detach()
        tensor([0.0121, 1.9946])

    Paper: arXiv 2405.12954.
    """

    eps: Tensor

    def __init__(
        self,
        init: float = 0.01,
        num_parameters: int = 1,
        dim: int = 1,
        learnable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value = check_number("init", init, low_open=True, high_open=True)
        check_sizes(num_parameters=num_parameters)
        if isinstance(dim, bool) or not isinstance(dim, int):
            bad_type("dim", dim, "an int")
        if not isinstance(learnable, bool):
            bad_type("learnable", learnable, "a bool")
        self.init, self.num_parameters, self.dim, self.learnable = value, num_parameters, dim, learnable
        eps = torch.full((num_parameters,), value, device=device, dtype=dtype)
        if learnable:
            self.eps = nn.Parameter(eps)
        else:
            self.register_buffer("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        """CRReLU of ``x``, any shape; with several eps, ``num_parameters`` channels at ``dim``."""
        if self.num_parameters == 1:
            return crrelu(x, self.eps.reshape(()))
        check_float_tensor("x", x)
        dim = check_dim(self.dim, x.ndim)
        if x.ndim == 0 or x.shape[dim] != self.num_parameters:
            raise ArgumentValueError(
                f"x must have num_parameters={self.num_parameters} channels at dim={self.dim}, got {tuple(x.shape)}"
            )
        return crrelu(x, self.eps.reshape(-1, *(1,) * (x.ndim - 1 - dim)))

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        channels = f", num_parameters={self.num_parameters}, dim={self.dim}" if self.num_parameters > 1 else ""
        return f"init={self.init:g}{channels}{'' if self.learnable else ', learnable=False'}"
