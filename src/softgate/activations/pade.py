"""Rational functions as activations: numerator and denominator are polynomials with learned coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_same_device, check_sizes
from softgate._math import masks
from softgate.activations._rational_fit import fit_rational
from softgate.activations._rational_parts import VERSIONS, Recomputed, broadcasts, compute_dtype, evaluate
from softgate.dispatch import call
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["RationalActivation", "rational"]


def _reference(x: Tensor, numerator: Tensor, denominator: Tensor, version: str = "B") -> Tensor:
    """``P(x) / Q(x)`` by Horner's rule, in float32 at least."""
    with masks.without_autocast(x):
        dtype = compute_dtype(x, numerator, denominator)
        return evaluate(x.to(dtype), numerator.to(dtype), denominator.to(dtype), version).to(x.dtype)


def _recompute(x: Tensor, numerator: Tensor, denominator: Tensor, version: str = "B") -> Tensor:
    """The same values; for the gradients only ``x`` is kept."""
    return Recomputed.apply(x, numerator, denominator, version)  # type: ignore[no-untyped-call,no-any-return]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(4, 3), draw(6), draw(4).abs()), {}
    yield (draw(2, 5, 3), draw(3, 4), draw(3, 2).abs()), {}
    yield (draw(7), draw(3), draw(2).abs()), {}
    yield (draw(0, 3), draw(2), draw(1)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, a, b = torch.ones(2, 3), torch.ones(6), torch.ones(4)
    yield (x.long(), a, b), {}, TypeError, "x"
    yield (x.tolist(), a, b), {}, TypeError, "x"
    yield (x, a.long(), b), {}, TypeError, "numerator"
    yield (x, a.tolist(), b), {}, TypeError, "numerator"
    yield (x, a[:0], b), {}, ArgumentValueError, "numerator"
    yield (x, a.sum(), b), {}, ArgumentValueError, "numerator"
    yield (x, torch.ones(2, 6), b), {}, ArgumentValueError, "numerator"
    yield (x, torch.ones(1, 1, 1, 6), b), {}, ArgumentValueError, "numerator"
    yield (x, a, b.bool()), {}, TypeError, "denominator"
    yield (x, a, b.sum()), {}, ArgumentValueError, "denominator"
    yield (x, a, torch.ones(4, 4)), {}, ArgumentValueError, "denominator"
    yield (x, a, b), {"version": "D"}, ArgumentValueError, "version"
    yield (x, a, b), {"version": 1}, TypeError, "version"
    yield (x, a, b[:0]), {"version": "C"}, ArgumentValueError, "denominator"


@method(
    site="activations",
    family="custom",
    paper="iapt",
    source="sec. 3: safe Padé activation, sum a_j x^j / (1 + |sum b_i x^i|), and its other published denominators",
    reference=_reference,
    kernels=(Kernel("recompute", _recompute, lambda *_, **__: None),),
    variants={"default": {}, "A": {"version": "A"}},
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
)
def rational(x: Tensor, numerator: Tensor, denominator: Tensor, version: str = "B") -> Tensor:
    r"""Quotient of two polynomials, entry by entry.

    .. math:: g(x) = \frac{\sum_{j=0}^p a_j x^j}{Q(x)}, \qquad
              Q_A = 1 + \sum_{i=1}^q |b_i x^i|, \quad Q_B = 1 + \Big|\sum_{i=1}^q b_i x^i\Big|, \quad
              Q_C = 0.1 + \Big|\sum_{i=0}^q b_i x^i\Big|, \quad Q_N = 1 + \sum_{i=1}^q b_i x^i

    A, B and C have no poles; N has one wherever its denominator vanishes. Beyond the interval that the coefficients
    were fitted on, g grows like ``|x|^(p - q)``. Gradients keep ``x`` and nothing else of its size.

    Args:
        x: any shape, real floating point.
        numerator: a_0, …, a_p along the last axis, (p + 1,); leading dimensions, (…, p + 1), broadcast against ``x``:
            (D, p + 1) gives every feature of an ``x`` (…, D) a function of its own.
        denominator: b_1, …, b_q along the last axis (b_0, …, b_q in version C), with leading dimensions likewise;
            empty for q = 0.
        version: which denominator: ``"A"``, ``"B"``, ``"C"`` or ``"N"``.

    Returns:
        Of the shape and dtype of ``x``; 16-bit types are computed in float32. NaN gives NaN, and so do infinities and
        numbers whose powers overflow: with p = 5 in float32 that is beyond 1e7.

    Raises:
        ArgumentTypeError: a tensor is not real floating point, ``version`` no string.
        ArgumentValueError: an unknown ``version``, too few coefficients, or leading dimensions that do not fit ``x``.

    Example:
        >>> import torch
        >>> rational(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor([-0.5000,  0.0000,  0.4000])

    Paper: Zhu et al., IAPT, arXiv 2405.18203, sec. 3 (the learned activation of the prompt generator).
    """
    check_float_tensor("x", x)
    check_choice("version", version, VERSIONS)
    for name, given, least in (("numerator", numerator, 1), ("denominator", denominator, int(version == "C"))):
        check_float_tensor(name, given)
        if given.ndim == 0 or given.shape[-1] < least:
            bad_value(name, tuple(given.shape), f"a tensor with at least {least} coefficients along its last axis")
        if not broadcasts(given.shape[:-1], x.shape):
            bad_value(
                name, tuple(given.shape), f"(…, coefficients) with leading dimensions that fit x {tuple(x.shape)}"
            )
    check_same_device(x=x, numerator=numerator, denominator=denominator)
    result: Tensor = call(record_of(rational), x, numerator, denominator, version)
    return result


class RationalActivation(nn.Module):
    """An activation that is learned: a rational function that starts as a known one.

    Args:
        degrees: (p, q), degrees of numerator and denominator.
        version: denominator, see :func:`rational`.
        init: what it starts as, fitted on [-3, 3]: ``"gelu"``, ``"relu"``, ``"tanh"``, ``"silu"``, ``"identity"``, or
            a function of one tensor.
        dim: number of features that get a function each, along the last axis; None for one function in all.

    Attributes:
        numerator: parameter a, (p + 1,) or (dim, p + 1).
        denominator: parameter b, (q,) or (dim, q), in version C with one entry more.

    Shapes: any -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: negative degrees, an unknown name, or a function that these degrees do not approximate
            (root of the mean squared error above 0.01).

    Example:
        >>> import torch
        >>> RationalActivation(init="identity")(torch.tensor([-2.0, 0.5]))
        tensor([-2.0000,  0.5000], grad_fn=<RecomputedBackward>)

    Paper: arXiv 2405.18203, sec. 3.
    """

    def __init__(
        self,
        degrees: tuple[int, int] = (5, 4),
        version: str = "B",
        init: str | Callable[[Tensor], Tensor] = "gelu",
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self.degrees = _check_degrees(degrees)
        check_choice("version", version, VERSIONS)
        self.version, self.dim = version, dim
        numerator, denominator = fit_rational(init, self.degrees, version)
        if dim is not None:
            check_sizes(dim=dim)
            numerator, denominator = numerator.repeat(dim, 1), denominator.repeat(dim, 1)
        self.numerator = nn.Parameter(numerator.to(torch.get_default_dtype()))
        self.denominator = nn.Parameter(denominator.to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """The rational function of ``x``, entry by entry."""
        return rational(x, self.numerator, self.denominator, self.version)

    def extra_repr(self) -> str:
        """Degrees, version and number of functions, for ``repr``."""
        dim = "" if self.dim is None else f", dim={self.dim}"
        return f"degrees={self.degrees}, version={self.version!r}{dim}"


def _check_degrees(degrees: Any) -> tuple[int, int]:
    if not isinstance(degrees, tuple | list) or len(degrees) != 2 or any(type(d) is not int for d in degrees):
        bad_type("degrees", degrees, "a pair of ints, (numerator, denominator)")
    if min(degrees) < 0:
        raise ArgumentValueError(f"degrees must not be negative, got {tuple(degrees)}")
    return degrees[0], degrees[1]
