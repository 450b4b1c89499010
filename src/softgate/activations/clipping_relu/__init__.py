"""ReLU that lets nothing above a bound through, so that a flipped bit in a weight stops at the next activation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.activations._closed_form import run
from softgate.activations._rational_parts import broadcasts
from softgate.activations.clipping_relu.reference import Recompute, hyrelu_reference
from softgate.dispatch import call
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["ClippedReLU", "hyrelu"]

MODES = ("hyrelu", "zero", "saturate")


def _recompute(x: Tensor, bound: Tensor, k: float = 20.0) -> Tensor:
    return run(Recompute(k), x, bound)


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(4, 3), draw().abs()), {"k": 3.0}
    yield (draw(4, 3), draw().abs()), {}
    yield (draw(2, 3, 4), draw(3, 4).abs()), {}
    yield (draw(2, 5, 3, 4).contiguous(memory_format=torch.channels_last), draw(5, 1, 1).abs()), {}
    yield (draw(9, 14).t()[::2], draw().abs()), {}
    yield (draw(), draw().abs()), {}
    yield (draw(0, 3), draw(3).abs()), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, bound = torch.ones(2, 3), torch.tensor(1.0)
    yield (x.long(), bound), {}, TypeError, "x"
    yield (x.tolist(), bound), {}, TypeError, "x"
    yield (x, bound.long()), {}, TypeError, "bound"
    yield (x, 1.0), {}, TypeError, "bound"
    yield (x, torch.ones(2)), {}, ArgumentValueError, "bound"
    yield (x, torch.ones(1, 2, 3)), {}, ArgumentValueError, "bound"
    yield (x, bound), {"k": 0.0}, ArgumentValueError, "k"
    yield (x, bound), {"k": "20"}, TypeError, "k"


@method(
    site="activations",
    family="custom",
    paper="proact",
    source="HyReLU, max(0, x - x sigmoid(k (x - b)))",
    reference=hyrelu_reference,
    kernels=(Kernel("recompute", _recompute, lambda *_, **__: None),),
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
    deviations=("infinities and NaN give 0; the authors' formula gives NaN for them",),
)
def hyrelu(x: Tensor, bound: Tensor, k: float = 20.0) -> Tensor:
    r"""ReLU that falls back to 0 above a bound, smoothly, so that the bound can be learned.

    .. math:: f(x) = \max\big(0,\; x\, \sigma(k (b - x))\big)

    At ``x = b`` it is half of ReLU; with growing k it tends to ReLU below b and 0 above, with growing b to ReLU. One
    bound for a layer and one for every neuron are the same function with another shape of ``bound``. Gradients keep
    ``x`` and nothing else of its size.

    Args:
        x: any shape, real floating point.
        bound: b, not negative: (), or a shape that broadcasts against ``x`` without enlarging it: that of ``x`` without
            the batch gives every neuron its own.
        k: steepness, positive.

    Returns:
        Of the shape and dtype of ``x``, 0 where ``x`` is infinite or NaN: a float with a flipped bit can be both.
        16-bit types are computed in float32.

    Raises:
        ArgumentTypeError: a tensor is not real floating point, or ``k`` no number.
        ArgumentValueError: ``bound`` does not fit the shape of ``x``, or ``k`` is not positive and finite.

    Example:
        >>> import torch
        >>> hyrelu(torch.tensor([-1.0, 1.0, 2.0, 4.0, torch.inf]), torch.tensor(2.0))
        tensor([0.0000e+00, 1.0000e+00, 1.0000e+00, 1.6993e-17, 0.0000e+00])

    Paper: ProAct, arXiv 2406.06313, HyReLU; the same function as FitReLU (arXiv 2112.13544).
    """
    check_float_tensor("x", x)
    check_float_tensor("bound", bound)
    check_same_device(x=x, bound=bound)
    if not broadcasts(bound.shape, x.shape):
        bad_value("bound", tuple(bound.shape), f"of shape () or of one that broadcasts to that of x, {tuple(x.shape)}")
    k = check_number("k", k, low=0.0, low_open=True, high_open=True)
    result: Tensor = call(record_of(hyrelu), x, bound, k=k)
    return result


class ClippedReLU(nn.Module):
    """ReLU with an upper bound per layer or per neuron.

    Args:
        bound: a number, or a tensor: (), or the shape of the input without its batch axis for one bound per neuron. Not
            negative.
        mode: what becomes of larger values: ``"hyrelu"`` lets them fall to 0 smoothly (:func:`hyrelu`), ``"zero"`` at
            once, ``"saturate"`` sets them to the bound.
        k: steepness of ``"hyrelu"``.

    Attributes:
        bound: a parameter without gradient; :func:`softgate.activations.proact_fit` turns that on.

    Shapes: any that ``bound`` fits -> the same. Infinities and NaN become 0, but ``+inf`` the bound under
    ``"saturate"``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a negative bound or one that is NaN, an unknown mode, or ``k`` not positive.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 1.0, 3.0])
        >>> [ClippedReLU(2.0, mode)(x).tolist() for mode in ("zero", "saturate")]
        [[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]

    Paper: arXiv 2406.06313; ``"zero"`` is the shape of FT-ClipAct (1912.00941), ``"saturate"`` that of Ranger
    (2003.13874).
    """

    def __init__(self, bound: float | Tensor = 6.0, mode: str = "hyrelu", k: float = 20.0) -> None:
        super().__init__()
        if isinstance(bound, Tensor):
            check_float_tensor("bound", bound)
        elif isinstance(bound, bool) or not isinstance(bound, int | float):
            bad_type("bound", bound, "a number or a tensor")
        value = torch.as_tensor(bound, dtype=None if isinstance(bound, Tensor) else torch.get_default_dtype())
        if not bool((value >= 0).all()):
            raise ArgumentValueError(f"bound must not be negative or NaN, got {float(value.min())}")
        check_choice("mode", mode, MODES)
        self.mode, self.k = mode, check_number("k", k, low=0.0, low_open=True, high_open=True)
        self.bound = nn.Parameter(value.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The clipped input."""
        if self.mode == "hyrelu":
            return hyrelu(x, self.bound, self.k)
        check_float_tensor("x", x)
        if not broadcasts(self.bound.shape, x.shape):
            raise ArgumentValueError(f"x of shape {tuple(x.shape)} does not fit bounds {tuple(self.bound.shape)}")
        positive = torch.where(x > 0, x, 0.0)  # of NaN, 0
        if self.mode == "saturate":
            return torch.minimum(positive, self.bound.to(x.dtype))
        return torch.where((positive <= self.bound) & positive.isfinite(), positive, 0.0)

    def extra_repr(self) -> str:
        """Mode, and the number and largest of the bounds, for ``repr``."""
        steepness = f", k={self.k:g}" if self.mode == "hyrelu" else ""
        many = f"{self.bound.numel()} bounds up to " if self.bound.ndim else "bound "
        largest = float(self.bound.detach().max()) if self.bound.numel() else 0.0
        return f"{many}{largest:.4g}, mode={self.mode!r}{steepness}"
